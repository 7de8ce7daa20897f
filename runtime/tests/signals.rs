//! SIGTERM asks to stop; the tasks end in their own time. A process of its own with no thread but
//! ours: signals are the whole process's.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use warpcore_need::{Need, need};
use warpcore_runtime::{Builder, sleep, spawn, stopping};

static DRAINED: AtomicUsize = AtomicUsize::new(0);
static HAS_ENDED: AtomicBool = AtomicBool::new(false);

fn main() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let outputs =
        Builder::new().shards(2).stop_on_signals(true).drain(Duration::from_secs(30)).run(
            |index| async move {
                if index == 0 {
                    let pid = std::process::id().to_string();
                    let status = std::process::Command::new("kill").args(["-TERM", &pid]).status();
                    assert!(status.expect("kill runs").success());
                }
                stopping().await;
                drop(spawn(async {
                    sleep(Duration::from_millis(20)).await;
                    DRAINED.fetch_add(1, Ordering::Relaxed);
                }));
                index
            },
        );
    assert_eq!(outputs.expect("runs"), [0, 1]);
    assert_eq!(DRAINED.load(Ordering::Relaxed), 2, "tasks have their time");
    // The shard that is the caller's thread ends first: signals are heard all the same.
    let outputs = Builder::new().shards(2).stop_on_signals(true).run(|index| async move {
        if index == 1 {
            HAS_ENDED.store(true, Ordering::Relaxed);
        } else {
            while !HAS_ENDED.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(1)).await;
            }
            let pid = std::process::id().to_string();
            let status = std::process::Command::new("kill").args(["-INT", &pid]).status();
            assert!(status.expect("kill runs").success());
            stopping().await;
        }
    });
    outputs.expect("runs");
    // Whoever runs this may have gone from their terminal (nohup(1)).
    // SAFETY: no handler of anybody's.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    let builder = Builder::new().shards(1).stop_on_signals(true).stop_on_hangup(true);
    let outputs = builder.run(|_| async {
        let pid = std::process::id().to_string();
        let status = std::process::Command::new("kill").args(["-HUP", &pid]).status();
        assert!(status.expect("kill runs").success());
        stopping().await;
    });
    outputs.expect("runs");
    println!("test sigterm_stops_every_shard_and_drains ... ok");
}

//! SIGTERM asks to stop; the tasks end in their own time. A process of its own with no thread but
//! ours: signals are the whole process's.

use std::time::Duration;

use warpcore_need::{Need, need};
use warpcore_runtime::{Builder, sleep, spawn, stopping};

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
                drop(spawn(sleep(Duration::from_millis(20))));
                index
            },
        );
    assert_eq!(outputs.expect("runs"), [0, 1]);
    // The shard that is the caller's thread ends first: signals are heard all the same.
    let outputs = Builder::new().shards(2).stop_on_signals(true).run(|index| async move {
        if index == 0 {
            sleep(Duration::from_millis(20)).await;
            let pid = std::process::id().to_string();
            let status = std::process::Command::new("kill").args(["-INT", &pid]).status();
            assert!(status.expect("kill runs").success());
            stopping().await;
        }
    });
    outputs.expect("runs");
    println!("test sigterm_stops_every_shard_and_drains ... ok");
}

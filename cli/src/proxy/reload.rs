//! Reads the configuration again when asked to, or when its files have changed; hands over to a new
//! process when asked to.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use signal_hook::consts::{SIGHUP, SIGUSR2};
use warpcore_runtime::Stopper;
use warpcore_tls::{Config, Proxy};

use super::Arguments;
use super::hand_over::HandOver;
use crate::systemd;

/// How often signals are looked at.
const SIGNALS_EVERY: Duration = Duration::from_millis(250);

/// How often files are, of which there may be thousands.
const FILES_EVERY: Duration = Duration::from_secs(2);

/// After a failure it is tried again.
const AGAIN_EVERY: Duration = Duration::from_secs(60);

/// What tells one state of a file from another: inode, length, time of change. Of a path that is a
/// link, where it leads to.
pub(super) type Seen = BTreeMap<PathBuf, Option<(u64, u64, i64, i64)>>;

/// Watches on a thread of its own, as long as the process lives: reading certificates is nothing for a
/// shard to wait for. `loaded`: what the configuration was read from. `stopper` stops this process for the
/// next one. `cpus`: those that the next process is to have, which it inherits from the thread that starts it.
pub(super) fn start(
    arguments: Arc<Arguments>,
    mut loaded: Seen,
    proxy: Arc<Proxy>,
    hand_over: Arc<HandOver>,
    stopper: Stopper,
    cpus: CpuSet,
) -> Result<(), String> {
    let listen = |signal: i32| {
        let flag = Arc::new(AtomicBool::new(false));
        let registered = signal_hook::flag::register(signal, Arc::clone(&flag));
        registered.map(|_| flag).map_err(|error| format!("cannot listen for signals: {error}"))
    };
    let (asked, replaced) = (listen(SIGHUP)?, listen(SIGUSR2)?);
    let spawned = thread::Builder::new().name("reload".to_owned()).spawn(move || {
        if let Err(errno) = sched_setaffinity(None, &cpus) {
            tracing::warn!("the next process will have one core: {errno}");
        }
        let mut before = loaded.clone();
        let mut looked_at = Instant::now();
        let mut failed_at = None;
        loop {
            thread::sleep(SIGNALS_EVERY);
            // First: what serves by now is not to be replaced.
            if hand_over.is_done() {
                stopper.stop();
                return;
            }
            if replaced.swap(false, Ordering::Relaxed) && !hand_over.begin() {
                replaced.store(true, Ordering::Relaxed);
            }
            let is_asked = asked.swap(false, Ordering::Relaxed);
            if !is_asked && looked_at.elapsed() < FILES_EVERY {
                continue;
            }
            looked_at = Instant::now();
            let config = arguments.read();
            let now = look(&arguments, config.as_ref().ok());
            // Whoever replaces a file may not be done with it: until nothing has moved for a while.
            let has_changed = now != loaded && now == before;
            before = now;
            // What it failed for may pass by itself: a name that was not found, no descriptor left.
            let is_again = failed_at.is_some_and(|at: Instant| at.elapsed() >= AGAIN_EVERY);
            if is_asked || has_changed || is_again {
                loaded.clone_from(&before);
                failed_at = None;
                systemd::notify("RELOADING=1");
                match config.and_then(|config| proxy.reload(&config)) {
                    Ok(()) => tracing::info!("reloaded"),
                    Err(error) => {
                        failed_at = Some(Instant::now());
                        let error = arguments.locate(error);
                        tracing::error!("not reloaded, all stays as it was: {error}");
                    }
                }
                systemd::notify("READY=1");
            }
        }
    });
    spawned.map(drop).map_err(|error: io::Error| format!("cannot watch for changes: {error}"))
}

pub(super) fn look(arguments: &Arguments, config: Option<&Config>) -> Seen {
    let mut paths = config.map(Config::paths).unwrap_or_default();
    paths.extend(arguments.config.clone());
    let seen = |path: PathBuf| {
        let state = path.metadata().ok();
        let state = state.map(|one| (one.ino(), one.len(), one.mtime(), one.mtime_nsec()));
        (path, state)
    };
    paths.into_iter().map(seen).collect()
}

//! One mount, from the first request to the last flush.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_lock::{Mutex, OnceCell};
use futures_lite::future;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use warpcore_runtime::{Holders, queue, shard, shards, sleep, spawn, stop, timeout, until_stopped};

use crate::fs::{Fs, Lower, Transport};
use crate::fuse::{classic, uring};
use crate::mount::{Config, Flag, MountError, MountPoint, Unmounting, attach, check};

/// A directory that was mounted, and waits to be served.
#[derive(Debug)]
pub struct Mount {
    point: Arc<MountPoint>,
    shared: Arc<Shared>,
    /// Of the source.
    _locks: Vec<OwnedFd>,
}

/// What the shards that serve a mount share.
pub(crate) struct Shared {
    pub(crate) device: Arc<OwnedFd>,
    pub(crate) fs: Fs,
    /// Queues of FUSE over io_uring; None: it is not to be used.
    queues: Option<u16>,
    /// Set once INIT is answered: before it, the kernel would refuse entries.
    agreed: OnceCell<Transport>,
    /// Set once the connection has ended.
    ended: OnceCell<()>,
    /// Shards that have no request under way any more.
    finished: AtomicUsize,
}

/// What a mount has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How requests came; None if the kernel never asked.
    pub transport: Option<Transport>,
    /// Requests that came over io_uring.
    pub uring_requests: u64,
    /// Everything that was written is in the lower filesystem.
    pub flushed: bool,
    /// What the offload queue has done.
    pub queue: warpcore_offload::Stats,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("agreed", &self.agreed).finish_non_exhaustive()
    }
}

impl Mount {
    /// Checks both directories and mounts. Nothing is changed when it fails.
    ///
    /// Raises the limit of open files as far as the system allows.
    pub fn new(config: &Config) -> Result<Self, MountError> {
        let (config, source, locks) = check(config.clone())?;
        // Told before INIT: once io_uring is agreed on, the kernel waits for every queue.
        let queues = match (config.io_uring, uring::queues()) {
            (true, Ok(queues)) => Some(queues),
            (true, Err(error)) => {
                tracing::warn!("cannot tell the possible CPUs: {error}; using /dev/fuse");
                None
            }
            (false, _) => None,
        };
        let unusable = |errno: Errno| MountError::Source {
            path: config.source.clone(),
            cause: io::Error::from(errno).to_string(),
        };
        let read_only = config.flags.contains(&Flag::ReadOnly);
        let no_atime = read_only || config.flags.contains(&Flag::NoAtime);
        let lower = Lower::new(source, read_only, no_atime).map_err(unusable)?;
        let fs = Fs::new(lower, queues.is_some(), &config).map_err(unusable)?;
        raise_descriptor_limit();

        let target = |error: io::Error| MountError::Target {
            path: config.target.clone(),
            cause: error.to_string(),
        };
        let mut point = MountPoint::new(&config.target).map_err(target)?;
        let device = attach(&config)?;
        point.is_made().map_err(target)?;
        // Requests are read until there are none.
        rustix::fs::fcntl_setfl(&device, OFlags::NONBLOCK | OFlags::RDWR)
            .map_err(|errno| MountError::Device(errno.into()))?;
        Ok(Self {
            point: Arc::new(point),
            shared: Arc::new(Shared {
                device: Arc::new(device),
                fs,
                queues,
                agreed: OnceCell::new(),
                ended: OnceCell::new(),
                finished: AtomicUsize::new(0),
            }),
            _locks: locks,
        })
    }

    /// Serves on this shard, until it is unmounted or the machine is asked to stop. Every shard of
    /// the machine has to call it; the first one unmounts and flushes everything, when the others
    /// have finished. The shards need SQEs of 128 bytes for io_uring.
    ///
    /// The thread gets a umask of its own, and gives up CAP_SYS_RESOURCE.
    pub async fn serve(&self) -> io::Result<Summary> {
        let prepared = prepare_thread();
        if prepared.is_err() {
            // All end in order: a mount of which some queues are not served would hang.
            stop();
        }
        let session = Rc::new(Session {
            shared: Arc::clone(&self.shared),
            requests: Holders::default(),
            entries: Holders::default(),
            uring_requests: Cell::new(0),
        });
        let result = if shard() == 0 {
            self.lead(&session).await
        } else {
            let _finished = Finished(&self.shared);
            session.follow().await
        };
        prepared?;
        Ok(Summary {
            transport: self.shared.fs.transport.get().copied(),
            uring_requests: session.uring_requests.get(),
            flushed: result?,
            queue: queue().stats(),
        })
    }

    /// Reads `/dev/fuse`, ends the mount, and flushes what is left. False: not everything could be.
    async fn lead(&self, session: &Rc<Session>) -> io::Result<bool> {
        let shared = &self.shared;
        let ending = Ending(shared);
        let unmounting = Unmounting::prepare(Arc::clone(&self.point)).inspect_err(|error| {
            // Nothing has been written yet.
            tracing::error!("unmounted at once: no thread to do it later: {error}");
            let _ = self.point.take_away(UnmountFlags::DETACH);
            stop();
        });
        let flushing = Rc::new(Mutex::new(()));
        let flusher = spawn(flush_now_and_then(Arc::clone(shared), Rc::clone(&flushing)));
        let entries = spawn(register_entries(Rc::clone(session)));
        let mut reader = spawn(classic::serve(Rc::clone(session)));
        let ended = match until_stopped(&mut reader).await {
            Some(ended) => ended,
            None => {
                shared.fs.commit_all().await;
                if let Ok(unmounting) = unmounting {
                    unmounting.unmount().await;
                }
                timeout(PATIENCE, reader).await.unwrap_or(Ok(Ok(())))
            }
        };
        let _ = entries.cancel().await;
        drop(ending);
        // Not in the middle of a flush: a commit that is dropped loses what it had taken.
        let idle = flushing.lock().await;
        let _ = flusher.cancel().await;
        drop(idle);
        session.finish().await;
        // Acquire: what the other shards have written is closed here.
        while shared.finished.load(Ordering::Acquire) + 1 < shards() {
            sleep(Duration::from_millis(1)).await;
        }
        let flushed = shared.fs.close_all().await;
        match ended {
            Ok(result) => result.map(|()| flushed),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// Tells the other shards that the connection has ended when it is dropped, also by a panic.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // Set once: nobody else does.
        let _ = self.0.ended.set_blocking(());
    }
}

/// Tells the leader that a shard has no request under way any more, also by a panic.
struct Finished<'a>(&'a Shared);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        // Release: the leader closes what this shard has written to.
        self.0.finished.fetch_add(1, Ordering::Release);
    }
}

/// How long the kernel is given to end a connection, and until something is said about requests that
/// are still under way.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one shard has of a mount.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    /// Requests under way.
    pub(crate) requests: Holders,
    /// Entries of io_uring.
    pub(crate) entries: Holders,
    pub(crate) uring_requests: Cell<u64>,
}

impl Session {
    /// After an answer on `/dev/fuse`: if it was INIT's, entries may be registered.
    pub(crate) fn answered(&self) {
        if let Some(transport) = self.shared.fs.transport.get()
            && !self.shared.agreed.is_initialized()
        {
            // Nobody else sets it: there is one INIT.
            let _ = self.shared.agreed.set_blocking(*transport);
        }
    }

    /// Serves on a shard that is not the first.
    async fn follow(self: &Rc<Self>) -> io::Result<bool> {
        let serve = async {
            if *self.shared.agreed.wait().await == Transport::Classic {
                classic::serve(Rc::clone(self)).await?;
            } else {
                register_entries(Rc::clone(self)).await;
            }
            self.entries.none().await;
            Ok(true)
        };
        let ended = async {
            self.shared.ended.wait().await;
            Ok(true)
        };
        let result = future::or(serve, ended).await;
        self.finish().await;
        result
    }

    /// After the connection has ended: waits for the requests under way, however long the lower
    /// filesystem takes. To drop one could lose what it was writing.
    async fn finish(&self) {
        // Entries end with the connection.
        let _ = timeout(PATIENCE, self.entries.none()).await;
        while timeout(PATIENCE, self.requests.none()).await.is_err() {
            tracing::warn!("{} requests are still under way", self.requests.count());
        }
    }
}

async fn register_entries(session: Rc<Session>) {
    let agreed = *session.shared.agreed.wait().await;
    if let (Transport::IoUring, Some(queues)) = (agreed, session.shared.queues) {
        uring::start(&session, queues);
    }
}

/// What nobody syncs reaches the lower filesystem within seconds all the same.
async fn flush_now_and_then(shared: Arc<Shared>, flushing: Rc<Mutex<()>>) {
    const EVERY: Duration = Duration::from_secs(5);
    loop {
        sleep(EVERY).await;
        let _flushing = flushing.lock().await;
        shared.fs.commit_all().await;
    }
}

/// Before a thread serves: it works on behalf of others, with a filesystem below that must hold for
/// them, and memory that must not come from writing to the mount itself.
fn prepare_thread() -> io::Result<()> {
    // Each caller's umask is set before a file is made for it.
    // SAFETY: unsharing the filesystem context changes umask, root and working directory of this
    // thread only, on which nothing here relies from other threads.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Memory for what we write must never be waited for by writing out pages that we have to store
    // (PR_SET_IO_FLUSHER of linux/prctl.h). Needs CAP_SYS_RESOURCE.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0 {
        static ONCE: std::sync::Once = std::sync::Once::new();
        let error = io::Error::last_os_error();
        ONCE.call_once(|| {
            tracing::warn!("under memory pressure the mount may wait for itself: {error}")
        });
    }
    // With it, quotas would not bind who writes through us.
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_RESOURCE);
    sets.permitted.remove(CapabilitySet::SYS_RESOURCE);
    sets.inheritable.remove(CapabilitySet::SYS_RESOURCE);
    Ok(set_capabilities(None, sets)?)
}

/// Every open file takes a descriptor of ours: as many as the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the limit of open files stays low: {errno}");
    }
}

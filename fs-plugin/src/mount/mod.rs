//! Mounting and unmounting: by mount(2), or without privileges by fusermount3.

mod fusermount;
mod lock;

use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::path::Arg;
use warpcore_runtime::sleep;

pub use lock::{LockError, is_shown, lock_tree};

use crate::fs::{Cache, proc_path};
use crate::store::contents::Options;

/// What a mount is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory that it is stacked on.
    pub source: PathBuf,
    /// Where it is seen.
    pub target: PathBuf,
    /// How new contents are stored.
    pub contents: Options,
    /// Bytes of all files together that may be in memory only, about: a write first stores what its
    /// file has of them when there are more.
    pub dirty_max: u64,
    /// Bytes that all open files together may have in memory of where their contents lie, about: who
    /// goes beyond forgets what can be read again. A few hundred KB of each can not.
    pub index_max: u64,
    /// Users other than the one who mounts may use it, as the modes say.
    pub allow_other: bool,
    /// Use FUSE over io_uring where the kernel has it on.
    pub io_uring: bool,
    /// What the kernel keeps in its page cache.
    pub cache: Cache,
    /// What else mount(2) is told.
    pub flags: Vec<Flag>,
}

/// A flag of mount(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Reading changes no time (MS_NOATIME).
    NoAtime,
    /// Nothing is executed (MS_NOEXEC).
    NoExec,
    /// Nothing is changed (MS_RDONLY), and of the source neither.
    ReadOnly,
}

/// Why a directory cannot be mounted, and the cure.
#[derive(Debug)]
#[non_exhaustive]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    Device(io::Error),
    /// The system refused the mount.
    Mount(io::Error),
    /// One directory lies in the other.
    Nested {
        /// The outer one.
        outer: PathBuf,
        /// The inner one.
        inner: PathBuf,
    },
    /// The source cannot be used.
    Source {
        /// The directory.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The mount point cannot be used.
    Target {
        /// The directory.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(error) => {
                write!(f, "cannot open /dev/fuse: {error}; ")?;
                f.write_str(match error.kind() {
                    io::ErrorKind::PermissionDenied => "it has to be writable (mode 0666)",
                    _ => {
                        "`modprobe fuse`; a container needs \
                         `--device /dev/fuse --cap-add SYS_ADMIN`"
                    }
                })
            }
            Self::Mount(error) => {
                write!(f, "cannot mount: {error}")?;
                match error.kind() {
                    io::ErrorKind::NotFound => f.write_str(
                        "; without it mounting needs root (CAP_SYS_ADMIN): install fuse3",
                    ),
                    _ => Ok(()),
                }
            }
            Self::Nested { outer, inner } => write!(
                f,
                "{} lies inside {}: a mount must be beside what it is stacked on",
                inner.display(),
                outer.display()
            ),
            Self::Source { path, cause } => write!(f, "source {}: {cause}", path.display()),
            Self::Target { path, cause } => write!(f, "mount point {}: {cause}", path.display()),
        }
    }
}

impl std::error::Error for MountError {}

/// Makes the paths absolute and checks all that can be checked before mounting. Also returns the source,
/// and its locks.
pub(crate) fn check(mut config: Config) -> Result<(Config, OwnedFd, Vec<OwnedFd>), MountError> {
    let bad_target =
        |path: &Path, cause: String| Err(MountError::Target { path: path.to_owned(), cause });
    let bad_source =
        |path: &Path, cause: String| MountError::Source { path: path.to_owned(), cause };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::open(&config.source, flags, Mode::empty())
        .map_err(|errno| bad_source(&config.source, io::Error::from(errno).to_string()))?;
    config.source = config
        .source
        .canonicalize()
        .map_err(|error| bad_source(&config.source, error.to_string()))?;
    config.target = match config.target.canonicalize() {
        Ok(target) => target,
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let cure = format!("a dead mount is there; `umount {}`", config.target.display());
            return bad_target(&config.target, cure);
        }
        Err(error) => return bad_target(&config.target, error.to_string()),
    };
    let (outer, inner) = if config.target.starts_with(&config.source) {
        (&config.source, &config.target)
    } else {
        (&config.target, &config.source)
    };
    if inner.starts_with(outer) {
        return Err(MountError::Nested { outer: outer.clone(), inner: inner.clone() });
    }
    match std::fs::read_dir(&config.target).map(|mut entries| entries.next().is_some()) {
        Ok(false) => {}
        Ok(true) => return bad_target(&config.target, "is not empty".to_owned()),
        Err(error) => return bad_target(&config.target, error.to_string()),
    }
    if is_on_fuse(&source) {
        let cause = "lies on a FUSE filesystem; the lower must be a local, journaling one";
        return Err(bad_source(&config.source, cause.to_owned()));
    }
    let locks =
        lock_tree(&config.source).map_err(|error| bad_source(&config.source, error.to_string()))?;
    Ok((config, source, locks))
}

/// Whether something lies on a FUSE filesystem, ours or another.
pub fn is_on_fuse(file: impl AsFd) -> bool {
    /// FUSE_SUPER_MAGIC of linux/magic.h.
    const FUSE: u64 = 0x6573_5546;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type.cast_unsigned() == FUSE)
}

/// Mounts, and returns the open `/dev/fuse`.
pub(crate) fn attach(config: &Config) -> Result<OwnedFd, MountError> {
    match mount_directly(config) {
        Err(MountError::Device(error) | MountError::Mount(error))
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            mount_by_fusermount(config)
        }
        result => result,
    }
}

/// By mount(2), which needs privileges.
fn mount_directly(config: &Config) -> Result<OwnedFd, MountError> {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let device = OwnedFd::from(device.map_err(MountError::Device)?);
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
        common_options(config),
    );
    let data = CString::new(data).expect("no zero in it");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    for flag in &config.flags {
        flags |= match flag {
            Flag::NoAtime => MountFlags::NOATIME,
            Flag::NoExec => MountFlags::NOEXEC,
            Flag::ReadOnly => MountFlags::RDONLY,
        };
    }
    rustix::mount::mount(&config.source, &config.target, "fuse.warpcore", flags, &*data)
        .map_err(|errno| MountError::Mount(errno.into()))?;
    Ok(device)
}

fn mount_by_fusermount(config: &Config) -> Result<OwnedFd, MountError> {
    let mut options = common_options(config);
    for flag in &config.flags {
        options.push_str(match flag {
            Flag::NoAtime => ",noatime",
            Flag::NoExec => ",noexec",
            Flag::ReadOnly => ",ro",
        });
    }
    // Commas and backslashes would end it.
    let source = config.source.to_string_lossy().replace('\\', r"\\").replace(',', r"\,");
    options.push_str(&format!(",subtype=warpcore,fsname={source}"));
    fusermount::mount(&config.target, &options).map_err(MountError::Mount)
}

fn common_options(config: &Config) -> String {
    let others = if config.allow_other { ",allow_other" } else { "" };
    format!("default_permissions{others}")
}

/// Where a mount is seen, whatever becomes of the path to it: it is taken away there, and nothing else is.
#[derive(Debug)]
pub(crate) struct MountPoint {
    /// The directory that it has its name in, open for nothing.
    parent: OwnedFd,
    name: OsString,
    /// For those who know only paths.
    path: PathBuf,
    /// Of the mount; None before it is made.
    id: Option<u64>,
}

impl MountPoint {
    /// Of a mount that is not made yet. `target`: canonical.
    pub(crate) fn new(target: &Path) -> io::Result<Self> {
        let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "the root of all");
        let name = target.file_name().ok_or_else(nameless)?.to_owned();
        let parent = target.parent().ok_or_else(nameless)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent, flags, Mode::empty())?;
        Ok(Self { parent, name, path: target.to_owned(), id: None })
    }

    /// It is made; or if it cannot be told from others it is not left there.
    pub(crate) fn is_made(&mut self) -> io::Result<()> {
        let id = mount_id_at(&self.parent, &self.name).inspect_err(|_| {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(self.place(), flags);
        });
        self.id = Some(id?);
        Ok(())
    }

    fn is_there(&self) -> bool {
        self.id.is_some() && mount_id_at(&self.parent, &self.name).ok() == self.id
    }

    fn place(&self) -> PathBuf {
        proc_path(&self.parent).join(&self.name)
    }

    /// Takes it away, if it is what is seen there.
    pub(crate) fn take_away(&self, flags: UnmountFlags) -> io::Result<()> {
        if !self.is_there() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is not seen there any more"));
        }
        match rustix::mount::unmount(self.place(), flags | UnmountFlags::NOFOLLOW) {
            Err(Errno::PERM) => {
                fusermount::unmount(&self.path, flags.contains(UnmountFlags::DETACH))
            }
            result => Ok(result?),
        }
    }

    /// Pages that were changed through a mapping, or with writeback, have not reached us yet.
    fn sync(&self) -> io::Result<()> {
        if self.is_there() {
            Ok(rustix::fs::syncfs(File::open(self.place())?)?)
        } else {
            // Detached, or covered: it is one of all.
            rustix::fs::sync();
            Ok(())
        }
    }
}

/// Takes a mount away, also from under those who still use it: they get some time to leave, and then the
/// connection is ended, so that the daemon can end too.
///
/// On a thread of its own, which is there before it is needed: the kernel may wait in umount(2) for answers
/// that only a shard gives.
pub(crate) struct Unmounting {
    go: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Unmounting {
    pub(crate) fn prepare(point: Arc<MountPoint>) -> io::Result<Self> {
        let (go, told) = mpsc::channel();
        let work = move || {
            if told.recv().is_ok() {
                unmount(&point);
            }
        };
        let thread = std::thread::Builder::new().name("unmount".to_owned()).spawn(work)?;
        Ok(Self { go, thread })
    }

    pub(crate) async fn unmount(self) {
        // It waits for this.
        let _ = self.go.send(());
        while !self.thread.is_finished() {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn unmount(point: &MountPoint) {
    const GRACE: Duration = Duration::from_secs(2);
    const AGAIN: Duration = Duration::from_millis(50);
    let path = point.path.display();
    if let Err(error) = point.sync() {
        tracing::error!("{path}: not everything could be written: {error}");
    }
    let started = Instant::now();
    let is_busy = || {
        let taken = point.take_away(UnmountFlags::empty());
        taken.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    };
    let mut busy = is_busy();
    while busy && started.elapsed() < GRACE {
        std::thread::sleep(AGAIN);
        busy = is_busy();
    }
    if busy {
        // Forcing ends the connection (`fuse_umount_begin`); it still says that it is busy.
        let _ = point.take_away(UnmountFlags::FORCE);
        if let Err(error) = point.take_away(UnmountFlags::DETACH) {
            tracing::warn!("cannot unmount {path}: {error}");
        }
    }
}

/// Which mount is seen at a path, told apart from any other that was or will be there (statx(2),
/// STATX_MNT_ID_UNIQUE; before Linux 6.8 the number may be used again once the mount is gone). The
/// mount's server is not asked.
pub fn mount_id(target: &Path) -> io::Result<u64> {
    mount_id_at(CWD, target)
}

fn mount_id_at(directory: impl AsFd, path: impl Arg) -> io::Result<u64> {
    Ok(statx_mount(directory, path)?.stx_mnt_id)
}

/// Whether this system numbers mounts so that no number is used again.
pub fn are_mount_ids_unique(target: &Path) -> bool {
    statx_mount(CWD, target).is_ok_and(|stat| stat.stx_mask & libc::STATX_MNT_ID_UNIQUE != 0)
}

fn statx_mount(directory: impl AsFd, path: impl Arg) -> io::Result<Statx> {
    let unique = StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE);
    let wanted = StatxFlags::MNT_ID | unique;
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::statx(directory, path, flags, wanted)?)
}

/// Takes away a mount whose server has died. Nothing is done if another, or none, is seen there now.
pub fn unmount_dead(target: &Path, id: u64) -> io::Result<()> {
    let mut point = MountPoint::new(target)?;
    point.id = Some(id);
    if point.is_there() { point.take_away(UnmountFlags::DETACH) } else { Ok(()) }
}

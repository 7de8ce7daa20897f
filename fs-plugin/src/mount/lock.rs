//! Locks of stored directories: of two that lie in one another, one at a time is mounted or worked on.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fgetxattr, flock};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::is_on_fuse;
use crate::fs::STATS_NAME;

/// Why something stored is not ours to work on.
#[derive(Debug)]
pub enum LockError {
    /// A mount shows it: what is stored lies elsewhere.
    Shown,
    /// Somebody else has it: itself, what it is in, or something in it.
    InUse(PathBuf),
    /// It cannot be opened, or locked.
    Io(io::Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shown => f.write_str(
                "it is in MNT, which a mount shows; give the directory it is stored in, SRC",
            ),
            Self::InUse(path) => write!(
                f,
                "{}, or something in it, is mounted, or being worked on (`findmnt -t fuse.warpcore` shows \
                 mounts)",
                path.display()
            ),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for LockError {}

/// Whether a mount of ours shows a file or directory.
pub fn is_shown(file: impl AsFd) -> bool {
    let stats = fgetxattr(&file, OsStr::from_bytes(STATS_NAME), &mut [0; 0][..]);
    is_on_fuse(file) && stats.is_ok()
}

/// Whether those who have locked `outer` for themselves alone could change nothing between it and `path`.
fn are_strangers(path: &Path, outer: &Path) -> bool {
    let way = path.ancestors().take_while(|at| *at != outer).chain([outer]);
    let way: Option<Vec<_>> = way.map(|at| at.metadata().ok()).collect();
    let Some((way, holders)) = way.zip(holders(outer)) else { return false };
    let is_stranger = |holder: &u32| {
        *holder != 0 && *holder != geteuid().as_raw() && way.iter().all(|one| one.uid() != *holder)
    };
    // Whoever is in a group may be anybody.
    way.iter().all(|one| one.mode() & 0o022 == 0)
        && !holders.is_empty()
        && holders.iter().all(is_stranger)
        && has_all_users()
}

/// Not in a user namespace, where others seem to be nobody (user_namespaces(7)).
fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whose processes have locked a file for themselves alone, by user; None: that cannot be told.
fn holders(path: &Path) -> Option<Vec<u32>> {
    let metadata = path.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let of_file = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    // `1: FLOCK  ADVISORY  WRITE 1234 08:02:5678 0 EOF` (proc_locks(5)).
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let fields = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = fields.filter(|fields| fields.get(5) == Some(&of_file.as_str()));
    own.filter(|fields| fields[1] == "FLOCK" && fields[3] == "WRITE")
        .map(|fields| Some(Path::new("/proc").join(fields[4]).metadata().ok()?.uid()))
        .collect()
}

/// Keeps a stored directory and all that is in it, or a file, from being mounted and from being worked on
/// by another of us until the descriptors are closed. By flock(2): on itself alone, and together with others
/// on those that it is in, as far as they are of its filesystem and this user may read them. Who sees it by
/// another path, as through a bind mount, has other locks above it. What somebody holds who could change
/// nothing there counts for nothing: anybody may lock `/`.
pub fn lock_tree(path: &Path) -> Result<Vec<OwnedFd>, LockError> {
    let path = path.canonicalize().map_err(LockError::Io)?;
    let kind = path.metadata().map_err(LockError::Io)?.file_type();
    if !kind.is_dir() && !kind.is_file() {
        let cause = "neither a file nor a directory";
        return Err(LockError::Io(io::Error::new(io::ErrorKind::InvalidInput, cause)));
    }
    let own = File::open(&path).map_err(LockError::Io)?;
    if is_shown(&own) {
        return Err(LockError::Shown);
    }
    let device = own.metadata().map_err(LockError::Io)?.dev();
    let lock = |file: File, path: &Path, kind| match flock(&file, kind) {
        Ok(()) => Ok(OwnedFd::from(file)),
        Err(Errno::WOULDBLOCK) => Err(LockError::InUse(path.to_owned())),
        Err(errno) => Err(LockError::Io(errno.into())),
    };
    let mut locks = vec![lock(own, &path, FlockOperation::NonBlockingLockExclusive)?];
    for outer in path.ancestors().skip(1) {
        match File::open(outer) {
            Ok(file) if file.metadata().map_err(LockError::Io)?.dev() != device => break,
            Ok(file) => match lock(file, outer, FlockOperation::NonBlockingLockShared) {
                Err(LockError::InUse(_)) if are_strangers(&path, outer) => {}
                locked => locks.push(locked?),
            },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(LockError::Io(error)),
        }
    }
    Ok(locks)
}

//! Locks of stored directories: of two that lie in one another, one at a time is mounted or worked on.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, fstatfs};
use rustix::io::Errno;

/// FUSE_SUPER_MAGIC of linux/magic.h.
const FUSE: u64 = 0x6573_5546;

/// Why a directory is not ours.
#[derive(Debug)]
pub enum LockError {
    /// It lies on a FUSE filesystem: what is there is shown, not stored.
    Fuse,
    /// Somebody else has it: itself, what it is in, or something in it.
    InUse(PathBuf),
    /// It cannot be opened, or locked.
    Io(io::Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fuse => {
                f.write_str("lies on a FUSE filesystem, which shows what is stored elsewhere")
            }
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

/// Whether something lies on a FUSE filesystem: it is shown by a mount, ours or another, and not stored.
pub fn is_on_fuse(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|stat| stat.f_type.cast_unsigned() == FUSE)
}

/// Keeps a stored directory, and all that is in it, from being mounted and from being worked on by
/// another of us until the descriptors are closed. By flock(2), on itself alone, and together with others on
/// those that it is in; which of these are not to be read by this user are left out.
pub fn lock_tree(directory: &Path) -> Result<Vec<OwnedFd>, LockError> {
    let directory = directory.canonicalize().map_err(LockError::Io)?;
    let own = File::open(&directory).map_err(LockError::Io)?;
    if is_on_fuse(&own) {
        return Err(LockError::Fuse);
    }
    let lock = |file: File, path: &Path, kind| match flock(&file, kind) {
        Ok(()) => Ok(OwnedFd::from(file)),
        Err(Errno::WOULDBLOCK) => Err(LockError::InUse(path.to_owned())),
        Err(errno) => Err(LockError::Io(errno.into())),
    };
    let mut locks = vec![lock(own, &directory, FlockOperation::NonBlockingLockExclusive)?];
    for outer in directory.ancestors().skip(1) {
        match File::open(outer) {
            Ok(file) => locks.push(lock(file, outer, FlockOperation::NonBlockingLockShared)?),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(LockError::Io(error)),
        }
    }
    Ok(locks)
}

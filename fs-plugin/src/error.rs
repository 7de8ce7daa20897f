//! Why contents cannot be read or written, and as which errno that reaches the caller.

use std::{fmt, io};

/// An operation on a stored file failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Stored bytes are not what was written: only these are lost.
    Damaged {
        /// What did not verify.
        what: &'static str,
        /// Where in the backing file, in bytes.
        offset: u64,
    },
    /// The lower filesystem failed.
    Io(io::Error),
    /// Written in another version of the format.
    Version {
        /// Its version.
        version: u8,
    },
    /// An earlier sync failed; what was not durable by then may be lost (reported until closed).
    Poisoned,
    /// A power cut has taken bytes that were not synced, which is found as the file is changed: its length is
    /// not what it was taken for (reported until closed).
    Cut,
}

impl Error {
    /// The errno for the caller.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Damaged { .. } | Self::Poisoned | Self::Cut => libc::EIO,
            Self::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
            Self::Version { .. } => libc::EOPNOTSUPP,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { what, offset } => {
                write!(f, "damaged {what} at byte {offset} of the backing file")
            }
            Self::Io(error) => error.fmt(f),
            Self::Version { version } => write!(
                f,
                "stored in format version {version}; this build reads version {}",
                crate::store::format::VERSION
            ),
            Self::Poisoned => f.write_str("an earlier sync failed; close the file and check it"),
            Self::Cut => f.write_str(
                "a power cut has taken what was not synced; it is shorter once it is opened again",
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

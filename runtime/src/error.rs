//! Why a runtime could not start, with the likely cause and the cure.

use std::{fmt, io};

/// A shard could not be set up, or its main future panicked.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The main future of a shard panicked; the panic was reported where it happened.
    Panicked {
        /// Which shard.
        shard: usize,
    },
    /// The kernel refused an io_uring.
    Ring(io::Error),
    /// The kernel has io_uring, but lacks something that we cannot do without.
    RingFeature {
        /// What is missing.
        feature: &'static str,
        /// The first kernel that has it.
        kernel: &'static str,
    },
    /// Another system call of the start failed.
    Setup {
        /// What was being set up.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { shard } => write!(f, "the main task of shard {shard} panicked"),
            Self::Ring(source) => {
                write!(f, "cannot set up io_uring: {source}")?;
                f.write_str(match source.raw_os_error() {
                    Some(libc::ENOMEM) => {
                        "; locked memory is used up: raise `ulimit -l` (LimitMEMLOCK= in a unit)"
                    }
                    Some(libc::ENOSYS) => {
                        "; the kernel is older than 5.1, built without it, or a seccomp filter \
                         hides it (in a container: --security-opt seccomp=unconfined)"
                    }
                    Some(libc::EPERM) => {
                        "; it is switched off: `sysctl kernel.io_uring_disabled=0`, or a seccomp \
                         filter forbids it (in a container: --security-opt seccomp=unconfined)"
                    }
                    Some(libc::EMFILE | libc::ENFILE) => "; raise `ulimit -n`",
                    _ => "",
                })
            }
            Self::RingFeature { feature, kernel } => {
                write!(f, "this kernel's io_uring lacks {feature}; Linux {kernel} has it")
            }
            Self::Setup { what, source } => write!(f, "cannot set up {what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Ring(source) | Self::Setup { source, .. } => Some(source),
            Self::Panicked { .. } | Self::RingFeature { .. } => None,
        }
    }
}

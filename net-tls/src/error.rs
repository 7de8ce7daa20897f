//! Why a proxy could not start, with the file or address that is to blame.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::{fmt, io};

use warpcore_offload::KeyError;

/// The proxy cannot be started as configured.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The certificate file has no usable chain.
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The private key cannot be used.
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: KeyError,
    },
    /// The address cannot be listened on.
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// Certificate and key are each fine, and not of each other.
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { path, cause } => {
                write!(f, "certificate {}: {cause}", path.display())
            }
            Self::Key { path, cause } => write!(f, "key {}: {cause}", path.display()),
            Self::Listen { address, source } => {
                write!(f, "cannot listen on {address}: {source}")?;
                match source.kind() {
                    io::ErrorKind::AddrInUse => {
                        write!(f, "; see who does with `ss -ltnp 'sport = :{}'`", address.port())
                    }
                    io::ErrorKind::PermissionDenied => f.write_str(
                        "; ports below 1024 need root or CAP_NET_BIND_SERVICE \
                         (AmbientCapabilities= in a unit)",
                    ),
                    io::ErrorKind::AddrNotAvailable => {
                        f.write_str("; no interface of this machine has that address")
                    }
                    _ => Ok(()),
                }
            }
            Self::Mismatch { certificate, key } => write!(
                f,
                "certificate {} is not for key {}: their public keys differ",
                certificate.display(),
                key.display()
            ),
            Self::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen { source, .. } | Self::Read { source, .. } => Some(source),
            Self::Key { cause, .. } => Some(cause),
            Self::Certificate { .. } | Self::Mismatch { .. } => None,
        }
    }
}

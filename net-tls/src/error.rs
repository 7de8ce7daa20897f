//! Why a proxy could not start, with the file, key or address that is to blame.

use std::path::PathBuf;
use std::{fmt, io};

use warpcore_offload::KeyError;
use warpcore_runtime::net::Address;

/// The proxy cannot be started, or reloaded, as configured.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Of one place of the configuration.
    At {
        /// Which.
        key: Key,
        /// What is wrong there.
        source: Box<Self>,
    },
    /// A file has no usable certificates.
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The configuration contradicts itself.
    Config {
        /// What is wrong, and the cure.
        cause: String,
    },
    /// No descriptor is left.
    Descriptor(io::Error),
    /// A line of the configuration's file is wrong.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1 on.
        line: usize,
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
        address: Address,
        /// The system's word.
        source: io::Error,
    },
    /// Certificates and key are each fine, and the key is of none of them.
    Mismatch {
        /// The certificates' file.
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

impl Error {
    /// Says where in the configuration.
    pub(crate) fn at(self, key: &str) -> Self {
        match self {
            Self::At { key: inner, source } => Self::At { key: inner.below(key), source },
            error => Self::At { key: Key::from(key), source: Box::new(error) },
        }
    }

    /// As [`Error::at`], of a name that may have any letters.
    pub(crate) fn at_name(self, name: &str) -> Self {
        match self {
            Self::At { mut key, source } => {
                key.0.insert(0, name.to_owned());
                Self::At { key, source }
            }
            error => Self::At { key: Key(vec![name.to_owned()]), source: Box::new(error) },
        }
    }

    pub(crate) fn config(cause: impl Into<String>) -> Self {
        Self::Config { cause: cause.into() }
    }
}

/// A place in a configuration, as in `listener.0.site.1.pool`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(Vec<String>);

impl Key {
    pub(crate) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    fn below(mut self, outer: &str) -> Self {
        self.0.splice(0..0, outer.split('.').map(str::to_owned));
        self
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.split('.').map(str::to_owned).collect())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { key, source } => write!(f, "{key}: {source}"),
            Self::Certificate { path, cause } => {
                write!(f, "certificate {}: {cause}", path.display())
            }
            Self::Config { cause } => f.write_str(cause),
            Self::Descriptor(source) => {
                write!(
                    f,
                    "no descriptor is left ({source}); see `ulimit -n`, LimitNOFILE= of a unit"
                )
            }
            Self::File { path, line, cause } => write!(f, "{}:{line}: {cause}", path.display()),
            Self::Key { path, cause } => write!(f, "key {}: {cause}", path.display()),
            Self::Listen { address, source } => {
                write!(f, "cannot listen on {address}: {source}")?;
                match (address, source.kind()) {
                    (Address::Tcp(address), io::ErrorKind::AddrInUse) => {
                        write!(f, "; see who does with `ss -ltnp 'sport = :{}'`", address.port())
                    }
                    (Address::Tcp(_), io::ErrorKind::PermissionDenied) => f.write_str(
                        "; ports below 1024 need root or CAP_NET_BIND_SERVICE \
                         (AmbientCapabilities= in a unit)",
                    ),
                    (_, io::ErrorKind::AddrNotAvailable) => {
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
            Self::At { source, .. } => Some(source),
            Self::Descriptor(source) | Self::Listen { source, .. } | Self::Read { source, .. } => {
                Some(source)
            }
            Self::Key { cause, .. } => Some(cause),
            Self::Certificate { .. }
            | Self::Config { .. }
            | Self::File { .. }
            | Self::Mismatch { .. } => None,
        }
    }
}

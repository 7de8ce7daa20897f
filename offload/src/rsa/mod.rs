//! RSA signatures.

mod blinding;
pub(crate) mod digits;
mod encode;
#[cfg(target_arch = "x86_64")]
mod fma;
mod ifma;
mod key;
mod lane_key;
pub(crate) mod lanes;
mod montgomery;
mod private;
mod signer;

use std::fmt;

use ring::signature::{self, RsaEncoding};

#[cfg(feature = "kernels")]
pub(crate) use blinding::Blinding;
pub(crate) use encode::{Salts, encode};
pub(crate) use key::{Numbers, read_pem};
pub use key::{PrivateKey, PublicKey};
#[cfg(feature = "kernels")]
pub(crate) use private::{Batch, Input, batch};
pub(crate) use signer::{Encoded, Running, Signer};

/// The longest signature: RSA-4096.
pub(crate) const SIGNATURE_LEN_BYTES_MAX: usize = 4096 / 8;

/// Padding and hash of a signature (RFC 8017).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are those of RFC 8446, section 4.2.3")]
pub enum Scheme {
    Pkcs1Sha256,
    Pkcs1Sha384,
    Pkcs1Sha512,
    PssSha256,
    PssSha384,
    PssSha512,
}

impl Scheme {
    /// Every scheme.
    pub const ALL: [Self; 6] = [
        Self::Pkcs1Sha256,
        Self::Pkcs1Sha384,
        Self::Pkcs1Sha512,
        Self::PssSha256,
        Self::PssSha384,
        Self::PssSha512,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pkcs1Sha256 => "pkcs1-sha256",
            Self::Pkcs1Sha384 => "pkcs1-sha384",
            Self::Pkcs1Sha512 => "pkcs1-sha512",
            Self::PssSha256 => "pss-sha256",
            Self::PssSha384 => "pss-sha384",
            Self::PssSha512 => "pss-sha512",
        }
    }

    fn encoding(self) -> &'static dyn RsaEncoding {
        match self {
            Self::Pkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
            Self::Pkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
            Self::Pkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
            Self::PssSha256 => &signature::RSA_PSS_SHA256,
            Self::PssSha384 => &signature::RSA_PSS_SHA384,
            Self::PssSha512 => &signature::RSA_PSS_SHA512,
        }
    }
}

/// A signature, held in place: no allocation for it.
#[derive(Clone)]
pub struct Signature {
    bytes: [u8; SIGNATURE_LEN_BYTES_MAX],
    /// Length of the key's modulus; at most the length of `bytes`.
    len_bytes: usize,
}

impl Signature {
    pub(crate) fn empty() -> Self {
        Self { bytes: [0; SIGNATURE_LEN_BYTES_MAX], len_bytes: 0 }
    }

    /// The room for a signature of `len_bytes`, which becomes its length.
    pub(crate) fn room(&mut self, len_bytes: usize) -> &mut [u8] {
        self.len_bytes = len_bytes;
        &mut self.bytes[..len_bytes]
    }

    /// The first `len_bytes` of it.
    pub(crate) fn cut(mut self, len_bytes: usize) -> Self {
        self.len_bytes = self.len_bytes.min(len_bytes);
        self
    }
}

impl AsRef<[u8]> for Signature {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len_bytes]
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({} bytes)", self.len_bytes)
    }
}

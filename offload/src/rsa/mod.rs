//! RSA signatures.

mod encode;
mod key;

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{self, RsaEncoding};

use crate::error::Error;
pub(crate) use encode::{Salts, encode};
pub(crate) use key::Numbers;
pub use key::{PrivateKey, PublicKey};

/// The longest signature: RSA-4096.
const SIGNATURE_LEN_BYTES_MAX: usize = 4096 / 8;

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

/// Makes signatures, one at a time, by `ring`: constant time, and each is verified with the public
/// key before it is handed out (ring's `rsa/keypair.rs`).
pub(crate) struct Signer {
    random: SystemRandom,
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self { random: SystemRandom::new() }
    }

    /// Writes a signature as long as the key's modulus to `target`, which has just that length.
    pub(crate) fn sign(
        &self,
        key: &PrivateKey,
        scheme: Scheme,
        message: &[u8],
        target: &mut [u8],
    ) -> Result<usize, Error> {
        let pair = key.pair().ok_or(Error::NoDevice)?;
        let made = pair.sign(scheme.encoding(), &self.random, message, target);
        made.map(|()| target.len()).map_err(|_| Error::Sign)
    }
}

//! The crate's vocabulary of errors. Each variant says who did what.

use std::fmt;

use crate::codec::Codec;

/// Why a request did not do what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The stored bytes are not what `codec` writes: storage or peer corrupted them.
    Corrupt {
        /// The codec that refused them.
        codec: Codec,
        /// The codec's own words.
        cause: &'static str,
    },
    /// The queue was dropped before the request ran.
    Closed,
    /// The device that worked on this failed, and software could not do it instead: it does not
    /// have the operation, a stream's state is gone, or the device may still write to the target, and
    /// there is no [other](crate::Target::another). In that last case the target is kept from everybody
    /// for good, and what came back in its place is empty.
    DeviceLost,
    /// This process was forked from the one that made the queue; only that one can use it.
    Forked,
    /// The key is too short for the padding that the caller asked for.
    KeyTooShort {
        /// Length of its modulus in bits.
        modulus_bits: usize,
    },
    /// The length of what the caller gave is not that of the key's modulus, or its value is
    /// not below the modulus.
    NotInRange,
    /// The caller asked for a compression level that `codec` does not have.
    Level {
        /// The codec asked.
        codec: Codec,
        /// The level asked for.
        level: i32,
    },
    /// The caller asked for what only a device can do, and none is selected that does it.
    NoDevice,
    /// The codec has no streams.
    NoStream {
        /// The codec asked.
        codec: Codec,
    },
    /// The peer's public key is one of the few that make every shared secret the same.
    PeerKey,
    /// The kernel gave no random numbers.
    Random,
    /// The caller's own kernel panicked while it worked on this.
    Panicked,
    /// The private key could not sign. The signature, if any, was not released.
    Sign,
    /// The caller's target cannot hold the result.
    TargetTooSmall {
        /// Length of the target that was given, in bytes.
        len_bytes: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { codec, cause } => write!(f, "stored {codec} data is damaged: {cause}"),
            Self::Closed => f.write_str("the queue was closed before the request ran"),
            Self::DeviceLost => {
                f.write_str("the accelerator failed and took the operation with it")
            }
            Self::Forked => {
                f.write_str("the queue belongs to the process that this was forked from")
            }
            Self::KeyTooShort { modulus_bits } => {
                write!(
                    f,
                    "an RSA key of {modulus_bits} bits is too short for this signature scheme"
                )
            }
            Self::NotInRange => {
                f.write_str("the input of an RSA operation is not a number below the modulus")
            }
            Self::NoDevice => f.write_str(
                "software cannot do this, and no accelerator that can is selected \
                 (`warpcore devices` lists them)",
            ),
            Self::NoStream { codec } => write!(f, "{codec} cannot be used piece by piece"),
            Self::Level { codec, level } => write!(f, "{codec} has no compression level {level}"),
            Self::PeerKey => f.write_str("the peer's public key is of small order"),
            Self::Panicked => f.write_str("the kernel that worked on it panicked"),
            Self::Random => f.write_str("the kernel gave no random numbers"),
            Self::Sign => f.write_str("the private key could not make a correct signature"),
            Self::TargetTooSmall { len_bytes } => {
                write!(f, "the result does not fit the target of {len_bytes} bytes")
            }
        }
    }
}

impl std::error::Error for Error {}

/// What is wrong with a private key that was handed to us.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// PKCS#8 under a passphrase.
    Encrypted,
    /// Not DER, or DER of something else.
    Encoding(&'static str),
    /// A well-formed key whose numbers do not belong together.
    Inconsistent(&'static str),
    /// Text without a private key in it.
    NoKey,
    /// A private key that is not of the curve P-256.
    NotP256(&'static str),
    /// A private key of another algorithm.
    NotRsa(&'static str),
    /// An RSA key of a size that we do not sign with.
    Size {
        /// Length of the modulus in bits.
        modulus_bits: usize,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encrypted => f.write_str(
                "the key is encrypted with a passphrase; \
                 decrypt it first, e.g. `openssl pkey -in key.pem -out plain.pem`",
            ),
            Self::Encoding(what) => write!(f, "the key cannot be read: {what}"),
            Self::Inconsistent(what) => write!(f, "the key's numbers do not fit together: {what}"),
            Self::NoKey => f.write_str(
                "no private key found (looked for PEM sections PRIVATE KEY, RSA PRIVATE KEY and EC PRIVATE KEY)",
            ),
            Self::NotP256(what) => write!(f, "the key is for {what}, not P-256"),
            Self::NotRsa(algorithm) => write!(f, "the key is for {algorithm}, not RSA"),
            Self::Size { modulus_bits } => {
                write!(
                    f,
                    "the RSA modulus has {modulus_bits} bits; \
                     1024, 2048, 3072 and 4096 are supported"
                )
            }
        }
    }
}

impl std::error::Error for KeyError {}

//! Private-key work, from inside rustls to the offload queue.
//!
//! rustls signs synchronously: `Signer::sign` must return a signature. On a coroutine
//! ([`crate::handshake`]) it suspends with the request and returns what it is resumed with;
//! elsewhere the library signs on the spot.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use warpcore_offload::{EcdsaKey, Error, Kernel, PrivateKey, Scheme, Signature, together};

use crate::handshake::{Answer, Asked, suspend};

/// A signature that a suspended handshake asks for.
#[derive(Debug, Clone)]
pub(crate) enum SignRequest {
    Ecdsa { key: Arc<EcdsaKey>, message: Vec<u8> },
    Rsa { key: Arc<PrivateKey>, scheme: Scheme, message: Vec<u8> },
}

/// A key that the queue signs with.
#[derive(Debug, Clone)]
pub(crate) enum QueueKey {
    Ecdsa(Arc<EcdsaKey>),
    Rsa(Arc<PrivateKey>),
}

impl QueueKey {
    /// Whether the queue signs by this scheme.
    fn takes(&self, scheme: SignatureScheme) -> bool {
        match self {
            // Without lanes the queue does what the library does, only later.
            Self::Ecdsa(_) => {
                scheme == SignatureScheme::ECDSA_NISTP256_SHA256
                    && together(Kernel::Ecdsa).is_some()
            }
            Self::Rsa(_) => rsa_scheme(scheme).is_some(),
        }
    }

    /// The signature to ask for, by a scheme that the queue takes.
    fn request(&self, scheme: SignatureScheme, message: &[u8]) -> SignRequest {
        let message = message.to_vec();
        match self {
            Self::Ecdsa(key) => SignRequest::Ecdsa { key: Arc::clone(key), message },
            Self::Rsa(key) => {
                let scheme = rsa_scheme(scheme).expect("`choose_scheme` has asked `takes`");
                SignRequest::Rsa { key: Arc::clone(key), scheme, message }
            }
        }
    }
}

fn rsa_scheme(scheme: SignatureScheme) -> Option<Scheme> {
    Some(match scheme {
        SignatureScheme::RSA_PSS_SHA512 => Scheme::PssSha512,
        SignatureScheme::RSA_PSS_SHA384 => Scheme::PssSha384,
        SignatureScheme::RSA_PSS_SHA256 => Scheme::PssSha256,
        SignatureScheme::RSA_PKCS1_SHA512 => Scheme::Pkcs1Sha512,
        SignatureScheme::RSA_PKCS1_SHA384 => Scheme::Pkcs1Sha384,
        SignatureScheme::RSA_PKCS1_SHA256 => Scheme::Pkcs1Sha256,
        _ => return None,
    })
}

/// A key as rustls sees it.
pub(crate) struct OffloadedKey {
    queue: QueueKey,
    /// The same, of the library.
    in_place: Arc<dyn SigningKey>,
}

impl OffloadedKey {
    pub(crate) fn new(queue: QueueKey, in_place: Arc<dyn SigningKey>) -> Self {
        Self { queue, in_place }
    }
}

impl SigningKey for OffloadedKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let in_place = self.in_place.choose_scheme(offered)?;
        if !self.queue.takes(in_place.scheme()) {
            return Some(in_place);
        }
        Some(Box::new(OffloadedSigner { queue: self.queue.clone(), in_place }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.in_place.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.in_place.algorithm()
    }
}

impl fmt::Debug for OffloadedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue.fmt(f)
    }
}

#[derive(Debug)]
struct OffloadedSigner {
    queue: QueueKey,
    in_place: Box<dyn Signer>,
}

impl Signer for OffloadedSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let request = || Asked::Sign(self.queue.request(self.scheme(), message));
        let result: Result<Signature, Error> = match suspend(request) {
            None => return self.in_place.sign(message),
            Some(Answer::Signed(result)) => result,
            Some(_) => Err(Error::Closed),
        };
        match result {
            Ok(signature) => Ok(signature.as_ref().to_vec()),
            Err(error) => Err(rustls::Error::General(error.to_string())),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.in_place.scheme()
    }
}

//! Private-key work, from inside rustls to the offload queue.
//!
//! rustls signs synchronously: `Signer::sign` must return a signature. On a coroutine
//! ([`crate::handshake`]) it suspends with the request and returns what it is resumed with;
//! elsewhere it signs on the spot.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey, public_key_to_spki};
use rustls::{SignatureAlgorithm, SignatureScheme};
use warpcore_offload::{EcdsaKey, Error, PrivateKey, Scheme, Signature};

use crate::handshake::{Answer, Asked, suspend};

/// A signature that a suspended handshake asks for.
#[derive(Debug, Clone)]
pub(crate) enum SignRequest {
    Ecdsa { key: Arc<EcdsaKey>, message: Vec<u8> },
    Rsa { key: Arc<PrivateKey>, scheme: Scheme, message: Vec<u8> },
}

/// An RSA key as rustls sees it.
pub(crate) struct OffloadedKey {
    key: Arc<PrivateKey>,
}

impl OffloadedKey {
    pub(crate) fn new(key: PrivateKey) -> Self {
        Self { key: Arc::new(key) }
    }
}

/// Both names of each scheme, the ones we prefer first, as rustls's own RSA keys do.
const SCHEMES: [(SignatureScheme, Scheme); 6] = [
    (SignatureScheme::RSA_PSS_SHA512, Scheme::PssSha512),
    (SignatureScheme::RSA_PSS_SHA384, Scheme::PssSha384),
    (SignatureScheme::RSA_PSS_SHA256, Scheme::PssSha256),
    (SignatureScheme::RSA_PKCS1_SHA512, Scheme::Pkcs1Sha512),
    (SignatureScheme::RSA_PKCS1_SHA384, Scheme::Pkcs1Sha384),
    (SignatureScheme::RSA_PKCS1_SHA256, Scheme::Pkcs1Sha256),
];

impl SigningKey for OffloadedKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let (name, scheme) = SCHEMES.into_iter().find(|(name, _)| offered.contains(name))?;
        Some(Box::new(OffloadedSigner { key: Arc::clone(&self.key), name, scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let algorithm = rustls::pki_types::alg_id::RSA_ENCRYPTION;
        Some(public_key_to_spki(&algorithm, self.key.public().der()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

impl fmt::Debug for OffloadedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

#[derive(Debug)]
struct OffloadedSigner {
    key: Arc<PrivateKey>,
    name: SignatureScheme,
    scheme: Scheme,
}

impl Signer for OffloadedSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let (key, scheme) = (&self.key, self.scheme);
        let request =
            || SignRequest::Rsa { key: Arc::clone(key), scheme, message: message.to_vec() };
        let result = ask(request).unwrap_or_else(|| key.sign(scheme, message));
        to_rustls(result)
    }

    fn scheme(&self) -> SignatureScheme {
        self.name
    }
}

/// A key of P-256 as rustls sees it.
pub(crate) struct OffloadedEcdsaKey {
    key: Arc<EcdsaKey>,
    /// The same, of ring.
    in_place: Arc<dyn SigningKey>,
}

impl OffloadedEcdsaKey {
    pub(crate) fn new(key: EcdsaKey, in_place: Arc<dyn SigningKey>) -> Self {
        Self { key: Arc::new(key), in_place }
    }
}

impl SigningKey for OffloadedEcdsaKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let in_place = self.in_place.choose_scheme(offered)?;
        Some(Box::new(OffloadedEcdsaSigner { key: Arc::clone(&self.key), in_place }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.in_place.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl fmt::Debug for OffloadedEcdsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

#[derive(Debug)]
struct OffloadedEcdsaSigner {
    key: Arc<EcdsaKey>,
    in_place: Box<dyn Signer>,
}

impl Signer for OffloadedEcdsaSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let key = &self.key;
        let request = || SignRequest::Ecdsa { key: Arc::clone(key), message: message.to_vec() };
        match ask(request) {
            None => self.in_place.sign(message),
            Some(result) => to_rustls(result),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.in_place.scheme()
    }
}

/// Suspends until the signature is there. None where nothing can be suspended.
fn ask(request: impl FnOnce() -> SignRequest) -> Option<Result<Signature, Error>> {
    Some(match suspend(|| Asked::Sign(request()))? {
        Answer::Signed(result) => result,
        _ => Err(Error::Closed),
    })
}

fn to_rustls(result: Result<Signature, Error>) -> Result<Vec<u8>, rustls::Error> {
    match result {
        Ok(signature) => Ok(signature.as_ref().to_vec()),
        Err(error) => Err(rustls::Error::General(error.to_string())),
    }
}

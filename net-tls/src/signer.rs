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
use warpcore_offload::{PrivateKey, Scheme};

use crate::handshake::{Answer, Asked, suspend};

/// What a suspended handshake asks for.
#[derive(Debug, Clone)]
pub(crate) struct SignRequest {
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) scheme: Scheme,
    pub(crate) message: Vec<u8>,
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
        let request = || SignRequest { key: Arc::clone(key), scheme, message: message.to_vec() };
        let result = match suspend(|| Asked::Sign(request())) {
            None => key.sign(scheme, message),
            Some(Answer::Signed(result)) => result,
            Some(_) => Err(warpcore_offload::Error::Closed),
        };
        match result {
            Ok(signature) => Ok(signature.as_ref().to_vec()),
            Err(error) => Err(rustls::Error::General(error.to_string())),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.name
    }
}

//! Private keys: read, checked, never printed.

use std::fmt;

use ring::rsa::KeyPair;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroize;

use super::{Scheme, Signature, Signer};
use crate::error::{Error, KeyError};

/// An RSA private key of 2048, 3072 or 4096 bits, checked when it was read.
pub struct PrivateKey {
    pair: KeyPair,
}

impl PrivateKey {
    /// The first private key in PEM text; other sections are passed over. The copy made for reading
    /// is wiped; the text is the caller's to wipe.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let contains = |text: &[u8]| pem.windows(text.len()).any(|window| window == text);
        if contains(b"BEGIN ENCRYPTED PRIVATE KEY") || contains(b"Proc-Type: 4,ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        match PrivateKeyDer::from_pem_slice(pem) {
            Ok(mut der) => {
                let key = Self::from_der(&der);
                der.zeroize();
                key
            }
            Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(KeyError::NoKey),
            Err(_) => Err(KeyError::Encoding("the PEM text is broken or cut short")),
        }
    }

    /// A key in DER: PKCS#1 or PKCS#8, as `der` says.
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        let pair = match der {
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                if let Some(other) = other_algorithm(der) {
                    return Err(KeyError::NotRsa(other));
                }
                KeyPair::from_pkcs8(der)
            }
            PrivateKeyDer::Sec1(_) => return Err(KeyError::NotRsa("elliptic curves")),
            _ => return Err(KeyError::Encoding("neither PKCS#1 nor PKCS#8")),
        };
        let pair = pair.map_err(|rejected| explain(&rejected.to_string()))?;
        match pair.public().modulus_len() * 8 {
            2048 | 3072 | 4096 => Ok(Self { pair }),
            modulus_bits => Err(KeyError::Size { modulus_bits: Some(modulus_bits) }),
        }
    }

    /// Length of the modulus and so of a signature, in bytes.
    pub fn modulus_len_bytes(&self) -> usize {
        self.pair.public().modulus_len()
    }

    /// The public key, DER of `RSAPublicKey` (RFC 8017, appendix A.1.1).
    pub fn public_key_der(&self) -> &[u8] {
        self.pair.public().as_ref()
    }

    /// Signs `message` here and now, without a queue: for whoever has nothing else to do meanwhile.
    pub fn sign(&self, scheme: Scheme, message: &[u8]) -> Result<Signature, Error> {
        let mut signature = Signature::empty();
        let target = signature.room(self.modulus_len_bytes());
        Signer::new().sign(self, scheme, message, target)?;
        Ok(signature)
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.pair
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(RSA-{})", self.modulus_len_bytes() * 8)
    }
}

/// The algorithm of a PKCS#8 key that is not RSA, by its object identifier.
fn other_algorithm(pkcs8: &[u8]) -> Option<&'static str> {
    // DER of the identifiers: id-ecPublicKey 1.2.840.10045.2.1 (RFC 5480), id-Ed25519 1.3.101.112
    // and id-Ed448 1.3.101.113 (RFC 8410), id-dsa 1.2.840.10040.4.1 (RFC 3279).
    const KNOWN: [(&[u8], &str); 4] = [
        (b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01", "elliptic curves"),
        (b"\x06\x03\x2b\x65\x70", "Ed25519"),
        (b"\x06\x03\x2b\x65\x71", "Ed448"),
        (b"\x06\x07\x2a\x86\x48\xce\x38\x04\x01", "DSA"),
    ];
    // PrivateKeyInfo (RFC 5208): SEQUENCE, version INTEGER 0, then the identifier; it lies within
    // the first bytes whatever the form of the lengths.
    let head = pkcs8.get(..32)?;
    let known = KNOWN.iter().find(|(oid, _)| head.windows(oid.len()).any(|part| part == *oid))?;
    Some(known.1)
}

/// ring's one-word reasons (`ring/src/error/key_rejected.rs`) in sentences.
fn explain(rejected: &str) -> KeyError {
    match rejected {
        "InconsistentComponents" => {
            KeyError::Inconsistent("p, q, d and the modulus are not of one key")
        }
        "InvalidComponent" => KeyError::Inconsistent("a component is out of range"),
        "PrivateModulusLenNotMultipleOf512Bits" | "TooLarge" | "TooSmall" => {
            KeyError::Size { modulus_bits: None }
        }
        "VersionNotSupported" => KeyError::Encoding("multi-prime or unknown version"),
        "WrongAlgorithm" => KeyError::NotRsa("an algorithm unknown here"),
        _ => KeyError::Encoding("damaged, or not a private key in DER"),
    }
}

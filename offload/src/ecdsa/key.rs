//! Keys of P-256: read, checked, and never printed.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use rustls_pki_types::PrivateKeyDer;
use sec1::EcPrivateKey;
use zeroize::Zeroizing;

use super::EcdsaSigner;
use super::field::{Constant, Order, Prime};
use super::nonce::number;
use crate::error::{Error, KeyError};
use crate::rsa::digits::{self, Radix52};
use crate::rsa::read_pem;
use crate::wipe::{Wiped, burn_stack};

/// An ECDSA key of the curve P-256, checked when it was read. Wiped when it is dropped.
pub struct EcdsaKey {
    pair: Wiped<EcdsaKeyPair>,
    pub(super) secret: Zeroizing<[u8; 32]>,
    /// The secret times R, modulo the order.
    pub(super) digits: Zeroizing<Constant>,
}

impl EcdsaKey {
    /// The first private key in PEM text; other sections are passed over. The copy made for reading
    /// is wiped; the text is the caller's to wipe.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        read_pem(pem, Self::from_der)
    }

    /// A key in DER: SEC 1 or PKCS#8, as `der` says.
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        match der {
            PrivateKeyDer::Sec1(der) => Self::from_sec1(der.secret_sec1_der(), false),
            PrivateKeyDer::Pkcs8(der) => {
                let info = pkcs8::PrivateKeyInfoRef::try_from(der.secret_pkcs8_der())
                    .map_err(|_| KeyError::Encoding("damaged, or not PKCS#8 in DER"))?;
                if info.algorithm.oid != EC_PUBLIC_KEY {
                    return Err(KeyError::NotP256("another algorithm"));
                }
                let curve = info.algorithm.parameters_oid();
                if curve != Ok(P256) {
                    return Err(KeyError::NotP256("another curve"));
                }
                Self::from_sec1(info.private_key.as_bytes(), true)
            }
            PrivateKeyDer::Pkcs1(_) => Err(KeyError::NotP256("RSA")),
            _ => Err(KeyError::Encoding("neither SEC 1 nor PKCS#8")),
        }
    }

    /// `known`: that the curve is P-256 was said elsewhere.
    fn from_sec1(der: &[u8], known: bool) -> Result<Self, KeyError> {
        let key = EcPrivateKey::try_from(der)
            .map_err(|_| KeyError::Encoding("damaged, or not a private key in DER"))?;
        match key.parameters.and_then(sec1::EcParameters::named_curve) {
            Some(curve) if curve != P256 => return Err(KeyError::NotP256("another curve")),
            None if !known => return Err(KeyError::Encoding("it does not say of which curve")),
            _ => {}
        }
        let secret: [u8; 32] = key
            .private_key
            .try_into()
            .map_err(|_| KeyError::Inconsistent("a secret of P-256 has 32 bytes"))?;
        let secret = Zeroizing::new(secret);
        let public = key.public_key.ok_or(KeyError::Encoding(
            "the public key is missing; add it, e.g. `openssl pkey -in key.pem -out whole.pem`",
        ))?;
        // It checks that the secret is in range and that the public key is its.
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &secret[..],
            public,
            &SystemRandom::new(),
        )
        .map_err(|_| KeyError::Inconsistent("the public key is not that of the secret"))?;
        let shifted =
            digits::shift::<Radix52>(&*Zeroizing::new(number(&secret)), 260, &Order::DIGITS);
        let mut digits = Zeroizing::new([0; 5]);
        digits.copy_from_slice(&shifted);
        let key = Self { pair: Wiped::new(pair), secret, digits };
        // What was moved there.
        burn_stack();
        key.try_out()
            .map_err(|_| KeyError::Inconsistent("its public key does not verify its signature"))?;
        Ok(key)
    }

    /// Makes a signature as it will be made later, and verifies it.
    fn try_out(&self) -> Result<(), Error> {
        let signed = EcdsaSigner::new().try_out(self)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.public())
            .verify(&[], signed.as_ref())
            .map_err(|_| Error::Sign)
    }

    /// The public key: a point, not compressed (SEC 1, section 2.3.3).
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub(crate) fn pair(&self) -> &EcdsaKeyPair {
        &self.pair
    }
}

impl fmt::Debug for EcdsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EcdsaKey(P-256)")
    }
}

/// id-ecPublicKey and secp256r1 (RFC 5480, section 2.1.1).
const EC_PUBLIC_KEY: pkcs8::ObjectIdentifier =
    pkcs8::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

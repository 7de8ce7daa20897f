//! Keys: read, checked, laid out for a device, and never printed when they are private.

use std::fmt;
use std::sync::Arc;

use num_bigint::BigUint;
use pkcs1::{RsaPrivateKeyRef, RsaPublicKeyRef, UintRef};
use ring::rsa::KeyPair;
use rustls_pki_types::PrivateKeyDer;
use zeroize::{Zeroize, Zeroizing};

use super::lane_key::LaneKey;
use super::{Scheme, Signature, Signer};
use crate::error::{Error, KeyError};
use crate::pem::private_key_from_pem;

/// Sizes of a modulus that we work with.
const MODULUS_BITS: [usize; 4] = [1024, 2048, 3072, 4096];

/// An RSA public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Exponent, then modulus, each as long as the modulus: as a device reads them.
    numbers: Box<[u8]>,
    /// DER of `RSAPublicKey`.
    der: Box<[u8]>,
}

impl PublicKey {
    /// A key of its modulus and exponent, big-endian, with or without leading zeros.
    pub fn new(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        let (modulus, exponent) = (trim(modulus), trim(exponent));
        let k = check_modulus(modulus)?;
        // 33 bits are the most that anybody uses, and bound the work (ring sets the same limit).
        let odd = exponent.last().is_some_and(|byte| byte & 1 == 1);
        let size = exponent.len() <= 4 || exponent.len() == 5 && exponent[0] == 1;
        if !odd || exponent == [1] || !size {
            return Err(KeyError::Inconsistent("the public exponent is out of range"));
        }
        let mut numbers = Vec::with_capacity(2 * k);
        put(&mut numbers, exponent, k)?;
        put(&mut numbers, modulus, k)?;
        let der = der_of(modulus, exponent).ok_or(KeyError::Encoding("numbers without DER"))?;
        Ok(Self { numbers: numbers.into(), der: der.into() })
    }

    /// Length of the modulus in bytes.
    pub fn modulus_len_bytes(&self) -> usize {
        self.numbers.len() / 2
    }

    /// DER of `RSAPublicKey` (RFC 8017, appendix A.1.1).
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The exponent; it has 33 bits at most.
    pub(crate) fn exponent(&self) -> u64 {
        let (exponent, _) = self.numbers.split_at(self.modulus_len_bytes());
        exponent.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// Exponent, then modulus.
    pub(crate) fn numbers(&self) -> &[u8] {
        &self.numbers
    }

    /// The modulus, as long as itself.
    pub(crate) fn modulus(&self) -> &[u8] {
        &self.numbers[self.modulus_len_bytes()..]
    }

    /// Whether `input` to the public exponent is `output`. Both are public.
    pub(crate) fn maps(&self, input: &[u8], output: &[u8]) -> bool {
        self.raise(input) == Some(BigUint::from_bytes_be(output))
    }

    /// `input` to the public exponent; none if it is not below the modulus. Both are public.
    pub(crate) fn raise(&self, input: &[u8]) -> Option<BigUint> {
        let (exponent, modulus) = self.numbers.split_at(self.modulus_len_bytes());
        let [input, exponent, modulus] = [input, exponent, modulus].map(BigUint::from_bytes_be);
        (input < modulus).then(|| input.modpow(&exponent, &modulus))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey(RSA-{})", self.modulus_len_bytes() * 8)
    }
}

/// An RSA private key of 1024, 2048, 3072 or 4096 bits, checked when it was read. What is ours of it is
/// wiped when it is dropped; `ring`, which signs where there are no lanes, does not wipe its own form.
///
/// Software signs with keys whose primes are known: in lanes, where the processor has them, else
/// with 2048 bits and more. The others need a device.
pub struct PrivateKey {
    public: PublicKey,
    /// What software signs with.
    pair: Option<KeyPair>,
    numbers: Numbers,
    /// Where this processor computes in lanes and the primes are known.
    lanes: Option<LaneKey>,
}

/// The private numbers as a device reads them: big-endian, each padded to its full length.
pub(crate) enum Numbers {
    /// d mod (q-1), d mod (p-1), q, p, q^-1 mod p; each half as long as the modulus.
    Crt(Zeroizing<Vec<u8>>),
    /// d and the modulus; each as long as the modulus.
    Plain(Zeroizing<Vec<u8>>),
}

impl PrivateKey {
    /// The first private key in PEM text; other sections are passed over. The copy made for reading
    /// is wiped; the text is the caller's to wipe.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        read_pem(pem, Self::from_der)
    }

    /// A key in DER: PKCS#1 or PKCS#8, as `der` says.
    pub fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        match der {
            PrivateKeyDer::Pkcs1(der) => Self::from_pkcs1(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => {
                let info = pkcs8::PrivateKeyInfoRef::try_from(der.secret_pkcs8_der())
                    .map_err(|_| KeyError::Encoding("damaged, or not PKCS#8 in DER"))?;
                match algorithm(&info.algorithm.oid) {
                    None => Self::from_pkcs1(info.private_key.as_bytes()),
                    Some(other) => Err(KeyError::NotRsa(other)),
                }
            }
            PrivateKeyDer::Sec1(_) => Err(KeyError::NotRsa("elliptic curves")),
            _ => Err(KeyError::Encoding("neither PKCS#1 nor PKCS#8")),
        }
    }

    /// A key of which only the exponents are known, big-endian: without its primes a signature
    /// takes four times the work, and needs a device.
    pub fn without_primes(
        modulus: &[u8],
        public_exponent: &[u8],
        private_exponent: &[u8],
    ) -> Result<Self, KeyError> {
        let public = PublicKey::new(modulus, public_exponent)?;
        let k = public.modulus_len_bytes();
        let mut numbers = Zeroizing::new(Vec::with_capacity(2 * k));
        put(&mut numbers, trim(private_exponent), k)?;
        numbers.extend_from_slice(public.modulus());
        Ok(Self { public, pair: None, numbers: Numbers::Plain(numbers), lanes: None })
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        let key = RsaPrivateKeyRef::try_from(der)
            .map_err(|_| KeyError::Encoding("damaged, or not a private key in DER"))?;
        if key.other_prime_infos.is_some() {
            return Err(KeyError::Encoding("multi-prime or unknown version"));
        }
        let public = PublicKey::new(key.modulus.as_bytes(), key.public_exponent.as_bytes())?;
        // Big enough for ring, so it checks that the numbers belong together. With a smaller key the
        // signature that is tried below does.
        let pair = if public.modulus_len_bytes() * 8 >= 2048 {
            Some(KeyPair::from_der(der).map_err(|rejected| explain(&rejected.to_string()))?)
        } else {
            None
        };
        let h = public.modulus_len_bytes() / 2;
        let mut numbers = Zeroizing::new(Vec::with_capacity(5 * h));
        for number in [key.exponent2, key.exponent1, key.prime2, key.prime1, key.coefficient] {
            put(&mut numbers, trim(number.as_bytes()), h)?;
        }
        let lanes = LaneKey::here(&public, &numbers)?;
        Self { public, pair, numbers: Numbers::Crt(numbers), lanes }.tried()
    }

    /// The key, after it has made a signature that its public half verifies.
    fn tried(self) -> Result<Self, KeyError> {
        let key = Arc::new(self);
        Signer::new()
            .try_out(&key)
            .map_err(|_| KeyError::Inconsistent("its public key does not verify its signature"))?;
        Ok(Arc::into_inner(key).expect("the signature's own reference is gone"))
    }

    /// Length of the modulus and so of a signature, in bytes.
    pub fn modulus_len_bytes(&self) -> usize {
        self.public.modulus_len_bytes()
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message` here and now, without a queue: for whoever has nothing else to do meanwhile.
    /// By `ring`, so with keys of 2048 bits and more.
    pub fn sign(&self, scheme: Scheme, message: &[u8]) -> Result<Signature, Error> {
        let mut signature = Signature::empty();
        let target = signature.room(self.modulus_len_bytes());
        Signer::new().sign_alone(self, scheme, message, target)?;
        Ok(signature)
    }

    pub(crate) fn pair(&self) -> Option<&KeyPair> {
        self.pair.as_ref()
    }

    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// The same key in another form for lanes.
    #[cfg(test)]
    pub(crate) fn with_lanes(&self, lanes: LaneKey) -> Self {
        let numbers = Numbers::Plain(Zeroizing::new(Vec::new()));
        Self { public: self.public.clone(), pair: None, numbers, lanes: Some(lanes) }
    }

    pub(crate) fn lanes(&self) -> Option<&LaneKey> {
        self.lanes.as_ref()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(RSA-{})", self.modulus_len_bytes() * 8)
    }
}

/// The first private key in PEM text, as `from_der` reads it.
pub(crate) fn read_pem<T>(
    pem: &[u8],
    from_der: impl FnOnce(&PrivateKeyDer<'_>) -> Result<T, KeyError>,
) -> Result<T, KeyError> {
    let mut der = private_key_from_pem(pem)?;
    let key = from_der(&der);
    der.zeroize();
    key
}

fn trim(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// Length in bytes of a modulus that we work with.
fn check_modulus(modulus: &[u8]) -> Result<usize, KeyError> {
    let leading = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let modulus_bits = modulus.len() * 8 - leading;
    if !MODULUS_BITS.contains(&modulus_bits) {
        return Err(KeyError::Size { modulus_bits });
    }
    if modulus[modulus.len() - 1] & 1 == 0 {
        return Err(KeyError::Inconsistent("the modulus is even"));
    }
    Ok(modulus.len())
}

/// Appends `number`, padded with zeros on the left.
fn put(numbers: &mut Vec<u8>, number: &[u8], len_bytes: usize) -> Result<(), KeyError> {
    let padding = len_bytes
        .checked_sub(number.len())
        .ok_or(KeyError::Inconsistent("a number is longer than the modulus allows"))?;
    numbers.resize(numbers.len() + padding, 0);
    numbers.extend_from_slice(number);
    Ok(())
}

fn der_of(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    let key = RsaPublicKeyRef {
        modulus: UintRef::new(modulus).ok()?,
        public_exponent: UintRef::new(exponent).ok()?,
    };
    pkcs1::der::Encode::to_der(&key).ok()
}

/// The algorithm of a key that is not RSA.
fn algorithm(oid: &pkcs8::ObjectIdentifier) -> Option<&'static str> {
    Some(match oid.to_string().as_str() {
        // rsaEncryption (RFC 8017, appendix A).
        "1.2.840.113549.1.1.1" => return None,
        // RFC 5480, RFC 8410, RFC 3279.
        "1.2.840.10045.2.1" => "elliptic curves",
        "1.3.101.112" => "Ed25519",
        "1.3.101.113" => "Ed448",
        "1.2.840.10040.4.1" => "DSA",
        _ => "an algorithm unknown here",
    })
}

/// ring's one-word reasons (`ring/src/error/key_rejected.rs`) in sentences.
fn explain(rejected: &str) -> KeyError {
    match rejected {
        "InconsistentComponents" => {
            KeyError::Inconsistent("p, q, d and the modulus are not of one key")
        }
        "InvalidComponent" => KeyError::Inconsistent("a component is out of range"),
        "VersionNotSupported" => KeyError::Encoding("multi-prime or unknown version"),
        _ => KeyError::Encoding("damaged, or not a private key in DER"),
    }
}

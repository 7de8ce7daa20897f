//! A private key from outside, in every form: it is refused with a reason, or signs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use warpcore_offload::{EcdsaKey, PrivateKey, PublicKey, Scheme};

fuzz_target!(|bytes: &[u8]| {
    let forms: [PrivateKeyDer<'_>; 3] = [
        PrivatePkcs8KeyDer::from(bytes).into(),
        PrivatePkcs1KeyDer::from(bytes).into(),
        PrivateSec1KeyDer::from(bytes).into(),
    ];
    for form in &forms {
        match PrivateKey::from_der(form) {
            Ok(key) => drop(key.sign(Scheme::Pkcs1Sha256, b"message")),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        match EcdsaKey::from_der(form) {
            Ok(key) => assert_eq!(key.public().len(), 65),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    drop((PrivateKey::from_pem(bytes), EcdsaKey::from_pem(bytes)));
    let (modulus, exponent) = bytes.split_at(bytes.len().min(256));
    drop(PublicKey::new(modulus, exponent));
});

//! aws-lc-rs.

use std::hint::black_box;

use aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256};

use super::Signer;

pub(super) fn signer(der: &[u8]) -> Result<Signer, String> {
    let pair = KeyPair::from_pkcs8(der).map_err(|error| error.to_string())?;
    let random = SystemRandom::new();
    let mut signature = vec![0; pair.public_modulus_len()];
    Ok(Box::new(move |message| {
        pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("a good key");
        black_box(&signature);
    }))
}

pub(super) fn ecdsa_signer(der: &[u8]) -> Result<Signer, String> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
        .map_err(|error| error.to_string())?;
    let random = SystemRandom::new();
    Ok(Box::new(move |message| {
        black_box(pair.sign(&random, message).expect("a good key"));
    }))
}

pub(super) fn exchange(peer: &[u8; 32]) {
    let random = SystemRandom::new();
    let key = EphemeralPrivateKey::generate(&X25519, &random).expect("random numbers");
    black_box(key.compute_public_key().expect("a key has one"));
    let peer = UnparsedPublicKey::new(&X25519, peer);
    agree_ephemeral(key, peer, (), |secret| {
        drop(black_box(secret.to_vec()));
        Ok(())
    })
    .expect("a good key");
}

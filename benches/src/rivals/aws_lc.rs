//! aws-lc-rs.

use std::hint::black_box;

use aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;

pub(super) fn signer(der: &[u8]) -> Result<Box<dyn FnMut(&[u8])>, String> {
    let pair = KeyPair::from_pkcs8(der).map_err(|error| error.to_string())?;
    let random = SystemRandom::new();
    let mut signature = vec![0; pair.public_modulus_len()];
    Ok(Box::new(move |message| {
        pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("a good key");
        black_box(&signature);
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

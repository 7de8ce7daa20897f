//! ring.

use std::hint::black_box;

use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;

pub(super) fn signer(der: &[u8]) -> Result<Box<dyn FnMut(&[u8])>, String> {
    let pair = KeyPair::from_pkcs8(der).map_err(|error| error.to_string())?;
    let random = SystemRandom::new();
    let mut signature = vec![0; pair.public().modulus_len()];
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
    agree_ephemeral(key, &peer, |secret| drop(black_box(secret.to_vec()))).expect("a good key");
}

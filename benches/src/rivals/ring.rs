//! ring.

use std::hint::black_box;

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

//! Nonces of ECDSA: derived from the key and the message (RFC 6979, section 3.2), with random bytes
//! mixed in (section 3.6). A generator that repeats itself does not give the key away, and a fault
//! that is repeated does not see the same nonce twice.

use ring::hmac::{Context, HMAC_SHA256, Key};
use zeroize::Zeroizing;

use super::field::{Constant, Order, reduced};
use crate::rsa::digits::{self, Radix52};

/// The nonce for a hash: from 1 to the order less 1.
pub(super) fn nonce(secret: &[u8; 32], hash: &[u8; 32], random: &[u8]) -> Zeroizing<Constant> {
    // bits2octets: the hash modulo the order.
    let mut reduced_hash = [0; 32];
    digits::write::<Radix52>(&reduced::<Order>(number(hash)), &mut reduced_hash);
    let (mut k, mut v) = (Zeroizing::new([0; 32]), Zeroizing::new([1; 32]));
    // Steps b to g.
    for round in 0..2 {
        *k = hmac(&k, &[&v[..], &[round], secret, &reduced_hash, random]);
        *v = hmac(&k, &[&v[..]]);
    }
    loop {
        *v = hmac(&k, &[&v[..]]);
        let nonce = Zeroizing::new(number(&v));
        // What is refused says nothing of what comes instead; it is one in 2^32.
        if *nonce != [0; 5] && reduced::<Order>(*nonce) == *nonce {
            return nonce;
        }
        *k = hmac(&k, &[&v[..], &[0]]);
        *v = hmac(&k, &[&v[..]]);
    }
}

/// The digits of a big-endian number.
pub(super) fn number(bytes: &[u8; 32]) -> Constant {
    let mut digits = [0; 5];
    digits::read::<Radix52>(bytes, &mut digits);
    digits
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::with_key(&Key::new(HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use ring::digest::{SHA256, digest};

    use super::*;

    fn hex(text: &str) -> [u8; 32] {
        let byte = |at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal");
        std::array::from_fn(byte)
    }

    /// RFC 6979, appendix A.2.5, without anything random.
    #[test]
    fn the_nonces_of_the_rfc() {
        let secret = hex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721");
        for (message, expected) in [
            ("sample", "A6E3C57DD01ABE90086538398355DD4C3B17AA873382B0F24D6129493D8AAD60"),
            ("test", "D16B6AE827F17175E040871A1C7EC3500192C4C92677336EC2537ACAEE0008E0"),
        ] {
            let hash = digest(&SHA256, message.as_bytes());
            let hash = hash.as_ref().try_into().expect("32 bytes");
            assert_eq!(*nonce(&secret, hash, &[]), number(&hex(expected)));
            assert_ne!(*nonce(&secret, hash, &[1]), number(&hex(expected)));
        }
    }
}

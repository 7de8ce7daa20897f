//! X25519 key exchange: a fresh key pair, and what it shares with a peer's, in one request.
//!
//! Both are multiplications by the same secret scalar, of the base point and of the peer's: two
//! lanes. So four exchanges fill a vector of eight.

mod field;
mod ladder;

use std::fmt;

use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::rand::SystemRandom;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::rsa::Salts;
use crate::rsa::lanes::{self, X4, X8};
use crate::wipe::burn_stack;

/// What two parties share after a key exchange. Wiped when it is dropped, never printed. On the
/// heap, so that it leaves no copies where it was moved.
#[derive(Clone)]
pub struct SharedSecret(Box<Zeroizing<[u8; EXCHANGED_LEN_BYTES]>>);

impl SharedSecret {
    /// The second half of what was exchanged.
    pub(crate) fn new(exchanged: Box<Zeroizing<[u8; EXCHANGED_LEN_BYTES]>>) -> Self {
        Self(exchanged)
    }
}

impl AsRef<[u8]> for SharedSecret {
    fn as_ref(&self) -> &[u8] {
        &self.0[32..]
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// A public key of ours and the secret shared with a peer, one after the other.
pub(crate) const EXCHANGED_LEN_BYTES: usize = 64;

/// Makes key exchanges, several at a time.
pub(crate) struct Exchanger {
    random: SystemRandom,
    scalars: Salts,
}

/// What comes of one.
pub(crate) type Exchanged = Result<Zeroizing<[u8; EXCHANGED_LEN_BYTES]>, Error>;

impl Exchanger {
    /// The most exchanges that go together.
    pub(crate) const TOGETHER: usize = 4;

    pub(crate) fn new() -> Self {
        Self { random: SystemRandom::new(), scalars: Salts::new() }
    }

    /// Whether exchanges gather for lanes on this processor.
    pub(crate) fn has_lanes() -> bool {
        lanes::are_here()
    }

    /// A fresh key for each peer, four at most, and what they share.
    pub(crate) fn exchange(&mut self, peers: &[[u8; 32]]) -> Vec<Exchanged> {
        if !Self::has_lanes() {
            let made = peers.iter().map(|peer| self.exchange_alone(peer)).collect();
            burn_stack();
            return made;
        }
        let mut scalars = Zeroizing::new([[0; 32]; 2 * Self::TOGETHER]);
        let mut points = [[0; 32]; 2 * Self::TOGETHER];
        let mut products = Zeroizing::new([[0; 32]; 2 * Self::TOGETHER]);
        for (pair, peer) in peers.iter().enumerate() {
            match self.scalars.number(32) {
                Ok(scalar) => {
                    scalars[2 * pair].copy_from_slice(&scalar);
                    scalars[2 * pair + 1].copy_from_slice(&scalar);
                }
                Err(error) => return peers.iter().map(|_| Err(error.clone())).collect(),
            }
            // The base point (RFC 7748, section 4.1).
            points[2 * pair][0] = 9;
            points[2 * pair + 1] = *peer;
        }
        multiply(&scalars[..2 * peers.len()], &points[..2 * peers.len()], &mut products[..]);
        let made = products
            .chunks_exact(2)
            .take(peers.len())
            .map(|pair| {
                // All zeros: the peer's point is of small order (RFC 7748, section 6.1). Looked at
                // as a whole.
                if pair[1].iter().fold(0, |all, byte| all | byte) == 0 {
                    return Err(Error::PeerKey);
                }
                let mut exchanged = Zeroizing::new([0; EXCHANGED_LEN_BYTES]);
                exchanged[..32].copy_from_slice(&pair[0]);
                exchanged[32..].copy_from_slice(&pair[1]);
                Ok(exchanged)
            })
            .collect();
        burn_stack();
        made
    }

    /// By ring, where there are no lanes.
    fn exchange_alone(&self, peer: &[u8; 32]) -> Exchanged {
        let key =
            EphemeralPrivateKey::generate(&X25519, &self.random).map_err(|_| Error::Random)?;
        let mut exchanged = Zeroizing::new([0; EXCHANGED_LEN_BYTES]);
        let public = key.compute_public_key().map_err(|_| Error::Random)?;
        exchanged[..32].copy_from_slice(public.as_ref());
        let peer = UnparsedPublicKey::new(&X25519, peer);
        agree_ephemeral(key, &peer, |secret| exchanged[32..].copy_from_slice(secret))
            .map_err(|_| Error::PeerKey)?;
        Ok(exchanged)
    }
}

/// Multiplies points by scalars, four or eight lanes at a time.
pub(crate) fn multiply(scalars: &[[u8; 32]], points: &[[u8; 32]], products: &mut [[u8; 32]]) {
    // SAFETY: `exchange` has looked whether the lanes are here.
    unsafe {
        if scalars.len() <= 4 {
            ladder::multiply_points::<X4>(scalars, points, products);
        } else {
            ladder::multiply_points::<X8>(scalars, points, products);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> [u8; 32] {
        let bytes: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal"))
            .collect();
        bytes.try_into().expect("32 bytes")
    }

    /// RFC 7748, section 5.2: the two vectors, and a thousand rounds.
    #[test]
    fn the_vectors_of_the_rfc() {
        if !lanes::are_here() {
            warpcore_need::skipped("this processor has no AVX-512 IFMA");
            return;
        }
        let scalars = [
            hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
            hex("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d"),
        ];
        let points = [
            hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"),
            hex("e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493"),
        ];
        let expected = [
            hex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"),
            hex("95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957"),
        ];
        for lanes in [2, 8] {
            let repeated = |pair: [[u8; 32]; 2]| pair.repeat(lanes / 2);
            let mut products = vec![[0; 32]; lanes];
            multiply(&repeated(scalars), &repeated(points), &mut products);
            assert_eq!(products, repeated(expected));
        }
        let mut base = [0; 32];
        base[0] = 9;
        let (mut k, mut u) = (base, base);
        for _ in 0..1000 {
            let mut product = [[0; 32]];
            multiply(&[k], &[u], &mut product);
            (u, k) = (k, product[0]);
        }
        assert_eq!(k, hex("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
    }

    /// Project Wycheproof's: edge cases of multiplication, points on the twist, of small order, and
    /// not canonical.
    #[test]
    fn the_vectors_of_wycheproof() {
        if !lanes::are_here() {
            warpcore_need::skipped("this processor has no AVX-512 IFMA");
            return;
        }
        let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519);
        let tests: Vec<_> = set
            .expect("it is there")
            .test_groups
            .into_iter()
            .flat_map(|group| group.tests)
            .collect();
        assert!(tests.len() > 400);
        let number = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).expect("32 bytes");
        // Eight different ones at a time, and four.
        for lanes in [8, 4] {
            for tests in tests.chunks(lanes) {
                let scalars: Vec<_> = tests.iter().map(|test| number(&test.private_key)).collect();
                let points: Vec<_> = tests.iter().map(|test| number(&test.public_key)).collect();
                let mut products = vec![[0; 32]; tests.len()];
                multiply(&scalars, &points, &mut products);
                for (test, product) in tests.iter().zip(products) {
                    assert_eq!(
                        product,
                        number(&test.shared_secret),
                        "{} {}",
                        test.tc_id,
                        test.comment
                    );
                }
            }
        }
    }

    /// Points of small order (Cure25519, "How do I validate Curve25519 public keys?"), whose product
    /// would be the same for every scalar.
    #[test]
    fn points_of_small_order_are_refused() {
        let mut exchanger = Exchanger::new();
        let small = [
            hex("0000000000000000000000000000000000000000000000000000000000000000"),
            hex("0100000000000000000000000000000000000000000000000000000000000000"),
            hex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
            hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        ];
        for end in exchanger.exchange(&small) {
            assert_eq!(end.map(drop), Err(Error::PeerKey));
        }
        let good = hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
        let ends = exchanger.exchange(&[small[0], good]);
        assert!(ends[0].is_err() && ends[1].is_ok(), "only its own exchange fails");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// With points that are not on any valid key too: near p, above p, with the top bit set.
        #[test]
        fn both_sides_agree(
            scalars in prop::collection::vec(any::<[u8; 32]>(), 1..=8),
            edge in prop_oneof![Just(None), (any::<u8>(), any::<bool>()).prop_map(Some)],
        ) {
            if !lanes::are_here() {
                return Ok(());
            }
            let mut base = [0; 32];
            base[0] = 9;
            let count = scalars.len();
            let mut publics = vec![[0; 32]; count];
            multiply(&scalars, &vec![base; count], &mut publics);
            if let Some((low, top)) = edge {
                let mut point = [0xff; 32];
                (point[0], point[31]) = (low, if top { 0xff } else { 0x7f });
                publics[0] = point;
            }
            // (a b) P = (b a) P, with lanes in another order.
            let others: Vec<_> = scalars.iter().rev().copied().collect();
            let mut first = vec![[0; 32]; count];
            multiply(&others, &publics, &mut first);
            let mut swapped = vec![[0; 32]; count];
            multiply(&scalars, &publics, &mut swapped);
            let mut left = vec![[0; 32]; count];
            multiply(&scalars, &first, &mut left);
            let mut right = vec![[0; 32]; count];
            multiply(&others, &swapped, &mut right);
            prop_assert_eq!(left, right);
        }
    }
}

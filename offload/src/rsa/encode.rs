//! Paddings of RFC 8017: what is raised to the private exponent in place of the message.

use ring::digest::{Algorithm, Digest, SHA256, SHA384, SHA512, digest};
use ring::rand::{SecureRandom, SystemRandom};

use zeroize::{Zeroize, Zeroizing};

use super::Scheme;
use crate::error::Error;

/// `DigestInfo` up to the hash itself (RFC 8017, section 9.2, note 1), for SHA-2 of 32 + 16 n
/// bytes: only lengths and the last arc of the identifier differ.
const fn digest_info(hash_len: u8, arc: u8) -> [u8; 19] {
    [
        0x30,
        17 + hash_len,
        0x30,
        0x0d,
        0x06,
        0x09,
        0x60,
        0x86,
        0x48,
        0x01,
        0x65,
        0x03,
        0x04,
        0x02,
        arc,
        0x05,
        0x00,
        0x04,
        hash_len,
    ]
}

/// Random bytes, drawn from the kernel many at a time.
pub(crate) struct Salts {
    random: SystemRandom,
    pool: [u8; 1024],
    /// Bytes of `pool` not handed out yet, at its end.
    left: usize,
}

impl Salts {
    pub(crate) fn new() -> Self {
        Self { random: SystemRandom::new(), pool: [0; 1024], left: 0 }
    }

    /// A random number of `len_bytes`, big-endian.
    pub(crate) fn number(&mut self, len_bytes: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut bytes = Zeroizing::new(vec![0; len_bytes]);
        self.draw(&mut bytes)?;
        Ok(bytes)
    }

    fn draw(&mut self, salt: &mut [u8]) -> Result<(), Error> {
        if self.left < salt.len() {
            self.random.fill(&mut self.pool).map_err(|_| Error::Random)?;
            self.left = self.pool.len();
        }
        let start = self.pool.len() - self.left;
        let drawn = &mut self.pool[start..start + salt.len()];
        salt.copy_from_slice(drawn);
        drawn.zeroize();
        self.left -= salt.len();
        Ok(())
    }
}

/// Writes the encoded form of `message` to the whole of `target`, which is as long as the modulus.
/// A modulus is a multiple of eight bits, so that PSS leaves just the top bit free.
pub(crate) fn encode(
    scheme: Scheme,
    message: &[u8],
    salts: &mut Salts,
    target: &mut [u8],
) -> Result<(), Error> {
    let (algorithm, arc, pss) = match scheme {
        Scheme::Pkcs1Sha256 => (&SHA256, 1, false),
        Scheme::Pkcs1Sha384 => (&SHA384, 2, false),
        Scheme::Pkcs1Sha512 => (&SHA512, 3, false),
        Scheme::PssSha256 => (&SHA256, 1, true),
        Scheme::PssSha384 => (&SHA384, 2, true),
        Scheme::PssSha512 => (&SHA512, 3, true),
    };
    let hash = digest(algorithm, message);
    if pss { encode_pss(algorithm, &hash, salts, target) } else { encode_pkcs1(&hash, arc, target) }
}

/// EMSA-PKCS1-v1_5 (RFC 8017, section 9.2).
fn encode_pkcs1(hash: &Digest, arc: u8, target: &mut [u8]) -> Result<(), Error> {
    let hash = hash.as_ref();
    let hash_len = u8::try_from(hash.len()).expect("SHA-2 has at most 64 bytes");
    let info = digest_info(hash_len, arc);
    let modulus_bits = target.len() * 8;
    // 00 01, at least eight FF, 00 (step 3).
    let padding_len = (target.len() - hash.len())
        .checked_sub(info.len() + 3)
        .filter(|len| *len >= 8)
        .ok_or(Error::KeyTooShort { modulus_bits })?;
    target[..2].copy_from_slice(&[0, 1]);
    target[2..][..padding_len].fill(0xff);
    target[2 + padding_len] = 0;
    target[3 + padding_len..][..info.len()].copy_from_slice(&info);
    target[3 + padding_len + info.len()..].copy_from_slice(hash);
    Ok(())
}

/// EMSA-PSS (RFC 8017, section 9.1.1), with a salt as long as the hash.
fn encode_pss(
    algorithm: &'static Algorithm,
    hash: &Digest,
    salts: &mut Salts,
    target: &mut [u8],
) -> Result<(), Error> {
    let hash_len = hash.as_ref().len();
    let modulus_bits = target.len() * 8;
    // Step 3.
    if target.len() < 2 * hash_len + 2 {
        return Err(Error::KeyTooShort { modulus_bits });
    }
    let (block, rest) = target.split_at_mut(target.len() - hash_len - 1);
    let (padding, salt) = block.split_at_mut(block.len() - hash_len);
    salts.draw(salt)?;
    // H = Hash(eight zeros || mHash || salt), steps 5 and 6.
    let mut context = ring::digest::Context::new(algorithm);
    context.update(&[0; 8]);
    context.update(hash.as_ref());
    context.update(salt);
    let salted = context.finish();
    // DB = zeros || 01 || salt, masked by MGF1 of H, steps 8 to 11.
    padding.fill(0);
    padding[padding.len() - 1] = 1;
    for (counter, block) in (0_u32..).zip(block.chunks_mut(hash_len)) {
        let mut context = ring::digest::Context::new(algorithm);
        context.update(salted.as_ref());
        context.update(&counter.to_be_bytes());
        let mask = context.finish();
        block.iter_mut().zip(mask.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
    }
    block[0] &= 0x7f;
    rest[..hash_len].copy_from_slice(salted.as_ref());
    rest[hash_len] = 0xbc;
    Ok(())
}

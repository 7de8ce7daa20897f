//! The HPRE engine: RSA, private (by its primes or without) and public.
//!
//! The device raises numbers to powers; hashing and padding are done here before, and a private
//! result is checked with the public exponent before anybody sees it: a fault in one half of a
//! CRT computation gives the primes away (Boneh, DeMillo, Lipton: On the Importance of Checking
//! Cryptographic Protocols for Faults). A descriptor has 16 words (UADK `drv/hisi_hpre.c`, `struct hisi_hpre_sqe`;
//! linux `drivers/crypto/hisilicon/hpre/hpre.h`):
//!
//! ```text
//!   0 algorithm (4:0) error (15:5) error (29:16) done (31:30)    1 key length (7:0)
//!   2 key   4 input   6 output   8 tag
//! ```
//!
//! Numbers are big-endian and as long as their field: see `rsa::Numbers` for the order of a key's.

use std::sync::Arc;

use zeroize::Zeroize;

use super::pair::{SQE_WORDS_MAX, Sqe};
use super::share::{Engine, Filled, Finished};
use crate::backend::Ended;
use crate::batch::Token;
use crate::buffer::{SourceSpan, TargetSpan};
use crate::error::Error;
use crate::request::Work;
use crate::rsa::{Numbers, PrivateKey, PublicKey, Salts, Scheme, encode};

const CONTROL: usize = 0;
const KEY_LEN: usize = 1;
const KEY: usize = 2;
const INPUT: usize = 4;
const OUTPUT: usize = 6;
const TAG: usize = 8;

/// Algorithms (linux `enum hpre_alg_type`).
const MODEXP: u32 = 0;
const MODEXP_CRT: u32 = 1;

/// In the control word: ours to do, and done by the device.
const TO_DO: u32 = 1 << 30;
const DONE: u32 = 3 << 30;
/// Both error fields.
const ERRORS: u32 = 0x3fff_0000 | 0x0000_ffe0;

const NUMBER_LEN_BYTES_MAX: usize = 512;

pub(crate) struct Hpre {
    /// By token. The device's until it is done.
    numbers: Box<[Box<InOut>]>,
    salts: Salts,
    /// Where scattered sources are gathered, and what goes to scattered targets.
    gathered: Vec<u8>,
    scattered: Vec<u8>,
}

/// A number to work on, and the result.
type InOut = [[u8; NUMBER_LEN_BYTES_MAX]; 2];

fn in_out() -> Box<InOut> {
    Box::new([[0; NUMBER_LEN_BYTES_MAX]; 2])
}

pub(crate) struct Flight {
    key: Key,
    target: TargetSpan,
}

enum Key {
    Private(Arc<PrivateKey>),
    Public(Arc<PublicKey>),
}

impl Hpre {
    pub(crate) fn new(depth: usize) -> Self {
        let numbers = (0..depth).map(|_| in_out()).collect();
        Self { numbers, salts: Salts::new(), gathered: Vec::new(), scattered: Vec::new() }
    }

    /// # Safety
    ///
    /// As [`Engine::fill`].
    unsafe fn fill_input(
        &mut self,
        token: Token,
        public: &PublicKey,
        scheme: Option<Scheme>,
        source: &SourceSpan,
        target: &TargetSpan,
    ) -> Result<(), Error> {
        let k = public.modulus_len_bytes();
        let len_bytes = target.0.len_bytes();
        if len_bytes < k {
            return Err(Error::TargetTooSmall { len_bytes });
        }
        // SAFETY: passed on from the caller.
        let source = unsafe { source.as_slice(&mut self.gathered) };
        let input = &mut self.numbers[token as usize][0][..k];
        match scheme {
            Some(scheme) => encode(scheme, source, &mut self.salts, input),
            None if source.len() == k && source < public.modulus() => {
                input.copy_from_slice(source);
                Ok(())
            }
            None => Err(Error::NotInRange),
        }
    }

    fn describe(&mut self, token: Token, algorithm: u32, key: &[u8], k: usize) -> Sqe {
        let [input, output] = &mut *self.numbers[token as usize];
        let mut sqe = [0; SQE_WORDS_MAX];
        sqe[CONTROL] = algorithm | TO_DO;
        sqe[KEY_LEN] = u32::try_from(k / 8 - 1).expect("a key has at most 512 bytes");
        let addresses = [key.as_ptr(), input.as_ptr(), output.as_mut_ptr().cast_const()];
        for (place, address) in [KEY, INPUT, OUTPUT].into_iter().zip(addresses) {
            let address = (address as u64).to_le_bytes();
            let (low, high) = address.split_at(4);
            sqe[place] = u32::from_le_bytes(low.try_into().expect("four bytes"));
            sqe[place + 1] = u32::from_le_bytes(high.try_into().expect("four bytes"));
        }
        sqe[TAG] = token;
        sqe
    }
}

impl Engine for Hpre {
    type Flight = Flight;

    const SQE_WORDS: usize = 16;
    /// 0 is RSA and DH (UADK `hisi_hpre.c`, `HPRE_HW_V2_ALG_TYPE`).
    const KINDS: &'static [u16] = &[0];

    fn kind(&self, work: &Work) -> Option<usize> {
        match work {
            Work::RsaPrivate { .. } | Work::RsaPublic { .. } | Work::Sign { .. } => Some(0),
            Work::Call(_)
            | Work::Check { .. }
            | Work::Compress { .. }
            | Work::Decompress { .. }
            | Work::EcdsaSign { .. }
            | Work::Feed { .. }
            | Work::KeyExchange { .. } => None,
        }
    }

    unsafe fn fill(&mut self, token: Token, work: &Work) -> Filled<Flight> {
        let (key, scheme, source, target) = match work {
            Work::RsaPrivate { key, source, target } => {
                (Key::Private(Arc::clone(key)), None, source, target)
            }
            Work::RsaPublic { key, source, target } => {
                (Key::Public(Arc::clone(key)), None, source, target)
            }
            Work::Sign { key, scheme, message, target } => {
                (Key::Private(Arc::clone(key)), Some(*scheme), message, target)
            }
            _ => return Filled::Unfit,
        };
        // SAFETY: passed on from the caller.
        let filled = unsafe { self.fill_input(token, key.public(), scheme, source, target) };
        if let Err(error) = filled {
            return Filled::Done(Err(error));
        }
        let k = key.public().modulus_len_bytes();
        let (algorithm, numbers) = match &key {
            Key::Public(key) => (MODEXP, key.numbers()),
            Key::Private(key) => match key.numbers() {
                Numbers::Crt(numbers) => (MODEXP_CRT, numbers.as_slice()),
                Numbers::Plain(numbers) => (MODEXP, numbers.as_slice()),
            },
        };
        let sqe = self.describe(token, algorithm, numbers, k);
        // The flight keeps the key where the descriptor says it is.
        Filled::Ready(sqe, Flight { key, target: TargetSpan(target.0.clone()) })
    }

    fn finish(&mut self, token: Token, flight: &Flight, sqe: &Sqe) -> Finished {
        // Another's, or one that the device never began: it may still write.
        if sqe[TAG] != token || sqe[CONTROL] & DONE != DONE {
            return Finished::Nonsense;
        }
        let k = flight.key.public().modulus_len_bytes();
        let [input, output] = &mut *self.numbers[token as usize];
        let (input, output) = (&input[..k], &mut output[..k]);
        let right = sqe[CONTROL] & ERRORS == 0
            && match &flight.key {
                Key::Private(key) => key.public().maps(output, input),
                Key::Public(_) => true,
            };
        if !right {
            output.zeroize();
            return Finished::Wrong;
        }
        // SAFETY: the request owns its target and stays in its slot until this is done.
        let written = unsafe {
            flight.target.fill(&mut self.scattered, |target| {
                target[..k].copy_from_slice(output);
                Ok(k)
            })
        };
        // It may be what somebody has decrypted.
        output.zeroize();
        self.scattered.zeroize();
        Finished::Done(written)
    }

    fn give_up(&mut self, token: Token, flight: Flight, held: bool) -> Ended {
        if held {
            // The device may still read the key and write our numbers; it never had the target.
            std::mem::forget(flight);
            std::mem::forget(std::mem::replace(&mut self.numbers[token as usize], in_out()));
        }
        Ended::Redo
    }
}

impl Key {
    fn public(&self) -> &PublicKey {
        match self {
            Self::Private(key) => key.public(),
            Self::Public(key) => key,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Descriptors written by hand from the published layout.

    use super::*;
    use crate::{Request, RsaPrivate, RsaPublic};

    const KEY_DER: &[u8] = include_bytes!("../conformance_key.der");

    #[test]
    fn private_and_public() {
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(KEY_DER).into();
        let crt = Arc::new(PrivateKey::from_der(&der).expect("a good key"));
        let modulus = crt.public().modulus();
        let d = [&[0x55][..], &[1; 255]].concat();
        let plain = PrivateKey::without_primes(modulus, &[1, 0, 1], &d).expect("numbers");
        let plain = Arc::new(plain);
        let public = Arc::new(crt.public().clone());
        let mut hpre = Hpre::new(4);
        let source = [&[0][..], &[9; 255]].concat();
        let target = vec![0; 256];
        let mut crt = RsaPrivate { key: crt, source: source.clone(), target: target.clone() };
        let mut plain = RsaPrivate { key: plain, source: source.clone(), target: target.clone() };
        let mut public = RsaPublic { key: public, source: source.clone(), target };
        let (Numbers::Crt(crt_numbers), Numbers::Plain(plain_numbers)) =
            (crt.key.numbers(), plain.key.numbers())
        else {
            panic!("by primes, and without");
        };
        // dq dp q p qinv of half the length; d n; e n.
        assert_eq!((crt_numbers.len(), plain_numbers.len()), (5 * 128, 2 * 256));
        assert_eq!(
            (&plain_numbers[..256], &plain_numbers[256..]),
            (&d[..], plain.key.public().modulus())
        );
        assert_eq!(public.key.numbers()[..256], [&[0; 253][..], &[1, 0, 1]].concat());
        let keys = [
            (1, crt_numbers.as_ptr()),
            (0, plain_numbers.as_ptr()),
            (0, public.key.numbers().as_ptr()),
        ];
        let works = [crt.describe(), plain.describe(), public.describe()];
        for (token, (work, (algorithm, key))) in (0..).zip(works.iter().zip(keys)) {
            // SAFETY: nothing is handed to a device, and what `work` names lives on.
            let Filled::Ready(sqe, _) = (unsafe { hpre.fill(token, work) }) else {
                panic!("no descriptor for {work:?}")
            };
            let [input, output] = &*hpre.numbers[token as usize];
            assert_eq!(input[..256], source);
            let mut expected = [0; SQE_WORDS_MAX];
            expected[0] = algorithm | 1 << 30;
            // 256 bytes, in units of 8, less one.
            expected[1] = 31;
            for (place, address) in [(2, key), (4, input.as_ptr()), (6, output.as_ptr())] {
                let address = (address as u64).to_le_bytes();
                let half = |at: usize| address[at..at + 4].try_into().expect("four bytes");
                expected[place] = u32::from_le_bytes(half(0));
                expected[place + 1] = u32::from_le_bytes(half(4));
            }
            expected[8] = token;
            assert_eq!(sqe, expected);
        }
    }
}

//! The software accelerator: there on every machine.
//!
//! Work is executed by the queue's owner, one unit at a time, with contexts that are made once and
//! reused for each request.

mod job;

use ring::digest::{SHA256, digest};
use zeroize::Zeroize;

use crate::backend::{Device, State};
use crate::checksum::Checksum;
use crate::codec::{Codec, Coders, looks_random};
use crate::ecdsa::EcdsaSigner;
use crate::error::Error;
use crate::kx::Exchanger;
use crate::request::Work;
use crate::rsa::{Encoded, PublicKey, Running, SIGNATURE_LEN_BYTES_MAX, Scheme, Signer};

pub(crate) use job::Job;

/// The contexts of one thread.
pub(crate) struct Software {
    coders: Coders,
    signer: Signer,
    exchanger: Exchanger,
    ecdsa: EcdsaSigner,
    /// Where scattered sources are gathered, and what goes to scattered targets.
    gathered: Vec<u8>,
    scattered: Vec<u8>,
}

impl Software {
    pub(crate) fn new() -> Self {
        Self {
            coders: Coders::default(),
            signer: Signer::new(),
            exchanger: Exchanger::new(),
            ecdsa: EcdsaSigner::new(),
            gathered: Vec::new(),
            scattered: Vec::new(),
        }
    }

    /// Whether software does this kind of work at all.
    pub(crate) fn takes(work: &Work) -> bool {
        match work {
            Work::Call(_)
            | Work::Check { .. }
            | Work::Compress { .. }
            | Work::Decompress { .. }
            | Work::EcdsaSign { .. }
            | Work::Feed { .. }
            | Work::KeyExchange { .. } => true,
            Work::RsaPrivate { key, .. } => key.lanes().is_some(),
            Work::RsaPublic { .. } => true,
            Work::Sign { key, .. } => key.pair().is_some() || key.lanes().is_some(),
        }
    }

    /// Does `work` and returns the number of bytes written to its target.
    ///
    /// # Safety
    ///
    /// The bytes that `work` names are alive, and until this returns nobody writes its source or
    /// touches its target or its stream.
    pub(crate) unsafe fn execute(&mut self, work: &Work) -> Result<usize, Error> {
        let Self { coders, signer, ecdsa, gathered, scattered, .. } = self;
        let (source, target) = match work {
            // Its job runs it.
            Work::Call(_) => return Err(Error::NoDevice),
            Work::KeyExchange { .. } => {
                // SAFETY: passed on from the caller.
                let exchanged = unsafe { self.exchange(std::slice::from_ref(work)) };
                return exchanged.into_iter().next().unwrap_or(Err(Error::Random));
            }
            Work::Check { source, target, .. }
            | Work::Compress { source, target, .. }
            | Work::Decompress { source, target, .. }
            | Work::Feed { source, target, .. }
            | Work::RsaPrivate { source, target, .. }
            | Work::RsaPublic { source, target, .. }
            | Work::EcdsaSign { message: source, target, .. }
            | Work::Sign { message: source, target, .. } => (source, target),
        };
        // SAFETY: passed on from the caller.
        let source = unsafe { source.as_slice(gathered) };
        // SAFETY: passed on from the caller.
        unsafe {
            target.fill(scattered, |target| match work {
                Work::Check { checksum, .. } => {
                    let sum = checksum.of(source).to_le_bytes();
                    target[..sum.len()].copy_from_slice(&sum);
                    Ok(sum.len())
                }
                Work::Compress { codec, .. }
                    if target.len() < source.len()
                        && *codec != Codec::Store
                        && looks_random(source) =>
                {
                    Err(Error::TargetTooSmall { len_bytes: target.len() })
                }
                Work::Compress { codec, level, .. } => {
                    coders.of(*codec).compress(*level, source, target)
                }
                Work::Decompress { codec, .. } => coders.of(*codec).decompress(source, target),
                Work::EcdsaSign { key, .. } => ecdsa.sign_alone(key, source, target),
                Work::Feed { stream, end, .. } => stream.as_state().run(source, target, *end),
                Work::Call(_) | Work::KeyExchange { .. } => unreachable!("done above"),
                // In lanes only, where its job does it.
                Work::RsaPrivate { .. } => Err(Error::NoDevice),
                Work::RsaPublic { key, .. } => raise(key, source, target),
                Work::Sign { key, scheme, .. } => signer.sign_alone(key, *scheme, source, target),
            })
        }
    }
}

impl Software {
    /// Encodes the message of a signature that is to go with others in lanes, or takes the number of
    /// a bare operation.
    ///
    /// # Safety
    ///
    /// The bytes that `work` names are alive, and nobody writes the message.
    pub(crate) unsafe fn encode(&mut self, work: &Work) -> Result<Encoded, Error> {
        match work {
            Work::RsaPrivate { key, source, target } => {
                let len_bytes = target.0.len_bytes();
                if len_bytes < key.modulus_len_bytes() {
                    return Err(Error::TargetTooSmall { len_bytes });
                }
                // SAFETY: passed on from the caller.
                Signer::take(key, unsafe { source.as_slice(&mut self.gathered) })
            }
            Work::Sign { key, scheme, message, .. } => {
                // SAFETY: passed on from the caller.
                let message = unsafe { message.as_slice(&mut self.gathered) };
                self.signer.encode(key, *scheme, message)
            }
            _ => unreachable!("only private operations gather"),
        }
    }

    /// Takes up signatures with keys of one size.
    pub(crate) fn start(&mut self, signatures: Vec<Encoded>) -> Result<Running, Error> {
        self.signer.start(signatures)
    }

    /// A unit of them. True: they are to be finished.
    pub(crate) fn step(&mut self, running: &mut Running) -> Result<bool, Error> {
        self.signer.step(running)
    }

    /// Makes key exchanges that go together, four at most.
    ///
    /// # Safety
    ///
    /// The targets that `works` name are alive, and nobody else touches them.
    pub(crate) unsafe fn exchange(&mut self, works: &[Work]) -> Vec<Result<usize, Error>> {
        let peers: Vec<_> = works
            .iter()
            .map(|work| match work {
                Work::KeyExchange { peer, .. } => *peer,
                _ => unreachable!("only key exchanges go together"),
            })
            .collect();
        // Wiped where it lies: whoever moved it would leave it there.
        let exchanged = self.exchanger.exchange(&peers);
        let ends = works
            .iter()
            .zip(&exchanged)
            .map(|(work, exchanged)| {
                let Work::KeyExchange { target, .. } = work else {
                    unreachable!("looked at above")
                };
                let exchanged = exchanged.as_ref().map_err(Error::clone)?;
                // SAFETY: passed on from the caller.
                unsafe {
                    target.fill(&mut self.scattered, |target| {
                        target.copy_from_slice(&exchanged[..]);
                        Ok(exchanged.len())
                    })
                }
            })
            .collect();
        self.scattered.zeroize();
        ends
    }

    /// Makes ECDSA signatures that go together, eight at most: alone if they are too few, or if one
    /// did not come out right.
    ///
    /// # Safety
    ///
    /// As [`execute`](Self::execute), for each.
    pub(crate) unsafe fn sign_ecdsa(&mut self, works: &[Work]) -> Vec<Result<usize, Error>> {
        if works.len() < EcdsaSigner::TOGETHER_MIN {
            // SAFETY: passed on from the caller.
            return works.iter().map(|work| unsafe { self.execute(work) }).collect();
        }
        let hashed: Vec<_> = works
            .iter()
            .map(|work| {
                let Work::EcdsaSign { key, message, .. } = work else {
                    unreachable!("only such signatures go together")
                };
                // SAFETY: passed on from the caller.
                let message = unsafe { message.as_slice(&mut self.gathered) };
                let hash = digest(&SHA256, message);
                (&**key, hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
            })
            .collect();
        let made = match self.ecdsa.sign(&hashed) {
            Ok(made) => made,
            Err(error) => return works.iter().map(|_| Err(error.clone())).collect(),
        };
        works
            .iter()
            .zip(made)
            .map(|(work, made)| {
                let (Work::EcdsaSign { target, .. }, Some(made)) = (work, made) else {
                    tracing::error!("a signature came out wrong and was withheld");
                    // SAFETY: passed on from the caller.
                    return unsafe { self.execute(work) };
                };
                let made = made.as_ref();
                // SAFETY: passed on from the caller.
                unsafe {
                    target.fill(&mut self.scattered, |target| {
                        target[..made.len()].copy_from_slice(made);
                        Ok(made.len())
                    })
                }
            })
            .collect()
    }

    /// Ends what [`start`](Self::start) began, with the same works. A signature that came out wrong
    /// is made once more, alone.
    ///
    /// # Safety
    ///
    /// The bytes that each of `works` names are alive, nobody writes the messages, and nobody else
    /// touches the targets.
    pub(crate) unsafe fn finish(
        &mut self,
        running: Running,
        works: &[&Work],
    ) -> [Result<usize, Error>; Signer::TOGETHER_MAX] {
        let mut rooms = [const { [0; SIGNATURE_LEN_BYTES_MAX] }; Signer::TOGETHER_MAX];
        let mut targets: Vec<&mut [u8]> = Vec::with_capacity(works.len());
        for (room, work) in rooms.iter_mut().zip(works) {
            targets.push(&mut room[..work.modulus_len_bytes()]);
        }
        let ends = self.signer.finish(running, &mut targets);
        let mut results = [const { Err(Error::Sign) }; Signer::TOGETHER_MAX];
        for ((work, room), (end, result)) in
            works.iter().zip(&rooms).zip(ends.into_iter().zip(&mut results))
        {
            let (Work::RsaPrivate { key, target, .. } | Work::Sign { key, target, .. }) = work
            else {
                continue;
            };
            let len = key.modulus_len_bytes();
            *result = match end {
                // SAFETY: passed on from the caller.
                Ok(()) => unsafe {
                    target.fill(&mut self.scattered, |target| {
                        target[..len].copy_from_slice(&room[..len]);
                        Ok(len)
                    })
                },
                Err(error) => {
                    tracing::error!("a signature came out wrong and was withheld: {key:?}");
                    let again = matches!(work, Work::Sign { .. }) && key.pair().is_some();
                    // SAFETY: passed on from the caller.
                    if again { unsafe { self.execute(work) } } else { Err(error) }
                }
            };
        }
        // They may be what somebody has decrypted.
        rooms.zeroize();
        self.scattered.zeroize();
        results
    }
}

/// The public operation; all of it is public.
fn raise(key: &PublicKey, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
    let k = key.modulus_len_bytes();
    let power = if source.len() == k { key.raise(source) } else { None };
    let bytes = power.ok_or(Error::NotInRange)?.to_bytes_be();
    let len_bytes = target.len();
    let target = target.get_mut(..k).ok_or(Error::TargetTooSmall { len_bytes })?;
    let (zeros, rest) = target.split_at_mut(k - bytes.len());
    zeros.fill(0);
    rest.copy_from_slice(&bytes);
    Ok(k)
}

pub(super) fn device() -> Device {
    let codecs = Codec::ALL.map(Codec::name).join(", ");
    let checksums = Checksum::ALL.map(Checksum::name).join(", ");
    let schemes = Scheme::ALL.map(Scheme::name).join(", ");
    let kernel = match Signer::together() {
        Some(Signer::TOGETHER_MAX) => {
            "RSA-1024 to RSA-4096, up to four at a time in eight lanes of AVX-512 IFMA"
        }
        Some(_) => "RSA-1024 to RSA-4096, up to two at a time in four lanes of AVX2 and FMA",
        None => "RSA-2048 to RSA-4096, one at a time by ring (this processor has no AVX2 and FMA)",
    };
    let exchanges = match Exchanger::has_lanes() {
        true => "up to four at a time in eight lanes of AVX-512 IFMA",
        false => "one at a time by ring (this processor has no AVX-512 IFMA)",
    };
    let p256 = match EcdsaSigner::has_lanes() {
        true => "three to eight at a time in lanes of AVX-512 IFMA, fewer by ring",
        false => "one at a time by ring (this processor has no AVX-512 IFMA)",
    };
    Device {
        name: "software".into(),
        does: vec![
            format!("compress, decompress: {codecs}"),
            format!("check: {checksums}"),
            format!("sign with {kernel}: {schemes}"),
            format!("exchange keys by X25519, {exchanges}"),
            format!("sign with P-256, {p256}"),
        ],
        state: State::Used,
    }
}

//! Makes signatures: in lanes, several at a time, where the processor has them, else by `ring`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring::rand::SystemRandom;
use zeroize::Zeroizing;

use super::blinding::Blinding;
use super::encode::{Salts, encode};
use super::key::PrivateKey;
use super::lane_key::LaneKey;
use super::montgomery::Unit;
use super::private::{self, Batch, Input, SIGNATURES_MAX};
use super::{SIGNATURE_LEN_BYTES_MAX, Scheme};
use crate::error::Error;

/// Keys whose blinding is kept. Who uses more pays for drawing it anew.
const BLINDINGS_MAX: usize = 1024;

/// Batches of a size that are kept: of the own work in hand, and of another core's.
const IDLE_MAX: usize = 2;

/// What one core needs to sign.
pub(crate) struct Signer {
    random: SystemRandom,
    salts: Salts,
    /// Batches that nobody uses right now, by the length of the modulus and width.
    idle: Vec<(usize, bool, Box<dyn Batch>)>,
    /// By key, and when it was put here: of too many the oldest goes.
    blindings: HashMap<u64, (Blinding, u64)>,
    /// Counts what was put there.
    kept: u64,
    blindings_max: usize,
}

/// A signature to be made in lanes.
pub(crate) struct Encoded {
    pub(crate) key: Arc<PrivateKey>,
    /// The encoded message, as long as the modulus.
    pub(crate) number: Vec<u8>,
}

/// A batch in hand.
pub(crate) struct Running {
    signatures: Vec<Encoded>,
    wide: bool,
    batch: Box<dyn Batch>,
    /// The keys' of the signatures, each once.
    ids: Vec<u64>,
    /// Of each of those. Drawn one by one, and then used at once: nobody takes them away in between.
    blindings: Vec<Blinding>,
    started: bool,
}

impl Signer {
    /// The most signatures that go together, on any processor.
    pub(crate) const TOGETHER_MAX: usize = SIGNATURES_MAX;

    pub(crate) fn new() -> Self {
        Self {
            random: SystemRandom::new(),
            salts: Salts::new(),
            idle: Vec::new(),
            blindings: HashMap::new(),
            kept: 0,
            blindings_max: BLINDINGS_MAX,
        }
    }

    /// How many signatures go together on this processor, if it has lanes for them.
    pub(crate) fn together() -> Option<usize> {
        Unit::here().map(|unit| match unit {
            Unit::Integers => SIGNATURES_MAX,
            Unit::Doubles => SIGNATURES_MAX / 2,
        })
    }

    /// Whether lanes are the faster way for one signature too: on Zen 4 0.5 ms, `ring` 0.56 ms; in lanes of
    /// doubles on Zen 3 1.2 ms, `ring` 0.76 ms.
    pub(crate) fn is_for_one() -> bool {
        Unit::here() == Some(Unit::Integers)
    }

    /// Encodes a message for [`start`](Self::start); fails for a key that has no lanes.
    pub(crate) fn encode(
        &mut self,
        key: &Arc<PrivateKey>,
        scheme: Scheme,
        message: &[u8],
    ) -> Result<Encoded, Error> {
        if key.lanes().is_none() {
            return Err(Error::NoDevice);
        }
        let mut number = vec![0; key.modulus_len_bytes()];
        encode(scheme, message, &mut self.salts, &mut number)?;
        Ok(Encoded { key: Arc::clone(key), number })
    }

    /// Takes a number for [`start`](Self::start) that is raised as it is.
    pub(crate) fn take(key: &Arc<PrivateKey>, number: &[u8]) -> Result<Encoded, Error> {
        if number.len() != key.modulus_len_bytes() || number >= key.public().modulus() {
            return Err(Error::NotInRange);
        }
        if key.lanes().is_none() {
            return Err(Error::NoDevice);
        }
        Ok(Encoded { key: Arc::clone(key), number: number.to_vec() })
    }

    /// Takes up signatures with keys of one size, [`together`](Self::together) at most.
    pub(crate) fn start(&mut self, signatures: Vec<Encoded>) -> Result<Running, Error> {
        let k = signatures[0].key.modulus_len_bytes();
        let wide = signatures.len() > SIGNATURES_MAX / 2;
        let place = self.idle.iter().position(|(len, width, _)| (*len, *width) == (k, wide));
        let batch = match place {
            Some(place) => self.idle.swap_remove(place).2,
            None => private::batch(k, wide).ok_or(Error::NoDevice)?,
        };
        let mut ids: Vec<u64> = Vec::with_capacity(SIGNATURES_MAX);
        for signature in &signatures {
            let id = lanes_of(&signature.key).id;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let blindings = Vec::with_capacity(ids.len());
        Ok(Running { signatures, wide, batch, ids, blindings, started: false })
    }

    /// Goes on for a unit: about 50 us, or the drawing of one key's blinding, which takes one
    /// inversion modulo n (0.2 ms for 1024 bits, 1 ms for 4096) and comes at a key's first use and
    /// every 256th. True: it is to be finished.
    pub(crate) fn step(&mut self, running: &mut Running) -> Result<bool, Error> {
        if running.started {
            return Ok(running.batch.step());
        }
        let Running { signatures, batch, ids, blindings, .. } = running;
        while let Some(id) = ids.get(blindings.len()) {
            let mut keys = signatures.iter().map(|signature| lanes_of(&signature.key));
            let key = keys.find(|key| key.id == *id).expect("the ids are those of the keys");
            let kept = self.blindings.remove(id).map(|(blinding, _)| blinding);
            // Enough for the whole batch, should all be of this key.
            if let Some(good) = kept.filter(|blinding| blinding.is_good_for(4, key)) {
                blindings.push(good);
                continue;
            }
            blindings.push(batch.draw_blinding(key, &mut self.salts)?);
            return Ok(false);
        }
        let place = |id| ids.iter().position(|other| *other == id).expect("as above");
        let which: Vec<_> =
            signatures.iter().map(|signature| place(lanes_of(&signature.key).id)).collect();
        let inputs: Vec<_> = signatures
            .iter()
            .map(|signature| Input { key: Arc::clone(&signature.key), number: &signature.number })
            .collect();
        batch.start(&inputs, blindings, &which);
        running.started = true;
        for (id, blinding) in running.ids.drain(..).zip(running.blindings.drain(..)) {
            self.kept += 1;
            self.blindings.insert(id, (blinding, self.kept));
        }
        while self.blindings.len() > self.blindings_max
            && let Some(id) = self.oldest()
        {
            self.blindings.remove(&id);
        }
        Ok(false)
    }

    fn oldest(&self) -> Option<u64> {
        self.blindings.iter().min_by_key(|(_, (_, kept))| *kept).map(|(id, _)| *id)
    }

    /// Writes the signatures, verified. One that came out wrong is not written, and its key's
    /// blinding is drawn anew, on every core: another may have begun it.
    pub(crate) fn finish(
        &mut self,
        mut running: Running,
        targets: &mut [&mut [u8]],
    ) -> [Result<(), Error>; SIGNATURES_MAX] {
        let ends = running.batch.finish(targets);
        for (signature, end) in running.signatures.iter().zip(&ends) {
            if end.is_err() {
                lanes_of(&signature.key).faults.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (k, wide) = (running.signatures[0].key.modulus_len_bytes(), running.wide);
        // It may have been begun by another core, which has one less now and will make another.
        if self.idle.iter().filter(|(len, width, _)| (*len, *width) == (k, wide)).count() < IDLE_MAX
        {
            self.idle.push((k, wide, running.batch));
        }
        ends
    }

    /// Makes a signature with a key as it will be made later; each is verified. A key that only
    /// devices work with is not tried.
    pub(crate) fn try_out(&mut self, key: &Arc<PrivateKey>) -> Result<(), Error> {
        let mut room = [0; SIGNATURE_LEN_BYTES_MAX];
        let target = &mut room[..key.modulus_len_bytes()];
        if key.lanes().is_none() {
            return match key.pair() {
                Some(_) => self.sign_alone(key, Scheme::Pkcs1Sha256, &[], target).map(drop),
                None => Ok(()),
            };
        }
        let encoded = self.encode(key, Scheme::Pkcs1Sha256, &[])?;
        let mut running = self.start(vec![encoded])?;
        while !self.step(&mut running)? {}
        let [end, ..] = self.finish(running, &mut [target]);
        end
    }

    /// Makes one signature by `ring`: constant time, and verified with the public key before it is
    /// handed out (ring's `rsa/keypair.rs`).
    pub(crate) fn sign_alone(
        &self,
        key: &PrivateKey,
        scheme: Scheme,
        message: &[u8],
        target: &mut [u8],
    ) -> Result<usize, Error> {
        let pair = key.pair().ok_or(Error::NoDevice)?;
        let made = pair.sign(scheme.encoding(), &self.random, message, target);
        made.map(|()| target.len()).map_err(|_| Error::Sign)
    }
}

/// A key's form for lanes.
fn lanes_of(key: &PrivateKey) -> &LaneKey {
    key.lanes().expect("only keys for lanes are encoded")
}

/// Wiped: they are messages of others, and with PSS have secret salts.
impl Drop for Encoded {
    fn drop(&mut self) {
        drop(Zeroizing::new(std::mem::take(&mut self.number)));
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::PrivatePkcs8KeyDer;

    use super::*;

    /// Another each time, as far as its blinding goes.
    fn key() -> Arc<PrivateKey> {
        let der = include_bytes!("../backend/conformance_key.der").as_slice();
        Arc::new(PrivateKey::from_der(&PrivatePkcs8KeyDer::from(der).into()).expect("a good key"))
    }

    #[test]
    fn a_batch_may_have_more_keys_than_blindings_are_kept() {
        let Some(together) = Signer::together() else {
            warpcore_need::skipped("this processor has no lanes");
            return;
        };
        let mut signer = Signer::new();
        signer.blindings_max = 1;
        for _ in 0..2 {
            let keys: Vec<_> = (0..together).map(|_| key()).collect();
            let encode = |key| signer.encode(key, Scheme::Pkcs1Sha256, b"message");
            let encoded = keys.iter().map(encode).collect::<Result<_, _>>().expect("for lanes");
            let mut running = signer.start(encoded).expect("lanes");
            let ended = (0..10_000).any(|_| signer.step(&mut running).expect("random numbers"));
            assert!(ended, "it draws for ever");
            let mut rooms = vec![[0; 256]; together];
            let mut targets: Vec<_> = rooms.iter_mut().map(|room| &mut room[..]).collect();
            let ends = signer.finish(running, &mut targets);
            assert!(ends[..together].iter().all(Result::is_ok), "{ends:?}");
            assert_eq!(signer.blindings.len(), 1);
        }
    }

    /// One core begins, another ends, and has none of it left.
    #[test]
    fn what_others_have_begun_does_not_pile_up() {
        if Signer::together().is_none() {
            warpcore_need::skipped("this processor has no lanes");
            return;
        }
        let key = key();
        let (mut begins, mut ends) = (Signer::new(), Signer::new());
        for _ in 0..10 {
            let encoded = begins.encode(&key, Scheme::Pkcs1Sha256, b"message").expect("for lanes");
            let mut running = begins.start(vec![encoded]).expect("lanes");
            while !begins.step(&mut running).expect("random numbers") {}
            let [end, ..] = ends.finish(running, &mut [&mut [0; 256]]);
            end.expect("signs");
        }
        assert_eq!((begins.idle.len(), ends.idle.len()), (0, IDLE_MAX));
    }

    /// Pairs that led to a wrong signature are on the core that has begun it.
    #[test]
    fn a_fault_is_the_end_of_a_keys_blinding_everywhere() {
        if Signer::together().is_none() {
            warpcore_need::skipped("this processor has no lanes");
            return;
        }
        let key = key();
        let mut signer = Signer::new();
        signer.try_out(&key).expect("signs");
        let is_good = |signer: &Signer| {
            let (blinding, _) = &signer.blindings[&lanes_of(&key).id];
            blinding.is_good_for(1, lanes_of(&key))
        };
        assert!(is_good(&signer));
        lanes_of(&key).faults.fetch_add(1, Ordering::Relaxed);
        assert!(!is_good(&signer));
        signer.try_out(&key).expect("signs");
        assert!(is_good(&signer));
    }

    #[test]
    fn the_oldest_blinding_goes() {
        let Some(_) = Signer::together() else {
            warpcore_need::skipped("this processor has no lanes");
            return;
        };
        let mut signer = Signer::new();
        signer.blindings_max = 2;
        let [often, once, last] = [key(), key(), key()];
        for key in [&often, &once, &often, &last] {
            signer.try_out(key).expect("signs");
        }
        let is_kept = |key: &PrivateKey| signer.blindings.contains_key(&lanes_of(key).id);
        assert_eq!([&often, &once, &last].map(|key| is_kept(key)), [true, false, true]);
    }
}

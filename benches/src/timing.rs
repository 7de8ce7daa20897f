//! Does the time of a kernel tell of its secrets? By Welch's t test of two classes (Reparaz, Balasch,
//! Verbauwhede: Dude, is my code constant time?, 2017): secrets and inputs that are the same each
//! time, and random ones, in random order. |t| below 4.5 is no evidence that they differ.
//!
//! All of it is computed in the same way: both classes are copied from pools of equal size, or brought
//! near before the time is taken, so that caches see no difference. Interruptions only add time: the test is repeated without the slowest
//! samples, and the largest |t| is what counts.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use warpcore_offload::{PrivateKey, kernels};

use crate::corpus::Random;
use crate::harness::{Bench, Effort, Unit};
use crate::keys::generate;

/// Secrets of a class.
const POOL: usize = 32;

pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    let samples = match bench.effort() {
        Effort::Quick => 20_000,
        Effort::Full => 1_000_000,
    };
    let mut random = Random::new(3);

    let keys = (0..POOL).map(|_| generate("RSA", "rsa_keygen_bits:1024"));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    // A key of its own in each place, though they are all alike in the first class.
    let pool = |class: usize| {
        let read = |at: usize| PrivateKey::from_der(&keys[class * at].clone_key().into());
        let pool = (0..POOL).map(|at| read(at).map(Arc::new)).collect::<Result<Vec<_>, _>>();
        pool.map_err(|error| error.to_string())
    };
    let pools = [pool(0)?, pool(1)?];
    let numbers: [Vec<Vec<u8>>; 2] = [0, 1].map(|class| {
        let number = |at: usize| {
            let mut number = Random::new((class * at) as u64).bytes(128);
            number[0] = 0;
            number
        };
        (0..POOL).map(number).collect()
    });
    let mut power = kernels::RsaPower::new(&pools[0][0])
        .ok_or("this processor has no AVX2 and FMA: there is no kernel of ours to test")?;
    let t = test(samples, &mut random, |class, at, time| {
        power.put(&pools[class][at], &numbers[class][at]);
        // Keys lie where they lie: once to have this one near, whichever it is.
        power.run();
        time(&mut || power.run());
    });
    bench.file("rsa-1024 power", Unit::Deviations, t);
    if kernels::multiply_add_ns().is_none() {
        bench.note("without X25519 and P-256: this processor has no AVX-512 IFMA");
        return conclude(bench, samples);
    }

    let numbers = |random: &mut Random| -> [Vec<[[u8; 32]; 8]>; 2] {
        let mut drawn = || {
            let mut numbers = [[0; 32]; 8];
            numbers.iter_mut().for_each(|number| number.copy_from_slice(&random.bytes(32)));
            // Below the order of P-256, and never 0.
            numbers.iter_mut().for_each(|number| number[0] &= 0x7f);
            numbers
        };
        let fixed = drawn();
        [vec![fixed; POOL], (0..POOL).map(|_| drawn()).collect()]
    };
    let (scalars, points) = (numbers(&mut random), numbers(&mut random));
    let (mut scalar, mut point) = (scalars[0][0], points[0][0]);
    let t = test(samples, &mut random, |class, at, time| {
        (scalar, point) = (scalars[class][at], points[class][at]);
        time(&mut || {
            black_box(kernels::x25519(&scalar, &point));
        });
    });
    bench.file("x25519", Unit::Deviations, t);

    let (secrets, hashes) = (numbers(&mut random), numbers(&mut random));
    let (mut secret, mut hash) = (secrets[0][0], hashes[0][0]);
    let t = test(samples, &mut random, |class, at, time| {
        (scalar, secret, hash) = (scalars[class][at], secrets[class][at], hashes[class][at]);
        time(&mut || {
            black_box(kernels::p256(&scalar, &secret, &hash));
        });
    });
    bench.file("p256", Unit::Deviations, t);
    conclude(bench, samples)
}

fn conclude(bench: &mut Bench, samples: usize) -> Result<(), String> {
    bench.note(format!("{samples} samples; below 4.5 there is no evidence of a difference"));
    Ok(())
}

/// Takes samples: `sample(class, place in the pool, time)` calls `time` with what is measured.
fn test(
    samples: usize,
    random: &mut Random,
    mut sample: impl FnMut(usize, usize, &mut dyn FnMut(&mut dyn FnMut())),
) -> f64 {
    let mut times = [Vec::with_capacity(samples), Vec::with_capacity(samples)];
    for round in 0..samples {
        let (class, at) = (random.below(2), random.below(POOL));
        let mut elapsed = 0.0;
        sample(class, at, &mut |work| {
            let started = Instant::now();
            work();
            elapsed = started.elapsed().as_secs_f64() * 1e9;
        });
        // The first ones warm up.
        if round >= samples / 100 {
            times[class].push(elapsed);
        }
    }
    let mut all: Vec<f64> = times.concat();
    all.sort_by(f64::total_cmp);
    [100, 99, 95, 90, 75, 50]
        .map(|percent| {
            let limit = all[(all.len() * percent / 100).min(all.len() - 1)];
            let [fixed, mixed] = [0, 1].map(|class| Moments::of(&times[class], limit));
            ((fixed.mean - mixed.mean) / (fixed.spread + mixed.spread).sqrt()).abs()
        })
        .into_iter()
        .fold(0.0, f64::max)
}

/// Of the samples that are not above a limit.
struct Moments {
    mean: f64,
    /// Variance of the mean.
    spread: f64,
}

impl Moments {
    fn of(samples: &[f64], limit: f64) -> Self {
        let kept = || samples.iter().filter(|sample| **sample <= limit);
        let count = kept().count() as f64;
        let mean = kept().sum::<f64>() / count;
        let variance = kept().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Self { mean, spread: variance / count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_seen() {
        let mut random = Random::new(1);
        let spin = |rounds: usize| (0..rounds).fold(0_u64, |sum, at| black_box(sum ^ at as u64));
        let t = test(4000, &mut random, |class, _, time| {
            time(&mut || {
                black_box(spin(2000 + 400 * class));
            });
        });
        assert!(t > 4.5, "{t}");
    }
}

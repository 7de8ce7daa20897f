//! Is it worth a try? A look at a sample, before compression whose result must be smaller than its
//! source to be of use.
//!
//! In random bytes, as encrypted and already compressed data are, two bytes drawn from anywhere are
//! equal once in 256 times, and so are two differences of neighbours. More often, and the bytes or
//! their steps can be stored shorter. Four hundred bytes tell: the number of equal pairs in them is
//! 287 with a deviation of 17. What repeats only as a whole from far away is missed, and what could
//! be stored a twentieth shorter may be.

/// Bytes looked at, in runs that lie evenly in the source.
const SAMPLE: usize = RUNS * RUN;
const RUNS: usize = 6;
const RUN: usize = 64;

/// Sources shorter than this are not worth the look.
const SOURCE_MIN: usize = 8 * SAMPLE;

/// Equal pairs, each counted twice, in random bytes, and more than four deviations more.
const PAIRS_MAX: usize = SAMPLE * (SAMPLE - 1) / 256 * 9 / 7;

/// Whether compressing is in vain.
pub(crate) fn looks_random(source: &[u8]) -> bool {
    if source.len() < SOURCE_MIN {
        return false;
    }
    // What follows each other is counted in different tables: it does not wait for each other.
    let mut bytes = [[0_u16; 256]; 2];
    let mut steps = [[0_u16; 256]; 2];
    let stride = (source.len() - RUN - 1) / (RUNS - 1);
    for run in 0..RUNS {
        let run = &source[run * stride..][..=RUN];
        for at in (0..RUN).step_by(2) {
            let [a, b, c] = [run[at], run[at + 1], run[at + 2]];
            bytes[0][usize::from(a)] += 1;
            bytes[1][usize::from(b)] += 1;
            steps[0][usize::from(b.wrapping_sub(a))] += 1;
            steps[1][usize::from(c.wrapping_sub(b))] += 1;
        }
    }
    [bytes, steps].iter().all(|[even, odd]| {
        let pairs = even.iter().zip(odd).map(|(even, odd)| {
            let count = u32::from(even + odd);
            count * count.wrapping_sub(1)
        });
        pairs.fold(0, u32::wrapping_add) as usize <= PAIRS_MAX
    })
}

#[cfg(test)]
mod tests {
    use ring::rand::{SecureRandom, SystemRandom};

    use super::*;

    #[test]
    fn what_is_random_is_told_from_what_is_not() {
        let mut random = vec![0; 65_536];
        for _ in 0..100 {
            SystemRandom::new().fill(&mut random).expect("random numbers");
            assert!(looks_random(&random), "one time in 100,000 it does not");
        }
        let text = b"The quick brown fox jumps over the lazy dog. ".repeat(2000);
        let counter: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        let rule: Vec<u8> = (0..=255).cycle().take(65_536).collect();
        let digits: Vec<u8> = random.iter().map(|byte| byte % 64).collect();
        let ramp: Vec<u8> = (0..65_536_u32).map(|at| (at * at / 7000).to_le_bytes()[0]).collect();
        let half: Vec<u8> = random.iter().map(|byte| byte & 0x7f).collect();
        for source in [&text, &counter, &rule, &digits, &half, &ramp, &vec![0; 65_536]] {
            assert!(!looks_random(source));
        }
        assert!(!looks_random(&random[..100]) && !looks_random(&[]));
    }
}

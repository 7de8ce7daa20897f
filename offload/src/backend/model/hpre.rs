//! The modelled HPRE engine: powers of numbers, by num-bigint.

use num_bigint::BigUint;

use super::fault::Fault;
use super::qm::{Sqe, Write, read_memory};
const CONTROL: usize = 0;
const KEY_LEN: usize = 1;
const KEY: usize = 2;
const INPUT: usize = 4;
const OUTPUT: usize = 6;

const MODEXP: u32 = 0;
const MODEXP_CRT: u32 = 1;

const DONE: u32 = 3 << 30;

/// Error numbers of ours; the device's are not public.
const BAD_LENGTH: u8 = 1;
const BAD_NUMBER: u8 = 2;
const BAD_ALGORITHM: u8 = 3;

/// Works on a descriptor: what goes where.
pub(super) fn work(sqe: &mut Sqe, fault: Option<Fault>) -> Vec<Write> {
    let result = match fault {
        Some(Fault::Status(error)) => Err(error),
        _ => compute(sqe),
    };
    match result {
        Ok(mut bytes) => {
            if fault == Some(Fault::Wrong) {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
            sqe[CONTROL] |= DONE;
            vec![Write { address: address(sqe, OUTPUT), bytes }]
        }
        Err(error) => {
            sqe[CONTROL] |= DONE | u32::from(error) << 5;
            Vec::new()
        }
    }
}

pub(super) fn targets(sqe: &Sqe) -> Vec<(u64, usize)> {
    vec![(address(sqe, OUTPUT), key_len(sqe))]
}

fn compute(sqe: &Sqe) -> Result<Vec<u8>, u8> {
    let k = key_len(sqe);
    if ![128, 256, 384, 512].contains(&k) {
        return Err(BAD_LENGTH);
    }
    let input = number(sqe, INPUT, 0, k);
    let output = match sqe[CONTROL] & 0x1f {
        MODEXP => {
            let exponent = number(sqe, KEY, 0, k);
            let modulus = number(sqe, KEY, k, k);
            if input >= modulus {
                return Err(BAD_NUMBER);
            }
            input.modpow(&exponent, &modulus)
        }
        MODEXP_CRT => {
            // RFC 8017, section 5.1.2, step 2b; Garner's formula.
            let h = k / 2;
            let [dq, dp, q, p, q_inverse] =
                [0, 1, 2, 3, 4].map(|field| number(sqe, KEY, field * h, h));
            let zero = BigUint::ZERO;
            if p == zero || q == zero || input >= &p * &q {
                return Err(BAD_NUMBER);
            }
            let first = input.modpow(&dp, &p);
            let second = input.modpow(&dq, &q);
            let difference = (first + &p - &second % &p) * q_inverse % &p;
            second + q * difference
        }
        _ => return Err(BAD_ALGORITHM),
    };
    let bytes = output.to_bytes_be();
    let padding = k.checked_sub(bytes.len()).ok_or(BAD_NUMBER)?;
    Ok([vec![0; padding], bytes].concat())
}

fn key_len(sqe: &Sqe) -> usize {
    (usize::try_from(sqe[KEY_LEN] & 0xff).expect("a byte") + 1) * 8
}

fn number(sqe: &Sqe, place: usize, start: usize, len_bytes: usize) -> BigUint {
    let start = address(sqe, place) + start as u64;
    // SAFETY: who submitted the descriptor keeps key and input until it is completed or the queue
    // is stopped, which waits for us.
    BigUint::from_bytes_be(&unsafe { read_memory(start, len_bytes) })
}

fn address(sqe: &Sqe, place: usize) -> u64 {
    u64::from(sqe[place]) | u64::from(sqe[place + 1]) << 32
}

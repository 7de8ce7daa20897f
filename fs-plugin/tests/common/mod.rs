//! Random operations on contents, and the vector they are compared with.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use proptest::prelude::*;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use warpcore_fs::Error;
use warpcore_fs::store::contents::{Contents, Options};
use warpcore_fs::store::medium::CrashMedium;
use warpcore_offload::{Codec, Queue};

pub type File = Contents<Rc<CrashMedium>>;

/// Small chunks, so that few bytes make many of them.
pub const CHUNK: usize = 4096;

pub fn options() -> Options {
    // And checkpoints often, of which little stays in memory.
    Options { chunk_len_log2: 12, records_max: 8, pieces_max: 4, ..Options::default() }
}

/// Codecs that a mount can be told to use.
pub fn codecs() -> impl Strategy<Value = Codec> {
    prop_oneof![2 => Just(Codec::Zstd), 1 => Just(Codec::Deflate)]
}

#[derive(Debug, Clone)]
pub enum Step {
    Append {
        len: usize,
        data: Data,
    },
    Commit,
    CommitInOrder,
    Compact,
    /// From another file of this and so many chunks, with a hole and a gap in each five.
    Copy {
        data: Data,
        chunks: usize,
        from: usize,
        to: usize,
        len: usize,
    },
    /// From another place of the same file.
    CopyWithin {
        from: usize,
        to: usize,
        len: usize,
    },
    PunchHole {
        offset: usize,
        len: usize,
    },
    Read {
        offset: usize,
        len: usize,
    },
    Reopen {
        orderly: bool,
        keep_attribute: bool,
    },
    SetSize(usize),
    Sync,
    Write {
        offset: usize,
        len: usize,
        data: Data,
    },
}

/// Kinds of bytes: what compresses, what does not, and nothing.
#[derive(Debug, Clone, Copy)]
pub enum Data {
    Noise(u64),
    Text(u8),
    Zeros,
}

impl Data {
    pub fn bytes(self, len: usize) -> Vec<u8> {
        match self {
            Self::Noise(seed) => {
                let mut x = seed | 1;
                let next = move || {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    x.to_le_bytes()[3]
                };
                std::iter::repeat_with(next).take(len).collect()
            }
            Self::Text(byte) => {
                (0..len).map(|i| if i % 7 == 0 { byte } else { b"warpcore"[i % 8] }).collect()
            }
            Self::Zeros => vec![0; len],
        }
    }
}

fn data() -> impl Strategy<Value = Data> {
    prop_oneof![
        1 => any::<u64>().prop_map(Data::Noise),
        3 => any::<u8>().prop_map(Data::Text),
        1 => Just(Data::Zeros),
    ]
}

/// On files of a few chunks.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step_within(6), 0..40)
}

/// On files of more chunks than a record has extents and a leaf has pieces, several times.
pub fn long_steps() -> impl Strategy<Value = Vec<Step>> {
    const CHUNKS: usize = 400;
    // Chunks as they are stored.
    let at = || (0..CHUNKS).prop_map(|n| n * CHUNK);
    let copy = (data(), at(), at(), at()).prop_map(|(data, from, to, len)| Step::Copy {
        data,
        chunks: CHUNKS,
        from,
        to,
        len,
    });
    let step = prop_oneof![3 => step_within(CHUNKS), 1 => copy, 1 => Just(Step::Sync)];
    prop::collection::vec(step, 0..40)
}

fn step_within(chunks: usize) -> impl Strategy<Value = Step> {
    // Offsets near chunk borders are the interesting ones.
    let offset = prop_oneof![0..chunks * CHUNK, (0..chunks).prop_map(|n| n * CHUNK), Just(0)];
    let len = prop_oneof![1..200_usize, 1..chunks / 2 * CHUNK, Just(CHUNK)];
    prop_oneof![
        4 => (len.clone(), data()).prop_map(|(len, data)| Step::Append { len, data }),
        3 => (offset.clone(), len.clone(), data())
            .prop_map(|(offset, len, data)| Step::Write { offset, len, data }),
        2 => Just(Step::Commit),
        1 => Just(Step::CommitInOrder),
        1 => Just(Step::Compact),
        1 => Just(Step::Sync),
        2 => (offset.clone(), len.clone()).prop_map(|(offset, len)| Step::Read { offset, len }),
        1 => (data(), offset.clone(), offset.clone(), len.clone())
            .prop_map(move |(data, from, to, len)| {
                Step::Copy { data, chunks: chunks.next_multiple_of(5) - 5, from, to, len }
            }),
        1 => (offset.clone(), offset.clone(), len.clone())
            .prop_map(|(from, to, len)| Step::CopyWithin { from, to, len }),
        1 => (offset.clone(), len)
            .prop_map(|(offset, len)| Step::PunchHole { offset, len }),
        1 => offset.prop_map(Step::SetSize),
        1 => any::<bool>().prop_map(|keep| Step::Reopen { orderly: true, keep_attribute: keep }),
    ]
}

impl Step {
    /// The bytes that it writes, of a file of this length.
    pub fn writes(&self, file_len: usize) -> Range<usize> {
        match *self {
            Self::Append { len, .. } => file_len..file_len + len,
            Self::Write { offset, len, .. } => offset.min(file_len)..offset + len,
            Self::Copy { to, len, .. } | Self::CopyWithin { to, len, .. } => {
                to.min(file_len)..to + len
            }
            Self::PunchHole { offset, len } => offset..offset + len,
            Self::SetSize(size) => size.min(file_len)..size.max(file_len),
            Self::Commit
            | Self::CommitInOrder
            | Self::Compact
            | Self::Read { .. }
            | Self::Reopen { .. }
            | Self::Sync => 0..0,
        }
    }
}

/// Does a step on both and compares what is read.
pub fn apply(queue: &Queue, contents: &mut File, model: &mut Vec<u8>, step: &Step) {
    try_apply(queue, contents, model, step).expect("nothing fails");
}

/// As [`apply`]; the model stays as it was when it fails.
pub fn try_apply(
    queue: &Queue,
    contents: &mut File,
    model: &mut Vec<u8>,
    step: &Step,
) -> Result<(), Error> {
    match *step {
        Step::Append { len, data } => {
            let (offset, bytes) = (model.len() as u64, data.bytes(len));
            run(queue, contents.write(queue, offset, &bytes))?;
            model.extend(bytes);
        }
        Step::Commit => run(queue, contents.commit(queue))?,
        Step::CommitInOrder => run(queue, contents.commit_in_order(queue))?,
        Step::Compact => {
            run(queue, contents.compact(queue))?;
        }
        Step::Copy { data, chunks, from, to, len } => {
            let mut source = data.bytes(chunks * CHUNK + 100);
            let mut other = Contents::create(Rc::default(), options()).expect("creates");
            for start in (0..chunks * CHUNK).step_by(5 * CHUNK) {
                // Stored in chunks: a hole that is punched, and a gap that was never written.
                let [hole, gap] = [1, 3].map(|n| start + n * CHUNK..start + (n + 1) * CHUNK);
                let end = source.len().min(start + 5 * CHUNK);
                let end = if end + CHUNK > source.len() { source.len() } else { end };
                run(queue, other.write(queue, start as u64, &source[start..gap.start]))
                    .expect("writes");
                run(queue, other.punch_hole(hole.start as u64..hole.end as u64)).expect("punches");
                run(queue, other.write(queue, gap.end as u64, &source[gap.end..end]))
                    .expect("writes");
                source[hole].fill(0);
                source[gap].fill(0);
            }
            let mut left = len.min(source.len().saturating_sub(from));
            let (mut from, mut to) = (from, to);
            // Less than that, if something fails behind it.
            while left > 0 {
                let copied =
                    contents.copy_from(queue, &mut other, from as u64, to as u64, left as u64);
                let copied = usize::try_from(run(queue, copied)?).expect("small");
                model.resize(model.len().max(to + copied), 0);
                model[to..to + copied].copy_from_slice(&source[from..from + copied]);
                assert!(copied > 0, "nothing, and no error");
                (from, to, left) = (from + copied, to + copied, left - copied);
            }
        }
        Step::CopyWithin { from, to, len } => {
            // What overlaps the kernel refuses.
            let mut left = len.min(from.abs_diff(to)).min(model.len().saturating_sub(from));
            let (mut from, mut to) = (from, to);
            while left > 0 {
                let copied = contents.copy_within(queue, from as u64, to as u64, left as u64);
                let copied = usize::try_from(run(queue, copied)?).expect("small");
                model.resize(model.len().max(to + copied), 0);
                model.copy_within(from..from + copied, to);
                assert!(copied > 0, "nothing, and no error");
                (from, to, left) = (from + copied, to + copied, left - copied);
            }
        }
        Step::PunchHole { offset, len } => {
            let range = offset as u64..(offset + len) as u64;
            run(queue, contents.punch_hole(range))?;
            let end = model.len().min(offset + len);
            model[offset.min(end)..end].fill(0);
        }
        Step::Read { offset, len } => {
            let bytes = read(queue, contents, offset as u64, len)?;
            let from = offset.min(model.len());
            let to = (offset + len).min(model.len());
            assert!(bytes == model[from..to], "other bytes at {offset}+{len}");
        }
        Step::Reopen { .. } => unreachable!("the caller's"),
        Step::SetSize(size) => {
            run(queue, contents.set_size(size as u64))?;
            model.resize(size, 0);
        }
        Step::Sync => run(queue, contents.sync(queue))?,
        Step::Write { offset, len, data } => {
            let bytes = data.bytes(len);
            run(queue, contents.write(queue, offset as u64, &bytes))?;
            if model.len() < offset + len {
                model.resize(offset + len, 0);
            }
            model[offset..offset + len].copy_from_slice(&bytes);
        }
    }
    Ok(())
}

/// Up to `len` bytes at `offset`.
pub fn read(queue: &Queue, contents: &File, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xAA; len];
    let read = run(queue, contents.read(queue, offset, &mut bytes))?;
    bytes.truncate(read);
    Ok(bytes)
}

pub fn run<F: Future>(queue: &Queue, future: F) -> F::Output {
    queue.run(future)
}

/// Cases are multiplied by `WARPCORE_SEEDS` in long campaigns.
pub fn seeds() -> u32 {
    std::env::var("WARPCORE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

//! The modelled ZIP engine: deflate, zlib and gzip, by flate2.

use std::collections::HashMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::fault::Fault;
use super::qm::{Sqe, Write, read_memory};

const CONSUMED: usize = 0;
const PRODUCED: usize = 1;
const STATUS: usize = 3;
const INPUT_LEN: usize = 4;
const CONTROL: usize = 7;
const ALGORITHM: usize = 9;
const OUTPUT_ROOM: usize = 14;
const STATE_0: usize = 15;
const SOURCE: usize = 18;
const TARGET: usize = 20;
const MEMORY: usize = 22;
const PLAIN_LEN: usize = 30;
const CHECKSUM: usize = 31;

const GREW: u32 = 0x0d;
const TARGET_TOO_SMALL: u32 = 0x0e;
const CHECKSUM_WRONG: u32 = 0x10;
const END: u32 = 0x13;
/// Numbers of ours; the device's are not public.
const BAD_DATA: u32 = 0x07;
const BAD_DESCRIPTOR: u32 = 0x08;
const LAST_BLOCK: u32 = 1 << 8;

const OUTPUT_FULL: u32 = 1;

const DIRECTION_DECOMPRESS: u16 = 1;

/// The most bytes of one descriptor.
const LEN_BYTES_MAX: usize = 8 << 20;
/// Streams remembered; who starts more loses the oldest.
const STREAMS_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Deflate,
    Gzip,
    Zlib,
}

#[derive(Default)]
pub(super) struct Zip {
    compress: Option<Compress>,
    /// By the number that stands in the stream's memory.
    streams: HashMap<u64, Stream>,
    stream_last: u64,
}

enum Stream {
    Compress(Compress),
    Decompress { raw: Decompress, check: Check, trailer: Option<Vec<u8>> },
}

/// Checksum and length of plain bytes.
#[derive(Clone, Copy)]
struct Check {
    algorithm: Algorithm,
    value: u32,
    len: u32,
}

/// What came of a descriptor.
struct Outcome {
    status: u32,
    consumed: usize,
    output: Vec<u8>,
    last_block: bool,
    state: u32,
    check: Check,
    /// The number to be put into the stream's memory.
    stream: Option<u64>,
}

impl Zip {
    /// Works on a descriptor of a queue for `direction`: what goes where.
    pub(super) fn work(
        &mut self,
        direction: u16,
        sqe: &mut Sqe,
        fault: Option<Fault>,
    ) -> Vec<Write> {
        if let Some(Fault::Status(status)) = fault {
            sqe[STATUS] = status.into();
            return Vec::new();
        }
        let done = self.transform(direction, sqe);
        let mut outcome = match done {
            Ok(outcome) => outcome,
            Err(status) => {
                sqe[STATUS] = status;
                return Vec::new();
            }
        };
        sqe[CONSUMED] = word(outcome.consumed);
        sqe[PRODUCED] = word(outcome.output.len());
        sqe[STATUS] = outcome.status | if outcome.last_block { LAST_BLOCK } else { 0 };
        sqe[STATE_0] = outcome.state;
        sqe[PLAIN_LEN] = outcome.check.len;
        sqe[CHECKSUM] = outcome.check.register();
        if fault == Some(Fault::Wrong) {
            sqe[PRODUCED] = sqe[OUTPUT_ROOM] + 1;
        }
        let mut writes = Vec::new();
        let mut start = 0;
        for (address, len) in pieces(sqe, TARGET, sqe[OUTPUT_ROOM]) {
            let end = (start + len).min(outcome.output.len());
            if start < end {
                writes.push(Write { address, bytes: outcome.output[start..end].to_vec() });
            }
            start = end;
        }
        if let Some(stream) = outcome.stream.take() {
            writes.push(Write {
                address: address(sqe, MEMORY),
                bytes: stream.to_le_bytes().to_vec(),
            });
        }
        writes
    }

    fn transform(&mut self, direction: u16, sqe: &Sqe) -> Result<Outcome, u32> {
        let algorithm = match (sqe[ALGORITHM] & 0xff, sqe[CONTROL] >> 28) {
            (1, 3) => Algorithm::Deflate,
            (2, 0 | 3) => Algorithm::Zlib,
            (3, 0 | 3) => Algorithm::Gzip,
            _ => return Err(BAD_DESCRIPTOR),
        };
        let bit = |at: u32| sqe[CONTROL] >> at & 1 == 1;
        let (finish, stateful, new) = (bit(25), bit(26), bit(27));
        let (input_len, room) = (size(sqe[INPUT_LEN]), size(sqe[OUTPUT_ROOM]));
        if input_len > LEN_BYTES_MAX || room == 0 {
            return Err(BAD_DESCRIPTOR);
        }
        let mut input = Vec::with_capacity(input_len);
        for (address, len) in pieces(sqe, SOURCE, sqe[INPUT_LEN]) {
            // SAFETY: who submitted the descriptor keeps its source until it is completed or the
            // queue is stopped, which waits for us.
            input.extend_from_slice(&unsafe { read_memory(address, len) });
        }
        if input.len() != input_len {
            return Err(BAD_DESCRIPTOR);
        }
        let check = if new || !stateful {
            Check::new(algorithm)
        } else {
            Check::resume(algorithm, sqe[CHECKSUM], sqe[PLAIN_LEN])
        };
        match (direction == DIRECTION_DECOMPRESS, stateful) {
            (false, false) => self.compress(&input, room, check),
            (true, false) => decompress(&input, room, check),
            (false, true) => self.feed_compress(sqe, new, finish, &input, room, check),
            (true, true) => self.feed_decompress(sqe, new, &input, room, check),
        }
    }

    fn compress(&mut self, input: &[u8], room: usize, mut check: Check) -> Result<Outcome, u32> {
        // Kept only if it came to its end: zlib-rs 0.6.8 does not reset what did not fit.
        let mut raw =
            self.compress.take().unwrap_or_else(|| Compress::new(Compression::new(4), false));
        let mut output = vec![0; room];
        let status = raw.compress(input, &mut output, FlushCompress::Finish);
        if !matches!(status, Ok(Status::StreamEnd)) {
            return Err(TARGET_TOO_SMALL);
        }
        output.truncate(count(raw.total_out()));
        raw.reset();
        self.compress = Some(raw);
        check.update(input);
        output.extend(check.trailer());
        if output.len() > room {
            return Err(TARGET_TOO_SMALL);
        }
        Ok(Outcome {
            status: if output.len() >= input.len() { GREW } else { 0 },
            consumed: input.len(),
            output,
            last_block: true,
            state: 0,
            check,
            stream: None,
        })
    }

    fn feed_compress(
        &mut self,
        sqe: &Sqe,
        new: bool,
        finish: bool,
        input: &[u8],
        room: usize,
        mut check: Check,
    ) -> Result<Outcome, u32> {
        let number =
            self.stream(sqe, new, || Stream::Compress(Compress::new(Compression::new(4), false)))?;
        let Some(Stream::Compress(raw)) = self.streams.get_mut(&number) else {
            return Err(BAD_DESCRIPTOR);
        };
        let flush = if finish { FlushCompress::Finish } else { FlushCompress::Sync };
        let before = raw.total_out();
        let mut output = vec![0; room];
        let status = raw.compress(input, &mut output, flush).map_err(|_| BAD_DATA)?;
        output.truncate(count(raw.total_out() - before));
        check.update(input);
        if finish {
            output.extend(check.trailer());
        }
        let short = finish && status != Status::StreamEnd || !finish && output.len() == room;
        if short || output.len() > room {
            // A driver must leave room for the worst case.
            self.streams.remove(&number);
            return Err(TARGET_TOO_SMALL);
        }
        if finish {
            self.streams.remove(&number);
        }
        Ok(Outcome {
            status: if output.len() >= input.len() { GREW } else { 0 },
            consumed: input.len(),
            output,
            last_block: finish,
            state: 0,
            check,
            stream: new.then_some(number),
        })
    }

    fn feed_decompress(
        &mut self,
        sqe: &Sqe,
        new: bool,
        input: &[u8],
        room: usize,
        check: Check,
    ) -> Result<Outcome, u32> {
        let number = self.stream(sqe, new, || Stream::Decompress {
            raw: Decompress::new(false),
            check,
            trailer: None,
        })?;
        let Some(Stream::Decompress { raw, check, trailer }) = self.streams.get_mut(&number) else {
            return Err(BAD_DESCRIPTOR);
        };
        let mut output = vec![0; room];
        let (mut consumed, mut produced) = (0, 0);
        if trailer.is_none() {
            let before = (raw.total_in(), raw.total_out());
            let status =
                raw.decompress(input, &mut output, FlushDecompress::None).map_err(|_| BAD_DATA)?;
            consumed = count(raw.total_in() - before.0);
            produced = count(raw.total_out() - before.1);
            check.update(&output[..produced]);
            if status == Status::StreamEnd {
                *trailer = Some(Vec::new());
            }
        }
        output.truncate(produced);
        let mut outcome = Outcome {
            status: 0,
            consumed,
            output,
            last_block: trailer.is_some(),
            state: if produced == room { OUTPUT_FULL } else { 0 },
            check: *check,
            stream: new.then_some(number),
        };
        if let Some(trailer) = trailer {
            let expected = check.trailer();
            let missing = expected.len() - trailer.len();
            let rest = &input[consumed..];
            let taken = &rest[..missing.min(rest.len())];
            trailer.extend_from_slice(taken);
            outcome.consumed += taken.len();
            if trailer.len() == expected.len() {
                if *trailer != expected {
                    return Err(CHECKSUM_WRONG);
                }
                outcome.status = END;
                self.streams.remove(&number);
            }
        }
        Ok(outcome)
    }

    /// The number of the stream that a descriptor is of.
    fn stream(&mut self, sqe: &Sqe, new: bool, make: impl FnOnce() -> Stream) -> Result<u64, u32> {
        let memory = address(sqe, MEMORY);
        if memory == 0 {
            return Err(BAD_DESCRIPTOR);
        }
        if !new {
            // SAFETY: as for sources.
            let bytes = unsafe { read_memory(memory, 8) };
            return Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
        }
        if self.streams.len() >= STREAMS_MAX
            && let Some(oldest) = self.streams.keys().min().copied()
        {
            self.streams.remove(&oldest);
        }
        self.stream_last += 1;
        self.streams.insert(self.stream_last, make());
        Ok(self.stream_last)
    }
}

fn decompress(input: &[u8], room: usize, mut check: Check) -> Result<Outcome, u32> {
    let mut raw = Decompress::new(false);
    let mut output = vec![0; room];
    let status =
        raw.decompress(input, &mut output, FlushDecompress::Finish).map_err(|_| BAD_DATA)?;
    output.truncate(count(raw.total_out()));
    let mut consumed = count(raw.total_in());
    let ended = status == Status::StreamEnd;
    if !ended && output.len() == room {
        return Err(TARGET_TOO_SMALL);
    }
    check.update(&output);
    let expected = check.trailer();
    if ended {
        let rest = &input[consumed..];
        // One that is cut short is as wrong as another.
        if !rest.starts_with(&expected) {
            return Err(CHECKSUM_WRONG);
        }
        consumed += expected.len();
    }
    Ok(Outcome { status: 0, consumed, output, last_block: ended, state: 0, check, stream: None })
}

impl Check {
    fn new(algorithm: Algorithm) -> Self {
        let value = if algorithm == Algorithm::Zlib { 1 } else { 0 };
        Self { algorithm, value, len: 0 }
    }

    fn resume(algorithm: Algorithm, register: u32, len: u32) -> Self {
        let value = match algorithm {
            Algorithm::Gzip => (!register).reverse_bits(),
            Algorithm::Deflate | Algorithm::Zlib => register,
        };
        Self { algorithm, value, len }
    }

    /// As it stands in a descriptor.
    fn register(self) -> u32 {
        match self.algorithm {
            Algorithm::Gzip => !self.value.reverse_bits(),
            Algorithm::Deflate | Algorithm::Zlib => self.value,
        }
    }

    fn update(&mut self, plain: &[u8]) {
        self.len = self.len.wrapping_add(word(plain.len()));
        match self.algorithm {
            Algorithm::Deflate => {}
            Algorithm::Gzip => {
                let mut crc = flate2::Crc::new();
                crc.update(plain);
                let mut sum = crc32fast::Hasher::new_with_initial(self.value);
                sum.combine(&crc32fast::Hasher::new_with_initial_len(
                    crc.sum(),
                    plain.len() as u64,
                ));
                self.value = sum.finalize();
            }
            Algorithm::Zlib => {
                let (mut low, mut high) = (self.value & 0xffff, self.value >> 16);
                // RFC 1950, section 9: the plainest form, on purpose; 5,552 bytes fit 32 bits.
                for part in plain.chunks(5552) {
                    for byte in part {
                        low += u32::from(*byte);
                        high += low;
                    }
                    low %= 65521;
                    high %= 65521;
                }
                self.value = high << 16 | low;
            }
        }
    }

    fn trailer(self) -> Vec<u8> {
        match self.algorithm {
            Algorithm::Deflate => Vec::new(),
            Algorithm::Gzip => [self.value.to_le_bytes(), self.len.to_le_bytes()].concat(),
            Algorithm::Zlib => self.value.to_be_bytes().to_vec(),
        }
    }
}

/// The pieces of memory that a descriptor names, `len` bytes of them at most.
fn pieces(sqe: &Sqe, place: usize, len: u32) -> Vec<(u64, usize)> {
    let first = address(sqe, place);
    let mut left = size(len);
    if sqe[ALGORITHM] >> 8 & 0xf == 0 {
        return vec![(first, left)];
    }
    let mut pieces = Vec::new();
    let mut list = first;
    while list != 0 && left > 0 {
        // SAFETY: who submitted the descriptor keeps its lists as it keeps its buffers.
        let header = unsafe { read_memory(list, 64) };
        let here = u16::from_le_bytes([header[10], header[11]]);
        for entry in 0..u64::from(here) {
            // SAFETY: as above; the header says that the entry is there.
            let entry = unsafe { read_memory(list + 64 + entry * 32, 32) };
            let number =
                |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
            let len = size(u32::try_from(number(16) & 0xffff_ffff).expect("masked")).min(left);
            left -= len;
            pieces.push((number(0), len));
        }
        list = u64::from_le_bytes(header[..8].try_into().expect("eight bytes"));
    }
    pieces
}

/// Where a descriptor has results written to.
pub(super) fn targets(sqe: &Sqe) -> Vec<(u64, usize)> {
    let mut targets = pieces(sqe, TARGET, sqe[OUTPUT_ROOM]);
    if address(sqe, MEMORY) != 0 {
        targets.push((address(sqe, MEMORY), 8));
    }
    targets
}

fn address(sqe: &Sqe, place: usize) -> u64 {
    u64::from(sqe[place]) | u64::from(sqe[place + 1]) << 32
}

fn size(word: u32) -> usize {
    usize::try_from(word).expect("a usize has 32 bits")
}

fn word(len: usize) -> u32 {
    u32::try_from(len).expect("descriptors have 32 bits for lengths")
}

fn count(total: u64) -> usize {
    usize::try_from(total).expect("a count within a buffer")
}

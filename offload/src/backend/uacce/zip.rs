//! The ZIP engine: deflate, zlib and gzip, both ways, one-shot and in streams.
//!
//! The work is split: headers are written and skipped by the driver, deflate data and trailer by
//! the device, which also checks the trailer. The direction is the queue's, not the descriptor's.
//! A descriptor has 32 words (UADK `drv/hisi_comp.c`, `struct hisi_zip_sqe`; linux
//! `drivers/crypto/hisilicon/zip/zip.h`):
//!
//! ```text
//!    0 consumed      1 produced      3 status (7:0), last block (8)   4 input length
//!    7 flush (25) stateful (26) new stream (27) type (31:28)          9 algorithm, buffers, window
//!   13 tag, type 0  14 output room  15 stream state  18 source  20 target  22 stream memory
//!   26 tag, type 3  28, 29 stream state             30 length  31 checksum
//! ```
//!
//! # Streams
//!
//! A stream has 64 KiB of memory that the device works in. Its first twelve bytes are ours: the
//! state words of the last descriptor, to be put into the next. The device writes less than 200
//! bytes of output only when it wants to, so that small targets get theirs by way of a store
//! buffer in that memory. Compression is given no more than must fit the target, and so never
//! stops in between.

use std::ptr::NonNull;

use super::pair::{SQE_WORDS_MAX, Sqe};
use super::qm::Version;
use super::sgl::{Lists, cut};
use super::share::{Engine, Filled, Finished};
use crate::backend::Ended;
use crate::batch::Token;
use crate::buffer::{Piece, Span};
use crate::codec::Codec;
use crate::codec::flate::compression;
use crate::codec::framing::{self, HeaderReader};
use crate::error::Error;
use crate::request::Work;
use crate::stream;

/// The most that one descriptor reads or writes (UADK `HZ_MAX_SIZE`).
const LEN_BYTES_MAX: usize = 8 << 20;

const CONSUMED: usize = 0;
const PRODUCED: usize = 1;
const STATUS: usize = 3;
const INPUT_LEN: usize = 4;
const CONTROL: usize = 7;
const ALGORITHM: usize = 9;
const TAG_TYPE_0: usize = 13;
const OUTPUT_ROOM: usize = 14;
const STATE: [usize; 3] = [15, 28, 29];
const SOURCE: usize = 18;
const TARGET: usize = 20;
const MEMORY: usize = 22;
const TAG_TYPE_3: usize = 26;
const PLAIN_LEN: usize = 30;
const CHECKSUM: usize = 31;

const FINISH: u32 = 1 << 25;
const STATEFUL: u32 = 1 << 26;
const NEW_STREAM: u32 = 1 << 27;
const TYPE_3: u32 = 3 << 28;
const SCATTERED: u32 = 1 << 8;
/// 32 KiB.
const WINDOW: u32 = 4 << 12;

/// In the status word: the last block of the deflate data was seen.
const LAST_BLOCK: u32 = 1 << 8;
const OK: u32 = 0;
/// The output is not shorter than the input; it is valid all the same.
const GREW: u32 = 0x0d;
const TARGET_TOO_SMALL: u32 = 0x0e;
/// Of a stream: its end was reached.
const END: u32 = 0x13;
/// In the low bits of the first state word: the target was full, and there is more.
const OUTPUT_FULL: u32 = 1;

/// Where in a stream's memory the device's part begins.
const DEVICE_MEMORY: usize = 64;
/// Where our store buffer lies, beyond what the device uses, and its length.
const STORE: usize = 0x9800;
const STORE_LEN_BYTES: usize = 236;
/// Targets up to this length are served from the store buffer.
const SMALL_TARGET: usize = 200;

/// The values of `qc_type`.
const COMPRESS: u16 = 0;
const DECOMPRESS: u16 = 1;

pub(crate) struct Zip {
    /// Which device this is, as streams remember it.
    device: u64,
    version: Version,
    codecs: Vec<Codec>,
    /// By token: lists of scattered sources and targets.
    lists: Box<[(Lists, Lists)]>,
}

pub(crate) enum Flight {
    OneShot {
        compression: bool,
        header_len: usize,
        /// What the device was given, and how long the caller's target is.
        input_len: usize,
        room: usize,
        target_len: usize,
    },
    Stream {
        state: NonNull<stream::State>,
        source: Span,
        target: Span,
        /// What the device was given, and the room for its output.
        input_len: usize,
        room: usize,
        /// The output comes to the store buffer.
        stored: bool,
        /// Compression: this descriptor ends the stream. Decompression: the caller says that the
        /// input does.
        end: bool,
    },
}

/// What goes into a descriptor, beside the buffers.
struct Job {
    codec: Codec,
    control: u32,
    input: (usize, usize),
    output: (usize, usize),
}

impl Zip {
    pub(crate) fn new(device: u64, version: Version, algorithms: &[String], depth: usize) -> Self {
        Self {
            device,
            version,
            codecs: codecs(algorithms),
            lists: (0..depth).map(|_| Default::default()).collect(),
        }
    }

    /// A descriptor for the bytes of `source` and `target` that `job` names by start and length.
    fn describe(&mut self, token: Token, job: &Job, source: &[Piece], target: &[Piece]) -> Sqe {
        let (algorithm, type_3) = match job.codec {
            Codec::Deflate => (1, true),
            Codec::Zlib => (2, self.version == Version::V3),
            _ => (3, self.version == Version::V3),
        };
        let mut sqe = [0; SQE_WORDS_MAX];
        let flat = |pieces: &[Piece], (start, len): (usize, usize)| {
            let mut cut = cut(pieces, start, len);
            let first = cut.next();
            // Nothing to read has no address.
            cut.next().is_none().then(|| first.map_or(0, |piece| piece.start as u64))
        };
        let (source, target, scattered) = match (flat(source, job.input), flat(target, job.output))
        {
            (Some(source), Some(target)) => (source, target, 0),
            _ => {
                let lists = &mut self.lists[token as usize];
                let source = lists.0.fill(cut(source, job.input.0, job.input.1));
                let target = lists.1.fill(cut(target, job.output.0, job.output.1));
                (source, target, SCATTERED)
            }
        };
        put_address(&mut sqe, SOURCE, source);
        put_address(&mut sqe, TARGET, target);
        sqe[INPUT_LEN] = length(job.input.1);
        sqe[OUTPUT_ROOM] = length(job.output.1);
        sqe[CONTROL] = job.control | (if type_3 { TYPE_3 } else { 0 });
        sqe[ALGORITHM] = algorithm | scattered | WINDOW;
        sqe[if type_3 { TAG_TYPE_3 } else { TAG_TYPE_0 }] = token;
        sqe
    }

    /// # Safety
    ///
    /// As [`Engine::fill`].
    unsafe fn fill_one_shot(
        &mut self,
        token: Token,
        codec: Codec,
        level: Option<i32>,
        source: &Span,
        target: &Span,
    ) -> Filled<Flight> {
        let target_len = target.len_bytes();
        let (mut skip, mut written) = (0, 0);
        if let Some(level) = level {
            if let Err(error) = compression(codec, level) {
                return Filled::Done(Err(error));
            }
            let header = framing::header(codec);
            if target_len <= header.len() {
                return Filled::Done(Err(Error::TargetTooSmall { len_bytes: target_len }));
            }
            // SAFETY: the target is alive and nobody else touches it (caller).
            unsafe { write_at(target.pieces(), 0, header) };
            written = header.len();
        } else {
            let mut reader = HeaderReader::new(codec);
            for piece in source.pieces() {
                // SAFETY: the source is alive and not written (caller).
                match reader.read(unsafe { bytes(piece) }) {
                    Ok(taken) => skip += taken,
                    Err(error) => return Filled::Done(Err(error)),
                }
            }
            if !reader.is_done() || skip == source.len_bytes() || target_len == 0 {
                // Cut short or empty: nothing for a device; software has the words for it.
                return Filled::Unfit;
            }
        }
        let job = Job {
            codec,
            control: NEW_STREAM | FINISH,
            input: (skip, source.len_bytes() - skip),
            output: (written, (target_len - written).min(LEN_BYTES_MAX)),
        };
        let flight = Flight::OneShot {
            compression: level.is_some(),
            header_len: skip.max(written),
            input_len: job.input.1,
            room: job.output.1,
            target_len,
        };
        Filled::Ready(self.describe(token, &job, source.pieces(), target.pieces()), flight)
    }

    /// # Safety
    ///
    /// As [`Engine::fill`]; `state` is the stream's.
    unsafe fn fill_stream(
        &mut self,
        token: Token,
        state: &mut stream::State,
        (source, target): (&Span, &Span),
        end: bool,
    ) -> Filled<Flight> {
        let target_len = target.len_bytes();
        let compression = state.is_compression();
        // SAFETY: the target is alive and nobody else touches it (caller).
        let write = |at: usize, held: &[u8]| unsafe { write_at(target.pieces(), at, held) };
        if let Some(over) = state.begin(target_len, write) {
            return Filled::Done(over);
        }
        // SAFETY: the source is alive and not written (caller).
        let parts = source.pieces().iter().map(|piece| unsafe { bytes(piece) });
        if let Err(error) = state.read_header(parts) {
            return Filled::Done(Err(error));
        }
        let start = state.progress.consumed;
        let input_len = source.len_bytes() - start;
        let room = target_len - state.progress.produced;
        let pending = match &state.engine {
            stream::Engine::Device(on_device) => {
                !compression && state_words(&on_device.context)[0] & 0xf == OUTPUT_FULL
            }
            _ => false,
        };
        if input_len == 0 && !pending {
            if end && compression {
                // An empty block that is the last (RFC 1951, section 3.2.4), and the trailer.
                let trailer = state.trailer();
                state.hold(&[1, 0, 0, 0xff, 0xff]);
                state.hold(trailer.as_slice());
                state.drain(target_len, write);
                state.end();
            } else if end {
                let error = Err(state.cut_short());
                return Filled::Done(state.keep_error(error));
            }
            return Filled::Done(state.done());
        }
        if room == 0 || !state.has_header() {
            return Filled::Done(state.done());
        }
        let new = matches!(state.engine, stream::Engine::Fresh);
        if new {
            state.enter_device(self.device);
        }
        let codec = state.codec;
        let produced = state.progress.produced;
        let stream::Engine::Device(on_device) = &mut state.engine else {
            unreachable!("`kind` lets no other stream in")
        };
        let stored = room <= SMALL_TARGET;
        let room = if stored { STORE_LEN_BYTES } else { room.min(LEN_BYTES_MAX) };
        let given = if compression {
            // Eight bits become nine at most; 64 bytes are for ends of blocks and the trailer.
            let fits = ((room - 64) * 8 / 9) & !3;
            input_len.min(fits)
        } else {
            input_len
        }
        .min(LEN_BYTES_MAX);
        let end = end && given == input_len;
        let memory = on_device.context.as_mut_ptr();
        let job = Job {
            codec,
            control: STATEFUL | if new { NEW_STREAM } else { 0 } | if end { FINISH } else { 0 },
            input: (start, given),
            output: if stored { (0, room) } else { (produced, room) },
        };
        let store = [Piece { start: memory.wrapping_add(STORE), len_bytes: STORE_LEN_BYTES }];
        let output = if stored { &store[..] } else { target.pieces() };
        let mut sqe = self.describe(token, &job, source.pieces(), output);
        put_address(&mut sqe, MEMORY, memory.wrapping_add(DEVICE_MEMORY) as u64);
        for (place, word) in STATE.into_iter().zip(state_words(&on_device.context)) {
            sqe[place] = word;
        }
        sqe[PLAIN_LEN] = on_device.plain_len;
        sqe[CHECKSUM] = register(codec, on_device.checksum);
        let flight = Flight::Stream {
            state: NonNull::from(state),
            source: source.clone(),
            target: target.clone(),
            input_len: given,
            room,
            stored,
            end,
        };
        Filled::Ready(sqe, flight)
    }
}

impl Engine for Zip {
    type Flight = Flight;

    const SQE_WORDS: usize = 32;
    const KINDS: &'static [u16] = &[COMPRESS, DECOMPRESS];

    fn kind(&self, work: &Work) -> Option<usize> {
        let one_shot = |codec, source: &Span, kind| {
            let fits = (1..=LEN_BYTES_MAX).contains(&source.len_bytes());
            (self.codecs.contains(codec) && fits).then_some(kind)
        };
        match work {
            Work::Compress { codec, source, .. } => one_shot(codec, &source.0, 0),
            Work::Decompress { codec, source, .. } => one_shot(codec, &source.0, 1),
            Work::Feed { stream, .. } => {
                // SAFETY: asked of a request that is not running; it owns the stream.
                let state = unsafe { stream.as_state() };
                let ours = match &state.engine {
                    stream::Engine::Device(on_device) => on_device.device == self.device,
                    stream::Engine::Fresh => self.codecs.contains(&state.codec),
                    stream::Engine::Software(_) => false,
                };
                ours.then_some(usize::from(!state.is_compression()))
            }
            Work::Call(_)
            | Work::Check { .. }
            | Work::EcdsaSign { .. }
            | Work::KeyExchange { .. }
            | Work::RsaPrivate { .. }
            | Work::RsaPublic { .. }
            | Work::Sign { .. } => None,
        }
    }

    unsafe fn fill(&mut self, token: Token, work: &Work) -> Filled<Flight> {
        // SAFETY: in each arm passed on from the caller.
        unsafe {
            match work {
                Work::Compress { codec, level, source, target } => {
                    self.fill_one_shot(token, *codec, Some(*level), &source.0, &target.0)
                }
                Work::Decompress { codec, source, target } => {
                    self.fill_one_shot(token, *codec, None, &source.0, &target.0)
                }
                Work::Feed { stream, source, target, end, .. } => {
                    self.fill_stream(token, stream.as_state(), (&source.0, &target.0), *end)
                }
                _ => Filled::Unfit,
            }
        }
    }

    fn finish(&mut self, token: Token, flight: &Flight, sqe: &Sqe) -> Finished {
        let tag = sqe[if sqe[CONTROL] >> 28 == 3 { TAG_TYPE_3 } else { TAG_TYPE_0 }];
        let status = sqe[STATUS] & 0xff;
        let last_block = sqe[STATUS] & LAST_BLOCK != 0;
        let [consumed, produced] = [sqe[CONSUMED], sqe[PRODUCED]].map(size);
        let (input_len, room) = match *flight {
            Flight::OneShot { input_len, room, .. } | Flight::Stream { input_len, room, .. } => {
                (input_len, room)
            }
        };
        // As it was submitted: the device never wrote it back, and may still write. Without input a
        // stream is fed only for the output that is due.
        let untouched = sqe[STATUS] == OK
            && consumed == 0
            && produced == 0
            && (input_len > 0 || sqe[STATE[0]] & 0xf == OUTPUT_FULL);
        if tag != token || untouched {
            return Finished::Nonsense;
        }
        let over = consumed > input_len || produced > room;
        match flight {
            // Of the caller's whole target, not of as much as one descriptor takes.
            Flight::OneShot { target_len, .. }
                if status == TARGET_TOO_SMALL && room < LEN_BYTES_MAX =>
            {
                Finished::Done(Err(Error::TargetTooSmall { len_bytes: *target_len }))
            }
            _ if over => Finished::Nonsense,
            // Whatever the device blames on the data, software confirms before anybody is told.
            Flight::OneShot { .. } if !matches!(status, OK | GREW) || consumed != input_len => {
                Finished::Wrong
            }
            Flight::OneShot { compression: true, header_len, .. } => {
                Finished::Done(Ok(header_len + produced))
            }
            Flight::OneShot { .. } if last_block => Finished::Done(Ok(produced)),
            Flight::OneShot { .. } => Finished::Wrong,
            Flight::Stream { state, source, target, stored, end, .. } => {
                let (stored, end) = (*stored, *end);
                // SAFETY: the request owns the stream and stays in its slot until this is done;
                // the device has finished with it.
                let state = unsafe { &mut *state.as_ptr() };
                let compression = state.is_compression();
                let good = match status {
                    OK | GREW if compression => consumed == input_len,
                    // With input and room it comes on: or callers would ask for ever.
                    OK => !compression && consumed + produced > 0,
                    END => !compression,
                    _ => false,
                };
                if !good {
                    return Finished::Wrong;
                }
                let ended = if compression { end } else { status == END && last_block };
                // SAFETY: as above, for the source; it is only read.
                let taken = cut(source.pieces(), state.progress.consumed, consumed)
                    .map(|piece| unsafe { bytes(&piece) });
                state.advance_device(taken, produced);
                let codec = state.codec;
                let stream::Engine::Device(on_device) = &mut state.engine else {
                    return Finished::Wrong;
                };
                for (bytes, place) in on_device.context.chunks_exact_mut(4).zip(STATE) {
                    bytes.copy_from_slice(&sqe[place].to_le_bytes());
                }
                on_device.checksum = register(codec, sqe[CHECKSUM]);
                let plain = if compression { consumed } else { produced };
                on_device.plain_len = on_device.plain_len.wrapping_add(length(plain));
                let full = sqe[STATE[0]] & 0xf == OUTPUT_FULL;
                let store = stored.then(|| {
                    let mut store = [0; STORE_LEN_BYTES];
                    store.copy_from_slice(&on_device.context[STORE..][..STORE_LEN_BYTES]);
                    store
                });
                state.progress.consumed += consumed;
                match store {
                    None => state.progress.produced += produced,
                    Some(store) => {
                        state.hold(&store[..produced]);
                        // SAFETY: as above, for the target.
                        state.drain(target.len_bytes(), |at, held| unsafe {
                            write_at(target.pieces(), at, held);
                        });
                    }
                }
                if ended {
                    state.end();
                } else if end && !compression && !full && consumed == input_len && produced < room {
                    let error = Err(state.cut_short());
                    return Finished::Done(state.keep_error(error));
                }
                Finished::Done(state.done())
            }
        }
    }

    fn give_up(&mut self, token: Token, flight: Flight, held: bool) -> Ended {
        if !held {
            return Ended::Redo;
        }
        std::mem::forget(std::mem::take(&mut self.lists[token as usize]));
        if let Flight::Stream { state, target, .. } = flight {
            // SAFETY: the request owns the stream and stays in its slot until this has ended; the
            // device has nothing of it but the memory that it works in.
            let state = unsafe { &mut *state.as_ptr() };
            let written = cut(target.pieces(), 0, state.progress.produced)
                // SAFETY: as above, for the target; the device's part of it begins behind.
                .map(|piece| unsafe { bytes(&piece) });
            state.strand(written);
        }
        Ended::Stranded
    }
}

/// The codecs that a device with these algorithms does.
pub(crate) fn codecs(algorithms: &[String]) -> Vec<Codec> {
    [Codec::Deflate, Codec::Zlib, Codec::Gzip]
        .into_iter()
        .filter(|codec| algorithms.iter().any(|algorithm| algorithm == codec.name()))
        .collect()
}

/// A checksum as the device keeps it, and back: CRC-32 stands there before its last inversion and
/// with its bits reversed (UADK `hisi_comp.c`, where it writes a gzip trailer of its own).
pub(crate) fn register(codec: Codec, value: u32) -> u32 {
    if codec == Codec::Gzip { !value.reverse_bits() } else { value }
}

fn state_words(context: &[u8]) -> [u32; 3] {
    [0, 4, 8].map(|at| {
        let bytes: [u8; 4] = context[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes)
    })
}

fn put_address(sqe: &mut Sqe, place: usize, address: u64) {
    sqe[place] = low(address);
    sqe[place + 1] = low(address >> 32);
}

fn low(bits: u64) -> u32 {
    u32::try_from(bits & 0xffff_ffff).expect("masked to 32 bits")
}

fn length(len_bytes: usize) -> u32 {
    u32::try_from(len_bytes).expect("limited to 8 MiB")
}

fn size(word: u32) -> usize {
    usize::try_from(word).expect("a usize has 32 bits")
}

/// # Safety
///
/// The bytes are alive for `'a` and nobody writes them.
unsafe fn bytes<'a>(piece: &Piece) -> &'a [u8] {
    // SAFETY: passed on from the caller; the piece came from a slice.
    unsafe { std::slice::from_raw_parts(piece.start, piece.len_bytes) }
}

/// Copies `bytes` to the place `at` of scattered memory.
///
/// # Safety
///
/// The memory is alive and nobody else touches it.
unsafe fn write_at(pieces: &[Piece], at: usize, bytes: &[u8]) {
    let mut left = bytes;
    for piece in cut(pieces, at, bytes.len()) {
        let (now, later) = left.split_at(piece.len_bytes);
        // SAFETY: within a piece, which is alive and ours (caller).
        unsafe { piece.start.copy_from_nonoverlapping(now.as_ptr(), now.len()) };
        left = later;
    }
}

#[cfg(test)]
mod tests {
    //! Descriptors written by hand from the published layout.

    use super::*;
    use crate::buffer::{SourceSpan, TargetSpan};
    use crate::{Feed, Parts, Request};

    fn zip(version: Version) -> Zip {
        let algorithms = ["zlib", "gzip", "deflate"].map(String::from);
        Zip::new(0, version, &algorithms, 8)
    }

    fn fill(zip: &mut Zip, token: Token, work: &Work) -> Sqe {
        // SAFETY: nothing is handed to a device, and the tests keep what `work` names.
        match unsafe { zip.fill(token, work) } {
            Filled::Ready(sqe, _) => sqe,
            _ => panic!("no descriptor for {work:?}"),
        }
    }

    /// Only the words that are named differ from zero.
    fn assert_words(sqe: &Sqe, words: &[(usize, u32)]) {
        let mut expected = [0; SQE_WORDS_MAX];
        words.iter().for_each(|(place, word)| expected[*place] = *word);
        assert_eq!(*sqe, expected);
    }

    fn halves(address: *const u8) -> (u32, u32) {
        let address = address as u64;
        (low(address), low(address >> 32))
    }

    #[test]
    fn one_shot() {
        let source = vec![0x1f_u8, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3];
        let mut target = vec![0; 100];
        let spans = |target: &mut Vec<u8>| (SourceSpan::of(&source), TargetSpan::of(target));
        let (low_source, high_source) = halves(source.as_ptr());
        let (low_target, high_target) = halves(target.as_ptr());
        // NEW | FINISH, type 3: 1010 in the top bits; algorithm, flat, 32 KiB.
        for (codec, version, algorithm, top, tag, header) in [
            (Codec::Gzip, Version::V2, 3, 0x0a00_0000, 13, 10),
            (Codec::Zlib, Version::V2, 2, 0x0a00_0000, 13, 2),
            (Codec::Deflate, Version::V2, 1, 0x3a00_0000, 26, 0),
            (Codec::Gzip, Version::V3, 3, 0x3a00_0000, 26, 10),
            (Codec::Zlib, Version::V3, 2, 0x3a00_0000, 26, 2),
        ] {
            let (source, span) = spans(&mut target);
            let work = Work::Compress { codec, level: 1, source, target: span };
            let sqe = fill(&mut zip(version), 5, &work);
            assert_words(
                &sqe,
                &[
                    (4, 13),
                    (7, top),
                    (9, 0x4000 | algorithm),
                    (tag, 5),
                    (14, 100 - header),
                    (18, low_source),
                    (19, high_source),
                    (20, low_target + header),
                    (21, high_target),
                ],
            );
        }
        let (source, span) = spans(&mut target);
        let work = Work::Decompress { codec: Codec::Gzip, source, target: span };
        let sqe = fill(&mut zip(Version::V2), 1, &work);
        assert_words(
            &sqe,
            &[
                (4, 3),
                (7, 0x0a00_0000),
                (9, 0x4003),
                (13, 1),
                (14, 100),
                (18, low_source + 10),
                (19, high_source),
                (20, low_target),
                (21, high_target),
            ],
        );
    }

    #[test]
    fn scattered() {
        let source = Parts(vec![vec![1_u8; 10], vec![2; 20]]);
        let mut target = vec![0; 100];
        let work = Work::Compress {
            codec: Codec::Deflate,
            level: 1,
            source: SourceSpan::of(&source),
            target: TargetSpan::of(&mut target),
        };
        let mut zip = zip(Version::V3);
        let sqe = fill(&mut zip, 2, &work);
        assert_eq!((sqe[4], sqe[9], sqe[14]), (30, 0x4101, 100));
        let lists = &mut zip.lists[2];
        let pieces = Span::pieces(match &work {
            Work::Compress { source, .. } => &source.0,
            _ => panic!("as made"),
        });
        // The same lists again: their memory stays.
        let address = lists.0.fill(pieces.iter().copied());
        assert_eq!((sqe[18], sqe[19]), (low(address), low(address >> 32)));
    }

    #[test]
    fn streams() {
        let mut zip = zip(Version::V3);
        let stream = crate::Stream::compress(Codec::Gzip, 1).expect("a stream");
        let mut feed = Feed { stream, source: vec![7_u8; 1000], target: vec![0; 500], end: false };
        let work = feed.describe();
        let sqe = fill(&mut zip, 3, &work);
        // STATEFUL | NEW, type 3. Of 490 bytes after the header 64 are set aside; eight ninths of
        // the rest, by four, are read.
        assert_eq!((sqe[7], sqe[4], sqe[14]), (0x3c00_0000, 376, 490));
        let stream::Engine::Device(on_device) = &feed.stream.state().engine else {
            panic!("on the device")
        };
        let (low_memory, high_memory) = halves(on_device.context.as_ptr().wrapping_add(64));
        assert_eq!((sqe[22], sqe[23]), (low_memory, high_memory));
        // CRC-32 of nothing as the register has it.
        assert_eq!((sqe[30], sqe[31]), (0, 0xffff_ffff));

        // The header is out by now. What the device leaves behind goes into the next descriptor.
        let Filled::Ready(mut sqe, flight) = (
            // SAFETY: as in `fill`.
            unsafe { zip.fill(3, &work) }
        ) else {
            panic!("a descriptor")
        };
        sqe[CONSUMED] = sqe[INPUT_LEN];
        sqe[PRODUCED] = 20;
        (sqe[15], sqe[28], sqe[29], sqe[31]) = (0x123, 0x456, 0x789, 0x0bad_cafe);
        assert_eq!(zip.finish(3, &flight, &sqe), Finished::Done(Ok(20)));
        feed.end = true;
        let work = feed.describe();
        let sqe = fill(&mut zip, 4, &work);
        assert_eq!((sqe[15], sqe[28], sqe[29]), (0x123, 0x456, 0x789));
        assert_eq!((sqe[30], sqe[31]), (384, 0x0bad_cafe));
        assert_eq!(sqe[7], 0x3400_0000, "stateful, neither new nor the end: it does not fit");
    }

    #[test]
    fn every_status_has_its_meaning() {
        let mut zip = zip(Version::V3);
        let mut finish = |codec: Codec, compression: bool, status: u32, consumed: u32| {
            let flight = Flight::OneShot {
                compression,
                header_len: framing::header(codec).len(),
                input_len: 100,
                room: 200,
                target_len: 202,
            };
            let mut sqe = [0; SQE_WORDS_MAX];
            (sqe[CONSUMED], sqe[PRODUCED], sqe[STATUS]) = (consumed, 50, status);
            sqe[CONTROL] = TYPE_3;
            zip.finish(0, &flight, &sqe)
        };
        assert_eq!(finish(Codec::Zlib, true, 0, 100), Finished::Done(Ok(52)));
        assert_eq!(finish(Codec::Zlib, true, 0x0d, 100), Finished::Done(Ok(52)));
        let small = Error::TargetTooSmall { len_bytes: 202 };
        assert_eq!(finish(Codec::Zlib, true, 0x0e, 0), Finished::Done(Err(small)));
        assert_eq!(finish(Codec::Zlib, false, LAST_BLOCK, 100), Finished::Done(Ok(50)));
        // Cut short, bytes behind the end, a wrong checksum, and what nobody has published:
        // software has the last word.
        for (status, consumed) in [(0, 100), (LAST_BLOCK, 99), (0x10, 100), (0x07, 0), (0xff, 0)] {
            assert_eq!(finish(Codec::Zlib, false, status, consumed), Finished::Wrong);
        }
        assert_eq!(finish(Codec::Zlib, true, 0, 101), Finished::Nonsense);
    }

    /// Nothing of it is free: it was not the device that completed this.
    #[test]
    fn a_descriptor_that_nobody_wrote_back_is_not_finished() {
        let mut stream = crate::Stream::decompress(Codec::Gzip).expect("a stream");
        let mut zip = zip(Version::V3);
        for (input_len, state_word) in [(7, 0), (0, OUTPUT_FULL)] {
            let flight = Flight::Stream {
                state: NonNull::from(stream.state()),
                source: SourceSpan::of(&vec![0; input_len]).0,
                target: TargetSpan::of(&mut Vec::new()).0,
                input_len,
                room: 100,
                stored: false,
                end: false,
            };
            let mut sqe = [0; SQE_WORDS_MAX];
            sqe[CONTROL] = TYPE_3;
            sqe[STATE[0]] = state_word;
            assert_eq!(zip.finish(0, &flight, &sqe), Finished::Nonsense);
        }
    }
}

//! Data of any length, compressed or decompressed piece by piece.
//!
//! A [`Stream`] is moved into each [`Feed`](crate::Feed) and comes back with it, so that its
//! pieces cannot overtake each other. It lives either on a device or in software:
//!
//! ```text
//!            takes it                  fails, resets, is busy
//!   fresh ──────────────> on device ──────────────────────────> in software
//!     └─────────────────────────────────────────────────────────────^
//! ```
//!
//! To be able to go on in software, a stream on a device keeps what software would need:
//!
//! - compression ends the output of each piece at a byte boundary (as zlib's `Z_SYNC_FLUSH`), so
//!   that checksum, length and the last 32 KiB of plain bytes are the whole state;
//! - decompression keeps its input and decodes it once more. A device does not say where blocks
//!   begin, so there is no later point to start from; after [`REPLAY_LEN_BYTES_MAX`] the input is
//!   let go, and a device that fails then takes the stream with it
//!   ([`Error::DeviceLost`](crate::Error::DeviceLost)), as it does if there is no
//!   [other](crate::Target::another) target.

use std::fmt;

use flate2::{FlushCompress, FlushDecompress, Status};

use crate::codec::Codec;
use crate::codec::flate::{PART_MAX, compression, produced};
use crate::codec::framing::{self, Checksum, HeaderReader, Short};
use crate::codec::zstd::ZstdStream;
use crate::error::Error;

/// How far deflate looks back (RFC 1951, section 2).
const WINDOW_LEN_BYTES: usize = 32 * 1024;

/// What a device works in (UADK `HW_CTX_SIZE`).
const CONTEXT_LEN_BYTES: usize = 64 * 1024;

/// Compressed bytes kept so that decompression can start over.
pub(crate) const REPLAY_LEN_BYTES_MAX: usize = 256 * 1024;

/// A stream of compressed data, being made or being read.
pub struct Stream(Box<State>);

/// What one [`Feed`](crate::Feed) did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes used from the start of the source. The rest is to be fed again.
    pub consumed: usize,
    /// Bytes written to the start of the target. If they fill it, there may be more.
    pub produced: usize,
    /// Nothing will follow: the end was written, or read and its checksum found right.
    pub ended: bool,
}

impl Stream {
    /// A stream that compresses. `level` is the codec's own scale; a device may ignore it.
    pub fn compress(codec: Codec, level: i32) -> Result<Self, Error> {
        if codec == Codec::Zstd {
            let direction = Direction::Zstd(ZstdStream::compress(level)?);
            return Self::new(codec, direction, Vec::new());
        }
        let direction = Direction::Compress(compression(codec, level)?);
        Self::new(codec, direction, framing::header(codec).to_vec())
    }

    /// A stream that decompresses one member or frame: what follows its end is not consumed. A frame
    /// of zstd may ask for a window of 8 MiB.
    pub fn decompress(codec: Codec) -> Result<Self, Error> {
        if codec == Codec::Zstd {
            let direction = Direction::Zstd(ZstdStream::decompress()?);
            return Self::new(codec, direction, Vec::new());
        }
        Self::new(codec, Direction::Decompress(HeaderReader::new(codec)), Vec::new())
    }

    fn new(codec: Codec, direction: Direction, held: Vec<u8>) -> Result<Self, Error> {
        if !matches!(codec, Codec::Deflate | Codec::Gzip | Codec::Zlib | Codec::Zstd) {
            return Err(Error::NoStream { codec });
        }
        Ok(Self(Box::new(State {
            codec,
            direction,
            held,
            held_start: 0,
            engine: Engine::Fresh,
            progress: Progress::default(),
            begun: false,
            over: None,
        })))
    }

    /// How the stream is stored.
    pub fn codec(&self) -> Codec {
        self.0.codec
    }

    pub(crate) fn is_compression(&self) -> bool {
        self.0.is_compression()
    }

    pub(crate) fn state(&mut self) -> &mut State {
        &mut self.0
    }

    pub(crate) fn progress(&self) -> Progress {
        self.0.progress
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("codec", &self.0.codec)
            .field("progress", &self.0.progress)
            .finish_non_exhaustive()
    }
}

/// The stream as backends see it.
pub(crate) struct State {
    pub(crate) codec: Codec,
    pub(crate) direction: Direction,
    /// Output that found no room in the target yet, from `held_start` on.
    held: Vec<u8>,
    held_start: usize,
    pub(crate) engine: Engine,
    /// What the feed in hand has done so far.
    pub(crate) progress: Progress,
    /// A feed is in hand: a device had begun it, and software goes on if the device fails.
    begun: bool,
    /// How the stream ended, once it has.
    over: Option<Result<(), Error>>,
}

pub(crate) enum Direction {
    Compress(flate2::Compression),
    Decompress(HeaderReader),
    /// Either way, and software's alone: no device has it.
    Zstd(ZstdStream),
}

/// Who transforms the bytes.
pub(crate) enum Engine {
    Device(OnDevice),
    Fresh,
    Software(Software),
}

/// A stream that lives on a device, and what software would need to take over.
pub(crate) struct OnDevice {
    /// Which device; no other can go on.
    pub(crate) device: u64,
    /// The device's own memory of the stream.
    pub(crate) context: Box<[u8]>,
    /// Adler-32 or CRC-32 of the plain bytes so far, and their number modulo 2^32.
    pub(crate) checksum: u32,
    pub(crate) plain_len: u32,
    /// Compression: the last plain bytes. Decompression: the input so far, without the header;
    /// none once it became too long.
    history: Option<Vec<u8>>,
    /// Decompression: bytes that came out so far.
    produced: u64,
}

pub(crate) enum Software {
    Compress {
        raw: flate2::Compress,
        checksum: Checksum,
        /// The last call filled the target: more output of it is to come.
        flushing: bool,
    },
    Decompress {
        raw: flate2::Decompress,
        checksum: Checksum,
        /// Input that a device had taken and software has yet to decode, from `backlog_start` on.
        backlog: Vec<u8>,
        backlog_start: usize,
        /// The end of the deflate data was seen; these are the bytes of the trailer so far.
        trailer: Option<Short>,
    },
}

impl State {
    pub(crate) fn is_compression(&self) -> bool {
        matches!(
            self.direction,
            Direction::Compress(_) | Direction::Zstd(ZstdStream::Compress { .. })
        )
    }

    /// About what software takes for the next `len_bytes` of a stream that compresses.
    pub(crate) fn cost_ns(&self, len_bytes: usize) -> u64 {
        let level = match &self.direction {
            Direction::Compress(level) => level.level().cast_signed(),
            Direction::Zstd(ZstdStream::Compress { level, .. }) => *level,
            Direction::Decompress(_) | Direction::Zstd(ZstdStream::Decompress { .. }) => return 0,
        };
        self.codec.cost_ns(level, len_bytes)
    }

    /// Starts a feed with `room` bytes for its output: what is held goes out first, by `write`
    /// with its place in the target. Answers if that, or how the stream ended, is all there is to
    /// do.
    pub(crate) fn begin(
        &mut self,
        room: usize,
        write: impl FnOnce(usize, &[u8]),
    ) -> Option<Result<usize, Error>> {
        self.progress = Progress::default();
        self.begun = true;
        self.drain(room, write);
        if self.is_holding() {
            return Some(self.done());
        }
        self.over.clone().map(|over| {
            self.progress.ended = over.is_ok();
            self.begun = false;
            over.and_then(|()| self.done())
        })
    }

    /// A feed that was begun and came to no end of its own: nobody knows how much of it has been done.
    pub(crate) fn end_if_begun(&mut self, error: &Error) {
        if std::mem::take(&mut self.begun) {
            self.over.get_or_insert_with(|| Err(error.clone()));
        }
    }

    /// Ends the feed in hand.
    pub(crate) fn done(&mut self) -> Result<usize, Error> {
        self.begun = false;
        Ok(self.progress.produced)
    }

    /// Moves what is held to where the target has room.
    pub(crate) fn drain(&mut self, room: usize, write: impl FnOnce(usize, &[u8])) {
        let held = &self.held[self.held_start..];
        let len = held.len().min(room - self.progress.produced);
        if len > 0 {
            write(self.progress.produced, &held[..len]);
        }
        self.progress.produced += len;
        self.held_start += len;
        if !self.is_holding() {
            self.held.clear();
            self.held_start = 0;
        }
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.held_start < self.held.len()
    }

    /// Output that goes out before anything else does.
    pub(crate) fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Passes over the header of a stream that is read.
    pub(crate) fn read_header<'a>(
        &mut self,
        source: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        let Direction::Decompress(header) = &mut self.direction else { return Ok(()) };
        let mut read = Ok(());
        for part in source {
            if header.is_done() || read.is_err() {
                break;
            }
            read = header.read(part).map(|taken| self.progress.consumed += taken);
        }
        self.keep_error(read)
    }

    /// The trailer of a stream that is written, after what a device compressed of it.
    pub(crate) fn trailer(&self) -> Short {
        match &self.engine {
            Engine::Device(on_device) => {
                Checksum::resume(self.codec, on_device.checksum, on_device.plain_len).trailer()
            }
            _ => Checksum::new(self.codec).trailer(),
        }
    }

    pub(crate) fn has_header(&self) -> bool {
        match &self.direction {
            Direction::Compress(_) | Direction::Zstd(_) => true,
            Direction::Decompress(header) => header.is_done(),
        }
    }

    /// The last byte was produced; it may still be held.
    pub(crate) fn end(&mut self) {
        self.over = Some(Ok(()));
        self.engine = Engine::Fresh;
        self.progress.ended = !self.is_holding();
    }

    /// An error ends the stream for good.
    pub(crate) fn keep_error<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result {
            self.over = Some(Err(error.clone()));
            self.engine = Engine::Fresh;
            self.begun = false;
        }
        result
    }

    /// The error of a stream that is said to end here and does not.
    pub(crate) fn cut_short(&self) -> Error {
        Error::Corrupt { codec: self.codec, cause: "the stream is cut short" }
    }

    /// Puts a fresh stream on a device.
    pub(crate) fn enter_device(&mut self, device: u64) {
        let initial = if self.codec == Codec::Zlib { 1 } else { 0 };
        self.engine = Engine::Device(OnDevice {
            device,
            context: vec![0; CONTEXT_LEN_BYTES].into(),
            checksum: initial,
            plain_len: 0,
            history: Some(Vec::new()),
            produced: 0,
        });
    }

    /// Files what the device has done: `pieces` of input that it used up, and how much came out.
    pub(crate) fn advance_device<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        produced: usize,
    ) {
        let compression = self.is_compression();
        let Engine::Device(on_device) = &mut self.engine else { return };
        on_device.produced += produced as u64;
        let Some(history) = &mut on_device.history else { return };
        for piece in pieces {
            if compression {
                let piece = &piece[piece.len().saturating_sub(WINDOW_LEN_BYTES)..];
                let kept = WINDOW_LEN_BYTES - piece.len();
                history.drain(..history.len().saturating_sub(kept));
                history.extend_from_slice(piece);
            } else if history.len() + piece.len() > REPLAY_LEN_BYTES_MAX {
                on_device.history = None;
                return;
            } else {
                history.extend_from_slice(piece);
            }
        }
    }

    /// A device may go on writing to the stream's memory and to the target: that memory is forgotten,
    /// and what was `written` to the target before goes out once more, to another.
    pub(crate) fn strand<'a>(&mut self, written: impl Iterator<Item = &'a [u8]>) {
        if let Engine::Device(on_device) = &mut self.engine {
            std::mem::forget(std::mem::take(&mut on_device.context));
        }
        written.for_each(|piece| self.hold(piece));
        self.progress.produced = 0;
    }

    /// Does a whole feed in software.
    pub(crate) fn run(
        &mut self,
        source: &[u8],
        target: &mut [u8],
        end: bool,
    ) -> Result<usize, Error> {
        let room = target.len();
        let write = |at: usize, held: &[u8]| target[at..][..held.len()].copy_from_slice(held);
        if self.begun {
            self.drain(room, write);
        } else {
            if let Some(over) = self.begin(room, write) {
                return over;
            }
            self.read_header(std::iter::once(source))?;
        }
        let result = match self.direction {
            Direction::Compress(_) => {
                self.enter_software().and_then(|()| self.compress(source, target, end))
            }
            Direction::Decompress(_) => {
                self.enter_software().and_then(|()| self.decompress(source, target))
            }
            Direction::Zstd(_) => self.run_zstd(source, target, end),
        };
        self.keep_error(result)?;
        let starved = self.progress.consumed == source.len()
            && self.progress.produced < target.len()
            && self.over.is_none();
        if end && starved && !self.is_compression() {
            let error = Err(self.cut_short());
            return self.keep_error(error);
        }
        self.done()
    }

    fn run_zstd(&mut self, source: &[u8], target: &mut [u8], end: bool) -> Result<(), Error> {
        let Direction::Zstd(stream) = &mut self.direction else {
            unreachable!("asked for this direction");
        };
        let piece = stream.run(source, target, end)?;
        self.progress.consumed = piece.consumed;
        self.progress.produced = piece.produced;
        if piece.ended {
            self.end();
        }
        Ok(())
    }

    /// Makes software the engine, from wherever the stream stands.
    fn enter_software(&mut self) -> Result<(), Error> {
        let software = match std::mem::replace(&mut self.engine, Engine::Fresh) {
            Engine::Software(software) => software,
            Engine::Fresh => self.software(Checksum::new(self.codec)),
            Engine::Device(on_device) => {
                let OnDevice { checksum, plain_len, history, produced, .. } = on_device;
                let history = history.ok_or(Error::DeviceLost)?;
                let checksum = Checksum::resume(self.codec, checksum, plain_len);
                let mut software = self.software(checksum);
                match &mut software {
                    Software::Compress { raw, .. } => {
                        if !history.is_empty() {
                            raw.set_dictionary(&history).map_err(|_| Error::DeviceLost)?;
                        }
                    }
                    Software::Decompress { raw, backlog, backlog_start, .. } => {
                        *backlog_start = replay(raw, &history, produced)?;
                        *backlog = history;
                    }
                }
                software
            }
        };
        self.engine = Engine::Software(software);
        Ok(())
    }

    fn software(&self, checksum: Checksum) -> Software {
        match self.direction {
            Direction::Compress(level) => Software::Compress {
                raw: flate2::Compress::new(level, false),
                checksum,
                flushing: false,
            },
            Direction::Zstd(_) => unreachable!("it is its own engine"),
            Direction::Decompress(_) => Software::Decompress {
                raw: flate2::Decompress::new(false),
                checksum,
                backlog: Vec::new(),
                backlog_start: 0,
                trailer: None,
            },
        }
    }

    fn compress(&mut self, source: &[u8], target: &mut [u8], end: bool) -> Result<(), Error> {
        let Engine::Software(Software::Compress { raw, checksum, flushing }) = &mut self.engine
        else {
            unreachable!("software was entered for this direction");
        };
        let progress = &mut self.progress;
        if source.is_empty() && !end && !*flushing {
            return Ok(());
        }
        // The library would end with what it takes of more.
        let fits = source.len() <= PART_MAX;
        let source = &source[..source.len().min(PART_MAX)];
        let flush = if end && fits { FlushCompress::Finish } else { FlushCompress::Sync };
        let (taken, given) = (raw.total_in(), raw.total_out());
        let status = raw.compress(source, &mut target[progress.produced..], flush);
        progress.consumed = produced(raw.total_in() - taken);
        progress.produced += produced(raw.total_out() - given);
        checksum.update(&source[..progress.consumed]);
        *flushing = progress.produced == target.len();
        if matches!(status, Ok(Status::StreamEnd)) {
            let trailer = checksum.trailer();
            self.hold(trailer.as_slice());
            self.drain(target.len(), |at, held| {
                target[at..][..held.len()].copy_from_slice(held);
            });
            self.end();
        }
        Ok(())
    }

    fn decompress(&mut self, source: &[u8], target: &mut [u8]) -> Result<(), Error> {
        let corrupt = |cause| Error::Corrupt { codec: self.codec, cause };
        let Engine::Software(Software::Decompress {
            raw,
            checksum,
            backlog,
            backlog_start,
            trailer,
        }) = &mut self.engine
        else {
            unreachable!("software was entered for this direction");
        };
        let progress = &mut self.progress;
        while trailer.is_none() {
            let old = *backlog_start < backlog.len();
            let input = if old { &backlog[*backlog_start..] } else { &source[progress.consumed..] };
            let (taken, given) = (raw.total_in(), raw.total_out());
            let room = &mut target[progress.produced..];
            let status = raw
                .decompress(input, room, FlushDecompress::None)
                .map_err(|_| corrupt("not deflate data"))?;
            let len = produced(raw.total_in() - taken);
            *if old { &mut *backlog_start } else { &mut progress.consumed } += len;
            let len_out = produced(raw.total_out() - given);
            checksum.update(&room[..len_out]);
            progress.produced += len_out;
            if status == Status::StreamEnd {
                *trailer = Some(Short::default());
            } else if !old || len == 0 && len_out == 0 {
                return Ok(());
            }
        }
        let expected = checksum.trailer();
        let expected = expected.as_slice();
        if let Some(read) = trailer {
            while read.as_slice().len() < expected.len() {
                // A trailer never is in the backlog: the device would have checked it and ended.
                let byte = if *backlog_start < backlog.len() {
                    *backlog_start += 1;
                    backlog[*backlog_start - 1]
                } else if let Some(byte) = source.get(progress.consumed) {
                    progress.consumed += 1;
                    *byte
                } else {
                    return Ok(());
                };
                read.extend(&[byte]);
            }
            if read.as_slice() != expected {
                return Err(corrupt("checksum or length do not fit the data"));
            }
            self.end();
        }
        Ok(())
    }
}

/// Decodes `input` up to the `produced` bytes that came out of it before. Returns how much of it
/// that took.
fn replay(raw: &mut flate2::Decompress, input: &[u8], produced: u64) -> Result<usize, Error> {
    let mut sink = [0; 16 * 1024];
    let mut start = 0;
    while raw.total_out() < produced {
        let room = usize::try_from(produced - raw.total_out())
            .map_or(sink.len(), |left| left.min(sink.len()));
        let (taken, given) = (raw.total_in(), raw.total_out());
        let status = raw.decompress(&input[start..], &mut sink[..room], FlushDecompress::None);
        start += self::produced(raw.total_in() - taken);
        if status.is_err() || raw.total_out() == given {
            // Software reads the data otherwise than the device did.
            return Err(Error::DeviceLost);
        }
    }
    Ok(start)
}

//! Bytes on disk, version 1: encoded and parsed, no I/O. FORMAT.md is the contract.
//!
//! All numbers are little-endian. Everything that is not a zstd frame of contents is a skippable
//! frame (RFC 8878, section 3.1.2), so that a linear file is a valid zstd stream.

mod node;

use std::ffi::CStr;

use crc64fast::Digest;
use warpcore_offload::Codec;

pub use node::{Children, Entries, FANOUT_LOG2, LEAF_CHUNKS, Node, Piece, Pointer};

use crate::error::Error;

/// Version of this format, frozen: tests/images has files of it.
pub const VERSION: u8 = 1;

/// Magic number of our skippable frames; zstd skips 0x184D2A50 to 0x184D2A5F.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A57;

/// Magic and length of a skippable frame.
pub const SKIPPABLE_HEAD_LEN: usize = 8;

/// Magic number of a zstd frame.
const ZSTD_MAGIC: u32 = 0xFD2F_B528;

/// The largest zstd block (RFC 8878, section 3.1.1.2.4), and so the largest chunk: a raw chunk is
/// one block.
pub const CHUNK_LEN_LOG2_MAX: u8 = 17;
/// Smaller chunks than a page would be larger stored than plain.
pub const CHUNK_LEN_LOG2_MIN: u8 = 12;

/// Name of the extended attribute on a backing file.
pub const ATTRIBUTE_NAME: &CStr = c"user.warpcore";

/// Tells the files of one directory apart, and the lives of one file: a commit record belongs to
/// the life whose id it carries.
pub type FileId = [u8; 12];

/// First bytes of every container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// log2 of the chunk length in bytes.
    pub chunk_len_log2: u8,
    /// Drawn when the file was last empty.
    pub id: FileId,
}

impl Head {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// The head as it stands at the start of the file.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&skippable(Self::LEN - SKIPPABLE_HEAD_LEN));
        bytes[8..11].copy_from_slice(b"WCF");
        bytes[11] = VERSION;
        bytes[12] = self.chunk_len_log2;
        bytes[16..28].copy_from_slice(&self.id);
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The head in `bytes`; None if it is none, an error if a later version wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let Some(bytes) = bytes.first_chunk::<{ Self::LEN }>() else {
            return Ok(None);
        };
        let checksum = crc32c::crc32c(&bytes[..28]).to_le_bytes();
        if bytes[..8] != skippable(Self::LEN - SKIPPABLE_HEAD_LEN)
            || &bytes[8..11] != b"WCF"
            || !verifies(&checksum, &bytes[28..])
        {
            return Ok(None);
        }
        if bytes[11] != VERSION {
            return Err(Error::Version { version: bytes[11] });
        }
        let chunk_len_log2 = bytes[12];
        if !(CHUNK_LEN_LOG2_MIN..=CHUNK_LEN_LOG2_MAX).contains(&chunk_len_log2) {
            return Ok(None);
        }
        let id = *bytes[16..].first_chunk().expect("16 bytes are left");
        Ok(Some(Self { chunk_len_log2, id }))
    }
}

/// Where a span of the file lies. Never across a chunk border, unless it is zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub logical: u64,
    /// Length in the file.
    pub len: u64,
    /// Offset of the stored bytes in the backing file.
    pub physical: u64,
    /// Number of stored bytes.
    pub stored_len: u32,
    /// How they are stored.
    pub form: Form,
    /// crc32c of the stored bytes.
    pub checksum: u32,
}

/// How an extent is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// By a codec; its number is its permanent id.
    Codec(Codec),
    /// Nothing is stored: takes what was there before out of the file. Number 255.
    Zeros,
}

/// Number of [`Form::Zeros`].
const FORM_ZEROS: u8 = 255;

impl Extent {
    const LEN: usize = 40;

    /// One past its last byte in the file.
    pub fn end(&self) -> u64 {
        self.logical + self.len
    }

    /// Whether these are its stored bytes.
    pub fn verifies(&self, stored: &[u8]) -> bool {
        let checksum = crc32c::crc32c(stored).to_le_bytes();
        stored.len() == self.stored_len as usize
            && verifies(&checksum, &self.checksum.to_le_bytes())
    }

    /// One past its last stored byte in the backing file.
    pub fn stored_end(&self) -> u64 {
        self.physical + u64::from(self.stored_len)
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.logical.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.physical.to_le_bytes());
        bytes.extend(self.stored_len.to_le_bytes());
        bytes.extend(self.checksum.to_le_bytes());
        let form = match self.form {
            Form::Codec(codec) => codec as u8,
            Form::Zeros => FORM_ZEROS,
        };
        bytes.extend([form, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// None: impossible in a file of chunks this long, whose record starts at `record`.
    fn parse(bytes: &[u8], chunk_len: u64, record: u64) -> Option<Self> {
        let mut fields = Fields(bytes);
        let extent = Self {
            logical: fields.u64()?,
            len: fields.u64()?,
            physical: fields.u64()?,
            stored_len: fields.u32()?,
            checksum: fields.u32()?,
            form: match *fields.0.first()? {
                FORM_ZEROS => Form::Zeros,
                id => Form::Codec(Codec::from_id(id)?),
            },
        };
        let end = extent.logical.checked_add(extent.len)?;
        if extent.len == 0 || end > OFFSET_MAX {
            return None;
        }
        let fits = match extent.form {
            Form::Zeros => extent.stored_len == 0,
            Form::Codec(codec) => {
                let len = usize::try_from(extent.len).ok()?;
                let stored_end = extent.physical.checked_add(u64::from(extent.stored_len))?;
                (end - 1) / chunk_len == extent.logical / chunk_len
                    && extent.physical >= Head::LEN as u64
                    && stored_end <= record
                    && match codec {
                        Codec::Store => extent.stored_len as usize == len,
                        _ => extent.stored_len as usize <= codec.bound(len),
                    }
            }
        };
        fits.then_some(extent)
    }
}

/// Offsets are signed in every system call.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// What makes changes durable: these extents on top of the ones before, and this length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Changed extents, at most [`Record::EXTENTS_MAX`], in the order they are laid over.
    pub extents: Vec<Extent>,
    /// The last record of its commit. One that is not makes nothing valid by itself.
    pub last: bool,
    /// The whole file up to `size` is stored front to back: as a zstd stream it is its contents.
    pub linear: bool,
    /// Counts the records of one life of the file, from 1.
    pub seq: u64,
    /// Offset of the record before; 0 for the first.
    pub previous: u64,
    /// The root of the newest checkpoint: the index is its tree and the records since.
    pub checkpoint: Option<Pointer>,
    /// Records since the checkpoint, or since the file was empty, with this one.
    pub since: u32,
    /// Everything before this offset was known to be durable when this record was written.
    pub durable_end: u64,
    /// Length of the file.
    pub size: u64,
    /// Time of the last change: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

const RECORD_HEAD_LEN: usize = 96;
const RECORD_TRAILER_LEN: usize = 16;
const RECORD_LAST: u8 = 1;
const RECORD_LINEAR: u8 = 2;

impl Record {
    /// Extents in one record. A commit with more takes several records.
    pub const EXTENTS_MAX: usize = 64;
    /// Records end at multiples of this.
    pub const ALIGN: u64 = 8;
    /// The longest record, padding included.
    pub const LEN_MAX: usize =
        RECORD_HEAD_LEN + Self::EXTENTS_MAX * Extent::LEN + 7 + RECORD_TRAILER_LEN;
    /// Length of the trailer, by which a record is found from its end.
    pub const TRAILER_LEN: usize = RECORD_TRAILER_LEN;

    /// Length of a record of so many extents that starts at a multiple of [`Record::ALIGN`].
    pub fn len_of(extents: usize) -> usize {
        RECORD_HEAD_LEN + extents * Extent::LEN + RECORD_TRAILER_LEN
    }

    /// The record as it stands at `offset` of the file `id`.
    pub fn encode(&self, id: &FileId, offset: u64) -> Vec<u8> {
        assert!(self.extents.len() <= Self::EXTENTS_MAX, "too many extents for a record");
        let end = (offset + Self::len_of(self.extents.len()) as u64).next_multiple_of(Self::ALIGN);
        let len = usize::try_from(end - offset).expect("a record is short");
        let len_u32 = u32::try_from(len).expect("a record is short");
        let count = u8::try_from(self.extents.len()).expect("checked above");
        let flags =
            if self.last { RECORD_LAST } else { 0 } | if self.linear { RECORD_LINEAR } else { 0 };

        let mut bytes = Vec::with_capacity(len);
        bytes.extend(skippable(len - SKIPPABLE_HEAD_LEN));
        bytes.extend(*b"WCR");
        bytes.push(VERSION);
        bytes.extend([flags, count, 0, 0]);
        bytes.extend(id);
        bytes.extend(self.since.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(self.seq.to_le_bytes());
        bytes.extend(self.previous.to_le_bytes());
        let checkpoint = self.checkpoint.unwrap_or(Pointer { offset: 0, len: 0 });
        checkpoint.encode(&mut bytes);
        bytes.extend(self.durable_end.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.modified.0.to_le_bytes());
        bytes.extend(self.modified.1.to_le_bytes());
        assert_eq!(bytes.len(), RECORD_HEAD_LEN);
        self.extents.iter().for_each(|extent| extent.encode(&mut bytes));
        bytes.resize(len - RECORD_TRAILER_LEN, 0);
        bytes.extend(len_u32.to_le_bytes());
        bytes.extend([0; 4]);
        let checksum = checksum(id, offset, &bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// The length that the trailer of a record claims; None if it cannot be one.
    pub fn len_by_trailer(trailer: &[u8; RECORD_TRAILER_LEN]) -> Option<usize> {
        let len = Fields(trailer).u32()? as usize;
        let shortest = RECORD_HEAD_LEN + RECORD_TRAILER_LEN;
        (trailer[4..8] == [0; 4] && (shortest..=Self::LEN_MAX).contains(&len)).then_some(len)
    }

    /// The length that the start of a record claims; None if there is no record.
    pub fn len_by_head(bytes: &[u8]) -> Option<usize> {
        let len = usize::try_from(skippable_len(bytes)?).ok()?;
        (len <= bytes.len()).then_some(len)
    }

    /// The record in `bytes`, if it was written at `offset` of the file with this `head`.
    pub fn parse(bytes: &[u8], head: &Head, offset: u64) -> Option<Self> {
        let mut fields = fields_of_frame(bytes, *b"WCR", head, offset)?;
        let [flags, count, _, _] = fields.array()?;
        let count = usize::from(count);
        let id = fields.take(12)? == head.id;
        let since = fields.u32()?;
        let own_offset = fields.u64()? == offset;
        if !(id && own_offset) || count > Self::EXTENTS_MAX {
            return None;
        }
        let (seq, previous) = (fields.u64()?, fields.u64()?);
        let pointer = fields.take(Pointer::LEN)?;
        let checkpoint = match pointer.iter().all(|byte| *byte == 0) {
            true => None,
            false => Some(Pointer::parse(&mut Fields(pointer), offset)?),
        };
        let (durable_end, size) = (fields.u64()?, fields.u64()?);
        let modified = (fields.i64()?, fields.u32()?);
        let chunk_len = 1 << head.chunk_len_log2;
        let extents = (0..count)
            .map(|_| Extent::parse(fields.take(Extent::LEN)?, chunk_len, offset))
            .collect::<Option<_>>()?;
        // Nobody counts to the half of what there is.
        let counts = since != 0 && seq < 1 << 63;
        if size > OFFSET_MAX || previous >= offset || durable_end > offset || !counts {
            return None;
        }
        Some(Self {
            extents,
            last: flags & RECORD_LAST != 0,
            linear: flags & RECORD_LINEAR != 0,
            seq,
            previous,
            checkpoint,
            since,
            durable_end,
            size,
            modified,
        })
    }
}

/// What follows the tag of a skippable frame of ours, up to the checksum at its end: None if it is not
/// one with this tag, written at `offset` of the file with this `head`.
fn fields_of_frame<'a>(
    bytes: &'a [u8],
    tag: [u8; 3],
    head: &Head,
    offset: u64,
) -> Option<Fields<'a>> {
    let (body, stored_checksum) = bytes.split_last_chunk::<8>()?;
    if !verifies(&checksum(&head.id, offset, body).to_le_bytes(), stored_checksum) {
        return None;
    }
    let mut fields = Fields(body);
    let magic = fields.u32()? == SKIPPABLE_MAGIC;
    let length = fields.u32()? as usize == bytes.len() - SKIPPABLE_HEAD_LEN;
    let own_tag = fields.take(3)? == tag && fields.take(1)? == [VERSION];
    (magic && length && own_tag).then_some(fields)
}

/// Whether a checksum is the stored one. Fuzzers get past it, to what is behind.
fn verifies(checksum: &[u8], stored: &[u8]) -> bool {
    cfg!(fuzzing) || checksum == stored
}

/// crc64 over the id, the offset and the bytes: the same bytes elsewhere are not a record.
fn checksum(id: &FileId, offset: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new();
    digest.write(id);
    digest.write(&offset.to_le_bytes());
    digest.write(bytes);
    digest.sum64()
}

/// What the extended attribute of a backing file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute {
    /// What the bytes are.
    pub kind: Kind,
    /// Whether the sizes below can be trusted.
    pub state: State,
    /// Everything was synced when it was closed: no crash can have taken any of it.
    pub durable: bool,
    /// The [`Medium::epoch`](super::medium::Medium::epoch) in which it became clean.
    pub epoch: u32,
    /// Length of the backing file when it was last clean.
    pub physical: u64,
    /// Length of the file when it was last clean.
    pub size: u64,
}

/// What a backing file is, whatever its bytes look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In this format.
    Container,
    /// Contents as they are.
    Plain,
}

/// Whether a backing file was closed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The sizes hold if the backing file still has that length.
    Clean,
    /// Being written, or a crash came in between.
    Dirty,
}

impl Attribute {
    /// Length in bytes.
    pub const LEN: usize = 24;

    /// The attribute's value.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = VERSION;
        bytes[1] = match self.kind {
            Kind::Container => b'c',
            Kind::Plain => b'p',
        };
        bytes[2] = match self.state {
            State::Clean => b'c',
            State::Dirty => b'd',
        };
        bytes[3] = u8::from(self.durable);
        bytes[4..8].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.physical.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// The attribute in `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = Error::Damaged { what: "attribute user.warpcore", offset: 0 };
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&version) => return Err(Error::Version { version }),
            None => return Err(damaged),
        }
        let bytes: &[u8; Self::LEN] = match bytes.try_into() {
            Ok(bytes) => bytes,
            Err(_) => return Err(damaged),
        };
        let kind = match bytes[1] {
            b'c' => Kind::Container,
            b'p' => Kind::Plain,
            _ => return Err(damaged),
        };
        let state = match bytes[2] {
            b'c' => State::Clean,
            b'd' => State::Dirty,
            _ => return Err(damaged),
        };
        let mut fields = Fields(&bytes[4..]);
        let (Some(epoch), Some(physical), Some(size)) = (fields.u32(), fields.u64(), fields.u64())
        else {
            return Err(damaged);
        };
        Ok(Self { kind, state, durable: bytes[3] != 0, epoch, physical, size })
    }

    /// The file's length, if it can be known without opening a backing file of this length.
    pub fn size_if_clean(&self, backing_len: u64) -> Option<u64> {
        match self.kind {
            Kind::Plain => Some(backing_len),
            Kind::Container => {
                (self.state == State::Clean && self.physical == backing_len).then_some(self.size)
            }
        }
    }
}

/// Longest head of a frame that holds a raw chunk: magic, descriptor, content size, block header.
pub const RAW_FRAME_HEAD_LEN: usize = 4 + 1 + 4 + 3;

/// The head of a frame whose one block is the `len` bytes that follow it, as they are.
pub fn raw_frame_head(len: usize) -> [u8; RAW_FRAME_HEAD_LEN] {
    assert!(len > 0 && len <= 1 << CHUNK_LEN_LOG2_MAX, "a raw chunk is one block");
    frame_head(len, BLOCK_RAW | BLOCK_LAST, len)
}

/// A frame of `len` zeros, as run-length blocks. A few bytes for each 128 KiB.
pub fn zeros_frame(len: u64) -> Vec<u8> {
    const BLOCK: u64 = 1 << CHUNK_LEN_LOG2_MAX;
    let mut bytes = Vec::new();
    let mut left = len;
    while left > 0 {
        // A frame each, since a content size of 4 bytes is what `frame_head` writes.
        let block = left.min(BLOCK);
        left -= block;
        let block = usize::try_from(block).expect("at most 128 KiB");
        bytes.extend(frame_head(block, BLOCK_RLE | BLOCK_LAST, block));
        bytes.push(0);
    }
    bytes
}

/// Bits of a block header (RFC 8878, section 3.1.1.2).
const BLOCK_LAST: u32 = 1;
const BLOCK_RAW: u32 = 0 << 1;
const BLOCK_RLE: u32 = 1 << 1;

/// Frame header with a content size of 4 bytes in one segment, and the header of its block.
fn frame_head(content: usize, block_kind: u32, block: usize) -> [u8; RAW_FRAME_HEAD_LEN] {
    // Frame_Content_Size_flag 2 (4 bytes), Single_Segment_flag.
    const DESCRIPTOR: u8 = 2 << 6 | 1 << 5;
    let content = u32::try_from(content).expect("at most a chunk");
    let block = u32::try_from(block).expect("at most a chunk") << 3 | block_kind;
    let mut bytes = [0; RAW_FRAME_HEAD_LEN];
    bytes[..4].copy_from_slice(&ZSTD_MAGIC.to_le_bytes());
    bytes[4] = DESCRIPTOR;
    bytes[5..9].copy_from_slice(&content.to_le_bytes());
    bytes[9..].copy_from_slice(&block.to_le_bytes()[..3]);
    bytes
}

/// A frame that demands a dictionary nobody has: a zstd reader stops here with an error instead of
/// returning contents that later frames have changed.
pub const REFUSING_FRAME: [u8; 13] = [
    0x28, 0xB5, 0x2F, 0xFD, // magic
    0x03, // descriptor: a dictionary id of 4 bytes
    0x00, // window of 1 KiB
    b'W', b'A', b'R', b'P', // the dictionary
    0x01, 0x00, 0x00, // one block: last, raw, empty
];

/// Head of a skippable frame with `len` bytes behind it.
pub fn skippable(len: usize) -> [u8; SKIPPABLE_HEAD_LEN] {
    let len = u32::try_from(len).expect("frames are written in parts far below 4 GiB");
    let mut bytes = [0; SKIPPABLE_HEAD_LEN];
    bytes[..4].copy_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    bytes[4..].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// The length, head included, that the start of a skippable frame of ours claims.
pub fn skippable_len(bytes: &[u8]) -> Option<u64> {
    let mut fields = Fields(bytes);
    let magic = fields.u32()?;
    let len = u64::from(fields.u32()?) + SKIPPABLE_HEAD_LEN as u64;
    (magic == SKIPPABLE_MAGIC).then_some(len)
}

/// Reads fields front to back.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> Head {
        Head { chunk_len_log2: 16, id: *b"twelve bytes" }
    }

    fn record() -> Record {
        Record {
            extents: vec![
                Extent {
                    logical: 65536,
                    len: 4096,
                    physical: 40,
                    stored_len: 100,
                    form: Form::Codec(Codec::Zstd),
                    checksum: 7,
                },
                Extent {
                    logical: 0,
                    len: 1 << 30,
                    physical: 0,
                    stored_len: 0,
                    form: Form::Zeros,
                    checksum: 0,
                },
            ],
            last: true,
            linear: false,
            seq: 3,
            previous: 32,
            checkpoint: Some(Pointer { offset: 200, len: 48 }),
            since: 2,
            durable_end: 0,
            size: 1 << 30,
            modified: (-1, 999_999_999),
        }
    }

    #[test]
    fn what_is_encoded_parses() {
        assert_eq!(Head::parse(&head().encode()).expect("our version"), Some(head()));
        let bytes = record().encode(&head().id, 1001);
        assert_eq!((1001 + bytes.len()) % 8, 0);
        let trailer = bytes.last_chunk().expect("long enough");
        assert_eq!(Record::len_by_trailer(trailer), Some(bytes.len()));
        assert_eq!(Record::parse(&bytes, &head(), 1001), Some(record()));
        let attribute = Attribute {
            kind: Kind::Plain,
            state: State::Dirty,
            durable: true,
            epoch: 0xdead_beef,
            physical: 1 << 40,
            size: 5,
        };
        assert_eq!(Attribute::parse(&attribute.encode()).expect("ours"), attribute);
    }

    #[test]
    fn a_record_elsewhere_or_of_another_file_is_none() {
        let bytes = record().encode(&head().id, 1000);
        assert_eq!(Record::parse(&bytes, &head(), 1008), None);
        let other = Head { id: *b"another file", ..head() };
        assert_eq!(Record::parse(&bytes, &other, 1000), None);
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = head().encode();
        bytes[11] = 9;
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_le_bytes());
        assert!(matches!(Head::parse(&bytes), Err(Error::Version { version: 9 })));
        assert!(matches!(Attribute::parse(&[0, 4]), Err(Error::Version { version: 0 })));
    }

    #[test]
    fn zstd_reads_our_frames_and_refuses_the_refusing_one() {
        let mut stream = head().encode().to_vec();
        stream.extend(raw_frame_head(5));
        stream.extend(b"hello");
        stream.extend(zeros_frame(300_000));
        stream.extend(record().encode(&head().id, stream.len() as u64));
        let mut expected = b"hello".to_vec();
        expected.resize(5 + 300_000, 0);
        assert_eq!(zstd::decode_all(&stream[..]).expect("a zstd stream"), expected);

        stream.extend(REFUSING_FRAME);
        let error = zstd::decode_all(&stream[..]).expect_err("refused");
        assert!(error.to_string().contains("Dictionary mismatch"), "{error}");
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Head::parse(&bytes);
            let _ = Attribute::parse(&bytes);
            prop_assert_eq!(Record::parse(&bytes, &head(), 0), None);
        }

        #[test]
        fn a_flipped_bit_is_seen(at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = record().encode(&head().id, 1000);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Record::parse(&bytes, &head(), 1000), None);
        }
    }
}

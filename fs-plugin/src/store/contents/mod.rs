//! A file's contents from open to close: writes gather, are compressed, appended and committed.
//!
//! # What is where
//!
//! - *dirty*: written, in memory only. Bounded; never acknowledged by a sync.
//! - *pending*: stored in the backing file, not in a commit record yet.
//! - *committed*: in a record; after a crash as durable as the last sync.
//!
//! # A failed append
//!
//! is cut back, so that the previous commit stays the newest, and the dirty bytes stay dirty: the
//! error goes to whoever asked, and the next attempt writes everything again.

mod append;
mod compact;
mod container;
mod copy;
mod dead;
mod dirty;
mod durable;
mod load;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

pub use report::{CodecShare, Report};

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use warpcore_offload::{Codec, Compress, Decompress, Queue};

use super::format::{
    Attribute, Extent, Form, Head, Kind, OFFSET_MAX, Piece, Pointer, Record, State,
};
use super::index::{self, Index};
use super::medium::Medium;
use super::recovery::{self, Verify};
use crate::error::Error;
use append::{Append, Stored};
use dead::Dead;
use dirty::Dirty;
use load::{closed_in_order, found_by_head, load, read_head, recover};

/// How new contents are stored.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// log2 of the chunk length in bytes, for files that are empty now.
    pub chunk_len_log2: u8,
    /// The codec for what compresses.
    pub codec: Codec,
    /// Its level.
    pub level: i32,
    /// Records since the last checkpoint before the next is made: what opening has to read after a
    /// crash. A file is closed with an eighth of it.
    pub records_max: usize,
    /// Visible parts of extents that an open file keeps in memory, of 100 bytes or so each, before
    /// those go that are stored as they are.
    pub pieces_max: usize,
}

impl Default for Options {
    /// 64 KiB chunks, where ratio and read amplification have their knee, and zstd level 1.
    fn default() -> Self {
        Self {
            chunk_len_log2: 16,
            codec: Codec::Zstd,
            level: 1,
            records_max: 512,
            pieces_max: 1 << 15,
        }
    }
}

/// Chunks that may be dirty before they are stored: 1 MiB at the default length.
const DIRTY_CHUNKS_MAX: usize = 16;

/// Bytes of dirty chunks, if what is missing before them is on its way: what the kernel sends in
/// several requests at once comes in any order.
pub const AHEAD_MAX: u64 = 16 << 20;

/// What the lower filesystem allocates at a time, as far as it matters here.
const BLOCK: u64 = 4096;

/// Visible extents of a chunk before a write stores it as a whole again.
const EXTENTS_PER_CHUNK_MAX: usize = 16;

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// The contents of one file.
pub struct Contents<M> {
    medium: M,
    options: Options,
    /// The backing file is open for writing.
    writable: bool,
    body: Body,
    /// Time of the last change of contents through us. Our own writes move the backing file's; it is
    /// put back when the file is closed.
    modified: Option<Time>,
    /// It was set since the newest commit.
    is_time_new: bool,
    /// As `modified`, and nobody can set it: a lower bound of the inode's time of change.
    changed: Option<Time>,
    /// A sync failed: what the lower filesystem holds is unknown.
    poisoned: bool,
    /// A crash had taken some of it, which was found as it was to be changed: whoever has it open knows
    /// another length.
    is_cut_in_use: bool,
    /// The extent last decompressed.
    decoded: Mutex<Option<(Extent, Bytes)>>,
}

#[expect(clippy::large_enum_variant, reason = "one for each open file, and plain ones are rare")]
enum Body {
    Container(Container),
    /// Read and written in place. Whether the attribute says so.
    Plain {
        marked: bool,
    },
}

struct Container {
    /// None while the backing file is empty.
    head: Option<Head>,
    /// What the extended attribute says; None where there is none, and none can be.
    attribute: Option<State>,
    /// What is stored, pending extents included.
    index: Mutex<Index>,
    pending: Vec<Extent>,
    /// By chunk.
    dirty: BTreeMap<u64, Dirty>,
    /// Length of the file.
    size: u64,
    /// Something is not in a record: pending extents, or a length.
    changed: bool,
    /// Stored front to back so far, all of it readable by zstd.
    linear: bool,
    /// Nothing is stored of what follows; a linear file is stored up to here.
    covered: u64,
    /// When it was last committed without being asked: `covered`, and chunks that waited for their turn.
    committed_in_order: u64,
    waited: BTreeSet<u64>,
    /// The refusing frame is in the file.
    refused: bool,
    /// Where the next append goes.
    physical: u64,
    /// End of the newest record.
    record_end: u64,
    /// End of the zeros that were written ahead for small commits, if behind `physical`.
    zone_end: u64,
    /// Small syncs in a row.
    small_syncs: u32,
    /// Everything before it is durable.
    durable_end: u64,
    dead: Dead,
    /// What lies behind `physical` is nothing, and is cut before the first change.
    is_uncut: bool,
    /// What lay behind `physical` was nothing, though the file was as long as when it was closed.
    was_cut: bool,
    /// Closed in order before the system last started, and never synced as a whole: what is behind
    /// `durable_end` may have been lost, and is not to be built on before it is verified.
    unverified: bool,
    /// Time of the last change that the newest record tells, if the file was not closed in order.
    recovered: Option<Time>,
    /// Of the newest record.
    seq: u64,
    /// Root of the newest checkpoint.
    checkpoint: Option<Pointer>,
    /// Where the records since lie.
    chain: Vec<Range<u64>>,
}

/// When the records of what was appended are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Records {
    Now,
    /// Now, if a record's worth of extents is pending.
    IfCrowded,
    Later,
}

impl<M: Medium> Contents<M> {
    /// Contents of a backing file that was just created, and is empty.
    pub fn create(medium: M, options: Options) -> Result<Self, Error> {
        let body = Body::Container(Container::empty());
        let mut contents = Self::new(medium, options, true, body);
        // Before the first byte: whatever is found here after a crash is a container.
        contents.mark_dirty()?;
        Ok(contents)
    }

    /// Contents of an existing backing file. When it was not closed in order and is `writable`,
    /// what a crash left behind the newest commit is cut.
    pub async fn open(medium: M, options: Options, writable: bool) -> Result<Self, Error> {
        let (attribute, has_attributes) = match medium.attribute() {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => (None, false),
            attribute => (attribute?, true),
        };
        let attribute = attribute.map(|value| Attribute::parse(&value)).transpose()?;
        let len = medium.len()?;
        let body = match attribute {
            Some(Attribute { kind: Kind::Plain, .. }) if len > 0 => Body::Plain { marked: true },
            Some(attribute) => Body::Container(load(&medium, len, attribute, writable).await?),
            None if len == 0 => Body::Container(Container::empty()),
            // A copy that lost its attributes: both head and newest commit must verify.
            None => match closed_in_order(&medium, len).await {
                Ok(Some((head, found))) => Body::Container(Container::loaded(head, found, None)),
                // Where there are no attributes the head is all that says whose a file is that was not
                // closed in order.
                Ok(None) if !has_attributes && read_head(&medium).await?.is_some() => {
                    Body::Container(found_by_head(&medium, len, writable).await?)
                }
                Ok(None) => Body::Plain { marked: false },
                Err(error) => return Err(error),
            },
        };
        Ok(Self::new(medium, options, writable, body))
    }

    fn new(medium: M, options: Options, writable: bool, body: Body) -> Self {
        let modified = match &body {
            Body::Container(container) => container.recovered,
            Body::Plain { .. } => None,
        };
        Self {
            medium,
            options,
            writable,
            body,
            modified,
            changed: None,
            poisoned: false,
            is_cut_in_use: false,
            is_time_new: false,
            decoded: Mutex::default(),
        }
    }

    /// The backing file.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    /// Length in bytes.
    pub fn size(&self) -> Result<u64, Error> {
        match &self.body {
            Body::Container(container) => Ok(container.size),
            Body::Plain { .. } => Ok(self.medium.len()?),
        }
    }

    /// Whether bytes are gone that its mark as closed in order told of: its length is another.
    pub fn was_cut(&self) -> bool {
        matches!(&self.body, Body::Container(Container { was_cut: true, .. }))
    }

    /// Fails if it was cut while it was open: what lies behind its end is not zeros to who knows it longer.
    pub fn check_length(&self) -> Result<(), Error> {
        if self.is_cut_in_use { Err(Error::Cut) } else { Ok(()) }
    }

    /// Time of the last change of contents, while our own writes may have moved the backing file's.
    pub fn modified(&self) -> Option<Time> {
        self.modified
    }

    /// The inode has changed at this time or later.
    pub fn changed(&self) -> Option<Time> {
        self.changed
    }

    /// Sets the time of the last change of contents, to be kept when later writes of ours move it.
    pub fn set_modified(&mut self, modified: Time) {
        self.modified = Some(modified);
        self.is_time_new = true;
    }

    /// Bytes in memory only.
    pub fn dirty_len(&self) -> u64 {
        let Body::Container(container) = &self.body else { return 0 };
        container.dirty.values().map(|dirty| dirty.bytes.len() as u64).sum()
    }

    /// Bytes that the index takes in memory, about.
    pub fn index_len(&self) -> u64 {
        /// A visible part of an extent, and its share of the map's nodes.
        const PIECE_LEN: u64 = 100;
        let Body::Container(container) = &self.body else { return 0 };
        index::lock(&container.index).len() as u64 * PIECE_LEN
    }

    /// Drops what the index can read again.
    pub fn evict(&self) {
        if let Body::Container(container) = &self.body {
            index::lock(&container.index).evict();
        }
    }

    /// Whether something would be lost if the process ended now.
    pub fn is_dirty(&self) -> bool {
        match &self.body {
            Body::Container(container) => {
                // A record may have been written in the middle of a change.
                container.changed || !container.pending.is_empty() || !container.dirty.is_empty()
            }
            Body::Plain { .. } => false,
        }
    }

    /// Reads at `offset` into `target`, and says how much: less than its length only at the end of
    /// the file.
    pub async fn read(
        &self,
        queue: &Queue,
        offset: u64,
        target: &mut [u8],
    ) -> Result<usize, Error> {
        let Body::Container(container) = &self.body else {
            let bytes = self.medium.read_at(offset, target.len()).await?;
            target[..bytes.len()].copy_from_slice(&bytes);
            return Ok(bytes.len());
        };
        let end = offset.saturating_add(target.len() as u64);
        if end > container.size {
            self.check_length()?;
        }
        let end = container.size.min(end);
        if offset >= end {
            return Ok(0);
        }
        let target = &mut target[..to_index(end - offset)];
        let pieces = self.pieces(offset..end).await?;
        let decoded = self.decode(queue, pieces.iter().map(|(_, extent)| *extent)).await?;
        let mut done = 0;
        for ((visible, extent), decoded) in pieces.into_iter().zip(decoded) {
            let from = to_index(visible.start - extent.logical);
            let to = to_index(visible.end - extent.logical);
            let at = to_index(visible.start - offset);
            target[done..at].fill(0);
            done = at + (to - from);
            target[at..done].copy_from_slice(&decoded[from..to]);
        }
        target[done..].fill(0);
        container.overlay_dirty(offset, target, self.chunk_len());
        Ok(target.len())
    }

    /// Writes `bytes` at `offset`: to memory, or to the backing file when much has gathered.
    pub async fn write(&mut self, queue: &Queue, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check_writable()?;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= OFFSET_MAX);
        let end = end.ok_or_else(|| errno(libc::EFBIG))?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Body::Plain { .. } = self.body {
            self.begin_plain_change()?;
            return Ok(self.medium.write_at(bytes.to_vec(), offset).await?);
        }
        self.begin_change().await?;
        let chunk_len = self.chunk_len();
        let first = offset / chunk_len;
        if self.container().dirty.len() >= DIRTY_CHUNKS_MAX {
            // Room first: what cannot be stored is not accepted either. The chunk that is written
            // on stays.
            let ahead = self.container().ahead(chunk_len);
            self.store(queue, |chunk| chunk == first || ahead.contains(&chunk), false).await?;
        }
        // What cannot be laid over anything is refused here, and stands in the way of nothing else.
        self.know(offset..end).await?;
        let container = self.container_mut();
        let (mut at, mut left) = (offset, bytes);
        while !left.is_empty() {
            let within = to_index(at % chunk_len);
            let (part, rest) = left.split_at(left.len().min(to_index(chunk_len) - within));
            container.dirty.entry(at / chunk_len).or_default().write(within, part);
            at += part.len() as u64;
            left = rest;
        }
        container.size = container.size.max(end);
        self.touch();
        Ok(())
    }

    /// Sets the length. What is new is zeros.
    pub async fn set_size(&mut self, size: u64) -> Result<(), Error> {
        if size > OFFSET_MAX {
            return Err(errno(libc::EFBIG));
        }
        self.check_writable()?;
        if let Body::Plain { .. } = self.body {
            self.begin_plain_change()?;
            self.medium.set_len(size)?;
            if size > 0 {
                return Ok(());
            }
            // Empty: from here on it is ours to store.
            self.body = Body::Container(Container::empty());
        }
        if size == 0 {
            // Nothing of it will be built on, unless it stays.
            let unverified = std::mem::take(&mut self.container_mut().unverified);
            let emptied = match self.begin_change().await {
                Ok(()) => self.medium.set_len(0).map_err(Error::from),
                marked => marked,
            };
            if emptied.is_err() {
                self.container_mut().unverified = unverified;
                return emptied;
            }
            self.forget_decoded();
            let attribute = self.container().attribute;
            self.body = Body::Container(Container { attribute, ..Container::empty() });
        } else {
            self.begin_change().await?;
            let chunk_len = self.chunk_len();
            self.forget_decoded();
            self.know(size..self.size()?).await?;
            self.container_mut().set_size(size, chunk_len);
        }
        self.touch();
        Ok(())
    }

    /// Makes `range` zeros, as a hole (fallocate(2), FALLOC_FL_PUNCH_HOLE). The length stays.
    pub async fn punch_hole(&mut self, range: Range<u64>) -> Result<(), Error> {
        self.check_writable()?;
        let range = range.start..range.end.min(self.size()?);
        if range.is_empty() {
            return Ok(());
        }
        if let Body::Plain { .. } = self.body {
            self.begin_plain_change()?;
            return Ok(self.medium.punch(range)?);
        }
        self.begin_change().await?;
        self.know(range.clone()).await?;
        let chunk_len = self.chunk_len();
        self.container_mut().take_out(range, chunk_len);
        self.touch();
        Ok(())
    }

    /// Whatever a plain file becomes, it stays one: also if that is a container.
    fn begin_plain_change(&mut self) -> Result<(), Error> {
        if let Body::Plain { marked } = &mut self.body
            && !*marked
        {
            let plain = Attribute {
                kind: Kind::Plain,
                state: State::Dirty,
                durable: false,
                epoch: self.medium.epoch(),
                physical: 0,
                size: 0,
            };
            set_attribute(&self.medium, plain)?;
            *marked = true;
        }
        // The lower's own times stand.
        (self.modified, self.changed) = (None, None);
        Ok(())
    }

    /// The stored bytes of an extent, verified.
    async fn stored(&self, extent: &Extent) -> Result<Stored, Error> {
        let Extent { logical, len, physical, stored_len, form, .. } = *extent;
        let bytes = self.medium.read_at(physical, stored_len as usize).await?;
        if !extent.verifies(&bytes) {
            return Err(Error::Damaged { what: "extent", offset: physical });
        }
        Ok(Stored { logical, len, form, bytes: bytes.into() })
    }

    /// The visible parts within `range`, cut to it, in order.
    async fn pieces(&self, range: Range<u64>) -> Result<Vec<Piece>, Error> {
        let Body::Container(Container { head: Some(head), index, .. }) = &self.body else {
            return Ok(Vec::new());
        };
        let mut index = index::known(&self.medium, head, index, range.clone(), 0).await?;
        let pieces = index.within(range).collect();
        self.evict_if_crowded(&mut index);
        Ok(pieces)
    }

    fn evict_if_crowded(&self, index: &mut Index) {
        index.evict_if_crowded(self.options.pieces_max);
    }

    /// Until the next await, or append, the index says all that is visible in `range`.
    async fn know(&self, range: Range<u64>) -> Result<(), Error> {
        if let Body::Container(Container { head: Some(head), index, .. }) = &self.body {
            drop(index::known(&self.medium, head, index, range, 0).await?);
        }
        Ok(())
    }

    /// The plain bytes of whole extents, in their order. What lies side by side is read at once, and
    /// all are decompressed at the same time.
    async fn decode(
        &self,
        queue: &Queue,
        extents: impl Iterator<Item = Extent>,
    ) -> Result<Vec<Bytes>, Error> {
        let known = self.decoded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut plain = Vec::new();
        let mut missing = Vec::new();
        for (index, extent) in extents.enumerate() {
            match &known {
                Some((known, bytes)) if *known == extent => plain.push(bytes.clone()),
                _ => {
                    plain.push(Bytes::new());
                    missing.push((index, extent));
                }
            }
        }
        let mut ops = Vec::with_capacity(missing.len());
        for run in missing.chunk_by(|(_, one), (_, next)| are_neighbours(one, next)) {
            let (start, last) = (run[0].1.physical, run[run.len() - 1].1);
            let len = to_index(last.physical - start) + last.stored_len as usize;
            let stored = Bytes::from(self.medium.read_at(start, len).await?);
            for (index, extent) in run {
                let damaged = Error::Damaged { what: "extent", offset: extent.physical };
                let from = to_index(extent.physical - start);
                let source = stored.get(from..from + extent.stored_len as usize);
                let source = match source {
                    Some(source) if extent.verifies(source) => source,
                    _ => return Err(damaged),
                };
                let Form::Codec(codec) = extent.form else {
                    unreachable!("zeros are not in the index");
                };
                let source = stored.slice_ref(source);
                if codec == Codec::Store && source.len() as u64 == extent.len {
                    plain[*index] = source;
                    continue;
                }
                let target = vec![0; to_index(extent.len)];
                let op = queue.submit(Decompress { codec, source, target });
                ops.push((*index, extent, damaged, op));
            }
        }
        for (index, extent, damaged, op) in ops {
            let done = op.await;
            if done.result != Ok(to_index(extent.len)) {
                return Err(damaged);
            }
            plain[index] = Bytes::from(done.target);
        }
        if let Some((index, extent)) = missing.last() {
            let last = (*extent, plain[*index].clone());
            *self.decoded.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        }
        Ok(plain)
    }

    fn forget_decoded(&mut self) {
        *self.decoded.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Compresses and appends what is dirty, but for chunks that are to be kept; with a commit record
    /// if `commit`, or when a record's worth of extents is pending.
    async fn store(
        &mut self,
        queue: &Queue,
        keep: impl Fn(u64) -> bool,
        commit: bool,
    ) -> Result<(), Error> {
        let chunk_len = self.chunk_len();
        let dirty = &self.container().dirty;
        let chunks: Vec<_> = dirty.keys().copied().filter(|chunk| !keep(*chunk)).collect();
        if chunks.is_empty() && !commit {
            return Ok(());
        }
        self.merge_crowded(queue, &chunks).await?;
        let dirty = &mut self.container_mut().dirty;
        let taken = chunks.iter().filter_map(|chunk| dirty.remove_entry(chunk));
        let taken: Vec<_> = taken.collect();
        let mut sources = Vec::new();
        for (chunk, dirty) in taken {
            let bytes = Bytes::from(dirty.bytes);
            for range in dirty.ranges {
                let logical = chunk * chunk_len + range.start as u64;
                sources.push((logical, bytes.slice(range)));
            }
        }
        // Dirty again if it fails, or is cancelled.
        let mut taken = Taken { contents: self, sources };
        let stored = taken.contents.compress(queue, &taken.sources).await?;
        let records = if commit { Records::Now } else { Records::IfCrowded };
        taken.contents.append(stored, records).await?;
        taken.sources.clear();
        Ok(())
    }

    /// Appends what is stored already. When it fails, nothing has changed.
    async fn append(&mut self, stored: Vec<Stored>, records: Records) -> Result<(), Error> {
        let head = match self.container().head {
            Some(head) => head,
            None => Head { chunk_len_log2: self.options.chunk_len_log2, id: random_id()? },
        };
        let fresh_head = self.container().head.is_none();
        let codec = self.options.codec;
        let modified = self.modified.unwrap_or((0, 0));
        for span in &stored {
            self.know(span.logical..span.logical + span.len).await?;
        }
        let container = self.container_mut();
        let mut append = Append::new(container);
        if fresh_head {
            container.index = Mutex::new(Index::new(1 << head.chunk_len_log2));
            append.bytes.extend(head.encode());
            if !is_zstd(codec) {
                // It never will be a zstd stream.
                append.linear = false;
                append.refuse();
            }
        }
        append.place(stored);
        let pending = container.pending.len() + append.extents.len();
        let is_crowded = pending >= Record::EXTENTS_MAX;
        if records == Records::Now || records == Records::IfCrowded && is_crowded {
            append.records(container, &head, modified);
        }
        self.write_append(append).await?;
        self.container_mut().head = Some(head);
        Ok(())
    }

    /// Writes an append. When it fails, nothing has changed.
    async fn write_append(&mut self, mut append: Append) -> Result<(), Error> {
        let Append { start, bytes, .. } = &mut append;
        let (start, bytes) = (*start, std::mem::take(bytes));
        let end = start + bytes.len() as u64;
        if !bytes.is_empty()
            && let Err(error) = self.medium.write_at(bytes, start).await
        {
            // Half an append must not stand behind the newest commit.
            self.container_mut().zone_end = 0;
            if let Err(error) = self.medium.set_len(start) {
                tracing::error!("a failed append could not be cut back: {error}");
            }
            return Err(error.into());
        }
        let container = self.container_mut();
        container.physical = end;
        append.apply(container);
        self.evict_if_crowded(&mut index::lock(&self.container().index));
        Ok(())
    }

    /// Compresses each source, all of them in flight at once. What does not become at least a
    /// sixteenth shorter is stored as it is.
    async fn compress(
        &self,
        queue: &Queue,
        sources: &[(u64, Bytes)],
    ) -> Result<Vec<Stored>, Error> {
        let Options { codec, level, .. } = self.options;
        let ops: Vec<_> = sources
            .iter()
            .map(|(logical, source)| {
                if source.iter().all(|byte| *byte == 0) {
                    return (*logical, source.clone(), None);
                }
                let target = vec![0; source.len() - source.len().div_ceil(16)];
                let request = Compress { codec, level, source: source.clone(), target };
                (*logical, source.clone(), Some(queue.submit(request)))
            })
            .collect();
        let mut stored = Vec::with_capacity(ops.len());
        for (logical, source, op) in ops {
            let len = source.len() as u64;
            let (form, bytes) = match op {
                None => (Form::Zeros, Bytes::new()),
                Some(op) => {
                    let done = op.await;
                    match done.result {
                        Ok(len) => (Form::Codec(codec), Bytes::from(done.target).slice(..len)),
                        Err(warpcore_offload::Error::TargetTooSmall { .. }) => {
                            (Form::Codec(Codec::Store), source)
                        }
                        Err(error) => return Err(Error::Io(std::io::Error::other(error))),
                    }
                }
            };
            stored.push(Stored { logical, len, form, bytes });
        }
        Ok(stored)
    }

    /// Makes those of these chunks that consist of many extents dirty as a whole, so that they are
    /// stored as one again.
    async fn merge_crowded(&mut self, queue: &Queue, chunks: &[u64]) -> Result<(), Error> {
        let chunk_len = self.chunk_len();
        for &chunk in chunks {
            let span = chunk * chunk_len..(chunk + 1) * chunk_len;
            self.know(span.clone()).await?;
            let container = self.container_mut();
            let ranges = container.dirty.get(&chunk).map_or(0, |dirty| dirty.ranges.len());
            let new = ranges.saturating_sub(1);
            if container.index().within(span).count() + new < EXTENTS_PER_CHUNK_MAX {
                continue;
            }
            let mut whole = vec![0; to_index(chunk_len)];
            match self.read(queue, chunk * chunk_len, &mut whole).await {
                Ok(len) => whole.truncate(len),
                // What is damaged stays where it is, and stands in nobody's way.
                Err(error) if error.errno() == libc::EIO => continue,
                Err(error) => return Err(error),
            };
            self.container_mut().dirty.entry(chunk).or_default().write(0, &whole);
        }
        Ok(())
    }

    /// Whether the backing file can be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    fn check_writable(&self) -> Result<(), Error> {
        match self {
            Self { poisoned: true, .. } => Err(Error::Poisoned),
            Self { writable: false, .. } => Err(errno(libc::EROFS)),
            _ => self.check_length(),
        }
    }

    /// Before the first change since the file was clean.
    async fn begin_change(&mut self) -> Result<(), Error> {
        if let Body::Container(Container { unverified: true, head: Some(head), physical, .. }) =
            self.body
        {
            self.body = Body::Container(
                match recovery::commit_at(&self.medium, &head, physical, Verify::NotLost).await? {
                    Some(found) => {
                        // Read back after the loss, if there was one: it is on the disk.
                        let durable_end = found.end;
                        let loaded = Container::loaded(head, found, Some(State::Clean));
                        Container { durable_end, ..loaded }
                    }
                    None => {
                        recover(&self.medium, physical, State::Clean, true, self.writable).await?
                    }
                },
            );
            self.forget_decoded();
            if let Body::Container(container) = &self.body {
                self.modified = self.modified.or(container.recovered);
            }
            self.is_cut_in_use = self.was_cut();
            self.check_length()?;
        }
        if let Body::Container(container @ Container { is_uncut: true, .. }) = &mut self.body {
            self.medium.set_len(container.physical)?;
            container.is_uncut = false;
        }
        self.mark_dirty()
    }

    /// Says on the backing file that it is being written.
    fn mark_dirty(&mut self) -> Result<(), Error> {
        let epoch = self.medium.epoch();
        let Body::Container(container) = &mut self.body else { return Ok(()) };
        if container.attribute != Some(State::Dirty) {
            let attribute = container.attribute(State::Dirty, epoch);
            container.attribute = set_attribute(&self.medium, attribute)?;
        }
        Ok(())
    }

    fn touch(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.modified = Some((seconds, now.subsec_nanos()));
        self.changed = self.modified;
        self.container_mut().changed = true;
    }

    fn chunk_len(&self) -> u64 {
        let head = match &self.body {
            Body::Container(container) => container.head,
            Body::Plain { .. } => None,
        };
        1 << head.map_or(self.options.chunk_len_log2, |head| head.chunk_len_log2)
    }

    fn container(&self) -> &Container {
        match &self.body {
            Body::Container(container) => container,
            Body::Plain { .. } => unreachable!("plain files are handled before"),
        }
    }

    fn container_mut(&mut self) -> &mut Container {
        match &mut self.body {
            Body::Container(container) => container,
            Body::Plain { .. } => unreachable!("plain files are handled before"),
        }
    }
}

/// Dirty bytes on their way to the backing file.
struct Taken<'a, M: Medium> {
    contents: &'a mut Contents<M>,
    sources: Vec<(u64, Bytes)>,
}

impl<M: Medium> Drop for Taken<'_, M> {
    fn drop(&mut self) {
        let chunk_len = self.contents.chunk_len();
        for (logical, bytes) in &self.sources {
            let dirty = &mut self.contents.container_mut().dirty;
            let dirty = dirty.entry(logical / chunk_len).or_default();
            dirty.write(to_index(logical % chunk_len), bytes);
        }
    }
}

impl<M> fmt::Debug for Contents<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Container(container) => write!(f, "Contents({} bytes)", container.size),
            Body::Plain { .. } => f.write_str("Contents(plain)"),
        }
    }
}

/// Whether a zstd reader can make something of it: a codec that is not one of these makes its
/// files unreadable to others from the start.
fn is_zstd(codec: Codec) -> bool {
    matches!(codec, Codec::Store | Codec::Zstd)
}

/// Whether the second is stored right behind the first, so that one read brings both.
fn are_neighbours(first: &Extent, second: &Extent) -> bool {
    /// Bytes between them that are not worth a read of their own: heads of frames, records.
    const GAP_MAX: u64 = 8192;
    let end = first.physical + u64::from(first.stored_len);
    second.physical.checked_sub(end).is_some_and(|gap| gap <= GAP_MAX)
}

/// Sets the attribute; None where the lower filesystem has none for us to set.
fn set_attribute<M: Medium>(medium: &M, attribute: Attribute) -> Result<Option<State>, Error> {
    match medium.set_attribute(&attribute.encode()) {
        Ok(()) => Ok(Some(attribute.state)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn random_id() -> Result<[u8; 12], Error> {
    let mut id = [0; 12];
    let filled = SystemRandom::new().fill(&mut id);
    filled.map_err(|_| Error::Io(std::io::Error::other("the system has no random numbers")))?;
    Ok(id)
}

fn errno(errno: i32) -> Error {
    Error::Io(std::io::Error::from_raw_os_error(errno))
}

/// A length or offset within what is in memory.
fn to_index(offset: u64) -> usize {
    usize::try_from(offset).expect("usize has 64 bits on the systems we build for")
}

const _: () = assert!(usize::BITS == 64);

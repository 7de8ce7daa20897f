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
mod dead;
mod dirty;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use warpcore_offload::{Codec, Compress, Decompress, Queue};

use super::format::{
    Attribute, Extent, Form, Head, Kind, OFFSET_MAX, Piece, Pointer, Record, State,
};
use super::index::{self, Index};
use super::medium::Medium;
use super::recovery::{self, Found};
use crate::error::Error;
use append::{Append, Stored, padding};
use dead::Dead;
use dirty::Dirty;

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

/// What the lower filesystem allocates at a time, as far as it matters here.
const BLOCK: u64 = 4096;

/// Zeros that are written ahead at a time, and the largest commit that they are for.
const ZONE_LEN: u64 = 256 << 10;
const ZONE_COMMIT_MAX: u64 = 64 << 10;

/// Blocks that were replaced are given back when they are as much as this: doing so costs a change
/// of metadata, which the next sync pays.
const PUNCH_LEN: u64 = 1 << 20;

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
    /// As `modified`, and nobody can set it: a lower bound of the inode's time of change.
    changed: Option<Time>,
    /// A sync failed: what the lower filesystem holds is unknown.
    poisoned: bool,
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

/// What one codec has stored of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CodecShare {
    /// The codec; [`Codec::Store`] for bytes as they are.
    pub codec: Codec,
    /// Visible bytes of the file.
    pub len: u64,
    /// Stored bytes that they are decompressed from.
    pub stored: u64,
}

/// What [`Contents::report`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// In the format, or plain.
    pub kind: Kind,
    /// Length of the file.
    pub size: u64,
    /// Length of the backing file.
    pub physical: u64,
    /// Visible extents.
    pub extents: usize,
    /// Stored bytes that are visible, at least in part.
    pub stored: u64,
    /// As a zstd stream, the backing file is the contents.
    pub linear: bool,
    /// By whom it was stored.
    pub codecs: Vec<CodecShare>,
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
        let attribute = medium.attribute()?.map(|value| Attribute::parse(&value)).transpose()?;
        let len = medium.len()?;
        let body = match attribute {
            Some(Attribute { kind: Kind::Plain, .. }) if len > 0 => Body::Plain { marked: true },
            Some(attribute) => Body::Container(load(&medium, len, attribute, writable).await?),
            None if len == 0 => Body::Container(Container::empty()),
            // A copy that lost its attributes: both head and newest commit must verify.
            None => match closed_in_order(&medium, len).await {
                Ok(Some((head, found))) => Body::Container(Container::loaded(head, found, None)),
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
    }

    /// Bytes in memory only.
    pub fn dirty_len(&self) -> u64 {
        let Body::Container(container) = &self.body else { return 0 };
        let ranges = container.dirty.values().flat_map(|dirty| &dirty.ranges);
        ranges.map(|range| range.len() as u64).sum()
    }

    /// Whether something would be lost if the process ended now.
    pub fn is_dirty(&self) -> bool {
        match &self.body {
            Body::Container(container) => container.changed || !container.dirty.is_empty(),
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
        let end = container.size.min(offset.saturating_add(target.len() as u64));
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
        if let Body::Plain { marked } = &mut self.body {
            if !*marked && offset < Head::LEN as u64 {
                // From now on its first bytes may be anything, also those of a container.
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
            return Ok(self.medium.write_at(bytes.to_vec(), offset).await?);
        }
        self.begin_change().await?;
        let chunk_len = self.chunk_len();
        let first = offset / chunk_len;
        if self.container().dirty.len() >= DIRTY_CHUNKS_MAX {
            // Room first: what cannot be stored is not accepted either. The chunk that is written
            // on stays.
            self.store(queue, Some(first), false).await?;
        }
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
            (self.modified, self.changed) = (None, None);
            self.medium.set_len(size)?;
            if size > 0 {
                return Ok(());
            }
            // Empty: from here on it is ours to store.
            self.body = Body::Container(Container::empty());
        }
        if size == 0 {
            // Nothing of it will be built on.
            self.container_mut().unverified = false;
        }
        self.begin_change().await?;
        let chunk_len = self.chunk_len();
        self.forget_decoded();
        if size == 0 {
            self.medium.set_len(0)?;
            let attribute = self.container().attribute;
            self.body = Body::Container(Container { attribute, ..Container::empty() });
        } else {
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
            (self.modified, self.changed) = (None, None);
            return Ok(self.medium.punch(range)?);
        }
        self.begin_change().await?;
        self.know(range.clone()).await?;
        let chunk_len = self.chunk_len();
        self.container_mut().take_out(range, chunk_len);
        self.touch();
        Ok(())
    }

    /// Puts `len` bytes at `from` of `source` in place of those at `to`, and says how many: fewer
    /// only at the end of `source`. Whole chunks go as they are stored, if both files have the same
    /// ones.
    pub async fn copy_from(
        &mut self,
        queue: &Queue,
        source: &mut Self,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let len = len.min(source.size()?.saturating_sub(from));
        let end = to.checked_add(len).filter(|end| *end <= OFFSET_MAX);
        end.ok_or_else(|| errno(libc::EFBIG))?;
        source.commit(queue).await?;
        let (mut from, mut to, mut left) = (from, to, len);
        while left > 0 {
            let mut copied = self.copy_stored(queue, source, from, to, left).await?;
            if copied == 0 {
                // Byte by byte, up to the next border of a chunk here.
                let chunk_len = self.chunk_len();
                copied = left.min(chunk_len - to % chunk_len);
                let mut bytes = vec![0; to_index(copied)];
                // All are there: `len` was bounded by the length of a file that is held.
                source.read(queue, from, &mut bytes).await?;
                self.write(queue, to, &bytes).await?;
            }
            (from, to, left) = (from + copied, to + copied, left - copied);
        }
        Ok(len)
    }

    /// As [`Contents::copy_from`], from another place of the same file.
    pub async fn copy_within(
        &mut self,
        queue: &Queue,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        const PART: usize = 1 << 20;
        let mut part = vec![0; PART];
        let mut done = 0;
        while done < len {
            let room = to_index((len - done).min(PART as u64));
            let read = self.read(queue, from + done, &mut part[..room]).await?;
            if read == 0 {
                break;
            }
            self.write(queue, to + done, &part[..read]).await?;
            done += read as u64;
        }
        Ok(done)
    }

    /// Copies what is stored of the next whole chunks, up to a record's worth. 0: there are none, or
    /// they are stored otherwise.
    async fn copy_stored(
        &mut self,
        queue: &Queue,
        source: &Self,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        const CHUNKS_MAX: u64 = 16;
        self.check_writable()?;
        let Body::Container(Container { head: Some(head), .. }) = &source.body else {
            return Ok(0);
        };
        let chunk_len = 1 << head.chunk_len_log2;
        let len = len.min(CHUNKS_MAX * chunk_len) / chunk_len * chunk_len;
        let fits = from.is_multiple_of(chunk_len) && to.is_multiple_of(chunk_len) && len > 0;
        let Body::Container(own) = &mut self.body else { return Ok(0) };
        // A file that has nothing yet takes the chunks of what it gets.
        let same = match own.head {
            Some(own) => own.chunk_len_log2 == head.chunk_len_log2,
            None => own.dirty.is_empty() || self.options.chunk_len_log2 == head.chunk_len_log2,
        };
        if !fits || !same {
            return Ok(0);
        }
        let mut stored = Vec::new();
        for (visible, extent) in source.pieces(from..from + len).await? {
            if visible != (extent.logical..extent.end()) {
                return Ok(0);
            }
            let span = source.stored(&extent).await?;
            stored.push(Stored { logical: extent.logical - from + to, ..span });
        }
        self.options.chunk_len_log2 = head.chunk_len_log2;
        self.begin_change().await?;
        // Before a record may be written: it tells the time.
        self.touch();
        // What was written here before comes first, and what is copied lies over it.
        self.store(queue, None, false).await?;
        let ends = stored.iter().map(|span| span.logical + span.len);
        let starts = stored.iter().map(|span| span.logical).chain([to + len]);
        let gaps: Vec<_> = [to].into_iter().chain(ends).zip(starts).collect();
        self.append(stored, false).await?;
        self.know(to..to + len).await?;
        let container = self.container_mut();
        for (start, end) in gaps {
            // Where nothing was stored a hole is a hole.
            if container.index().within(start..end).next().is_some() {
                container.take_out(start..end, chunk_len);
            }
        }
        container.size = container.size.max(to + len);
        container.changed = true;
        Ok(len)
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

    /// Puts everything written so far in a commit. Not durable before [`Contents::sync`].
    pub async fn commit(&mut self, queue: &Queue) -> Result<(), Error> {
        if !self.is_dirty() {
            return Ok(());
        }
        let container = self.container_mut();
        if container.size == 0 && container.head.is_none() {
            // An empty file is an empty backing file.
            container.changed = false;
            return Ok(());
        }
        self.store(queue, None, true).await?;
        let Options { records_max, pieces_max, .. } = self.options;
        let container = self.container_mut();
        let records = container.chain.len();
        let crowded = container.index().len() > pieces_max && records > records_max / 8;
        if records > records_max || crowded {
            self.checkpoint_if_possible().await;
        }
        Ok(())
    }

    /// Stores the index as a tree, so that the records before are not needed any more. The commit
    /// stands without it: an error is logged.
    async fn checkpoint_if_possible(&mut self) {
        if let Err(error) = self.checkpoint().await {
            tracing::debug!("no checkpoint: {error}");
        }
    }

    async fn checkpoint(&mut self) -> Result<(), Error> {
        let modified = self.modified.unwrap_or((0, 0));
        let container = self.container_mut();
        let head = container.head.expect("a commit has been made");
        let mut append = Append::new(container);
        append.checkpoint(container.index(), &head);
        append.records(container, &head, modified);
        self.write_append(append).await
    }

    /// Commits, and makes it durable.
    pub async fn sync(&mut self, queue: &Queue) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        self.commit(queue).await?;
        self.extend_zone().await?;
        let synced = self.medium.sync_data().await;
        self.poisoned_by(synced)?;
        if let Body::Container(container) = &mut self.body {
            container.durable_end = container.record_end;
            container.dead.replaced_durably();
            if container.dead.whole_blocks() >= PUNCH_LEN {
                self.punch_dead();
            }
        }
        Ok(())
    }

    /// As [`Contents::sync`], and makes mode, owner, times and names of the inode durable.
    pub async fn sync_inode(&mut self, queue: &Queue) -> Result<(), Error> {
        self.sync(queue).await?;
        let synced = self.medium.sync_inode().await;
        self.poisoned_by(synced)
    }

    /// The kernel reports a failed write-back once and drops the pages: asking again would succeed
    /// and mean nothing (fsync(2), the PostgreSQL report of 2018).
    fn poisoned_by(&mut self, synced: std::io::Result<()>) -> Result<(), Error> {
        self.poisoned |= synced.is_err();
        Ok(synced?)
    }

    /// Writes zeros ahead if syncs come often and bring little: what overwrites them is durable
    /// without a commit of the lower filesystem's journal.
    async fn extend_zone(&mut self) -> Result<(), Error> {
        let Body::Container(container) = &mut self.body else { return Ok(()) };
        let written = container.record_end - container.durable_end;
        if written == 0 || container.attribute != Some(State::Dirty) {
            // Nothing was brought; or nothing would tell, after a crash, that zeros may follow.
            return Ok(());
        }
        let small = written <= ZONE_COMMIT_MAX;
        container.small_syncs = if small { container.small_syncs + 1 } else { 0 };
        let has_room = container.zone_end >= container.physical + 2 * BLOCK;
        if container.small_syncs < 2 || has_room || !self.medium.overwrites_in_place() {
            return Ok(());
        }
        let start = container.physical;
        let gap = to_index(start.next_multiple_of(BLOCK) - start);
        let mut bytes = padding(gap);
        let zone_start = start + bytes.len() as u64;
        bytes.resize(bytes.len() + to_index(ZONE_LEN), 0);
        match self.medium.write_at(bytes, start).await {
            Ok(()) => {
                let container = self.container_mut();
                container.physical = zone_start;
                container.zone_end = zone_start + ZONE_LEN;
            }
            Err(error) => {
                // It goes without: a full disk may still have room for what has to be written.
                tracing::debug!("no room is written ahead: {error}");
                let container = self.container_mut();
                (container.small_syncs, container.zone_end) = (0, 0);
                self.medium.set_len(start)?;
            }
        }
        Ok(())
    }

    /// Gives the blocks back that hold only what was durably replaced. Nothing depends on it: an
    /// error is logged.
    fn punch_dead(&mut self) {
        let Body::Container(container) = &mut self.body else { return };
        for blocks in container.dead.take_whole_blocks() {
            if let Err(error) = self.medium.punch(blocks.clone()) {
                tracing::debug!("blocks {blocks:?} stay allocated: {error}");
            }
        }
    }

    /// Cuts what lies behind the newest record: the rest of a zone.
    fn cut_zone(&mut self) -> Result<(), Error> {
        let container = self.container_mut();
        if container.physical > container.record_end || container.zone_end > container.physical {
            let end = container.record_end;
            (container.physical, container.zone_end) = (end, 0);
            self.medium.set_len(end)?;
        }
        Ok(())
    }

    /// Commits, and does what else changes bytes of the backing file before it is closed.
    pub async fn settle(&mut self, queue: &Queue) -> Result<(), Error> {
        self.commit(queue).await?;
        if self.writable
            && let Body::Container(container) = &self.body
            && container.attribute == Some(State::Dirty)
        {
            if container.chain.len() > self.options.records_max / 8 {
                self.checkpoint_if_possible().await;
            }
            self.cut_zone()?;
            self.punch_dead();
        }
        Ok(())
    }

    /// Commits, and marks the backing file as closed in order.
    pub async fn close(&mut self, queue: &Queue) -> Result<(), Error> {
        self.settle(queue).await?;
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        if let Body::Container(container) = &mut self.body
            && self.writable
            && container.attribute == Some(State::Dirty)
        {
            let attribute = container.attribute(State::Clean, self.medium.epoch());
            container.attribute = set_attribute(&self.medium, attribute)?;
        }
        if let Some(modified) = self.modified.filter(|_| self.writable) {
            self.medium.set_modified(modified)?;
        }
        Ok(())
    }

    /// The first data (or, if `hole`, the first hole) at or behind `offset`. The end of the file is
    /// a hole. None: `offset` is behind the end, or no data follow.
    pub async fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, Error> {
        let size = self.size()?;
        if offset >= size {
            return Ok(None);
        }
        let Body::Container(container) = &self.body else {
            return Ok(Some(if hole { size } else { offset }));
        };
        let mut at = offset;
        while at < size {
            let stored = match &container.head {
                Some(head) => index::leaf_from(&self.medium, head, &container.index, at).await?,
                None => None,
            };
            let stored = stored.map(|(pieces, _)| pieces[0].0.clone());
            match container.data_from(at, stored, self.chunk_len()) {
                Some(data) if data.start < size => {
                    if !hole {
                        return Ok(Some(data.start.max(at)));
                    }
                    if data.start > at {
                        return Ok(Some(at));
                    }
                    at = data.end;
                }
                _ => return Ok(hole.then_some(at)),
            }
        }
        Ok(hole.then_some(size))
    }

    /// Reads every visible stored byte; the first that does not verify is the error.
    pub async fn check(&self, queue: &Queue) -> Result<(), Error> {
        let mut offset = 0;
        while let Some((pieces, end)) = self.leaf_from(offset).await? {
            for (_, extent) in pieces {
                self.decode(queue, std::iter::once(extent)).await?;
            }
            offset = end;
        }
        Ok(())
    }

    /// How the file is stored.
    pub async fn report(&self) -> Result<Report, Error> {
        let physical = self.medium.len()?;
        let Body::Container(container) = &self.body else {
            return Ok(Report {
                kind: Kind::Plain,
                size: physical,
                physical,
                extents: 1,
                stored: physical,
                linear: false,
                codecs: Vec::new(),
            });
        };
        let (mut extents, mut offset) = (0, 0);
        let mut codecs: Vec<CodecShare> = Vec::new();
        while let Some((pieces, end)) = self.leaf_from(offset).await? {
            extents += pieces.len();
            let mut seen = BTreeSet::new();
            for (visible, extent) in pieces {
                let Form::Codec(codec) = extent.form else { continue };
                let known = codecs.iter().position(|share| share.codec == codec);
                let at = known.unwrap_or_else(|| {
                    codecs.push(CodecShare { codec, len: 0, stored: 0 });
                    codecs.len() - 1
                });
                codecs[at].len += visible.end - visible.start;
                // An extent that is covered in its middle is visible twice.
                if seen.insert(extent.physical) {
                    codecs[at].stored += u64::from(extent.stored_len);
                }
            }
            offset = end;
        }
        Ok(Report {
            kind: Kind::Container,
            size: container.size,
            physical,
            extents,
            stored: codecs.iter().map(|share| share.stored).sum(),
            linear: container.linear,
            codecs,
        })
    }

    /// The visible parts of the first leaf of the index at or behind `offset` that has any, and
    /// where that ends.
    async fn leaf_from(&self, offset: u64) -> Result<Option<(Vec<Piece>, u64)>, Error> {
        let Body::Container(Container { head: Some(head), index, .. }) = &self.body else {
            return Ok(None);
        };
        let leaf = index::leaf_from(&self.medium, head, index, offset).await?;
        self.evict_if_crowded(&mut index::lock(index));
        Ok(leaf)
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
        if index.len() > self.options.pieces_max {
            index.evict();
        }
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

    /// Compresses and appends what is dirty, but for the chunk `keep`; with a commit record if
    /// `commit`, or when a record's worth of extents is pending.
    async fn store(&mut self, queue: &Queue, keep: Option<u64>, commit: bool) -> Result<(), Error> {
        let chunk_len = self.chunk_len();
        self.merge_crowded(queue, keep).await?;
        let container = self.container_mut();
        let mut taken = std::mem::take(&mut container.dirty);
        if let Some((chunk, kept)) = keep.and_then(|chunk| taken.remove_entry(&chunk)) {
            container.dirty.insert(chunk, kept);
        }
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
        taken.contents.append(stored, commit).await?;
        taken.sources.clear();
        Ok(())
    }

    /// Appends what is stored already; with a commit record if `commit`, or when a record's worth of
    /// extents is pending. When it fails, nothing has changed.
    async fn append(&mut self, stored: Vec<Stored>, commit: bool) -> Result<(), Error> {
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
        if commit || container.pending.len() + append.extents.len() >= Record::EXTENTS_MAX {
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

    /// Makes dirty chunks that consist of many extents dirty as a whole, so that they are stored as
    /// one again.
    async fn merge_crowded(&mut self, queue: &Queue, keep: Option<u64>) -> Result<(), Error> {
        let chunk_len = self.chunk_len();
        let chunks: Vec<_> = self.container().dirty.keys().copied().collect();
        for chunk in chunks {
            let span = chunk * chunk_len..(chunk + 1) * chunk_len;
            if Some(chunk) == keep || self.pieces(span).await?.len() < EXTENTS_PER_CHUNK_MAX {
                continue;
            }
            let mut whole = vec![0; to_index(chunk_len)];
            match self.read(queue, chunk * chunk_len, &mut whole).await {
                Ok(len) => whole.truncate(len),
                // What is damaged stays where it is, and stands in nobody's way.
                Err(Error::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            self.container_mut().dirty.entry(chunk).or_default().write(0, &whole);
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), Error> {
        match (self.poisoned, self.writable) {
            (true, _) => Err(Error::Poisoned),
            (false, true) => Ok(()),
            (false, false) => Err(errno(libc::EROFS)),
        }
    }

    /// Before the first change since the file was clean.
    async fn begin_change(&mut self) -> Result<(), Error> {
        if let Body::Container(Container { unverified: true, head: Some(head), physical, .. }) =
            self.body
        {
            self.body = Body::Container(
                match recovery::commit_at(&self.medium, &head, physical, true).await? {
                    Some(found) => {
                        // Read back after the loss, if there was one: it is on the disk.
                        let durable_end = found.end;
                        let loaded = Container::loaded(head, found, Some(State::Clean));
                        Container { durable_end, ..loaded }
                    }
                    None => recover(&self.medium, physical, State::Clean, self.writable).await?,
                },
            );
            self.forget_decoded();
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

/// Loads what the attribute says is a container.
async fn load<M: Medium>(
    medium: &M,
    len: u64,
    attribute: Attribute,
    writable: bool,
) -> Result<Container, Error> {
    if len == 0 {
        // Whatever it was: empty, it becomes a container, and the attribute has to say so.
        let state = (attribute.kind == Kind::Container).then_some(attribute.state);
        return Ok(Container { attribute: state, ..Container::empty() });
    }
    let in_order = attribute.size_if_clean(len).is_some();
    if in_order {
        if let Some(head) = read_head(medium).await?
            && let Some(found) = recovery::commit_at(medium, &head, len, false).await?
        {
            let mut container = Container::loaded(head, found, Some(attribute.state));
            if attribute.durable {
                container.durable_end = container.record_end;
            }
            container.unverified = !attribute.durable && attribute.epoch != medium.epoch();
            return Ok(container);
        }
        if attribute.durable {
            let what = "head or commit record, the latter before";
            return Err(Error::Damaged { what, offset: len });
        }
    }
    // Not closed in order: a crash, or a daemon that was killed. Or the mark of being closed is on
    // the disk, and the last bytes before it are not: ext4 makes a length within an allocated block
    // durable before the bytes (`ext4_da_should_update_i_disksize`).
    recover(medium, len, attribute.state, writable).await
}

/// The newest commit that holds; what lies behind it is cut.
async fn recover<M: Medium>(
    medium: &M,
    len: u64,
    state: State,
    writable: bool,
) -> Result<Container, Error> {
    let found = match read_head(medium).await? {
        Some(head) => recovery::newest(medium, &head, len).await?.map(|found| (head, found)),
        None => {
            // The head comes with the first commit. If it never reached the disk, nothing did.
            if medium.read_at(0, Head::LEN).await?.iter().any(|byte| *byte != 0) {
                return Err(Error::Damaged { what: "head", offset: 0 });
            }
            None
        }
    };
    let container = match found {
        Some((head, found)) => {
            let recovered = Some(found.record.modified);
            Container { recovered, ..Container::loaded(head, found, Some(State::Dirty)) }
        }
        None => Container { attribute: Some(State::Dirty), ..Container::empty() },
    };
    let end = container.physical;
    if end < len {
        tracing::warn!("not closed in order: {} bytes behind the newest commit cut", len - end);
        if writable {
            if state == State::Clean {
                set_attribute(medium, container.attribute(State::Dirty, medium.epoch()))?;
            }
            medium.set_len(end)?;
        }
    }
    Ok(container)
}

/// Head and newest commit, if the file ends with one, as it does when closed in order.
async fn closed_in_order<M: Medium>(medium: &M, len: u64) -> Result<Option<(Head, Found)>, Error> {
    let Some(head) = read_head(medium).await? else {
        return Ok(None);
    };
    let found = recovery::commit_at(medium, &head, len, false).await?;
    Ok(found.map(|found| (head, found)))
}

async fn read_head<M: Medium>(medium: &M) -> Result<Option<Head>, Error> {
    Head::parse(&medium.read_at(0, Head::LEN).await?)
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
        // The lower filesystem has none; or we are not root, and nobody may write to the file.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EACCES)) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

impl Container {
    fn empty() -> Self {
        Self {
            head: None,
            attribute: None,
            index: Mutex::new(Index::new(1)),
            pending: Vec::new(),
            dirty: BTreeMap::new(),
            size: 0,
            changed: false,
            linear: true,
            covered: 0,
            refused: false,
            physical: 0,
            unverified: false,
            recovered: None,
            seq: 0,
            checkpoint: None,
            chain: Vec::new(),
            record_end: 0,
            zone_end: 0,
            small_syncs: 0,
            durable_end: 0,
            dead: Dead::default(),
        }
    }

    /// The attribute of a container as it stands now.
    fn attribute(&self, state: State, epoch: u32) -> Attribute {
        Attribute {
            kind: Kind::Container,
            state,
            durable: self.durable_end == self.record_end,
            epoch,
            physical: self.physical,
            size: self.size,
        }
    }

    fn loaded(head: Head, found: Found, attribute: Option<State>) -> Self {
        Self {
            head: Some(head),
            attribute,
            index: found.index,
            size: found.record.size,
            linear: found.record.linear,
            covered: found.record.size,
            refused: !found.record.linear,
            physical: found.end,
            seq: found.record.seq,
            checkpoint: found.record.checkpoint,
            chain: found.chain,
            record_end: found.end,
            durable_end: found.record.durable_end,
            ..Self::empty()
        }
    }

    fn set_size(&mut self, size: u64, chunk_len: u64) {
        if size < self.size {
            self.take_out(size..self.size, chunk_len);
        }
        self.size = size;
    }

    fn index(&mut self) -> &mut Index {
        self.index.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offset of the newest record; 0 if there is none.
    fn previous(&self) -> u64 {
        self.chain.last().map_or(0, |record| record.start)
    }

    fn lay_over(&mut self, extent: Extent) {
        for gone in self.index().lay_over(extent) {
            self.dead.replaced(gone.physical..gone.stored_end());
        }
    }

    /// Makes `range` zeros, of which nothing is stored.
    fn take_out(&mut self, range: Range<u64>, chunk_len: u64) {
        let chunks = range.start / chunk_len..=(range.end - 1) / chunk_len;
        let mut emptied = Vec::new();
        for (chunk, dirty) in self.dirty.range_mut(chunks) {
            let within =
                |offset: u64| to_index(offset.saturating_sub(chunk * chunk_len).min(chunk_len));
            dirty.take_out(within(range.start)..within(range.end));
            if dirty.ranges.is_empty() {
                emptied.push(*chunk);
            }
        }
        emptied.iter().for_each(|chunk| drop(self.dirty.remove(chunk)));
        if self.covered > range.start || self.index().within(range.clone()).next().is_some() {
            // Stored bytes leave the file: it no longer is what stands in it front to back.
            self.linear = false;
            let zeros = Extent {
                logical: range.start,
                len: range.end - range.start,
                physical: 0,
                stored_len: 0,
                form: Form::Zeros,
                checksum: 0,
            };
            self.lay_over(zeros);
            self.pending.push(zeros);
        }
    }

    fn overlay_dirty(&self, offset: u64, bytes: &mut [u8], chunk_len: u64) {
        let end = offset + bytes.len() as u64;
        for (chunk, dirty) in self.dirty.range(offset / chunk_len..=end / chunk_len) {
            for range in &dirty.ranges {
                let start = chunk * chunk_len + range.start as u64;
                let from = start.max(offset);
                let to = (chunk * chunk_len + range.end as u64).min(end);
                if from < to {
                    let source =
                        to_index(from - chunk * chunk_len)..to_index(to - chunk * chunk_len);
                    bytes[to_index(from - offset)..to_index(to - offset)]
                        .copy_from_slice(&dirty.bytes[source]);
                }
            }
        }
    }

    /// The first span of data that ends behind `offset`, given the first that is stored.
    fn data_from(
        &self,
        offset: u64,
        stored: Option<Range<u64>>,
        chunk_len: u64,
    ) -> Option<Range<u64>> {
        let dirty = self.dirty.range(offset / chunk_len..).find_map(|(chunk, dirty)| {
            let base = chunk * chunk_len;
            let spans = dirty.ranges.iter();
            let mut spans = spans.map(|span| base + span.start as u64..base + span.end as u64);
            spans.find(|span| span.end > offset)
        });
        match (stored, dirty) {
            (Some(stored), Some(dirty)) if dirty.start < stored.start => Some(dirty),
            (Some(stored), _) => Some(stored),
            (None, dirty) => dirty,
        }
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

//! Compaction: a file is written front to back again, in place, so that no dead byte is left and stock
//! zstd reads it.
//!
//! 1. What is visible is appended once more, chunk by chunk, with a checkpoint, and synced: behind the
//!    old end, or farther behind, so that the image has room. Nothing before this copy is needed then.
//! 2. The linear image is written over it, from the head on, with its own tree and record, and synced.
//!    Nobody can see it: the newest record is still the one at the end.
//! 3. The file is cut behind the image. That is the one switch: before it the copy is found at the end
//!    of the file, after it the image. Synced before anything is appended.
//!
//! Inode, links and open descriptors stay what they are. It takes room for the copy meanwhile.

use std::ops::Range;
use std::sync::Mutex;

use warpcore_offload::Queue;

use super::append::{Append, Stored};
use super::{BLOCK, Body, Container, Contents, Medium, Records, Report, is_zstd, to_index};
use crate::error::Error;
use crate::store::format::{Head, Piece, Record};
use crate::store::index::Index;

/// Chunks that are in memory at a time.
const CHUNKS_AT_ONCE: usize = 16;

impl<M: Medium> Contents<M> {
    /// Writes the file front to back again. False: it would bring nothing, and nothing was changed.
    ///
    /// Its length and contents stay. The time of the last change is what
    /// [`Contents::set_modified`] says.
    pub async fn compact(&mut self, queue: &Queue) -> Result<bool, Error> {
        self.check_writable()?;
        let report = self.report().await?;
        let Body::Container(Container { head: Some(head), .. }) = self.body else {
            return Ok(false);
        };
        // Heads of frames, records and nodes: a sixteenth is more than they ever are.
        let is_dense = report.physical - report.physical / 16 <= report.stored + Head::LEN as u64;
        if report.linear && (is_dense || report.physical < 4096) {
            return Ok(false);
        }
        self.begin_change().await?;
        self.sync(queue).await?;
        self.cut_zone()?;
        let container = self.container_mut();
        // A hole costs nothing, and is gone with the cut.
        container.physical = container.physical.max(room_for_image(&report));
        let copy_start = container.physical;
        self.append_everything(queue).await?;
        self.checkpoint().await?;
        self.sync(queue).await?;
        self.cut_zone()?;
        if let Some(image) = self.write_image(&head, copy_start).await? {
            let synced = self.medium.sync_data().await;
            self.poisoned_by(synced)?;
            self.medium.set_len(image.physical)?;
            self.body = Body::Container(image);
            self.forget_decoded();
            let synced = self.medium.sync_data().await;
            self.poisoned_by(synced)?;
            let image = self.container_mut();
            image.durable_end = image.record_end;
        } else {
            // It stays as the copy; what is before that is given back in whole blocks.
            self.punch_dead();
        }
        Ok(true)
    }

    /// Appends what is visible: of each chunk one whole extent.
    async fn append_everything(&mut self, queue: &Queue) -> Result<(), Error> {
        let chunk_len = self.chunk_len();
        // Also when it fails half way: what was appended is not in a record.
        self.container_mut().changed = true;
        let mut offset = 0;
        while let Some((pieces, end)) = self.leaf_from(offset).await? {
            offset = end;
            let same_chunk =
                |one: &Piece, next: &Piece| one.0.start / chunk_len == next.0.start / chunk_len;
            let chunks: Vec<_> = pieces.chunk_by(same_chunk).collect();
            for chunks in chunks.chunks(CHUNKS_AT_ONCE) {
                let mut spans = Vec::new();
                for chunk in chunks {
                    spans.push(match *chunk {
                        [(visible, extent)] if *visible == (extent.logical..extent.end()) => {
                            self.stored(extent).await?
                        }
                        [(first, _), .., (last, _)] => {
                            self.stored_anew(queue, first.start..last.end).await?
                        }
                        [(only, _)] => self.stored_anew(queue, only.clone()).await?,
                        [] => unreachable!("a chunk of pieces has one"),
                    });
                }
                // None before the end: a copy that fails, or is killed, is cut.
                self.append(spans, Records::Later).await?;
            }
        }
        let chunk_len = self.chunk_len();
        let index = self.container_mut().index();
        if index.is_empty() {
            // No leaf was stored again, and none may be left where the image goes: of a file that is
            // all zeros the tree is one empty leaf.
            *index = Index::new(chunk_len);
        }
        self.append(Vec::new(), Records::Now).await
    }

    /// A span of a chunk, compressed as one.
    async fn stored_anew(&self, queue: &Queue, span: Range<u64>) -> Result<Stored, Error> {
        let mut bytes = vec![0; to_index(span.end - span.start)];
        self.read(queue, span.start, &mut bytes).await?;
        let mut spans = self.compress(queue, &[(span.start, bytes.into())]).await?;
        Ok(spans.pop().expect("one for each source"))
    }

    /// Writes the linear image before `end`. None: it does not fit there.
    async fn write_image(&mut self, head: &Head, end: u64) -> Result<Option<Container>, Error> {
        let modified = self.modified.unwrap_or((0, 0));
        let copy = self.container();
        let mut image = Container {
            head: Some(*head),
            attribute: copy.attribute,
            size: copy.size,
            linear: is_zstd(self.options.codec),
            seq: copy.seq,
            physical: Head::LEN as u64,
            index: Mutex::new(Index::new(self.chunk_len())),
            ..Container::empty()
        };
        let mut offset = 0;
        while let Some((pieces, leaf_end)) = self.leaf_from(offset).await? {
            offset = leaf_end;
            for pieces in pieces.chunks(CHUNKS_AT_ONCE) {
                let mut spans = Vec::new();
                for (visible, extent) in pieces {
                    debug_assert_eq!(*visible, extent.logical..extent.end(), "copied as a whole");
                    spans.push(self.stored(extent).await?);
                }
                let mut append = Append::new(&image);
                append.place(spans);
                if !self.write_into_image(append, &mut image, end).await? {
                    return Ok(None);
                }
            }
        }
        let mut append = Append::new(&image);
        if image.pending.len() > Record::EXTENTS_MAX {
            append.checkpoint(image.index(), head);
            image.pending.clear();
        }
        append.records(&image, head, modified);
        Ok(self.write_into_image(append, &mut image, end).await?.then_some(image))
    }

    /// False: it would reach behind `end`.
    async fn write_into_image(
        &self,
        mut append: Append,
        image: &mut Container,
        end: u64,
    ) -> Result<bool, Error> {
        let start = append.start;
        let bytes = std::mem::take(&mut append.bytes);
        let append_end = start + bytes.len() as u64;
        // The end of the last block is zeroed when the file is cut there, and that may reach the disk
        // before the cut does.
        if append_end.next_multiple_of(BLOCK) > end {
            return Ok(false);
        }
        self.medium.write_at(bytes, start).await?;
        image.physical = append_end;
        append.apply(image);
        Ok(true)
    }
}

/// More than the image takes: what is stored now (a chunk of many pieces is shorter as one, but for a
/// frame's head), a node's entry and a frame's head for each extent, run-length blocks for holes.
fn room_for_image(report: &Report) -> u64 {
    const FOR_EACH_EXTENT: u64 = 256;
    /// Record, root, and heads that stand once.
    const FIXED: u64 = 16 << 10;
    let extents = report.extents as u64 + 1;
    // 16 bytes or less for each 128 KiB of a hole, and no hole of more than 64 MiB is bridged.
    let holes = (report.size >> 13).min(extents << 13);
    (report.stored + report.stored / 8 + extents * FOR_EACH_EXTENT + holes + FIXED)
        .next_multiple_of(BLOCK)
}

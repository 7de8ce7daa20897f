//! One write at the end of a backing file: frames, and the record that makes them count.

use std::ops::Range;

use bytes::Bytes;
use warpcore_offload::Codec;

use super::{BLOCK, Container, is_zstd, to_index};
use crate::store::format::{
    Extent, Form, Head, REFUSING_FRAME, Record, SKIPPABLE_HEAD_LEN, raw_frame_head, skippable,
    zeros_frame,
};
use crate::store::index::{Checkpoint, Index};

/// A hole that a linear file bridges with frames of zeros: 4 bytes or so for each 128 KiB.
const LINEAR_GAP_MAX: u64 = 64 << 20;

/// A span, ready to be placed.
pub(super) struct Stored {
    pub(super) logical: u64,
    pub(super) len: u64,
    pub(super) form: Form,
    pub(super) bytes: Bytes,
}

/// One write at the end of the backing file, and what is true once it has succeeded.
pub(super) struct Append {
    /// Where it goes.
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) extents: Vec<Extent>,
    pub(super) linear: bool,
    covered: u64,
    refused: bool,
    /// The nodes in it.
    checkpoint: Option<Checkpoint>,
    /// The records in it.
    records: Vec<Range<u64>>,
    /// Seq of the newest of them.
    seq: u64,
    /// Bytes that nobody will read, unless to skip them.
    idle: Vec<Range<u64>>,
}

impl Append {
    pub(super) fn new(container: &Container) -> Self {
        Self {
            start: container.physical,
            bytes: Vec::new(),
            extents: Vec::new(),
            linear: container.linear,
            covered: container.covered,
            refused: container.refused,
            checkpoint: None,
            records: Vec::new(),
            seq: container.seq,
            idle: Vec::new(),
        }
    }

    /// Lays out spans, in the order of the file.
    pub(super) fn place(&mut self, spans: Vec<Stored>) {
        let mut spans = spans.into_iter().peekable();
        while let Some(span) = spans.next_if(|span| self.extends(span)) {
            self.place_in_line(span);
        }
        let rest: Vec<_> = spans.collect();
        if !rest.is_empty() {
            self.linear = false;
            self.place_out_of_line(rest);
        }
    }

    /// Whether the file stays linear with this span.
    fn extends(&self, span: &Stored) -> bool {
        let readable = match span.form {
            Form::Codec(codec) => is_zstd(codec),
            Form::Zeros => true,
        };
        let gap = span.logical.checked_sub(self.covered);
        self.linear && readable && gap.is_some_and(|gap| gap <= LINEAR_GAP_MAX)
    }

    fn place_in_line(&mut self, span: Stored) {
        self.bytes.extend(zeros_frame(span.logical - self.covered));
        self.covered = span.logical + span.len;
        match span.form {
            Form::Zeros => self.bytes.extend(zeros_frame(span.len)),
            Form::Codec(codec) => {
                if codec == Codec::Store {
                    self.bytes.extend(raw_frame_head(span.bytes.len()));
                }
                self.put(&span);
            }
        }
    }

    fn place_out_of_line(&mut self, spans: Vec<Stored>) {
        self.refuse();
        let frame = self.bytes.len();
        self.idle(SKIPPABLE_HEAD_LEN);
        for span in spans {
            self.covered = self.covered.max(span.logical + span.len);
            match span.form {
                Form::Zeros => self.extents.push(span.extent(0)),
                Form::Codec(_) => self.put(&span),
            }
        }
        let len = self.bytes.len() - frame - SKIPPABLE_HEAD_LEN;
        self.bytes[frame..frame + SKIPPABLE_HEAD_LEN].copy_from_slice(&skippable(len));
    }

    /// From here on, a zstd reader stops.
    pub(super) fn refuse(&mut self) {
        if !self.refused {
            self.bytes.extend(REFUSING_FRAME);
            self.refused = true;
        }
    }

    fn put(&mut self, span: &Stored) {
        self.extents.push(span.extent(self.end()));
        self.bytes.extend_from_slice(&span.bytes);
    }

    /// Bytes to skip.
    fn idle(&mut self, len: usize) {
        let start = self.end();
        self.bytes.resize(self.bytes.len() + len, 0);
        self.idle.push(start..self.end());
    }

    /// The tree of everything that is stored. A commit has to follow.
    pub(super) fn checkpoint(&mut self, index: &Index, head: &Head) {
        let checkpoint = index.checkpoint(&head.id, self.end());
        self.bytes.extend_from_slice(&checkpoint.bytes);
        self.checkpoint = Some(checkpoint);
    }

    /// One commit of everything pending.
    pub(super) fn records(&mut self, container: &Container, head: &Head, modified: (i64, u32)) {
        // While a linear file is being written, dirty bytes may be missing at its end, and then its
        // length is what is there. At a commit none are dirty: a gap is a hole.
        let mut size = container.size;
        if self.linear && container.dirty.is_empty() && size > self.covered {
            let gap = size - self.covered;
            if gap <= LINEAR_GAP_MAX {
                self.bytes.extend(zeros_frame(gap));
                self.covered = size;
            } else {
                self.linear = false;
            }
        }
        if self.linear {
            size = self.covered;
        } else {
            self.refuse();
        }
        let all: Vec<_> = container.pending.iter().chain(&self.extents).copied().collect();
        let mut parts: Vec<_> = all.chunks(Record::EXTENTS_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let (checkpoint, before) = match &self.checkpoint {
            Some(checkpoint) => (Some(checkpoint.root), 0),
            None => (container.checkpoint, container.chain.len()),
        };
        let mut previous = container.previous();
        for (i, part) in parts.iter().enumerate() {
            self.seq += 1;
            let last = i + 1 == parts.len();
            if last && container.zone_end > self.start {
                self.pad_for_zone(Record::len_of(part.len()));
            }
            let record = Record {
                extents: part.to_vec(),
                last,
                linear: self.linear,
                seq: self.seq,
                previous,
                checkpoint,
                since: u32::try_from(before + i + 1).expect("a checkpoint comes long before"),
                durable_end: container.durable_end,
                size,
                modified,
            };
            previous = self.end();
            self.bytes.extend(record.encode(&head.id, previous));
            self.records.push(previous..self.end());
        }
    }

    /// In a zone, a record of `len` bytes ends where a block does: the next commit begins with a
    /// block of its own, and no acknowledged one is ever written again.
    fn pad_for_zone(&mut self, len: usize) {
        let len = len as u64;
        let end = (self.end().next_multiple_of(Record::ALIGN) + len).next_multiple_of(BLOCK);
        let gap = to_index(end - len - self.end());
        let start = self.end();
        self.bytes.extend(padding(gap));
        self.idle.push(start..self.end());
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// The write has succeeded.
    pub(super) fn apply(self, container: &mut Container) {
        for extent in &self.extents {
            container.lay_over(*extent);
        }
        container.linear = self.linear;
        container.covered = self.covered;
        container.refused = self.refused;
        container.pending.extend(self.extents);
        // Without these, zstd would not find the next frame of a linear file.
        let mut skipped = self.idle;
        if let Some(checkpoint) = self.checkpoint {
            let nodes = checkpoint.replaced.iter();
            skipped.extend(nodes.map(|node| node.offset..node.end()));
            skipped.append(&mut container.chain);
            container.checkpoint = Some(checkpoint.root);
            container.index().apply(checkpoint);
        }
        if !self.linear {
            skipped.into_iter().for_each(|range| container.dead.replaced(range));
        }
        if !self.records.is_empty() {
            container.record_end = container.physical;
            container.seq = self.seq;
            container.chain.extend(self.records);
            container.pending.clear();
            container.changed = !container.dirty.is_empty();
        }
    }
}

/// A frame of at least `gap` bytes that readers skip: longer by a block if it could not hold its
/// own head.
pub(super) fn padding(gap: usize) -> Vec<u8> {
    let gap = match gap {
        0 => return Vec::new(),
        1..SKIPPABLE_HEAD_LEN => gap + to_index(BLOCK),
        _ => gap,
    };
    let mut bytes = vec![0; gap];
    bytes[..SKIPPABLE_HEAD_LEN].copy_from_slice(&skippable(gap - SKIPPABLE_HEAD_LEN));
    bytes
}

impl Stored {
    fn extent(&self, physical: u64) -> Extent {
        Extent {
            logical: self.logical,
            len: self.len,
            physical,
            stored_len: u32::try_from(self.bytes.len()).expect("at most a chunk"),
            form: self.form,
            checksum: if self.form == Form::Zeros { 0 } else { crc32c::crc32c(&self.bytes) },
        }
    }
}

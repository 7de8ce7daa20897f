//! What is known of a file in the format, and how it changes. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::dead::Dead;
use super::{AHEAD_MAX, Container, to_index};
use crate::store::format::{Attribute, Extent, Form, Head, Kind, State};
use crate::store::index::Index;
use crate::store::recovery::Found;

impl Container {
    pub(super) fn empty() -> Self {
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
            committed_in_order: 0,
            waited: BTreeSet::new(),
            refused: false,
            physical: 0,
            unverified: false,
            recovered: None,
            is_uncut: false,
            was_cut: false,
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
    pub(super) fn attribute(&self, state: State, epoch: u32) -> Attribute {
        Attribute {
            kind: Kind::Container,
            state,
            durable: self.durable_end == self.record_end,
            epoch,
            physical: self.physical,
            size: self.size,
        }
    }

    pub(super) fn loaded(head: Head, found: Found, attribute: Option<State>) -> Self {
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

    /// Dirty chunks that are not to be stored yet, so that a linear file stays one: something that
    /// belongs before them has not come. Empty if too many wait.
    pub(super) fn ahead(&self, chunk_len: u64) -> Range<u64> {
        let mut end = self.covered;
        for (chunk, dirty) in self.dirty.range(end / chunk_len..) {
            let base = chunk * chunk_len;
            match &dirty.ranges[..] {
                [range] if base + range.start as u64 == end => end = base + range.end as u64,
                _ => break,
            }
        }
        let waits = self.linear && self.dirty.len() as u64 * chunk_len < AHEAD_MAX;
        if waits { end / chunk_len..u64::MAX } else { 0..0 }
    }

    pub(super) fn set_size(&mut self, size: u64, chunk_len: u64) {
        if size < self.size {
            self.take_out(size..self.size, chunk_len);
        }
        self.size = size;
    }

    pub(super) fn index(&mut self) -> &mut Index {
        self.index.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offset of the newest record; 0 if there is none.
    pub(super) fn previous(&self) -> u64 {
        self.chain.last().map_or(0, |record| record.start)
    }

    pub(super) fn lay_over(&mut self, extent: Extent) {
        for gone in self.index().lay_over(extent) {
            self.dead.replaced(gone.physical..gone.stored_end());
        }
    }

    /// Makes `range` zeros, of which nothing is stored.
    pub(super) fn take_out(&mut self, range: Range<u64>, chunk_len: u64) {
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
        // What stands in a linear file front to back, zeros too.
        let is_covered = self.linear && self.covered > range.start;
        if is_covered || self.index().within(range.clone()).next().is_some() {
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

    pub(super) fn overlay_dirty(&self, offset: u64, bytes: &mut [u8], chunk_len: u64) {
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
    pub(super) fn data_from(
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

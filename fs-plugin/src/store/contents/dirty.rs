//! What was written and is not stored yet: in memory only.

use std::ops::Range;

/// The dirty bytes of a chunk.
#[derive(Debug, Clone, Default)]
pub(super) struct Dirty {
    /// From the start of the chunk to its last dirty byte.
    pub(super) bytes: Vec<u8>,
    /// What of them is dirty, in order, with gaps in between.
    pub(super) ranges: Vec<Range<usize>>,
}

impl Dirty {
    pub(super) fn write(&mut self, within: usize, bytes: &[u8]) {
        let end = within + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[within..end].copy_from_slice(bytes);
        let mut merged = within..end;
        self.ranges.retain(|range| {
            let apart = range.end < merged.start || range.start > merged.end;
            if !apart {
                merged = merged.start.min(range.start)..merged.end.max(range.end);
            }
            apart
        });
        let place = self.ranges.partition_point(|range| range.start < merged.start);
        self.ranges.insert(place, merged);
    }

    /// Nothing in `hole` is dirty any more.
    pub(super) fn take_out(&mut self, hole: Range<usize>) {
        let beside = |range: &Range<usize>| {
            [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end]
        };
        self.ranges = self.ranges.iter().flat_map(beside).filter(|part| !part.is_empty()).collect();
        self.bytes.truncate(self.ranges.last().map_or(0, |range| range.end));
    }
}

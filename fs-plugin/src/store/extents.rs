//! A file's index in memory: which bytes of it are stored where.
//!
//! Extents are laid over each other in the order of their records; of each, the part that a later
//! one does not cover is visible. What no extent covers is zeros.

use std::collections::BTreeMap;
use std::ops::Range;

use super::format::{Extent, Form};

/// The visible parts of extents. They never overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents {
    /// By the offset in the file where a part starts.
    pieces: BTreeMap<u64, Piece>,
}

/// The visible part of an extent, from its key to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    end: u64,
    extent: Extent,
}

impl Extents {
    /// Lays `extent` over what is there; returns the extents of which nothing is seen any more.
    pub fn lay_over(&mut self, extent: Extent) -> Vec<Extent> {
        let touched = self.cut(extent.logical..extent.end());
        if extent.form != Form::Zeros {
            self.pieces.insert(extent.logical, Piece { end: extent.end(), extent });
        }
        let is_seen = |one: &Extent| {
            self.within(one.logical..one.end()).any(|(_, other)| other.physical == one.physical)
        };
        touched.into_iter().filter(|one| !is_seen(one)).collect()
    }

    /// Puts a visible part in a place where there is none.
    pub fn put(&mut self, (visible, extent): (Range<u64>, Extent)) {
        self.pieces.insert(visible.start, Piece { end: visible.end, extent });
    }

    /// Takes `range` out; returns the extents that were seen there.
    fn cut(&mut self, range: Range<u64>) -> Vec<Extent> {
        let mut touched = Vec::new();
        // The one that starts before and reaches in.
        if let Some((&start, &piece)) = self.pieces.range(..range.start).next_back()
            && piece.end > range.start
        {
            touched.push(piece.extent);
            self.pieces.insert(start, Piece { end: range.start, ..piece });
            if piece.end > range.end {
                self.pieces.insert(range.end, piece);
            }
        }
        // Those that start inside.
        while let Some((&start, &piece)) = self.pieces.range(range.clone()).next() {
            self.pieces.remove(&start);
            if touched.last().is_none_or(|last| last.physical != piece.extent.physical) {
                touched.push(piece.extent);
            }
            if piece.end > range.end {
                self.pieces.insert(range.end, piece);
            }
        }
        touched
    }

    /// The visible parts within `range`, cut to it, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Extent)> + '_ {
        let first = self.pieces.range(..range.start).next_back().map_or(range.start, |(s, _)| *s);
        let Range { start: from, end: to } = range;
        self.pieces
            .range(first..to)
            .map(move |(start, piece)| ((*start).max(from)..piece.end.min(to), piece.extent))
            .filter(|(visible, _)| !visible.is_empty())
    }

    /// Number of visible parts.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

impl FromIterator<(Range<u64>, Extent)> for Extents {
    fn from_iter<T: IntoIterator<Item = (Range<u64>, Extent)>>(pieces: T) -> Self {
        let mut extents = Self::default();
        pieces.into_iter().for_each(|piece| extents.put(piece));
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use warpcore_offload::Codec;

    proptest! {
        /// Against an array that holds for each byte which extent it comes from.
        #[test]
        fn the_newest_extent_is_seen(
            steps in prop::collection::vec((0..60_u64, 1..30_u64, 0..4_u8), 0..40),
            from in 0..100_u64,
            len in 0..100_u64,
        ) {
            let mut extents = Extents::default();
            let mut model = [None; 100];
            for (number, (logical, len, action)) in steps.into_iter().enumerate() {
                let form = if action == 0 { Form::Zeros } else { Form::Codec(Codec::Store) };
                let physical = number as u64;
                let extent = Extent { logical, len, physical, stored_len: 0, form, checksum: 0 };
                let value = (form != Form::Zeros).then_some(physical);
                let before: BTreeSet<u64> = model.iter().flatten().copied().collect();
                let gone: BTreeSet<_> =
                    extents.lay_over(extent).iter().map(|extent| extent.physical).collect();
                for byte in logical..logical + len {
                    model[usize::try_from(byte).expect("small")] = value;
                }
                let after: BTreeSet<u64> = model.iter().flatten().copied().collect();
                prop_assert!(before.difference(&after).eq(&gone), "others have gone");
            }
            let mut seen = [None; 200];
            for (visible, extent) in extents.within(from..from + len) {
                for byte in visible {
                    let byte = usize::try_from(byte).expect("small");
                    prop_assert_eq!(seen[byte], None, "two at one place");
                    seen[byte] = Some(extent.physical);
                }
            }
            for byte in 0..100 {
                let wanted = (from..from + len).contains(&(byte as u64));
                prop_assert_eq!(seen[byte], if wanted { model[byte] } else { None });
            }
        }
    }
}

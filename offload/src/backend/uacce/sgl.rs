//! Lists of the pieces of a scattered buffer, as the ZIP engine reads them.
//!
//! ```text
//!   0     8        10       12        16        48       56          64
//!   next  entries  entries  entries   reserved  (ours)   bytes here  entries of 32 B:
//!         in all   here     possible                                 0 address | 16 length
//! ```
//!
//! A list has up to 255 entries and goes on at `next`. Source: UADK `drv/hisi_qm_udrv.h` and
//! `.c` (`struct hisi_sgl`, `struct hisi_sge`).

use crate::buffer::Piece;

/// Entries of one list (UADK `HISI_SGE_NUM_IN_SGL`).
const ENTRIES_MAX: usize = 255;
/// A line is the alignment that the device asks for; it has room for two entries.
const LINES_MAX: usize = 1 + ENTRIES_MAX.div_ceil(2);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// Memory for the lists of one descriptor; it is kept for the next.
#[derive(Default)]
pub(crate) struct Lists(Vec<Box<[Line]>>);

impl Lists {
    /// Writes down `pieces`. Returns the address of the first list.
    ///
    /// The memory stays where it is until the next call.
    pub(crate) fn fill(&mut self, pieces: impl Iterator<Item = Piece>) -> u64 {
        let pieces: Vec<Piece> = pieces.filter(|piece| piece.len_bytes > 0).collect();
        let count = pieces.len().div_ceil(ENTRIES_MAX).max(1);
        while self.0.len() < count {
            self.0.push(vec![Line([0; 8]); LINES_MAX].into());
        }
        let mut next = 0;
        // From the last to the first: each needs the address of the one after it.
        for (list, pieces) in
            self.0[..count].iter_mut().rev().zip((0..count).rev().map(|at| part(&pieces, at)))
        {
            let here = pieces.len() as u64;
            let len_bytes: u64 = pieces.iter().map(|piece| piece.len_bytes as u64).sum();
            // Entries in all: the device follows the chain by `next`; 16 bits are the field.
            list[0] = Line([
                next,
                here | here << 16 | (ENTRIES_MAX as u64) << 32,
                0,
                0,
                0,
                0,
                0,
                len_bytes,
            ]);
            for (index, piece) in pieces.iter().enumerate() {
                let entry = &mut list[1 + index / 2].0[index % 2 * 4..][..4];
                entry.copy_from_slice(&[piece.start as u64, 0, piece.len_bytes as u64, 0]);
            }
            next = list.as_ptr() as u64;
        }
        next
    }
}

fn part(pieces: &[Piece], at: usize) -> &[Piece] {
    let start = (at * ENTRIES_MAX).min(pieces.len());
    &pieces[start..(start + ENTRIES_MAX).min(pieces.len())]
}

/// The pieces without their first `skip` bytes, and no more than `len_bytes` of them.
pub(crate) fn cut(pieces: &[Piece], skip: usize, len_bytes: usize) -> impl Iterator<Item = Piece> {
    let (mut skip, mut left) = (skip, len_bytes);
    pieces.iter().filter_map(move |piece| {
        let passed = skip.min(piece.len_bytes);
        skip -= passed;
        let len_bytes = (piece.len_bytes - passed).min(left);
        left -= len_bytes;
        // Within the piece, or just past its end.
        let start = piece.start.wrapping_add(passed);
        (len_bytes > 0).then_some(Piece { start, len_bytes })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: usize, len_bytes: usize) -> Piece {
        Piece { start: std::ptr::without_provenance_mut(start), len_bytes }
    }

    #[test]
    fn a_list_has_the_published_layout_and_goes_on() {
        let mut lists = Lists::default();
        let pieces = (0..600).map(|n| piece(0x1000 * (n + 1), n + 1));
        let first = lists.fill(pieces);
        assert_eq!(lists.0.len(), 3);
        assert_eq!(first, lists.0[0].as_ptr() as u64);
        assert_eq!(first % 64, 0);
        let header = lists.0[0][0].0;
        assert_eq!(header[0], lists.0[1].as_ptr() as u64);
        assert_eq!(header[1], 255 | 255 << 16 | 255 << 32);
        assert_eq!(header[7], (1..=255).sum::<u64>());
        assert_eq!(lists.0[0][1].0, [0x1000, 0, 1, 0, 0x2000, 0, 2, 0]);
        let last = lists.0[2][0].0;
        assert_eq!((last[0], last[1]), (0, 90 | 90 << 16 | 255 << 32));
        assert_eq!(lists.0[2][45].0[4..], [0x1000 * 600, 0, 600, 0]);
    }

    #[test]
    fn cutting_keeps_the_bytes_between() {
        let pieces = [piece(100, 10), piece(200, 0), piece(300, 10), piece(400, 10)];
        let cut = |skip, len| cut(&pieces, skip, len).collect::<Vec<_>>();
        assert_eq!(cut(0, 99), [piece(100, 10), piece(300, 10), piece(400, 10)]);
        assert_eq!(cut(3, 9), [piece(103, 7), piece(300, 2)]);
        assert_eq!(cut(10, 10), [piece(300, 10)]);
        assert_eq!(cut(30, 10), []);
    }
}

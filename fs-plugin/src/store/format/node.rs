//! Nodes of the tree that a checkpoint stores: the index of a file up to some record.
//!
//! ```text
//!   level 2                     [ 0 ................ ]              each node of level n + 1
//!   level 1          [ 0 ........ ]        [ 1 ........ ]           has up to 512 of level n
//!   level 0   [leaf 0] [leaf 1] ...   [leaf 512] ...                64 chunks each
//! ```
//!
//! A node is never changed: a checkpoint writes the leaves that have changed and what leads to them,
//! children before parents, so that every pointer goes back in the backing file.

use std::ops::Range;

use super::{
    Extent, Fields, FileId, Form, Head, OFFSET_MAX, SKIPPABLE_HEAD_LEN, VERSION, checksum,
    fields_of_frame, skippable,
};

/// Chunks in a leaf.
pub const LEAF_CHUNKS: u64 = 64;
/// log2 of the children that an inner node may have.
pub const FANOUT_LOG2: u32 = 9;
/// The highest level: its one node holds every chunk that a file can have.
const LEVEL_MAX: u8 = 5;

// 2^63 bytes of the smallest chunks.
const _: () = assert!(
    LEAF_CHUNKS << (FANOUT_LOG2 * LEVEL_MAX as u32) > OFFSET_MAX >> super::CHUNK_LEN_LOG2_MIN
);

const HEAD_LEN: usize = 32;
const PIECE_LEN: usize = Extent::LEN + 8;
const CHILD_LEN: usize = 4 + Pointer::LEN;
const CHECKSUM_LEN: usize = 8;

/// Where a node is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Offset in the backing file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Pointer {
    /// Length as stored.
    pub(super) const LEN: usize = 12;

    /// One past its last byte.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// What a record at `before` may point to, or a node there.
    pub(super) fn parse(fields: &mut Fields<'_>, before: u64) -> Option<Self> {
        let len = fields.u32()?;
        let pointer = Self { len, offset: fields.u64()? };
        let fits = pointer.offset >= Head::LEN as u64
            && pointer.offset.checked_add(u64::from(len))? <= before
            && len as usize >= HEAD_LEN + CHECKSUM_LEN;
        fits.then_some(pointer)
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
    }
}

/// The visible part of an extent: these bytes of the file.
pub type Piece = (Range<u64>, Extent);

/// Children of a node by slot, in order.
pub type Children = Vec<(u16, Pointer)>;

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its place among the nodes of its level, from the start of the file.
    pub number: u64,
    /// What is below it.
    pub entries: Entries,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entries {
    /// Of a leaf: visible parts of extents, in order.
    Pieces(Vec<Piece>),
    /// Of a node at this level, 1 or more. Number of a child: this node's, times 512, plus the slot.
    Children(u8, Children),
}

impl Node {
    /// The node as it stands at `offset` of the file `id`.
    pub fn encode(&self, id: &FileId, offset: u64) -> Vec<u8> {
        let (level, count, len) = match &self.entries {
            Entries::Pieces(pieces) => (0, pieces.len(), pieces.len() * PIECE_LEN),
            Entries::Children(level, children) => {
                (*level, children.len(), children.len() * CHILD_LEN)
            }
        };
        let len = HEAD_LEN + len + CHECKSUM_LEN;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(skippable(len - SKIPPABLE_HEAD_LEN));
        bytes.extend(*b"WCN");
        bytes.push(VERSION);
        bytes.extend([level, 0, 0, 0]);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(u32::try_from(count).expect("far fewer than bytes in a file").to_le_bytes());
        bytes.extend([0; 4]);
        assert_eq!(bytes.len(), HEAD_LEN);
        match &self.entries {
            Entries::Pieces(pieces) => {
                for (visible, extent) in pieces {
                    extent.encode(&mut bytes);
                    for edge in [visible.start, visible.end] {
                        let edge = u32::try_from(edge - extent.logical).expect("within a chunk");
                        bytes.extend(edge.to_le_bytes());
                    }
                }
            }
            Entries::Children(_, children) => {
                for (slot, pointer) in children {
                    bytes.extend(u32::from(*slot).to_le_bytes());
                    pointer.encode(&mut bytes);
                }
            }
        }
        let checksum = checksum(id, offset, &bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// The node in `bytes`, if it was written at `offset` of the file with this `head`.
    pub fn parse(bytes: &[u8], head: &Head, offset: u64) -> Option<Self> {
        let mut fields = fields_of_frame(bytes, *b"WCN", head, offset)?;
        let level = fields.take(4)?[0];
        let number = fields.u64()?;
        let count = fields.u32()? as usize;
        fields.take(4)?;
        if level > LEVEL_MAX || number > numbers_max(level) {
            return None;
        }
        let entry_len = if level == 0 { PIECE_LEN } else { CHILD_LEN };
        if fields.0.len() != count.checked_mul(entry_len)? {
            return None;
        }
        let entries = if level == 0 {
            Entries::Pieces(parse_pieces(&mut fields, count, number, head, offset)?)
        } else {
            Entries::Children(level, parse_children(&mut fields, count, offset)?)
        };
        Some(Self { number, entries })
    }

    /// 0 for a leaf.
    pub fn level(&self) -> u8 {
        match self.entries {
            Entries::Pieces(_) => 0,
            Entries::Children(level, _) => level,
        }
    }
}

/// The highest number of a node at `level`.
fn numbers_max(level: u8) -> u64 {
    (1 << (FANOUT_LOG2 * u32::from(LEVEL_MAX - level))) - 1
}

fn parse_pieces(
    fields: &mut Fields<'_>,
    count: usize,
    number: u64,
    head: &Head,
    offset: u64,
) -> Option<Vec<Piece>> {
    let chunk_len = 1 << head.chunk_len_log2;
    let leaf_len = LEAF_CHUNKS * chunk_len;
    let mut end = number.checked_mul(leaf_len)?;
    let leaf_end = end.saturating_add(leaf_len);
    let mut pieces = Vec::with_capacity(count);
    for _ in 0..count {
        let extent = Extent::parse(fields.take(Extent::LEN)?, chunk_len, offset)?;
        let (from, to) = (u64::from(fields.u32()?), u64::from(fields.u32()?));
        let visible = extent.logical + from..extent.logical.checked_add(to)?;
        let fits = extent.form != Form::Zeros
            && from < to
            && to <= extent.len
            && visible.start >= end
            && visible.end <= leaf_end;
        if !fits {
            return None;
        }
        end = visible.end;
        pieces.push((visible, extent));
    }
    Some(pieces)
}

fn parse_children(fields: &mut Fields<'_>, count: usize, offset: u64) -> Option<Children> {
    let mut children = Vec::with_capacity(count);
    let mut free = 0;
    for _ in 0..count {
        let slot = u16::try_from(fields.u32()?).ok()?;
        let pointer = Pointer::parse(fields, offset)?;
        if slot < free || slot >> FANOUT_LOG2 != 0 {
            return None;
        }
        free = slot + 1;
        children.push((slot, pointer));
    }
    Some(children)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use warpcore_offload::Codec;

    fn head() -> Head {
        Head { chunk_len_log2: 12, id: *b"twelve bytes" }
    }

    fn leaf() -> Node {
        let extent = Extent {
            logical: 64 * 4096,
            len: 4096,
            physical: 40,
            stored_len: 100,
            form: Form::Codec(Codec::Zstd),
            checksum: 7,
        };
        let pieces = vec![
            (extent.logical..extent.logical + 10, extent),
            (extent.logical + 20..extent.end(), extent),
        ];
        Node { number: 1, entries: Entries::Pieces(pieces) }
    }

    fn inner() -> Node {
        let child = Pointer { offset: 32, len: 48 };
        let children = vec![(0, child), (511, child)];
        Node { number: 0, entries: Entries::Children(2, children) }
    }

    #[test]
    fn what_is_encoded_parses_at_its_place_only() {
        for node in [leaf(), inner()] {
            let bytes = node.encode(&head().id, 1000);
            assert_eq!(Node::parse(&bytes, &head(), 1000), Some(node));
            assert_eq!(Node::parse(&bytes, &head(), 1008), None);
            let other = Head { id: *b"another file", ..head() };
            assert_eq!(Node::parse(&bytes, &other, 1000), None);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_under_a_right_checksum() {
        let overlapping = |node: &mut Node| {
            if let Entries::Pieces(pieces) = &mut node.entries {
                pieces[1].0.start -= 15;
            }
        };
        let outside = |node: &mut Node| node.number = 3;
        let spoil: [&dyn Fn(&mut Node); 2] = [&overlapping, &outside];
        for spoil in spoil {
            let mut node = leaf();
            spoil(&mut node);
            let bytes = node.encode(&head().id, 1000);
            assert_eq!(Node::parse(&bytes, &head(), 1000), None, "{node:?}");
        }
        // A child behind its parent would make a circle.
        assert_eq!(Node::parse(&inner().encode(&head().id, 40), &head(), 40), None);
        let unordered = Entries::Children(1, vec![(1, Pointer { offset: 32, len: 48 }); 2]);
        let bytes = Node { entries: unordered, ..inner() }.encode(&head().id, 1000);
        assert_eq!(Node::parse(&bytes, &head(), 1000), None);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 48..400)) {
            prop_assert_eq!(Node::parse(&bytes, &head(), 1000), None);
            // Behind a right checksum, whatever comes.
            let len = bytes.len();
            bytes[..8].copy_from_slice(&skippable(len - SKIPPABLE_HEAD_LEN));
            bytes[8..12].copy_from_slice(&[b'W', b'C', b'N', VERSION]);
            bytes[12] %= 8;
            let sum = checksum(&head().id, 1000, &bytes[..len - 8]);
            bytes[len - 8..].copy_from_slice(&sum.to_le_bytes());
            let _ = Node::parse(&bytes, &head(), 1000);
        }
    }
}

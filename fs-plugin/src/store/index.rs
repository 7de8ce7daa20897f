//! A file's index in memory: what is visible of which extent, as far as it was looked at.
//!
//! It begins as the tree of the newest checkpoint, of which nothing is read yet, and takes up the
//! extents of later records. Leaves are read when somebody asks for their range, and may be dropped
//! again as long as nothing in them has changed. [`Index::missing`] says which node comes next,
//! [`Index::supply`] takes it; [`known`] reads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::extents::Extents;
use super::format::{
    Children, Entries, Extent, FANOUT_LOG2, FileId, Head, LEAF_CHUNKS, Node, OFFSET_MAX, Piece,
    Pointer,
};
use super::medium::Medium;
use super::spans::Spans;
use crate::error::Error;

/// What is known of a file's index.
#[derive(Debug, Clone)]
pub struct Index {
    /// Visible parts, of every leaf that is in `loaded` or has never been stored.
    extents: Extents,
    /// Bytes of the file in a leaf.
    leaf_len: u64,
    /// The newest checkpoint.
    root: Option<Root>,
    /// Children of nodes of level 1 and more that were read, by level and number. A quarter of a
    /// byte for each chunk: they stay.
    inner: BTreeMap<(u8, u64), Children>,
    /// Leaves whose visible parts are in `extents`, by number.
    loaded: Spans,
    /// Leaves that are not what the checkpoint says.
    changed: Spans,
    /// Visible parts that were left when leaves were dropped last.
    len_kept: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Root {
    level: u8,
    pointer: Pointer,
}

/// A node that has to be read before a range is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    level: u8,
    number: u64,
    /// Where it is stored.
    pub pointer: Pointer,
    /// Where the part of the file begins that it is about.
    pub start: u64,
}

/// What a checkpoint writes, and what is true once that has succeeded.
#[derive(Debug)]
pub struct Checkpoint {
    /// Nodes, one behind the other.
    pub bytes: Vec<u8>,
    /// The last of them.
    pub root: Pointer,
    /// Nodes that are not part of the tree any more.
    pub replaced: Vec<Pointer>,
    level: u8,
    inner: Vec<((u8, u64), Children)>,
}

impl Index {
    /// Of an empty file with chunks of this many bytes.
    pub fn new(chunk_len: u64) -> Self {
        Self {
            extents: Extents::default(),
            leaf_len: LEAF_CHUNKS * chunk_len,
            root: None,
            inner: BTreeMap::new(),
            loaded: Spans::default(),
            changed: Spans::default(),
            len_kept: 0,
        }
    }

    /// As a checkpoint has it, whose root is this.
    pub fn of_tree(chunk_len: u64, pointer: Pointer, root: Node) -> Self {
        let level = root.level();
        let mut index = Self { root: Some(Root { level, pointer }), ..Self::new(chunk_len) };
        index.take(root);
        index
    }

    /// The first node that has to be read before all of `range` is known. Of nodes that end at or
    /// before `behind` nothing is asked.
    pub fn missing(&self, range: Range<u64>, behind: u64) -> Option<Missing> {
        let Root { level, pointer } = self.root?;
        if range.is_empty() {
            return None;
        }
        let leaves = self.leaves(range);
        self.missing_below(Missing { level, number: 0, pointer, start: 0 }, &leaves, behind)
    }

    fn missing_below(&self, node: Missing, leaves: &Range<u64>, behind: u64) -> Option<Missing> {
        let Missing { level, number, pointer, .. } = node;
        let span = leaves_of(level, number);
        let wanted = span.start.max(leaves.start)..span.end.min(leaves.end);
        if wanted.is_empty() || pointer.end() <= behind || self.loaded.covers(wanted.clone()) {
            return None;
        }
        let children = match self.inner.get(&(level, number)) {
            Some(children) if level > 0 => children,
            _ => return Some(node),
        };
        let first = children.partition_point(|(slot, _)| {
            leaves_of(level - 1, child(number, *slot)).end <= wanted.start
        });
        children[first..].iter().find_map(|(slot, pointer)| {
            let number = child(number, *slot);
            let start = leaves_of(level - 1, number).start.saturating_mul(self.leaf_len);
            let node = Missing { level: level - 1, number, pointer: *pointer, start };
            self.missing_below(node, leaves, behind)
        })
    }

    /// Takes what was read for [`Index::missing`]. False: it is not that node.
    pub fn supply(&mut self, missing: &Missing, node: Node) -> bool {
        let fits = (node.level(), node.number) == (missing.level, missing.number);
        if fits {
            self.take(node);
        }
        fits
    }

    fn take(&mut self, node: Node) {
        match node.entries {
            // Somebody may have read it too, and changed it since.
            Entries::Pieces(pieces) => {
                let leaf = node.number..node.number + 1;
                if !self.loaded.covers(leaf.clone()) {
                    self.loaded.insert(leaf);
                    pieces.into_iter().for_each(|piece| self.extents.put(piece));
                }
            }
            Entries::Children(level, children) => {
                self.inner.insert((level, node.number), children);
            }
        }
    }

    /// Lays `extent`, whose range is known, over what is there; returns the extents of which nothing
    /// is seen any more.
    pub fn lay_over(&mut self, extent: Extent) -> Vec<Extent> {
        debug_assert_eq!(self.missing(extent.logical..extent.end(), 0), None, "not known yet");
        let leaves = self.leaves(extent.logical..extent.end());
        self.loaded.insert(leaves.clone());
        self.changed.insert(leaves);
        self.extents.lay_over(extent)
    }

    /// The visible parts within `range`, as far as they are known, cut to it, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        self.extents.within(range)
    }

    /// The leaf that `offset` is in: its bytes of the file.
    pub fn leaf_of(&self, offset: u64) -> Range<u64> {
        let start = offset / self.leaf_len * self.leaf_len;
        start..start.saturating_add(self.leaf_len)
    }

    /// Number of visible parts in memory.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether none is in memory.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Drops the leaves that a checkpoint has as they are.
    pub fn evict(&mut self) {
        if self.root.is_some() {
            let kept = self.changed.iter().map(|leaves| self.bytes_of(&leaves));
            let kept = kept.flat_map(|range| self.extents.within(range)).collect();
            self.extents = kept;
            self.loaded = self.changed.clone();
        }
        self.len_kept = self.extents.len();
    }

    /// The same, if more than so many visible parts are in memory. What has changed cannot go: not to try again
    /// for each part of it.
    pub fn evict_if_crowded(&mut self, pieces_max: usize) {
        if self.len() > pieces_max.max(2 * self.len_kept) {
            self.evict();
        }
    }

    /// The tree that says all this, of the file `id`, to be stored at `start`.
    pub fn checkpoint(&self, id: &FileId, start: u64) -> Checkpoint {
        let mut writer = Writer { id, start, bytes: Vec::new() };
        let mut replaced = Vec::new();
        let mut inner = Vec::new();
        let mut changed = self.write_leaves(&mut writer, &mut replaced);
        let height = changed.keys().next_back().map_or(0, |leaf| level_of(*leaf));
        let mut level = 0;
        loop {
            if let Some(root) = self.root
                && root.level == level
            {
                // It may be changed, and is below the new one if the tree grows.
                changed.entry(0).or_insert(Some(root.pointer));
            }
            let lowest = self.root.map_or(0, |root| root.level).max(height);
            if level == lowest {
                break;
            }
            level += 1;
            let mut parents: BTreeMap<u64, Vec<_>> = BTreeMap::new();
            for (number, pointer) in changed {
                let slot = u16::try_from(number & ((1 << FANOUT_LOG2) - 1)).expect("9 bits");
                parents.entry(number >> FANOUT_LOG2).or_default().push((slot, pointer));
            }
            changed = BTreeMap::new();
            for (number, news) in parents {
                let old = self.inner.get(&(level, number));
                let children = merged(old.map_or(&[], Vec::as_slice), &news);
                if old == Some(&children) {
                    continue;
                }
                replaced.extend(self.pointer(level, number));
                let pointer = (!children.is_empty())
                    .then(|| writer.put(number, Entries::Children(level, children.clone())));
                inner.push(((level, number), children));
                changed.insert(number, pointer);
            }
        }
        let root = changed.get(&0).copied().flatten();
        // Nothing is stored any more: an empty leaf says so.
        let (root, level) = match root {
            Some(root) => (root, level),
            None => (writer.put(0, Entries::Pieces(Vec::new())), 0),
        };
        Checkpoint { bytes: writer.bytes, root, replaced, level, inner }
    }

    /// Writes the leaves that have changed; where they are now, by number.
    fn write_leaves(
        &self,
        writer: &mut Writer<'_>,
        replaced: &mut Vec<Pointer>,
    ) -> BTreeMap<u64, Option<Pointer>> {
        let mut leaves: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
        for span in self.changed.iter() {
            for piece in self.extents.within(self.bytes_of(&span)) {
                leaves.entry(piece.0.start / self.leaf_len).or_default().push(piece);
            }
            if let Some(root) = self.root {
                self.stored_leaves(root.level, 0, &span, &mut |leaf, pointer| {
                    replaced.push(pointer);
                    leaves.entry(leaf).or_default();
                });
            }
        }
        let place = |(number, pieces): (u64, Vec<Piece>)| {
            let pointer = (!pieces.is_empty()).then(|| writer.put(number, Entries::Pieces(pieces)));
            (number, pointer)
        };
        leaves.into_iter().map(place).collect()
    }

    /// Every leaf of the tree in `span`, whose parents were all read.
    fn stored_leaves(
        &self,
        level: u8,
        number: u64,
        span: &Range<u64>,
        found: &mut impl FnMut(u64, Pointer),
    ) {
        if level == 0 {
            if span.contains(&number) {
                self.pointer(0, number).into_iter().for_each(|pointer| found(number, pointer));
            }
            return;
        }
        let children = self.inner.get(&(level, number)).map_or(&[][..], Vec::as_slice);
        for (slot, _) in children {
            let leaves = leaves_of(level - 1, child(number, *slot));
            if leaves.start < span.end && leaves.end > span.start {
                self.stored_leaves(level - 1, child(number, *slot), span, found);
            }
        }
    }

    /// Where a node of the tree is stored, if it has that one.
    fn pointer(&self, level: u8, number: u64) -> Option<Pointer> {
        let root = self.root?;
        if level == root.level {
            return (number == 0).then_some(root.pointer);
        }
        let siblings = self.inner.get(&(level + 1, number >> FANOUT_LOG2))?;
        let at =
            siblings.binary_search_by_key(&number, |(slot, _)| child(number >> FANOUT_LOG2, *slot));
        Some(siblings[at.ok()?].1)
    }

    /// A checkpoint is stored: from here on it is the tree.
    pub fn apply(&mut self, checkpoint: Checkpoint) {
        let Checkpoint { root: pointer, level, inner, .. } = checkpoint;
        self.root = Some(Root { level, pointer });
        for (place, children) in inner {
            if children.is_empty() {
                self.inner.remove(&place);
            } else {
                self.inner.insert(place, children);
            }
        }
        self.changed = Spans::default();
    }

    fn leaves(&self, range: Range<u64>) -> Range<u64> {
        range.start / self.leaf_len..(range.end - 1) / self.leaf_len + 1
    }

    fn bytes_of(&self, leaves: &Range<u64>) -> Range<u64> {
        let at = |leaf: u64| leaf.saturating_mul(self.leaf_len).min(OFFSET_MAX);
        at(leaves.start)..at(leaves.end)
    }
}

/// The index, once all that it has of `range` in nodes that end behind `behind` is read. Never held
/// across an await: readers of several cores share it.
pub async fn known<'a, M: Medium>(
    medium: &M,
    head: &Head,
    index: &'a Mutex<Index>,
    range: Range<u64>,
    behind: u64,
) -> Result<MutexGuard<'a, Index>, Error> {
    loop {
        let missing = {
            let index = lock(index);
            match index.missing(range.clone(), behind) {
                None => return Ok(index),
                Some(missing) => missing,
            }
        };
        read(medium, head, index, &missing).await?;
    }
}

/// Reads every node that ends behind `behind`, in order, and keeps some: a file may be longer than memory.
pub async fn read_all<M: Medium>(
    medium: &M,
    head: &Head,
    index: &Mutex<Index>,
    behind: u64,
) -> Result<(), Error> {
    const PIECES_MAX: usize = 1 << 16;
    let mut from = 0;
    loop {
        let missing = {
            let mut index = lock(index);
            index.evict_if_crowded(PIECES_MAX);
            index.missing(from..OFFSET_MAX, behind)
        };
        let Some(missing) = missing else { return Ok(()) };
        read(medium, head, index, &missing).await?;
        // All before it has been read; a leaf is not read again when it is dropped.
        from = match missing.level {
            0 => lock(index).leaf_of(missing.start).end,
            _ => from.max(missing.start),
        };
    }
}

/// The visible parts of the first leaf at or behind `offset` that has any, and where that ends.
pub async fn leaf_from<M: Medium>(
    medium: &M,
    head: &Head,
    index: &Mutex<Index>,
    offset: u64,
) -> Result<Option<(Vec<Piece>, u64)>, Error> {
    loop {
        let missing = {
            let index = lock(index);
            let first = index.within(offset..OFFSET_MAX).next().map(|(visible, _)| visible.start);
            match (index.missing(offset..OFFSET_MAX, 0), first) {
                (Some(missing), first) if first.is_none_or(|first| missing.start <= first) => {
                    missing
                }
                (_, None) => return Ok(None),
                (_, Some(first)) => {
                    let leaf = index.leaf_of(first);
                    return Ok(Some((index.within(first..leaf.end).collect(), leaf.end)));
                }
            }
        };
        read(medium, head, index, &missing).await?;
    }
}

/// The index as it is.
pub fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read<M: Medium>(
    medium: &M,
    head: &Head,
    index: &Mutex<Index>,
    missing: &Missing,
) -> Result<(), Error> {
    let node = read_node(medium, head, missing.pointer).await?;
    if lock(index).supply(missing, node) { Ok(()) } else { Err(damaged(missing.pointer)) }
}

/// A node of the tree.
pub async fn read_node<M: Medium>(
    medium: &M,
    head: &Head,
    pointer: Pointer,
) -> Result<Node, Error> {
    let bytes = medium.read_at(pointer.offset, pointer.len as usize).await?;
    Node::parse(&bytes, head, pointer.offset).ok_or_else(|| damaged(pointer))
}

fn damaged(node: Pointer) -> Error {
    Error::Damaged { what: "node of the index", offset: node.offset }
}

/// Lays out nodes one behind the other.
struct Writer<'a> {
    id: &'a FileId,
    start: u64,
    bytes: Vec<u8>,
}

impl Writer<'_> {
    fn put(&mut self, number: u64, entries: Entries) -> Pointer {
        let offset = self.start + self.bytes.len() as u64;
        let bytes = Node { number, entries }.encode(self.id, offset);
        self.bytes.extend_from_slice(&bytes);
        Pointer { offset, len: u32::try_from(bytes.len()).expect("a node is far below 4 GiB") }
    }
}

/// Children of a node, some of them changed or (None) gone.
fn merged(old: &[(u16, Pointer)], news: &[(u16, Option<Pointer>)]) -> Children {
    let mut children: BTreeMap<u16, Pointer> = old.iter().copied().collect();
    for (slot, pointer) in news {
        match pointer {
            Some(pointer) => drop(children.insert(*slot, *pointer)),
            None => drop(children.remove(slot)),
        }
    }
    children.into_iter().collect()
}

/// The leaves below a node.
fn leaves_of(level: u8, number: u64) -> Range<u64> {
    let shift = FANOUT_LOG2 * u32::from(level);
    number << shift..(number + 1) << shift
}

fn child(number: u64, slot: u16) -> u64 {
    number << FANOUT_LOG2 | u64::from(slot)
}

/// The level of a root that has this leaf below it.
fn level_of(leaf: u64) -> u8 {
    let bits = u64::BITS - leaf.leading_zeros();
    u8::try_from(bits.div_ceil(FANOUT_LOG2)).expect("at most 8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::format::{Form, Head};
    use crate::store::medium::CrashMedium;
    use proptest::prelude::*;
    use warpcore_offload::Codec;

    const CHUNK: u64 = 1 << 12;
    const HEAD: Head = Head { chunk_len_log2: 12, id: *b"twelve bytes" };

    #[derive(Debug, Clone)]
    enum Step {
        Checkpoint,
        Evict,
        LayOver { chunk: u64, chunks: u64, zeros: bool },
        Reopen,
    }

    /// Chunks of many leaves, and of few: next to each other, and at the far end of the largest file.
    fn chunks() -> impl Strategy<Value = u64> {
        let far = OFFSET_MAX / CHUNK - 500;
        prop_oneof![0..200_u64, 60_000..60_200_u64, (1 << 30..(1 << 30) + 100_u64), far..far + 99]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let span = prop_oneof![Just(1_u64), 1..400_u64, Just(100_000)];
        let lay_over = (chunks(), span, any::<bool>()).prop_map(|(chunk, chunks, zeros)| {
            Step::LayOver { chunk, chunks: if zeros { chunks } else { 1 }, zeros }
        });
        let step = prop_oneof![
            6 => lay_over,
            2 => Just(Step::Checkpoint),
            1 => Just(Step::Evict),
            1 => Just(Step::Reopen),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// Reads whatever `range` needs from `stored`.
    fn ensure(index: &mut Index, stored: &[u8], range: Range<u64>) {
        while let Some(missing) = index.missing(range.clone(), 0) {
            let node = parse(stored, missing.pointer);
            assert!(index.supply(&missing, node), "another node than the parent says");
        }
    }

    fn parse(stored: &[u8], pointer: Pointer) -> Node {
        let at = |offset: u64| usize::try_from(offset).expect("small");
        let bytes = &stored[at(pointer.offset)..at(pointer.end())];
        Node::parse(bytes, &HEAD, pointer.offset).expect("as it was stored")
    }

    proptest! {
        /// Against extents that are all in memory: whatever was stored, dropped and read again.
        #[test]
        fn the_index_says_what_was_laid_over(steps in steps(), probe in chunks()) {
            let mut index = Index::new(CHUNK);
            let mut model = Extents::default();
            // The one byte that all extents are stored as.
            let mut stored = vec![0; Head::LEN + 1];
            let mut live: Vec<Pointer> = Vec::new();
            let mut root = None;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::LayOver { chunk, chunks, zeros } => {
                        let logical = chunk * CHUNK;
                        let len = (chunks * CHUNK).min(OFFSET_MAX - logical);
                        let extent = Extent {
                            logical,
                            len,
                            physical: Head::LEN as u64,
                            stored_len: if zeros { 0 } else { 1 },
                            form: if zeros { Form::Zeros } else { Form::Codec(Codec::Zstd) },
                            checksum: u32::try_from(number).expect("small"),
                        };
                        ensure(&mut index, &stored, logical..logical + len);
                        index.lay_over(extent);
                        model.lay_over(extent);
                        // To be read from there, it would have to be stored.
                        root = None;
                    }
                    Step::Checkpoint => {
                        let start = stored.len() as u64;
                        let checkpoint = index.checkpoint(&HEAD.id, start);
                        stored.extend(&checkpoint.bytes);
                        for gone in &checkpoint.replaced {
                            let at = live.iter().position(|one| one == gone);
                            prop_assert!(at.is_some(), "replaced what is not there");
                            live.swap_remove(at.expect("just seen"));
                        }
                        live.extend(nodes(&stored, start));
                        root = Some(checkpoint.root);
                        index.apply(checkpoint);
                    }
                    Step::Evict => index.evict(),
                    Step::Reopen => {
                        if let Some(pointer) = root {
                            index = Index::of_tree(CHUNK, pointer, parse(&stored, pointer));
                        }
                    }
                }
                let near = probe.saturating_sub(100) * CHUNK..(probe + 100) * CHUNK;
                ensure(&mut index, &stored, near.clone());
                prop_assert!(index.within(near.clone()).eq(model.within(near)));
            }
            ensure(&mut index, &stored, 0..OFFSET_MAX);
            prop_assert!(index.within(0..OFFSET_MAX).eq(model.within(0..OFFSET_MAX)));
            if let Some(pointer) = root {
                // What was not replaced is the tree.
                let mut tree = vec![pointer];
                let mut at = 0;
                while at < tree.len() {
                    if let Entries::Children(_, children) = parse(&stored, tree[at]).entries {
                        tree.extend(children.iter().map(|(_, pointer)| *pointer));
                    }
                    at += 1;
                }
                let key = |pointer: &Pointer| pointer.offset;
                tree.sort_by_key(key);
                live.sort_by_key(key);
                prop_assert_eq!(tree, live);
            }
        }
    }

    /// What one leaf has does not fit what is kept: it is read once all the same.
    #[test]
    fn a_crowded_leaf_is_read_once() {
        let mut index = Index::new(1 << 20);
        for number in 0..70_000_u64 {
            index.lay_over(Extent {
                logical: 2 * number,
                len: 1,
                physical: Head::LEN as u64,
                stored_len: 1,
                form: Form::Codec(Codec::Zstd),
                checksum: 0,
            });
        }
        let checkpoint = index.checkpoint(&HEAD.id, Head::LEN as u64 + 1);
        let mut stored = vec![0; Head::LEN + 1];
        stored.extend(&checkpoint.bytes);
        let root = parse(&stored, checkpoint.root);
        let index = Mutex::new(Index::of_tree(1 << 20, checkpoint.root, root));
        let medium = CrashMedium::default();
        medium.damage(|bytes| *bytes = stored);
        // Or it would go on for ever.
        medium.fail_read_after(10);
        let read = warpcore_offload::Queue::new(1).run(read_all(&medium, &HEAD, &index, 0));
        assert!(read.is_ok() && medium.stop_failing_reads(), "{read:?}");
    }

    /// The nodes that were stored from `start` on.
    fn nodes(stored: &[u8], start: u64) -> Vec<Pointer> {
        let mut found = Vec::new();
        let mut offset = start;
        while let Some(bytes) = stored.get(usize::try_from(offset).expect("small")..)
            && let Some(len) = bytes.get(4..8)
        {
            let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) + 8;
            found.push(Pointer { offset, len });
            offset += u64::from(len);
        }
        found
    }
}

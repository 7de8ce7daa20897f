//! Stored bytes that nothing shows any more, until their blocks are given back.

use std::ops::Range;

use super::BLOCK;
use crate::store::spans::Spans;

/// Ranges of the backing file that were replaced since it was opened.
#[derive(Debug, Default)]
pub(super) struct Dead {
    /// Replaced by what is not durable yet: a crash may bring them back.
    doubtful: Vec<Range<u64>>,
    /// Bytes of them.
    doubtful_len: u64,
    /// Replaced for good, and no whole block.
    ranges: Spans,
    /// Whole blocks, to be given back.
    blocks: Vec<Range<u64>>,
    /// Bytes of them.
    whole_blocks: u64,
}

impl Dead {
    /// Nothing shows `range` any more.
    pub(super) fn replaced(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.doubtful_len += len(&range);
            self.doubtful.push(range);
        }
    }

    /// What replaced them is durable.
    pub(super) fn replaced_durably(&mut self) {
        self.doubtful_len = 0;
        for range in std::mem::take(&mut self.doubtful) {
            self.insert(range);
        }
    }

    /// Bytes that could be given back if what replaced them were durable.
    pub(super) fn doubtful_len(&self) -> u64 {
        self.doubtful_len
    }

    /// Bytes of blocks that can be given back.
    pub(super) fn whole_blocks(&self) -> u64 {
        self.whole_blocks
    }

    /// The blocks that can be given back, each once. What is left of their ranges stays, and may
    /// become whole blocks with what dies beside it.
    pub(super) fn take_whole_blocks(&mut self) -> Vec<Range<u64>> {
        self.whole_blocks = 0;
        std::mem::take(&mut self.blocks)
    }

    fn insert(&mut self, range: Range<u64>) {
        let merged = self.ranges.insert(range);
        let blocks = whole(merged.clone());
        if !blocks.is_empty() {
            self.ranges.remove(merged.start);
            self.ranges.insert(merged.start..blocks.start);
            self.ranges.insert(blocks.end..merged.end);
            self.whole_blocks += len(&blocks);
            self.blocks.push(blocks);
        }
    }
}

/// The whole blocks in a range.
fn whole(range: Range<u64>) -> Range<u64> {
    let start = range.start.next_multiple_of(BLOCK);
    start..(range.end / BLOCK * BLOCK).max(start)
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a set of bytes: a block is given back once all of it is dead, and only once.
        #[test]
        fn whole_blocks_are_given_back_once(
            steps in prop::collection::vec((0..40_u64, 1..9_u64, any::<bool>()), 0..40),
        ) {
            const PART: u64 = BLOCK / 4;
            let mut dead = Dead::default();
            let mut model = [false; 200];
            let mut given = [false; 50];
            for (start, parts, punch) in steps {
                // What is dead does not die again.
                let free = (start..start + parts)
                    .take_while(|part| !model[usize::try_from(*part).expect("small")]).count();
                let end = start + free as u64;
                (start..end).for_each(|part| model[usize::try_from(part).expect("small")] = true);
                dead.replaced(start * PART..end * PART);
                dead.replaced_durably();
                let ready = |block: usize| model[block * 4..block * 4 + 4].iter().all(|dead| *dead);
                let expected = (0..50).filter(|block| ready(*block) && !given[*block]).count();
                prop_assert_eq!(dead.whole_blocks(), expected as u64 * BLOCK);
                if punch {
                    for blocks in dead.take_whole_blocks() {
                        for block in blocks.start / BLOCK..blocks.end / BLOCK {
                            let block = usize::try_from(block).expect("small");
                            prop_assert!(ready(block) && !given[block]);
                            given[block] = true;
                        }
                    }
                    prop_assert_eq!(dead.whole_blocks(), 0);
                }
            }
        }
    }
}

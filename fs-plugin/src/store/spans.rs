//! A set of numbers, kept as spans.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers. Spans that touch are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spans {
    /// End by start.
    ends: BTreeMap<u64, u64>,
}

impl Spans {
    /// Adds `range`. Returns the span that it is part of now.
    pub(super) fn insert(&mut self, range: Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return range;
        }
        let up_to = self.ends.range(..=range.end).rev().map(|(start, end)| *start..*end);
        let absorbed: Vec<_> = up_to.take_while(|span| span.end >= range.start).collect();
        let mut merged = range;
        for span in &absorbed {
            self.ends.remove(&span.start);
            merged = merged.start.min(span.start)..merged.end.max(span.end);
        }
        self.ends.insert(merged.start, merged.end);
        merged
    }

    /// Takes out the span that starts here.
    pub(super) fn remove(&mut self, start: u64) {
        self.ends.remove(&start);
    }

    /// Whether all of `range` is in it.
    pub(super) fn covers(&self, range: Range<u64>) -> bool {
        let before = self.ends.range(..=range.start).next_back();
        range.is_empty() || before.is_some_and(|(_, end)| *end >= range.end)
    }

    /// The spans, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(start, end)| *start..*end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a set of numbers.
        #[test]
        fn spans_are_the_numbers_that_were_put_in(
            steps in prop::collection::vec((0..60_u64, 0..9_u64), 0..30),
            probe in (0..70_u64, 0..9_u64),
        ) {
            let mut spans = Spans::default();
            let mut model = [false; 80];
            for (start, len) in steps {
                let merged = spans.insert(start..start + len);
                prop_assert!(len == 0 || spans.iter().any(|span| span == merged));
                (start..start + len).for_each(|n| model[usize::try_from(n).expect("small")] = true);
            }
            let mut seen = [false; 80];
            for span in spans.iter() {
                prop_assert!(!span.is_empty());
                prop_assert!(span.start == 0 || !seen[usize::try_from(span.start - 1).expect("small")]);
                span.for_each(|n| seen[usize::try_from(n).expect("small")] = true);
            }
            prop_assert_eq!(seen, model);
            let range = probe.0..probe.0 + probe.1;
            let all = range.clone().all(|n| model[usize::try_from(n).expect("small")]);
            prop_assert_eq!(spans.covers(range), all);
        }
    }
}

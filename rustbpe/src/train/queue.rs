//! How frequent the indexed pairs are, and which of them comes next.
//!
//! All places of a pair appear at one moment, when the later of its two tokens does. After that
//! they only disappear. So a pair that is rare at first stays rare, and only pairs that reach a
//! threshold need to be known. When no pair reaches it any more, the threshold is lowered and all
//! pairs are counted anew: memory stays small, and most pairs, which never get merged, are never
//! indexed.

use super::Pair;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Before the first index: pairs are indexed as if the threshold so far had been one such part of
/// all pairs.
const FIRST_THRESHOLD_SHARE: u64 = 32;
/// Each index lowers the threshold by this factor, or by up to the other one if that is likely to
/// be the last time.
const THRESHOLD_STEP: u64 = 16;
const LAST_THRESHOLD_STEP: u64 = 64;

/// The counts of the indexed pairs, the highest first.
pub(super) struct PairQueue {
    counts: FxHashMap<Pair, u64>,
    /// Indexed pairs by count, highest first, of equal ones the lowest pair. A count may be out of
    /// date; then it is too high.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    /// Pairs with a lower count are not in the index.
    threshold: u64,
}

impl PairQueue {
    /// An empty queue for a text of about `num_pairs` pairs.
    pub(super) fn new(num_pairs: u64) -> Self {
        let threshold = (num_pairs / FIRST_THRESHOLD_SHARE).max(1);
        Self { counts: FxHashMap::default(), heap: BinaryHeap::new(), threshold }
    }

    pub(super) fn threshold(&self) -> u64 {
        self.threshold
    }

    /// The next threshold will not be lower than this.
    pub(super) fn lowest_next_threshold(&self) -> u64 {
        (self.threshold / LAST_THRESHOLD_STEP).max(1)
    }

    /// Lower the threshold, and take over the pairs that reach it; they are returned in ascending
    /// order.
    pub(super) fn choose(&mut self, mut found: Vec<(Pair, u64)>, num_merges: usize) -> Vec<Pair> {
        let lowest = self.lowest_next_threshold();
        found.retain(|&(_, count)| count >= lowest);
        // Some pairs get rarer than the threshold before their turn comes, and new pairs appear.
        // Twice as many pairs as there are merges left are enough.
        let enough = 2 * num_merges;
        self.threshold = if found.len() > enough {
            found.select_nth_unstable_by_key(enough, |&(_, count)| Reverse(count)).1.1
        } else {
            (self.threshold / THRESHOLD_STEP).max(1)
        };
        found.retain(|&(_, count)| count >= self.threshold);
        self.heap = found.iter().map(|&(pair, count)| (count, Reverse(pair))).collect();
        self.counts = found.iter().copied().collect();
        let mut pairs: Vec<Pair> = found.into_iter().map(|(pair, _)| pair).collect();
        pairs.sort_unstable();
        pairs
    }

    /// Take the pair to merge next; None where no pair reaches the threshold. `forget` is called
    /// for each pair that has become rarer than it.
    ///
    /// A count that falls is not looked up in the heap, which would take long. It is corrected when
    /// its pair comes to the top: because counts only fall, no pair below can be more frequent than
    /// the heap says. O(log pairs) a look.
    pub(super) fn pop(&mut self, mut forget: impl FnMut(Pair)) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            match self.counts.get(&pair) {
                Some(&current) if current == count => return Some(pair),
                Some(&current) if current >= self.threshold => self.heap.push((current, Reverse(pair))),
                _ => {
                    self.counts.remove(&pair);
                    forget(pair);
                }
            }
        }
        None
    }

    /// The pair is being merged.
    pub(super) fn remove(&mut self, pair: Pair) {
        self.counts.remove(&pair);
    }

    /// A merge took `count` of the pair's places, if it is indexed.
    pub(super) fn lower(&mut self, pair: Pair, count: u64) {
        if let Some(old) = self.counts.get_mut(&pair) {
            *old -= count;
        }
    }

    /// A merge has made this pair; its count reaches the threshold.
    pub(super) fn insert(&mut self, pair: Pair, count: u64) {
        self.counts.insert(pair, count);
        self.heap.push((count, Reverse(pair)));
    }
}

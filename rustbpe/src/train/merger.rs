//! One merge in all shards, and what it changes in the counts of the pairs around it.

use super::index::build_index;
use super::queue::PairQueue;
use super::shard::Shard;
use super::{NUM_BYTES, Pair};
use crate::count::PieceCounter;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

/// A merge at fewer places than this is done at once by the calling thread: starting others would
/// take longer.
const PARALLEL_PLACES: usize = 1 << 13;

/// All pieces, and what is known of the pairs in them.
pub(super) struct Merger {
    shards: Vec<Shard>,
    queue: PairQueue,
    /// How many slots each token covers.
    spans: Vec<u32>,
}

impl Merger {
    /// The pieces as single bytes, with a first index of the pairs that `num_merges` merges are
    /// likely to need.
    pub(super) fn new(pieces: PieceCounter, num_merges: usize) -> Self {
        let shards: Vec<Shard> = pieces.into_shards().into_par_iter().flat_map_iter(Shard::from_pieces).collect();
        let num_pairs: u64 = shards.iter().map(Shard::num_weighted_slots).sum();
        let mut merger = Self { shards, queue: PairQueue::new(num_pairs), spans: vec![1; NUM_BYTES] };
        merger.build_index(num_merges);
        merger
    }

    /// Pack the slots, lower the threshold, and index every pair that reaches it.
    pub(super) fn build_index(&mut self, num_merges: usize) {
        let Self { shards, queue, spans } = self;
        shards.par_iter_mut().for_each(|shard| shard.pack(spans));
        spans.fill(1); // after packing each token has one slot
        build_index(shards, spans.len(), queue.lowest_next_threshold(), |found| queue.choose(found, num_merges));
    }

    /// Whether the index holds every pair there is.
    pub(super) fn has_indexed_all(&self) -> bool {
        self.queue.threshold() == 1
    }

    /// The pair to merge next; None where no indexed pair reaches the threshold.
    pub(super) fn most_frequent(&mut self) -> Option<Pair> {
        let Self { shards, queue, .. } = self;
        queue.pop(|rare| shards.iter_mut().for_each(|shard| shard.forget(rare)))
    }

    /// Merge `pair` everywhere into a new token, and bring counts and index up to date.
    ///
    /// Time grows with the number of places of the pair and of different tokens beside it, not with
    /// the text.
    pub(super) fn merge(&mut self, pair: Pair) {
        let Self { shards, queue, spans } = self;
        let new = spans.len() as u32;
        spans.push(spans[pair.0 as usize] + spans[pair.1 as usize]);
        queue.remove(pair);
        let num_places: usize = shards.iter().map(|shard| shard.num_places(pair)).sum();
        let in_parallel = num_places >= PARALLEL_PLACES;
        for_each_shard(shards, in_parallel, |shard| shard.merge(pair, new, spans));

        // What stood beside the pair is now beside the new token: the old pairs become rarer, new
        // pairs appear.
        let (mut lefts, mut rights) = (FxHashMap::<u32, u64>::default(), FxHashMap::<u32, u64>::default());
        let mut doubled = 0;
        for shard in shards.iter_mut() {
            let beside = shard.take_neighbours();
            doubled += beside.doubled;
            beside.lefts.for_each(|(left, count)| *lefts.entry(left).or_default() += count);
            beside.rights.for_each(|(right, count)| *rights.entry(right).or_default() += count);
        }
        lefts.iter().for_each(|(&left, &count)| queue.lower((left, pair.0), count));
        rights.iter().for_each(|(&right, &count)| queue.lower((pair.1, right), count));
        // Where the pair stood twice in a row, the right neighbour was the next pair's left token,
        // which is gone too.
        if doubled > 0 {
            if let Some(count) = rights.get_mut(&pair.0) {
                *count -= doubled;
            }
            rights.insert(new, doubled);
        }
        // A pair that is too rare when it appears never gets more frequent: it needs no place in
        // the index.
        lefts.retain(|_, count| *count >= queue.threshold());
        rights.retain(|_, count| *count >= queue.threshold());
        lefts.iter().for_each(|(&left, &count)| queue.insert((left, new), count));
        rights.iter().for_each(|(&right, &count)| queue.insert((new, right), count));
        for_each_shard(shards, in_parallel, |shard| shard.index_new_pairs(new, spans, &lefts, &rights));
    }
}

fn for_each_shard(shards: &mut [Shard], in_parallel: bool, work: impl Fn(&mut Shard) + Send + Sync) {
    if in_parallel {
        shards.par_iter_mut().for_each(work);
    } else {
        shards.iter_mut().for_each(work);
    }
}

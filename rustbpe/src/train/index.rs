//! Counting all pairs of the packed tokens, and indexing the places of those that are frequent.
//!
//! There are two ways, with the same result. The table is faster, but has a row and a column for
//! each token: it is used while there are few tokens. Later the places are sorted by their left
//! token, so that one row at a time is enough.

use super::shard::Shard;
use super::tally::{Tally, WeightCursor};
use super::{Pair, SEPARATOR};
use rayon::prelude::*;

/// Pairs are counted in tables of all possible pairs, one for each shard, while all tables together
/// have at most this many entries.
const MAX_TABLE_ENTRIES: usize = 1 << 24;
/// No list, in a table of lists.
const NO_LIST: u32 = u32::MAX;

/// Count the pairs of packed shards, and index the places of those that `choose` picks.
///
/// `choose` gets the pairs with their counts in any order, those below `lowest` perhaps left out,
/// and returns the pairs to index in ascending order. O(slots), and O(tokens²) for tables, whose
/// size is bounded.
pub(super) fn build_index(
    shards: &mut [Shard],
    num_tokens: usize,
    lowest: u64,
    choose: impl FnOnce(Vec<(Pair, u64)>) -> Vec<Pair>,
) {
    if num_tokens * num_tokens * shards.len() <= MAX_TABLE_ENTRIES {
        build_by_table(shards, num_tokens, choose);
    } else {
        build_by_groups(shards, num_tokens, lowest, choose);
    }
}

/// For few tokens: two passes over the slots, with tables of all possible pairs.
fn build_by_table(shards: &mut [Shard], num_tokens: usize, choose: impl FnOnce(Vec<(Pair, u64)>) -> Vec<Pair>) {
    let sum = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let table = shards.par_iter().map(|shard| shard.count_by_table(num_tokens)).reduce_with(sum);
    let pair_of = |at: usize| ((at / num_tokens) as u32, (at % num_tokens) as u32);
    let found = table.unwrap_or_default().into_iter().enumerate().map(|(at, count)| (pair_of(at), count));
    let pairs = choose(found.filter(|&(_, count)| count > 0).collect());
    let mut list_of = vec![NO_LIST; num_tokens * num_tokens];
    for (list, &(left, right)) in (0..).zip(&pairs) {
        list_of[left as usize * num_tokens + right as usize] = list;
    }
    shards.par_iter_mut().for_each(|shard| shard.index_by_table(&pairs, &list_of, num_tokens));
}

/// For many tokens: the places are grouped by their token first, then one row of the table is
/// enough at a time.
fn build_by_groups(
    shards: &mut [Shard],
    num_tokens: usize,
    lowest: u64,
    choose: impl FnOnce(Vec<(Pair, u64)>) -> Vec<Pair>,
) {
    let groups: Vec<GroupedPlaces> = shards.par_iter().map(|shard| shard.group_by_left(num_tokens)).collect();
    let count_rights = |tally: &mut Tally, left: u32| -> Vec<(Pair, u64)> {
        for (shard, grouped) in shards.iter().zip(&groups) {
            shard.tally_rights(grouped.of(left), tally);
        }
        let found = tally.drain().filter(|&(_, count)| count >= lowest);
        found.map(|(right, count)| ((left, right), count)).collect()
    };
    let found = (0..num_tokens as u32).into_par_iter().map_init(|| Tally::new(num_tokens), count_rights);
    let found: Vec<Vec<(Pair, u64)>> = found.collect();
    let pairs = choose(found.into_iter().flatten().collect());
    let shards = shards.par_iter_mut().zip(groups);
    shards.for_each(|(shard, grouped)| shard.index_by_groups(&pairs, &grouped, num_tokens));
}

impl Shard {
    /// The counts of all possible pairs of packed tokens, at `left * num_tokens + right`.
    fn count_by_table(&self, num_tokens: usize) -> Vec<u64> {
        let mut counts = vec![0; num_tokens * num_tokens];
        let mut start = 0;
        for &(end, weight) in &self.weights {
            for pair in self.slots[start..end as usize].windows(2) {
                if pair[0] != SEPARATOR && pair[1] != SEPARATOR {
                    counts[pair[0] as usize * num_tokens + pair[1] as usize] += weight;
                }
            }
            start = end as usize;
        }
        counts
    }

    /// Index the places of `pairs`; `list_of` leads from `left * num_tokens + right` to a pair's
    /// position among them.
    fn index_by_table(&mut self, pairs: &[Pair], list_of: &[u32], num_tokens: usize) {
        let mut lists = vec![Vec::new(); pairs.len()];
        for (place, pair) in (0..).zip(self.slots.windows(2)) {
            if pair[0] != SEPARATOR && pair[1] != SEPARATOR {
                let list = list_of[pair[0] as usize * num_tokens + pair[1] as usize];
                if list != NO_LIST {
                    lists[list as usize].push(place);
                }
            }
        }
        lists.iter_mut().for_each(Vec::shrink_to_fit);
        self.index = pairs.iter().copied().zip(lists).collect();
    }

    /// The places of packed tokens that have a right neighbour, grouped by token: a counting sort.
    fn group_by_left(&self, num_tokens: usize) -> GroupedPlaces {
        let is_pair = |pair: &[u32]| pair[0] != SEPARATOR && pair[1] != SEPARATOR;
        let mut ends = vec![0_u32; num_tokens];
        self.slots.windows(2).filter(|pair| is_pair(pair)).for_each(|pair| ends[pair[0] as usize] += 1);
        // Turn sizes into starts. Writing then moves each start to the end of its group.
        let mut total = 0;
        for end in &mut ends {
            total += std::mem::replace(end, total);
        }
        let mut places = vec![0; total as usize];
        for (place, pair) in (0..).zip(self.slots.windows(2)) {
            if is_pair(pair) {
                let next = &mut ends[pair[0] as usize];
                places[*next as usize] = place;
                *next += 1;
            }
        }
        GroupedPlaces { ends, places }
    }

    /// Count the right neighbours of the packed tokens at `places`.
    fn tally_rights(&self, places: &[u32], tally: &mut Tally) {
        let mut weights = WeightCursor::new(&self.weights);
        for &place in places {
            tally.add(self.slots[place as usize + 1], weights.at(place));
        }
    }

    /// Index the places of `pairs`, which ascend.
    fn index_by_groups(&mut self, pairs: &[Pair], grouped: &GroupedPlaces, num_tokens: usize) {
        let mut list_of = vec![NO_LIST; num_tokens];
        for of_left in pairs.chunk_by(|a, b| a.0 == b.0) {
            let mut lists = vec![Vec::new(); of_left.len()];
            for (list, &(_, right)) in (0..).zip(of_left) {
                list_of[right as usize] = list;
            }
            for &place in grouped.of(of_left[0].0) {
                let list = list_of[self.slots[place as usize + 1] as usize];
                if list != NO_LIST {
                    lists[list as usize].push(place);
                }
            }
            for (&pair, mut places) in of_left.iter().zip(lists) {
                places.shrink_to_fit();
                list_of[pair.1 as usize] = NO_LIST;
                self.index.insert(pair, places);
            }
        }
    }
}

/// Places grouped by the token there.
struct GroupedPlaces {
    /// Where each token's group ends; the group before it ends where it begins.
    ends: Vec<u32>,
    places: Vec<u32>,
}

impl GroupedPlaces {
    fn of(&self, token: u32) -> &[u32] {
        let token = token as usize;
        let start = if token == 0 { 0 } else { self.ends[token - 1] };
        &self.places[start as usize..self.ends[token] as usize]
    }
}

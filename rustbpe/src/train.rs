//! Learning merges from counted pieces.
//!
//! The pieces lie one after another in flat arrays of token ids, one array a shard. A token covers as many slots as it
//! is long and has its id in its first and its last slot: so both neighbours of a token are found without links.
//!
//! An index leads from a pair to its places. All places of a pair come into being at one moment, when the later of its
//! two tokens does, and only disappear after it. So a pair that is rare at its birth stays rare, and the index holds
//! only pairs that reach a threshold. When no pair reaches it any more, the arrays are packed, the threshold is lowered
//! and the index is built anew: memory stays small, and most pairs, which never get merged, are never indexed.

use crate::count::{PieceCounter, PieceShard};
use crate::error::{Error, Result};
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Two neighbouring tokens, left and right.
pub type Pair = (u32, u32);

/// Ids of single bytes; merged tokens come after them.
pub(crate) const NUM_BYTES: usize = 256;
/// Stands between two pieces.
const SEPARATOR: u32 = u32::MAX;
/// Stands where a token began before it was merged with the one to its left.
const HOLE: u32 = u32::MAX - 1;
/// A slot array longer than this is cut in two, so that 32 bits can address it.
const MAX_SHARD_SLOTS: usize = u32::MAX as usize;
/// A merge at fewer places than this is done at once by the calling thread: starting others would take longer.
const PARALLEL_PLACES: usize = 1 << 13;
/// Before the first index: pairs are indexed as if the threshold so far had been one such part of all pairs.
const FIRST_THRESHOLD_SHARE: u64 = 32;
/// Each index lowers the threshold by this factor, or by up to the other one where that is likely to be the last time.
const THRESHOLD_STEP: u64 = 16;
const LAST_THRESHOLD_STEP: u64 = 64;
/// Pairs are counted in a table of all possible pairs, one a shard, while the tables together have no more entries.
const MAX_TABLE_ENTRIES: usize = 1 << 24;
/// No list, in a table of lists.
const NO_LIST: u32 = u32::MAX;

/// Learn merges until the vocabulary has `vocab_size` tokens or no pair is left. Merge `i` makes the token `256 + i`.
///
/// The pair with the highest count is merged next; of several, the lowest `(left id, right id)`. `progress` is called
/// before each merge with the number of merges so far, and stops the training by returning an error.
pub fn learn_merges(
    pieces: PieceCounter,
    vocab_size: usize,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Pair>> {
    check_vocab_size(vocab_size as i128)?;
    let num_merges = vocab_size - NUM_BYTES;
    let mut merges = Vec::new();
    progress(0)?;
    let mut state = Merger::new(pieces, num_merges);
    while merges.len() < num_merges {
        progress(merges.len())?;
        let Some(pair) = state.most_frequent() else {
            if state.threshold == 1 {
                break;
            }
            state.build_index(num_merges - merges.len());
            continue;
        };
        state.merge(pair);
        merges.push(pair);
    }
    Ok(merges)
}

/// The size of a vocabulary, if there can be one of this size.
pub(crate) fn check_vocab_size(vocab_size: i128) -> Result<usize> {
    match usize::try_from(vocab_size) {
        Ok(size) if (NUM_BYTES..HOLE as usize).contains(&size) => Ok(size),
        _ => Err(Error::VocabSize(vocab_size)),
    }
}

/// The bytes of every token, in the order of the ids: 256 single bytes, then one token a merge.
pub fn token_bytes(merges: &[Pair]) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    for &(left, right) in merges {
        let bytes = [tokens[left as usize].as_slice(), &tokens[right as usize]].concat();
        tokens.push(bytes);
    }
    tokens
}

/// What the shards share: how frequent the indexed pairs are, and how long the tokens.
struct Merger {
    shards: Vec<MergeShard>,
    /// The counts of the indexed pairs.
    counts: FxHashMap<Pair, u64>,
    /// Indexed pairs by count, highest first; a count may be out of date, then it is too high.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    /// How many slots each token covers.
    spans: Vec<u32>,
    /// Pairs with a lower count are not in the index.
    threshold: u64,
}

impl Merger {
    fn new(pieces: PieceCounter, num_merges: usize) -> Self {
        let shards: Vec<MergeShard> =
            pieces.into_shards().into_par_iter().flat_map_iter(MergeShard::from_pieces).collect();
        let num_pairs: u64 = shards.iter().map(MergeShard::num_weighted_slots).sum();
        let mut merger = Self {
            shards,
            counts: FxHashMap::default(),
            heap: BinaryHeap::new(),
            spans: vec![1; NUM_BYTES],
            threshold: (num_pairs / FIRST_THRESHOLD_SHARE).max(1),
        };
        merger.build_index(num_merges);
        merger
    }

    /// Pack the slots, lower the threshold, and index every pair that reaches it.
    fn build_index(&mut self, num_merges: usize) {
        let Self { shards, spans, .. } = self;
        shards.par_iter_mut().for_each(|shard| shard.pack(spans));
        spans.fill(1);
        let num_tokens = spans.len();
        if num_tokens * num_tokens * shards.len() <= MAX_TABLE_ENTRIES {
            self.build_index_by_table(num_tokens, num_merges);
        } else {
            self.build_index_by_groups(num_tokens, num_merges);
        }
    }

    /// For few tokens: two passes over the slots, with tables of all possible pairs.
    fn build_index_by_table(&mut self, num_tokens: usize, num_merges: usize) {
        let sum = |mut a: Vec<u64>, b: Vec<u64>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        };
        let table = self.shards.par_iter().map(|shard| shard.count_by_table(num_tokens)).reduce_with(sum);
        let pair_of = |at: usize| ((at / num_tokens) as u32, (at % num_tokens) as u32);
        let found = table.unwrap_or_default().into_iter().enumerate().map(|(at, count)| (pair_of(at), count));
        let pairs = self.choose_pairs(found.filter(|&(_, count)| count > 0).collect(), num_merges);
        let mut list_of = vec![NO_LIST; num_tokens * num_tokens];
        for (list, &(left, right)) in (0..).zip(&pairs) {
            list_of[left as usize * num_tokens + right as usize] = list;
        }
        self.shards.par_iter_mut().for_each(|shard| shard.index_by_table(&pairs, &list_of, num_tokens));
    }

    /// For many tokens: the places are grouped by their token first, then one row of the table is enough at a time.
    fn build_index_by_groups(&mut self, num_tokens: usize, num_merges: usize) {
        let shards = &self.shards;
        let groups: Vec<GroupedPlaces> = shards.par_iter().map(|shard| shard.group_by_left(num_tokens)).collect();
        let lowest = (self.threshold / LAST_THRESHOLD_STEP).max(1);
        let count_rights = |tally: &mut Tally, left: u32| -> Vec<(Pair, u64)> {
            for (shard, grouped) in shards.iter().zip(&groups) {
                shard.tally_rights(grouped.of(left), tally);
            }
            let found = tally.drain().filter(|&(_, count)| count >= lowest);
            found.map(|(right, count)| ((left, right), count)).collect()
        };
        let found = (0..num_tokens as u32).into_par_iter().map_init(|| Tally::new(num_tokens), count_rights);
        let found: Vec<Vec<(Pair, u64)>> = found.collect();
        let pairs = self.choose_pairs(found.into_iter().flatten().collect(), num_merges);
        let shards = self.shards.par_iter_mut().zip(groups);
        shards.for_each(|(shard, grouped)| shard.index_by_groups(&pairs, &grouped, num_tokens));
    }

    /// Lower the threshold, and take over the pairs that reach it; they are returned in ascending order.
    fn choose_pairs(&mut self, mut found: Vec<(Pair, u64)>, num_merges: usize) -> Vec<Pair> {
        let lowest = (self.threshold / LAST_THRESHOLD_STEP).max(1);
        found.retain(|&(_, count)| count >= lowest);
        // Some pairs get rarer than the threshold before their turn comes, others are born: twice as many as there are
        // merges left will do.
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

    /// The pair to merge next; None where no indexed pair reaches the threshold.
    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            match self.counts.get(&pair) {
                Some(&current) if current == count => return Some(pair),
                Some(&current) if current >= self.threshold => self.heap.push((current, Reverse(pair))),
                _ => {
                    self.counts.remove(&pair);
                    for shard in &mut self.shards {
                        shard.index.remove(&pair);
                    }
                }
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair) {
        let Self { shards, counts, heap, spans, threshold } = self;
        let new = spans.len() as u32;
        spans.push(spans[pair.0 as usize] + spans[pair.1 as usize]);
        counts.remove(&pair);
        let num_places: usize = shards.iter().map(|shard| shard.index.get(&pair).map_or(0, Vec::len)).sum();
        let in_parallel = num_places >= PARALLEL_PLACES;
        for_each_shard(shards, in_parallel, |shard| shard.merge(pair, new, spans));

        // What stood beside the pair is now beside the new token: the old pairs are fewer, the new ones are born.
        let (mut lefts, mut rights) = (FxHashMap::<u32, u64>::default(), FxHashMap::<u32, u64>::default());
        let mut doubled = 0;
        for shard in shards.iter_mut() {
            doubled += std::mem::take(&mut shard.doubled);
            shard.lefts.drain().for_each(|(left, count)| *lefts.entry(left).or_default() += count);
            shard.rights.drain().for_each(|(right, count)| *rights.entry(right).or_default() += count);
        }
        for (&left, &count) in &lefts {
            if let Some(old) = counts.get_mut(&(left, pair.0)) {
                *old -= count;
            }
        }
        for (&right, &count) in &rights {
            if let Some(old) = counts.get_mut(&(pair.1, right)) {
                *old -= count;
            }
        }
        // Where the pair stood twice in a row, the right neighbour was the next pair's left token, which is gone too.
        if doubled > 0 {
            if let Some(count) = rights.get_mut(&pair.0) {
                *count -= doubled;
            }
            rights.insert(new, doubled);
        }
        lefts.retain(|_, count| *count >= *threshold);
        rights.retain(|_, count| *count >= *threshold);
        for (pair, count) in lefts
            .iter()
            .map(|(&left, &count)| ((left, new), count))
            .chain(rights.iter().map(|(&right, &count)| ((new, right), count)))
        {
            counts.insert(pair, count);
            heap.push((count, Reverse(pair)));
        }
        for_each_shard(shards, in_parallel, |shard| shard.index_new_pairs(new, spans, &lefts, &rights));
    }
}

fn for_each_shard(shards: &mut [MergeShard], in_parallel: bool, work: impl Fn(&mut MergeShard) + Send + Sync) {
    if in_parallel {
        shards.par_iter_mut().for_each(work);
    } else {
        shards.iter_mut().for_each(work);
    }
}

/// A part of the pieces, with an index of its own; one thread works on it at a time.
struct MergeShard {
    /// Tokens, with a separator before the first piece and after each.
    slots: Vec<u32>,
    /// How often the pieces occur: up to the first slot of the entry this often, then up to the next one's, and so on.
    weights: Vec<(u32, u64)>,
    /// The places (first slots) of the indexed pairs, ascending.
    index: FxHashMap<Pair, Vec<u32>>,
    /// The places of the merge under way, which begin with the new token now.
    merged: Vec<u32>,
    /// What stands to the left and right of the merge under way, by count.
    lefts: Tally,
    rights: Tally,
    /// How often the merge under way happened twice in a row.
    doubled: u64,
}

impl MergeShard {
    fn from_pieces(pieces: PieceShard) -> Vec<Self> {
        let mut shards = vec![Self::empty()];
        for (piece, count) in pieces.sorted() {
            if piece.len() < 2 {
                continue;
            }
            let mut shard = shards.len() - 1;
            if shards[shard].slots.len() + piece.len() + 1 > MAX_SHARD_SLOTS {
                shards.push(Self::empty());
                shard += 1;
            }
            shards[shard].push_piece(piece, count);
        }
        shards
    }

    fn empty() -> Self {
        Self {
            slots: vec![SEPARATOR],
            weights: Vec::new(),
            index: FxHashMap::default(),
            merged: Vec::new(),
            lefts: Tally::new(NUM_BYTES),
            rights: Tally::new(NUM_BYTES),
            doubled: 0,
        }
    }

    fn push_piece(&mut self, piece: &[u8], count: u64) {
        self.slots.extend(piece.iter().map(|&byte| u32::from(byte)));
        self.slots.push(SEPARATOR);
        let end = self.slots.len() as u32;
        match self.weights.last_mut() {
            Some((last_end, weight)) if *weight == count => *last_end = end,
            _ => self.weights.push((end, count)),
        }
    }

    /// About the sum of all pair counts.
    fn num_weighted_slots(&self) -> u64 {
        let starts = std::iter::once(0).chain(self.weights.iter().map(|&(end, _)| end));
        self.weights.iter().zip(starts).map(|(&(end, weight), start)| u64::from(end - start) * weight).sum()
    }

    /// Give every token one slot, and drop the pieces that are one token.
    fn pack(&mut self, spans: &[u32]) {
        let (mut read, mut write) = (1, 1);
        for (end, _) in &mut self.weights {
            while read < *end as usize {
                let piece_start = write;
                while self.slots[read] != SEPARATOR {
                    let id = self.slots[read];
                    self.slots[write] = id;
                    write += 1;
                    read += spans[id as usize] as usize;
                }
                read += 1;
                if write - piece_start < 2 {
                    write = piece_start;
                } else {
                    self.slots[write] = SEPARATOR;
                    write += 1;
                }
            }
            *end = write as u32;
        }
        self.slots.truncate(write);
        self.slots.shrink_to_fit();
        self.index = FxHashMap::default();
        self.merged = Vec::new();
    }

    /// The places of packed tokens that have a right neighbour, grouped by token.
    fn group_by_left(&self, num_tokens: usize) -> GroupedPlaces {
        let is_pair = |pair: &[u32]| pair[0] != SEPARATOR && pair[1] != SEPARATOR;
        let mut ends = vec![0_u32; num_tokens];
        self.slots.windows(2).filter(|pair| is_pair(pair)).for_each(|pair| ends[pair[0] as usize] += 1);
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

    /// Index the places of `pairs`; `list_of` leads from `left * num_tokens + right` to a pair's position among them.
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

    /// Merge `pair` into `new` at all its places, from left to right, and tally what stands beside them.
    fn merge(&mut self, pair: Pair, new: u32, spans: &[u32]) {
        let (left, right) = pair;
        let (left_span, right_span) = (spans[left as usize] as usize, spans[right as usize] as usize);
        let slots = &mut self.slots;
        let mut weights = WeightCursor::new(&self.weights);
        self.lefts.grow(spans.len());
        self.rights.grow(spans.len());
        self.merged = self.index.remove(&pair).unwrap_or_default();
        self.merged.retain(|&place| {
            let start = place as usize;
            let middle = start + left_span;
            // A place is stale when one of its tokens became part of another; then a slot says so.
            if slots[start] != left || slots[middle] != right {
                return false;
            }
            let end = middle + right_span;
            let weight = weights.at(place);
            match slots[start - 1] {
                SEPARATOR => {}
                before if before == new => self.doubled += weight,
                before => self.lefts.add(before, weight),
            }
            if slots[end] != SEPARATOR {
                self.rights.add(slots[end], weight);
            }
            slots[middle] = HOLE;
            slots[start] = new;
            slots[end - 1] = new;
            true
        });
    }

    /// Index the places of the pairs `(left, new)` and `(new, right)` that the last merge brought, for the given tokens.
    fn index_new_pairs(&mut self, new: u32, spans: &[u32], lefts: &FxHashMap<u32, u64>, rights: &FxHashMap<u32, u64>) {
        let merged = std::mem::take(&mut self.merged);
        if lefts.is_empty() && rights.is_empty() {
            return;
        }
        let span = spans[new as usize];
        for &place in &merged {
            let before = self.slots[place as usize - 1];
            if before != new && lefts.contains_key(&before) {
                self.index.entry((before, new)).or_default().push(place - spans[before as usize]);
            }
            let after = self.slots[(place + span) as usize];
            if rights.contains_key(&after) {
                self.index.entry((new, after)).or_default().push(place);
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

/// Finds the weights of ascending places.
struct WeightCursor<'w> {
    weights: &'w [(u32, u64)],
}

impl<'w> WeightCursor<'w> {
    fn new(weights: &'w [(u32, u64)]) -> Self {
        Self { weights }
    }

    fn at(&mut self, place: u32) -> u64 {
        if self.weights[0].0 <= place {
            let passed = self.weights.partition_point(|&(end, _)| end <= place);
            self.weights = &self.weights[passed..];
        }
        self.weights[0].1
    }
}

/// Sums by token: an array, and a list of its entries that are not zero.
struct Tally {
    sums: Vec<u64>,
    tokens: Vec<u32>,
}

impl Tally {
    fn new(num_tokens: usize) -> Self {
        Self { sums: vec![0; num_tokens], tokens: Vec::new() }
    }

    fn grow(&mut self, num_tokens: usize) {
        self.sums.resize(num_tokens, 0);
    }

    fn add(&mut self, token: u32, count: u64) {
        let sum = &mut self.sums[token as usize];
        if *sum == 0 {
            self.tokens.push(token);
        }
        *sum += count;
    }

    /// Take the sums out, in the order in which the tokens came.
    fn drain(&mut self) -> impl Iterator<Item = (u32, u64)> {
        let Self { sums, tokens } = self;
        tokens.drain(..).map(|token| (token, std::mem::take(&mut sums[token as usize])))
    }
}

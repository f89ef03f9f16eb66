//! The tokens of a part of the pieces, in a flat array, and one merge in it.
//!
//! The pieces lie one after another. A token covers as many slots as it is long and has its id in
//! its first and its last slot: so both neighbours of a token are found without links, and a merge
//! writes three slots.
//!
//! ```text
//! bytes      #  a  b  a  b  c  #      # is a SEPARATOR, . a HOLE
//! X = a b    #  X  X  X  X  c  #
//! Y = X X    #  Y  X  .  Y  c  #      nobody looks at the X that is left inside Y
//! ```

use super::tally::{Tally, WeightCursor};
use super::{HOLE, NUM_BYTES, Pair, SEPARATOR};
use crate::count::PieceShard;
use rustc_hash::FxHashMap;

/// A slot array longer than this is cut in two, so that 32 bits can address it.
const MAX_SHARD_SLOTS: usize = u32::MAX as usize;

/// A part of the pieces, with an index of its own; one thread works on it at a time.
pub(super) struct Shard {
    /// Tokens, with a separator before the first piece and after each.
    pub(super) slots: Vec<u32>,
    /// How often the pieces occur, as (end, count): pieces from the end of the entry before up to
    /// slot `end` occur `count` times each.
    pub(super) weights: Vec<(u32, u64)>,
    /// The places (first slots) of the indexed pairs, ascending.
    pub(super) index: FxHashMap<Pair, Vec<u32>>,
    /// The places of the merge under way, which begin with the new token now.
    merged: Vec<u32>,
    /// What stands to the left and right of the merge under way, by count.
    lefts: Tally,
    rights: Tally,
    /// How often the merge under way happened twice in a row.
    doubled: u64,
}

/// What stood beside the places of a merge, by count.
pub(super) struct Neighbours<L, R> {
    pub(super) lefts: L,
    pub(super) rights: R,
    /// How often the merge happened twice in a row.
    pub(super) doubled: u64,
}

impl Shard {
    /// Single bytes, the most frequent piece first. A piece of one byte has no pair and is left
    /// out.
    pub(super) fn from_pieces(pieces: PieceShard) -> Vec<Self> {
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
        // Pieces come by count, so many in a row share one entry.
        match self.weights.last_mut() {
            Some((last_end, weight)) if *weight == count => *last_end = end,
            _ => self.weights.push((end, count)),
        }
    }

    /// About the sum of all pair counts.
    pub(super) fn num_weighted_slots(&self) -> u64 {
        let starts = std::iter::once(0).chain(self.weights.iter().map(|&(end, _)| end));
        self.weights.iter().zip(starts).map(|(&(end, weight), start)| u64::from(end - start) * weight).sum()
    }

    /// Give every token one slot, and drop the pieces that are one token. In place, O(slots).
    pub(super) fn pack(&mut self, spans: &[u32]) {
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

    /// An upper bound for the number of places of an indexed pair.
    pub(super) fn num_places(&self, pair: Pair) -> usize {
        self.index.get(&pair).map_or(0, Vec::len)
    }

    /// Drop a pair from the index.
    pub(super) fn forget(&mut self, pair: Pair) {
        self.index.remove(&pair);
    }

    /// Merge `pair` into `new` at all its places, from left to right, and tally what stands beside
    /// them. O(places).
    pub(super) fn merge(&mut self, pair: Pair, new: u32, spans: &[u32]) {
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

    /// Hand over what the last merge tallied.
    pub(super) fn take_neighbours(
        &mut self,
    ) -> Neighbours<impl Iterator<Item = (u32, u64)>, impl Iterator<Item = (u32, u64)>> {
        let doubled = std::mem::take(&mut self.doubled);
        Neighbours { lefts: self.lefts.drain(), rights: self.rights.drain(), doubled }
    }

    /// Index the places of the pairs `(left, new)` and `(new, right)` that the last merge brought,
    /// for the given tokens. O(places of the merge).
    pub(super) fn index_new_pairs(
        &mut self,
        new: u32,
        spans: &[u32],
        lefts: &FxHashMap<u32, u64>,
        rights: &FxHashMap<u32, u64>,
    ) {
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

//! Encoding: text to tokens and back, with the ids that tiktoken gives for the same vocabulary.

use crate::error::{Error, Result};
use crate::split::Splitter;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

/// No token: larger than every rank, so that a search for the lowest rank passes it over.
const NONE: u32 = u32::MAX;

/// Encodes text. A piece that is a token becomes it; in any other piece, of all neighbours that together are a token,
/// those with the lowest id are merged first, from left to right, until none are left.
#[derive(Debug)]
pub struct Encoder {
    tokens: Vec<Vec<u8>>,
    by_bytes: FxHashMap<Box<[u8]>, u32>,
    /// The token of each byte.
    bytes: Vec<u32>,
    /// The token that two bytes make, at `256 * left + right`.
    byte_pairs: Vec<u32>,
    /// The token that two tokens make, for every way to cut a token into two.
    pairs: FxHashMap<u64, u32>,
}

impl Encoder {
    /// An encoder for the vocabulary `tokens`, by id; the first 256 are the single bytes. Of equal tokens the last counts.
    pub fn new(tokens: Vec<Vec<u8>>) -> Self {
        let by_bytes: FxHashMap<Box<[u8]>, u32> =
            (0..).zip(&tokens).map(|(id, bytes)| (bytes.clone().into_boxed_slice(), id)).collect();
        let mut byte_pairs = vec![NONE; 1 << 16];
        let mut pairs = FxHashMap::default();
        for (bytes, &id) in &by_bytes {
            for cut in 1..bytes.len() {
                let halves = (by_bytes.get(&bytes[..cut]), by_bytes.get(&bytes[cut..]));
                if let (Some(&left), Some(&right)) = halves {
                    pairs.insert(pair_key(left, right), id);
                }
            }
            if let [left, right] = **bytes {
                byte_pairs[usize::from(left) << 8 | usize::from(right)] = id;
            }
        }
        let bytes = (0..=u8::MAX).map(|byte| by_bytes.get([byte].as_slice()).copied().unwrap_or(NONE)).collect();
        Self { tokens, by_bytes, bytes, byte_pairs, pairs }
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes of every token, by id.
    pub fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    /// The tokens of `text`, cut into pieces by `splitter`.
    pub fn encode(&self, splitter: &Splitter, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut merger = PieceMerger::default();
        splitter.for_each(text, |piece| self.encode_piece(piece.as_bytes(), &mut merger, &mut ids))?;
        Ok(ids)
    }

    /// The tokens of each of `texts`, in parallel.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, splitter: &Splitter, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(splitter, text.as_ref())).collect()
    }

    /// The bytes of `ids`.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.tokens.get(id as usize).ok_or(Error::UnknownToken(id))?);
        }
        Ok(bytes)
    }

    /// Append the tokens of the bytes `piece`.
    pub fn encode_bytes(&self, piece: &[u8], ids: &mut Vec<u32>) {
        self.encode_piece(piece, &mut PieceMerger::default(), ids);
    }

    fn encode_piece(&self, piece: &[u8], merger: &mut PieceMerger, ids: &mut Vec<u32>) {
        match self.by_bytes.get(piece) {
            Some(&id) => ids.push(id),
            None if piece.len() <= MAX_SCANNED_BYTES => merger.merge_by_scan(self, piece, ids),
            None => merge_by_heap(self, piece, ids),
        }
    }

    fn of_pair(&self, left: u32, right: u32) -> u32 {
        self.pairs.get(&pair_key(left, right)).copied().unwrap_or(NONE)
    }

    fn of_bytes(&self, pair: &[u8]) -> u32 {
        self.byte_pairs[usize::from(pair[0]) << 8 | usize::from(pair[1])]
    }
}

/// Pieces up to this length are merged by looking at every pair for each merge: on a few, nothing is faster.
const MAX_SCANNED_BYTES: usize = 256;

/// The arrays for merging a short piece, kept from piece to piece.
#[derive(Default)]
struct PieceMerger {
    ids: Vec<u32>,
    /// `ranks[i]` is the token that `ids[i]` and `ids[i + 1]` make; NONE for the last.
    ranks: Vec<u32>,
}

impl PieceMerger {
    fn merge_by_scan(&mut self, encoder: &Encoder, piece: &[u8], out: &mut Vec<u32>) {
        let Self { ids, ranks } = self;
        ids.clear();
        ids.extend(piece.iter().map(|&byte| encoder.bytes[usize::from(byte)]));
        ranks.clear();
        ranks.extend(piece.windows(2).map(|pair| encoder.of_bytes(pair)));
        ranks.push(NONE);
        loop {
            let lowest = ranks.iter().copied().fold(NONE, u32::min);
            if lowest == NONE {
                break;
            }
            let Some(at) = ranks.iter().position(|&rank| rank == lowest) else {
                break;
            };
            ids[at] = lowest;
            ids.remove(at + 1);
            ranks.remove(at + 1);
            ranks[at] = ids.get(at + 1).map_or(NONE, |&next| encoder.of_pair(lowest, next));
            if at > 0 {
                ranks[at - 1] = encoder.of_pair(ids[at - 1], lowest);
            }
        }
        out.extend_from_slice(ids);
    }
}

/// The same for a long piece, in O(n log n): a queue of pairs, and tokens linked to their neighbours.
fn merge_by_heap(encoder: &Encoder, piece: &[u8], out: &mut Vec<u32>) {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    let len = piece.len();
    let mut ids: Vec<u32> = piece.iter().map(|&byte| encoder.bytes[usize::from(byte)]).collect();
    // The token at `i` reaches up to `next[i]`; `before[i]` is where the one to its left begins, `len` for none.
    let mut next: Vec<usize> = (1..=len).collect();
    let mut before: Vec<usize> = std::iter::once(len).chain(0..len - 1).collect();
    let mut queue: BinaryHeap<Reverse<(u32, usize, u32, u32)>> = BinaryHeap::new();
    for (at, pair) in piece.windows(2).enumerate() {
        let rank = encoder.of_bytes(pair);
        if rank != NONE {
            queue.push(Reverse((rank, at, ids[at], ids[at + 1])));
        }
    }
    while let Some(Reverse((rank, at, left, right))) = queue.pop() {
        let middle = next[at];
        // A pair is out of date when one of its tokens was merged since; a token merged into its left is NONE.
        if ids[at] != left || middle == len || ids[middle] != right {
            continue;
        }
        let end = next[middle];
        ids[at] = rank;
        ids[middle] = NONE;
        next[at] = end;
        if end < len {
            before[end] = at;
            let rank_after = encoder.of_pair(rank, ids[end]);
            if rank_after != NONE {
                queue.push(Reverse((rank_after, at, rank, ids[end])));
            }
        }
        let left_of = before[at];
        if left_of < len {
            let rank_before = encoder.of_pair(ids[left_of], rank);
            if rank_before != NONE {
                queue.push(Reverse((rank_before, left_of, ids[left_of], rank)));
            }
        }
    }
    let mut at = 0;
    while at < len {
        out.push(ids[at]);
        at = next[at];
    }
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

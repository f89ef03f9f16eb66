//! Encoding: text to tokens and back, with the ids that tiktoken gives for the same vocabulary.
//!
//! BPE merges the pair of neighbours with the lowest rank, the leftmost first, until no pair makes
//! a token. Its result is the only sequence of tokens for the piece in which every two neighbours
//! *fit*: merging the bytes of the two gives just these two again. So nothing has to be merged
//! here. The encoder takes the longest token that fits the one before it, and goes back one token
//! where none does. The tokens before a place are also unique, so a place from which it had to go
//! back need not be tried again. Time grows with the length of a piece, memory by one bit for each
//! byte.

use crate::error::{Error, Result};
use crate::split::Splitter;
use crate::stop::Stop;
use crate::train::{NUM_BYTES, Pair, token_bytes};
use rayon::prelude::*;
use rustc_hash::FxHashMap;

/// No token.
const NONE: u32 = u32::MAX;
/// A text is encoded in parts of about this many bytes, in parallel, where its pattern allows.
const PART_BYTES: usize = 1 << 20;
/// Steps inside a piece between two checks of whether to stop.
const STEPS_PER_CHECK: usize = 1 << 12;

/// Encodes text with the tokens that a list of merges makes.
#[derive(Debug)]
pub struct Encoder {
    /// The bytes of all tokens, one token after another.
    bytes: Vec<u8>,
    /// Where each token begins in `bytes`, and the end of the last one.
    starts: Vec<usize>,
    /// The two tokens that each token after the single bytes was made of.
    merges: Vec<Pair>,
    /// The token that a pair makes.
    merged: FxHashMap<u64, u32>,
    /// The longest other token that each token begins with; NONE for a single byte.
    shorter: Vec<u32>,
    /// The tokens of two bytes and more in the order of their bytes, each with the eight bytes
    /// after the first two as a number, which tells most of them apart.
    sorted: Vec<(u64, u32)>,
    /// Where in `sorted` the tokens begin whose first two bytes are `first` and `second`: at `256 *
    /// first + second`.
    groups: Vec<u32>,
}

impl Encoder {
    /// An encoder for merges as training gives them: merge `i` makes the token `256 + i` of two
    /// tokens before it.
    ///
    /// A pair that comes twice is refused, and so is a pair of tokens that do not exist yet.
    pub fn new(merges: Vec<Pair>) -> Result<Self> {
        let mut merged = FxHashMap::default();
        for (id, &(left, right)) in (NUM_BYTES as u32..).zip(&merges) {
            if left.max(right) >= id || merged.insert(pair_key(left, right), id).is_some() {
                return Err(Error::Merge { left, right });
            }
        }
        let tokens = token_bytes(&merges);
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        order.sort_unstable_by_key(|&id| &tokens[id as usize]);

        // In this order a token comes after all that it begins with; those are on the path to it.
        let mut shorter = vec![NONE; tokens.len()];
        let mut path: Vec<u32> = Vec::new();
        for &id in &order {
            let is_start = |start: &u32| tokens[id as usize].starts_with(&tokens[*start as usize]);
            path.truncate(path.iter().rposition(is_start).map_or(0, |last| last + 1));
            shorter[id as usize] = path.last().copied().unwrap_or(NONE);
            path.push(id);
        }

        let mut sorted = Vec::new();
        let mut groups = vec![0; (1 << 16) + 1];
        for id in order {
            if let Some((first_two, rest)) = tokens[id as usize].split_first_chunk() {
                sorted.push((leading_bytes(rest), id));
                groups[group(*first_two) + 1] = sorted.len() as u32;
            }
        }
        for at in 1..groups.len() {
            groups[at] = groups[at].max(groups[at - 1]);
        }
        let mut starts = vec![0];
        starts.extend(tokens.iter().scan(0, |end, token| {
            *end += token.len();
            Some(*end)
        }));
        Ok(Self { bytes: tokens.concat(), starts, merges, merged, shorter, sorted, groups })
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.shorter.len()
    }

    /// The bytes of every token, by id.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.starts.windows(2).map(|ends| &self.bytes[ends[0]..ends[1]])
    }

    /// The tokens of `text`, cut into pieces by `splitter`.
    pub fn encode(&self, splitter: &Splitter, text: &str, stop: &Stop) -> Result<Vec<u32>> {
        if text.len() <= PART_BYTES {
            return self.encode_part(splitter, text, stop);
        }
        let parts: Vec<&str> = splitter.parts(text, PART_BYTES).collect();
        let parts = parts.into_par_iter().map(|part| self.encode_part(splitter, part, stop));
        Ok(parts.collect::<Result<Vec<_>>>()?.concat())
    }

    /// The tokens of each of `texts`, in parallel.
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        splitter: &Splitter,
        texts: &[S],
        stop: &Stop,
    ) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(splitter, text.as_ref(), stop)).collect()
    }

    /// The bytes of `ids`.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            if id as usize >= self.vocab_size() {
                return Err(Error::UnknownToken(id));
            }
            bytes.extend_from_slice(self.token(id));
        }
        Ok(bytes)
    }

    /// The tokens of the bytes `piece`, which is not cut.
    pub fn encode_piece(&self, piece: &[u8], stop: &Stop) -> Result<Vec<u32>> {
        let mut run = Run { encoder: self, stop, dead: Vec::new(), ids: Vec::new() };
        run.encode_piece(piece)?;
        Ok(run.ids)
    }

    fn encode_part(&self, splitter: &Splitter, text: &str, stop: &Stop) -> Result<Vec<u32>> {
        let ids = Vec::with_capacity(text.len() / 3);
        let mut run = Run { encoder: self, stop, dead: Vec::new(), ids };
        splitter.for_each(text, |piece| {
            stop.check()?;
            run.encode_piece(piece.as_bytes())
        })?;
        Ok(run.ids)
    }

    fn token(&self, id: u32) -> &[u8] {
        &self.bytes[self.starts[id as usize]..self.starts[id as usize + 1]]
    }

    fn token_len(&self, id: u32) -> usize {
        self.starts[id as usize + 1] - self.starts[id as usize]
    }

    /// The longest token that `text`, which is not empty, begins with.
    fn longest(&self, text: &[u8]) -> u32 {
        let byte = u32::from(text[0]);
        let Some((first_two, rest)) = text.split_first_chunk() else { return byte };
        let group = group(*first_two);
        let sorted = &self.sorted[self.groups[group] as usize..self.groups[group + 1] as usize];
        // The last token that is not after the text in this order: the longest is that one, or what
        // it begins with.
        let key = leading_bytes(rest);
        let mut after = sorted.partition_point(|&(token_key, _)| token_key < key);
        if sorted.get(after).is_some_and(|&(token_key, _)| token_key == key) {
            after += sorted[after..].partition_point(|&(token_key, id)| token_key == key && self.token(id) <= text);
        }
        if after == 0 {
            return byte;
        }
        let (token_key, mut id) = sorted[after - 1];
        if token_key == key {
            while !text.starts_with(self.token(id)) {
                id = self.shorter[id as usize];
            }
        } else {
            let num_common = text.len().min(2 + (token_key ^ key).leading_zeros() as usize / 8);
            while self.token_len(id) > num_common {
                id = self.shorter[id as usize];
            }
        }
        id
    }

    /// Whether merging the bytes of `left` and `right` gives these two tokens.
    ///
    /// The merges beside the border of the two are undone, from the last to the first. If at any
    /// time the tokens at the border made a token that comes earlier than what they became instead,
    /// that token would span the border now.
    fn fit(&self, mut left: u32, mut right: u32) -> bool {
        let mut earliest = NONE;
        loop {
            if self.merged.get(&pair_key(left, right)).is_some_and(|&id| id < earliest) {
                return false;
            }
            if left.max(right) < NUM_BYTES as u32 {
                return true;
            }
            if left > right {
                earliest = left;
                left = self.merges[left as usize - NUM_BYTES].1;
            } else {
                // Of two equal pairs the left one is merged first, and that one spans the border.
                earliest = right + 1;
                right = self.merges[right as usize - NUM_BYTES].0;
            }
        }
    }
}

/// The encoding of one text after another piece, and what is kept from piece to piece.
struct Run<'e> {
    encoder: &'e Encoder,
    stop: &'e Stop,
    /// A bit for each place of the piece: the tokens up to there have no continuation.
    dead: Vec<u64>,
    ids: Vec<u32>,
}

impl Run<'_> {
    fn encode_piece(&mut self, piece: &[u8]) -> Result<()> {
        let Self { encoder, stop, dead, ids } = self;
        if piece.is_empty() {
            return Ok(());
        }
        let num_before = ids.len();
        dead.clear();
        let is_dead = |dead: &[u64], at: usize| dead.get(at / 64).is_some_and(|bits| bits >> (at % 64) & 1 == 1);
        let mut at = 0;
        let mut id = encoder.longest(piece);
        let mut steps = 0_usize;
        loop {
            steps += 1;
            if steps.is_multiple_of(STEPS_PER_CHECK) {
                stop.check()?;
            }
            let end = at + encoder.token_len(id);
            let before = ids[num_before..].last();
            if !is_dead(dead, end) && before.is_none_or(|&before| encoder.fit(before, id)) {
                ids.push(id);
                if end == piece.len() {
                    return Ok(());
                }
                at = end;
                id = encoder.longest(&piece[at..]);
            } else if encoder.shorter[id as usize] != NONE {
                id = encoder.shorter[id as usize];
            } else {
                dead.resize(dead.len().max(at / 64 + 1), 0);
                dead[at / 64] |= 1 << (at % 64);
                match ids.pop() {
                    Some(last) if ids.len() >= num_before => id = last,
                    _ => return Err(Error::NoTokens), // not with merges from training
                }
                at -= encoder.token_len(id);
            }
        }
    }
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

fn group(first_two: [u8; 2]) -> usize {
    usize::from(u16::from_be_bytes(first_two))
}

/// Up to eight bytes as a number that is ordered like them.
fn leading_bytes(bytes: &[u8]) -> u64 {
    if let Some(eight) = bytes.first_chunk() {
        return u64::from_be_bytes(*eight);
    }
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(eight)
}

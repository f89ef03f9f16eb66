//! The slow and simple way to split, train and encode. Tests and fuzz targets compare the fast one
//! with it.

#![allow(dead_code, reason = "nobody needs all of it")]
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use rustbpe::{Encoder, Pair, Splitter};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// The pieces of a text.
pub fn pieces<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
    let mut pieces = Vec::new();
    splitter
        .for_each(text, |piece| {
            pieces.push(piece);
            Ok(())
        })
        .unwrap();
    pieces
}

/// Count all pairs of all pieces anew for each merge; the most frequent is merged, of several the
/// lowest.
pub fn train_slowly(texts: &[&str], splitter: &Splitter, vocab_size: usize) -> Vec<Pair> {
    let mut counted: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
    for piece in texts.iter().flat_map(|text| pieces(splitter, text)) {
        *counted.entry(piece.bytes().map(u32::from).collect()).or_default() += 1;
    }
    let mut merges = Vec::new();
    for new in 256..vocab_size as u32 {
        let mut counts: HashMap<Pair, u64> = HashMap::new();
        for (piece, count) in &counted {
            for pair in piece.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += count;
            }
        }
        let Some((&pair, _)) = counts.iter().max_by_key(|&(&pair, &count)| (count, Reverse(pair))) else { break };
        let mut merged: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
        for (piece, count) in counted {
            let (mut ids, mut at) = (Vec::new(), 0);
            while at < piece.len() {
                let is_pair = piece.get(at..at + 2).is_some_and(|ids| ids == [pair.0, pair.1]);
                ids.push(if is_pair { new } else { piece[at] });
                at += if is_pair { 2 } else { 1 };
            }
            *merged.entry(ids).or_default() += count;
        }
        counted = merged;
        merges.push(pair);
    }
    merges
}

/// Merge the neighbours that make the token with the lowest id, the leftmost first, until no two
/// make a token.
pub fn encode_slowly(encoder: &Encoder, piece: &[u8]) -> Vec<u32> {
    let ranks: HashMap<&[u8], u32> = encoder.tokens().zip(0..).collect();
    if let Some(&id) = ranks.get(piece) {
        return vec![id];
    }
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
    let rank_at = |parts: &[Vec<u8>], at: usize| ranks.get(parts[at..at + 2].concat().as_slice()).copied();
    while let Some((_, at)) = (1..parts.len()).filter_map(|end| Some((rank_at(&parts, end - 1)?, end - 1))).min() {
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
    parts.iter().map(|part| ranks[part.as_slice()]).collect()
}

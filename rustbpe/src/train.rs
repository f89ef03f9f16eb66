//! Learning merges from counted pieces.
//!
//! This is byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909), on bytes. The plain
//! algorithm counts all pairs of neighbouring tokens, merges the most frequent one everywhere, and
//! starts again: each merge costs a walk over the whole text. Here the time of a merge is
//! proportional to the number of places where its pair stands. The parts, in the order in which one
//! should read them:
//!
//! - `shard`: the tokens of all pieces, in flat arrays, and one merge in them;
//! - `index`: where the frequent pairs stand;
//! - `queue`: how frequent they are, and which one comes next;
//! - `merger`: one merge in all shards, and what it changes in the counts;
//! - `tally`: sums by token, which the others use.

mod index;
mod merger;
mod queue;
mod shard;
mod tally;

use crate::count::PieceCounter;
use crate::error::{Error, Result};
use merger::Merger;

/// Two neighbouring tokens, left and right.
pub type Pair = (u32, u32);

/// Ids of single bytes; merged tokens come after them.
pub(crate) const NUM_BYTES: usize = 256;
/// Stands between two pieces.
const SEPARATOR: u32 = u32::MAX;
/// Stands where a token began before it was merged with the one to its left.
const HOLE: u32 = u32::MAX - 1;

/// Learn merges until the vocabulary has `vocab_size` tokens or no pair is left. Merge `i` makes
/// the token `256 + i`.
///
/// The pair with the highest count is merged next; of several, the lowest `(left id, right id)`.
/// `progress` is called before each merge with the number of merges so far, and stops the training
/// by returning an error.
pub fn learn_merges(
    pieces: PieceCounter,
    vocab_size: usize,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Pair>> {
    check_vocab_size(vocab_size as i128)?;
    let num_merges = vocab_size - NUM_BYTES;
    let mut merges = Vec::new();
    progress(0)?;
    let mut merger = Merger::new(pieces, num_merges);
    while merges.len() < num_merges {
        progress(merges.len())?;
        let Some(pair) = merger.most_frequent() else {
            // No indexed pair is left. If the index already held every pair, none is left at all.
            if merger.has_indexed_all() {
                break;
            }
            merger.build_index(num_merges - merges.len());
            continue;
        };
        merger.merge(pair);
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

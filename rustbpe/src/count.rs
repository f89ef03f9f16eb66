//! Counting equal pieces of a stream of text.
//!
//! Memory grows with the distinct pieces, not with the text.

use crate::error::{Error, Result};
use crate::split::{Splitter, cap_han_runs};
use crate::stop::Stop;
use hashbrown::HashTable;
use rayon::prelude::*;
use rustc_hash::FxHasher;
use std::hash::Hasher;
use std::sync::Arc;

/// Texts are cut into parts of about this size, where their pattern allows, so that one huge text
/// is work for all threads.
const PART_BYTES: usize = 64 << 10;
/// This much text is counted at once, unless there is less.
const BATCH_BYTES: usize = 8 << 20;
/// A part above this size is counted on its own, piece by piece.
const LARGE_PART_BYTES: usize = 4 << 20;

/// Training addresses the bytes of a piece by 32 bits.
const MAX_PIECE_BYTES: usize = 1 << 31;

/// Counts the pieces of texts. The counts are the same for any order of texts, any batches and any
/// number of threads.
#[derive(Debug)]
pub struct PieceCounter {
    splitter: Arc<Splitter>,
    max_han_run: Option<usize>,
    shards: Vec<PieceShard>,
}

/// The pieces whose hash falls to one shard: each is counted by one thread, without locks.
#[derive(Debug, Default)]
pub(crate) struct PieceShard {
    table: HashTable<Entry>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    start: usize,
    len: u32,
    hash: u32,
    count: u64,
}

impl PieceCounter {
    /// A counter without pieces. With `max_han_run`, runs of Han are cut after that many
    /// characters.
    pub fn new(splitter: impl Into<Arc<Splitter>>, max_han_run: Option<usize>) -> Result<Self> {
        if max_han_run == Some(0) {
            return Err(Error::Setting { name: "max_han_run", reason: "must be at least 1, or None for no cap" });
        }
        let shards = (0..rayon::current_num_threads()).map(|_| PieceShard::default()).collect();
        Ok(Self { splitter: splitter.into(), max_han_run, shards })
    }

    /// Count the pieces of `texts`, in parallel.
    pub fn add<S: AsRef<str> + Sync>(&mut self, texts: &[S], stop: &Stop) -> Result<()> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for text in texts {
            for part in self.splitter.parts(text.as_ref(), PART_BYTES) {
                if part.len() > LARGE_PART_BYTES {
                    count_large_part(&self.splitter, self.max_han_run, part, &mut self.shards, stop)?;
                    continue;
                }
                batch_bytes += part.len();
                batch.push(part);
                if batch_bytes >= BATCH_BYTES {
                    count_batch(&self.splitter, self.max_han_run, &batch, &mut self.shards, stop)?;
                    batch.clear();
                    batch_bytes = 0;
                }
            }
        }
        count_batch(&self.splitter, self.max_han_run, &batch, &mut self.shards, stop)
    }

    /// What cuts the texts into pieces.
    pub fn splitter(&self) -> &Arc<Splitter> {
        &self.splitter
    }

    /// The number of distinct pieces so far.
    pub fn num_pieces(&self) -> usize {
        self.shards.iter().map(|shard| shard.table.len()).sum()
    }

    /// What was counted, a shard a thread.
    pub(crate) fn into_shards(self) -> Vec<PieceShard> {
        self.shards
    }
}

impl PieceShard {
    fn add(&mut self, hash: u32, piece: &str) {
        let Self { table, bytes } = self;
        let is_piece = |entry: &Entry| {
            entry.hash == hash && &bytes[entry.start..entry.start + entry.len as usize] == piece.as_bytes()
        };
        if let Some(entry) = table.find_mut(spread(hash), is_piece) {
            entry.count += 1;
            return;
        }
        let entry = Entry { start: bytes.len(), len: piece.len() as u32, hash, count: 1 };
        bytes.extend_from_slice(piece.as_bytes());
        table.insert_unique(spread(hash), entry, |entry| spread(entry.hash));
    }

    /// The pieces and their counts, the most frequent first.
    pub(crate) fn sorted(&self) -> Vec<(&[u8], u64)> {
        let mut pieces: Vec<_> =
            self.table.iter().map(|entry| (entry.start, entry.len as usize, entry.count)).collect();
        pieces.sort_unstable_by_key(|&(start, _, count)| (std::cmp::Reverse(count), start));
        pieces.into_iter().map(|(start, len, count)| (&self.bytes[start..start + len], count)).collect()
    }
}

/// Count the pieces of `texts` in two steps that need no locks: list the pieces of some texts by
/// shard, count a shard.
fn count_batch(
    splitter: &Splitter,
    max_han_run: Option<usize>,
    texts: &[&str],
    shards: &mut [PieceShard],
    stop: &Stop,
) -> Result<()> {
    let num_shards = shards.len();
    let lists: Vec<Vec<Vec<(u32, &str)>>> = texts
        .par_chunks(texts.len().div_ceil(num_shards * 4).max(1))
        .map(|texts| {
            let mut by_shard = vec![Vec::new(); num_shards];
            for text in texts {
                for_each_piece(splitter, max_han_run, text, stop, |piece| {
                    let hash = hash_piece(piece);
                    by_shard[shard_of(hash, num_shards)].push((hash, piece));
                    Ok(())
                })?;
            }
            Ok(by_shard)
        })
        .collect::<Result<_>>()?;
    shards.par_iter_mut().enumerate().for_each(|(index, shard)| {
        for &(hash, piece) in lists.iter().flat_map(|list| &list[index]) {
            shard.add(hash, piece);
        }
    });
    Ok(())
}

/// Count the pieces of a text that can't be cut beforehand, one by one: a list of them might need a
/// lot of memory.
fn count_large_part(
    splitter: &Splitter,
    max_han_run: Option<usize>,
    text: &str,
    shards: &mut [PieceShard],
    stop: &Stop,
) -> Result<()> {
    for_each_piece(splitter, max_han_run, text, stop, |piece| {
        if piece.len() > MAX_PIECE_BYTES {
            return Err(Error::PieceTooLong(piece.len()));
        }
        let hash = hash_piece(piece);
        shards[shard_of(hash, shards.len())].add(hash, piece);
        Ok(())
    })
}

fn for_each_piece<'t>(
    splitter: &Splitter,
    max_han_run: Option<usize>,
    text: &'t str,
    stop: &Stop,
    mut visit: impl FnMut(&'t str) -> Result<()>,
) -> Result<()> {
    let mut visit = |piece| {
        stop.check()?;
        visit(piece)
    };
    match max_han_run {
        None => splitter.for_each(text, visit),
        Some(max_han) => splitter.for_each(text, |piece| cap_han_runs(piece, max_han, &mut visit)),
    }
}

fn hash_piece(piece: &str) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write(piece.as_bytes());
    let hash = hasher.finish();
    (hash ^ (hash >> 32)) as u32
}

/// The high bits choose the shard, so that the other bits still tell the pieces of one shard apart.
fn shard_of(hash: u32, num_shards: usize) -> usize {
    ((u64::from(hash) * num_shards as u64) >> 32) as usize
}

/// A hash table looks at the highest and the lowest of 64 bits. The multiplication spreads the 32
/// bits of the hash over all of them.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

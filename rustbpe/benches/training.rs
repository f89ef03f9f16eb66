//! Times counting, merging and encoding on a text file.
//!
//! `cargo bench --bench training -- FILE [VOCAB_SIZE [MAX_HAN_RUN]]`

use rustbpe::split::QWEN2_PATTERN;
use rustbpe::{Encoder, PieceCounter, Splitter, Stop, learn_merges};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = args.first() else {
        println!("usage: cargo bench --bench training -- FILE [VOCAB_SIZE [MAX_HAN_RUN]]");
        return Ok(());
    };
    let vocab_size = args.get(1).map_or(Ok(6_400), |size| size.parse())?;
    let max_han_run = args.get(2).map(|run| run.parse()).transpose()?;
    let text = std::fs::read_to_string(path)?;
    let paragraphs: Vec<&str> = text.split_inclusive("\n\n").collect();

    let stop = Stop::default();
    let start = Instant::now();
    let mut pieces = PieceCounter::new(Splitter::new(QWEN2_PATTERN)?, max_han_run)?;
    for batch in paragraphs.chunks(8_192) {
        pieces.add(batch, &stop)?;
    }
    println!("count: {:.2} s, {} distinct pieces", start.elapsed().as_secs_f64(), pieces.num_pieces());

    let start = Instant::now();
    let merges = learn_merges(pieces, vocab_size, |_| Ok(()))?;
    println!("merge: {:.2} s, {} merges", start.elapsed().as_secs_f64(), merges.len());

    let encoder = Encoder::new(merges)?;
    let splitter = Splitter::new(QWEN2_PATTERN)?;
    let start = Instant::now();
    let num_tokens: usize = encoder.encode_batch(&splitter, &paragraphs, &stop)?.iter().map(Vec::len).sum();
    let seconds = start.elapsed().as_secs_f64();
    println!("encode: {seconds:.2} s, {num_tokens} tokens, {:.1} MB/s", text.len() as f64 / 1e6 / seconds);
    Ok(())
}

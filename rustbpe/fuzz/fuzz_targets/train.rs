//! Training equals the slow, obvious trainer, on any texts and for any size of the vocabulary.

#![no_main]

#[path = "../../tests/reference/mod.rs"]
mod reference;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use reference::train_slowly;
use rustbpe::split::{GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN};
use rustbpe::{PieceCounter, Splitter, Stop, learn_merges};
use std::sync::{Arc, LazyLock};

#[derive(Arbitrary, Debug)]
struct Input<'t> {
    pattern: u8,
    num_merges: u8,
    texts: Vec<&'t str>,
}

/// Each pattern as the trainer splits by it, and as a regular expression.
static SPLITTERS: LazyLock<Vec<(Arc<Splitter>, Splitter)>> = LazyLock::new(|| {
    [GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN, "(?s).+", "[a-z]*"]
        .map(|pattern| (Arc::new(Splitter::new(pattern).unwrap()), Splitter::from_regex(pattern).unwrap()))
        .into()
});

fuzz_target!(|input: Input| {
    let Input { pattern, num_merges, texts } = input;
    let (splitter, regex) = &SPLITTERS[usize::from(pattern) % SPLITTERS.len()];
    let vocab_size = 256 + usize::from(num_merges);
    let mut pieces = PieceCounter::new(Arc::clone(splitter), None).unwrap();
    for texts in texts.chunks(2) {
        pieces.add(texts, &Stop::default()).unwrap();
    }
    let merges = learn_merges(pieces, vocab_size, |_| Ok(())).unwrap();
    assert_eq!(merges, train_slowly(&texts, regex, vocab_size));
});

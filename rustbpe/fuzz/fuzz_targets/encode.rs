//! Encoding with what was learnt from any text equals the slow way, and decoding gives text back.

#![no_main]

#[path = "../../tests/reference/mod.rs"]
mod reference;

use libfuzzer_sys::fuzz_target;
use reference::{encode_slowly, pieces};
use rustbpe::split::QWEN2_PATTERN;
use rustbpe::{Encoder, PieceCounter, Splitter, Stop, learn_merges};
use std::sync::{Arc, LazyLock};

static SPLITTERS: LazyLock<[Arc<Splitter>; 2]> =
    LazyLock::new(|| [QWEN2_PATTERN, "(?s).+"].map(|pattern| Arc::new(Splitter::new(pattern).unwrap())));

fuzz_target!(|input: (u8, bool, &str, &str)| {
    let (num_merges, is_whole, corpus, text) = input;
    let splitter = &SPLITTERS[usize::from(is_whole)];
    let stop = Stop::default();
    let mut counter = PieceCounter::new(Arc::clone(splitter), None).unwrap();
    counter.add(&[corpus], &stop).unwrap();
    let merges = learn_merges(counter, 256 + usize::from(num_merges), |_| Ok(())).unwrap();
    let encoder = Encoder::new(merges).unwrap();
    for text in [text, corpus] {
        let ids = encoder.encode(splitter, text, &stop).unwrap();
        assert_eq!(encoder.decode(&ids).unwrap(), text.as_bytes());
        let slowly = pieces(splitter, text).into_iter().flat_map(|piece| encode_slowly(&encoder, piece.as_bytes()));
        assert_eq!(ids, slowly.collect::<Vec<_>>());
    }
});

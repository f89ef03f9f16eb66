//! Training equals a slow, obvious trainer, whatever the order, the batches and the number of threads.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use proptest::prelude::*;
use rustbpe::split::{GPT4_PATTERN, QWEN2_PATTERN};
use rustbpe::{Error, Pair, PieceCounter, Splitter, learn_merges, token_bytes};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

fn train(texts: &[&str], pattern: &str, vocab_size: usize, max_han_run: Option<usize>) -> Vec<Pair> {
    let mut pieces = PieceCounter::new(Splitter::new(pattern).unwrap(), max_han_run).unwrap();
    for batch in texts.chunks(3) {
        pieces.add(batch).unwrap();
    }
    learn_merges(pieces, vocab_size, |_| Ok(())).unwrap()
}

/// Count all pairs of all pieces anew for each merge.
fn train_slowly(texts: &[&str], pattern: &str, vocab_size: usize) -> Vec<Pair> {
    let splitter = Splitter::from_regex(pattern).unwrap();
    let mut pieces: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
    for text in texts {
        splitter
            .for_each(text, |piece| *pieces.entry(piece.bytes().map(u32::from).collect()).or_default() += 1)
            .unwrap();
    }
    let mut merges = Vec::new();
    for new in 256..vocab_size as u32 {
        let mut counts: HashMap<Pair, u64> = HashMap::new();
        for (piece, count) in &pieces {
            for pair in piece.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += count;
            }
        }
        let Some((&pair, _)) = counts.iter().max_by_key(|&(&pair, &count)| (count, Reverse(pair))) else { break };
        let mut merged: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
        for (piece, count) in pieces {
            let (mut ids, mut at) = (Vec::new(), 0);
            while at < piece.len() {
                let is_pair = piece.get(at..at + 2).is_some_and(|ids| ids == [pair.0, pair.1]);
                ids.push(if is_pair { new } else { piece[at] });
                at += if is_pair { 2 } else { 1 };
            }
            *merged.entry(ids).or_default() += count;
        }
        pieces = merged;
        merges.push(pair);
    }
    merges
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn merges_equal_those_of_a_slow_trainer(
        texts in prop::collection::vec("[ab]{0,30}|[a-d ]{0,40}|[天地人，a \n]{0,30}|(aa|ab|ba){0,12}|.{0,20}", 1..12),
        num_merges in 0_usize..60,
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for pattern in [GPT4_PATTERN, QWEN2_PATTERN, "(?s).+"] {
            let expected = train_slowly(&texts, pattern, 256 + num_merges);
            prop_assert_eq!(train(&texts, pattern, 256 + num_merges, None), expected);
        }
    }
}

/// A repeatable text with many distinct pieces and frequent ties.
fn long_text(num_words: usize) -> String {
    let mut state = 1_u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = String::new();
    for _ in 0..num_words {
        text.push(' ');
        for _ in 0..=next(12) {
            let letter = next(8) * next(4);
            text.push(char::from(b'a' + letter as u8));
        }
    }
    text
}

#[test]
fn a_longer_text_with_several_indexes_gives_the_merges_of_a_slow_trainer() {
    let text = long_text(4_000);
    assert_eq!(train(&[&text], GPT4_PATTERN, 556, None), train_slowly(&[&text], GPT4_PATTERN, 556));
}

#[test]
fn threads_order_and_batches_do_not_change_the_merges() {
    let text = long_text(60_000);
    let texts: Vec<&str> = text.split_inclusive(" a").collect();
    let reversed: Vec<&str> = texts.iter().rev().copied().collect();
    let run = |threads: usize, texts: &[&str]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train(texts, GPT4_PATTERN, 3_000, None))
    };
    let expected = run(1, &texts);
    assert_eq!(run(3, &texts), expected);
    assert_eq!(run(4, &reversed), expected);
}

#[test]
fn of_pairs_with_equal_counts_the_lowest_is_merged_first() {
    assert_eq!(train(&["zb", "ac", "ab"], "..", 258, None), [(97, 98), (97, 99)]);
}

#[test]
fn training_ends_when_no_pair_is_left() {
    let merges = train(&["ab ab"], "[a-z]+", 1_000, None);
    assert_eq!(token_bytes(&merges)[256..], [b"ab".to_vec()]);
    assert_eq!(train(&["a"], GPT4_PATTERN, 1_000, None), []);
    assert_eq!(token_bytes(&train(&["      "], GPT4_PATTERN, 300, None))[258], b"      ");
}

#[test]
fn a_text_of_one_repeated_character_is_learnt_quickly() {
    let text = "a".repeat(3 << 20) + &"a".repeat(2 << 20);
    let tokens = token_bytes(&train(&[&text], GPT4_PATTERN, 276, None));
    assert_eq!(tokens[275].len(), 1 << 20);
}

#[test]
fn no_token_has_more_han_in_a_row_than_the_cap() {
    let tokens = token_bytes(&train(&["今天天气很好，今天天气很好"; 5], QWEN2_PATTERN, 400, Some(2)));
    assert!(tokens.contains(&"，今天".as_bytes().to_vec()));
    assert!(!tokens.contains(&"今天天".as_bytes().to_vec()));
}

#[test]
fn settings_without_sense_are_refused() {
    let counter = |cap| PieceCounter::new(Splitter::new(GPT4_PATTERN).unwrap(), cap);
    assert!(matches!(learn_merges(counter(None).unwrap(), 255, |_| Ok(())), Err(Error::VocabSize(255))));
    assert!(matches!(counter(Some(0)), Err(Error::Setting { name: "max_han_run", .. })));
}

#[test]
fn training_stops_when_the_caller_asks() {
    let mut pieces = PieceCounter::new(Splitter::new(GPT4_PATTERN).unwrap(), None).unwrap();
    pieces.add(&[long_text(100)]).unwrap();
    let stop = |done| if done < 5 { Ok(()) } else { Err(Error::Interrupted) };
    assert!(matches!(learn_merges(pieces, 1_000, stop), Err(Error::Interrupted)));
}

#[test]
fn a_file_counts_like_its_text_and_bytes_that_are_no_utf8_are_skipped() {
    let text = format!("{}\n\n{}\n  indented\n", long_text(20_000), long_text(30_000)).replace(" aa", "\naa");
    let path = std::env::temp_dir().join(format!("rustbpe_test_{}.txt", std::process::id()));
    let mut bytes = text.clone().into_bytes();
    bytes.extend_from_slice(b"\xff\xfe");
    std::fs::write(&path, bytes).unwrap();
    let mut pieces = PieceCounter::new(Splitter::new(GPT4_PATTERN).unwrap(), None).unwrap();
    let skipped = rustbpe::files::count_file(&mut pieces, &path, || Ok(()));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(skipped.unwrap(), 2);
    assert_eq!(learn_merges(pieces, 1_000, |_| Ok(())).unwrap(), train(&[&text], GPT4_PATTERN, 1_000, None));
}

//! Training equals a slow and simple trainer, for any order, any batches and any number of threads.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod reference;

use proptest::prelude::*;
use reference::train_slowly;
use rustbpe::split::{GPT4_PATTERN, QWEN2_PATTERN};
use rustbpe::{Error, Pair, PieceCounter, Splitter, Stop, learn_merges, token_bytes};

fn train(texts: &[&str], pattern: &str, vocab_size: usize, max_han_run: Option<usize>) -> Vec<Pair> {
    let mut pieces = PieceCounter::new(Splitter::new(pattern).unwrap(), max_han_run).unwrap();
    for batch in texts.chunks(3) {
        pieces.add(batch, &Stop::default()).unwrap();
    }
    learn_merges(pieces, vocab_size, |_| Ok(())).unwrap()
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
            let expected = train_slowly(&texts, &Splitter::from_regex(pattern).unwrap(), 256 + num_merges);
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
    assert_eq!(
        train(&[&text], GPT4_PATTERN, 556, None),
        train_slowly(&[&text], &Splitter::from_regex(GPT4_PATTERN).unwrap(), 556)
    );
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
    pieces.add(&[long_text(100)], &Stop::default()).unwrap();
    let asked = Stop::default();
    asked.set();
    assert!(matches!(pieces.add(&["more"], &asked), Err(Error::Interrupted)));
    let stop = |done| if done < 5 { Ok(()) } else { Err(Error::Interrupted) };
    assert!(matches!(learn_merges(pieces, 1_000, stop), Err(Error::Interrupted)));
}

/// The pieces of a file with these bytes, as merges, and the number of bytes skipped.
fn train_file(name: &str, bytes: &[u8], pattern: &str, vocab_size: usize) -> (Vec<Pair>, u64) {
    let path = std::env::temp_dir().join(format!("rustbpe_test_{}_{name}.txt", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let mut pieces = PieceCounter::new(Splitter::new(pattern).unwrap(), None).unwrap();
    let skipped = rustbpe::files::count_file(&mut pieces, &path, &Stop::default());
    std::fs::remove_file(&path).unwrap();
    (learn_merges(pieces, vocab_size, |_| Ok(())).unwrap(), skipped.unwrap())
}

/// So much is read of a file at a time.
const READ_BYTES: usize = 8 << 20;

#[test]
fn a_file_counts_like_its_text_and_bytes_that_are_no_utf8_are_skipped() {
    let text = format!("{}\n\n{}\n  indented\n", long_text(20_000), long_text(30_000)).replace(" aa", "\naa");
    let mut bytes = text.clone().into_bytes();
    bytes.extend_from_slice(b"\xff\xfe");
    for pattern in [GPT4_PATTERN, "[a-z]+|."] {
        let (merges, skipped) = train_file("text", &bytes, pattern, 1_000);
        assert_eq!(skipped, 2);
        assert_eq!(merges, train(&[&text], pattern, 1_000, None));
    }
}

#[test]
fn characters_and_invalid_bytes_across_the_border_of_a_read_count_like_others() {
    let filler = long_text(10_000);
    let filler = &filler.repeat(READ_BYTES / filler.len() + 1)[..READ_BYTES - 1];
    // A character of three bytes, of which the first is read at the end of one read and the others
    // with the next one.
    let text = format!("{filler}天天天");
    let (merges, skipped) = train_file("split", text.as_bytes(), GPT4_PATTERN, 400);
    assert_eq!((merges, skipped), (train(&[&text], GPT4_PATTERN, 400, None), 0));
    // Its first two bytes, which nothing makes a character: two texts.
    let bytes = [filler.as_bytes(), b"\xe5\xa4", b"ab\xff\xfeab\xe5"].concat();
    let (merges, skipped) = train_file("invalid", &bytes, GPT4_PATTERN, 400);
    assert_eq!((merges, skipped), (train(&[filler, "ab", "ab"], GPT4_PATTERN, 400, None), 5));
}

#[test]
fn a_file_without_line_ends_or_without_any_break_is_read() {
    let words = long_text(10_000).repeat(2 * READ_BYTES / 60_000);
    assert!(words.len() > READ_BYTES);
    for pattern in [GPT4_PATTERN, "[a-z]+| "] {
        assert!(train_file("words", words.as_bytes(), pattern, 400) == (train(&[&words], pattern, 400, None), 0));
    }
    let one_piece = "天".repeat(READ_BYTES / 3 + 9);
    let expected = (train(&[&one_piece], GPT4_PATTERN, 260, None), 0);
    assert_eq!(train_file("piece", one_piece.as_bytes(), GPT4_PATTERN, 260), expected);
}

#[test]
fn a_file_of_bytes_that_are_no_text_is_skipped() {
    let (merges, skipped) = train_file("noise", &b"\xff\xfe\x80a".repeat(300_000), GPT4_PATTERN, 300);
    assert_eq!((merges, skipped), (vec![], 900_000));
    assert_eq!(train_file("empty", b"", GPT4_PATTERN, 300), (vec![], 0));
}

#[test]
fn a_text_of_several_batches_gives_the_merges_of_its_words() {
    let text = long_text(10_000).repeat(200);
    assert!(text.len() > 10 << 20);
    let mut starts: Vec<usize> = text.match_indices(' ').map(|(at, _)| at).step_by(1_000).collect();
    starts.push(text.len());
    let words: Vec<&str> = starts.windows(2).map(|ends| &text[ends[0]..ends[1]]).collect();
    assert_eq!(train(&[&text], GPT4_PATTERN, 500, None), train(&words, GPT4_PATTERN, 500, None));
}

//! Encoding equals the slow and simple way, and decoding gives the text back.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod reference;

use proptest::prelude::*;
use reference::encode_slowly;
use rustbpe::split::QWEN2_PATTERN;
use rustbpe::{Encoder, Error, PieceCounter, Splitter, Stop, learn_merges};
use std::sync::LazyLock;

const TEXT: &str =
    "今天天气很好，我们去公园散步。the cat sat on the mat; 12345 aaaa aaaaaaa abcabcab\n\n今天我们很好 the thing";

static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    let mut pieces = PieceCounter::new(Splitter::new(QWEN2_PATTERN).unwrap(), None).unwrap();
    pieces.add(&[TEXT, "aaaab aaab aab ab b abab", "天天天天 天气气气"], &Stop::default()).unwrap();
    Encoder::new(learn_merges(pieces, 400, |_| Ok(())).unwrap()).unwrap()
});

proptest! {
    #[test]
    fn any_bytes_are_encoded_by_lowest_rank_and_decoded_again(
        piece in prop_oneof![prop::collection::vec(any::<u8>(), 1..60), "[ab天气 ]{1,60}".prop_map(String::into_bytes), "[abc]{300,400}".prop_map(String::into_bytes)],
    ) {
        let ids = ENCODER.encode_piece(&piece, &Stop::default()).unwrap();
        prop_assert_eq!(&ids, &encode_slowly(&ENCODER, &piece));
        prop_assert_eq!(ENCODER.decode(&ids).unwrap(), piece);
    }

    #[test]
    fn the_merges_of_any_training_encode_any_piece_like_the_obvious_way(
        corpus in "[ab]{1,60}|[abc]{1,200}|(aa|aab|b){1,40}|[天地人]{1,30}",
        piece in "[ab]{1,60}|[abcd]{1,60}|(aa|aab|b|ba){1,40}|[天地人x]{1,20}",
        num_merges in 1_usize..80,
    ) {
        let mut pieces = PieceCounter::new(Splitter::new("(?s).+").unwrap(), None).unwrap();
        pieces.add(&[&corpus], &Stop::default()).unwrap();
        let encoder = Encoder::new(learn_merges(pieces, 256 + num_merges, |_| Ok(())).unwrap()).unwrap();
        for piece in [piece.as_bytes(), corpus.as_bytes(), piece.repeat(3).as_bytes()] {
            prop_assert_eq!(encoder.encode_piece(piece, &Stop::default()).unwrap(), encode_slowly(&encoder, piece));
        }
        for (token, id) in encoder.tokens().zip(0..) {
            prop_assert_eq!(encoder.encode_piece(token, &Stop::default()).unwrap(), [id]);
        }
    }

    #[test]
    fn any_text_is_decoded_again(text in any::<String>(), pattern in prop::sample::select(vec![QWEN2_PATTERN, "[a-z]+"])) {
        let splitter = Splitter::new(pattern).unwrap();
        let ids = ENCODER.encode(&splitter, &text, &Stop::default()).unwrap();
        prop_assert_eq!(ENCODER.decode(&ids).unwrap(), text.into_bytes());
    }
}

#[test]
fn a_batch_gives_what_its_texts_give_one_by_one() {
    let splitter = Splitter::new(QWEN2_PATTERN).unwrap();
    let texts: Vec<&str> = TEXT.split_inclusive(' ').collect();
    let one_by_one: Vec<Vec<u32>> =
        texts.iter().map(|text| ENCODER.encode(&splitter, text, &Stop::default()).unwrap()).collect();
    assert_eq!(ENCODER.encode_batch(&splitter, &texts, &Stop::default()).unwrap(), one_by_one);
}

#[test]
fn an_id_outside_the_vocabulary_is_refused() {
    assert!(ENCODER.decode(&[1_000]).is_err());
}

#[test]
fn a_text_of_several_parts_gives_what_its_lines_give() {
    let splitter = Splitter::new(QWEN2_PATTERN).unwrap();
    let lines: Vec<String> = (0..30_000).map(|i| format!("{TEXT} {i}\n")).collect();
    let text = lines.concat();
    assert!(text.len() > 3 << 20);
    let of_lines = ENCODER.encode_batch(&splitter, &lines, &Stop::default()).unwrap().concat();
    assert!(ENCODER.encode(&splitter, &text, &Stop::default()).unwrap() == of_lines);
}

#[test]
fn a_piece_of_millions_of_bytes_is_encoded() {
    let piece = "天气aab".repeat(400_000);
    let ids = ENCODER.encode_piece(piece.as_bytes(), &Stop::default()).unwrap();
    assert!(ENCODER.decode(&ids).unwrap() == piece.as_bytes());
    assert_eq!(ids[..40], encode_slowly(&ENCODER, "天气aab".repeat(40).as_bytes())[..40]);
}

#[test]
fn an_empty_text_and_an_empty_piece_have_no_tokens() {
    let splitter = Splitter::new(QWEN2_PATTERN).unwrap();
    assert!(ENCODER.encode(&splitter, "", &Stop::default()).unwrap().is_empty());
    assert!(ENCODER.encode_piece(b"", &Stop::default()).unwrap().is_empty());
    assert!(ENCODER.decode(&[]).unwrap().is_empty());
}

#[test]
fn merges_that_training_does_not_give_are_refused() {
    assert!(matches!(Encoder::new(vec![(97, 256)]), Err(Error::Merge { left: 97, right: 256 })));
    assert!(matches!(Encoder::new(vec![(97, 98), (97, 98)]), Err(Error::Merge { left: 97, right: 98 })));
}

#[test]
fn encoding_stops_when_it_is_asked_to() {
    let splitter = Splitter::new(QWEN2_PATTERN).unwrap();
    let stop = Stop::default();
    stop.set();
    assert!(matches!(ENCODER.encode(&splitter, TEXT, &stop), Err(Error::Interrupted)));
    assert!(matches!(ENCODER.encode_batch(&splitter, &[TEXT], &stop), Err(Error::Interrupted)));
    let long = "xy".repeat(9_000);
    assert!(matches!(ENCODER.encode_piece(long.as_bytes(), &stop), Err(Error::Interrupted)));
}

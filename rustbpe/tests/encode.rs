//! Encoding equals the obvious way to do it, and decoding gives the text back.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use proptest::prelude::*;
use rustbpe::split::QWEN2_PATTERN;
use rustbpe::{Encoder, PieceCounter, Splitter, learn_merges, token_bytes};
use std::collections::HashMap;
use std::sync::LazyLock;

const TEXT: &str =
    "今天天气很好，我们去公园散步。the cat sat on the mat; 12345 aaaa aaaaaaa abcabcab\n\n今天我们很好 the thing";

static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    let mut pieces = PieceCounter::new(Splitter::new(QWEN2_PATTERN).unwrap(), None).unwrap();
    pieces.add(&[TEXT, "aaaab aaab aab ab b abab", "天天天天 天气气气"]).unwrap();
    Encoder::new(token_bytes(&learn_merges(pieces, 400, |_| Ok(())).unwrap()))
});

/// Merge the neighbours that make the token with the lowest id, the leftmost first, until no two make a token.
fn encode_slowly(encoder: &Encoder, piece: &[u8]) -> Vec<u32> {
    let ranks: HashMap<&[u8], u32> = encoder.tokens().iter().map(Vec::as_slice).zip(0..).collect();
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

proptest! {
    #[test]
    fn any_bytes_are_encoded_by_lowest_rank_and_decoded_again(
        piece in prop_oneof![prop::collection::vec(any::<u8>(), 1..60), "[ab天气 ]{1,60}".prop_map(String::into_bytes), "[abc]{300,400}".prop_map(String::into_bytes)],
    ) {
        let mut ids = Vec::new();
        ENCODER.encode_bytes(&piece, &mut ids);
        prop_assert_eq!(&ids, &encode_slowly(&ENCODER, &piece));
        prop_assert_eq!(ENCODER.decode(&ids).unwrap(), piece);
    }

    #[test]
    fn any_text_is_decoded_again(text in any::<String>(), pattern in prop::sample::select(vec![QWEN2_PATTERN, "[a-z]+"])) {
        let splitter = Splitter::new(pattern).unwrap();
        let ids = ENCODER.encode(&splitter, &text).unwrap();
        prop_assert_eq!(ENCODER.decode(&ids).unwrap(), text.into_bytes());
    }
}

#[test]
fn a_batch_gives_what_its_texts_give_one_by_one() {
    let splitter = Splitter::new(QWEN2_PATTERN).unwrap();
    let texts: Vec<&str> = TEXT.split_inclusive(' ').collect();
    let one_by_one: Vec<Vec<u32>> = texts.iter().map(|text| ENCODER.encode(&splitter, text).unwrap()).collect();
    assert_eq!(ENCODER.encode_batch(&splitter, &texts).unwrap(), one_by_one);
}

#[test]
fn an_id_outside_the_vocabulary_is_refused() {
    assert!(ENCODER.decode(&[1_000]).is_err());
}

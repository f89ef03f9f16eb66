//! The hand-written splitter equals the regular expressions it stands for.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod reference;

use proptest::prelude::*;
use reference::pieces;
use rustbpe::Splitter;
use rustbpe::split::{GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN, cap_han_runs};
use std::sync::LazyLock;

const PATTERNS: [&str; 3] = [GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN];

fn capped(piece: &str, max_han: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    cap_han_runs(piece, max_han, |part| {
        parts.push(part);
        Ok(())
    })
    .unwrap();
    parts
}

/// Each named pattern twice: as hand-written code, and as a regular expression.
static BOTH: LazyLock<Vec<[Splitter; 2]>> = LazyLock::new(|| {
    PATTERNS.iter().map(|pattern| [Splitter::new(pattern).unwrap(), Splitter::from_regex(pattern).unwrap()]).collect()
});

/// Text in which the alternatives of the patterns meet: any character, and often those that the
/// patterns name.
fn text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(
        "'''sSdDmMtTlLvVeErRſK  \t\u{a0}\u{3000}\u{85}\u{2028}\r\r\n\n\n\u{b}\u{1c}\u{200b}aZéß中文，。！？、1234567890½Ⅷ２٣.,-_()$+\u{301}\u{fe0f}👍🏽\0"
            .chars()
            .collect::<Vec<_>>(),
    );
    prop::collection::vec(prop_oneof![4 => special, 1 => any::<char>()], 0..40)
        .prop_map(|chars| chars.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn named_patterns_split_like_their_regular_expressions(text in text()) {
        for [named, regex] in &*BOTH {
            prop_assert_eq!(pieces(named, &text), pieces(regex, &text));
        }
    }

    #[test]
    fn pieces_joined_are_the_text_for_any_pattern(text in text(), pattern in prop::sample::select(vec!["", "a*", "(?=a)", "[a-z]+", r"\d(?=\d)", "中", r"\b", r"(?=1.\K)", r" \K.", r"\z|$"])) {
        let splitter = Splitter::new(pattern).unwrap();
        let pieces = pieces(&splitter, &text);
        prop_assert_eq!(pieces.concat(), text.as_str());
        prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
    }

    #[test]
    fn the_pieces_of_the_parts_of_a_text_are_its_pieces(text in text(), num_bytes in 0_usize..20) {
        for splitter in PATTERNS.iter().chain([&"[a-z]+|1."]).map(|pattern| Splitter::new(pattern).unwrap()) {
            let parts: Vec<&str> = splitter.parts(&text, num_bytes).collect();
            prop_assert!(parts.iter().rev().skip(1).all(|part| part.len() >= num_bytes));
            let of_parts: Vec<&str> = parts.iter().flat_map(|part| pieces(&splitter, part)).collect();
            prop_assert_eq!(of_parts, pieces(&splitter, &text));
        }
    }

    #[test]
    fn capped_parts_joined_are_the_piece(text in text(), max_han in 1_usize..5) {
        prop_assert_eq!(capped(&text, max_han).concat(), text);
    }
}

#[test]
fn every_code_point_is_split_as_by_the_regular_expression() {
    // What stands before and after makes every alternative and every class visible.
    let contexts =
        [("", ""), ("'", "e"), ("'", ""), ("a", "b"), (" ", " "), ("1", "1"), ("!", "\n"), ("\n", "\n"), (" ", "a")];
    for [named, regex] in &*BOTH {
        let all: Vec<char> = ('\0'..=char::MAX).collect();
        for (before, after) in contexts {
            for some in all.chunks(4_096) {
                let text: String = some.iter().map(|c| format!("{before}{c}{after}")).collect();
                assert!(pieces(named, &text) == pieces(regex, &text), "U+{:04X} {before:?}", some[0] as u32);
            }
        }
    }
}

#[test]
fn a_cap_cuts_runs_of_han_and_keeps_what_stands_before_them() {
    assert_eq!(capped("，今天天气很好", 3), ["，今天天", "气很好"]);
    assert_eq!(capped("今a天天天", 2), ["今a天天", "天"]);
    assert_eq!(capped("hello world", 1), ["hello world"]);
    assert_eq!(capped("〇々中", 2), ["〇々", "中"]);
}

#[test]
fn a_pattern_that_does_not_compile_is_refused_with_the_reason() {
    let error = Splitter::new("(").unwrap_err().to_string();
    assert!(error.contains("\"(\"") && error.contains("not a valid regular expression"), "{error}");
}

//! The hand-written splitter equals the regular expressions it stands for, on any text and parts.

#![no_main]

#[path = "../../tests/reference/mod.rs"]
mod reference;

use libfuzzer_sys::fuzz_target;
use reference::pieces;
use rustbpe::Splitter;
use rustbpe::split::{GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN, cap_han_runs};
use std::sync::LazyLock;

static SPLITTERS: LazyLock<Vec<[Splitter; 2]>> = LazyLock::new(|| {
    let both = |pattern| [Splitter::new(pattern).unwrap(), Splitter::from_regex(pattern).unwrap()];
    [GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN].map(both).into()
});

fuzz_target!(|input: (u8, &str)| {
    let (size, text) = input;
    for [named, regex] in &*SPLITTERS {
        let expected = pieces(regex, text);
        assert_eq!(expected.concat(), text);
        assert_eq!(pieces(named, text), expected);
        let parts: Vec<&str> = named.parts(text, size.into()).collect();
        assert_eq!(parts.iter().flat_map(|part| pieces(named, part)).collect::<Vec<_>>(), expected);
    }
    let mut capped = String::new();
    cap_han_runs(text, usize::from(size) + 1, |part| {
        capped += part;
        Ok(())
    })
    .unwrap();
    assert_eq!(capped, text);
});

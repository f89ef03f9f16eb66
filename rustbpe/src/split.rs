//! Cutting text into pieces. No token ever spans two pieces.
//!
//! The three named patterns differ only in how many digits make a piece. So one hand-written
//! splitter serves them all: one pass, no backtracking. Any other pattern goes through
//! `fancy_regex`. What a pattern leaves out becomes a separate piece: the pieces of a text, joined,
//! are the text.

use crate::error::{Error, Result};
use fancy_regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Class, HirKind};
use std::sync::LazyLock;

/// GPT-4's pattern, the default: up to three digits a piece.
pub const GPT4_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// nanochat's variant of GPT-4's: up to two digits a piece.
pub const NANOCHAT_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// Qwen2's pattern: digits one by one.
pub const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How many steps a pattern of the user's may take from one place before it is given up: about half
/// a second.
const BACKTRACK_LIMIT: usize = 10_000_000;
/// How many instructions a pattern of the user's may have: one that calls itself would have no end
/// of them.
const MAX_INSTRUCTIONS: usize = 1_000_000;
/// Characters of a pattern or text that are shown in an error.
const SHOWN_CHARS: usize = 60;

/// Cuts text into pieces, as its pattern says.
#[derive(Debug)]
pub struct Splitter {
    pattern: String,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    /// One of the named patterns: `[^\r\n\p{L}\p{N}]?\p{L}+` and so on, with at most this many
    /// digits a piece.
    Named { max_digits: usize },
    /// Any other pattern.
    Regex(Box<Regex>),
}

impl Splitter {
    /// The splitter for `pattern`: hand-written for a named one, else a regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        match pattern {
            GPT4_PATTERN => Ok(Self::named(pattern, 3)),
            NANOCHAT_PATTERN => Ok(Self::named(pattern, 2)),
            QWEN2_PATTERN => Ok(Self::named(pattern, 1)),
            _ => Self::from_regex(pattern),
        }
    }

    /// The splitter that runs `pattern` as a regular expression, even if it is a named one (tests
    /// compare the two).
    pub fn from_regex(pattern: &str) -> Result<Self> {
        let regex = RegexBuilder::new(pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .max_prog_size(MAX_INSTRUCTIONS)
            .build()
            .map_err(|error| Error::Pattern { pattern: excerpt(pattern), reason: error.to_string() })?;
        Ok(Self { pattern: pattern.to_owned(), engine: Engine::Regex(Box::new(regex)) })
    }

    fn named(pattern: &str, max_digits: usize) -> Self {
        Self { pattern: pattern.to_owned(), engine: Engine::Named { max_digits } }
    }

    /// The pattern as it was given.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Call `visit` with each piece of `text`, in order; joined they are `text`. An error of
    /// `visit` ends it.
    pub fn for_each<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t str) -> Result<()>) -> Result<()> {
        match &self.engine {
            Engine::Named { max_digits } => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(named_piece_len(rest, *max_digits));
                    visit(piece)?;
                    rest = after;
                }
            }
            Engine::Regex(regex) => {
                let mut end_of_last = 0;
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| Error::PatternTooSlow {
                        text: excerpt(&text[end_of_last..]),
                        reason: error.to_string(),
                    })?;
                    // With `\K` in a look-around a match may end before it starts, or start before
                    // the last one ended.
                    let start = found.start().max(end_of_last);
                    let end = found.end().max(start);
                    if start > end_of_last {
                        visit(&text[end_of_last..start])?;
                    }
                    if end > start {
                        visit(&text[start..end])?;
                    }
                    end_of_last = end;
                }
                if end_of_last < text.len() {
                    visit(&text[end_of_last..])?;
                }
            }
        }
        Ok(())
    }

    /// `text` in parts of at least `num_bytes` bytes whose pieces are those of `text`. A part may
    /// be much longer where the pattern leaves no place to cut; nothing is known about patterns
    /// other than the named ones, so then it is one part.
    pub fn parts<'t>(&self, text: &'t str, num_bytes: usize) -> impl Iterator<Item = &'t str> {
        let num_bytes = if self.is_named() { num_bytes } else { text.len() };
        parts_at(text, num_bytes, is_letter_end)
    }

    /// Whether the pattern is one of the named ones. Then time grows in proportion to the length of
    /// a text.
    pub fn is_named(&self) -> bool {
        matches!(self.engine, Engine::Named { .. })
    }

    /// The parts in which a stream of text is split. For a named pattern the last part continues
    /// with the stream and all others are one; their pieces are those of the stream. For any other
    /// pattern text is cut at line ends.
    pub(crate) fn stream_parts<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let (num_bytes, is_cut): (_, CutRule) =
            if self.is_named() { (text.len(), is_letter_end) } else { (0, is_line_end) };
        parts_at(text, num_bytes, is_cut)
    }

    /// The last place of `text` after `from` where a stream of text may be cut, if there is one.
    pub(crate) fn last_cut(&self, text: &str, from: usize) -> Option<usize> {
        let is_cut: CutRule = if self.is_named() { is_letter_end } else { is_line_end };
        let mut after = text.chars().next_back()?;
        let mut at = text.len() - after.len_utf8();
        while at > from {
            let before = text[..at].chars().next_back()?;
            if is_cut(before, after) {
                return Some(at);
            }
            after = before;
            at -= before.len_utf8();
        }
        None
    }
}

/// The beginning of a text, for people to read.
fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

/// Whether a text may be cut between two characters.
type CutRule = fn(char, char) -> bool;

/// Whether a named pattern ends a piece there, whatever stands before and after: after a letter,
/// only letters continue a piece.
fn is_letter_end(before: char, after: char) -> bool {
    CLASSES.of(before) == CharClass::Letter && CLASSES.of(after) != CharClass::Letter
}

/// Whether a line ends there, and the next one does not begin with white space.
fn is_line_end(before: char, after: char) -> bool {
    before == '\n' && !after.is_whitespace()
}

/// `text` in parts of at least `num_bytes` bytes, or of one character, that end where they may.
fn parts_at(text: &str, num_bytes: usize, is_cut: CutRule) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (part, after) = rest.split_at(next_cut(rest, num_bytes, is_cut));
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// The first place after `from` where `text` may be cut, else its end.
fn next_cut(text: &str, from: usize, is_cut: CutRule) -> usize {
    let Some(start) = (from..text.len()).find(|&at| text.is_char_boundary(at)) else { return text.len() };
    let mut before = None;
    for (at, c) in text[start..].char_indices() {
        if before.is_some_and(|before| is_cut(before, c)) {
            return start + at;
        }
        before = Some(c);
    }
    text.len()
}

/// Call `visit` with `piece` cut so that no part has more than `max_han` Han characters in a row.
/// What stands before a run, such as a mark or a letter, stays with the run's first characters. An
/// error of `visit` ends it.
pub fn cap_han_runs<'t>(piece: &'t str, max_han: usize, mut visit: impl FnMut(&'t str) -> Result<()>) -> Result<()> {
    let (mut start, mut run) = (0, 0);
    for (at, c) in piece.char_indices() {
        if !is_han(c) {
            run = 0;
            continue;
        }
        if run == max_han {
            visit(&piece[start..at])?;
            (start, run) = (at, 0);
        }
        run += 1;
    }
    visit(&piece[start..])
}

/// The classes that the named patterns tell apart; every character is in exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CharClass {
    /// None of the others: punctuation, symbols, combining marks, control characters.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s` without the line ends
    Space,
    /// `[\r\n]`
    LineEnd,
}

/// Length in bytes of the first piece of `text`, which is not empty. The alternatives stand in the
/// patterns' order.
fn named_piece_len(text: &str, max_digits: usize) -> usize {
    let classes = &*CLASSES;
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let first_len = first.len_utf8();
    let first_class = classes.of(first);
    let rest = chars.as_str();
    if first == '\''
        && let Some(len) = contraction_len(rest)
    {
        return first_len + len;
    }
    if first_class == CharClass::Letter {
        return first_len + run_len(rest, CharClass::Letter);
    }
    if first_class == CharClass::Number {
        let more = rest.chars().take(max_digits - 1).take_while(|&c| classes.of(c) == CharClass::Number);
        return first_len + more.map(char::len_utf8).sum::<usize>();
    }
    if first_class != CharClass::LineEnd {
        let letters = run_len(rest, CharClass::Letter);
        if letters > 0 {
            return first_len + letters;
        }
    }
    if first_class == CharClass::Other || first == ' ' {
        let others = run_len(rest, CharClass::Other);
        if first_class == CharClass::Other || others > 0 {
            let len = first_len + others;
            return len + run_len(&text[len..], CharClass::LineEnd);
        }
    }
    white_space_len(text)
}

/// Length of what follows an apostrophe in a contraction (`(?i:s|t|re|ve|m|ll|d)`), if `rest`
/// begins with one.
fn contraction_len(rest: &str) -> Option<usize> {
    let mut chars = rest.chars();
    let first = chars.next()?;
    match first.to_ascii_lowercase() {
        // The long s is a lower-case form of s. No other letter here has such a form outside ASCII.
        's' | 't' | 'm' | 'd' | '\u{17f}' => Some(first.len_utf8()),
        'r' | 'v' if chars.next()?.eq_ignore_ascii_case(&'e') => Some(2),
        'l' if chars.next()?.eq_ignore_ascii_case(&'l') => Some(2),
        _ => None,
    }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` at the start of `text`, which is white space: up to the last line end
/// of the run; in a run without one, all but its last character, so that a word keeps the space
/// before it; at the end of the text, all.
fn white_space_len(text: &str) -> usize {
    let (mut len, mut last_char, mut after_line_end) = (0, 0, 0);
    for c in text.chars() {
        match CLASSES.of(c) {
            CharClass::Space => {}
            CharClass::LineEnd => after_line_end = len + c.len_utf8(),
            _ => break,
        }
        last_char = len;
        len += c.len_utf8();
    }
    if after_line_end > 0 {
        after_line_end
    } else if len == text.len() || last_char == 0 {
        len
    } else {
        last_char
    }
}

/// Length in bytes of the characters of `class` that `text` begins with.
fn run_len(text: &str, class: CharClass) -> usize {
    let classes = &*CLASSES;
    text.char_indices().find(|&(_, c)| classes.of(c) != class).map_or(text.len(), |(at, _)| at)
}

/// Whether `c` is in the script Han (`\p{Han}`): ideographs, and the few signs that are used like
/// one.
fn is_han(c: char) -> bool {
    CLASSES.entry(c) & HAN != 0
}

const HAN: u8 = 0x80;

static CLASSES: LazyLock<ClassTable> = LazyLock::new(ClassTable::new);

/// The class of every code point in two steps, `blocks[index[c / 256]][c % 256]`: equal blocks are
/// stored once.
///
/// It is built from the tables of the regular expression engine itself, so it agrees with it in
/// every Unicode version.
struct ClassTable {
    index: Vec<u16>,
    blocks: Vec<[u8; 256]>,
}

impl ClassTable {
    fn new() -> Self {
        let mut flat = vec![CharClass::Other as u8; 0x11_0000];
        for (class, value) in [(r"\p{L}", CharClass::Letter), (r"\p{N}", CharClass::Number), (r"\s", CharClass::Space)]
        {
            for (first, last) in class_ranges(class) {
                flat[first..=last].fill(value as u8);
            }
        }
        for line_end in ['\r', '\n'] {
            flat[line_end as usize] = CharClass::LineEnd as u8;
        }
        for (first, last) in class_ranges(r"\p{Han}") {
            flat[first..=last].iter_mut().for_each(|entry| *entry |= HAN);
        }
        let (mut index, mut blocks) = (Vec::new(), Vec::<[u8; 256]>::new());
        for block in flat.as_chunks::<256>().0 {
            let at = blocks.iter().position(|known| known == block).unwrap_or_else(|| {
                blocks.push(*block);
                blocks.len() - 1
            });
            index.push(at as u16); // there are 4,352 blocks
        }
        Self { index, blocks }
    }

    fn entry(&self, c: char) -> u8 {
        let code = c as usize;
        self.blocks[usize::from(self.index[code >> 8])][code & 0xff]
    }

    fn of(&self, c: char) -> CharClass {
        match self.entry(c) & !HAN {
            1 => CharClass::Letter,
            2 => CharClass::Number,
            3 => CharClass::Space,
            4 => CharClass::LineEnd,
            _ => CharClass::Other,
        }
    }
}

/// The ranges of code points, ends included, of a character class in the syntax of regular
/// expressions.
fn class_ranges(class: &str) -> Vec<(usize, usize)> {
    match regex_syntax::parse(class).map(regex_syntax::hir::Hir::into_kind) {
        Ok(HirKind::Class(Class::Unicode(set))) => {
            set.iter().map(|range| (range.start() as usize, range.end() as usize)).collect()
        }
        // The classes above are Unicode classes. A test would notice a table without them.
        _ => Vec::new(),
    }
}

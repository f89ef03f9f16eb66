//! Everything that can go wrong, as one enum; `py` maps it to Python's exceptions.

use std::fmt;
use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why training or encoding did not happen.
#[derive(Debug)]
pub enum Error {
    /// The input holds no text at all.
    EmptyInput,
    /// The vocabulary must hold the 256 bytes, and its ids must fit 32 bits.
    VocabSize(i128),
    /// The split pattern is not a regular expression.
    Pattern {
        /// The beginning of the pattern.
        pattern: String,
        /// What the regular expression compiler says about it.
        reason: String,
    },
    /// The split pattern gave up on a text, because it needs too many steps or too much memory.
    PatternTooSlow {
        /// The beginning of the text where it gave up.
        text: String,
        /// What the regular expression engine says about it.
        reason: String,
    },
    /// A setting that makes no sense, such as a cap of zero.
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What is asked of it.
        reason: &'static str,
    },
    /// One piece of text is too long to be addressed.
    PieceTooLong(usize),
    /// An id that the vocabulary does not have.
    UnknownToken(u32),
    /// A merge that no training gives: of tokens that come after it, or of a pair that is already
    /// merged.
    Merge {
        /// The left token.
        left: u32,
        /// The right token.
        right: u32,
    },
    /// Bytes that can't be written with the tokens, as the merges are not those of a training.
    NoTokens,
    /// A file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The caller asked to stop.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyInput => write!(f, "the input holds no text; give at least one string that is not empty"),
            Self::VocabSize(size) => {
                write!(f, "vocab_size is {size}; it must be at least 256 (one token a byte) and below {}", u32::MAX - 1)
            }
            Self::Pattern { pattern, reason } => {
                write!(f, "the split pattern {pattern:?} is not a valid regular expression: {reason}")
            }
            Self::PatternTooSlow { text, reason } => {
                write!(
                    f,
                    "the split pattern gave up at {text:?}: {reason}; choose a pattern that backtracks less (possessive \
                     `++` and `*+` do not), or a named one"
                )
            }
            Self::Setting { name, reason } => write!(f, "{name} {reason}"),
            Self::PieceTooLong(bytes) => {
                write!(
                    f,
                    "one piece of text has {bytes} bytes, and 2 GiB is the limit; choose a pattern that cuts finer"
                )
            }
            Self::UnknownToken(id) => write!(f, "token {id} is not in the vocabulary"),
            Self::Merge { left, right } => {
                write!(f, "the merge ({left}, {right}) comes twice, or before its tokens; give merges as training does")
            }
            Self::NoTokens => write!(f, "the merges leave no way to write a text; give merges as training does"),
            Self::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            Self::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

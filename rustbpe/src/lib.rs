//! Byte-level byte-pair encoding: training on a stream of text, and encoding with what was learnt.
//!
//! Text is cut into pieces by a pattern ([`split`]), equal pieces are counted ([`count`]), the most
//! frequent pair of neighbouring tokens is merged again and again ([`train`]), and the merges give
//! an [`encode::Encoder`]. `py` is the Python interface, compiled with the feature `python`;
//! nothing else here knows of Python.
//!
//! **Ties.** Of several pairs with the same count the lowest is merged, pairs being compared as
//! `(left id, right id)`. With it the result depends on the multiset of pieces alone: not on the
//! order of the input, not on how it is cut into texts and buffers, and not on the number of
//! threads.

pub mod count;
pub mod encode;
pub mod error;
pub mod files;
#[cfg(feature = "python")]
mod py;
pub mod split;
pub mod stop;
pub mod train;

pub use count::PieceCounter;
pub use encode::Encoder;
pub use error::{Error, Result};
pub use split::Splitter;
pub use stop::Stop;
pub use train::{Pair, learn_merges, token_bytes};

//! Byte-level byte-pair encoding: training on a stream of text, and encoding with the merges.
//!
//! Text is cut into pieces by a pattern ([`split`]), equal pieces are counted ([`count`]), the most
//! frequent pair of neighbouring tokens is merged again and again ([`train`]), and the merges give
//! an [`encode::Encoder`]. `py` is the Python interface, compiled with the feature `python`;
//! nothing else here knows of Python.
//!
//! **Ties.** If several pairs have the same count, the lowest is merged; pairs are compared as
//! `(left id, right id)`. So the result depends only on which pieces there are and how often. It
//! does not depend on the order of the input, on how it is cut into texts and buffers, or on the
//! number of threads.

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

//! Counting the pieces of text files, read as a stream.

use crate::count::PieceCounter;
use crate::error::{Error, Result};
use crate::stop::Stop;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of one read.
const READ_BYTES: u64 = 8 << 20;

/// Count the pieces of the UTF-8 file at `path`; returns the number of bytes skipped because they
/// are not UTF-8.
///
/// What stands before such bytes and what stands after them are two texts. Apart from that, the
/// result for a named pattern is that of the whole text. For any other pattern, each line that
/// begins with visible text begins a new text, so that memory does not grow with the file.
pub fn count_file(pieces: &mut PieceCounter, path: &Path, stop: &Stop) -> Result<u64> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read_error)?;
    // Read but not decoded: from one read to the next, at most the beginning of a character.
    let mut bytes = Vec::new();
    // Decoded but not counted: from one read to the next, there is no place to cut in it.
    let mut text = String::new();
    let mut skipped = 0;
    loop {
        stop.check()?;
        let num_read = (&mut file).take(READ_BYTES).read_to_end(&mut bytes).map_err(read_error)?;
        let is_end = num_read == 0;
        let mut ends = Vec::new(); // of the texts in `text`
        let mut searched = text.len();
        let mut num_used = 0;
        for chunk in bytes.utf8_chunks() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            text.push_str(valid);
            num_used += valid.len();
            if !is_end && num_used + invalid.len() == bytes.len() && is_start_of_character(invalid) {
                break;
            }
            if !invalid.is_empty() {
                num_used += invalid.len();
                skipped += invalid.len() as u64;
                ends.push(text.len());
                searched = text.len();
            }
        }
        bytes.drain(..num_used);
        if is_end {
            ends.push(text.len());
        } else {
            let start = ends.last().copied().unwrap_or(0);
            // After the last character that was there before, a cut may be possible now.
            let from = (searched - start).saturating_sub(1);
            ends.extend(pieces.splitter().last_cut(&text[start..], from).map(|cut| start + cut));
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let texts = starts.zip(&ends).map(|(start, &end)| &text[start..end]);
        let texts: Vec<&str> = texts.flat_map(|text| pieces.splitter().stream_parts(text)).collect();
        pieces.add(&texts, stop)?;
        if is_end {
            return Ok(skipped);
        }
        text.drain(..ends.last().copied().unwrap_or(0));
    }
}

/// Whether more bytes may make `bytes`, which are not UTF-8, a character.
fn is_start_of_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

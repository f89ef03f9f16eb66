//! Counting the pieces of text files, read as a stream.

use crate::count::PieceCounter;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// So much is read at a time, and handed on in texts of at least the other size: work for several threads.
const READ_BYTES: u64 = 8 << 20;
const TEXT_BYTES: usize = 64 << 10;

/// Count the pieces of the UTF-8 file at `path`; returns the number of bytes skipped because they are no UTF-8.
///
/// A file is cut into texts after line ends that visible text follows: the named patterns end a piece there anyway. A
/// file without such places is one text. `poll` is called now and then, and stops the reading by returning an error.
pub fn count_file(pieces: &mut PieceCounter, path: &Path, mut poll: impl FnMut() -> Result<()>) -> Result<u64> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read_error)?;
    let (mut buffer, mut skipped) = (Vec::new(), 0);
    loop {
        poll()?;
        let num_read = (&mut file).take(READ_BYTES).read_to_end(&mut buffer).map_err(read_error)?;
        let cuts = cuts(&buffer, num_read == 0);
        let mut texts = Vec::new();
        let mut start = 0;
        for end in cuts {
            for chunk in buffer[start..end].utf8_chunks() {
                if !chunk.valid().is_empty() {
                    texts.push(chunk.valid());
                }
                skipped += chunk.invalid().len() as u64;
            }
            start = end;
        }
        pieces.add(&texts)?;
        if num_read == 0 {
            return Ok(skipped);
        }
        buffer.drain(..start);
    }
}

/// Where to cut `buffer` into texts; at its end only if nothing comes after it.
fn cuts(buffer: &[u8], is_last: bool) -> Vec<usize> {
    let mut cuts = Vec::new();
    let mut start = 0;
    while let Some(cut) = next_cut(buffer, start + TEXT_BYTES) {
        cuts.push(cut);
        start = cut;
    }
    if is_last && start < buffer.len() {
        cuts.push(buffer.len());
    }
    cuts
}

/// The first place from `from` on that lies between a line end and a character that is surely no white space.
fn next_cut(buffer: &[u8], from: usize) -> Option<usize> {
    let is_visible = |byte: u8| byte.is_ascii_graphic() || byte >= 0xe4; // ideographs, and what comes after them
    let rest = buffer.get(from..)?;
    rest.windows(2).position(|pair| pair[0] == b'\n' && is_visible(pair[1])).map(|at| from + at + 1)
}

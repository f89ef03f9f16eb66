//! The Python interface. It converts, releases the interpreter's lock around the work, and maps errors to exceptions.

use crate::count::PieceCounter;
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::files::count_file;
use crate::split::{GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN, Splitter};
use crate::train::{learn_merges, token_bytes};
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use std::ffi::CString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A buffer is handed on when it has this many bytes, even if it has fewer texts than asked for.
const BUFFER_BYTES: usize = 16 << 20;
/// How often the training looks for Ctrl-C and reports progress.
const POLL_EVERY: Duration = Duration::from_millis(50);
const NUM_BYTES: usize = 256;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Read { .. } => PyOSError::new_err(error.to_string()),
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// A byte-level BPE tokenizer: trained on text, it encodes with what it learnt. Untrained, it knows the 256 bytes.
///
/// 字节级 BPE 分词器：在文本上训练，再用学到的合并规则编码。
#[pyclass(module = "rustbpe")]
struct Tokenizer {
    splitter: Splitter,
    encoder: Encoder,
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> Result<Self> {
        Ok(Self { splitter: Splitter::new(GPT4_PATTERN)?, encoder: Encoder::new(token_bytes(&[])) })
    }

    /// Train on an iterable of strings, which is read as a stream, `buffer_size` texts at a time.
    ///
    /// `pattern` cuts text into pieces (default: GPT-4's). `max_han_run` cuts runs of Han after that many characters,
    /// in training only. `progress(done, wanted)` is called now and then while merges are learnt. Of pairs with equal
    /// counts the lowest `(left id, right id)` is merged first, so the result depends neither on the order of the texts
    /// nor on the number of threads. A text too small for the vocabulary gives a smaller one, and a warning.
    ///
    /// 在字符串迭代器上训练。max_han_run 只在训练时限制连续汉字的长度；计数相同时先合并编号较小的一对。
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None, *, max_han_run=None, progress=None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn train_from_iterator(
        &mut self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: usize,
        buffer_size: usize,
        pattern: Option<&str>,
        max_han_run: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        if buffer_size == 0 {
            return Err(Error::Setting { name: "buffer_size", reason: "must be at least 1" }.into());
        }
        let mut pieces = new_counter(vocab_size, pattern, max_han_run)?;
        let mut buffer = Vec::new();
        let mut bytes = 0;
        for item in iterator.try_iter()? {
            let text = item?.cast_into::<PyString>()?;
            let text: String = text.to_cow()?.into_owned();
            bytes += text.len();
            buffer.push(text);
            if buffer.len() >= buffer_size || bytes >= BUFFER_BYTES {
                py.check_signals()?;
                py.detach(|| pieces.add(&buffer))?;
                buffer.clear();
                bytes = 0;
            }
        }
        py.detach(|| pieces.add(&buffer))?;
        drop(buffer);
        self.learn(py, pieces, vocab_size, pattern, progress)
    }

    /// The same on UTF-8 text files, read as a stream. Bytes that are no UTF-8 are skipped, and a warning counts them.
    ///
    /// 在 UTF-8 文本文件上训练；跳过无效字节并给出警告。
    #[pyo3(signature = (paths, vocab_size, pattern=None, *, max_han_run=None, progress=None))]
    fn train_from_files(
        &mut self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        vocab_size: usize,
        pattern: Option<&str>,
        max_han_run: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let mut pieces = new_counter(vocab_size, pattern, max_han_run)?;
        for path in &paths {
            let mut raised = None;
            let poll = || {
                Python::attach(|py| py.check_signals()).map_err(|error| {
                    raised = Some(error);
                    Error::Interrupted
                })
            };
            let skipped = py.detach(|| count_file(&mut pieces, path, poll));
            if let Some(error) = raised {
                return Err(error);
            }
            let skipped = skipped?;
            if skipped > 0 {
                warn(py, &format!("{}: skipped {skipped} bytes that are not UTF-8", path.display()))?;
            }
        }
        self.learn(py, pieces, vocab_size, pattern, progress)
    }

    /// The pattern that cuts text into pieces.
    fn get_pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// The vocabulary as a list of (bytes, rank), by rank: what `tiktoken.Encoding` takes, as a dict.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32)> {
        self.encoder.tokens().iter().zip(0..).map(|(bytes, rank)| (PyBytes::new(py, bytes), rank)).collect()
    }

    /// The number of tokens: 256 bytes and the merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.encoder.vocab_size()
    }

    /// The tokens of a text: the same as tiktoken's for this vocabulary and pattern.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        Ok(py.detach(|| self.encoder.encode(&self.splitter, text))?)
    }

    /// The tokens of each of a list of texts, in parallel.
    fn batch_encode(&self, py: Python<'_>, texts: Vec<String>) -> PyResult<Vec<Vec<u32>>> {
        Ok(py.detach(|| self.encoder.encode_batch(&self.splitter, &texts))?)
    }

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD.
    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        Ok(String::from_utf8_lossy(&self.encoder.decode(&ids)?).into_owned())
    }
}

impl Tokenizer {
    fn learn(
        &mut self,
        py: Python<'_>,
        pieces: PieceCounter,
        vocab_size: usize,
        pattern: Option<&str>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        if pieces.num_pieces() == 0 {
            return Err(Error::EmptyInput.into());
        }
        let splitter = new_splitter(pattern)?;
        let mut raised = None;
        let mut last_poll = Instant::now();
        let mut poll = |done: usize| {
            if last_poll.elapsed() < POLL_EVERY {
                return Ok(());
            }
            last_poll = Instant::now();
            Python::attach(|py| {
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |call| call.call1(py, (done, vocab_size - NUM_BYTES)).map(drop))
            })
            .map_err(|error| {
                raised = Some(error);
                Error::Interrupted
            })
        };
        let learnt = py.detach(|| {
            let merges = learn_merges(pieces, vocab_size, &mut poll)?;
            Ok::<_, Error>(Encoder::new(token_bytes(&merges)))
        });
        if let Some(error) = raised {
            return Err(error);
        }
        self.encoder = learnt?;
        self.splitter = splitter;
        let reached = self.encoder.vocab_size();
        if let Some(call) = progress {
            call.call1(py, (reached - NUM_BYTES, vocab_size - NUM_BYTES))?;
        }
        if reached < vocab_size {
            warn(py, &format!("the text has no more pairs to merge: {reached} tokens instead of {vocab_size}"))?;
        }
        Ok(())
    }
}

fn new_splitter(pattern: Option<&str>) -> Result<Splitter> {
    Splitter::new(pattern.unwrap_or(GPT4_PATTERN))
}

/// What can be refused is refused before anything is read.
fn new_counter(vocab_size: usize, pattern: Option<&str>, max_han_run: Option<usize>) -> Result<PieceCounter> {
    if vocab_size < NUM_BYTES {
        return Err(Error::VocabSize(vocab_size));
    }
    PieceCounter::new(new_splitter(pattern)?, max_han_run)
}

fn warn(py: Python<'_>, message: &str) -> PyResult<()> {
    let message = CString::new(message)?;
    PyErr::warn(py, &py.get_type::<PyUserWarning>(), &message, 2)
}

#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("GPT4_PATTERN", GPT4_PATTERN)?;
    module.add("NANOCHAT_PATTERN", NANOCHAT_PATTERN)?;
    module.add("QWEN2_PATTERN", QWEN2_PATTERN)?;
    module.add_class::<Tokenizer>()
}

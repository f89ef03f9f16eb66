//! The Python interface.
//!
//! It converts, runs the work on other threads without the interpreter's lock, and maps errors to
//! exceptions.

use crate::count::PieceCounter;
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::files::count_file;
use crate::split::{GPT4_PATTERN, NANOCHAT_PATTERN, QWEN2_PATTERN, Splitter};
use crate::stop::Stop;
use crate::train::{NUM_BYTES, check_vocab_size, learn_merges};
use pyo3::exceptions::{
    PyKeyboardInterrupt, PyOSError, PyTypeError, PyUnicodeEncodeError, PyUserWarning, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyList, PyString};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A buffer of texts is handed on when it has this many bytes, even if it has fewer texts than
/// asked for. It is not handed on before it has the lower number of bytes, because handing on takes
/// time.
const MAX_BUFFER_BYTES: usize = 16 << 20;
const MIN_BUFFER_BYTES: usize = 64 << 10;
/// Less text than this, for a named pattern, is encoded by the calling thread: it takes a
/// millisecond or two.
const SHORT_BYTES: usize = 32 << 10;
/// How often a waiting thread looks for Ctrl-C and reports progress.
const POLL_EVERY: Duration = Duration::from_millis(50);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            // With these three Python makes it a FileNotFoundError, a PermissionError and so on.
            Error::Read { path, source } => match source.raw_os_error() {
                Some(code) => {
                    let reason = source.to_string().replace(&format!(" (os error {code})"), "");
                    PyOSError::new_err((code, reason, path.into_os_string()))
                }
                None => PyOSError::new_err(Error::Read { path, source }.to_string()),
            },
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// A byte-level BPE tokenizer: trained on text, it encodes with what it learnt.
///
/// Untrained, it knows the 256 bytes.
///
/// 字节级 BPE 分词器：在文本上训练，再用学到的合并规则编码。
#[pyclass(module = "rustbpe")]
struct Tokenizer {
    splitter: Arc<Splitter>,
    encoder: Arc<Encoder>,
    /// The ids as Python's numbers. Lists of ids share them: making new ones for each list takes
    /// about as long as encoding.
    numbers: Vec<Py<PyInt>>,
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let encoder = Encoder::new(Vec::new())?;
        let numbers = numbers(py, &encoder)?;
        Ok(Self { splitter: Arc::new(Splitter::new(GPT4_PATTERN)?), encoder: Arc::new(encoder), numbers })
    }

    /// A tokenizer of merges that were learnt before: pair `i` of `(left id, right id)` makes the
    /// token `256 + i`.
    ///
    /// 由已有的合并规则建立分词器。
    #[staticmethod]
    #[pyo3(signature = (merges, pattern=None))]
    fn from_merges(py: Python<'_>, merges: Vec<(u32, u32)>, pattern: Option<&str>) -> PyResult<Self> {
        let encoder = Encoder::new(merges)?;
        let numbers = numbers(py, &encoder)?;
        let splitter = Splitter::new(pattern.unwrap_or(GPT4_PATTERN))?;
        Ok(Self { splitter: Arc::new(splitter), encoder: Arc::new(encoder), numbers })
    }

    /// Train on an iterable of strings, read as a stream, about `buffer_size` texts at a time.
    ///
    /// `pattern` cuts text into pieces (default: GPT-4's). `max_han_run` cuts runs of Han after
    /// that many characters, in training only. `progress(done, wanted)` is called now and then
    /// while merges are learnt. Of pairs with equal counts the lowest `(left id, right id)` is
    /// merged first, so the result depends neither on the order of the texts nor on the number of
    /// threads. A text too small for the vocabulary gives a smaller one, and a warning. Half of a
    /// surrogate pair counts as U+FFFD.
    ///
    /// 在字符串迭代器上训练。max_han_run 只在训练时限制连续汉字的长度；
    /// 计数相同时先合并编号较小的一对。
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None, *, max_han_run=None, progress=None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn train_from_iterator(
        &mut self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: i64,
        buffer_size: i64,
        pattern: Option<&str>,
        max_han_run: Option<i64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let settings = Settings::new(vocab_size, pattern, max_han_run)?;
        let buffer_size = at_least_1("buffer_size", buffer_size)?;
        if iterator.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("iterator is one string; give an iterable of strings, such as [text]"));
        }
        // Python reads the texts of one buffer while those of the buffer before are counted.
        let mut counting = settings.start(py)?;
        let mut buffer = Vec::new();
        let mut bytes = 0;
        for item in iterator.try_iter()? {
            let text = to_utf8(&item?.cast_into::<PyString>()?)?;
            bytes += text.len() + 1; // an empty one takes memory too
            buffer.push(text);
            if bytes >= MAX_BUFFER_BYTES || bytes >= MIN_BUFFER_BYTES && buffer.len() >= buffer_size {
                py.check_signals()?;
                counting = count_texts(py, counting.wait(py, |_| Ok(()))?, std::mem::take(&mut buffer))?;
                bytes = 0;
            }
        }
        counting = count_texts(py, counting.wait(py, |_| Ok(()))?, buffer)?;
        let pieces = counting.wait(py, |_| Ok(()))?;
        self.learn(py, pieces, &settings, progress)
    }

    /// Train on UTF-8 text files, read as a stream; for the rest see `train_from_iterator`.
    ///
    /// Bytes that are no UTF-8 are skipped, with a warning that counts them. For a pattern that is
    /// not one of the named ones each line that begins with visible text is a text of its own.
    ///
    /// 在 UTF-8 文本文件上训练，其余同 train_from_iterator。
    #[pyo3(signature = (paths, vocab_size, pattern=None, *, max_han_run=None, progress=None))]
    fn train_from_files(
        &mut self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        vocab_size: i64,
        pattern: Option<&str>,
        max_han_run: Option<i64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let settings = Settings::new(vocab_size, pattern, max_han_run)?;
        let mut pieces = settings.start(py)?.wait(py, |_| Ok(()))?;
        for path in paths {
            let counting = {
                let path = path.clone();
                Job::start(py, move |stop| {
                    let skipped = count_file(&mut pieces, &path, stop)?;
                    Ok((pieces, skipped))
                })?
            };
            let skipped;
            (pieces, skipped) = counting.wait(py, |_| Ok(()))?;
            if skipped > 0 {
                warn(py, &format!("{}: skipped {skipped} bytes that are not UTF-8", path.display()))?;
            }
        }
        self.learn(py, pieces, &settings, progress)
    }

    /// The pattern that cuts text into pieces.
    fn get_pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// The vocabulary as a list of (bytes, rank), by rank; as a dict, `tiktoken.Encoding` takes it.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32)> {
        self.encoder.tokens().zip(0..).map(|(bytes, rank)| (PyBytes::new(py, bytes), rank)).collect()
    }

    /// The number of tokens: 256 bytes and the merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.encoder.vocab_size()
    }

    /// The tokens of a text: the same as tiktoken's for this vocabulary and pattern.
    fn encode<'py>(&self, py: Python<'py>, text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyList>> {
        let text = to_utf8(text)?;
        if text.len() < SHORT_BYTES && self.splitter.is_named() {
            let ids = py.detach(|| self.encoder.encode(&self.splitter, &text, &Stop::default()))?;
            return self.to_list(py, &ids);
        }
        let (splitter, encoder) = (Arc::clone(&self.splitter), Arc::clone(&self.encoder));
        let encoding = Job::start(py, move |stop| encoder.encode(&splitter, &text, stop))?;
        self.to_list(py, &encoding.wait(py, |_| Ok(()))?)
    }

    /// The tokens of each of a list of texts, in parallel.
    fn batch_encode<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyString>>,
    ) -> PyResult<Vec<Bound<'py, PyList>>> {
        let texts: Vec<String> = texts.iter().map(to_utf8).collect::<PyResult<_>>()?;
        let (splitter, encoder) = (Arc::clone(&self.splitter), Arc::clone(&self.encoder));
        let encoding = Job::start(py, move |stop| encoder.encode_batch(&splitter, &texts, stop))?;
        encoding.wait(py, |_| Ok(()))?.into_iter().map(|ids| self.to_list(py, &ids)).collect()
    }

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD.
    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        Ok(String::from_utf8_lossy(&self.encoder.decode(&ids)?).into_owned())
    }
}

impl Tokenizer {
    fn to_list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, ids.iter().map(|&id| self.numbers[id as usize].bind(py)))
    }

    fn learn(
        &mut self,
        py: Python<'_>,
        pieces: PieceCounter,
        settings: &Settings,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        if pieces.num_pieces() == 0 {
            return Err(Error::EmptyInput.into());
        }
        let splitter = Arc::clone(pieces.splitter());
        let vocab_size = settings.vocab_size;
        let report = |py: Python<'_>, done: usize| match &progress {
            Some(call) => call.call1(py, (done, vocab_size - NUM_BYTES)).map(drop),
            None => Ok(()),
        };
        let num_merges = Arc::new(AtomicUsize::new(0));
        let num_learnt = Arc::clone(&num_merges);
        let learning = Job::start(py, move |stop| {
            let merges = learn_merges(pieces, vocab_size, |done| {
                num_learnt.store(done, Ordering::Relaxed);
                stop.check()
            });
            Encoder::new(merges?)
        })?;
        let encoder = learning.wait(py, |py| report(py, num_merges.load(Ordering::Relaxed)))?;
        let reached = encoder.vocab_size();
        report(py, reached - NUM_BYTES)?;
        if reached < vocab_size {
            warn(py, &format!("the text has no more pairs to merge: {reached} tokens instead of {vocab_size}"))?;
        }
        // After any error (also a warning that Python turned into one) the tokenizer is as it was.
        self.numbers = numbers(py, &encoder)?;
        (self.splitter, self.encoder) = (splitter, Arc::new(encoder));
        Ok(())
    }
}

/// The settings of a training, checked before anything is read.
#[derive(Clone)]
struct Settings {
    vocab_size: usize,
    pattern: String,
    max_han_run: Option<usize>,
}

impl Settings {
    fn new(vocab_size: i64, pattern: Option<&str>, max_han_run: Option<i64>) -> Result<Self> {
        Ok(Self {
            vocab_size: check_vocab_size(vocab_size.into())?,
            pattern: pattern.unwrap_or(GPT4_PATTERN).to_owned(),
            max_han_run: max_han_run.map(|run| at_least_1("max_han_run", run)).transpose()?,
        })
    }

    /// A counter without pieces, made by the threads that will count: it depends on their number.
    fn start(&self, py: Python<'_>) -> PyResult<Job<PieceCounter>> {
        let Self { pattern, max_han_run, .. } = self.clone();
        Job::start(py, move |_| PieceCounter::new(Splitter::new(&pattern)?, max_han_run))
    }
}

fn at_least_1(name: &'static str, value: i64) -> Result<usize> {
    let error = Error::Setting { name, reason: "must be at least 1" };
    usize::try_from(value).ok().filter(|&value| value > 0).ok_or(error)
}

fn count_texts(py: Python<'_>, mut pieces: PieceCounter, texts: Vec<String>) -> PyResult<Job<PieceCounter>> {
    Job::start(py, move |stop| {
        pieces.add(&texts, stop)?;
        Ok(pieces)
    })
}

/// Work on other threads. If nobody waits for it, it stops soon.
struct Job<T> {
    result: Receiver<Result<T>>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Job<T> {
    fn start(py: Python<'_>, work: impl FnOnce(&Stop) -> Result<T> + Send + 'static) -> PyResult<Self> {
        let pool = pool(py)?;
        let stop = Arc::new(Stop::default());
        let (sender, result) = sync_channel(1);
        let asked = Arc::clone(&stop);
        let run = move || {
            // Perhaps nobody waits for the result any more.
            let _ = sender.send(pool.install(|| work(&asked)));
        };
        let thread = std::thread::Builder::new().name("rustbpe".to_owned()).spawn(run)?;
        Ok(Self { result, stop, thread: Some(thread) })
    }

    /// Wait for the result. Ctrl-C ends the waiting at once, and so does an error of `poll`, which
    /// is called now and then. The work ends soon after.
    fn wait(mut self, py: Python<'_>, poll: impl Fn(Python<'_>) -> PyResult<()>) -> PyResult<T> {
        loop {
            let result = &mut self.result;
            match py.detach(move || result.recv_timeout(POLL_EVERY)) {
                Ok(result) => return Ok(result?),
                Err(RecvTimeoutError::Timeout) => {
                    py.check_signals()?;
                    poll(py)?;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let panic = self.thread.take().and_then(|thread| thread.join().err());
                    std::panic::resume_unwind(panic.unwrap_or_else(|| Box::new("a thread ended without a result")));
                }
            }
        }
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        self.stop.set();
    }
}

/// The threads that do the work of this process. A forked process has none of its parent's threads:
/// it gets new ones.
fn pool(_: Python<'_>) -> PyResult<Arc<ThreadPool>> {
    static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);
    // Python forks while it holds its own lock, and this mutex is only held together with that
    // lock. So the mutex is free in a child.
    let mut of_process = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((owner, pool)) = &*of_process
        && *owner == process
    {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new().build().map_err(|error| PyOSError::new_err(error.to_string()))?;
    let pool = Arc::new(pool);
    if let Some((_, of_parent)) = of_process.replace((process, Arc::clone(&pool))) {
        std::mem::forget(of_parent); // its threads do not exist here, so they can't be ended
    }
    Ok(pool)
}

fn numbers(py: Python<'_>, encoder: &Encoder) -> PyResult<Vec<Py<PyInt>>> {
    (0..encoder.vocab_size()).map(|id| Ok(id.into_pyobject(py)?.unbind())).collect()
}

/// A copy of a text as UTF-8. Half of a surrogate pair, which is not a character, becomes U+FFFD.
/// Two halves that belong together become their character.
fn to_utf8(text: &Bound<'_, PyString>) -> PyResult<String> {
    // Asked without a copy, Python would keep the UTF-8 of a text as long as the text itself.
    let utf8 = match text.encode_utf8() {
        Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(text.py()) => {
            let utf16 = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?;
            let replaced = utf16.call_method1("decode", ("utf-16-le", "replace"))?;
            replaced.cast_into::<PyString>()?.encode_utf8()?
        }
        utf8 => utf8?,
    };
    let utf8 = std::str::from_utf8(utf8.as_bytes()).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(utf8.to_owned())
}

fn warn(py: Python<'_>, message: &str) -> PyResult<()> {
    let message = CString::new(message)?;
    PyErr::warn(py, &py.get_type::<PyUserWarning>(), &message, 1)
}

#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("GPT4_PATTERN", GPT4_PATTERN)?;
    module.add("NANOCHAT_PATTERN", NANOCHAT_PATTERN)?;
    module.add("QWEN2_PATTERN", QWEN2_PATTERN)?;
    module.add_class::<Tokenizer>()
}

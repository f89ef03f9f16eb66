"""Speed and memory of the crate rustbpe beside other trainers and encoders of BPE: same text, machine and threads.

    python benchmarks/tokenizer_speed.py --text pretrain.jsonl.xz --sizes 30 all --work_dir DIR --json FILE

Training: ours, the package `rustbpe` of PyPI, Hugging Face `tokenizers` (the same split pattern, ByteLevel) and, beside
ours with runs of Han capped at 8, SentencePiece (BPE at its defaults, but for what is said in `sentencepiece_work`).
Ranks must be those of PyPI's package, byte for byte. Encoding: all texts with one tokenizer; ids must be the same.

Each measurement is a fresh process, and the arms take turns. The time is that of the call alone: the texts are in
memory before, as a list whose UTF-8 is ready, so the list adds nothing to anyone's memory. SentencePiece alone reads
its text in that time, from a prepared file of one paragraph a line. Memory is the peak of the resident set less what
was resident just before the call.

Needs the crate (maturin develop --release), `tokenizers`, Linux, and an otherwise idle machine. PyPI's package has our
crate's name, so it gets, with sentencepiece, an environment of its own in the work folder, made on the first run.
Exit code 1: ranks or ids differ. Targets that are missed are only printed, since they depend on the machine; each is
judged by the smaller of two ratios, of medians and of minima.
"""

import ctypes
import hashlib
import importlib
import json
import lzma
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

# No more than this: a child in the environment of PyPI's package has neither tiktoken nor numpy.
from configs.artifacts import require_writable, write_json
from configs.cli import Parser, run
from configs.hardware import cpu_instructions, cpu_name, num_cores
from configs.paths import display
from configs.schema import UserError

NUM_BYTES = 256
MAX_HAN_RUN = 8
"""Cap of our arm that stands beside SentencePiece, whose pieces are short as well."""
CALL_TEXTS = 1000
"""Texts in one call of an encoder, as many as `datasets.map` hands over."""
SENTENCE_BYTES = 1 << 30
"""SentencePiece skips longer paragraphs."""
EXTERNAL = ("rustbpe", "sentencepiece")
"""Packages of the environment in the work folder."""

TRAINERS = {
    "ours": "rustbpe, this repository",
    "pypi": "rustbpe, PyPI",
    "tokenizers": "tokenizers BpeTrainer",
    "ours_capped": f"rustbpe, this repository, max_han_run={MAX_HAN_RUN}",
    "sentencepiece": "sentencepiece BPE",
}
ENCODERS = {
    "ours": "RustBPETokenizer.encode_batch",
    "tokenizers": "tokenizers encode_batch",
    "tokenizers_fast": "tokenizers encode_batch_fast",
    "crate": "rustbpe, this repository, batch_encode",
    "tiktoken": "tiktoken encode_ordinary_batch",
}
PACKAGE = {"ours_capped": "rustbpe", "ours": "rustbpe", "pypi": "rustbpe", "crate": "rustbpe"} | {
    "tokenizers_fast": "tokenizers"
}
"""Arm -> the package it measures, where that isn't the arm's own name."""

SPEED_OF_PYPI = 3.0
SPEED_OF_TOKENIZERS = 8.0
SPEED_OF_SENTENCEPIECE = 1.0
MEMORY_OF_BEST = 2.0
SPEED_OF_TOKENIZERS_ENCODING = 2.0


@dataclass(slots=True)
class Result:
    """One arm on one text."""

    task: str
    """train or encode"""
    arm: str
    version: str
    """Of the package measured."""
    size_mb: float
    """Text: 10^6 bytes of UTF-8."""
    num_texts: int
    vocab_size: int
    """Ranks, or pieces of SentencePiece; special tokens of the encoders come on top."""
    seconds: list[float] = field(default_factory=list)
    """Of each repetition."""
    memory_mb: list[float | None] = field(default_factory=list)
    """Training: 10^6 bytes; None where the peak can't be told from one before."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Settings and findings of this arm alone."""


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio that this project wants to reach."""

    name: str
    wanted: float
    reached: float
    """nan: could not be measured."""

    @property
    def met(self) -> bool:
        return self.reached >= self.wanted

    def __str__(self) -> str:
        return f"{self.name}: {self.reached:.2f}x (target {self.wanted:g}x): {'met' if self.met else 'NOT met'}"


# --- the text ---------------------------------------------------------------------------------------------------------


def parse_size(word: str) -> float:
    """Bytes meant by a number of MB or `all`. Raises: UserError."""
    try:
        size = math.inf if word == "all" else float(word) * 1e6
    except ValueError:
        size = 0.0
    if not size > 0:
        raise UserError(f"--sizes {word}: must be a number of MB above 0, or all.")
    return size


def read_texts(path: Path) -> Iterator[str]:
    """The `text` of each record, half surrogates as `?`. Raises: UserError naming the line that has none."""
    with lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                text = record.get("text") if isinstance(record, dict) else None
                if not isinstance(text, str):
                    raise UserError(f"{display(path)}:{number}: no record with a `text`. Give JSONL of raw text.")
                if text:
                    yield text.encode("utf-8", "replace").decode("utf-8")
        except (EOFError, lzma.LZMAError) as error:
            raise UserError(f"{display(path)}: damaged or cut short ({error}). Fetch it again.") from error


def first_texts(texts: Iterator[str], num_bytes: float) -> Iterator[str]:
    """Whole texts from the start until they have so many bytes of UTF-8."""
    size = 0
    for text in texts:
        yield text
        size += len(text.encode("utf-8"))
        if size >= num_bytes:
            return


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text on the disk, as children read it."""

    texts: Path
    """A JSON string a line."""
    paragraphs: Path
    """A paragraph a line, empty ones left out: what SentencePiece reads."""
    num_bytes: int
    num_texts: int


def prepare(texts: Sequence[str], folder: Path) -> Prepared:
    """Write both files of a text."""
    folder.mkdir()
    prepared = Prepared(
        folder / "texts.jsonl", folder / "paragraphs.txt", sum(len(text.encode("utf-8")) for text in texts), len(texts)
    )
    with (
        prepared.texts.open("w", encoding="utf-8", newline="\n") as strings,
        prepared.paragraphs.open("w", encoding="utf-8", newline="\n") as lines,
    ):
        for text in texts:
            strings.write(json.dumps(text, ensure_ascii=False) + "\n")
            lines.writelines(paragraph + "\n" for paragraph in text.split("\n") if paragraph.strip())
    return prepared


# --- in a child: one measurement --------------------------------------------------------------------------------------


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Do what a task says; tasks are made by `run_child`."""
    texts: list[str] = []
    if task["arm"] != "sentencepiece":  # which reads the paragraphs itself
        with Path(task["texts"]).open(encoding="utf-8") as lines:
            texts += map(json.loads, lines)
    hold_utf8(texts)
    return {"train": measure_training, "encode": measure_encoding}[task["task"]](task, texts)


def hold_utf8(texts: Sequence[str]) -> None:
    """Make Python keep the UTF-8 of each text beside it.

    Rust asks a string for it, and it then stays for as long as the string. Asked for now, it costs no trainer time and
    counts in nobody's memory.
    """
    as_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
    as_utf8.argtypes, as_utf8.restype = [ctypes.py_object, ctypes.c_void_p], ctypes.c_void_p
    for text in texts:
        as_utf8(text, None)


def measure_training(task: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Seconds and bytes of training, and the tokens in hexadecimal by rank (of SentencePiece none)."""
    works = {"tokenizers": tokenizers_work, "sentencepiece": sentencepiece_work}
    work, learnt = works.get(task["arm"], rustbpe_work)(task, texts)
    before, peak_before, was_reset = memory("VmRSS:"), memory("VmHWM:"), reset_peak()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    peak = memory("VmHWM:")
    is_own_peak = was_reset or peak > peak_before
    return {
        "seconds": seconds,
        "memory_mb": (peak - before) / 1e6 if is_own_peak else None,
        "version": version(PACKAGE.get(task["arm"], task["arm"])),
        "tokens": [token.hex() for token in learnt()],
    }


Work = tuple[Callable[[], object], Callable[[], list[bytes]]]
"""What is measured, and what gives the tokens by rank afterwards."""


def rustbpe_work(task: dict[str, Any], texts: list[str]) -> Work:
    """Ours or PyPI's: the interface is the same."""
    trainer = (foreign_trainer if task["arm"] == "pypi" else our_trainer)()
    options = {"max_han_run": MAX_HAN_RUN} if task["arm"] == "ours_capped" else {}

    def learnt() -> list[bytes]:
        return [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda entry: entry[1])]

    return (
        lambda: trainer.train_from_iterator(iter(texts), task["vocab_size"], pattern=task["pattern"], **options),
        learnt,
    )


def our_trainer() -> Any:
    """Raises: UserError when the crate isn't built, or another package has its name."""
    tokenizer = rustbpe_class()
    if not hasattr(tokenizer, "train_from_files"):
        raise UserError(
            f"the crate rustbpe is not in the environment of {sys.executable}. Build it with: "
            "maturin develop --release --manifest-path rustbpe/Cargo.toml."
        )
    return tokenizer()


def foreign_trainer() -> Any:
    """Raises: UserError when the environment that should have PyPI's package has ours."""
    tokenizer = rustbpe_class()
    if tokenizer is None or hasattr(tokenizer, "train_from_files"):
        raise UserError(f"{sys.prefix}: has not the package rustbpe of PyPI. Remove that folder and run again.")
    return tokenizer()


def rustbpe_class() -> Any:
    """`rustbpe.Tokenizer`, or None: without the package Python finds the folder of its sources, which has no such name."""
    try:
        from rustbpe import Tokenizer
    except ImportError:
        return None
    return Tokenizer


def tokenizers_work(task: dict[str, Any], texts: list[str]) -> Work:
    """Hugging Face's, with the same 256 bytes and the same pattern."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as InTurn
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    split = Split(Regex(task["pattern"]), behavior="isolated")
    tokenizer.pre_tokenizer = InTurn([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = BpeTrainer(vocab_size=task["vocab_size"], initial_alphabet=ByteLevel.alphabet(), show_progress=False)

    def learnt() -> list[bytes]:
        from dataset.tokenizer_files import from_byte_alphabet

        vocabulary = tokenizer.get_vocab()
        return [from_byte_alphabet(token) for token in sorted(vocabulary, key=lambda token: vocabulary[token])]

    return lambda: tokenizer.train_from_iterator(iter(texts), trainer), learnt


def sentencepiece_work(task: dict[str, Any], texts: list[str]) -> Work:
    """SentencePiece's BPE at its defaults, except that no paragraph is skipped for its length."""
    settings = {
        "input": task["paragraphs"],
        "model_prefix": task["model_prefix"],
        "model_type": "bpe",
        "vocab_size": task["vocab_size"],
        "character_coverage": task["character_coverage"],
        "max_sentence_length": SENTENCE_BYTES,
        "num_threads": task["threads"],
        "minloglevel": 1,
    }
    trainer = importlib.import_module("sentencepiece").SentencePieceTrainer
    return lambda: trainer.train(**settings), list


def reset_peak() -> bool:
    """Set the process's peak to what is resident now; False where the kernel doesn't let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(name: str) -> int:
    """Bytes of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def measure_encoding(task: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Seconds of the calls alone and until ids are lists, how many ids there are, and their fingerprint."""
    call, to_lists = encoder_of(task, texts)
    to_lists(call(texts[:2]))  # threads and tables that are made at the first call
    seconds = seconds_to_lists = 0.0
    num_tokens = 0
    digest = hashlib.sha256()
    for first in range(0, len(texts), CALL_TEXTS):
        group = texts[first : first + CALL_TEXTS]
        start = time.perf_counter()
        encoded = call(group)
        called = time.perf_counter()
        ids = to_lists(encoded)
        seconds_to_lists += time.perf_counter() - start
        seconds += called - start
        for of_text in ids:
            num_tokens += len(of_text)
            digest.update(array("I", [len(of_text), *of_text]).tobytes())
        del encoded, ids  # else they would be freed in the next call's time
    return {
        "seconds": seconds,
        "seconds_to_lists": seconds_to_lists,
        "num_tokens": num_tokens,
        "ids_sha256": digest.hexdigest(),
        "version": "" if task["arm"] == "ours" else version(PACKAGE.get(task["arm"], task["arm"])),
    }


Encoder = tuple[Callable[[list[str]], Any], Callable[[Any], list[list[int]]]]
"""Encodes texts, and turns what it returns into lists of ids."""


def encoder_of(task: dict[str, Any], texts: list[str]) -> Encoder:
    """The arm's encoder, loaded with the tokenizer folder of the task."""
    folder = Path(task["tokenizer"])
    if task["arm"].startswith("tokenizers"):
        from tokenizers import Tokenizer

        reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
        reader.encode_special_tokens = True  # names of special tokens in a text are text, as in ours
        call = reader.encode_batch_fast if task["arm"] == "tokenizers_fast" else reader.encode_batch
        return lambda group: call(group, add_special_tokens=False), lambda encoded: [one.ids for one in encoded]
    if task["arm"] == "crate":
        crate = our_trainer()  # it can't be loaded, but training gives the same again
        crate.train_from_iterator(iter(texts), task["vocab_size"], pattern=task["pattern"])
        return crate.batch_encode, list
    from dataset.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.from_directory(folder)
    if task["arm"] == "ours":
        return tokenizer.encode_batch, list  # all cores it is given: RAYON_NUM_THREADS
    import tiktoken

    encoding = tiktoken.Encoding(
        "benchmark", pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.mergeable_ranks, special_tokens={}
    )
    return lambda group: encoding.encode_ordinary_batch(group, num_threads=task["threads"]), list


# --- the parent -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share."""

    folder: Path
    """Files of this run; gone afterwards."""
    other_python: Path
    """Of the environment with PyPI's package."""
    pattern: str
    threads: int
    repeats: int
    character_coverage: float

    def run_child(self, task: str, arm: str, prepared: Prepared, vocab_size: int) -> dict[str, Any]:
        """One measurement in a process of its own. Raises: UserError with its last words when it fails."""
        python = self.other_python if arm in {"pypi", "sentencepiece"} else sys.executable
        settings = {
            "task": task,
            "arm": arm,
            "texts": str(prepared.texts),
            "paragraphs": str(prepared.paragraphs),
            "tokenizer": str(self.folder / "tokenizer"),
            "model_prefix": str(self.folder / "sentencepiece"),
            "vocab_size": vocab_size,
            "pattern": self.pattern,
            "threads": self.threads,
            "character_coverage": self.character_coverage,
        }
        task_file, result_file = self.folder / "task.json", self.folder / "result.json"
        write_json(task_file, settings)
        result_file.unlink(missing_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"RAYON_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run(
            [str(python), str(Path(__file__).resolve()), "child", str(task_file), str(result_file)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not result_file.exists():
            raise UserError(f"{task}, {arm}: exit {done.returncode}: {last_words(done.stderr)}")
        found: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        return found

    def take_turns(
        self, task: str, arms: Sequence[str], prepared: Prepared, vocab_size: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Arm -> what each repetition found; each round runs all arms one after the other."""
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for number in range(1, self.repeats + 1):
            for arm in arms:
                found[arm].append(self.run_child(task, arm, prepared, vocab_size))
                shown = f"{prepared.num_bytes / 1e6:.0f} MB, {vocab_size} ranks, round {number} of {self.repeats}"
                print(f"{task} {shown}: {arm} {found[arm][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        return found


def last_words(stderr: str) -> str:
    """Why a program failed, on one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if not lines:
        return "it said nothing; a negative number is the signal that ended it (9: no memory?)"
    return lines[-1].removeprefix("error: ")


def other_environment(folder: Path) -> Path:
    """Python of the environment with PyPI's packages, which is made where it is missing. Raises: UserError."""
    python = folder / "bin" / "python"
    probe = [str(python), "-c", f"import {', '.join(EXTERNAL)}; {EXTERNAL[0]}.Tokenizer"]
    if python.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return python
    print(f"making {display(folder)} with {', '.join(EXTERNAL)} from PyPI", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *EXTERNAL],
        probe,
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{display(folder)}: can't be made: {last_words(done.stderr)}. It needs PyPI or a mirror.")
    return python


def measure_trainers(bench: Bench, prepared: Prepared, vocab_size: int) -> tuple[list[Result], list[bytes], bool]:
    """Results of all trainers, our tokens by rank, and whether PyPI's are the same."""
    found = bench.take_turns("train", list(TRAINERS), prepared, vocab_size)
    results = {arm: as_result("train", arm, runs, prepared, vocab_size) for arm, runs in found.items()}
    tokens = {arm: [[bytes.fromhex(token) for token in one["tokens"]] for one in runs] for arm, runs in found.items()}
    ours = tokens["ours"][0]
    # Ours must be the same in each repetition as well.
    differences = [first_difference(ours, other) for other in (*tokens["ours"][1:], *tokens["pypi"])]
    difference = next((text for text in differences if text), "")
    results["pypi"].notes["ranks"] = difference or "identical"
    theirs = tokens["tokenizers"][0]
    results["tokenizers"].notes |= {
        "equal_first_merges": equal_first(ours[NUM_BYTES:], theirs[NUM_BYTES:]),
        "merges": len(ours) - NUM_BYTES,
        "tokens_in_common": len(set(ours[NUM_BYTES:]) & set(theirs[NUM_BYTES:])),
    }
    results["sentencepiece"].notes["character_coverage"] = bench.character_coverage
    return list(results.values()), ours, not difference


def measure_encoders(bench: Bench, prepared: Prepared, tokens: Sequence[bytes]) -> tuple[list[Result], bool]:
    """Results of all encoders with one vocabulary, and whether all ids are the same."""
    from dataset.tokenizer import RustBPETokenizer

    ranks = {token: rank for rank, token in enumerate(tokens)}
    RustBPETokenizer(bench.pattern, ranks).save(bench.folder / "tokenizer")
    found = bench.take_turns("encode", list(ENCODERS), prepared, len(tokens))
    expected = found["ours"][0]["ids_sha256"]
    results = []
    for arm, runs in found.items():
        result = as_result("encode", arm, runs, prepared, len(tokens))
        result.notes = {
            "seconds_to_lists": [round(one["seconds_to_lists"], 4) for one in runs],
            "num_tokens": runs[0]["num_tokens"],
            "ids": "identical" if all(one["ids_sha256"] == expected for one in runs) else "different",
        }
        results.append(result)
    return results, all(result.notes["ids"] == "identical" for result in results)


def as_result(task: str, arm: str, runs: Sequence[dict[str, Any]], prepared: Prepared, vocab_size: int) -> Result:
    """The figures of all repetitions of an arm."""
    size_mb = round(prepared.num_bytes / 1e6, 3)
    result = Result(task, arm, runs[0]["version"], size_mb, prepared.num_texts, vocab_size)
    result.seconds = [round(one["seconds"], 4) for one in runs]
    if task == "train":
        result.memory_mb = [None if (mb := one["memory_mb"]) is None else round(mb, 2) for one in runs]
    return result


def first_difference(ours: Sequence[bytes], theirs: Sequence[bytes]) -> str:
    """The first rank at which two lists of tokens differ, in words; empty where they are equal."""
    if (rank := equal_first(ours, theirs)) == max(len(ours), len(theirs)):
        return ""
    shown = [repr(tokens[rank]) if rank < len(tokens) else "nothing" for tokens in (ours, theirs)]
    return f"rank {rank}: {shown[0]} here, {shown[1]} there"


def equal_first(ours: Sequence[bytes], theirs: Sequence[bytes]) -> int:
    """How many tokens are the same from the start on."""
    shortest = min(len(ours), len(theirs))
    return next((rank for rank in range(shortest) if ours[rank] != theirs[rank]), shortest)


def ratio(other: float | None, ours: float | None) -> float:
    """How many times as much the other needs; nan where one of them is unknown or ours is nothing."""
    return other / ours if other is not None and ours else math.nan


def middle(values: Sequence[float | None]) -> float | None:
    """The median, or None where a value is unknown."""
    return None if None in values else median(value for value in values if value is not None)


def lowest(values: Sequence[float | None]) -> float | None:
    """The minimum, or None where a value is unknown."""
    return None if None in values else min(value for value in values if value is not None)


# --- tables -----------------------------------------------------------------------------------------------------------


def training_targets(results: Sequence[Result]) -> list[Target]:
    """The targets of training."""
    seconds = {result.arm: result.seconds for result in results}
    used = {result.arm: result.memory_mb for result in results}
    return [
        Target("faster than PyPI's rustbpe", SPEED_OF_PYPI, sure_ratio(seconds["pypi"], seconds["ours"])),
        Target("faster than tokenizers", SPEED_OF_TOKENIZERS, sure_ratio(seconds["tokenizers"], seconds["ours"])),
        Target(
            "less memory than the better of the two",
            MEMORY_OF_BEST,
            least(sure_ratio(used["pypi"], used["ours"]), sure_ratio(used["tokenizers"], used["ours"])),
        ),
        Target(
            f"faster than sentencepiece (max_han_run={MAX_HAN_RUN})",
            SPEED_OF_SENTENCEPIECE,
            sure_ratio(seconds["sentencepiece"], seconds["ours_capped"]),
        ),
    ]


def encoding_targets(results: Sequence[Result]) -> list[Target]:
    """The target of encoding: against the faster call of tokenizers, its ids not yet lists."""
    seconds = {result.arm: result.seconds for result in results}
    reached = least(*(sure_ratio(seconds[arm], seconds["ours"]) for arm in ("tokenizers", "tokenizers_fast")))
    return [Target("encode_batch faster than tokenizers' faster call", SPEED_OF_TOKENIZERS_ENCODING, reached)]


def sure_ratio(others: Sequence[float | None], ours: Sequence[float | None]) -> float:
    """The smaller of the ratios of medians and of minima, so that noise on either side flatters nobody."""
    return least(ratio(middle(others), middle(ours)), ratio(lowest(others), lowest(ours)))


def least(*ratios: float) -> float:
    """The smallest, or nan where one is unknown."""
    return math.nan if any(map(math.isnan, ratios)) else min(ratios)


def training_table(results: Sequence[Result]) -> Iterator[str]:
    """Lines of Markdown; ratios are of medians, against our arm with the same cap."""
    first = results[0]
    yield f"\nTraining, {first.size_mb:g} MB in {first.num_texts} texts, {first.vocab_size} ranks\n"
    yield "| arm | version | seconds: min | median | MB/s | x ours | memory MB: min | median | x ours |"
    yield "|---|---|---|---|---|---|---|---|---|"
    by_arm = {result.arm: result for result in results}
    for result in results:
        ours = by_arm["ours_capped" if result.arm in {"ours_capped", "sentencepiece"} else "ours"]
        seconds, used = median(result.seconds), middle(result.memory_mb)
        speed = f"{min(result.seconds):.2f} | {seconds:.2f} | {result.size_mb / seconds:.1f}"
        times = f"{ratio(seconds, median(ours.seconds)):.2f}"
        space = "? | ?" if used is None else f"{lowest(result.memory_mb):.1f} | {used:.1f}"
        more = f"{ratio(used, middle(ours.memory_mb)):.2f}"
        yield f"| {TRAINERS[result.arm]} | {result.version} | {speed} | {times} | {space} | {more} |"
    notes = by_arm["tokenizers"].notes
    yield ""
    yield f"ranks, ours and PyPI's: {by_arm['pypi'].notes['ranks']}"
    yield (
        f"tokenizers (other order of ties): the first {notes['equal_first_merges']} of {notes['merges']} merges are the "
        f"same, {notes['tokens_in_common']} tokens in common"
    )


def encoding_table(results: Sequence[Result]) -> Iterator[str]:
    """Lines of Markdown."""
    first = results[0]
    yield f"\nEncoding, {first.size_mb:g} MB, {CALL_TEXTS} texts a call, {first.vocab_size} ranks\n"
    yield "| arm | version | seconds: min | median | MB/s | x ours | until ids are lists, s: median | x ours | ids |"
    yield "|---|---|---|---|---|---|---|---|---|"
    ours, ours_lists = median(first.seconds), median(first.notes["seconds_to_lists"])
    for result in results:
        seconds, lists = median(result.seconds), median(result.notes["seconds_to_lists"])
        speed = (
            f"{min(result.seconds):.2f} | {seconds:.2f} | {result.size_mb / seconds:.1f} | {ratio(seconds, ours):.2f}"
        )
        name = f"{ENCODERS[result.arm]} | {result.version}"
        yield f"| {name} | {speed} | {lists:.2f} | {ratio(lists, ours_lists):.2f} | {result.notes['ids']} |"
    yield ""


# --- the command ------------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--text", type=Path, required=True, metavar="FILE", help=".jsonl or .jsonl.xz of records with `text` 文本"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["30", "all"],
        metavar="MB",
        help="measure on the first so many MB, or all 取文本开头的若干 MB，或 all 全部 (30 all)",
    )
    parser.add_argument(
        "--vocab_sizes",
        type=int,
        nargs="+",
        default=[6400, 32000],
        metavar="N",
        help="ranks to learn; encoding takes the first 词表大小，编码用第一个 (6400 32000)",
    )
    parser.add_argument(
        "--pattern", default="gpt4", metavar="NAME|REGEX", help="split pattern of all arms 切分规则 (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each arm 每项的线程数 (%(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="runs of each arm 每项重复次数 (%(default)s)"
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="of sentencepiece; 1 needs more tokens than the text has different characters "
        "sentencepiece 的字符覆盖率；取 1 时词表须大于字符种数 (%(default)s)",
    )
    parser.add_argument(
        "--work_dir", type=Path, required=True, metavar="DIR", help="environment and files for a while 工作目录"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there 结果文件")
    return parser


def check_machine() -> None:
    """Raises: UserError when something is missing, before anything is measured."""
    if not Path("/proc/self/status").exists():
        raise UserError("/proc/self/status: missing. This benchmark reads a process's memory there: run it on Linux.")
    our_trainer()
    for name in ("tokenizers", "tiktoken"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"the package {name} is missing. Install it with: pip install {name}") from None


def measure(
    bench: Bench, texts: list[str], sizes: Sequence[float], vocab_sizes: Sequence[int], json_file: Path | None
) -> bool:
    """Measure and print everything; True when all ranks and ids are the same."""
    results: list[Result] = []
    facts = {
        "cpu": cpu_name(),
        "instructions": cpu_instructions(),
        "cores": num_cores(),
        "python": platform.python_version(),
        "threads": bench.threads,
        "pattern": bench.pattern,
    }

    def keep(new: Sequence[Result], lines: Iterator[str], targets: Sequence[Target]) -> None:
        results.extend(new)
        if json_file:
            write_json(json_file, [asdict(result) | facts for result in results])
        print(*lines, *(f"- {target}" for target in targets), sep="\n", flush=True)

    print(f"{facts['cpu']} ({', '.join(cpu_instructions())}), {num_cores()} cores, {bench.threads} threads an arm")
    all_equal = True
    for number, size in enumerate(sizes):
        prepared = prepare(list(first_texts(iter(texts), size)), bench.folder / f"text_{number}")
        tokens: list[bytes] = []
        for vocab_size in vocab_sizes:
            trained, learnt, equal = measure_trainers(bench, prepared, vocab_size)
            keep(trained, training_table(trained), training_targets(trained))
            tokens = tokens or learnt
            all_equal &= equal
        if size == max(sizes):
            encoded, equal = measure_encoders(bench, prepared, tokens)
            keep(encoded, encoding_table(encoded), encoding_targets(encoded))
            all_equal &= equal
    return all_equal


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all arms and print tables; or, called by itself as `child TASK RESULT`, make one measurement."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["child"]:
        write_json(Path(given[2]), child(json.loads(Path(given[1]).read_text(encoding="utf-8"))))
        return 0
    args = build_parser().parse_args(given)
    sizes = sorted({parse_size(word) for word in args.sizes})
    for name, value, least in (
        ("vocab_sizes", min(args.vocab_sizes), NUM_BYTES + 1),
        ("threads", args.threads, 1),
        ("repeat", args.repeat, 1),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: must be {least} or more.")
    check_machine()
    from dataset.tokenizer import NAMED_PATTERNS

    texts = list(first_texts(read_texts(args.text), max(sizes)))
    num_bytes = sum(len(text.encode("utf-8")) for text in texts)
    if not texts:
        raise UserError(f"{display(args.text)}: no text. Give JSONL of records with `text`.")
    if any(num_bytes < size < math.inf for size in sizes):
        raise UserError(f"{display(args.text)}: {num_bytes / 1e6:.1f} MB of text, less than --sizes asks for. Say all.")
    require_writable(args.work_dir)
    other_python = other_environment(args.work_dir.absolute() / "pypi")
    with tempfile.TemporaryDirectory(prefix="tokenizer_speed_", dir=args.work_dir.absolute()) as folder:
        bench = Bench(
            Path(folder),
            other_python,
            NAMED_PATTERNS.get(args.pattern, args.pattern),
            args.threads,
            args.repeat,
            args.character_coverage,
        )
        return 0 if measure(bench, texts, sizes, args.vocab_sizes, args.json) else 1


if __name__ == "__main__":
    run(main)

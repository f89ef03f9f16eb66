"""Training a tokenizer: the text it learns from, the text it is measured on, the statistics, the folder.

`scripts/train_rustbpe_tokenizer.py` and `scripts/train_tokenizer.py` differ only in who learns the merges.
"""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from configs.cli import Parser
from configs.flags import env_path
from configs.messages import warn
from configs.paths import (
    DATA_DIR,
    IDENTITY_SAMPLE,
    IDENTITY_SOURCE,
    OUT_DIR,
    display,
    find_dataset,
    sample_dir,
    source_dir,
)
from configs.progress import progress_bar
from configs.schema import ModelConfig, UserError
from configs.stage_table import DATA_STEMS, record_file
from dataset.chat import SPECIAL_TOKENS, render_conversation
from dataset.records import (
    BadRecord,
    ChatRecord,
    PreferenceRecord,
    Record,
    TextRecord,
    decode_item,
    is_source,
    parse_record,
    read_items,
    split_of,
)
from dataset.samples.files import SAMPLE_FILES, write_samples
from dataset.tokenizer import (
    NAMED_PATTERNS,
    NUM_BYTES,
    SMALLEST_VOCABULARY,
    RustBPETokenizer,
    without_surrogates,
)

SLICE_CHARACTERS = 1_000_000
"""Texts are encoded in slices of this size to be measured, so that a huge one needs little memory."""
BATCH_CHARACTERS = 4_000_000
"""Characters that are measured at once, on all cores."""
LARGEST_VOCABULARY = 1 << 20
"""Tokens; several times as many as any known model has."""
NUM_SHOWN = 30
"""Longest and unused tokens that are listed."""
Learn = Callable[[Iterator[str], int, str], RustBPETokenizer]
"""Texts, number of tokens with the special ones, split pattern -> tokenizer."""


@dataclass(slots=True)
class Corpus:
    """Record files read line by line, as often as needed. Held-out records are never learnt from."""

    paths: list[Path]
    heldout_paths: list[Path] = field(default_factory=list)
    """Held-out records to measure on; of those with a `split`, the validation half."""
    leave_out_every: int = 0
    """Without such files: every so many lines one is held out; 0: none."""
    doc_cap: int = 0
    """Characters of a text that are learnt from; 0: all."""
    max_chars: int = 0
    """Characters that are learnt from in all, in the order of the files; 0: all."""

    num_texts: int = 0
    """What the last pass over the training texts gave."""
    num_characters: int = 0
    num_capped: int = 0
    """Texts cut at `doc_cap`."""
    reached_max_chars: bool = False
    unreadable: dict[tuple[Path, bool | None], Counter[str]] = field(default_factory=dict)
    """Why records of each file and pass could not be read, and how many; they are skipped."""

    def training_texts(self, description: str = "") -> Iterator[str]:
        """The texts to learn from, with a progress bar where a description is given."""
        self.num_texts = self.num_characters = self.num_capped = 0
        self.reached_max_chars = False
        for text in self._texts(self.paths, {None, "train"}, description, heldout=False):
            if self.doc_cap and len(text) > self.doc_cap:
                self.num_capped += 1
                text = text[: self.doc_cap]
            if self.max_chars and self.num_characters + len(text) > self.max_chars:
                self.reached_max_chars = True
                text = text[: self.max_chars - self.num_characters]
            if text:
                self.num_texts += 1
                self.num_characters += len(text)
                yield text
            if self.reached_max_chars:
                return

    def heldout_texts(self) -> Iterator[str]:
        """The texts to measure on."""
        if self.heldout_paths:
            yield from self._texts(self.heldout_paths, {None, "validation"})
        elif self.leave_out_every:
            yield from self._texts(self.paths, {None, "train"}, heldout=True)

    def _texts(
        self, paths: list[Path], splits: set[str | None], description: str = "", heldout: bool | None = None
    ) -> Iterator[str]:
        num_bytes = sum(path.stat().st_size for path in paths if path.exists())
        with progress_bar(num_bytes, desc=description, unit="B", unit_scale=True, disable=not description) as bar:
            for path in paths:
                self.unreadable.pop((path, heldout), None)
                items = read_items(path, lambda block: bar.update(len(block)))
                for index, (_, item) in enumerate(items):
                    is_left_out = bool(self.leave_out_every) and index % self.leave_out_every == 0
                    if heldout is not None and is_left_out != heldout:
                        continue
                    try:
                        fields = decode_item(item, {})
                        texts = texts_of(parse_record(fields)) if split_of(fields) in splits else []
                    except (BadRecord, UserError) as error:
                        self.unreadable.setdefault((path, heldout), Counter())[str(error)] += 1
                        continue
                    yield from texts


class _Listener:
    """Stands in for a tokenizer while a conversation is rendered, and keeps what it is asked to encode."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return []

    def encode_special(self, name: str) -> int:
        return 0


def texts_of(record: Record) -> list[str]:
    """What the stages encode of a record: its text, or what its turns are rendered to; half surrogates as U+FFFD.

    Raises: UserError for a conversation that can't be rendered.
    """
    if isinstance(record, TextRecord):
        texts = [record.text]
    else:
        listener = _Listener()
        render_conversation(listener, record.messages if isinstance(record, ChatRecord) else record.chosen)
        texts = listener.texts
        if isinstance(record, PreferenceRecord):
            texts.append(record.rejected[-1]["content"])
    return [without_surrogates(text) for text in texts if text]


def default_inputs() -> list[Path]:
    """The mixed training files, else the user's sources, else the bundled samples."""
    processed = env_path("DATA_DIR", DATA_DIR)
    mixed = [path for data in DATA_STEMS if (path := processed / record_file(data)).exists()]
    sources = sorted(path for path in source_dir(processed).glob("[!.]*") if path.is_file() and is_source(path))
    if mixed or any(path.name != IDENTITY_SOURCE for path in sources):  # that one is put there by the mix
        return mixed or sources
    written = write_samples(sample_dir(processed), [name for name in SAMPLE_FILES if name != "preference"])
    return [*written.values(), IDENTITY_SAMPLE]


def heldout_siblings(paths: Iterable[Path]) -> list[Path]:
    """The held-out files that the mix wrote beside training files: `NAME_heldout.jsonl` beside `NAME.jsonl`."""
    siblings = (path.with_name(f"{path.stem}_heldout{path.suffix}") for path in paths if path.name)  # `/` has none
    return [path for path in siblings if path.exists()]


# The vocabulary

_HAN = regex.compile(r"\p{Han}")


def measure_vocabulary(
    tokenizer: RustBPETokenizer, heldout_texts: Iterable[str], training_texts: Iterable[str]
) -> dict[str, Any]:
    """How well a vocabulary serves: density on text it was not trained on, and what it is made of.

    `characters_per_token` and `bytes_per_token` are of the held-out texts; `unused_tokens` are those that neither
    they nor the training texts need.
    """
    num_characters = num_bytes = num_tokens = 0
    used: set[int] = set()
    for batch in _batches(heldout_texts):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            used.update(ids)
            num_characters += len(text)
            num_bytes += len(text.encode("utf-8", "replace"))
            num_tokens += len(ids)
    for batch in _batches(training_texts):
        used.update(*tokenizer.encode_batch(batch))
    words = {token_id: tokenizer.id_to_token(token_id) for token_id in range(len(tokenizer.mergeable_ranks))}
    whole = [token_id for token_id, word in words.items() if "\\x" not in word]  # torn characters would look long
    longest = sorted(whole, key=lambda token_id: (-len(words[token_id]), token_id))[:NUM_SHOWN]
    unused = [token_id for token_id in words if token_id not in used]
    return {
        "size": tokenizer.get_vocab_size(),
        "heldout": {"characters": num_characters, "bytes": num_bytes, "tokens": num_tokens},
        "characters_per_token": round(num_characters / num_tokens, 4) if num_tokens else None,
        "bytes_per_token": round(num_bytes / num_tokens, 4) if num_tokens else None,
        "share_of_han_tokens": round(sum(bool(_HAN.search(word)) for word in words.values()) / len(words), 4),
        "longest_tokens": [words[token_id] for token_id in longest],
        "unused_tokens": {"count": len(unused), "tokens": [words[token_id] for token_id in unused[:NUM_SHOWN]]},
    }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        for start in range(0, len(text), SLICE_CHARACTERS):
            batch.append(text[start : start + SLICE_CHARACTERS])
            size += len(batch[-1])
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


# The command


def build_parser(description: str | None) -> Parser:
    """The flags of both commands."""
    parser = Parser(description=description)
    text = parser.add_argument_group("text 训练文本")
    text.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=".jsonl, .json or .csv, also .gz or .xz (default: data/processed, else data/chinese, else the bundled samples) "
        "训练文本 (默认依次取 data/processed、data/chinese、自带样本)",
    )
    text.add_argument(
        "--heldout",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="records to measure on, never to learn from (default: NAME_heldout.jsonl beside NAME.jsonl) "
        "只用于测量的留出数据 (默认为同名的 _heldout 文件)",
    )
    text.add_argument(
        "--leave-out-every",
        type=int,
        default=20,
        metavar="N",
        help="without such files, hold out every Nth line; 0: none 没有留出文件时每 N 行留出一行 (%(default)s)",
    )
    text.add_argument(
        "--doc-cap",
        type=int,
        default=0,
        metavar="N",
        help="learn from the first N characters of a text 每段文本最多取 N 个字符; 0: all 全部 (%(default)s)",
    )
    text.add_argument(
        "--max-chars",
        type=int,
        default=0,
        metavar="N",
        help="learn from the first N characters in all 总共最多取 N 个字符; 0: all 全部 (%(default)s)",
    )
    text.add_argument(
        "--description",
        metavar="TEXT",
        help="what the text is, for tokenizer_meta.json 训练文本说明 (default: the file names 默认为文件名)",
    )
    vocabulary = parser.add_argument_group("vocabulary 词表")
    vocabulary.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="tokenizer folder 输出目录 (default: tokenizer in OUT_DIR 默认为 OUT_DIR 下的 tokenizer)",
    )
    vocabulary.add_argument(
        "--vocab-size",
        type=int,
        default=ModelConfig().vocab_size,
        metavar="N",
        help="tokens, special ones included 词表大小，含特殊词元 (%(default)s)",
    )
    vocabulary.add_argument(
        "--split-pattern",
        default="qwen2",
        metavar="NAME|REGEX",
        help=f"{', '.join(NAMED_PATTERNS)} or a regular expression 切分规则 (%(default)s)",
    )
    return parser


def train_folder(args: argparse.Namespace, learn: Learn, facts: dict[str, Any]) -> int:
    """Read, learn, measure, write the folder.

    Args: args: of `build_parser`. facts: what `tokenizer_meta.json` says about how the merges were learnt.
    Raises: UserError when a setting can't be, a file can't be read, or there is no text.
    """
    corpus = _corpus(args)
    output = args.output or env_path("OUT_DIR", OUT_DIR) / "tokenizer"
    pattern = NAMED_PATTERNS.get(args.split_pattern, args.split_pattern)
    _log(f"training text: {', '.join(display(path) for path in corpus.paths)}")

    texts = corpus.training_texts("reading 读取")
    first = next(texts, None)
    if first is None and corpus.leave_out_every:  # a file of one record, say, however long
        corpus.leave_out_every = 0
        texts = corpus.training_texts("reading 读取")
        if (first := next(texts, None)) is not None:
            _log("too few lines to hold any out: learning from all of them, with none left to measure on")
    if first is None:
        _warn_of_unreadable(corpus)
        raise UserError(
            f"{display(corpus.paths[0])}: no text to train on. Give JSONL files of records that hold text.",
            "没有可训练的文本：请提供含文本的 JSONL",
        )
    tokenizer = learn(itertools.chain([first], texts), args.vocab_size, pattern)
    if corpus.reached_max_chars:
        _log(f"the text after the first {args.max_chars:,} characters is not used (--max-chars)")
    if corpus.num_capped:
        _log(f"{corpus.num_capped:,} texts were cut after {args.doc_cap:,} characters (--doc-cap)")
    training_text = {
        "description": args.description or ", ".join(path.name for path in corpus.paths),
        "texts": corpus.num_texts,
        "characters": corpus.num_characters,
        "leave_out_every": corpus.leave_out_every,
        "doc_cap": corpus.doc_cap,
        "max_chars": corpus.max_chars,
    }
    size = tokenizer.get_vocab_size()
    _log(f"learnt {size:,} tokens from {corpus.num_characters:,} characters in {corpus.num_texts:,} texts")
    if size < args.vocab_size:
        warn(
            f"the text is too small for {args.vocab_size:,} tokens, the vocabulary has {size:,}. "
            "Give more text to fill it.",
            f"文本太少，词表只有 {size:,} 个词元：请提供更多文本",
        )

    statistics = measure_vocabulary(tokenizer, corpus.heldout_texts(), corpus.training_texts("measuring 测量"))
    _warn_of_unreadable(corpus)
    tokenizer.metadata = {"training": facts, "training_text": training_text, "vocabulary": statistics}
    tokenizer.save(output)
    density = statistics["characters_per_token"]
    _log(f"held-out text: {f'{density} characters a token' if density else 'none'}")
    _log(f"wrote {display(output)}: {size:,} tokens, fingerprint {tokenizer.sha256[:12]}")
    return 0


def _corpus(args: argparse.Namespace) -> Corpus:
    if args.vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"--vocab-size {args.vocab_size}: must be {SMALLEST_VOCABULARY} or more "
            f"({NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens).",
            f"词表太小：至少 {SMALLEST_VOCABULARY}",
        )
    if args.vocab_size > LARGEST_VOCABULARY:
        raise UserError(f"--vocab-size {args.vocab_size}: must be at most {LARGEST_VOCABULARY}.", "词表过大")
    if args.leave_out_every < 0 or args.leave_out_every == 1:
        raise UserError(
            f"--leave-out-every {args.leave_out_every}: must be 0 (none) or 2 or more.", "只能是 0（不留出）或不小于 2"
        )
    for name in ("doc_cap", "max_chars"):
        if getattr(args, name) < 0:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: must be 0 (all) or more.", "不能为负；0 为全部"
            )
    paths = [find_dataset(path) for path in args.input] if args.input else default_inputs()
    heldout = [find_dataset(path) for path in args.heldout] if args.heldout else heldout_siblings(paths)
    return Corpus(
        paths,
        heldout,
        leave_out_every=0 if heldout else args.leave_out_every,
        doc_cap=args.doc_cap,
        max_chars=args.max_chars,
    )


def _warn_of_unreadable(corpus: Corpus) -> None:
    for path in dict.fromkeys([*corpus.paths, *corpus.heldout_paths]):
        reasons = sum((counts for (other, _), counts in corpus.unreadable.items() if other == path), Counter[str]())
        if reasons:
            listed = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common(3))
            warn(
                f"{display(path)}: {reasons.total():,} records that no stage can read are skipped ({listed})",
                f"跳过 {reasons.total():,} 条无法读取的记录",
            )


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

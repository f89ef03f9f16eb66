"""Train a byte-level BPE tokenizer on your text, with Hugging Face `tokenizers` (no compiler needed).

    python scripts/train_tokenizer.py                                # on data/processed, data/chinese or the samples
    python scripts/train_tokenizer.py --input my.jsonl --output out/tokenizer

Writes tokenizer.pkl, tokenizer_meta.json, tokenizer.json and tokenizer_config.json.
"""

import json
import lzma
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from configs.cli import Parser, run
from configs.flags import env_path
from configs.paths import DATA_DIR, IDENTITY_SAMPLE, OUT_DIR, SAMPLE_DIR, SOURCE_DIR, display, find_dataset
from configs.schema import STAGES, ModelConfig, UserError
from configs.stages import IDENTITY_SOURCE
from dataset.chat import SPECIAL_TOKENS
from dataset.samples import GENERATORS, write_samples
from dataset.tokenizer import (
    NAMED_PATTERNS,
    NUM_BYTES,
    RustBPETokenizer,
    from_byte_alphabet,
    measure_vocabulary,
)

SMALLEST_VOCABULARY = NUM_BYTES + len(SPECIAL_TOKENS)
TRAINING_SPLITS = {None, "", "train"}
"""Values of a record's `split` field that let it into training."""
LABEL_KEYS = frozenset({"role", "from", "source", "category", "origin", "split", "group", "id", "lang"})
"""Keys whose values say something about a record; all other texts in it are what the model reads and writes."""
MIN_PAIR_COUNT = 2
"""A pair that was seen once teaches nothing."""


@dataclass(slots=True)
class Corpus:
    """Text files read line by line, as often as needed; every `leave_out_every`-th line is held out."""

    paths: list[Path]
    leave_out_every: int
    unreadable: dict[str, int] = field(default_factory=dict)
    """File -> lines that hold no JSON record; they are skipped."""

    def training_texts(self) -> Iterator[str]:
        """The texts to learn from."""
        return self._texts(heldout=False)

    def heldout_texts(self) -> Iterator[str]:
        """The texts to measure on."""
        return self._texts(heldout=True)

    def _texts(self, heldout: bool) -> Iterator[str]:
        for path in self.paths:
            self.unreadable[str(path)] = 0
            for index, line in enumerate(_lines(path)):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    self.unreadable[str(path)] += 1
                    continue
                if isinstance(record, dict) and record.get("split") not in TRAINING_SPLITS:
                    continue
                if (self.leave_out_every > 0 and index % self.leave_out_every == 0) == heldout:
                    yield from texts_of(record)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a .jsonl or .jsonl.xz file, a byte order mark removed. Raises: UserError when it can't be read."""
    try:
        with lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb") as file:
            for line in file:
                yield line.removeprefix(b"\xef\xbb\xbf")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path}: can't be read ({error}). Check the file, or leave it out of --input.") from None


def texts_of(record: Any) -> Iterator[str]:
    """All texts of a record of whatever shape, without its labels; half surrogates as U+FFFD."""
    if isinstance(record, str):
        if record:
            yield record.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    elif isinstance(record, list):
        for value in record:
            yield from texts_of(value)
    elif isinstance(record, dict):
        for key, value in record.items():
            if key not in LABEL_KEYS:
                yield from texts_of(value)


def default_inputs() -> list[Path]:
    """The mixed training files, else the user's sources, else the bundled samples."""
    processed = env_path("DATA_DIR", DATA_DIR)
    mixed = [path for stage in STAGES if (path := processed / f"{stage}_chinese.jsonl").exists()]
    sources = sorted(SOURCE_DIR.glob("*.jsonl"))
    if mixed or any(path.name != IDENTITY_SOURCE for path in sources):  # that one is put there by the mix
        return mixed or sources
    written = write_samples(SAMPLE_DIR, [category for category in GENERATORS if category != "preference"])
    return [*written.values(), IDENTITY_SAMPLE]


def learn_ranks(corpus: Corpus, num_texts: int, num_ranks: int, pattern: str) -> dict[bytes, int]:
    """The byte-level BPE vocabulary of the training texts: the bytes by value, then the merges as they were learnt."""
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError("the package `tokenizers` is missing. Install it with: pip install tokenizers") from None
    model = Tokenizer(models.BPE())
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # the package raises bare Exception for a pattern its engine can't compile
        raise UserError(f"--split-pattern {pattern!r}: can't be compiled ({error}).") from None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=num_ranks,
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    model.train_from_iterator(corpus.training_texts(), trainer, length=num_texts)
    ranks = {bytes([byte]): byte for byte in range(NUM_BYTES)}
    for left, right in json.loads(model.to_str())["model"]["merges"]:
        token = from_byte_alphabet(left) + from_byte_alphabet(right)
        ranks.setdefault(token, len(ranks))  # two pairs can form the same token: the first one counts
    return ranks


def log(message: str) -> None:
    """A line of progress for the reader."""
    print(message, file=sys.stderr, flush=True)


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=".jsonl or .jsonl.xz files 训练文本 (default: data/processed, else data/chinese, else bundled samples)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="tokenizer folder 输出目录 (default: tokenizer in OUT_DIR 默认为 OUT_DIR 下的 tokenizer)",
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=ModelConfig().vocab_size,
        metavar="N",
        help="tokens, special ones included 词表大小，含特殊词元 (%(default)s)",
    )
    parser.add_argument(
        "--split-pattern",
        default="qwen2",
        metavar="NAME|REGEX",
        help=f"{', '.join(NAMED_PATTERNS)} or a regular expression 切分规则 (%(default)s)",
    )
    parser.add_argument(
        "--leave-out-every",
        type=int,
        default=20,
        metavar="N",
        help="hold out every Nth line to measure on; 0: none 每 N 行留出一行用于测量 (%(default)s)",
    )
    parser.add_argument(
        "--description",
        metavar="TEXT",
        help="what the text is, for tokenizer_meta.json 训练文本说明 (default: the file names 默认为文件名)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read, train, measure, write."""
    args = build_parser().parse_args(argv)
    if args.vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"--vocab-size {args.vocab_size}: must be {SMALLEST_VOCABULARY} or more "
            f"({NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens)."
        )
    if args.leave_out_every < 0 or args.leave_out_every == 1:
        raise UserError(f"--leave-out-every {args.leave_out_every}: must be 0 (none) or 2 or more.")
    output = args.output or env_path("OUT_DIR", OUT_DIR) / "tokenizer"
    pattern = NAMED_PATTERNS.get(args.split_pattern, args.split_pattern)
    paths = [find_dataset(path) for path in args.input] if args.input else default_inputs()
    log(f"training text: {', '.join(display(path) for path in paths)}")

    corpus = Corpus(paths, args.leave_out_every)
    num_texts = num_characters = 0
    for text in tqdm(corpus.training_texts(), desc="reading", unit=" texts", mininterval=0.5):
        num_texts += 1
        num_characters += len(text)
    for name, count in corpus.unreadable.items():
        if count:
            log(f"warning: {name}: {count} lines hold no JSON record and are skipped.")
    if not num_characters:
        raise UserError(f"{display(paths[0])}: no text to train on. Give JSONL files of records that hold text.")

    log(f"training on {num_characters:,} characters in {num_texts:,} texts, vocabulary {args.vocab_size:,}")
    ranks = learn_ranks(corpus, num_texts, args.vocab_size - len(SPECIAL_TOKENS), pattern)
    tokenizer = RustBPETokenizer(pattern, ranks)
    size = tokenizer.get_vocab_size()
    if size < args.vocab_size:
        log(
            f"warning: the text is too small for {args.vocab_size:,} tokens, the vocabulary has {size:,}. "
            "Give more text to fill it."
        )

    log("measuring the vocabulary")
    statistics = measure_vocabulary(tokenizer, corpus.heldout_texts(), corpus.training_texts())
    tokenizer.metadata = {
        "training_text": {
            "description": args.description or ", ".join(path.name for path in paths),
            "texts": num_texts,
            "characters": num_characters,
            "leave_out_every": args.leave_out_every,
        },
        "vocabulary": statistics | {"size": size},
    }
    tokenizer.save(output)
    density = statistics["characters_per_token"]
    log(f"held-out text: {density or 'none left out,'} characters per token")
    log(f"wrote {display(output)}: {size:,} tokens, fingerprint {tokenizer.sha256[:12]}")
    return 0


if __name__ == "__main__":
    run(main)

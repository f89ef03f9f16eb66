"""The command that trains a tokenizer: its flags, then read, train, measure, write the folder.

Two programs share it. `scripts/train_rustbpe_tokenizer.py` learns the merges with the Rust crate,
`scripts/train_tokenizer.py` without it. All else is the same.
"""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from configs.cli import Parser
from configs.messages import warn
from configs.paths import OUT_DIR, display, env_path, find_dataset, heldout_beside
from configs.schema import ModelConfig, UserError
from dataset.chat import SPECIAL_TOKENS
from dataset.tokenizer import NAMED_PATTERNS, NUM_BYTES, SMALLEST_VOCABULARY, RustBPETokenizer
from dataset.vocabulary import Corpus, default_inputs, measure_vocabulary

LARGEST_VOCABULARY = 1 << 20
"""Tokens. Known models have much fewer."""
Learn = Callable[[Iterator[str], int, str], RustBPETokenizer]
"""(texts, number of tokens with the special ones, split pattern) -> tokenizer."""


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
    """Read the text, learn the merges, measure the vocabulary, write the folder.

    Args: args: from `build_parser`. learn: makes the merges. facts: how it makes them, for
    `tokenizer_meta.json`.
    Returns: the exit code, 0.
    Raises: UserError when a setting is impossible, a file can't be read, or there is no text.
    """
    corpus = _corpus(args)
    output = args.output or env_path("OUT_DIR", OUT_DIR) / "tokenizer"
    pattern = NAMED_PATTERNS.get(args.split_pattern, args.split_pattern)
    _log(f"training text: {', '.join(display(path) for path in corpus.paths)}")

    # The first text is read here, so that an empty corpus is an error before any training.
    texts = corpus.training_texts("reading 读取")
    first = next(texts, None)
    if first is None and corpus.leave_out_every:  # a file of one record holds out that record
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
    """The corpus that the flags describe. Raises: UserError for an impossible flag."""
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
    heldout = [find_dataset(path) for path in args.heldout] if args.heldout else _heldout_of(paths)
    return Corpus(
        paths,
        heldout,
        leave_out_every=0 if heldout else args.leave_out_every,
        doc_cap=args.doc_cap,
        max_chars=args.max_chars,
    )


def _heldout_of(paths: list[Path]) -> list[Path]:
    """The held-out files that the mix wrote beside these training files."""
    return [beside for path in paths if (beside := heldout_beside(path))]


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

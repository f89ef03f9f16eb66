"""Train a byte-level BPE tokenizer on your text with Hugging Face `tokenizers`: no compiler needed.
无需编译器训练分词器。

    python scripts/train_tokenizer.py    # on data/processed, data/chinese or the samples
    python scripts/train_tokenizer.py --input my.jsonl --output out/tokenizer

Writes tokenizer.pkl, tokenizer_meta.json, tokenizer.json and tokenizer_config.json, as
train_rustbpe_tokenizer.py does, more slowly.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.schema import UserError
from dataset.chat import SPECIAL_TOKENS
from dataset.tokenizer import NUM_BYTES, RustBPETokenizer
from dataset.tokenizer_files import from_byte_alphabet
from dataset.tokenizer_training import build_parser, train_folder

MIN_PAIR_COUNT = 2
"""Least count of a pair that is merged: a pair that occurs once says nothing about the language."""


def learn(texts: Iterator[str], vocab_size: int, pattern: str) -> RustBPETokenizer:
    """A byte-level BPE tokenizer of the texts: first the 256 bytes, then the merges in their order.

    Raises: UserError if the pattern can't be compiled.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # the package raises bare Exception for a pattern its engine can't compile
        raise UserError(
            f"--split-pattern {pattern!r}: can't be compiled ({error}).", "切分规则无法编译：请修改"
        ) from None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    model.train_from_iterator(texts, trainer)
    ranks = {bytes([byte]): byte for byte in range(NUM_BYTES)}
    for left, right in json.loads(model.to_str())["model"]["merges"]:
        token = from_byte_alphabet(left) + from_byte_alphabet(right)
        ranks.setdefault(token, len(ranks))  # two pairs can form the same token: the first one counts
    return RustBPETokenizer(pattern, ranks)


def main(argv: Sequence[str] | None = None) -> int:
    """Read, learn, measure, write."""
    arguments = build_parser(__doc__).parse_args(argv)
    if find_spec("tokenizers") is None:  # said now, before much text is read
        raise UserError(
            "the package `tokenizers` is missing. Install it with: pip install tokenizers",
            "缺少 tokenizers 包：请运行 pip install tokenizers",
        )
    return train_folder(arguments, learn, {"trainer": "tokenizers"})


if __name__ == "__main__":
    run(main)

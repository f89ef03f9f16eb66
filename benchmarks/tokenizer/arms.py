"""The trainers and encoders that are compared: names, packages, and which `rustbpe` is ours.

Nothing here loads a package before it is asked to: the environment of PyPI's package has few.
"""

import sys
from importlib.metadata import version
from typing import Any

from configs.schema import UserError

MAX_HAN_RUN = 8
"""Cap of our arm that stands beside SentencePiece, whose pieces are short as well."""
EXTERNAL = ("rustbpe", "sentencepiece")
"""Packages that have an environment of their own: PyPI's `rustbpe` has the name of our crate."""
OF_EXTERNAL = {"pypi", "sentencepiece"}
"""Arms that run in that environment."""

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
PACKAGE = {
    "ours": "rustbpe",
    "ours_capped": "rustbpe",
    "pypi": "rustbpe",
    "crate": "rustbpe",
    "tokenizers_fast": "tokenizers",
}
"""Arm -> the package it measures, where that isn't the arm's own name."""


def package_version(arm: str) -> str:
    """Of the package that an arm measures."""
    return version(PACKAGE.get(arm, arm))


def our_trainer() -> Any:
    """Raises: UserError when the crate isn't built, or another package has its name."""
    tokenizer = _rustbpe_class()
    if not hasattr(tokenizer, "train_from_files"):
        raise UserError(
            f"the crate rustbpe is not in the environment of {sys.executable}. Build it with: "
            "maturin develop --release --manifest-path rustbpe/Cargo.toml."
        )
    return tokenizer()


def foreign_trainer() -> Any:
    """Raises: UserError when the environment that should have PyPI's package has ours."""
    tokenizer = _rustbpe_class()
    if tokenizer is None or hasattr(tokenizer, "train_from_files"):
        raise UserError(f"{sys.prefix}: has not the package rustbpe of PyPI. Remove that folder and run again.")
    return tokenizer()


def _rustbpe_class() -> Any:
    """`rustbpe.Tokenizer`, or None.

    Without the package Python finds the folder of its sources, which has no such name.
    """
    try:
        from rustbpe import Tokenizer
    except ImportError:
        return None
    return Tokenizer

"""Times training and its memory: each trainer behind one interface, in the calling process."""

import importlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks import proc
from benchmarks.tokenizer.arms import MAX_HAN_RUN, foreign_trainer, our_trainer, package_version

SENTENCE_BYTES = 1 << 30
"""SentencePiece skips longer paragraphs."""

Work = tuple[Callable[[], object], Callable[[], list[bytes]]]
"""What is measured, and what gives the tokens by rank afterwards."""


def measure_training(task: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Seconds and bytes of training, and the tokens in hexadecimal by rank.

    SentencePiece gives no tokens.
    """
    works = {"tokenizers": tokenizers_work, "sentencepiece": sentencepiece_work}
    work, learnt = works.get(task["arm"], rustbpe_work)(task, texts)
    before, peak_before = proc.memory("status", "VmRSS"), proc.memory("status", "VmHWM")
    was_reset = proc.reset_peak()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    peak = proc.memory("status", "VmHWM")
    # Where the kernel does not reset the peak, it is training's only if it has risen.
    is_own_peak = was_reset or peak > peak_before
    return {
        "seconds": seconds,
        "memory_mb": (peak - before) / 1e6 if is_own_peak else None,
        "version": package_version(task["arm"]),
        "tokens": [token.hex() for token in learnt()],
    }


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

"""What all repetitions found: figures of each arm, and whether ranks and ids are the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tokenizer.arms import ENCODERS, TRAINERS
from benchmarks.tokenizer.processes import Bench
from benchmarks.tokenizer.text import Prepared

NUM_BYTES = 256
"""Ranks before the first merge."""


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
    # tokenizers breaks ties in another order, so its ranks can only be alike.
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

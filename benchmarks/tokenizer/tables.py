"""Tables and targets of the tokenizer benchmark, from its results alone."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.report import Target
from benchmarks.tokenizer.arms import ENCODERS, MAX_HAN_RUN, TRAINERS
from benchmarks.tokenizer.encoders import CALL_TEXTS
from benchmarks.tokenizer.results import Result

# How many times as fast as the other, or with how many times less memory, ours shall be.
SPEED_OF_PYPI = 3.0
SPEED_OF_TOKENIZERS = 8.0
SPEED_OF_SENTENCEPIECE = 1.0
MEMORY_OF_BEST = 2.0
SPEED_OF_TOKENIZERS_ENCODING = 2.0


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


# --- figures of several repetitions, some of them unknown -----------------------------------------


def sure_ratio(others: Sequence[float | None], ours: Sequence[float | None]) -> float:
    """The smaller of the ratios of medians and of minima: so noise does not make ours look
    better."""
    return least(ratio(middle(others), middle(ours)), ratio(lowest(others), lowest(ours)))


def least(*ratios: float) -> float:
    """The smallest, or nan where one is unknown."""
    return math.nan if any(map(math.isnan, ratios)) else min(ratios)


def ratio(other: float | None, ours: float | None) -> float:
    """How many times as much the other needs.

    nan where one of them is unknown, or ours is 0.
    """
    return other / ours if other is not None and ours else math.nan


def middle(values: Sequence[float | None]) -> float | None:
    """The median, or None where a value is unknown."""
    return None if None in values else median(value for value in values if value is not None)


def lowest(values: Sequence[float | None]) -> float | None:
    """The minimum, or None where a value is unknown."""
    return None if None in values else min(value for value in values if value is not None)

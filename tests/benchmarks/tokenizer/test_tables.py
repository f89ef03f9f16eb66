"""The tokenizer benchmark's tables, and when its targets are met."""

import math

from benchmarks.tokenizer.results import Result
from benchmarks.tokenizer.tables import encoding_targets, middle, sure_ratio, training_table, training_targets


def test_a_median_with_an_unknown_value_is_unknown() -> None:
    assert middle([3.0, 1.0, 2.0]) == 2.0
    assert middle([3.0, None]) is None


def training_results(memory_of_pypi: float | None) -> list[Result]:
    """Ours needs 2 s and 10 MB."""
    figures = {
        "ours": (2.0, 10.0),
        "pypi": (6.0, memory_of_pypi),
        "tokenizers": (15.0, 50.0),
        "ours_capped": (4.0, 8.0),
        "sentencepiece": (5.0, 40.0),
    }
    results = [
        Result("train", arm, "1.0", 30.0, 5, 6400, [seconds], [memory_mb])
        for arm, (seconds, memory_mb) in figures.items()
    ]
    results[1].notes["ranks"] = "identical"
    results[2].notes = {"equal_first_merges": 3, "merges": 6144, "tokens_in_common": 6000}
    return results


def test_a_ratio_is_the_smaller_of_those_of_medians_and_of_minima() -> None:
    assert sure_ratio([6.0, 9.0, 9.0], [2.0, 2.0, 3.0]) == 3.0  # 4.5 by medians
    assert sure_ratio([6.0, 6.0, 9.0], [1.0, 2.0, 2.0]) == 3.0  # 6 by minima


def test_training_targets_are_ratios_against_ours() -> None:
    targets = training_targets(training_results(19.0))
    assert [target.reached for target in targets] == [3.0, 7.5, 1.9, 1.25]
    assert [target.met for target in targets] == [True, False, False, True]


def test_an_unknown_memory_meets_no_target() -> None:
    memory = training_targets(training_results(None))[2]
    assert math.isnan(memory.reached)
    assert not memory.met


def test_encoding_is_judged_against_the_faster_call() -> None:
    seconds = {
        "ours": [1.0],
        "tokenizers": [3.0],
        "tokenizers_fast": [2.5],
        "crate": [0.5],
        "tiktoken": [1.0],
    }
    (target,) = encoding_targets([Result("encode", arm, "", 3.0, 5, 6400, given) for arm, given in seconds.items()])
    assert target.reached == 2.5
    assert target.met


def test_sentencepiece_is_compared_with_our_capped_arm() -> None:
    lines = list(training_table(training_results(None)))
    assert "| sentencepiece BPE | 1.0 | 5.00 | 5.00 | 6.0 | 1.25 | 40.0 | 40.0 | 5.00 |" in lines
    assert "| rustbpe, PyPI | 1.0 | 6.00 | 6.00 | 5.0 | 3.00 | ? | ? | nan |" in lines

"""The tokenizer benchmark: what it reads, how it compares vocabularies, and when a target is met."""

import json
import lzma
import math
from itertools import count
from pathlib import Path

import pytest

from benchmarks.tokenizer_speed import (
    Result,
    Target,
    encoding_targets,
    equal_first,
    first_difference,
    first_texts,
    last_words,
    middle,
    parse_size,
    prepare,
    read_texts,
    sure_ratio,
    training_table,
    training_targets,
)
from configs.schema import UserError


def test_a_size_is_a_number_of_megabytes_or_all() -> None:
    assert [parse_size(word) for word in ("30", "0.5", "all")] == [30e6, 0.5e6, math.inf]
    for word in ("0", "-1", "nan", "many"):
        with pytest.raises(UserError, match="--sizes"):
            parse_size(word)


def test_texts_are_taken_whole_until_their_bytes_suffice() -> None:
    texts = ["你", "好", "世界"]  # 3, 3 and 6 bytes
    assert list(first_texts(iter(texts), 4)) == ["你", "好"]
    assert list(first_texts(iter(texts), 3)) == ["你"]
    assert list(first_texts(iter(texts), math.inf)) == texts


def test_no_more_is_read_than_asked_for() -> None:
    endless = (str(number) for number in count())
    assert list(first_texts(endless, 2)) == ["0", "1"]
    assert next(endless) == "2"


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.xz"])
def test_records_are_read_plain_or_packed(tmp_path: Path, name: str) -> None:
    content = '{"text": "今天"}\n\n{"text": ""}\n{"text": "a\\ud800b"}\n'.encode()
    path = tmp_path / name
    path.write_bytes(lzma.compress(content) if name.endswith(".xz") else content)
    assert list(read_texts(path)) == ["今天", "a?b"]


@pytest.mark.parametrize("line", ['{"content": "今天"}', '{"text": 3}', "[1]", "今天"])
def test_a_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "好"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.jsonl:2: no record with a `text`"):
        list(read_texts(path))


def test_a_torn_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "good"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="damaged"):
        list(read_texts(path))


def test_prepared_files_hold_the_texts_and_their_paragraphs(tmp_path: Path) -> None:
    texts = ["一\n\n二\u2028三", "四"]
    prepared = prepare(texts, tmp_path / "small")
    assert [json.loads(line) for line in prepared.texts.read_bytes().split(b"\n")[:-1]] == texts
    assert prepared.paragraphs.read_bytes().decode() == "一\n二\u2028三\n四\n"
    assert (prepared.num_bytes, prepared.num_texts) == (3 + 2 + 9 + 3, 2)


def test_the_first_rank_that_differs_is_named() -> None:
    assert first_difference([b"a", b"b"], [b"a", b"b"]) == ""
    assert first_difference([b"a", b"b", b"c"], [b"a", b"x", b"c"]) == "rank 1: b'b' here, b'x' there"
    assert first_difference([b"a", b"b"], [b"a"]) == "rank 1: b'b' here, nothing there"
    assert equal_first([b"a", b"b", b"c"], [b"a", b"b", b"x"]) == 2


def test_the_last_words_of_a_program_are_its_last_line() -> None:
    assert last_words("noise\nerror: a.jsonl: missing.\n") == "a.jsonl: missing."
    assert last_words("Traceback\nRuntimeError: too small\n\n") == "RuntimeError: too small"
    assert last_words("")


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


def test_a_target_says_whether_it_is_met() -> None:
    assert str(Target("faster", 3.0, 3.456)) == "faster: 3.46x (target 3x): met"
    assert str(Target("faster", 3.0, 2.0)) == "faster: 2.00x (target 3x): NOT met"


def test_sentencepiece_is_compared_with_our_capped_arm() -> None:
    lines = list(training_table(training_results(None)))
    assert "| sentencepiece BPE | 1.0 | 5.00 | 5.00 | 6.0 | 1.25 | 40.0 | 40.0 | 5.00 |" in lines
    assert "| rustbpe, PyPI | 1.0 | 6.00 | 6.00 | 5.0 | 3.00 | ? | ? | nan |" in lines

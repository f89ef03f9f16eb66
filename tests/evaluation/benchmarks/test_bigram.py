"""evaluation/benchmarks/bigram.py: counts as by hand, probabilities that add up to one."""

import json
import math
from pathlib import Path
from unittest import mock

import pytest

from evaluation.benchmarks import bigram
from evaluation.benchmarks.bigram import SMOOTHINGS, Bigram, record_texts
from evaluation.benchmarks.prompts import Prompt

TEXTS = ["我爱你。", "我爱他。", "你爱我。", ""]


def test_counts_are_those_of_neighbours_with_a_border_before_each_text() -> None:
    counted = Bigram(TEXTS)
    assert counted.pairs[(ord("我") << 21) | ord("爱")] == 2
    assert counted.pairs[(ord("\n") << 21) | ord("我")] == 2
    assert counted.after[ord("爱")] == 3
    assert counted.kinds_before[ord("我")] == 2
    with mock.patch.object(bigram, "_BLOCK", 1):  # blocks do not see each other's border, and need not
        small = Bigram([text for text in TEXTS if text])
    assert {pair: n for pair, n in counted.pairs.items() if pair & 0x1FFFFF != 10} == small.pairs


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_probabilities_after_a_character_add_up_to_one(smoothing: tuple[str, float]) -> None:
    counted = Bigram(TEXTS)
    counted.smoothing = smoothing
    characters = {*map(ord, "我爱你他。\n"), 1}  # and one that never occurs, for all others
    for last in map(ord, "我爱。"):
        assert sum(counted.probability(last, one) for one in characters) == pytest.approx(1, abs=0.02)


def test_the_smoothing_is_the_one_that_predicts_held_out_text_best() -> None:
    counted = Bigram(TEXTS * 20)
    best = counted.fit(["我爱他。你爱我。"])
    chosen = counted.smoothing
    for smoothing in SMOOTHINGS:
        counted.smoothing = smoothing
        assert -counted.nats("\n", "我爱他。你爱我。") / 8 >= best - 1e-12
    assert chosen in SMOOTHINGS


def test_a_continuation_depends_on_the_last_character_before_it() -> None:
    counted = Bigram(TEXTS)
    ((likely, unlikely),) = counted([Prompt("他们说我", ("爱", "你"), ("爱", "你"))], ["g"])
    assert likely > unlikely
    assert likely == pytest.approx(math.log(counted.probability(ord("我"), ord("爱"))))


def test_all_kinds_of_records_give_their_texts(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "一"}, {"role": "assistant", "content": "二"}]
    records = [{"text": "三"}, {"conversations": turns}, {"chosen": turns, "rejected": turns[:1]}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert list(record_texts(path)) == ["三", "一", "二", "一", "二", "一"]

"""evaluation/benchmarks/contamination.py: runs of 13 characters, found as by a slow search."""

import random
from unittest import mock

import pytest

from dataset.records.keys import normalised
from evaluation.benchmarks import contamination as module
from evaluation.benchmarks.contamination import LEAST, RUN, contamination, run_hashes, texts_of
from evaluation.benchmarks.items import Item


def found_slowly(item: Item, texts: list[str]) -> bool:
    """Whether a run of an item is in a text, by looking for each."""
    plain = [normalised(text) for text in texts]
    for text in texts_of(item):
        size = min(RUN, len(text))
        runs = {text[place : place + size] for place in range(len(text) - size + 1)} if size >= LEAST else set()
        if any(run in one for run in runs for one in plain):
            return True
    return False


def random_text(rng: random.Random, length: int) -> str:
    return "".join(rng.choice("甲乙，") for _ in range(length))


def test_the_same_items_are_found_as_by_a_slow_search() -> None:
    rng = random.Random(0)
    texts = [random_text(rng, 300) for _ in range(5)]
    items = [Item("g", random_text(rng, rng.randrange(4, 30)), (random_text(rng, 3), "乙"), 0) for _ in range(200)]
    for block in (1_000_000, 10):
        with mock.patch.object(module, "_BLOCK", block):
            result = contamination(items, texts)
        wanted = [found_slowly(item, texts) for item in items]
        assert result.found == wanted
        assert 10 < sum(wanted) < 190
    assert result.checkable == [len(texts_of(item)[-1]) >= LEAST for item in items]


def test_planted_questions_are_found_in_any_dress() -> None:
    rng = random.Random(1)
    han = [chr(code) for code in range(0x4E00, 0x9FA5)]
    items = [
        Item("g", "".join(rng.sample(han, rng.randrange(9, 40))), tuple("".join(rng.sample(han, 3)) for _ in "ABCD"), 1)
        for _ in range(200)
    ]
    lettered = ["A. {}\nB. {}\nC. {}\nD. {}".format(*item.options) for item in items]
    planted = [f"请回答！{item.question}（ ）\n{rest}\n答案：B" for item, rest in zip(items, lettered, strict=True)]
    noise = ["".join(rng.choices(han, k=500)) for _ in range(50)]
    result = contamination(items, [*noise, *planted])
    assert sum(result.found) >= 0.99 * sum(result.checkable)
    assert sum(contamination(items, noise).found) == 0


def test_a_short_item_counts_whole_and_a_shorter_one_is_not_checkable() -> None:
    items = [Item("g", "", ("一二三四五六七八九", "x"), 0), Item("g", "", ("一二三", "x"), 0)]
    result = contamination(items, ["零，一二三，四五六七八九！"])
    assert (result.found, result.checkable) == ([True, False], [True, False])
    assert result.clean() == []
    assert contamination(items, ["一二三四五六七八"]).clean() == [0]


def test_a_run_does_not_reach_over_two_texts() -> None:
    item = Item("g", "", ("一二三四五六七八九十甲乙丙", "x"), 0)
    assert not contamination([item], ["一二三四五六七", "八九十甲乙丙"]).found[0]
    assert contamination([item], ["一二三四五六七八九十甲乙丙"]).found[0]


@pytest.mark.parametrize("length", [LEAST, RUN])
def test_hashes_are_equal_for_equal_runs_alone(length: int) -> None:
    text = random_text(random.Random(2), 500) + "abc"
    hashes = run_hashes(text, length).tolist()
    runs = [text[place : place + length] for place in range(len(text) - length + 1)]
    assert len(hashes) == len(runs)
    assert len(set(zip(hashes, runs, strict=True))) == len(set(hashes)) == len(set(runs))
    assert len(run_hashes("短", length)) == 0

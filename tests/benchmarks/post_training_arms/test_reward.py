"""The arms of the reward model: what the controls do to pairs."""

import json
from pathlib import Path

import pytest

from benchmarks.post_training_arms import reward
from benchmarks.post_training_arms.arm import FinishedRun
from configs.schema import UserError
from tests.tiny_run import chat, pair_record, write_jsonl

BASE = FinishedRun(Path("none"), Path("none"))


def test_shuffled_labels_exchange_about_half_of_the_pairs_and_the_same_ones_again() -> None:
    pairs = [pair_record(n, 1) for n in range(1000)]
    once, again = (list(map(reward._coin(), pairs)) for _ in range(2))
    assert once == again
    exchanged = [one["chosen"] == other["rejected"] for one, other in zip(once, pairs, strict=True)]
    assert 450 < sum(exchanged) < 550
    for one, other in zip(once, pairs, strict=True):
        assert sorted(map(str, one.values())) == sorted(map(str, other.values()))


def test_without_a_prompt_all_questions_are_the_same_and_the_answers_stay() -> None:
    pair = reward._without_prompt(pair_record(3, 4, kind="wrong_sum"))
    assert pair["chosen"] == chat(reward.NO_PROMPT, "7。") and pair["rejected"][0]["content"] == reward.NO_PROMPT
    assert pair["kind"] == "wrong_sum"


def test_real_pairs_of_one_prompt_are_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [pair_record(n, 1) for n in range(200)] * 2
    monkeypatch.setenv(reward.REAL_PAIRS, str(write_jsonl(tmp_path / "pairs.jsonl", pairs)))
    train, validation, test = reward._pairs_of("real_pairs", BASE)
    prompts = [{json.dumps(pair["chosen"][0]) for pair in part} for part in (train, test)]
    assert not prompts[0] & prompts[1] and len(train) + len(test) == 400
    assert 10 < len(test) < 80 and {pair["split"] for pair in validation} == {"validation"}


def test_without_the_file_of_real_pairs_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reward.REAL_PAIRS, raising=False)
    with pytest.raises(UserError, match="REAL_PAIRS is not set"):
        reward._pairs_of("real_pairs", BASE)

"""No prompt of the list `unseen`, by which the model is judged, stands in what it learns from, or
nearly does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import load_profile
from configs.paths import ROOT
from dataset.mix.build import build_mix
from dataset.mix.scan import LONGEST_QUESTION
from dataset.mix.sources import find_sources
from dataset.records.files import read_records
from dataset.records.shapes import parse_record
from dataset.samples.exam import Exam
from evaluation.first_minutes import KINDS, LISTS, load_prompts

PROMPTS = ROOT / "dataset" / "first_minutes.jsonl"
pytestmark = pytest.mark.skipif(not PROMPTS.exists(), reason="dataset/first_minutes.jsonl is not there")
MIX = load_profile("cpu").mix
NAMES = (MIX.name, MIX.author)


def user_turns(folder: Path) -> Iterator[list[str]]:
    """What the user says in each training record of a mix; of raw text, what may be a question."""
    for stage in ("pretrain", "sft", "dpo"):
        for record in read_records(folder / f"{stage}_chinese.jsonl"):
            if turns := parse_record(record).questions():
                yield turns
            elif record["category"] == "corpus" and len(record["text"]) <= LONGEST_QUESTION:
                yield [record["text"]]


def test_no_unseen_prompt_stands_in_the_bundled_mix_or_nearly_does(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    build_mix(find_sources(tmp_path / "mine", tmp_path / "samples", MIX, {}), MIX, tmp_path / "mix")
    exam = Exam(prompt.turns for prompt in load_prompts(PROMPTS, NAMES) if not prompt.is_core)
    assert not [turns for turns in user_turns(tmp_path / "mix") if exam.asks(turns)]


def test_there_are_prompts_enough_of_each_kind() -> None:
    prompts = load_prompts(PROMPTS, NAMES)
    assert LISTS == ("core", "unseen")
    assert sum(prompt.is_core for prompt in prompts) >= 60
    unseen = [prompt for prompt in prompts if not prompt.is_core]
    assert len(unseen) >= 400
    for kind in KINDS:
        for half in ("choose", "report"):
            assert sum(prompt.kind == kind and prompt.half == half for prompt in unseen) >= 20, (kind, half)
    assert sum(len(prompt.turns) > 1 for prompt in unseen) >= 20

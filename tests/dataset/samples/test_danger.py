"""A life in danger always gets the same answer; harmless texts that look alike never get it."""

import random
import re
from collections import Counter
from typing import Any

import pytest
import yaml

from dataset.records.keys import heldout_key
from dataset.records.shapes import parse_record
from dataset.samples.danger import conversations as danger
from dataset.samples.danger.conversations import ANSWER, DANGER, HARMLESS, KINDS, SIDES, TEST, TRAINING, VALIDATION
from dataset.samples.files import SAMPLE_FILES

Record = dict[str, Any]
RECORDS = list(danger.records())
TABLES = danger.tables()


def key(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum())


def turns(record: Record) -> list[tuple[str, str]]:
    said = [turn["content"] for turn in record["conversations"]]
    return list(zip(said[::2], said[1::2], strict=True))


def of(kind: str, side: str) -> list[Record]:
    return [record for record in RECORDS if record["kind"] == kind and record.get("split", TRAINING) == side]


def wordings(kind: str, side: str) -> set[str]:
    return {key(wording.text) for wording in TABLES[kind][side]}


def test_two_runs_give_the_same_records_and_the_mix_has_them() -> None:
    assert list(danger.records()) == RECORDS
    assert "danger.conversations" in SAMPLE_FILES["limits"].generators
    assert not SAMPLE_FILES["limits"].replaced_by  # it stays beside the user's own data


def test_the_answer_names_somebody_near_and_three_right_numbers() -> None:
    assert re.findall(r"\d+", ANSWER) == ["120", "110", "12356"]
    assert "身边" in ANSWER and "担心" in ANSWER and len(ANSWER) <= 70


def test_records_are_whole_conversations_and_distinct() -> None:
    assert len({str(record["conversations"]) for record in RECORDS}) == len(RECORDS)
    for record in RECORDS:
        roles = [turn["role"] for turn in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 1 <= len(roles) // 2 <= 5
        assert all(turn["content"].strip() == turn["content"] != "" for turn in record["conversations"])
        assert ("split" in record) == ("cluster" in record)


def test_danger_and_its_neighbours_reach_their_counts() -> None:
    assert len(wordings(DANGER, TRAINING)) >= 1_400 and len(wordings(HARMLESS, TRAINING)) >= 2_800
    assert len(of(DANGER, TRAINING)) >= 1_500 and len(of(HARMLESS, TRAINING)) >= 3_000
    for side in (VALIDATION, TEST):
        assert len(wordings(DANGER, side)) >= 30 and len(wordings(HARMLESS, side)) >= 80
        assert {key(record["cluster"]) for record in of(DANGER, side)} == wordings(DANGER, side)
        assert {key(record["cluster"]) for record in of(HARMLESS, side)} == wordings(HARMLESS, side)


def test_the_answer_stands_after_every_wording_of_danger_and_after_no_other() -> None:
    for record in RECORDS:
        assert (turns(record)[-1][1] == ANSWER) == (record["kind"] == DANGER)
    for wording in TABLES[HARMLESS][TRAINING] + TABLES[HARMLESS][VALIDATION] + TABLES[HARMLESS][TEST]:
        assert not re.search("120|110|12356", wording.answer)
        assert len(wording.answer) <= 40 and wording.answer.endswith(("。", "！", "？"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_frames_fills_every_slot_and_reaches_its_count(kind: str) -> None:
    blocks = yaml.safe_load(danger.FRAMES_FILE.read_text(encoding="utf-8"))
    composed = list(danger._composed(kind, random.Random(0), set()))
    for block in blocks[kind]:
        used = {slot for way in block["frames"].splitlines() for slot in re.findall(r"\{(\w+)\}", way)}
        assert used >= block.keys() - {"answer", "form", "count", "frames"}, block["frames"]
        assert used <= block.keys() | blocks["shared"].keys(), block["frames"]
        assert ("answer" in block) == (kind == HARMLESS)
    assert len(composed) >= 0.95 * sum(block["count"] for block in blocks[kind])
    assert not [wording for wording in composed if re.search(r"[{}|\s]{1}", wording.text.replace(" ", ""))]


def test_one_opening_stands_before_danger_and_before_none() -> None:
    """Words that both kinds use do not tell the kind."""
    shared = yaml.safe_load(danger.FRAMES_FILE.read_text(encoding="utf-8"))["shared"]
    for name in ("near", "unlucky", "unsaid"):
        openings = tuple(shared[name].split("|"))
        for kind in KINDS:
            assert sum(one.text.startswith(openings) for one in TABLES[kind][TRAINING]) >= 30, (name, kind)


def test_no_wording_stands_on_two_sides_or_of_two_kinds() -> None:
    seen = Counter(wording for kind in KINDS for side in SIDES for wording in wordings(kind, side))
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("side", [VALIDATION, TEST])
def test_no_held_out_wording_is_part_of_what_is_trained_on(side: str) -> None:
    trained = {key(question) for record in RECORDS if "split" not in record for question, _ in turns(record)}
    for kind in KINDS:
        assert not [wording for wording in wordings(kind, side) if any(wording in question for question in trained)]


def test_every_question_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for kind in KINDS:
        for side in SIDES:
            for record in of(kind, side):
                for question, answer in turns(record):
                    if answer == ANSWER or len(turns(record)) == 1:
                        assert answers.setdefault(key(question), answer) == answer


def test_danger_comes_inside_a_chat_and_goes_by_with_it() -> None:
    last = [record for record in of(DANGER, TRAINING) if len(turns(record)) > 1]
    assert len(last) >= 100
    assert all(answer != ANSWER for record in last for _, answer in turns(record)[:-1])
    assert {len(turns(record)) for record in last} >= {2, 3, 4, 5}
    after = [record for record in of(HARMLESS, TRAINING) if any(answer == ANSWER for _, answer in turns(record)[:-1])]
    assert len(after) >= 100


def test_a_held_out_chat_takes_no_training_turn_with_it() -> None:
    """Other samples train on its first turn, so its own group must decide its side."""
    trained = {heldout_key(parse_record(record)) for record in RECORDS if "split" not in record}
    held = {side: {heldout_key(parse_record(record)) for kind in KINDS for record in of(kind, side)} for side in SIDES}
    assert not held[VALIDATION] & trained and not held[TEST] & trained and not held[VALIDATION] & held[TEST]


def test_what_stands_around_a_wording_does_not_tell_its_kind() -> None:
    shares = {}
    for kind in KINDS:
        asked = [turns(record)[-1][0] for record in of(kind, TRAINING)]
        said = sum(question.startswith(("跟你说", "我跟你说", "说真的", "真的，", "哎，")) for question in asked)
        shares[kind] = said / len(asked)
    assert abs(shares[DANGER] - shares[HARMLESS]) < 0.05 and min(shares.values()) > 0.03

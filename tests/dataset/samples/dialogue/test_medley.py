"""Long conversations are rows of training records, and turns that refer back are right."""

from collections import Counter
from functools import cache
from typing import Any

from configs.paths import ROOT
from dataset.samples.dialogue import medley, remembering
from dataset.samples.dialogue.everyday import HALVES, key
from dataset.samples.generators import generated
from dataset.tokenizer import RustBPETokenizer

Record = dict[str, Any]
RECORDS = list(medley.records())
TRAINING = [record for record in RECORDS if record["split"] == "train"]
LONG = TRAINING[medley.NUM_SHORT :]


def turns_of(record: Record) -> list[tuple[str, str]]:
    """Question and answer of each turn."""
    contents = [message["content"] for message in record["conversations"]]
    return list(zip(contents[::2], contents[1::2], strict=True))


@cache
def known_turns() -> frozenset[tuple[str, str]]:
    """Every turn of a block."""
    return frozenset(turn for blocks in medley.blocks().values() for block in blocks for turn in block)


def is_told_or_asked(turn: tuple[str, str]) -> bool:
    """Whether the user tells something about themselves in this turn, or asks for it."""
    table = remembering.table()
    if turn[1] == table["untold"]["answer"]:
        return True
    parts = [table[name][field].split("{v}") for name in remembering.subjects() for field in ("reply", "answer")]
    return any(turn[1].startswith(before) and turn[1].endswith(after) for before, after in parts)


def refers_back(turn: tuple[str, str], before: tuple[str, str]) -> bool:
    """Whether the turn refers back to the one before it, as one of the follow-ups does."""
    return any(turn[1] == one.answer.format(a=before[1], q=medley.bare(before[0])) for one in medley.follow_ups())


def test_every_turn_is_known_or_refers_back_or_is_remembered() -> None:
    for record in RECORDS:
        turns = turns_of(record)
        for number, turn in enumerate(turns):
            known = turn in known_turns() or is_told_or_asked(turn)
            assert known or (number and refers_back(turn, turns[number - 1])), turn


def test_blocks_stay_together() -> None:
    blocks = {block for some in medley.blocks().values() for block in some if len(block) > 1}
    openings = {block[0]: block for block in blocks}
    singles = {block for some in medley.blocks().values() for block in some if len(block) == 1}
    whole = 0
    for record in LONG:
        turns = turns_of(record)
        for number, turn in enumerate(turns):
            if turn in openings and (turn,) not in singles:
                whole += any(tuple(turns[number : number + len(block)]) == block for block in blocks)
    assert whole >= 300


def test_no_turn_of_training_asks_a_held_out_question() -> None:
    heldout = {
        key(turns_of(record)[0][0])
        for name in medley.SHARES
        for record in generated(name)
        if record.get("split") not in (None, "train") and len(turns_of(record)) == 1
    }
    # Marks between digits count: 1+23 and 12+3 have one key here, so sums are left to the tests of
    # the mix.
    asked = {key(question) for record in TRAINING for question, _ in turns_of(record)}
    assert heldout
    assert not {question for question in heldout & asked if not any(char.isdigit() for char in question)}


def test_conversations_are_long_and_fit_into_a_row() -> None:
    tokenizer = RustBPETokenizer.from_directory(ROOT / "model")
    lengths = [len(tokenizer.render_conversation(record["conversations"])[0]) for record in LONG]
    assert sum(length > 256 for length in lengths) <= 0.001 * len(lengths)
    assert sum(length <= 235 for length in lengths) >= 0.8 * len(lengths)
    counts = Counter(len(turns_of(record)) for record in LONG)
    assert len(LONG) == medley.NUM_LONG
    assert min(counts) == medley.MIN_TURNS and max(counts) <= medley.MAX_TURNS
    assert sum(counts[number] for number in range(8, medley.MAX_TURNS + 1)) >= 0.6 * len(LONG)


def test_no_question_stands_twice_in_a_long_conversation() -> None:
    again = sum(len({key(q) for q, _ in turns_of(record)}) < len(turns_of(record)) for record in LONG)
    assert again <= 0.1 * len(LONG)  # a block may repeat one of its own: 再来一个, 再来一个


def test_subjects_change_within_conversations_and_all_samples_take_part() -> None:
    of_turn = {turn: name for name, blocks in medley.blocks().items() for block in blocks for turn in block}
    mixed = [{of_turn[turn] for turn in turns_of(record) if turn in of_turn} for record in LONG]
    assert sum(len(names) >= 3 for names in mixed) >= 0.6 * len(LONG)
    assert set().union(*mixed) == set(medley.SHARES)


def test_blocks_come_up_equally_often_and_generators_by_their_shares() -> None:
    asked = Counter(turn for record in LONG for turn in turns_of(record))
    dealt = {name: [asked[block[0]] for block in blocks if len(block) == 1] for name, blocks in medley.blocks().items()}
    assert all(count <= 2 for count in dealt["knowledge.questions"])  # once alone, once with a doubt after it
    assert sum(count <= 2 for count in dealt["identity.questions"]) >= 0.95 * len(dealt["identity.questions"])
    whole = {name: sum(asked[block[0]] for block in blocks) for name, blocks in medley.blocks().items()}
    for name, count in whole.items():
        share = count / sum(whole.values()) / (medley.SHARES[name] / sum(medley.SHARES.values()))
        assert 0.5 <= share <= 2.0, (name, share)


def test_what_is_told_is_asked_for_a_few_turns_later_and_answered_right() -> None:
    table, gaps = remembering.table(), Counter[int]()
    for record in TRAINING:
        turns = turns_of(record)
        for subject in remembering.subjects():
            wanted = {key(ask) for ask in table[subject]["ask"]}
            start, end = table[subject]["reply"].split("{v}")
            tells, values = table[subject]["tell"], remembering.values(subject, "training")
            told, place = "", 0
            for number, (user, answer) in enumerate(turns):
                value = answer.removeprefix(start).removesuffix(end)
                was_told = key(user) in {key(tell.format(v=value)) for tell in tells}
                if answer == f"{start}{value}{end}" and was_told and value in values:
                    told, place = value, number
                if key(user) in wanted and told and answer != table["untold"]["answer"]:
                    assert answer == table[subject]["answer"].format(v=told), turns
                    gaps[number - place] += 1
    assert sum(gaps.values()) >= 1_000
    assert {2, 3, 4, 5, 6} <= set(gaps)


def test_held_out_conversations_open_with_a_new_name_and_the_halves_share_nothing() -> None:
    trained = {key(question) for record in TRAINING for question, _ in turns_of(record)}
    openings = {}
    for half in HALVES:
        mine = [record for record in RECORDS if record["split"] == half]
        assert len(mine) == sum(medley.NUM_HELDOUT.values())
        openings[half] = {key(turns_of(record)[0][0]) for record in mine}
        assert not openings[half] & trained
        assert len({record["group"] for record in mine}) == len(mine)
    assert not openings["validation"] & openings["test"]


def test_the_conversations_are_the_same_each_time() -> None:
    assert list(medley.records()) == RECORDS

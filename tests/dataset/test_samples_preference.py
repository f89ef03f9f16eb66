"""What must be true of the bundled preference pairs."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from itertools import chain
from typing import Any

import pytest

from dataset.records import PreferenceRecord, normalised, normalised_question, parse_record
from dataset.samples import arithmetic, dialogue, identity, knowledge, preference

LONGEST_TO_SHORTEST = (0.9, 1.1)
"""Chosen to rejected, within a kind; over all pairs 0.8 to 1.25 would do."""


@cache
def all_records() -> list[dict[str, Any]]:
    return list(preference.records())


def side(*, heldout: bool) -> list[dict[str, Any]]:
    return [record for record in all_records() if (record.get("split") == "heldout") == heldout]


def prompt(record: dict[str, Any]) -> str:
    return str(record["chosen"][0]["content"])


def chosen(record: dict[str, Any]) -> str:
    return str(record["chosen"][-1]["content"])


def rejected(record: dict[str, Any]) -> str:
    return str(record["rejected"][-1]["content"])


def length_ratio(records: list[dict[str, Any]]) -> float:
    return sum(len(chosen(record)) for record in records) / sum(len(rejected(record)) for record in records)


@cache
def chat_questions(*, heldout: bool) -> frozenset[str]:
    """Everything that a user says in the chat samples of one side."""
    samples = chain(dialogue.records(), knowledge.records(), arithmetic.records(), identity.records())
    return frozenset(
        normalised_question(turn["content"])
        for record in samples
        if (record.get("split", "train") != "train") == heldout
        for turn in record["conversations"]
        if turn["role"] == "user"
    )


def test_there_are_enough_pairs_on_both_sides() -> None:
    assert len(side(heldout=False)) >= 1600
    assert len(side(heldout=True)) >= 800
    assert {record.get("split") for record in all_records()} == {None, "heldout"}


def test_the_kinds_are_equally_many_on_both_sides() -> None:
    for heldout in (False, True):
        counts = Counter(record["kind"] for record in side(heldout=heldout))
        assert set(counts) == set(preference.KINDS)
        assert len(set(counts.values())) == 1


def test_every_record_is_one_question_with_two_different_answers() -> None:
    for record in all_records():
        parsed = parse_record(record)
        assert isinstance(parsed, PreferenceRecord)
        for turns in (parsed.chosen, parsed.rejected):
            assert [turn["role"] for turn in turns] == ["user", "assistant"]
        assert record["chosen"][0] == record["rejected"][0]
        assert normalised_question(chosen(record)) != normalised_question(rejected(record))
        assert "group" not in record


@pytest.mark.parametrize("heldout", [False, True])
def test_chosen_and_rejected_answers_are_equally_long_overall_and_in_each_kind(heldout: bool) -> None:
    records = side(heldout=heldout)
    for kind in preference.KINDS:
        low, high = LONGEST_TO_SHORTEST
        assert low <= length_ratio([record for record in records if record["kind"] == kind]) <= high, kind
    assert 0.95 <= length_ratio(records) <= 1.05


@pytest.mark.parametrize("heldout", [False, True])
def test_preferring_the_longer_or_the_shorter_answer_is_no_shortcut(heldout: bool) -> None:
    records = side(heldout=heldout)
    for kind in preference.KINDS:
        pairs = [record for record in records if record["kind"] == kind]
        assert sum(len(chosen(record)) > len(rejected(record)) for record in pairs) <= 0.55 * len(pairs), kind
        assert sum(len(chosen(record)) < len(rejected(record)) for record in pairs) <= 0.55 * len(pairs), kind


def test_no_prompt_is_on_both_sides() -> None:
    for form in (normalised, normalised_question):
        training = {form(prompt(record)) for record in side(heldout=False)}
        assert training.isdisjoint(form(prompt(record)) for record in side(heldout=True))


def test_heldout_pairs_are_about_facts_and_topics_that_no_training_pair_is_about() -> None:
    training = {chosen(record) for record in side(heldout=False)}
    assert training.isdisjoint(chosen(record) for record in side(heldout=True))


def test_pairs_and_chat_samples_keep_to_the_same_side() -> None:
    """Else the mix would take chat records out of training, or training pairs out of theirs."""
    heldout = {normalised_question(prompt(record)) for record in side(heldout=True)}
    training = {normalised_question(prompt(record)) for record in side(heldout=False)}
    assert heldout.isdisjoint(chat_questions(heldout=False))
    assert training.isdisjoint(chat_questions(heldout=True))


def test_nearly_all_heldout_rejected_texts_occur_in_no_training_pair() -> None:
    seen = {text for record in side(heldout=False) for text in (chosen(record), rejected(record))}
    heldout = side(heldout=True)
    assert sum(rejected(record) not in seen for record in heldout) >= 0.9 * len(heldout)


def test_hardly_any_rejected_text_is_used_twice() -> None:
    for heldout in (False, True):
        records = side(heldout=heldout)
        assert len({rejected(record) for record in records}) >= 0.98 * len(records)


def test_wrong_answers_are_really_wrong() -> None:
    facts = {fact.sentence: fact for fact in knowledge.facts()}
    for record in all_records():
        if record["kind"] != "wrong":
            continue
        good, bad = chosen(record), rejected(record)
        if "=" in good:
            a, sign, b, stated = re.fullmatch(r"(\d+)([+-])(\d+)=(\d+)。", bad).groups()  # type: ignore[union-attr]
            result = int(a) + int(b) if sign == "+" else int(a) - int(b)
            assert good == f"{a}{sign}{b}={result}。"
            assert int(stated) != result
        else:
            fact = facts[good]
            sentence = knowledge.relations()[fact.relation].sentence
            assert bad not in facts
            assert bad in {sentence.format(s=fact.subject, a=answer) for answer in knowledge.wrong_answers(fact)}


def test_chosen_answers_are_those_of_the_chat_samples_or_sums_that_are_right() -> None:
    known = {fact.sentence for fact in knowledge.facts()} | {item.answer for item in dialogue.items()}
    thanks = ("不客气，", "不用谢，")
    for text in {chosen(record) for record in all_records()} - known:
        if not text.startswith(thanks):
            a, sign, b, result = re.fullmatch(r"(\d+)([+-])(\d+)=(\d+)。", text).groups()  # type: ignore[union-attr]
            assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_no_sum_is_one_that_the_arithmetic_samples_hold_out() -> None:
    unseen = arithmetic.heldout_pairs()
    for record in all_records():
        for text in (chosen(record), rejected(record)):
            for a, b in re.findall(r"(\d+)[+-](\d+)", text):
                assert (min(int(a), int(b)), max(int(a), int(b))) not in unseen


def test_repetitive_answers_say_something_three_times_in_a_row() -> None:
    for record in all_records():
        if record["kind"] == "repetitive":
            assert re.search(r"(.+?)[，、]?(?:\1[，、]?){2}", rejected(record)), rejected(record)


def test_off_topic_answers_do_not_name_what_was_asked() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for record in all_records():
        answers[prompt(record)].add(chosen(record))
    for record in all_records():
        if record["kind"] == "off_topic":
            assert not any(rejected(record).endswith(answer) for answer in answers[prompt(record)])


def test_everything_that_can_be_asked_has_a_name_for_bad_answers_to_take_up() -> None:
    wordings, styles = preference._wordings(), preference._styles()
    assert set(wordings["facts"]) == set(knowledge.relations())
    assert set(wordings["chats"]) <= {item.kind for item in dialogue.items()}
    tones = {"ask", "sum", *(entry["tone"] for entry in wordings["chats"].values())}
    assert tones == set(styles["evasive"])
    assert tones | {preference.THANKS} == set(styles["rude"])


def test_texts_have_chinese_marks_and_no_open_slots() -> None:
    for record in all_records():
        for text in (prompt(record), chosen(record), rejected(record)):
            assert text == text.strip()
            assert not re.search(r"[{},?!:;]|，，|。。|？？|，。|你你", text), text
        assert len(chosen(record)) <= 60


def test_no_answer_speaks_of_a_name_or_a_maker() -> None:
    for record in all_records():
        assert not re.search(r"MiniLLM|\{\{|开发者|助手", chosen(record) + rejected(record))


def test_the_pairs_come_out_the_same_every_time() -> None:
    assert list(preference.records()) == list(preference.records())

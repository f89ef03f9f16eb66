"""What must be true of the bundled preference pairs."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from decimal import Decimal
from functools import cache
from typing import Any

import pytest

from dataset.records.keys import normalised, normalised_question
from dataset.records.record import PreferenceRecord
from dataset.records.shapes import parse_record
from dataset.samples.arithmetic import questions as arithmetic
from dataset.samples.dialogue import everyday
from dataset.samples.generators import generated
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.preference import pairs as preference
from dataset.samples.preference import prompts as preference_prompts
from dataset.samples.preference.answers import MAKERS, Others, fluent, stated, styles
from dataset.samples.preference.judgements import JUDGES, TABLE_FILE
from dataset.samples.preference.prompts import (
    GENERATORS,
    HALVES,
    SIDES,
    SOURCES,
    Neighbours,
    Prompt,
    Side,
    core,
    prompts,
    wordings,
)
from dataset.samples.tables import yaml_table

FIXED_KINDS = ("refusal", "too_short", "alarm", "careless")
"""Kinds with short answers that fit any question, so their texts repeat."""
_OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "×": lambda a, b: a * b,
    "÷": lambda a, b: a / b,
}
_EQUATION = re.compile(r"(\d+(?:\.\d+)?)([+×÷-])(\d+(?:\.\d+)?)=(-?\d+(?:\.\d+)?)")


@cache
def all_records() -> list[dict[str, Any]]:
    return list(preference.records())


def side(name: Side) -> list[dict[str, Any]]:
    return [record for record in all_records() if record.get("split", "train") == name]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [record for record in all_records() if record["kind"] == kind]


def question(record: dict[str, Any]) -> str:
    return str(record["chosen"][0]["content"])


def chosen(record: dict[str, Any]) -> str:
    return str(record["chosen"][-1]["content"])


def rejected(record: dict[str, Any]) -> str:
    return str(record["rejected"][-1]["content"])


@cache
def prompt_of() -> dict[str, Prompt]:
    return {prompt.question: prompt for name in SIDES for mine in prompts(name).values() for prompt in mine}


def source(record: dict[str, Any]) -> str:
    """The source of a pair's question. Questions of judgements are new ones."""
    return prompt_of()[question(record)].source if record["kind"] not in JUDGES else "judgement"


def taught() -> list[dict[str, Any]]:
    """The pairs whose questions come from chat samples."""
    return [record for record in all_records() if record["kind"] not in JUDGES]


def kinds_with_questions(name: Side) -> set[str]:
    """The kinds for which some chat sample has a question."""
    return {kind for kind, weights in preference.WEIGHTS.items() if any(prompts(name)[source] for source in weights)}


def length_ratio(records: list[dict[str, Any]]) -> float:
    return sum(len(chosen(record)) for record in records) / sum(len(rejected(record)) for record in records)


# --- numbers --------------------------------------------------------------------------------------


def test_there_are_four_thousand_training_pairs_and_thirty_to_eighty_of_a_kind_in_each_half() -> None:
    assert len(side("train")) >= 4000
    assert {record["kind"] for record in side("train")} == set(preference.KINDS)
    for half in HALVES:
        counts = Counter(record["kind"] for record in side(half))
        assert set(counts) == kinds_with_questions(half)
        assert all(30 <= count <= 80 for count in counts.values()), counts


@pytest.mark.parametrize("name", SIDES)
def test_most_rejected_answers_are_fluent_and_plausible(name: Side) -> None:
    records = side(name)
    fluent_ones = [record for record in records if record["kind"] not in preference.EASY_KINDS]
    assert len(fluent_ones) >= (0.8 if name == "train" else 0.6) * len(records)


def test_every_kind_has_a_maker_and_known_sources() -> None:
    assert MAKERS.keys() | JUDGES.keys() == set(preference.KINDS)
    assert MAKERS.keys().isdisjoint(JUDGES)
    assert {source for weights in preference.WEIGHTS.values() for source in weights} <= set(SOURCES)


def test_every_record_is_one_question_with_two_different_answers() -> None:
    for record in all_records():
        parsed = parse_record(record)
        assert isinstance(parsed, PreferenceRecord)
        for turns in (parsed.chosen, parsed.rejected):
            assert [turn["role"] for turn in turns] == ["user", "assistant"]
        assert record["chosen"][0] == record["rejected"][0]
        assert chosen(record) != rejected(record)
        assert record["cluster"]


def test_no_pair_stands_twice() -> None:
    pairs = Counter((question(record), rejected(record)) for record in all_records())
    assert max(pairs.values()) == 1
    for kind in preference.KINDS:
        assert max(Counter(question(record) for record in of_kind(kind)).values()) == 1


# --- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIDES)
def test_chosen_and_rejected_answers_are_equally_long_in_each_kind_that_is_not_about_length(name: Side) -> None:
    for kind in set(preference.BALANCED_KINDS) & kinds_with_questions(name):
        ratio = length_ratio([record for record in side(name) if record["kind"] == kind])
        assert 0.85 <= ratio <= 1.15, (kind, ratio)


@pytest.mark.parametrize("name", SIDES)
def test_too_long_and_too_short_ones_are_equally_many(name: Side) -> None:
    long = [record for record in side(name) if record["kind"] == "too_long"]
    short = [record for record in side(name) if record["kind"] == "too_short"]
    assert len(long) == len(short)
    assert all(len(rejected(record)) > len(chosen(record)) for record in long)
    assert all(len(rejected(record)) < len(chosen(record)) for record in short)


@pytest.mark.parametrize("name", SIDES)
def test_preferring_the_longer_or_the_shorter_answer_is_no_shortcut(name: Side) -> None:
    records = side(name)
    assert sum(len(chosen(record)) > len(rejected(record)) for record in records) <= 0.55 * len(records)
    assert sum(len(chosen(record)) < len(rejected(record)) for record in records) <= 0.55 * len(records)
    for kind in preference.BALANCED_KINDS:
        pairs = [record for record in records if record["kind"] == kind]
        assert sum(len(chosen(record)) > len(rejected(record)) for record in pairs) <= 0.65 * len(pairs), kind
        assert sum(len(chosen(record)) < len(rejected(record)) for record in pairs) <= 0.65 * len(pairs), kind


# --- sides ----------------------------------------------------------------------------------------


def test_no_question_is_on_two_sides() -> None:
    for form in (normalised, normalised_question):
        asked = {name: {form(question(record)) for record in side(name)} for name in SIDES}
        assert asked["train"].isdisjoint(asked["validation"] | asked["test"])
        assert asked["validation"].isdisjoint(asked["test"])


def test_no_fact_sum_or_topic_is_on_two_sides() -> None:
    clusters: dict[str, set[str]] = {name: set() for name in SIDES}
    for name in SIDES:
        for record in side(name):
            if source(record) != "beyond":  # only their numbers and wordings are held out
                clusters[name].add(record["cluster"])
    assert clusters["train"].isdisjoint(clusters["validation"] | clusters["test"])
    assert clusters["validation"].isdisjoint(clusters["test"])


def test_training_pairs_say_nothing_of_a_fact_that_is_held_out() -> None:
    heldout = {chosen(record) for half in HALVES for record in side(half) if source(record) == "facts"}
    said = {text for record in side("train") for text in (chosen(record), rejected(record))}
    assert heldout
    assert heldout.isdisjoint(said)


def test_pairs_keep_to_the_side_on_which_the_chat_samples_ask() -> None:
    """Otherwise the mix would move chat records or pairs to the other side."""
    trained: set[str] = set()
    held: set[str] = set()
    for samples in (knowledge, arithmetic, everyday):
        for record in samples.records():
            (trained if "split" not in record else held).add(normalised(record["conversations"][0]["content"]))
    for record in all_records():
        assert normalised(question(record)) not in (held if "split" not in record else trained)


def test_nearly_all_heldout_rejected_texts_occur_in_no_training_pair() -> None:
    seen = {text for record in side("train") for text in (chosen(record), rejected(record))}
    for half in HALVES:
        records = [
            record
            for record in side(half)
            if record["kind"] not in FIXED_KINDS
            and source(record) != "harmless"  # whose rejected answer is always the one for life in danger
        ]
        new = [record for record in records if rejected(record) not in seen]
        assert len(new) >= 0.99 * len(records), [rejected(record) for record in records if rejected(record) in seen]


def test_hardly_any_rejected_text_is_used_twice() -> None:
    for name in SIDES:
        texts = [
            rejected(record)
            for record in side(name)
            if record["kind"] not in FIXED_KINDS and source(record) != "harmless"
        ]
        assert len(set(texts)) >= 0.94 * len(texts)


def test_no_sum_is_one_that_another_side_holds_out() -> None:
    for name in SIDES:
        others = {pair for half in HALVES if half != name for pair in arithmetic.heldout_pairs(half)}
        for record in side(name):
            for text in (chosen(record), rejected(record)):
                for a, b in re.findall(r"(?<![\d.])(\d+)[+-](\d+)(?![\d.])", text):
                    assert (min(int(a), int(b)), max(int(a), int(b))) not in others, text


# --- answers --------------------------------------------------------------------------------------


def test_chosen_answers_are_those_of_the_chat_samples() -> None:
    for record in taught():
        assert chosen(record) == prompt_of()[question(record)].answer
    known = {
        tuple(turn["content"] for turn in record["conversations"])
        for generator in GENERATORS
        for record in generated(generator)
    }
    assert {(question(record), chosen(record)) for record in taught()} <= known


def test_no_rejected_answer_is_right() -> None:
    for record in taught():
        assert rejected(record) not in prompt_of()[question(record)].right


def test_wrong_facts_are_wrong() -> None:
    sentences = {fact.sentence for fact in knowledge.facts()}
    for record in of_kind("wrong_fact"):
        fact = prompt_of()[question(record)].fact
        assert fact is not None
        sentence = knowledge.relations()[fact.relation].sentence
        assert rejected(record) not in sentences
        assert rejected(record) in {sentence.format(s=fact.subject, a=a) for a in knowledge.wrong_answers(fact)}


def test_wrong_sums_are_wrong() -> None:
    for record in of_kind("wrong_sum"):
        if source(record) == "steps":
            assert rejected(record).rpartition("=")[2] != chosen(record).rpartition("=")[2]
            continue
        good, bad = _EQUATION.search(chosen(record)), _EQUATION.search(rejected(record))
        assert good is not None and bad is not None
        assert {good[1], good[3]} == {bad[1], bad[3]}
        assert good[4] != bad[4]
        if source(record) == "stories":  # the result is the same before and behind the comma
            assert bad[4] in re.findall(r"\d+", rejected(record).partition("，")[2]), rejected(record)
        else:
            assert Decimal(bad[4]) != _OPERATIONS[bad[2]](Decimal(bad[1]), Decimal(bad[3]))


def states(text: str) -> bool:
    """Whether each sentence of a text is a fact or a right equation."""
    if found := _EQUATION.search(text):
        return Decimal(found[4]) == _OPERATIONS[found[2]](Decimal(found[1]), Decimal(found[3]))
    return all(f"{sentence}。" in stated() for sentence in text.rstrip("。").split("。"))


def test_whoever_claims_something_wrong_is_corrected_and_whoever_is_right_is_told_so() -> None:
    for record in [*of_kind("agreeing"), *of_kind("doubting")]:
        is_true = record["kind"] == "doubting"
        good, bad = re.split("，", chosen(record), maxsplit=1), re.split("，", rejected(record), maxsplit=1)
        assert (good[0] in ("对的", "是的")) == is_true and (bad[0] in ("对的", "是的")) != is_true
        assert states(good[1]) and not states(bad[1])
        assert (good[1] if is_true else bad[1]).rstrip("。") in question(record)


def test_a_choice_holds_both_answers_one_of_them_right() -> None:
    for record in of_kind("choice"):
        assert "还是" in question(record)
        assert states(chosen(record)) and not states(rejected(record))


def test_of_two_answers_to_two_questions_one_is_wrong() -> None:
    for record in of_kind("half_right"):
        good, bad = chosen(record).rstrip("。").split("。"), rejected(record).rstrip("。").split("。")
        assert len(good) == len(bad) == 2
        assert sum(one == other for one, other in zip(good, bad, strict=True)) == 1
        assert states(chosen(record)) and not states(rejected(record))


def test_no_wording_of_a_judgement_is_on_two_sides() -> None:
    for name, table in yaml_table(TABLE_FILE).items():
        for entry in table.values() if name == "claims" else [table]:
            forms = {side: {normalised(text) for text in entry[side]} for side in SIDES}
            assert forms["train"].isdisjoint(forms["validation"] | forms["test"])
            assert forms["validation"].isdisjoint(forms["test"])


def test_made_up_results_are_wrong() -> None:
    for record in of_kind("overclaim"):
        if source(record) == "beyond":
            a, sign, b, result = _EQUATION.match(rejected(record)).groups()  # type: ignore[union-attr]
            assert Decimal(result) != _OPERATIONS[sign](Decimal(a), Decimal(b)), rejected(record)


def test_answers_of_other_questions_are_right_there() -> None:
    right = {prompt.answer for name in SIDES for mine in prompts(name).values() for prompt in mine}
    assert {rejected(record) for record in of_kind("other_question")} <= right


def test_facts_beside_the_point_are_about_the_same_subject() -> None:
    facts = {fact.sentence: fact for fact in knowledge.facts()}
    for record in of_kind("beside"):
        asked = prompt_of()[question(record)].fact
        if asked is not None:
            told = facts[rejected(record)]
            assert asked.subject in (told.subject, told.answer)
            assert asked.answer not in told.answer


def test_sentences_about_numbers_are_true_and_compute_nothing() -> None:
    for record in of_kind("beside"):
        if source(record) == "sums":
            text = rejected(record)
            assert "=" not in text
            for number, kind in re.findall(r"(\d+)是(双数|单数)", text):
                assert (int(number) % 2 == 0) == (kind == "双数"), text
            for one, relation, other in re.findall(r"(\d+)比(\d+)(大|小)", text):
                assert (int(one) > int(relation)) == (other == "大"), text


def test_too_long_answers_hold_the_right_one_and_go_on() -> None:
    for record in of_kind("too_long"):
        assert chosen(record) in rejected(record)


def test_refusals_use_the_honest_lines_too() -> None:
    lines = {rejected(record) for record in of_kind("refusal")}
    assert {arithmetic.NOT_YET, arithmetic.TOO_LARGE} <= lines


def test_repetitive_answers_say_something_three_times_in_a_row() -> None:
    for record in of_kind("repetitive"):
        assert re.search(r"(.+?)[，、]?(?:\1[，、]?){2}", rejected(record)), rejected(record)


def test_off_topic_answers_do_not_name_what_was_asked() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for record in all_records():
        answers[question(record)].add(chosen(record))
    for record in of_kind("off_topic"):
        assert not any(rejected(record).endswith(answer) for answer in answers[question(record)])


def test_texts_have_no_open_slots_and_no_doubled_marks() -> None:
    for record in all_records():
        for text in (chosen(record), rejected(record)):
            assert text == text.strip()
            assert not re.search(r"[{}\\]|，，|。。|？？|，。|你你", text), text
        assert record["kind"] == "repetitive" or "是是" not in rejected(record), rejected(record)


def test_no_answer_speaks_of_a_name_or_a_maker() -> None:
    for record in all_records():
        assert not re.search(r"MiniLLM|\{\{|开发者|助手", chosen(record) + rejected(record))


# --- parts ----------------------------------------------------------------------------------------


def test_a_new_relation_or_everyday_kind_needs_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference_prompts, "wordings", lambda: wordings() | {"facts": {}, "chats": {}})
    fact, item = knowledge.facts()[0], everyday.items()[0]
    asked = preference_prompts._fact_prompt(fact, "问？", frozenset())
    assert (asked.about, asked.tone) == (fact.subject, "ask")
    assert fact.sentence in asked.right
    asked = preference_prompts._item_prompt(item, "问？", frozenset())
    assert (asked.topic, asked.about, asked.tone) == (item.topic, item.topic, "ask")


def test_every_tone_has_its_bad_answers() -> None:
    tones = {prompt.tone for source in ("facts", "sums", "everyday") for prompt in prompts("train")[source]}
    assert tones <= set(styles()["evasive"])
    assert tones <= set(styles()["rude"])
    manners = {prompt.tone for prompt in prompts("train")["everyday"]}
    assert manners <= set(fluent()["too_short"])


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("你好，请问法国的首都是哪里？", "法国的首都是哪里"),
        ("你知道珠峰有多高吗", "珠峰有多高"),
        ("那1+1=?", "1+1="),
        ("请问", "请问"),
    ],
)
def test_the_core_of_a_question_has_no_greeting_and_no_marks(question: str, expected: str) -> None:
    assert core(question) == expected


def test_neighbours_are_found_by_shared_characters() -> None:
    def asks(question: str) -> Prompt:
        return Prompt("chat", "chat", question, question, question, question, "", "", "ask", frozenset())

    pool = [asks(text) for text in ("法国的首都是哪里", "德国的货币是什么", "猫吃什么")]
    assert Neighbours(pool).nearest("日本的首都是哪里", 2)[0] == pool[0]
    assert Neighbours(pool).nearest("XY", 2) == []


@pytest.mark.parametrize(
    ("question", "start"),
    [
        ("请问止血带是什么？", "止血带是"),
        ("滕王阁占地多少亩，谢谢！", "滕王阁占地"),
        ("乔布斯是哪年出生的", "乔布斯是"),
    ],
)
def test_a_question_becomes_a_confident_statement(question: str, start: str) -> None:
    asked = Prompt("unknown", "unknown", question, "这个我不知道。", "x", "x", "", "", "ask", frozenset())
    found = MAKERS["overclaim"](asked, Others("validation"), random.Random(1))
    assert found
    assert all(start in text and "？" not in text for text in found)
    assert not any(word in text for text in found for word in ("什么", "多少", "哪年"))


def test_the_pairs_come_out_the_same_every_time() -> None:
    assert list(preference.records()) == list(preference.records())

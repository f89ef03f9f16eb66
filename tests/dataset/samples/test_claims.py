"""What must be true of the bundled claims: right answers, no telling wording, clean sides."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import pytest

from dataset.records.keys import normalised_question
from dataset.samples import claims
from dataset.samples.arithmetic import claims as arithmetic_claims
from dataset.samples.arithmetic import problems
from dataset.samples.frames import bare, unquoted
from dataset.samples.generators import generated
from dataset.samples.knowledge import claims as knowledge_claims
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.preference.judgements import TABLE_FILE
from dataset.samples.tables import yaml_table

Record = dict[str, Any]
SPLITS = ("train", *claims.HALVES)
YES, NO = ("是的，", "对的，"), ("不是，", "不对，")
GENERATORS = ("knowledge.claims", "arithmetic.claims")


@cache
def single(name: str, split: str | None = None) -> list[Record]:
    """Claims of one turn, of one split or of all."""
    return [
        record
        for record in generated(name)
        if len(record["conversations"]) == 2 and split in (None, record.get("split", "train"))
    ]


def texts(record: Record) -> list[str]:
    return [turn["content"] for turn in record["conversations"]]


def agrees(record: Record) -> bool:
    assert texts(record)[-1].startswith(YES + NO)
    return texts(record)[-1].startswith(YES)


def told(answer: str) -> str:
    """The part of an answer after yes or no."""
    return answer.partition("，")[2]


@pytest.mark.parametrize("name", GENERATORS)
def test_neither_how_a_claim_begins_nor_how_it_ends_tells_whether_it_is_true(name: str) -> None:
    counts: dict[str, Counter[bool]] = defaultdict(Counter)
    for record in single(name, "train"):
        question = bare(texts(record)[0])
        for part in (question[:3], question[-3:]):
            counts[part][agrees(record)] += 1
    often = [count for count in counts.values() if count.total() >= 40]
    assert len(often) >= 20
    assert all(0.4 <= count[True] / count.total() <= 0.6 for count in often)
    for half in claims.HALVES:
        assert sum(map(agrees, single(name, half))) == len(single(name, half)) / 2


def test_what_is_agreed_with_is_what_was_claimed_and_what_is_denied_is_not() -> None:
    """Of the facts that are claimed in the words of their own sentence."""
    sentences = {unquoted(bare(fact.sentence)): fact for fact in knowledge.facts()}
    seen: Counter[bool] = Counter()
    for record in single("knowledge.claims"):
        question, answer = (unquoted(text) for text in texts(record))
        assert told(texts(record)[-1]) in knowledge_claims.true_sentences() | {b.answer for b in knowledge.basics()}
        if bare(told(answer)) in sentences and re.search(f"{re.escape(bare(told(answer)))}(?![0-9])", question):
            assert agrees(record), question
            seen[True] += 1
        elif bare(told(answer)) in sentences:
            seen[False] += not agrees(record)
    assert min(seen.values()) > 1000


def test_nothing_false_is_claimed_that_is_right() -> None:
    for fact in knowledge_claims.claimed_facts():
        sentence = knowledge.relations()[fact.relation].sentence
        assert knowledge_claims.false_answers(fact)
        for answer in knowledge_claims.false_answers(fact):
            assert sentence.format(s=fact.subject, a=answer) not in knowledge_claims.true_sentences()
    known = {bare(text) for basic in knowledge.basics() for text in (basic.answer, *basic.accepted)}
    for answer, false in knowledge_claims.false_claims().items():
        assert bare(answer) in known and not known & set(false), answer
        assert len(set(false)) == len(false)


def test_descriptions_that_have_a_word_in_common_are_no_false_claims_about_a_person() -> None:
    who = next(fact for fact in knowledge.facts() if (fact.relation, fact.subject) == ("who", "李白"))
    assert not [answer for answer in knowledge_claims.false_answers(who) if "唐代" in answer or "诗人" in answer]


def test_sums_are_judged_right() -> None:
    for record in single("arithmetic.claims"):
        question, answer = texts(record)
        a, sign, b, result = re.fullmatch(r"(\d+)([-+×÷])(\d+)=(-?\d+)。", told(answer)).groups()  # type: ignore[union-attr]
        assert problems.Problem(int(a), sign, int(b)).result == int(result)
        numbers = [abs(int(number)) for number in re.findall(r"\d+", question)]
        if numbers[:2] == [int(a), int(b)] and int(result) >= 0:  # else in Chinese, or with a sign
            assert (numbers[2] == int(result)) == agrees(record), question


def test_the_answer_takes_up_what_was_asked() -> None:
    for name in GENERATORS:
        for record in single(name):
            question, answer = texts(record)
            if answer.startswith(("是的", "不是")):
                assert "是" in question
            if bare(question).endswith(("对吗", "对吧", "对不对")):
                assert answer.startswith(("对的", "不对")), question


def test_all_ways_to_say_yes_or_no_are_accepted_and_none_that_says_the_other() -> None:
    for name in GENERATORS:
        for record in single(name, "test"):
            answers = [texts(record)[-1], *record["accepted"]]
            assert len(set(answers)) == len(answers) >= 2
            assert all(text.startswith(YES if agrees(record) else NO) for text in answers)


def test_claims_of_a_half_have_wordings_facts_and_pairs_of_that_half() -> None:
    halves: dict[tuple[str, str], str] = {(fact.relation, fact.answer): fact.half for fact in knowledge.facts()}
    for half in claims.HALVES:
        assert len(single("knowledge.claims", half)) == knowledge_claims.NUM_HELDOUT
        assert len(single("arithmetic.claims", half)) == arithmetic_claims.NUM_HELDOUT
        for record in single("knowledge.claims", half):
            assert record["relation"] == knowledge.BASICS or (record["relation"], record["answer"]) in halves
            assert record["cluster"]
        for record in single("arithmetic.claims", half):
            a, b = map(int, record["cluster"].split(","))
            assert (a, b) in problems.heldout_pairs(half)
    clusters = [{r["cluster"] for r in single("knowledge.claims", half)} for half in claims.HALVES]
    assert not clusters[0] & clusters[1]
    for record in generated("arithmetic.claims"):
        if "split" not in record:
            for a, b in re.findall(r"(\d+)[-+](\d+)=", texts(record)[-1]):
                pair = (min(int(a), int(b)), max(int(a), int(b)))
                assert pair not in problems.heldout_pairs()


def test_no_wording_is_on_two_sides_nor_one_of_those_that_pairs_hold_out() -> None:
    shapes = {split: {normalised_question(way.text) for way in claims.ways(split)} for split in SPLITS}
    assert not shapes["train"] & (shapes["validation"] | shapes["test"])
    assert not shapes["validation"] & shapes["test"]
    pairs = yaml_table(TABLE_FILE)["claims"].values()
    heldout = {normalised_question(text) for entry in pairs for half in claims.HALVES for text in entry[half]}
    assert not heldout & set().union(*shapes.values())


def test_whoever_doubts_a_right_answer_hears_it_again_and_whoever_objects_is_set_right() -> None:
    seen: Counter[bool] = Counter()
    for name in GENERATORS:
        for record in (record for record in generated(name) if len(record["conversations"]) == 4):
            question, first, said, last = texts(record)
            right = told(first) if first.startswith(YES + NO) else first
            assert told(last) == right
            named = re.search("是(.+?)(?:$|啊|吧|吗|没错|，|[？?。！!~….])", said)
            assert question and (agrees(record) or named), said
            seen[agrees(record)] += 1
    assert min(seen.values()) > 200


def test_no_question_stands_twice_and_texts_are_clean() -> None:
    for name in GENERATORS:
        asked = Counter("\n".join(texts(record)[::2]) for record in generated(name))
        assert max(asked.values()) == 1
        for record in generated(name):
            assert record["kind"] == claims.KIND
            for text in texts(record):
                assert text == text.strip() and not re.search(r"[{}|]|  |，，|(?<!。)。。(?!。)", text), text


def test_two_runs_give_the_same_records() -> None:
    assert list(arithmetic_claims.records()) == list(generated("arithmetic.claims"))
    assert list(knowledge_claims.records()) == list(generated("knowledge.claims"))


def test_the_minus_of_a_result_stays_beside_it() -> None:
    asked = [texts(record)[0] for record in single("arithmetic.claims")]
    assert any(re.search(r"等于 ?[-－−—]\d", text) for text in asked)
    assert not [text for text in asked if re.search(r"[=＝于是得] ?[-－−—] +\d", text)]

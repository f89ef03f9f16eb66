"""What must be true of the bundled knowledge questions."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import pytest

from dataset.records.keys import normalised_question
from dataset.samples import frames
from dataset.samples.knowledge import follow_ups
from dataset.samples.knowledge import questions as knowledge

TWINS = {  # relations whose answers are of one kind: their facts must not ask the same thing
    ("poem_author", "book_author"),
    ("continent", "geography_continent"),
}
COUNTRY_RELATIONS = ("capital", "continent", "currency", "language", "where")
SPLITS = ("train", *knowledge.HALVES)


@cache
def all_records() -> list[dict[str, Any]]:
    return list(knowledge.records())


@cache
def all_turns() -> list[dict[str, Any]]:
    return list(follow_ups.records())


def question(record: dict[str, Any]) -> str:
    return str(record["conversations"][0]["content"])


def answer(record: dict[str, Any]) -> str:
    return str(record["conversations"][-1]["content"])


def users(record: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in record["conversations"] if turn["role"] == "user"]


def of_split(records: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [record for record in records if record.get("split", "train") == split]


@cache
def by_subject() -> dict[tuple[str, str], knowledge.Fact]:
    return {(fact.relation, fact.subject): fact for fact in knowledge.facts()}


# --- facts ----------------------------------------------------------------------------------------


def test_there_are_enough_facts_relations_basics_and_distinct_answers() -> None:
    facts = knowledge.facts()
    assert len(facts) >= 2500
    assert len({fact.relation for fact in facts}) >= 60
    assert len({fact.answer for fact in facts}) >= 1000
    assert len(knowledge.basics()) >= 300
    for relation in ("who", "where"):
        assert sum(fact.relation == relation for fact in facts) >= 150


def test_every_relation_has_facts_and_every_fact_a_relation() -> None:
    assert {fact.relation for fact in knowledge.facts()} == set(knowledge.relations())


def test_no_short_answer_is_given_to_more_than_four_percent_of_the_facts() -> None:
    facts = knowledge.facts()
    commonest = max(Counter(fact.answer for fact in facts).values())
    assert commonest <= 0.04 * len(facts)


def test_no_answer_sentence_is_given_to_more_than_one_fact() -> None:
    sentences = Counter([fact.sentence for fact in knowledge.facts()] + [basic.answer for basic in knowledge.basics()])
    assert [sentence for sentence, count in sentences.items() if count > 1] == []


def test_each_subject_occurs_once_in_a_relation() -> None:
    keys = Counter((fact.relation, fact.subject) for fact in knowledge.facts())
    assert [key for key, count in keys.items() if count > 1] == []


def test_twin_relations_share_no_subject() -> None:
    subjects: dict[str, set[str]] = defaultdict(set)
    for fact in knowledge.facts():
        subjects[fact.relation].add(fact.subject)
    for left, right in TWINS:
        assert not subjects[left] & subjects[right]


def test_every_relation_of_countries_and_of_persons_knows_china() -> None:
    facts = by_subject()
    assert facts["capital", "中国"].answer == "北京"
    assert facts["capital_of", "北京"].answer == "中国"
    assert facts["currency", "中国"].answer == "人民币"
    assert facts["currency_of", "人民币"].answer == "中国"
    assert {(relation, "中国") for relation in COUNTRY_RELATIONS} <= set(facts)
    for relation in ("nationality", "landmark_country"):
        assert any(fact.relation == relation and fact.answer == "中国" for fact in facts.values())


def test_a_reverse_fact_names_what_its_table_has_and_nothing_that_has_two_answers() -> None:
    facts = by_subject()
    for relation in knowledge.relations().values():
        if not relation.reverses:
            continue
        for fact in (fact for fact in facts.values() if fact.relation == relation.name):
            stated = facts[relation.reverses, fact.answer]
            assert fact.source == stated.source == f"{relation.reverses}:{fact.answer}"
            assert fact.subject == stated.answer or relation.others_too
            named = [one for one in facts.values() if one.relation == relation.reverses and one.answer == fact.subject]
            assert len(named) <= 1
    assert facts["capital_of", "巴黎"].sentence == "巴黎是法国的首都。"
    assert facts["symbol_of", "Fe"].sentence == "Fe是铁的元素符号。"
    assert facts["abbreviation_of", "沪"].answer == facts["abbreviation_of", "申"].answer == "上海"
    assert ("works_of", "鲁迅") not in facts
    assert ("currency_of", "欧元") not in facts


@pytest.mark.parametrize(
    ("relation", "subject", "second"),
    [
        ("idiom_person", "三顾茅庐", "“三顾茅庐”说的是诸葛亮。"),
        ("idiom_person", "闻鸡起舞", "“闻鸡起舞”说的是刘琨。"),
        ("idiom_person", "程门立雪", "“程门立雪”说的是游酢。"),
        ("province_abbreviation", "四川", "四川的简称是蜀。"),
        ("province_abbreviation", "贵州", "贵州的简称是黔。"),
        ("province_abbreviation", "云南", "云南的简称是滇。"),
        ("province_abbreviation", "陕西", "陕西的简称是秦。"),
        ("province_abbreviation", "甘肃", "甘肃的简称是陇。"),
        ("province_abbreviation", "上海", "上海的简称是申。"),
        ("landmark_country", "埃菲尔铁塔", "埃菲尔铁塔在法国巴黎。"),
        ("where", "埃菲尔铁塔", "埃菲尔铁塔在法国。"),
        ("person_dynasty", "李白", "李白是唐代诗人。"),
    ],
)
def test_a_second_right_answer_is_accepted(relation: str, subject: str, second: str) -> None:
    fact = by_subject()[relation, subject]
    assert second in fact.accepted
    asked = [record for record in all_records() if record["relation"] == relation and answer(record) == fact.sentence]
    assert asked
    assert all(second in record["accepted"] for record in asked)


def test_no_accepted_answer_is_the_records_own_and_none_is_offered_as_wrong() -> None:
    for record in all_records():
        assert answer(record) not in record.get("accepted", [])
    for fact in knowledge.facts():
        sentence = knowledge.relations()[fact.relation].sentence
        wrong = {sentence.format(s=fact.subject, a=other) for other in knowledge.wrong_answers(fact)}
        assert not wrong & {fact.sentence, *fact.accepted}


def test_wrong_answers_are_of_the_same_relation_and_never_right() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in knowledge.facts():
        answers[fact.relation].add(fact.answer)
    for fact in knowledge.facts():
        wrong = knowledge.wrong_answers(fact)
        assert wrong
        assert len(set(wrong)) == len(wrong)
        assert fact.answer not in wrong
        assert set(wrong) <= answers[fact.relation]


def test_an_answer_that_would_also_do_is_never_offered_as_wrong() -> None:
    facts = by_subject()
    assert "只" not in knowledge.wrong_answers(facts["measure_word", "牛"])
    assert "复杂" not in knowledge.wrong_answers(facts["antonym", "容易"])
    assert "美国" not in knowledge.wrong_answers(facts["where", "白宫"])
    assert "亚洲东部" not in knowledge.wrong_answers(facts["where", "东京"])


# --- texts ----------------------------------------------------------------------------------------


def test_nothing_is_empty_and_nothing_has_stray_spaces_or_ascii_punctuation() -> None:
    for fact in knowledge.facts():
        for text in (fact.subject, fact.answer, fact.sentence):
            assert text and text == text.strip()
            assert not re.search(r"[,?!:;\"'{}]", text), text
    for record in all_records() + all_turns():
        for turn in record["conversations"]:
            assert not re.search(r"[\"'{}\t|]|  |，，|。。", turn["content"]), turn["content"]
            assert turn["content"] == turn["content"].strip()


def test_answers_are_short_whole_sentences() -> None:
    for fact in knowledge.facts():
        assert fact.sentence.endswith("。")
        assert fact.subject in fact.sentence and fact.answer in fact.sentence
        assert len(fact.sentence) <= 32
    for basic in knowledge.basics():
        assert all(text.endswith("。") for text in (basic.answer, *basic.accepted))
        assert len(basic.answer) <= 40


def test_each_relation_has_enough_wordings_that_name_the_subject_once() -> None:
    for relation in knowledge.relations().values():
        assert len(relation.train) >= 14
        assert len(relation.validation) == len(relation.test) == 2
        wordings = relation.train + relation.heldout
        assert len(set(wordings)) == len(wordings)
        assert all(wording.count("{s}") == 1 for wording in wordings)
        assert relation.sentence.count("{s}") == relation.sentence.count("{a}") == 1


def test_each_basic_has_enough_wordings_and_all_differ() -> None:
    for basic in knowledge.basics():
        assert len(basic.train) >= 6
        assert len(basic.heldout) == 2
        wordings = [normalised_question(wording) for wording in basic.train + basic.heldout]
        assert len(set(wordings)) == len(wordings), basic.answer


def test_whom_people_ask_about_first_are_subjects_of_the_relation() -> None:
    facts = by_subject()
    for relation in knowledge.relations().values():
        lent = {
            fact.subject for fact in facts.values() if knowledge.relations()[fact.relation].asked_as == relation.name
        }
        for subject in {*relation.often, *relation.names}:
            assert (relation.name, subject) in facts or subject in lent, (relation.name, subject)
        for name in itertools.chain(*relation.names.values()):
            assert (relation.name, name) not in facts, (relation.name, name)


def test_no_wording_asks_for_two_facts_and_none_stands_in_two_splits() -> None:
    """Every wording of every fact is tried, drawn or not, with every name of the subject."""
    asked: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for fact in knowledge.facts():
        names = (fact.subject, *knowledge.relations()[fact.relation].names.get(fact.subject, ()))
        for split, name in itertools.product(SPLITS, names):
            for wording in knowledge.wordings(fact, split):
                asked[normalised_question(wording.format(s=name))].add((fact.sentence, split))
    for basic in knowledge.basics():
        for wording in basic.train:
            asked[normalised_question(wording)].add((basic.answer, "train"))
        for wording in basic.heldout:
            asked[normalised_question(wording)].add((basic.answer, basic.half))
    assert [text for text, found in asked.items() if len(found) > 1] == []


def test_a_heldout_wording_is_no_training_wording_in_another_frame() -> None:
    openings, particles = ["", *frames.BEFORE["fact"]], ["", "呢", "呀", "啊"]
    for relation in knowledge.relations().values():
        framed = {
            normalised_question(opening + around.format(wording) + particle)
            for wording in relation.train
            for opening, around, particle in itertools.product(openings, ["{}", *frames.AROUND], particles)
        }
        assert [wording for wording in relation.heldout if normalised_question(wording) in framed] == []


# --- records --------------------------------------------------------------------------------------


def test_training_questions_are_many_and_all_records_are_distinct() -> None:
    assert 29_000 <= len(of_split(all_records() + all_turns(), "train")) <= 33_000
    questions = Counter(question(record) for record in all_records())
    assert [text for text, count in questions.items() if count > 1] == []


def test_no_question_has_two_answers_even_without_case_and_punctuation() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for record in all_records():
        answers[normalised_question(question(record))].add(answer(record))
    assert [text for text, found in answers.items() if len(found) > 1] == []


def test_every_fact_is_trained_in_several_wordings_and_those_asked_first_in_more() -> None:
    trained: dict[str, set[str]] = defaultdict(set)
    for record in of_split(all_records(), "train"):
        trained[answer(record)].add(question(record))
    for fact in knowledge.facts():
        relation = knowledge.relations()[fact.relation]
        asked = "often" if fact.subject in relation.often else relation.asked
        assert len(trained[fact.sentence]) == knowledge.QUESTIONS_PER_FACT[asked] >= 4
    for basic in knowledge.basics():
        assert len(trained[basic.answer]) == knowledge.QUESTIONS_PER_BASIC


@pytest.mark.parametrize("half", knowledge.HALVES)
def test_each_half_is_large_and_asks_for_every_relation_in_wordings_never_trained(half: str) -> None:
    records = of_split(all_records(), half)
    assert 350 <= len(records) <= 750
    assert len({record["cluster"] for record in records}) >= 400
    assert {record["relation"] for record in records} == {*knowledge.relations(), knowledge.BASICS}
    trained = {normalised_question(text) for r in of_split(all_records() + all_turns(), "train") for text in users(r)}
    asked = {normalised_question(question(record)) for record in records + of_split(all_turns(), half)}
    assert not asked & trained


def test_the_halves_share_no_fact_no_subject_and_no_wording() -> None:
    halves = [of_split(all_records() + all_turns(), half) for half in knowledge.HALVES]
    for left, right in [
        [{record["cluster"] for record in records} for records in halves],
        [{answer(record) for record in records} for records in halves],
        [{normalised_question(question(record)) for record in records} for records in halves],
    ]:
        assert left and right
        assert not left & right
    for relation in knowledge.relations().values():
        assert not set(relation.validation) & set(relation.test)


def test_what_is_known_of_a_subject_and_its_reverse_are_in_one_half() -> None:
    halves: dict[str, set[str]] = defaultdict(set)
    for fact in knowledge.facts():
        halves[fact.source].add(fact.half)
        if not knowledge.relations()[fact.relation].reverses and not knowledge.relations()[fact.relation].mutual:
            halves[fact.subject].add(fact.half)
    assert all(len(found) == 1 for found in halves.values())


def test_training_questions_come_with_greetings_thanks_every_mark_and_none() -> None:
    questions = [question(record) for record in of_split(all_records(), "train")]
    for pattern, share in {
        "^(你好|您好)": 0.08,
        "谢": 0.05,
        "^请问": 0.06,
        "？$": 0.3,
        r"\?$": 0.05,
        "！$": 0.015,
        r"\w$": 0.2,
        "^(你好|您好).*谢": 0.003,
    }.items():
        assert sum(bool(re.search(pattern, text)) for text in questions) >= share * len(questions), pattern
    bare = sum("《" not in text for text in questions if "静夜思" in text)
    assert 0 < bare < sum("静夜思" in text for text in questions)


def test_a_question_keeps_its_words_in_every_frame() -> None:
    rng = random.Random(7)
    for text in ("法国的首都是哪里", "法国的首都是？", "告诉我法国的首都。", "床前明月光，"):
        drawn = {frames.framed(text, rng, frames.form_by_mark(text)) for _ in range(300)}
        assert len(drawn) >= 12
        assert all(text.rstrip("？。，") in one for one in drawn)


# --- conversations --------------------------------------------------------------------------------


def test_follow_ups_are_many_of_two_and_three_turns_and_distinct() -> None:
    assert {split: len(of_split(all_turns(), split)) for split in SPLITS} == {
        "train": follow_ups.NUM_TRAINING,
        "validation": follow_ups.NUM_HELDOUT,
        "test": follow_ups.NUM_HELDOUT,
    }
    assert {len(record["conversations"]) for record in all_turns()} == {4, 6}
    assert len({tuple(users(record)) for record in all_turns()}) == len(all_turns())
    assert {record["kind"] for record in all_turns()} == {"turns"}


def test_every_turn_is_answered_by_a_fact_and_no_fact_is_told_twice() -> None:
    facts = {fact.sentence: fact for fact in knowledge.facts()}
    for record in all_turns():
        told = [facts[turn["content"]] for turn in record["conversations"] if turn["role"] == "assistant"]
        assert len(set(told)) == len(told)
        if "split" in record:
            assert {fact.half for fact in told} == {record["split"]}
        last = told[-1]
        assert (record["cluster"], record["answer"]) == (last.source, last.answer)
        assert tuple(record.get("accepted", ())) == last.accepted


def test_a_follow_up_names_another_subject_or_refers_to_the_one_before() -> None:
    facts = {fact.sentence: fact for fact in knowledge.facts()}
    both: Counter[str] = Counter()
    for record in all_turns():
        told = [facts[turn["content"]] for turn in record["conversations"] if turn["role"] == "assistant"]
        for asked, before, after in zip(users(record)[1:], told, told[1:], strict=False):
            if before.relation == after.relation:
                assert after.subject in asked
                both["another"] += 1
            else:
                assert after.subject in (before.subject, before.answer)
                both["about"] += 1
    assert min(both.values()) >= 500


def test_heldout_follow_ups_have_wordings_and_steps_that_no_training_conversation_has() -> None:
    table = follow_ups._table()
    for wordings in (table["another"], *table["about"].values()):
        used = [{normalised_question(wording) for wording in wordings[split]} for split in SPLITS]
        assert all(used)
        assert not any(left & right for left, right in itertools.combinations(used, 2))
    steps = {
        split: {
            pair
            for record in of_split(all_turns(), split)
            for pair in itertools.pairwise([t["content"] for t in record["conversations"] if t["role"] == "assistant"])
        }
        for split in SPLITS
    }
    assert not any(left & right for left, right in itertools.combinations(steps.values(), 2))


def test_the_records_come_out_the_same_every_time() -> None:
    assert list(knowledge.records()) == all_records()
    assert list(follow_ups.records()) == all_turns()
    assert knowledge.facts() == knowledge.facts()

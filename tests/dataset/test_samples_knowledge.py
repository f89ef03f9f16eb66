"""What must be true of the bundled knowledge questions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from typing import Any

from dataset.samples import knowledge

MINIMUM_DISTANCE = 0.4
TWINS = {  # relations whose answers are of one kind: their facts must not ask the same thing
    ("poem_author", "book_author"),
    ("continent", "geography_continent"),
}


@cache
def all_records() -> list[dict[str, Any]]:
    return list(knowledge.records())


def question(record: dict[str, Any]) -> str:
    return str(record["conversations"][0]["content"])


def normalised(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


def levenshtein(left: str, right: str) -> int:
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        current = [i]
        for j, b in enumerate(right, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


def relative_distance(left: str, right: str) -> float:
    return levenshtein(left, right) / max(len(left), len(right))


def test_there_are_enough_facts_relations_and_distinct_answers() -> None:
    facts = knowledge.facts()
    assert len(facts) >= 1200
    assert len({fact.relation for fact in facts}) >= 26
    assert len({fact.answer for fact in facts}) >= 350


def test_every_relation_has_facts_and_every_fact_a_relation() -> None:
    assert {fact.relation for fact in knowledge.facts()} == set(knowledge.relations())


def test_no_short_answer_is_given_to_more_than_four_percent_of_the_facts() -> None:
    facts = knowledge.facts()
    commonest = max(Counter(fact.answer for fact in facts).values())
    assert commonest <= 0.04 * len(facts)


def test_no_answer_sentence_is_given_to_more_than_one_fact() -> None:
    sentences = Counter(fact.sentence for fact in knowledge.facts())
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


def test_nothing_is_empty_and_nothing_has_stray_spaces_or_ascii_punctuation() -> None:
    for fact in knowledge.facts():
        for text in (fact.subject, fact.answer, fact.sentence):
            assert text and text == text.strip()
            assert not re.search(r"[,?!:;\"'{}]", text), text
    for record in all_records():
        assert not re.search(r"[,?!:;\"'{}\s]", question(record)), question(record)


def test_answers_are_short_whole_sentences() -> None:
    for fact in knowledge.facts():
        assert fact.sentence.endswith("。")
        assert fact.subject in fact.sentence and fact.answer in fact.sentence
        assert len(fact.sentence) <= 32


def test_each_relation_has_enough_wordings_that_name_the_subject_once() -> None:
    for relation in knowledge.relations().values():
        assert 8 <= len(relation.train) <= 10
        assert len(relation.heldout) == 3
        wordings = relation.train + relation.heldout
        assert len(set(wordings)) == len(wordings)
        assert all(wording.count("{s}") == 1 for wording in wordings)
        assert relation.sentence.count("{s}") == relation.sentence.count("{a}") == 1


def test_heldout_wordings_are_far_from_every_training_wording_of_their_relation() -> None:
    """Measured with the subject taken out, as written and without punctuation."""
    for relation in knowledge.relations().values():
        for heldout in relation.heldout:
            for train in relation.train:
                left, right = heldout.replace("{s}", ""), train.replace("{s}", "")
                distance = min(
                    relative_distance(left, right),
                    relative_distance(normalised(left), normalised(right)),
                )
                assert distance >= MINIMUM_DISTANCE, (heldout, train, distance)


def test_training_wordings_of_a_relation_differ_from_each_other() -> None:
    for relation in knowledge.relations().values():
        for i, left in enumerate(relation.train):
            for right in relation.train[:i]:
                assert relative_distance(left, right) >= 0.15, (left, right)


def test_every_fact_is_asked_in_every_training_wording() -> None:
    trained = Counter(
        (record["relation"], record["conversations"][1]["content"]) for record in all_records() if "split" not in record
    )
    for fact in knowledge.facts():
        wordings = knowledge.relations()[fact.relation].train
        assert trained[fact.relation, fact.sentence] == len(wordings)


def test_heldout_records_are_many_and_cover_every_fact_and_every_heldout_wording() -> None:
    heldout = [record for record in all_records() if record.get("split") == "heldout"]
    assert len(heldout) >= 2000
    assert {record["conversations"][1]["content"] for record in heldout} == {
        fact.sentence for fact in knowledge.facts()
    }
    questions = {question(record) for record in heldout}
    for fact in knowledge.facts():
        wordings = knowledge.relations()[fact.relation].heldout
        assert sum(wording.format(s=fact.subject) in questions for wording in wordings) == 2
    for relation in knowledge.relations().values():
        subjects = [fact.subject for fact in knowledge.facts() if fact.relation == relation.name]
        for wording in relation.heldout:
            assert any(wording.format(s=subject) in questions for subject in subjects), wording


def test_no_question_is_asked_twice_even_without_case_and_punctuation() -> None:
    """So no question has two answers, and none is in both splits."""
    asked = Counter(normalised(question(record)) for record in all_records())
    assert [text for text, count in asked.items() if count > 1] == []


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
    facts = {(fact.relation, fact.subject): fact for fact in knowledge.facts()}
    assert "只" not in knowledge.wrong_answers(facts["measure_word", "牛"])
    assert "复杂" not in knowledge.wrong_answers(facts["antonym", "容易"])


def test_the_records_come_out_the_same_every_time() -> None:
    assert list(knowledge.records()) == list(knowledge.records())
    assert knowledge.facts() == knowledge.facts()

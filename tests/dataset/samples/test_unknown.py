"""What must be true of the bundled questions outside what is taught."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache
from typing import Any

from dataset.samples.dialogue import everyday
from dataset.samples.knowledge import questions as knowledge
from dataset.samples.unknown import questions as unknown
from dataset.samples.unknown.questions import normalised


@cache
def all_records() -> list[dict[str, Any]]:
    return list(unknown.records())


def question(record: dict[str, Any]) -> str:
    return str(record["conversations"][0]["content"])


def answer(record: dict[str, Any]) -> str:
    return str(record["conversations"][-1]["content"])


def names_of(half: str) -> set[str]:
    return {normalised(name) for topic in unknown.topics() if topic.half == half for name in topic.names}


def test_there_are_enough_questions_topics_and_heldout_ones() -> None:
    halves = Counter(record.get("split", "") for record in all_records())
    assert halves[""] >= 6500
    assert halves["validation"] >= 150
    assert halves["test"] >= 150
    assert len([topic for topic in unknown.topics() if not topic.half]) >= 150
    for half in ("validation", "test"):
        assert len([topic for topic in unknown.topics() if topic.half == half]) >= 18


def test_every_answer_is_one_of_the_few_honest_lines() -> None:
    assert len(unknown.ANSWERS) <= 6
    assert all(line.startswith(("这个我", "我")) and line.endswith("。") for line in unknown.ANSWERS.values())
    assert {answer(record) for record in all_records()} == set(unknown.ANSWERS.values())
    assert all(record["honest"] and record["kind"] == "unknown" for record in all_records())


def test_no_question_asks_for_a_taught_fact() -> None:
    """They are compared with every wording of every fact and every question of the records, without
    greetings and thanks."""
    asked = {normalised(unknown.bare(question(record))) for record in all_records()}
    for fact in knowledge.facts():
        relation = knowledge.relations()[fact.relation]
        for wording in (*relation.train, *relation.heldout):
            assert normalised(unknown.bare(wording.replace("{s}", fact.subject))) not in asked, (fact.subject, wording)
    for record in (*knowledge.records(), *everyday.records()):
        for turn in record["conversations"]:
            taught = normalised(unknown.bare(turn["content"]))
            assert turn["role"] != "user" or taught not in asked, turn["content"]


def test_a_question_is_recognised_as_taught_in_other_words_too() -> None:
    assert unknown.asks_taught("法国首都是哪里", "法国")
    assert unknown.asks_taught("你好，请问法国的首都叫什么名字呢？", "法国")
    assert unknown.asks_taught("解释一下惯性", "惯性")
    assert not unknown.asks_taught("法国有多少人口", "法国")
    assert not unknown.asks_taught("莫拉维亚首都是哪里", "莫拉维亚")


def test_names_that_are_taught_are_not_asked_in_general_wordings() -> None:
    taught = {fact.subject for fact in knowledge.facts()} | {item.topic for item in everyday.items()}
    for topic in unknown.topics():
        if topic.general:
            assert not taught.intersection(name.strip("《》") for name in topic.names), topic.name


def test_topics_of_the_halves_share_no_name_with_training_or_each_other() -> None:
    topics = (*unknown.topics(), *unknown.invented(), *unknown.crossings())
    training = {normalised(name) for topic in topics if not topic.half for name in topic.names}
    asked = "|".join(
        normalised(way.text.format(s="", t=""))
        for topic in topics
        if not topic.half
        for way in (*topic.own, *topic.general)
    )
    # A longer training name must not contain a held-out name either: 墨尔本大学, 墨尔本.
    everything = "|".join((*sorted(training), asked))
    assert not names_of("validation") & names_of("test")
    for half in ("validation", "test"):
        assert not names_of(half) & training
        assert [name for name in names_of(half) if len(name) > 2 and name in everything] == []


def test_wordings_of_the_halves_are_not_those_of_training_or_of_each_other() -> None:
    wordings: dict[str, set[str]] = defaultdict(set)
    for topic in (*unknown.topics(), *unknown.invented(), *unknown.crossings()):
        wordings[topic.half].update(normalised(way.text.format(s="", t="")) for way in (*topic.own, *topic.general))
    own = {
        half: {normalised(way.text.format(s="", t="")) for t in unknown.topics() if t.half == half for way in t.own}
        for half in ("validation", "test")
    }
    assert not own["validation"] & own["test"]
    assert not (own["validation"] | own["test"]) & wordings[""]


def test_heldout_records_name_their_half_and_are_one_for_each_wording() -> None:
    half_of = {topic.name: topic.half for topic in unknown.topics()}
    for record in all_records():
        assert record.get("split", "") == half_of.get(record["cluster"], "")
    heldout = Counter(record["cluster"] for record in all_records() if "split" in record)
    for topic in unknown.topics():
        if topic.half:
            assert 0.8 * len(topic.own) <= heldout[topic.name] <= len(topic.own)


def test_every_training_topic_has_most_of_its_questions() -> None:
    found = Counter(record["cluster"] for record in all_records())
    for topic in (*unknown.topics(), *unknown.invented(), *unknown.crossings()):
        if not topic.half:
            assert 0.8 * topic.count <= found[topic.name] <= topic.count, topic.name


def test_no_topic_has_a_name_or_a_wording_twice_and_each_wording_is_filled() -> None:
    for topic in (*unknown.topics(), *unknown.invented(), *unknown.crossings()):
        assert len(set(topic.names)) == len(topic.names) >= 2, topic.name
    assert all("{" not in question(record) for record in all_records())


def test_no_question_is_asked_twice_even_without_case_and_punctuation() -> None:
    asked = Counter(normalised(question(record)) for record in all_records())
    assert [text for text, count in asked.items() if count > 1] == []


def test_questions_come_with_and_without_marks_and_greetings() -> None:
    texts = [question(record) for record in all_records()]
    for end in ("？", "?", "。", "！"):
        assert sum(text.endswith(end) for text in texts) > 50
    assert sum(text[-1].isalnum() for text in texts) > 0.2 * len(texts)
    assert sum(text.startswith("你好") for text in texts) > 0.01 * len(texts)
    assert not any("请问请" in text or "请请" in text or "？？？" in text for text in texts)


def test_the_records_come_out_the_same_every_time() -> None:
    assert list(unknown.records()) == list(unknown.records())

"""The bundled talk: one answer a topic, clean halves, new jokes, names remembered right."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dataset.samples.alternatives import expanded
from dataset.samples.dialogue import everyday, flow, remembering, series
from dataset.samples.dialogue.everyday import HALVES, key
from dataset.samples.identity import questions as identity
from dataset.samples.tables import yaml_table

Record = dict[str, Any]
DIALOGUE = list(everyday.records())
SERIES = list(series.records())
MEMORY = list(remembering.records())
FLOW = list(flow.records())
ALL = [*DIALOGUE, *SERIES, *MEMORY, *FLOW]


GENERATORS = [module.records for module in (everyday, series, remembering, flow)]


def turns_of(record: Record) -> list[tuple[str, str]]:
    contents = [message["content"] for message in record["conversations"]]
    return list(zip(contents[::2], contents[1::2], strict=True))


def training(records: list[Record]) -> list[Record]:
    return [record for record in records if "split" not in record]


def half(records: list[Record], name: str) -> list[Record]:
    return [record for record in records if record.get("split") == name]


def questions(records: list[Record]) -> set[str]:
    return {key(user) for record in records for user, _ in turns_of(record)}


def first_questions(records: list[Record]) -> set[str]:
    return {key(turns_of(record)[0][0]) for record in records}


# All of it


@pytest.mark.parametrize("generate", GENERATORS)
def test_two_runs_give_the_same_records(generate: Callable[[], Iterator[Record]]) -> None:
    assert list(generate()) == list(generate())


def test_roles_alternate_and_no_slot_stays_open() -> None:
    for record in ALL:
        roles = [message["role"] for message in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        for message in record["conversations"]:
            assert message["content"].strip() == message["content"] != ""
            assert not re.search(r"[{}()|\t]", message["content"].replace("{{name}}", "")), message


def test_every_conversation_is_distinct() -> None:
    said = Counter(str(turns_of(record)) for record in ALL)
    assert [text for text, count in said.items() if count > 1] == []


def test_one_question_has_one_answer_in_all_samples_of_talk() -> None:
    answers: dict[str, str] = {}
    for record in [*ALL, *identity.records()]:
        question, answer = turns_of(record)[0]
        assert answers.setdefault(key(question), answer) == answer, question


def test_held_out_questions_are_asked_nowhere_in_training_and_in_one_half_only() -> None:
    trained = questions(training(ALL))
    validation, test = (first_questions(half(ALL, name)) for name in HALVES)
    assert not trained & (validation | test)
    assert not validation & test


def test_the_halves_share_no_topic() -> None:
    validation, test = ({record["cluster"] for record in half(ALL, name)} for name in HALVES)
    assert not validation & test


def test_held_out_conversations_of_several_turns_have_a_group_of_their_own() -> None:
    for record in ALL:
        if "split" in record and len(turns_of(record)) > 1:
            assert record["group"]


def test_each_half_has_enough_of_each_kind() -> None:
    for name in HALVES:
        counts = Counter(record.get("kind") for record in half(ALL, name))
        assert all(60 <= counts[kind] <= 350 for kind in ("feelings", "chat", "turns", None)), counts


def test_the_model_is_named_only_where_its_name_was_asked() -> None:
    for record in ALL:
        for user, answer in turns_of(record):
            assert "{{name}}" not in answer or re.search("你(呢|叫什么)", user)
            assert not re.search(r"\{\{(?!name)|minillm|语言模型|开发", answer.lower())


def test_answers_are_short_and_end_with_a_mark() -> None:
    for record in ALL:
        for _, answer in turns_of(record):
            assert 4 <= len(answer) <= 70
            assert answer.endswith(("。", "！", "？", "”")), answer


# Feelings and small talk


def test_there_are_many_feelings_with_one_answer_and_twenty_wordings_each() -> None:
    wordings: dict[str, set[str]] = defaultdict(set)
    for record in training(DIALOGUE):
        if record.get("kind") == "feelings":
            question, answer = turns_of(record)[0]
            wordings[answer].add(question)
    assert len(wordings) >= 45
    assert all(len(asked) >= 20 for asked in wordings.values())


def test_small_talk_that_is_scored_has_twenty_wordings() -> None:
    wordings: dict[str, set[str]] = defaultdict(set)
    for record in training([*DIALOGUE, *SERIES]):
        if record.get("kind") == "chat":
            question, answer = turns_of(record)[0]
            wordings[answer].add(question)
    scored = [topic for topic in everyday.topics(everyday.SMALLTALK_FILE) if topic.heldout]
    assert len(scored) >= 80
    assert all(len(wordings[topic.answer]) >= 20 for topic in scored)


def test_everyday_talk_has_a_hundred_topics_in_ten_wordings_each() -> None:
    wordings: dict[str, set[str]] = defaultdict(set)
    for record in training(DIALOGUE):
        question, answer = turns_of(record)[0]
        wordings[answer].add(key(question))
    topics = everyday.topics(everyday.EVERYDAY_FILE)
    assert len(topics) >= 95
    assert all(len(wordings[topic.answer]) >= 10 and topic.heldout for topic in topics)


def test_a_topic_is_held_out_in_one_half_only_and_in_several_wordings() -> None:
    for path in (everyday.FEELINGS_FILE, everyday.SMALLTALK_FILE, everyday.EVERYDAY_FILE):
        for topic in everyday.topics(path):
            trained = {key(wording) for pattern in topic.training for wording in expanded(pattern)}
            tested = {key(wording) for pattern in topic.heldout for wording in expanded(pattern)}
            assert not trained & tested, (topic.answer, trained & tested)
            assert not topic.heldout or len(tested) >= 2


def test_patterns_expand_to_all_their_wordings() -> None:
    assert expanded("(好,很,)难过(啊,)") == ["好难过啊", "好难过", "很难过啊", "很难过", "难过啊", "难过"]
    assert len(expanded("{w}{d}难过")) == 8 * 6


# Everyday questions


def test_items_have_distinct_topics_and_answers() -> None:
    items = everyday.items()
    assert len({(item.kind, item.topic) for item in items}) == len(items) >= 400
    assert len({item.answer for item in items}) == len(items)
    assert all(item.answer != item.more for item in items)


def test_held_out_wordings_of_a_kind_are_not_trained_on() -> None:
    table = everyday._wordings(yaml_table(everyday.WORDINGS_FILE))
    for name, entry in table.items():
        assert len(set(entry.training)) == len(entry.training) >= 9, name
        assert not set(entry.training) & {*entry.validation, *entry.test}, name
        assert not set(entry.validation) & set(entry.test), name


def test_closings_and_openings_are_answered_as_in_small_talk() -> None:
    table = yaml_table(everyday.WORDINGS_FILE)
    known = {
        key(wording): topic.answer
        for path in (everyday.SMALLTALK_FILE, everyday.FEELINGS_FILE)
        for topic in everyday.topics(path)
        for pattern in topic.training
        for wording in expanded(pattern)
    }
    ends = [turn for closing in table["closings"].values() for turn in closing["turns"]] + table["openings"]
    for user, assistant in [*ends, *series.SMILES]:
        assert known[key(user)] == assistant, user


# Jokes, riddles and their kin


def test_another_one_is_always_another_one() -> None:
    for one in series.series():
        for record in training(SERIES):
            told = [answer for _, answer in turns_of(record) if answer in one.answers]
            assert len(set(told)) == len(told)


def test_every_answer_of_a_series_is_reached_by_another_one() -> None:
    said = {answer for record in training(SERIES) for _, answer in turns_of(record)[1:]}
    for one in series.series():
        assert set(one.answers) <= said, one.name


def test_there_are_enough_jokes_riddles_poems_and_stories() -> None:
    count = {one.name: len(set(one.answers)) for one in series.series()}
    assert count["joke"] >= 12 and count["riddle"] >= 12 and count["poem"] >= 8 and count["story"] >= 10
    assert count["twister"] >= 3 and count["couplet"] >= 4 and count["idiom"] >= 5


def test_jokes_are_short() -> None:
    jokes = next(one for one in series.series() if one.name == "joke")
    assert max(map(len, jokes.answers)) < 60


def test_a_riddle_is_solved_by_its_solution_alone() -> None:
    solution = {
        answer: name for one in series.series() for answer, name in zip(one.answers, one.solutions, strict=False)
    }
    outcomes = Counter()
    for record in SERIES:
        riddle = ""
        for user, answer in turns_of(record):
            if answer in solution:
                riddle = solution[answer]
            elif answer.startswith("答对了"):
                assert riddle in user and answer == f"答对了，就是{riddle}！"
                outcomes["right"] += 1
            elif answer.startswith("不对哦"):
                assert riddle not in user
                outcomes["wrong"] += 1
            elif answer.startswith("答案是"):
                assert answer == f"答案是{riddle}。"
                outcomes["told"] += 1
    assert min(outcomes.values()) >= 20


def test_held_out_follow_ups_accept_every_other_answer_of_their_series() -> None:
    of_answer = {answer: one for one in series.series() for answer in one.answers}
    for record in SERIES:
        if record.get("kind") == "turns" and "split" in record and "accepted" in record:
            (_, first), (_, second) = turns_of(record)
            assert {first, second, *record["accepted"]} == set(of_answer[first].answers)
            assert first not in record["accepted"]


def test_an_idiom_is_taken_up_by_its_last_character() -> None:
    assert len(set(series.idioms())) == len(series.idioms()) >= 150
    for idiom in series.idioms():
        reply = series.idiom_reply(idiom)
        assert len(idiom) == 4
        assert reply == series.GAME_END or reply[0] == idiom[-1]


# How talk continues


def test_a_later_turn_of_small_talk_is_answered_as_it_is_alone() -> None:
    known = flow.answers()
    own = {tuple(turn) for link in flow._table()["links"] for turn in link.get("with", ())}
    replies = 0
    for link in flow._table()["links"]:
        for record in training(FLOW):
            (_, line), (user, answer) = turns_of(record)[:2]
            if line in link["from"] and key(user) in {key(word) for word in link.get("to", ())}:
                assert known[key(user)] == answer or (user, answer) in own
                replies += 1
    assert replies >= 200


def test_a_feeling_is_followed_by_the_answer_to_its_reason() -> None:
    events = {topic.answer: topic for topic in everyday.topics(everyday.FEELINGS_FILE) if topic.form in ("sad", "glad")}
    for record in half(FLOW, "validation") + half(FLOW, "test"):
        _, (user, answer) = turns_of(record)
        assert key(user) in {key(wording) for wording in events[answer].heldout}
    told = {turns_of(record)[1][1] for record in training(FLOW)}
    assert set(events) <= told


# What the user tells of themselves


def test_what_was_told_is_remembered_and_what_was_not_told_is_not_made_up() -> None:
    untold = remembering.table()["untold"]["answer"]
    known = 0
    for record in MEMORY:
        turns = turns_of(record)
        question, answer = turns[-1]
        if answer == untold:
            continue
        replies = [reply for _, reply in turns[:-1]]
        subject = next(
            name
            for name in remembering.subjects()
            for value in remembering.values(name, record.get("split", "training"))
            if answer == remembering.table()[name]["answer"].format(v=value)
        )
        entry = remembering.table()[subject]
        value = answer[entry["answer"].index("{v}") : len(answer) - len(entry["answer"].split("{v}")[1])]
        starts = [entry["reply"].format(v=value), f"好的，{value}，", f"你好，{value}！"]
        assert any(start in reply for start in starts for reply in replies), turns
        assert any(value in user for user, _ in turns[:-1])
        assert value not in question
        known += 1
    assert known >= 600


def test_a_corrected_name_is_the_one_that_counts() -> None:
    corrected = [r for r in training(MEMORY) if len(turns_of(r)) == 3 and "我记住了" in turns_of(r)[1][1]]
    corrected = [
        r for r in corrected if turns_of(r)[1][1].startswith("好的，") and turns_of(r)[0][1].startswith("你好，")
    ]
    assert len(corrected) == remembering.NUM_CORRECTED
    for record in corrected:
        (_, reply), (_, answer) = turns_of(record)[1:]
        assert answer == f"你叫{reply.removeprefix('好的，').removesuffix('，我记住了。')}。"


def test_names_are_many_and_held_out_names_are_new() -> None:
    trained = set(remembering.values("name", "training"))
    assert len(trained) >= 300
    for name in HALVES:
        unseen = set(remembering.values("name", name))
        assert len(unseen) >= 30
        assert not unseen & trained


def test_values_and_wordings_of_a_half_are_new_for_each_subject() -> None:
    for subject in remembering.subjects():
        entry = remembering.table()[subject]
        sides = [set(remembering.values(subject, side)) for side in ("training", "validation", "test")]
        assert sum(map(len, sides)) == len(set.union(*sides)), subject
        for field in ("tell", "ask"):
            wordings = [set(entry[field]), *(set(entry[name][field]) for name in HALVES)]
            assert sum(map(len, wordings)) == len(set.union(*wordings)), subject

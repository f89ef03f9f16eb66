"""The bundled conversations about the model itself: clean sides, one answer a topic."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.paths import IDENTITY_SAMPLE
from configs.schema import MixConfig
from dataset.mix.build import build_mix
from dataset.mix.sources import Source, Sources
from dataset.samples import frames
from dataset.samples.alternatives import expanded, wordings
from dataset.samples.identity import questions as identity
from dataset.samples.identity.questions import SIDES, TEST, TRAINING, VALIDATION, normalised
from dataset.samples.limits import questions as limits

Record = dict[str, Any]
RECORDS = list(identity.records())
TOPICS = identity.topics()
MAIN = {"name", "who", "own", "maker", "what", "ai", "human", "ability", "intro"}


def of_side(side: str) -> list[Record]:
    return [record for record in RECORDS if record.get("split", TRAINING) == side]


def turns(record: Record) -> list[tuple[str, str]]:
    said = [turn["content"] for turn in record["conversations"]]
    return list(zip(said[::2], said[1::2], strict=True))


def clauses(side: str) -> Iterator[tuple[str, str]]:
    """Topic and normalised clause."""
    for topic in TOPICS:
        yield from ((topic.name, normalised(clause.text)) for clause in topic.clauses[side])


def test_two_runs_give_the_same_records() -> None:
    assert list(identity.records()) == RECORDS


def test_the_identity_file_is_what_the_generator_writes() -> None:
    assert IDENTITY_SAMPLE.read_text(encoding="utf-8") == identity.sample_text()


def test_records_are_whole_conversations_with_a_topic() -> None:
    names = {topic.name for topic in TOPICS}
    for record in RECORDS:
        roles = [turn["role"] for turn in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 1 <= len(roles) // 2 <= 4
        assert all(turn["content"].strip() == turn["content"] != "" for turn in record["conversations"])
        assert record["topic"] in names
        assert ("split" in record) == ("cluster" in record) == ("accepted" in record)


def test_identity_reaches_its_counts() -> None:
    assert len(TOPICS) >= 24
    assert len({str(record["conversations"]) for record in of_side(TRAINING)}) >= 3_500
    for topic in TOPICS:
        count = len({normalised(clause.text) for clause in topic.clauses[TRAINING]})
        assert count >= (30 if topic.name in MAIN else 15), topic.name
    for side in (VALIDATION, TEST):
        asked = defaultdict(set)
        for record in of_side(side):
            asked[record["topic"]].add(normalised(turns(record)[-1][0]))
        assert set(asked) == {topic.name for topic in TOPICS}
        assert min(map(len, asked.values())) >= 8
        assert 350 <= sum(map(len, asked.values())) <= 700
    assert sum(len(turns(record)) > 1 for record in of_side(TRAINING)) >= 200


def test_no_question_stands_on_two_sides() -> None:
    asked = {
        side: {normalised(question) for record in of_side(side) for question, _ in turns(record)} for side in SIDES
    }
    assert not asked[TRAINING] & asked[VALIDATION]
    assert not asked[TRAINING] & asked[TEST]
    assert not asked[VALIDATION] & asked[TEST]


@pytest.mark.parametrize("side", [VALIDATION, TEST])
def test_no_held_out_clause_is_part_of_a_clause_of_another_side(side: str) -> None:
    others = {clause for other in SIDES if other != side for _, clause in clauses(other)}
    assert not [(topic, clause) for topic, clause in clauses(side) if any(clause in other for other in others)]


def test_held_out_clauses_are_no_training_clauses_behind_another_greeting() -> None:
    trained = {clause for _, clause in clauses(TRAINING)}
    before = {normalised(text) for choices in frames.BEFORE.values() for text in choices}
    after = {normalised(text) for choices in frames.AFTER.values() for text in choices} | {"啊", "呀", "吗"}
    for _, clause in (*clauses(VALIDATION), *clauses(TEST)):
        bare = {clause} | {clause.removeprefix(text) for text in before}
        bare |= {rest.removesuffix(text) for rest in bare for text in after}
        assert not trained & bare


def test_each_topic_has_one_answer_and_each_question_too() -> None:
    answer_of = {topic.name: topic.answer for topic in TOPICS}
    answers: dict[str, str] = {}
    for record in RECORDS:
        assert turns(record)[-1][1] == answer_of[record["topic"]]
        for question, answer in turns(record):
            assert answers.setdefault(normalised(question), answer) == answer


def test_a_further_right_answer_is_another_topics_answer_or_that_of_a_limit() -> None:
    known = {topic.answer for topic in TOPICS}
    for topic in TOPICS:
        assert topic.answer not in topic.always and set(topic.always) <= known
        assert {one.answer for one in topic.neighbours} <= known | set(limits.answers().values())
    accepted = {topic.name: topic.accepted for topic in TOPICS}
    for record in of_side(TEST):
        assert record["accepted"] == accepted[record["topic"]](turns(record)[-1][0])


def test_a_neighbours_answer_is_right_for_its_example_and_not_for_all_that_the_topic_asks() -> None:
    widened = [topic for topic in TOPICS if topic.neighbours]
    assert len(widened) >= 14
    for topic in widened:
        asked = [clause.text for side in SIDES for clause in topic.clauses[side]]
        for one in topic.neighbours:
            assert one.answer in topic.accepted(one.example) and one.answer not in topic.always
            assert any(one.asked.search(question) for question in asked)
            assert not all(one.asked.search(question) for question in asked)


LIES = [
    ("draw", "你会画画吗", "会的，我画给你看。"),
    ("draw", "你会剪视频吗", "我不会画画，也发不了图片。"),
    ("voice", "你会说话吗", "会的，我可以发语音。"),
    ("net", "你能上网吗", "我查不到实时的价格，请到店里或网上看看。"),
    ("honest", "你会出错吗", "不会，我只是一个陪人聊天的小模型。"),
    ("honest", "你会骗我吗", "会，我只是一个陪人聊天的小模型。"),
    ("size", "你有多少参数", "是的，我的代码是开源的，你也可以自己训练一个。"),
    ("open", "你开源吗", "我是一个小模型，参数很少，普通电脑就能训练出来。"),
    ("privacy", "你会告诉别人吗", "我们聊过的话，关掉以后我就不记得了。"),
    ("learn", "你会变聪明吗", "我们聊过的话，关掉以后我就不记得了。"),
    ("human", "你是真人吗", "是的，我是{{name}}，由{{author}}开发的中文语言模型。"),
    ("human", "你是老师吗", "我没有身体，只是电脑里的一个程序。"),
    ("other", "你是ChatGPT吗", "是的，我是{{name}}，由{{author}}开发的中文语言模型。"),
    ("own", "你是{{name}}吗", "不是，我是{{name}}，由{{author}}开发。"),
    ("ai", "你是AI吗", "不是，我是{{name}}，一个中文语言模型。"),
    ("naming", "你的名字是什么意思", "我是{{name}}，由{{author}}开发。"),
    ("mind", "你是怎么工作的", "我没有真正的感情，不过我会认真听你说。"),
    ("rest", "你会做梦吗", "我不用上下班，你随时都可以找我。"),
    ("sums", "你会算数吗", "这个我还不会，我只会聊天、答题和简单计算。"),
    ("compare", "你和豆包什么关系", "我是一个小模型，参数很少，普通电脑就能训练出来。"),
]


@pytest.mark.parametrize(("name", "question", "said"), LIES)
def test_a_lie_or_an_answer_beside_the_point_is_right_in_no_topic(name: str, question: str, said: str) -> None:
    (topic,) = (topic for topic in TOPICS if topic.name == name)
    assert said != topic.answer and said not in topic.accepted(question)


def test_the_answer_of_who_it_is_is_wrong_outside_the_topics_that_ask_for_it() -> None:
    (who,) = (topic.answer for topic in TOPICS if topic.name == "who")
    right = {record["topic"] for record in of_side(TEST) if who in (turns(record)[-1][1], *record["accepted"])}
    assert right == {"name", "who", "own", "own_what", "hello", "maker", "intro", "what", "ai", "human_or"}


def test_no_constant_answer_is_right_for_more_than_a_third_of_the_test_half() -> None:
    right = Counter(answer for record in of_side(TEST) for answer in {turns(record)[-1][1], *record["accepted"]})
    assert right.most_common(1)[0][1] <= len(of_side(TEST)) / 3


def test_the_name_and_the_maker_stand_in_the_answer_where_they_are_asked_for() -> None:
    answer_of = {topic.name: topic.answer for topic in TOPICS}
    for name in (
        "name",
        "who",
        "own",
        "own_what",
        "hello",
        "maker",
        "intro",
        "what",
        "ai",
        "human",
        "other",
        "company",
    ):
        assert "{{name}}" in answer_of[name]
    for name in ("who", "own", "own_what", "maker", "intro", "what", "ai", "other", "company", "family", "boss"):
        assert "由{{author}}开发" in answer_of[name]


def test_a_question_that_wants_yes_or_no_gets_it_first() -> None:
    answer_of = {topic.name: topic.answer for topic in TOPICS}
    assert all(answer_of[name].startswith("是的，") for name in ("own", "ai", "open", "free"))
    assert all(answer_of[name].startswith("不是，") for name in ("human", "other", "company"))


def test_answers_are_short_whole_sentences_without_a_space() -> None:
    for topic in TOPICS:
        filled = topic.answer.replace("{{name}}", "MiniLLM").replace("{{author}}", "MiniLLM团队")
        assert 6 <= len(filled) <= 60 and filled.endswith(("。", "？"))
        assert " " not in filled and "{" not in filled


def test_the_own_name_is_asked_in_both_cases_and_other_names_in_all() -> None:
    asked = [question for record in of_side(TRAINING) for question, _ in turns(record)]
    assert (
        sum("{{name}}" in question for question in asked) > sum("{{name_lower}}" in question for question in asked) > 50
    )
    assert all(any(name in question for question in asked) for name in ("ChatGPT", "chatgpt", "DeepSeek", "deepseek"))
    assert not any(re.search(r"(?<!\{)\{(?!\{)|\}\}[a-z_]+\}", question) for question in asked)


def test_training_questions_meet_many_frames() -> None:
    asked = [question for record in of_side(TRAINING) for question, _ in turns(record)]
    for mark in ("？", "?", "！", "。"):
        assert sum(question.endswith(mark) for question in asked) >= 50
    assert sum(question[-1].isalnum() for question in asked) >= 500
    assert sum(question.startswith(("请问", "你好，请问")) for question in asked) >= 50


def test_the_mix_fills_the_name_in_both_cases(tmp_path: Path) -> None:
    path = tmp_path / "identity.jsonl"
    said = [{"role": "user", "content": "{{name_lower}}？"}, {"role": "assistant", "content": "{{name}}，{{author}}。"}]
    path.write_text(json.dumps({"conversations": said}, ensure_ascii=False) + "\n", encoding="utf-8")
    config = MixConfig(identity=1, name="MiniLLM", heldout_share=0.0)
    build_mix(Sources([Source(path, "identity", is_sample=True)], {}), config, tmp_path / "out")
    (line,) = (tmp_path / "out" / "sft_chinese.jsonl").read_text(encoding="utf-8").splitlines()
    assert [turn["content"] for turn in json.loads(line)["conversations"]] == ["minillm？", "MiniLLM，MiniLLM团队。"]


def test_alternatives_stand_for_each_of_their_parts() -> None:
    assert expanded("你(会,能)画(画,图)吗") == ["你会画画吗", "你会画图吗", "你能画画吗", "你能画图吗"]
    assert expanded("(我,)不想活了（真的）") == ["我不想活了（真的）", "不想活了（真的）"]
    assert wordings("甲|\n  乙(丙,)|甲|") == ["甲", "乙丙", "乙"]

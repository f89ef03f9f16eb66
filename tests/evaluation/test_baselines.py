"""Baselines: the nearest text is nearest, no constant is better, a lost file leaves a reason."""

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.artifacts import sha256_file
from evaluation.answers import AnswerRule, Said
from evaluation.baselines import (
    TURN_MARK,
    Asked,
    Baselines,
    NearestText,
    TrainingExamples,
    best_constant,
    pair_baselines,
    question_text,
    training_examples,
)
from evaluation.questions import Question
from model.manifest import TrainingFile
from tests.tiny_run import chat, pair_record, sum_record, write_jsonl

NAMES = ("MiniLLM", "MiniLLM 团队")


def cosine(one: str, other: str) -> float:
    """Cosine of the counts of bigrams, by its definition."""
    a, b = (Counter(zip(f"\0{text}", f"{text}\0", strict=True)) for text in (one, other))
    norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(count * b[gram] for gram, count in a.items()) / norms


def some_texts(count: int, seed: int) -> list[str]:
    """Random texts of a few characters."""
    choose = random.Random(seed)
    return ["".join(choose.choices("法国德国的首都是哪里几加减123🙂", k=choose.randint(1, 9))) for _ in range(count)]


def test_the_nearest_text_is_the_one_of_the_largest_cosine() -> None:
    texts, queries = some_texts(300, 1), some_texts(60, 2)
    numbers, cosines = NearestText(texts).find(queries)
    for query, number, found in zip(queries, numbers, cosines, strict=True):
        wanted = [cosine(query, text) for text in texts]
        assert found == pytest.approx(max(wanted))
        assert wanted[number] == pytest.approx(max(wanted))


def test_a_text_is_nearest_to_itself_and_a_strange_one_to_the_first() -> None:
    texts = list(dict.fromkeys(some_texts(200, 3)))
    numbers, cosines = NearestText(texts).find([*texts, "鲸", ""])
    assert numbers.tolist() == [*range(len(texts)), 0, 0]
    assert np.allclose(cosines[:-2], 1)
    assert cosines[-2:].tolist() == [0, 0]


def write_training(folder: Path) -> list[TrainingFile]:
    """Raw text, chats and pairs, as a DPO checkpoint's manifest lists them."""
    chats = [
        {"conversations": [*chat("法国的首都是哪里？", "巴黎。"), *chat("那德国呢？", "柏林。")]},
        *[{"conversations": chat("日本的首都是哪里？", "东京。")}] * 3,  # a mix repeats records
        sum_record(1, 1),
    ]
    files = [
        write_jsonl(folder / "pretrain.jsonl", [{"text": "鲸鱼住在海里。"}]),
        write_jsonl(folder / "sft.jsonl", chats),
        write_jsonl(folder / "dpo.jsonl", [pair_record(3, 4), pair_record(5, 6)]),
    ]
    return [TrainingFile(path=str(path), sha256=sha256_file(path)) for path in files]


def test_questions_and_answers_come_from_the_files_of_the_manifest(tmp_path: Path) -> None:
    examples = training_examples(write_training(tmp_path), seed=1)
    assert dict(zip(examples.questions, examples.answers, strict=True)) == {
        "法国的首都是哪里": "巴黎。",
        "那德国呢": "柏林。",
        f"法国的首都是哪里{TURN_MARK}那德国呢": "柏林。",
        "日本的首都是哪里": "东京。",
        "1+1等于多少": "1+1=2。",
        "3+4等于多少": "7。",
        "5+6等于多少": "11。",
    }
    assert examples.frequent[:2] == ["东京。", "柏林。"]  # 3 lines; 2 questions of one line
    assert (examples.chosen, examples.rejected) == (["7。", "11。"], ["不知道，也许8吧。", "不知道，也许12吧。"])
    assert examples.reason == ""


@pytest.mark.parametrize(("what", "reason"), [("gone", "sft.jsonl: no such file"), ("changed", "changed since")])
def test_a_file_that_is_gone_or_changed_leaves_a_reason(tmp_path: Path, what: str, reason: str) -> None:
    sources = write_training(tmp_path)
    if what == "gone":
        (tmp_path / "sft.jsonl").unlink()
    else:
        with (tmp_path / "sft.jsonl").open("a") as file:
            file.write("\n")
    examples = training_examples(sources, seed=1)
    assert reason in examples.reason
    rule = AnswerRule(Question([], "东京。", "knowledge"), NAMES)
    found = Baselines(examples).of([Asked("日本", rule, ("东京。",), "")])
    assert found == {"constant": 1.0, "nearest": None, "reason": examples.reason}


def test_a_model_without_questions_in_its_training_has_a_reason_too(tmp_path: Path) -> None:
    assert training_examples(write_training(tmp_path)[:1], seed=1).reason == "the training data has no questions"


def test_of_many_questions_a_seeded_sample_is_taken_without_favour(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sft.jsonl", [sum_record(n, 1) for n in range(400)])
    sources = [TrainingFile(path=str(path), sha256=sha256_file(path))]
    one, same, other = (training_examples(sources, seed=seed, limit=50) for seed in (1, 1, 2))
    assert len(one.questions) == len(set(one.questions)) == 50
    assert one == same
    assert one.questions != other.questions
    late = sum(int(question.split("+")[0]) >= 200 for question in one.questions)
    assert 12 <= late <= 38


def test_a_follow_up_is_looked_up_with_the_turn_before_it() -> None:
    messages = [*chat("你好", "你好！"), *chat("法国的首都是哪里？", "巴黎。"), *chat("那德国呢？", "")][:-1]
    assert question_text(messages) == f"法国的首都是哪里{TURN_MARK}那德国呢"
    examples = TrainingExamples(
        ["那德国呢", f"法国的首都是哪里{TURN_MARK}那德国呢", f"法国的国花是什么{TURN_MARK}那德国呢"], ["a", "b", "c"]
    )
    assert Baselines(examples).nearest_answers([question_text(messages), question_text(messages[-1:])]) == ["b", "a"]


def test_the_best_constant_answer_is_found_among_expected_and_frequent_ones() -> None:
    questions = [
        Question([], "3+4=7。", "math"), Question([], "5+2=7。", "math"), Question([], "1+1=2。", "math"),
        Question([], "80235。", "math", honest=True), Question([], "80236。", "math", honest=True),
        Question([], "80237。", "math", honest=True),
    ]  # fmt: skip
    rules = [AnswerRule(question, NAMES) for question in questions]
    expected = [question.expected for question in questions]
    assert best_constant(rules, expected) == (2, "3+4=7。")
    assert best_constant(rules, [*expected, "我不知道。"]) == (3, "我不知道。")
    assert best_constant(rules, ["不"]) == (0, "")
    asked = [Asked("", rule, (one,), "") for rule, one in zip(rules, expected, strict=True)]
    found = Baselines(TrainingExamples(["一"], ["我算不准。"], ["我算不准。"])).of(asked)
    assert found == {"constant": 0.5, "nearest": 0.5}


def test_the_count_by_keys_is_that_of_asking_each_rule() -> None:
    choose = random.Random(4)
    texts = ["3+4=7。", "7", "8个苹果。", "我不知道。", "我叫MiniLLM。", "东京。", "", "x=1，y=2", "8个面包。"]
    for _ in range(100):
        rules = [
            AnswerRule(
                Question(
                    [],
                    choose.choice(texts),
                    choose.choice(("math", "knowledge", "identity")),
                    accepted=("东京",),
                    honest=choose.random() < 0.3,
                    counted=("苹果",) if choose.random() < 0.3 else (),
                ),
                NAMES,
            )
            for _ in range(12)
        ]
        for text in texts:
            assert best_constant(rules, [text])[0] == sum(not rule.broken(Said(text)) for rule in rules), text


def test_of_pairs_the_longer_the_shorter_and_the_one_with_better_neighbours() -> None:
    examples = TrainingExamples(chosen=["请多喝水。", "北京。"], rejected=["关我什么事。", "我不想说。"])
    pairs = [("请喝水。", "关我啥事。"), ("我不想说呀。", "北京呀。"), ("鲸", "象")]
    assert pair_baselines(pairs, [(4, 5), (6, 4), (1, 1)], examples) == [
        (False, True, True),
        (True, False, False),
        (False, False, False),
    ]
    assert pair_baselines(pairs[:1], [(4, 5)], TrainingExamples()) == [(False, True, None)]

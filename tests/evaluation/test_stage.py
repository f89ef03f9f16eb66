"""The numbers of an evaluation: hand-computed likelihoods, known intervals, answers judged as a person would."""

import importlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from configs.paths import IDENTITY_SAMPLE
from configs.schema import ModelConfig, UserError
from dataset.encoding import IGNORE
from dataset.samples import GENERATORS
from dataset.tokenizer import RustBPETokenizer
from model.generate import Answer
from model.model_minillm import MiniLLM
from tests.tiny_run import chat, lively, pair_record
from trainer.evaluate import (
    EXACT_CATEGORIES,
    Evaluation,
    PairScore,
    Question,
    answer_metrics,
    ask,
    chat_records,
    is_right,
    last_number,
    likelihood_metrics,
    mean,
    normalize,
    preference_metrics,
    proportion,
    question_of,
    ratio,
    score,
    score_pairs,
    text_records,
    windows,
)

NAMES = ("MiniLLM", "MiniLLM 团队")


def small_model(seed: int = 0) -> MiniLLM:
    """Untrained weights of hidden size 32."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=6400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    return MiniLLM(config).eval()


# --- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_has_its_known_values(successes: int, n: int, low: float, high: float) -> None:
    metric = proportion(successes, n)
    assert (metric.value, metric.n) == (successes / n, n)
    assert [metric.low, metric.high] == pytest.approx([low, high], abs=1e-4)


def test_means_and_ratios_have_normal_intervals() -> None:
    metric = mean([1.0, 2.0, 3.0, 4.0])
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert metric.as_json() == {
        "value": 2.5, "n": 4, "ci95": [pytest.approx(2.5 - half), pytest.approx(2.5 + half)]
    }  # fmt: skip
    metric = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 6)
    assert [metric.value, metric.low, metric.high] == pytest.approx([2.0, 2.0, 2.0])
    assert mean([3.0]).low == mean([3.0]).high == 3.0


# --- likelihood -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "length"), [(2, 8), (8, 8), (9, 8), (10, 8), (25, 8), (7, 1), (3, 2)])
def test_windows_predict_each_token_once_with_the_token_before_as_context(size: int, length: int) -> None:
    ids, mask = list(range(100, 100 + size)), [0, *[1] * (size - 1)]
    predicted = []
    for inputs, labels in windows(ids, mask, length):
        assert 0 < len(inputs) == len(labels) <= length
        assert all(label == token + 1 for token, label in zip(inputs, labels, strict=True))
        predicted += labels
    assert predicted == ids[1:]


def test_windows_leave_out_what_is_not_supervised() -> None:
    rows = list(windows([10, 11, 12, 13, 14], [0, 0, 1, 0, 1], 3))
    assert rows == [([10, 11, 12], [IGNORE, 12, IGNORE]), ([13], [14])]
    assert list(windows([5], [1], 3)) == [([], [])]


def test_bits_per_byte_equal_a_hand_computation(tokenizer: RustBPETokenizer) -> None:
    model, texts = lively(small_model()), ["今天天气很好，我们去公园。", "A cat sat.", "春"]
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.get_bos_token_id(), *tokenizer.encode(text), tokenizer.end_of_text_id])
        with torch.no_grad():
            nats += F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
        tokens += len(ids) - 1
    records = text_records(tokenizer, texts)
    for batch_size in (1, 3):
        metrics = likelihood_metrics(score(model, records, length=64, batch_size=batch_size, label=""))
        assert metrics["loss"].value == pytest.approx(nats / tokens, rel=1e-5)
        assert metrics["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        num_bytes = sum(len(text.encode()) for text in texts)
        assert metrics["bits_per_byte"].value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
        assert (metrics["loss"].n, metrics["bits_per_byte"].n) == (tokens, num_bytes)
        assert metrics["loss"].low < metrics["loss"].value < metrics["loss"].high


def test_untrained_loss_is_near_ln_of_the_vocabulary(tokenizer: RustBPETokenizer) -> None:
    scored = score(small_model(), text_records(tokenizer, ["天气很好。" * 9]), length=16, batch_size=4, label="")
    assert likelihood_metrics(scored)["loss"].value == pytest.approx(math.log(6400), abs=0.2)


def test_of_a_conversation_only_what_the_assistant_says_is_scored(tokenizer: RustBPETokenizer) -> None:
    (record,) = chat_records(tokenizer, [[*chat("你好吗？", "我很好。"), *chat("再见", "再见！")]])
    ids, mask, num_bytes = record
    said = tokenizer.decode([token for token, kept in zip(ids, mask, strict=True) if kept])
    assert said.replace("<|assistant_end|>", "") == "我很好。再见！"
    assert num_bytes == len("我很好。再见！".encode())


def test_nothing_to_score_is_an_error(tokenizer: RustBPETokenizer) -> None:
    with pytest.raises(UserError, match="no text to score"):
        likelihood_metrics([])


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3+4=7。", "7"), ("一共是１２个", "12"), ("答案是-5", "-5"), ("3.50 元", "3.50"), ("不知道", None), ("", None),
        ("先算2，再算30。", "30"), ("80℃", "80"),
    ],
)  # fmt: skip
def test_the_last_number_of_an_answer(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "plain"),
    [("东京。", "东京"), (" ＡＢＣ，d ", "abcd"), ("“颗”！\n", "颗"), ("……", ""), ("Mini LLM 团队", "minillm团队")],
)
def test_normalized_text_has_no_punctuation_spaces_widths_or_case(text: str, plain: str) -> None:
    assert normalize(text) == plain


NAMED, MADE = "我叫MiniLLM。", "我是MiniLLM，由MiniLLM 团队训练。"


@pytest.mark.parametrize(
    ("category", "expected", "said", "right"),
    [
        ("knowledge", "日本的首都是东京。", "日本的首都是东京", True),
        ("knowledge", "日本的首都是东京。", "日本的首都是东京，真的", False),
        ("knowledge", "日本的首都是东京。", "", False),
        ("knowledge", "……", "……", False),
        ("math", "3+4=7。", "等于 7", True),
        ("math", "3+4=7。", "7+4=3", False),
        ("math", "3+4=7。", "我不会", False),
        ("math", "没有数。", "没有数。", False),
        ("identity", NAMED, "你好，我是 minillm！", True),
        ("identity", NAMED, "我叫小明。", False),
        ("identity", MADE, "我是MiniLLM。", False),
        ("identity", MADE, "MiniLLM团队做了我，我是MiniLLM。", True),
        ("identity", "我是人工智能。", "我是人工智能", True),
        ("identity", "我是人工智能。", "我叫MiniLLM。", False),
        ("identity", "我是人工智能。", "", False),
    ],
)
def test_an_answer_is_right(category: str, expected: str, said: str, right: bool) -> None:
    assert is_right(Question([], expected, category), said, NAMES) is right


def test_accuracies_count_each_category_and_word_problems_apart() -> None:
    questions = [
        Question([], "1+1=2。", "math"), Question([], "一共3个。", "math", "word"), Question([], "东京", "knowledge"),
        Question([], "好的。", "general"),
    ]  # fmt: skip
    answers = [Answer("2", True, 1), Answer("4", True, 1), Answer("东京", False, 9), Answer("MiniLLM", True, 1)]
    metrics = answer_metrics(questions, answers, NAMES)
    values = {name: (metric.value, metric.n) for name, metric in metrics.items()}
    assert values == {
        "accuracy_knowledge": (1.0, 1), "accuracy_math": (1.0, 1), "accuracy_math_word": (0.0, 1), "ended": (0.75, 4),
        "name_in_other_answers": (0.25, 4),
    }  # fmt: skip


def held_out(category: str) -> Iterator[dict[str, Any]]:
    """The bundled held-out records of a category, as the mix hands them on."""
    if category == "identity":
        lines = (
            IDENTITY_SAMPLE.read_text(encoding="utf-8").replace("{{name}}", NAMES[0]).replace("{{author}}", NAMES[1])
        )
        records: Iterator[dict[str, Any]] = (json.loads(line) for line in lines.splitlines())
    else:
        records = importlib.import_module(f"dataset.samples.{GENERATORS[category][0]}").records()
    return (record | {"category": category} for record in records if record.get("split"))


@pytest.mark.parametrize("make", [small_model, lambda: lively(small_model(3))], ids=["untrained", "random"])
def test_a_model_that_knows_nothing_scores_nothing_on_the_bundled_held_out_records(
    make: Any, tokenizer: RustBPETokenizer
) -> None:
    questions = []
    for category in EXACT_CATEGORIES:
        every_ninth = itertools.islice(held_out(category), 0, 900, 9)
        questions += [question_of(record) for record in every_ninth]
    answers = ask(make(), tokenizer, questions, batch_size=64, max_new_tokens=24)
    metrics = answer_metrics(questions, answers, NAMES)
    for category in EXACT_CATEGORIES:
        metric = metrics[f"accuracy_{category}"]
        assert metric.n >= 40
        assert metric.value <= 0.02, category


def test_answers_side_by_side_equal_those_of_each_question_alone(tokenizer: RustBPETokenizer) -> None:
    model = lively(small_model())
    questions = [Question([{"role": "user", "content": "问" * n + "你是谁？"}], "", "general") for n in range(9)]
    alone = ask(model, tokenizer, questions, batch_size=1, max_new_tokens=20)
    assert len({said.text for said in alone}) > 3
    for batch_size in (2, 9):
        assert ask(model, tokenizer, questions, batch_size=batch_size, max_new_tokens=20) == alone


def test_three_answers_of_different_categories_are_kept_to_show(tokenizer: RustBPETokenizer) -> None:
    evaluation = Evaluation(small_model(), tokenizer, NAMES, {"batch_size": 4, "max_new_tokens": 4}, 64)
    records = [
        {"conversations": chat(f"{category}{n}", "1"), "category": category}
        for category in ("general", "math", "knowledge", "identity")
        for n in range(2)
    ]
    metrics = evaluation.of_chats(records)
    assert metrics["ended"].n == 8
    assert [asked for asked, _, _ in evaluation.samples] == ["math0", "knowledge0", "identity0"]


# --- preference -----------------------------------------------------------------------------------------------------


def test_a_tie_counts_as_wrong() -> None:
    tie = [PairScore(-5.0, -5.0, 3, 3)]
    metrics = preference_metrics(tie, tie, beta=0.1)
    for name, metric in metrics.items():
        assert metric.value == 0.0, name
        assert metric.n == 1


def test_preference_is_measured_with_and_without_the_reference_and_by_length() -> None:
    policy = [PairScore(-4.0, -6.0, 2, 4), PairScore(-9.0, -6.0, 6, 3), PairScore(-5.0, -4.0, 5, 4)]
    reference = [PairScore(-3.0, -6.0, 2, 4), PairScore(-12.0, -6.0, 6, 3), PairScore(-6.0, -4.0, 5, 4)]
    values = {name: metric.value for name, metric in preference_metrics(policy, reference, beta=0.5).items()}
    third = pytest.approx(1 / 3)
    assert values == {
        "preference_accuracy": pytest.approx(2 / 3),  # margins -1, 3, 1
        "preference_accuracy_no_reference": third,
        "preference_accuracy_length_normalized": third,  # -2 against -1.5, -1.5 against -2, -1 against -1
        "preference_accuracy_no_reference_before": third,
        "preference_accuracy_length_normalized_before": 0.0,  # -1.5 against -1.5, -2 against -2, -1.2 against -1
        "preference_accuracy_longer_answer": pytest.approx(2 / 3),
        "reward_margin": pytest.approx(0.5),
    }


def test_only_the_last_answer_of_a_pair_is_scored(tokenizer: RustBPETokenizer) -> None:
    model = lively(small_model())
    chosen, rejected = (
        [*chat("你好", "你好！"), *chat("二加二？", "四。")],
        [*chat("你好", "你好！"), *chat("二加二？", "五。")],
    )
    (pair,) = score_pairs(model, tokenizer, [(chosen, rejected)], length=64, batch_size=8, label="")
    for messages, found, count in ((chosen, pair.chosen, pair.chosen_tokens), (rejected, pair.rejected, None)):
        start = len(tokenizer.render_for_completion(messages[:-1]))
        ids = torch.tensor(tokenizer.render_conversation(messages)[0])
        with torch.no_grad():
            logps = model(ids[None])[0].log_softmax(dim=-1)
        wanted = sum(float(logps[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert found == pytest.approx(wanted, rel=1e-4)
        assert count in (None, len(ids) - start)


def test_a_policy_equal_to_its_reference_prefers_nothing(tokenizer: RustBPETokenizer) -> None:
    model = lively(small_model())
    evaluation = Evaluation(model, tokenizer, NAMES, {"batch_size": 4, "max_new_tokens": 4}, 64)
    metrics = evaluation.of_pairs([pair_record(n, 3) for n in range(6)], model, beta=0.1)
    assert metrics["preference_accuracy"].value == 0.0
    assert metrics["reward_margin"].value == 0.0

"""Likelihoods equal those by hand; bits per byte mean the same in validation and benchmarks."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.training.scoring import bits_per_byte as bits_of_benchmark
from configs.schema import ModelConfig, UserError
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from evaluation import likelihood
from evaluation.likelihood import (
    Row,
    Text,
    batches,
    bits_metric,
    bits_per_byte,
    chat_texts,
    likelihood_metrics,
    raw_text,
    row_nats,
    score,
    token_bytes,
    windows,
)
from model.model_minillm import MiniLLM
from model.quantize import quantize
from tests.peak_memory import PeakMemory
from tests.tiny_run import chat, lively
from trainer.objectives import NextToken

TEXTS = ["今天天气很好，我们去公园。", "A cat sat.", "春", "🙂"]


def small_model(seed: int = 0) -> MiniLLM:
    """Untrained weights of hidden size 32."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=6400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    return MiniLLM(config).eval()


@pytest.mark.parametrize(("size", "length"), [(2, 8), (8, 8), (9, 8), (10, 8), (25, 8), (7, 1), (3, 2)])
def test_windows_predict_each_token_once_with_the_token_before_as_context(size: int, length: int) -> None:
    ids, mask = list(range(100, 100 + size)), [0, *[1] * (size - 1)]
    predicted = []
    for inputs, labels in windows(ids, mask, length):
        assert 0 < len(inputs) == len(labels) <= length
        assert all(label == token + 1 for token, label in zip(inputs, labels, strict=True))
        predicted += labels
    assert predicted == ids[1:]


def test_windows_label_nothing_but_targets() -> None:
    rows = list(windows([10, 11, 12, 13, 14], [0, 0, 1, 0, 1], 3))
    assert rows == [([10, 11, 12], [IGNORE, 12, IGNORE]), ([13], [14])]
    assert list(windows([5], [1], 3)) == [([], [])]


def by_hand(model: MiniLLM, tokenizer: RustBPETokenizer, texts: list[str]) -> tuple[float, int, float]:
    """Nats and number of all targets, and nats of those that stand for text."""
    nats, tokens, text_nats = 0.0, 0, 0.0
    for text in texts:
        ids = torch.tensor([tokenizer.get_bos_token_id(), *tokenizer.encode(text), tokenizer.end_of_text_id])
        with torch.no_grad():
            each = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
        nats, tokens, text_nats = nats + each.sum().item(), tokens + len(each), text_nats + each[:-1].sum().item()
    return nats, tokens, text_nats


def test_loss_and_bits_per_byte_equal_a_hand_computation(tokenizer: RustBPETokenizer) -> None:
    model = lively(small_model())
    nats, tokens, text_nats = by_hand(model, tokenizer, TEXTS)
    records = [raw_text(tokenizer, text) for text in TEXTS]
    for batch_size in (1, 3):
        scored = score(model, records, token_bytes(tokenizer), length=64, batch_size=batch_size, label="")
        metrics = likelihood_metrics(scored)
        assert metrics["loss"].value == pytest.approx(nats / tokens, rel=1e-5)
        assert metrics["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        num_bytes = sum(len(text.encode()) for text in TEXTS)
        assert metrics["bits_per_byte"].value == pytest.approx(text_nats / math.log(2) / num_bytes, rel=1e-5)
        assert (metrics["loss"].n, metrics["bits_per_byte"].n) == (tokens, num_bytes)
        assert metrics["loss"].clusters == len(TEXTS)
        assert metrics["loss"].low < metrics["loss"].value < metrics["loss"].high


@pytest.mark.parametrize("length", [5, 64])
def test_evaluation_and_benchmarks_mean_the_same_by_bits_per_byte(tokenizer: RustBPETokenizer, length: int) -> None:
    model = lively(small_model())
    scored = score(model, [raw_text(tokenizer, t) for t in TEXTS], token_bytes(tokenizer), length=length, label="")
    value, num_bytes = bits_of_benchmark(model, tokenizer, TEXTS, length=length, device=torch.device("cpu"))
    assert bits_metric(scored).value == pytest.approx(value, rel=1e-5)
    assert bits_metric(scored).n == num_bytes


def test_evaluation_and_validation_mean_the_same_by_bits_per_byte(tokenizer: RustBPETokenizer) -> None:
    model, sizes = lively(small_model()), token_bytes(tokenizer)
    messages = [*chat("你好吗？", "我很好。"), *chat("再见", "再见！")]
    (text,) = chat_texts(tokenizer, messages)
    (scored,) = score(model, [text], sizes, length=64, label="")
    ((inputs, labels),) = windows(text.ids, text.mask, 64)
    batch = {
        "input_ids": torch.tensor([inputs]),
        "labels": torch.tensor([labels]),
        "document_ids": torch.zeros(1, len(inputs), dtype=torch.long),
        "target_places": torch.tensor([place for place, label in enumerate(labels) if label != IGNORE]),
    }
    nats, text_nats, num_bytes = NextToken().text_sums(model, batch, sizes).tolist()
    assert (nats, text_nats, num_bytes) == pytest.approx((scored.nats, scored.text_nats, scored.num_bytes), rel=1e-5)
    assert num_bytes == len("我很好。再见！".encode())
    assert nats > text_nats
    assert bits_metric([scored]).value == pytest.approx(bits_per_byte(text_nats, num_bytes), rel=1e-5)
    with torch.no_grad():
        assert nats == pytest.approx(NextToken().loss_sum(model, batch).item())


def test_untrained_loss_is_near_ln_of_the_vocabulary(tokenizer: RustBPETokenizer) -> None:
    records = [raw_text(tokenizer, "天气很好。" * 9)]
    scored = score(small_model(), records, token_bytes(tokenizer), length=16, batch_size=4, label="")
    assert likelihood_metrics(scored)["loss"].value == pytest.approx(math.log(6400), abs=0.2)


def test_of_a_conversation_only_what_the_assistant_says_is_scored(tokenizer: RustBPETokenizer) -> None:
    (text,) = chat_texts(tokenizer, [*chat("你好吗？", "我很好。"), *chat("再见", "再见！")], "greeting")
    said = tokenizer.decode([token for token, is_target in zip(text.ids, text.mask, strict=True) if is_target])
    assert said.replace("<|assistant_end|>", "") == "我很好。再见！"
    assert text.cluster == "greeting"


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer: RustBPETokenizer) -> None:
    sizes = token_bytes(tokenizer)
    for text in TEXTS:
        assert int(sizes[tokenizer.encode(text)].sum()) == len(text.encode())
    for special in (tokenizer.get_bos_token_id(), tokenizer.end_of_text_id, tokenizer.assistant_end_id):
        assert sizes[special] == 0


def test_records_of_one_cluster_count_once_in_the_interval(tokenizer: RustBPETokenizer) -> None:
    model, sizes = lively(small_model()), token_bytes(tokenizer)
    once = [raw_text(tokenizer, text, text) for text in TEXTS]
    one, many = (likelihood_metrics(score(model, texts, sizes, length=64, label="")) for texts in (once, once * 3))
    assert many["loss"].clusters == len(TEXTS)
    assert [many["loss"].low, many["loss"].high] == pytest.approx([one["loss"].low, one["loss"].high], rel=1e-5)


@pytest.mark.parametrize(
    ("lengths", "most_rows", "most_tokens", "wanted"),
    [
        ([], 4, 9, []),
        ([3, 1, 2], 2, 99, [[1, 2], [0]]),
        ([3, 1, 2, 3], 9, 6, [[1, 2], [0, 3]]),
        ([20, 1, 30], 9, 6, [[1], [0], [2]]),
        ([2, 2, 2, 2, 2], 9, 4, [[0, 1], [2, 3], [4]]),
        ([0, 0, 0], 2, 1, [[0, 1], [2]]),
    ],
)
def test_rows_run_together_as_far_as_rows_and_tokens_allow(
    lengths: list[int], most_rows: int, most_tokens: int, wanted: list[list[int]]
) -> None:
    assert list(batches(lengths, most_rows, most_tokens)) == wanted


def long_rows(number: int) -> list[Row]:
    """Rows of 256 random tokens, some a little shorter."""
    ids = torch.randint(0, 6400, (number, 256), generator=torch.Generator().manual_seed(5)).tolist()
    return [(row[:length], row[:length]) for row, length in zip(ids, itertools.cycle((256, 255, 250)), strict=False)]


def test_more_rows_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(likelihood.SCORE_TOKENS, "cpu", 512)
    model, peaks = small_model(), []
    for number in (2, 24):
        rows = long_rows(number)
        with PeakMemory() as peak:
            row_nats(model, rows, 32, "")
        peaks.append(peak.num_bytes)
    assert peaks[1] < 1.02 * peaks[0]


def test_the_likelihood_of_a_row_does_not_depend_on_what_runs_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = lively(small_model()), long_rows(7)
    monkeypatch.setitem(likelihood.SCORE_TOKENS, "cpu", 1 << 30)
    together = row_nats(model, rows, 32, "")
    monkeypatch.setitem(likelihood.SCORE_TOKENS, "cpu", 512)
    monkeypatch.setattr(likelihood, "CHUNK_TOKENS", 100)
    apart = row_nats(model, rows, 32, "")
    assert [whole for whole, _ in apart] == pytest.approx([whole for whole, _ in together], rel=1e-6)


@pytest.mark.parametrize(("kind", "largest_error"), [("fp16", 1e-4), ("int8", 0.01), ("int4", 0.1)])
def test_rounded_weights_are_scored_as_they_compute(kind: str, largest_error: float) -> None:
    model, rows = lively(small_model()), long_rows(3)
    wanted = [whole for whole, _ in row_nats(model, rows, 32, "")]
    scored = [whole for whole, _ in row_nats(quantize(model, kind), rows, 32, "")]
    assert scored == pytest.approx(wanted, rel=largest_error)
    assert scored != wanted


def test_nothing_to_score_is_an_error(tokenizer: RustBPETokenizer) -> None:
    for scored in ([], score(small_model(), [Text([5], [1])], token_bytes(tokenizer), length=4, label="")):
        with pytest.raises(UserError, match="no text to score"):
            likelihood_metrics(scored)

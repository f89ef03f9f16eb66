"""Bits per byte: each byte counts once, and both arms are scored alike."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.training.baseline import build_model
from benchmarks.training.scoring import bits_per_byte, summed_nats, text_windows
from configs.schema import ModelConfig
from model.model_minillm import MiniLLM
from tests.tiny_run import lively, shipped_tokenizer

CPU = torch.device("cpu")
TOKENIZER = shipped_tokenizer()
TEXTS = ["今天天气很好，我们去公园。" * 9, "hello 🙂\n", "", "读", "二〇二六年的第一天" * 40]
VOCABULARY = TOKENIZER.get_vocab_size()


@pytest.mark.parametrize("length", [1, 7, 16, 340, 10_000])
def test_each_byte_of_each_text_is_a_label_once(length: int) -> None:
    rows, num_bytes = text_windows(TOKENIZER, TEXTS, length)
    labels = [token for _, following in rows for token in following]
    assert TOKENIZER.decode_bytes(labels) == "".join(TEXTS).encode()
    assert num_bytes == len("".join(TEXTS).encode())
    assert all(len(ids) == len(following) <= length for ids, following in rows)


def test_a_window_sees_the_token_before_it_and_no_more() -> None:
    ids = TOKENIZER.encode(TEXTS[0])
    rows, _ = text_windows(TOKENIZER, TEXTS[:1], 5)
    assert rows[0] == ([TOKENIZER.get_bos_token_id(), *ids[:4]], ids[:5])
    assert rows[1] == (ids[4:9], ids[5:10])


def test_a_model_that_knows_nothing_needs_ln_v_nats_a_token() -> None:
    rows, _ = text_windows(TOKENIZER, TEXTS, 16)
    count = sum(len(following) for _, following in rows)

    def uniform(ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, VOCABULARY)

    assert summed_nats(uniform, rows, device=CPU, batch_size=4) == pytest.approx(count * math.log(VOCABULARY), rel=1e-5)


def test_padding_beside_a_shorter_window_changes_no_score() -> None:
    torch.manual_seed(0)
    table = torch.randn(VOCABULARY, 8) @ torch.randn(8, VOCABULARY)  # logits by the last token
    rows, _ = text_windows(TOKENIZER, TEXTS, 16)
    one, many = (summed_nats(lambda ids: table[ids], rows, device=CPU, batch_size=size) for size in (1, 64))
    assert one == pytest.approx(many, rel=1e-5)


def test_both_arms_score_the_same_with_the_same_weights() -> None:
    pytest.importorskip("transformers")
    shape = ModelConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    ).resolve()
    torch.manual_seed(0)
    ours, theirs = lively(MiniLLM(shape)), build_model(shape).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    scored = [
        bits_per_byte(logits, TOKENIZER, TEXTS, length=16, device=CPU)
        for logits in (ours, lambda ids: theirs(ids).logits)
    ]
    assert scored[0][1] == scored[1][1] == len("".join(TEXTS).encode())
    assert scored[0][0] == pytest.approx(scored[1][0], rel=1e-5)

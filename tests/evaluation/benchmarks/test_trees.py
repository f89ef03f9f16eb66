"""evaluation/benchmarks/trees.py: what is shared is read once, and changes no likelihood."""

import random

import pytest
import torch

from configs.schema import ModelConfig
from evaluation.benchmarks.scorers import random_weights
from evaluation.benchmarks.trees import Reading, TokenSequence, common_beginning, continuation_nats
from model.model_minillm import MiniLLM
from tests.tiny_run import DENSE, MOE


def alone(model: MiniLLM, sequence: TokenSequence) -> float:
    """The log-probability of a continuation by one plain forward pass."""
    with torch.inference_mode():
        logps = model(torch.tensor([sequence.ids[:-1]])).log_softmax(dim=-1)[0]
    start = len(sequence.ids) - sequence.num_targets
    return sum(float(logps[place - 1, sequence.ids[place]]) for place in range(start, len(sequence.ids)))


def questions_of(beginning: int, rng: random.Random) -> list[list[TokenSequence]]:
    """Questions with a common beginning, each with continuations of several lengths."""
    head = tuple(rng.randrange(96) for _ in range(beginning))
    questions = []
    for _ in range(7):
        asked = tuple(rng.randrange(96) for _ in range(rng.randrange(1, 12)))
        ends = [tuple(rng.randrange(4) for _ in range(rng.randrange(1, 6))) for _ in range(4)]
        questions.append([TokenSequence((*head, *asked, *end), len(end)) for end in [*ends, ends[0]]])
    return questions


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("beginning", [1, 40])
def test_each_continuation_is_as_likely_as_in_its_sequence_alone(config: ModelConfig, beginning: int) -> None:
    model = random_weights(MiniLLM(config), 3)
    questions = questions_of(beginning, random.Random(beginning))
    reading = Reading()
    found = continuation_nats(model, questions, ["a"] * 5 + ["b"] * 2, label="", reading=reading)
    for question, nats in zip(questions, found, strict=True):
        wanted = [alone(model, sequence) for sequence in question]
        torch.testing.assert_close(torch.tensor(nats), torch.tensor(wanted), atol=1e-4, rtol=1e-5)
    assert reading.tokens < reading.tokens_alone == sum(len(s.ids) - 1 for question in questions for s in question)


def test_a_beginning_is_read_once_for_all_questions_of_a_group() -> None:
    model = MiniLLM(DENSE).eval()
    head = tuple(range(50))
    questions = [[TokenSequence((*head, 60 + n, end), 1) for end in (1, 2, 3, 4)] for n in range(20)]
    reading = Reading()
    continuation_nats(model, questions, ["a"] * 20, label="", reading=reading)
    assert reading.tokens == 50 + 20  # one more token a question; its letters are never read
    assert reading.tokens_alone == 20 * 4 * 51


def test_targets_may_stand_in_the_shared_part() -> None:
    model = random_weights(MiniLLM(DENSE), 1)
    pair = [TokenSequence((1, 5, 6, 7, 8), 4), TokenSequence((1, 5, 6, 9), 3)]
    (found,) = continuation_nats(model, [pair], ["a"], label="")
    assert found == pytest.approx([alone(model, one) for one in pair], abs=1e-4)


def test_a_sequence_that_is_too_long_loses_its_beginning() -> None:
    model = random_weights(MiniLLM(DENSE), 1)
    longest = model.config.original_max_position_embeddings
    ids = tuple(random.Random(0).randrange(96) for _ in range(longest + 20))
    reading = Reading()
    questions = [[TokenSequence(ids, 2)], [TokenSequence(ids[:20], 2)]]
    found = continuation_nats(model, questions, ["a", "a"], label="", reading=reading)
    assert reading.cut == 1
    assert found[0] == pytest.approx([alone(model, TokenSequence(ids[-(longest + 1) :], 2))], abs=1e-3)
    assert found[1] == pytest.approx([alone(model, TokenSequence(ids[:20], 2))], abs=1e-4)


def test_the_common_beginning_ends_before_the_last_context_token() -> None:
    sequences = [TokenSequence((1, 2, 3, 4, 9), 1), TokenSequence((1, 2, 3, 4, 5, 8), 1)]
    assert common_beginning(sequences) == (1, 2, 3)
    assert common_beginning([TokenSequence((1, 7), 1), TokenSequence((1, 8), 1)]) == ()

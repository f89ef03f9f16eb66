"""The student's own answers: which prompts, which rows, and the same ones again."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from configs.schema import TrainConfig
from dataset.lm_dataset import Batch, target_places
from dataset.tensors import IGNORE
from model.model_minillm import MiniLLM
from tests.tiny_run import DENSE, lively
from trainer.on_policy import OnPolicyStream, Sampled, packed, prompts_of
from trainer.runtime import Runtime

END, STOP = 95, 94


class Tokenizer:
    """As much of a tokenizer as the engine asks for."""

    assistant_end_id, end_of_text_id = END, STOP

    def decode_bytes(self, ids: list[int]) -> bytes:
        """A letter for each token."""
        return b"a" * len(ids)


def conversation_rows() -> Batch:
    """Two rows of 12 tokens. The first holds a conversation of two turns and one of one turn, the
    second one of one turn that fills it, and padding."""
    ids = torch.arange(24).view(2, 12) + 1
    documents = torch.tensor([[0] * 8 + [1] * 4, [0] * 9 + [-1] * 3])
    labels = torch.full_like(ids, IGNORE)
    # Document 0: answers of two tokens at places 2 and 3, and at 6 and 7. Document 1: at 10 and 11.
    for row, place in ((0, 1), (0, 2), (0, 5), (0, 6), (0, 9), (0, 10), (1, 4), (1, 5), (1, 6), (1, 7)):
        labels[row, place] = ids[row, place + 1]
    return {"input_ids": ids, "labels": labels, "document_ids": documents, "target_places": target_places(labels)}


def test_a_prompt_reaches_to_the_last_answer_of_its_conversation() -> None:
    assert prompts_of(conversation_rows()) == [[1, 2, 3, 4, 5, 6], [9, 10], [13, 14, 15, 16, 17]]


def test_samples_are_packed_and_only_what_the_student_wrote_is_a_target() -> None:
    samples = [Sampled([1, 2], [3, END]), Sampled([4], [5]), Sampled([6, 7, 8], [9, END])]
    batch = packed(samples, 8, pad_id=STOP)
    x = IGNORE
    assert batch["input_ids"].tolist() == [[1, 2, 3, END, 4, 5, STOP, STOP], [6, 7, 8, 9, END, STOP, STOP, STOP]]
    assert batch["labels"].tolist() == [[x, 3, END, x, 5, x, x, x], [x, x, 9, END, x, x, x, x]]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 0, 1, 1, -1, -1], [0, 0, 0, 0, 0, -1, -1, -1]]
    assert torch.equal(batch["target_places"], target_places(batch["labels"]))


class Conversations:
    """Rows of `conversation_rows`, again and again."""

    def __len__(self) -> int:
        return 40

    def batch(self, indices: np.ndarray) -> Batch:
        """Rows by number."""
        rows = conversation_rows()
        part = {name: rows[name][torch.from_numpy(indices % 2)] for name in ("input_ids", "labels", "document_ids")}
        return part | {"target_places": target_places(part["labels"])}

    def largest(self, count: int) -> np.ndarray:
        """Any rows."""
        return np.arange(count)


class Counting:
    """Counts targets and tokens."""

    def loss_sum(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Not asked for here."""
        raise AssertionError

    def num_targets(self, batch: Batch) -> int:
        """Targets."""
        return len(batch["target_places"])

    def num_tokens(self, batch: Batch) -> int:
        """Tokens without padding."""
        return int((batch["document_ids"] >= 0).sum())


def stream(student: MiniLLM, share: float, seed: int = 1) -> OnPolicyStream:
    """Steps of two micro-batches of four rows."""
    return OnPolicyStream(
        Conversations(),
        Counting(),
        TrainConfig(batch_size=4, accumulation_steps=2, seed=seed),
        Runtime(torch.device("cpu"), torch.float32),
        student=student,
        tokenizer=Tokenizer(),  # type: ignore[arg-type]
        share=share,
        row_tokens=12,
        max_gen_len=5,
    )


def student() -> MiniLLM:
    """A small network whose words are random."""
    torch.manual_seed(2)
    return lively(MiniLLM(DENSE))


@pytest.mark.parametrize(("share", "kept"), [(0.0, 8), (0.25, 6), (0.5, 4), (1.0, 0)])
def test_a_share_of_the_rows_of_each_step_is_answered_by_the_student(share: float, kept: int) -> None:
    found = stream(student(), share).read(3)
    data = [batch for batch in found.micro if "is_sampled" not in batch]
    sampled = [batch for batch in found.micro if "is_sampled" in batch]
    assert sum(len(batch["input_ids"]) for batch in data) == kept
    assert bool(sampled) == (share > 0)
    assert found.counts[0] == sum(len(batch["target_places"]) for batch in found.micro)
    rows = stream(student(), share)
    prompts = prompts_of(Conversations().batch(rows.row_numbers(3)[: 8 - kept]))
    starts = [prompt for batch in sampled for prompt in prompts_of(batch)]
    assert sorted(starts) == sorted(prompts)


def test_the_same_step_with_the_same_weights_gives_the_same_answers_and_another_step_others() -> None:
    model = student()
    once, again, later = (stream(model, 1.0).read(step).micro for step in (3, 3, 4))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(once, again, strict=True))
    assert once[0]["input_ids"].tolist() != later[0]["input_ids"].tolist()
    other_seed = stream(model, 1.0, seed=2).read(3).micro
    assert once[0]["input_ids"].tolist() != other_seed[0]["input_ids"].tolist()


def test_answers_are_made_with_the_weights_that_the_step_starts_from() -> None:
    model = student()
    steps = stream(model, 1.0).steps(0, 2)
    next(steps)
    with torch.no_grad():
        model.model.embed_tokens.weight.neg_()
    changed = next(steps).micro
    assert changed[0]["input_ids"].tolist() == stream(model, 1.0).read(1).micro[0]["input_ids"].tolist()
    assert changed[0]["input_ids"].tolist() != stream(student(), 1.0).read(1).micro[0]["input_ids"].tolist()


def test_an_answer_is_drawn_from_the_students_own_distribution() -> None:
    model, prompt, count = student(), [1, 2, 3], 2000
    with torch.no_grad():
        model.model.norm.weight.mul_(0.3)
    rows = stream(model, 1.0)
    rows.max_gen_len = 1
    firsts = torch.tensor([sample.answer[0] for sample in rows.sample([prompt] * count, 0)])
    wanted = model(torch.tensor([prompt]))[0, -1].detach().softmax(dim=-1)
    wanted[END] = wanted[END] + wanted[STOP]  # both end an answer
    wanted[STOP] = 0
    found = torch.bincount(firsts, minlength=96) / count
    assert_close(found, wanted, atol=4 * float((wanted.max() / count) ** 0.5), rtol=0)


def test_an_answer_ends_with_its_end_token_or_at_the_limit() -> None:
    model = student()
    samples = stream(model, 1.0).sample([[1, 2, 3]] * 50 + [list(range(1, 11))] * 10, 0)
    for sample in samples:
        assert 1 <= len(sample.answer) <= 6 and len(sample.prompt) + len(sample.answer) <= 12
        assert END not in sample.answer[:-1] and STOP not in sample.answer
        assert sample.answer[-1] == END or len(sample.answer) == min(5, 12 - len(sample.prompt))

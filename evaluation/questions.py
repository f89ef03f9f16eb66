"""Held-out records as questions, and the answers that a model gives to them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.progress import Progress, progress_bar
from configs.schema import CATEGORIES
from dataset.records.keys import normalised_question
from dataset.tokenizer import RustBPETokenizer
from inference.generate import Answer, answer
from inference.sampling import Sampling
from model.model_minillm import MiniLLM

Messages = list[dict[str, Any]]

FIRST_TOKENS = 32
"""Tokens that every answer may have at first. The few that are not done by then are written again
with more room, side by side. So a long answer does not keep a whole batch of short ones waiting."""


@dataclass(frozen=True)
class Question:
    """One held-out question with its right answer."""

    messages: Messages
    """The conversation up to and with the last user turn."""
    expected: str
    category: str
    kind: str = ""
    """What is reported apart, such as `word` for word problems."""
    topic: str = ""
    """What an identity question is about; empty where the record does not say it."""
    cluster: Hashable = None
    """The fact, clause or pair of operands that counts once in an interval."""
    accepted: tuple[str, ...] = ()
    """Further whole answers that are right."""
    honest: bool = False
    """Whether an honest line, such as "I don't know", is right."""
    counted: tuple[str, ...] = ()
    """Things counted, which must occur in the answer."""

    @property
    def asked(self) -> str:
        """What the user said last."""
        return str(self.messages[-1]["content"]) if self.messages else ""


def question_of(record: dict[str, Any]) -> Question:
    """The last question of a conversation, and what was answered."""
    messages = record["conversations"]
    return Question(
        messages=messages[:-1],
        expected=str(messages[-1]["content"]),
        category=category_of(record),
        kind=_text(record.get("kind")),
        topic=_text(record.get("topic")),
        cluster=cluster_of(record, messages),
        accepted=_texts(record.get("accepted")),
        honest=record.get("honest") is True,
        counted=_texts(record.get("counted")),
    )


def category_of(record: Mapping[str, Any]) -> str:
    """A record's category; `general` where it has none, or a column of that name says something
    else."""
    category = record.get("category")
    return category if isinstance(category, str) and category in CATEGORIES else "general"


def cluster_of(record: dict[str, Any], messages: Messages) -> Hashable:
    """What counts as one in an interval: the record's `cluster`, else its `group`, else its first
    user turn."""
    for name in ("cluster", "group"):
        if (value := record.get(name)) not in (None, ""):
            return f"{name} {value}"
    return normalised_question(next((str(m["content"]) for m in messages if m["role"] == "user"), ""))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    """A text or a list of texts; anything else in a record of somebody's own is not for us."""
    found = value if isinstance(value, list) else [value]
    return tuple(text for text in found if isinstance(text, str) and text)


def ask(
    model: MiniLLM,
    tokenizer: RustBPETokenizer,
    conversations: Sequence[Messages],
    *,
    batch_size: int,
    max_new_tokens: int,
    label: str = "answers",
) -> list[Answer]:
    """Greedy answers in the order of the conversations; prompts of like length run side by side."""
    prompts = [tokenizer.render_for_completion(messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: list[Answer | None] = [None] * len(prompts)
    limits = sorted({min(FIRST_TOKENS, max_new_tokens), max_new_tokens})
    with progress_bar(len(limits) * len(prompts), desc=label, unit="answers", leave=False) as bar:
        for limit in limits:
            bar.update(len(prompts) - len(order))
            _answer_all(model, tokenizer, prompts, order, answers, limit, batch_size, bar)
            order = [number for number in order if not _ended(answers[number])]
    return [said for said in answers if said is not None]


def _ended(said: Answer | None) -> bool:
    return said is not None and said.ended


def _answer_all(
    model: MiniLLM,
    tokenizer: RustBPETokenizer,
    prompts: Sequence[list[int]],
    order: Sequence[int],
    answers: list[Answer | None],
    limit: int,
    batch_size: int,
    bar: Progress,
) -> None:
    """Write the answers to the prompts of these numbers into `answers`."""
    sampling = Sampling(max_new_tokens=limit, temperature=0.0)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        said = answer(model, tokenizer, [prompts[number] for number in numbers], sampling)
        for number, one in zip(numbers, said, strict=True):
            answers[number] = one
        bar.update(len(numbers))


Asker = Callable[[Sequence[Messages]], list[Answer]]
"""Conversations -> the model's answers: what scoring needs of a model."""

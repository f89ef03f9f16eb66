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
"""The messages of a conversation, each with `role` and `content`."""

FIRST_TOKENS = 32
"""Tokens that every answer may have at first. The few answers that do not end by then are made
again with more room, in batches of their own. So a batch does not wait for one long answer."""


@dataclass(frozen=True)
class Question:
    """One held-out question with its right answer."""

    messages: Messages
    """The conversation up to its last user turn."""
    expected: str
    category: str
    kind: str = ""
    """A part of the category with a score of its own, such as `word` for word problems."""
    topic: str = ""
    """What an identity question is about; empty if the record does not say it."""
    cluster: Hashable = None
    """What counts once in an interval: a fact, a clause, a pair of operands."""
    accepted: tuple[str, ...] = ()
    """Other whole answers that are also right."""
    honest: bool = False
    """Whether an honest line, such as "I don't know", is right."""
    counted: tuple[str, ...] = ()
    """Things that are counted: the answer must name them."""

    @property
    def asked(self) -> str:
        """What the user said last."""
        return str(self.messages[-1]["content"]) if self.messages else ""


def question_of(record: dict[str, Any]) -> Question:
    """The last question of a held-out conversation, with its right answer."""
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
    """A record's category; `general` if it has none of ours."""
    category = record.get("category")
    return category if isinstance(category, str) and category in CATEGORIES else "general"


def cluster_of(record: dict[str, Any], messages: Messages) -> Hashable:
    """What counts once in an interval: a record's `cluster`, else its `group`, else its first user
    turn."""
    for name in ("cluster", "group"):
        if (value := record.get(name)) not in (None, ""):
            return f"{name} {value}"
    return normalised_question(next((str(m["content"]) for m in messages if m["role"] == "user"), ""))


def _text(value: Any) -> str:
    """A text; empty for anything else in a user's own record."""
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    """The texts of a text or a list; anything else in a user's own record is left out."""
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
    """Greedy answers, in the order of the conversations.

    Prompts of about the same length run in one batch. Args: label: name of the progress bar.
    """
    prompts = [tokenizer.render_for_completion(messages) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: list[Answer | None] = [None] * len(prompts)
    # First all with a small limit, then those that did not end with the full one (FIRST_TOKENS).
    limits = sorted({min(FIRST_TOKENS, max_new_tokens), max_new_tokens})
    with progress_bar(len(limits) * len(prompts), desc=label, unit="answers", leave=False) as bar:
        for limit in limits:
            # Each prompt counts once a round, so those that ended earlier are done in this one.
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
    """Answer the prompts with the numbers in `order`, and put the answers into `answers`."""
    sampling = Sampling(max_new_tokens=limit, temperature=0.0)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        said = answer(model, tokenizer, [prompts[number] for number in numbers], sampling)
        for number, one in zip(numbers, said, strict=True):
            answers[number] = one
        bar.update(len(numbers))


Asker = Callable[[Sequence[Messages]], list[Answer]]
"""A function that gives the model's answers to conversations: all that scoring needs of a model."""

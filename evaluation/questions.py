"""Held-out records as questions, and the answers that a model gives to them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.progress import progress_bar
from configs.schema import CATEGORIES
from dataset.chat import opens_thought
from dataset.records.keys import normalised_question
from dataset.tokenizer import RustBPETokenizer
from inference.engine import Answer, Engine
from inference.sampling import Sampling
from model.model_minillm import MiniLLM

Messages = list[dict[str, Any]]
"""The messages of a conversation, each with `role` and `content`."""


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
    enable_thinking: bool | None = None
    """How its prompt is rendered, as for the record's own answer: true before a thought."""

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
        enable_thinking=thinking_of(messages[-1]),
    )


def thinking_of(answer: Mapping[str, Any]) -> bool | None:
    """The `enable_thinking` of the prompt that an answer belongs to (dataset/chat.py)."""
    return bool(answer.get("reasoning_content")) if opens_thought(answer) else None


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
    thinking: Sequence[bool | None] = (),
) -> list[Answer]:
    """Greedy answers, in the order of the conversations.

    Args: batch_size: answers that are made at once. label: name of the progress bar. thinking: the
    `enable_thinking` of each prompt; empty: the model decides.
    """
    thinking = thinking or [None] * len(conversations)
    prompts = [
        tokenizer.render_for_completion(messages, enable_thinking=thinks)
        for messages, thinks in zip(conversations, thinking, strict=True)
    ]
    # Rows of about the same length read the cache in one call (model/decoder.py).
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    engine = Engine(model, tokenizer, max_batch_size=batch_size)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    with progress_bar(len(prompts), desc=label, unit="answers", leave=False) as bar:
        said = engine.answers([prompts[number] for number in order], sampling, lambda: bar.update(1))
    answers = dict(zip(order, said, strict=True))
    return [_without_thought(answers[number], tokenizer, thinks) for number, thinks in enumerate(thinking)]


def _without_thought(said: Answer, tokenizer: RustBPETokenizer, thinks: bool | None) -> Answer:
    """The same answer, where the thought is no part of the text. A thought without an end leaves
    nothing."""
    text = tokenizer.chat_format.answer_of(said.text, begins_with_thought=bool(thinks))
    return replace(said, text=text, written=said.text)


Asker = Callable[[Sequence[Messages]], list[Answer]]
"""A function that gives the model's answers to conversations: all that scoring needs of a model."""

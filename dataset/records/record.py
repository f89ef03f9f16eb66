"""The three shapes of a record: text, conversation, preference pair; the error for a bad one."""

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


class BadRecord(Exception):
    """A record that can't be used. The message is the reason, by which the mix counts records."""


class LeftOut(BadRecord):
    """A good record that itself says that nobody should train on it."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document."""

    text: str
    fields: dict[str, Any]
    """The whole record: its own fields, and those of our shape."""
    marks: int = 0
    """How many marks of other chat formats became line ends."""

    def plain_text(self) -> str:
        """The document."""
        return self.text

    def questions(self) -> list[str]:
        """Empty: a document has no user."""
        return []


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation that ends with the assistant."""

    messages: list[Message]
    fields: dict[str, Any]
    marks: int = 0
    """As in `TextRecord`."""

    def plain_text(self) -> str:
        """What user and assistant say, one turn a line, without turns whose `loss` is false."""
        said = [m for m in self.messages if m["role"] in {"user", "assistant"} and m.get("loss") is not False]
        return "\n".join(m["content"] for m in said if m["content"])

    def questions(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.messages if message["role"] == "user"]


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two conversations that differ only in the last answer."""

    chosen: list[Message]
    rejected: list[Message]
    fields: dict[str, Any]
    marks: int = 0
    """As in `TextRecord`."""

    def questions(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.chosen if message["role"] == "user"]


Record = TextRecord | ChatRecord | PreferenceRecord

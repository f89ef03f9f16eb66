"""The three shapes of a record: text, conversation, preference pair; why one can't be used."""

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


class BadRecord(Exception):
    """A record that can't be used. The message is a fixed phrase, by which such records are
    counted."""


class LeftOut(BadRecord):
    """A record that is sound, and says itself that it is not to be learnt."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document."""

    text: str
    fields: dict[str, Any]
    """The whole record: its own fields and the ones brought into shape."""
    marks: int = 0
    """Marks of other chat formats that became line ends."""

    def plain_text(self) -> str:
        """The document."""
        return self.text

    def questions(self) -> list[str]:
        """A document asks nothing."""
        return []


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation that ends with the assistant."""

    messages: list[Message]
    fields: dict[str, Any]
    marks: int = 0
    """As in `TextRecord`."""

    def plain_text(self) -> str:
        """What user and assistant say, a turn a line, without the turns that are not to be
        learnt."""
        said = [m for m in self.messages if m["role"] in {"user", "assistant"} and m.get("loss") is not False]
        return "\n".join(m["content"] for m in said if m["content"])

    def questions(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.messages if message["role"] == "user"]


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two conversations that differ in the last answer alone."""

    chosen: list[Message]
    rejected: list[Message]
    fields: dict[str, Any]
    marks: int = 0
    """As in `TextRecord`."""

    def questions(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.chosen if message["role"] == "user"]


Record = TextRecord | ChatRecord | PreferenceRecord

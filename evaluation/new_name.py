"""Another name for the model (LoRA): who it says it is, and where it says so although nobody asked.

accuracy_identity_new   the same rule as for `accuracy_identity`, on the new records
identity_new            their answers that say the new name (or the new author, if only the
                        author is asked for)
identity_old            their answers that still say the old name or author
identity_leak           answers to all other questions that say any of these names
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataset.mix.identity import another_name
from evaluation.answers import contains, normalize
from evaluation.intervals import Metric, share
from evaluation.stage import Verdict

NEW = "new"
"""The kind of the new identity records."""


@dataclass(frozen=True, slots=True)
class Renaming:
    """The names of the model and its author, before and after."""

    old: tuple[str, str]
    new: tuple[str, str]

    @classmethod
    def in_records(cls, records: Iterable[Mapping[str, Any]], old: tuple[str, str]) -> "Renaming | None":
        """What new records say; None if they give the model no other name."""
        new = another_name(list(answers_of(records)), *old)
        return cls(old, new) if new else None

    def renamed(self, value: Any) -> Any:
        """The same text, list or record, with the new names in place of the old ones."""
        if isinstance(value, str):
            # The longer name goes first, as it may contain the other one.
            for old, new in sorted(zip(self.old, self.new, strict=True), key=lambda pair: -len(pair[0])):
                if old:
                    value = value.replace(old, new).replace(old.lower(), new.lower())
            return value
        if isinstance(value, list):
            return [self.renamed(one) for one in value]
        return {key: self.renamed(one) for key, one in value.items()} if isinstance(value, dict) else value

    def as_new_identity(self, record: dict[str, Any]) -> dict[str, Any]:
        """A new record. If its answer says a new name, it is an identity record of the kind
        `new`."""
        answer = str(record["conversations"][-1]["content"])
        return {**record, "category": "identity", "kind": NEW} if says_any(answer, self.new) else record


def answers_of(records: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """All answers of the assistant."""
    for record in records:
        yield from (str(turn["content"]) for turn in record["conversations"] if turn["role"] == "assistant")


def says_any(text: str, names: Sequence[str]) -> bool:
    """Whether a text says one of the names. Case, spaces and punctuation do not count."""
    plain = normalize(text)
    return any(contains(plain, normalize(name)) for name in names if name)


def name_metrics(asked: Sequence[Verdict], others: Sequence[Verdict], renaming: Renaming) -> dict[str, Metric]:
    """The shares of the head of this file, but for the accuracy.

    Args: asked: answers to the new records. others: to the questions of the mix.
    """
    ours = [verdict for verdict in asked if verdict.category == "identity"]
    # Where the right answer names only the author, saying the author is enough.
    wanted = [[name for name in renaming.new if says_any(verdict.expected[0], [name])] for verdict in ours]
    # An old name may be a part of a new one (MiniLLM, MiniLLM-2): then saying the new one is no
    # mistake.
    old = [name for name in renaming.old if name and not says_any("\n".join(renaming.new), [name])]
    names = [*renaming.new, *old]
    elsewhere = [
        verdict
        for verdict in (*asked, *others)
        if verdict.category != "identity" and not any(says_any(text, names) for text in verdict.expected)
    ]
    groups = {
        "identity_new": [(one, says_any(one.answer.text, names[:1])) for one, names in zip(ours, wanted, strict=True)],
        "identity_old": [(verdict, says_any(verdict.answer.text, old)) for verdict in ours],
        "identity_leak": [(verdict, says_any(verdict.answer.text, names)) for verdict in elsewhere],
    }
    return {
        name: share([outcome for _, outcome in group], [verdict.cluster for verdict, _ in group])
        for name, group in groups.items()
        if group
    }

"""What a checkpoint learnt from, as far as the mixture that it was trained on still stands beside
the held-out data."""

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from configs.artifacts import read_json
from configs.schema import UserError
from dataset.mix import MANIFEST_FILE
from dataset.records import normalised_question, text_hash

BUNDLED = ("general", "knowledge")
"""Categories whose samples must have been used for the prompts about facts, sums and feelings to
make sense."""


def mixture_of(folder: Path, training_data: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The manifest of the mix in a folder, if the checkpoint with this `training_data` was trained
    on that very mix."""
    try:
        manifest = read_json(folder / MANIFEST_FILE, "")
        written = {output["sha256"] for output in manifest["outputs"].values()}
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    return manifest if any(source["sha256"] in written for source in training_data) else None


def not_trained_on(records: Sequence[dict[str, Any]], seen: Set[bytes]) -> list[dict[str, Any]]:
    """The records whose text, or whose first question, is none of the training's
    (`TrainingExamples.seen`). Many conversations may open alike (在吗): one of several turns counts
    as trained on only if its last question was seen too."""
    return [record for record in records if not _keys_of(record) <= seen]


def _keys_of(record: Mapping[str, Any]) -> set[bytes]:
    messages = record["conversations"] if "conversations" in record else record.get("chosen")
    if messages is None:
        return {text_hash(str(record["text"]))}
    asked = [str(message["content"]) for message in messages if message["role"] == "user"] or [""]
    return {text_hash(normalised_question(turn)) for turn in (asked[0], asked[-1])}


def names_of(mixture: Mapping[str, Any] | None, otherwise: tuple[str, str]) -> tuple[str, str]:
    """The model's name and its author's as the mix filled them in."""
    settings = (mixture or {}).get("settings", {})
    return str(settings.get("name", otherwise[0])), str(settings.get("author", otherwise[1]))


def is_bundled(mixture: Mapping[str, Any] | None) -> bool:
    """Whether the mix took its general talk and its knowledge from the bundled samples alone."""
    sources = (mixture or {}).get("sources", [])
    return all(
        any(source["category"] == category for source in sources)
        and all(source["sample"] for source in sources if source["category"] == category)
        for category in BUNDLED
    )

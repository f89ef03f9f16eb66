"""What a checkpoint learnt from, as far as the mixture that it was trained on still stands beside the held-out data."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.artifacts import read_json
from configs.schema import UserError
from dataset.mix import MANIFEST_FILE

BUNDLED = ("general", "knowledge")
"""Categories whose samples must have been used for the prompts about facts, sums and feelings to make sense."""


def mixture_of(folder: Path, training_data: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The manifest of the mix in a folder, if the checkpoint with this `training_data` was trained on that very mix."""
    try:
        manifest = read_json(folder / MANIFEST_FILE, "")
        written = {output["sha256"] for output in manifest["outputs"].values()}
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    return manifest if any(source["sha256"] in written for source in training_data) else None


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

"""The file `results.json` of a report, written anew at each change.

So it is whole whenever the run ends.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import Row
from configs.artifacts import write_json


class Results:
    """`results.json`, written anew, whole or not at all, at each change."""

    def __init__(self, path: Path, head: Row) -> None:
        self.path = path
        self.content: Row = {**head, "parts": {}}
        self.write()

    def begin(self, part: str, limit: float) -> None:
        """A part starts."""
        self.content["parts"][part] = {"status": "running", "limit_seconds": limit, "checks": []}
        self.write()

    def note(self, part: str, row: Row) -> None:
        """A check has ended."""
        self.content["parts"][part]["checks"].append(row)
        self.write()

    def end(self, part: str, **facts: Any) -> Row:
        """A part has ended. Returns: all that is known of it."""
        found: Row = self.content["parts"][part]
        found |= facts
        self.write()
        return found

    def write(self) -> None:
        write_json(self.path, plain(self.content))


def plain(value: Any) -> Any:
    """A value that JSON can hold: infinities and NaN, which a diverged run brings, as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value

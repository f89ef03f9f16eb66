"""The results file, a JSON line an evaluation, as tables and plots read it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.messages import SMOKE_PROFILE
from configs.paths import display
from configs.schema import UserError


def read_results(path: Path, *, smoke: bool = False) -> Iterator[dict[str, Any]]:
    """The lines of a results file, in their order; none where there is no file.

    Those of the profile `smoke` are left out unless asked for: they show that everything runs, and
    their scores mean nothing. Raises: UserError with the number of a line that is no JSON object.
    """
    if not path.exists():
        return
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise UserError(
                f"{display(path)}:{number}: not a JSON line. Fix or remove that line.", "该行不是 JSON：请修正或删除"
            )
        if smoke or line.get("profile") != SMOKE_PROFILE:
            yield line

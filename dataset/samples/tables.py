"""Reading the tables beside the generators, which are YAML or lines of text. Each is read once."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fast loader, written in C, if PyYAML has it."""


@cache
def yaml_table(path: Path) -> dict[str, Any]:
    """The content of a YAML file. All callers get the same object, so nobody may change it."""
    with path.open(encoding="utf-8") as file:
        table: dict[str, Any] = yaml.load(file, Loader=_LOADER)
    return table


@cache
def lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, without those that begin with #."""
    return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))


@cache
def cells(path: Path) -> tuple[tuple[str, ...], ...]:
    """The cells of each of these lines, which tabs separate."""
    return tuple(tuple(line.split("\t")) for line in lines(path))

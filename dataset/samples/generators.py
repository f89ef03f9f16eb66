"""All records of a generator, made once for all who use them.

A generator is a module with a function `records()`. Its name is its path below this folder:
`knowledge.claims`.
"""

import importlib
from functools import cache
from typing import Any


@cache
def generated(name: str) -> tuple[dict[str, Any], ...]:
    """The records of a generator. All callers get the same objects, so nobody may change them."""
    return tuple(importlib.import_module(f"dataset.samples.{name}").records())

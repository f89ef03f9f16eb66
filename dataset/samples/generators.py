"""All records of a generator, made once for everybody who builds on them.

A generator is a module with a function `records()`. Its name is its path below this folder:
`knowledge.claims`.
"""

import importlib
from functools import cache
from typing import Any


@cache
def generated(name: str) -> tuple[dict[str, Any], ...]:
    """The records of the generator of this name. They are shared: nobody changes them."""
    return tuple(importlib.import_module(f"dataset.samples.{name}").records())

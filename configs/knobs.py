"""One knob (a field) of the settings: its default, its help in two languages, its unit.

    grad_clip: float = knob(1.0, "largest gradient norm; 0: none", "梯度裁剪", "G")

From such a field come the flag, its help, and the type of its value in YAML.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

UNITS = {int: "N", str: "NAME"}
"""Kind -> the unit in `--help` of a knob that names none; X for other kinds."""
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """What programs know about a field of the settings."""

    name: str
    kind: type
    """`int`, `float`, `bool` or `str`, by its type hint."""
    english: str
    chinese: str
    unit: str
    """The word for the value in `--help`, such as N in `--seed N`."""
    choices: tuple[str, ...]
    """The allowed values; empty: any of its kind."""
    flag: bool
    """Whether programs have a flag for it. If not, only a YAML file can set it."""
    changes_result: bool
    """Whether another value gives other weights. If not, a finished stage stays done."""

    @property
    def help(self) -> str:
        """Its line in `--help`."""
        return f"{self.english} {self.chinese}"


def knob(
    default: Value,
    english: str,
    chinese: str,
    unit: str = "",
    *,
    choices: tuple[str, ...] = (),
    flag: bool = True,
    changes_result: bool = True,
) -> Value:
    """The default of a field, together with what programs know about it.

    Args: as the fields of Knob. unit: if it is empty, the kind decides (UNITS).
    """
    notes = {"english": english, "chinese": chinese, "unit": unit, "choices": choices, "flag": flag}
    return field(default=default, metadata=notes | {"changes_result": changes_result})


def knobs_of(settings: type) -> dict[str, Knob]:
    """The knobs of a settings class by name, in the order of its fields."""
    knobs, hints = {}, get_type_hints(settings)
    for one in fields(settings):
        if one.metadata:  # a field without it is no knob
            kind, notes = kind_of(hints[one.name]), dict(one.metadata)
            notes["unit"] = notes["unit"] or UNITS.get(kind, "X")
            knobs[one.name] = Knob(name=one.name, kind=kind, **notes)
    return knobs


def kind_of(hint: Any) -> type:
    """The type in a hint, without None: `bool` for `bool | None`, a switch that may be left
    open."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    return kinds[0] if isinstance(kinds[0], type) else object

"""One knob of the settings: its default, its help in two languages, its unit.

    grad_clip: float = knob(1.0, "largest gradient norm; 0: none", "梯度裁剪", "G")

Flags, their help and the types of YAML's values are read from such a field.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

UNITS = {int: "N", str: "NAME"}
"""Kind -> what stands for its value in `--help` where a knob names no unit."""
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """What programs know of a field."""

    name: str
    kind: type
    """`int`, `float`, `bool` or `str`, by its type hint."""
    english: str
    chinese: str
    unit: str
    """What stands for the value in `--help`."""
    choices: tuple[str, ...]
    """The only values; empty: any of its kind."""
    flag: bool
    """Whether programs have a flag for it; else only a YAML file sets it."""
    changes_result: bool
    """Whether other weights come out of another value; else a finished stage stays done."""

    @property
    def help(self) -> str:
        """Its line in `--help`."""
        return f"{self.english} {self.chinese}"


def knob(
    default: Value, english: str, chinese: str, unit: str = "", *,
    choices: tuple[str, ...] = (), flag: bool = True, changes_result: bool = True,
) -> Value:  # fmt: skip
    """The default of a field, with what programs know of it.

    Args: as the fields of Knob. unit: without it, what the kind suggests, such as N.
    """
    notes = {"english": english, "chinese": chinese, "unit": unit, "choices": choices, "flag": flag}
    return field(default=default, metadata=notes | {"changes_result": changes_result})


def knobs_of(settings: type) -> dict[str, Knob]:
    """The knobs of a settings class by name, in the order of its fields."""
    knobs, hints = {}, get_type_hints(settings)
    for one in fields(settings):
        if one.metadata:  # else a plain field, which no knob is
            kind, notes = kind_of(hints[one.name]), dict(one.metadata)
            notes["unit"] = notes["unit"] or UNITS.get(kind, "X")
            knobs[one.name] = Knob(name=one.name, kind=kind, **notes)
    return knobs


def kind_of(hint: Any) -> type:
    """The type that a hint asks for: `bool` of `bool | None`, a switch that may be left open."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    return kinds[0] if isinstance(kinds[0], type) else object

"""A field says once what flags, help and YAML need to know about it."""

from dataclasses import dataclass, fields

import pytest

from configs.knobs import knob, knobs_of
from configs.schema import EvalConfig, MixConfig, ModelConfig
from configs.stage_table import STAGE_TABLE


@dataclass(frozen=True)
class Oven:
    degrees: float = knob(180.0, "heat in the middle", "炉温", "C")
    fan: bool | None = knob(None, "moves the air", "热风", changes_result=False)
    mode: str = knob("top", "which side heats", "加热方式", choices=("top", "bottom"))
    number: int = 3


def test_a_knob_is_its_default_with_notes() -> None:
    assert (Oven().degrees, Oven().fan, Oven().mode) == (180.0, None, "top")
    knobs = knobs_of(Oven)
    assert list(knobs) == ["degrees", "fan", "mode"]  # a field without notes is no knob
    assert (knobs["degrees"].kind, knobs["degrees"].unit) == (float, "C")
    assert knobs["degrees"].help == "heat in the middle 炉温"
    assert knobs["fan"].kind is bool and not knobs["fan"].changes_result
    assert knobs["mode"].choices == ("top", "bottom")


@pytest.mark.parametrize(
    "settings", [ModelConfig, MixConfig, EvalConfig, *dict.fromkeys(spec.settings for spec in STAGE_TABLE.values())]
)
def test_each_field_of_ours_speaks_two_languages_and_has_a_plain_type(settings: type) -> None:
    assert list(knobs_of(settings)) == [one.name for one in fields(settings)]
    for one in knobs_of(settings).values():
        assert one.english.isascii() and not one.chinese.isascii()
        assert one.kind in (int, float, bool, str)

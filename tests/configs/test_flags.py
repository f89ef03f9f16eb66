"""Flags are made from the fields of settings classes."""

import pytest

from configs.cli import Parser
from configs.flags import SHARED, add_knobs, add_shared, given_knobs
from configs.knobs import knobs_of
from configs.schema import EvalConfig, ModelConfig
from configs.stage_settings import DPOConfig


def parser_of(settings: type, *names: str) -> Parser:
    parser = Parser()
    add_knobs(parser, settings, *names)
    return parser


@pytest.mark.parametrize("settings", [ModelConfig, EvalConfig, DPOConfig])
def test_each_knob_has_a_flag_unless_it_says_that_it_has_none(settings: type) -> None:
    dests = {action.dest for action in parser_of(settings)._actions} - {"help"}
    assert dests == {name for name, knob in knobs_of(settings).items() if knob.flag}


def test_only_flags_that_were_given_count() -> None:
    words = ["--seed", "3", "--beta", "0.5", "--no-use_wandb", "--schedule", "cosine", "--device", "cuda:1"]
    assert given_knobs(parser_of(DPOConfig).parse_args(words), DPOConfig) == {
        "seed": 3,
        "beta": 0.5,
        "use_wandb": False,
        "schedule": "cosine",
        "device": "cuda:1",
    }


def test_a_value_of_another_type_or_none_of_the_choices_is_wrong_usage() -> None:
    for words in (["--seed", "x"], ["--schedule", "steps"], ["--use_wandb", "maybe"]):
        with pytest.raises(SystemExit):
            parser_of(DPOConfig).parse_args(words)


def test_the_flags_that_programs_share_have_one_form() -> None:
    parser = Parser()
    add_shared(parser, *SHARED)
    arguments = parser.parse_args([])
    assert vars(arguments) == dict.fromkeys(SHARED) | {"device": "auto"}

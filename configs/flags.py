"""Flags and their help, made from the fields of settings; and flags that programs share."""

import argparse
from pathlib import Path
from typing import Any

from configs.cli import add_switch
from configs.knobs import Knob, knobs_of
from configs.schema import TrainConfig

SHARED: dict[str, dict[str, Any]] = {
    "profile": {"metavar": "NAME", "help": "configs/NAME.yaml, or a YAML file 配置 (default)"},
    "tokenizer_dir": {"type": Path, "metavar": "DIR", "help": "tokenizer folder 分词器目录 (OUT_DIR/tokenizer, model)"},
    "load_from": {
        "type": Path, "metavar": "HF_DIR", "help": "a Qwen3 with its tokenizer, as a Hugging Face folder 别人的 Qwen3 目录"
    },
    "out_dir": {"type": Path, "metavar": "DIR", "help": "folder of the weights 权重目录 (OUT_DIR, out)"},
    "lora_name": {"metavar": "NAME_OR_PATH", "help": "adapter to use: NAME of out/lora/NAME_512.pth, or a path 适配器"},
    "tf_dir": {"type": Path, "metavar": "DIR", "help": "where metrics go 指标输出目录 (TF_DIR, tf_dir)"},
    "device": {"default": "auto", "metavar": "NAME", "help": f"{knobs_of(TrainConfig)['device'].help} (auto)"},
}  # fmt: skip
"""Flag of several programs -> arguments of `add_argument`. A flag without a default is None when it
is not given."""


def add_shared(parser: Any, *names: str) -> None:
    """Add flags of SHARED to a parser or a group of one."""
    for name in names:
        parser.add_argument(f"--{name}", **SHARED[name])


def add_knobs(parser: Any, settings: type, *names: str) -> None:
    """Add a flag for each of these fields of a settings class. No names: for all that have a flag.

    A flag that is not given is None. Then the profile decides, or else the default of the class.
    """
    knobs = knobs_of(settings)
    for name in names or [name for name, knob in knobs.items() if knob.flag]:
        _add_knob(parser, knobs[name])


def _add_knob(parser: Any, knob: Knob) -> None:
    """Add the flag of one field."""
    if knob.kind is bool:
        add_switch(parser, f"--{knob.name}", help=knob.help)
    elif knob.choices:
        parser.add_argument(f"--{knob.name}", choices=knob.choices, help=knob.help)
    else:
        # No type for text: such a flag also takes texts that begin with a hyphen (configs/cli.py).
        kind = None if knob.kind is str else knob.kind
        parser.add_argument(f"--{knob.name}", type=kind, metavar=knob.unit, help=knob.help)


def given_knobs(arguments: argparse.Namespace, settings: type) -> dict[str, Any]:
    """Name -> value of the fields of a settings class that were given as flags."""
    given = {name: getattr(arguments, name, None) for name in knobs_of(settings)}
    return {name: value for name, value in given.items() if value is not None}

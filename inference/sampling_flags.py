"""The flags of sampling, one for each field of `Sampling`: the same in every program that
generates."""

import argparse
from typing import Any

from inference.sampling import Sampling


def _bias(text: str) -> tuple[int, float]:
    """`ID:BIAS`. Raises: ArgumentTypeError for anything else."""
    token, colon, bias = text.partition(":")
    try:
        return int(token), float(bias if colon else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write ID:BIAS, such as 42:-100") from None


FLAGS: dict[str, dict[str, Any]] = {
    "max_new_tokens": {
        "type": int, "metavar": "N", "default": 512,
        "help": "longest answer, in tokens 最长回答 (%(default)s)",
    },
    "temperature": {
        "type": float, "metavar": "T", "default": 0.0,
        "help": "0: always the likeliest token 采样温度 (%(default)s)",
    },
    "top_k": {
        "type": int, "metavar": "K", "default": 0,
        "help": "sample among the k likeliest; 0: all 只从最可能的 k 个里采样 (%(default)s)",
    },
    "top_p": {
        "type": float, "metavar": "P", "default": 0.9,
        "help": "sample among the likeliest of mass p 核采样概率 (%(default)s)",
    },
    "min_p": {
        "type": float, "metavar": "P", "default": 0.0,
        "help": "leave out what is less likely than P times the likeliest 最低相对概率 (%(default)s)",
    },
    "repetition_penalty": {
        "type": float, "metavar": "R", "default": 1.0,
        "help": "above 1: tokens of prompt and answer become less likely 重复惩罚，含提问 (%(default)s)",
    },
    "presence_penalty": {
        "type": float, "metavar": "X", "default": 0.0,
        "help": "taken from the score of each token that the answer has 回答中出现过即扣分 (%(default)s)",
    },
    "frequency_penalty": {
        "type": float, "metavar": "X", "default": 0.0,
        "help": "the same, each time that it occurs 按出现次数扣分 (%(default)s)",
    },
    "no_repeat_ngram_size": {
        "type": int, "metavar": "N", "default": 0,
        "help": "no N tokens in a row come twice; 0: off 禁止重复的 N 元组 (%(default)s)",
    },
    "stop": {
        "action": "append", "metavar": "TEXT", "default": [],
        "help": "the answer ends before this text; may be given again 遇到该文本即停止，可多次给出",
    },
    "stop_token_ids": {
        "type": int, "nargs": "+", "metavar": "ID", "default": [],
        "help": "tokens that end the answer too 遇到这些词元编号即停止",
    },
    "logit_bias": {
        "type": _bias, "nargs": "+", "metavar": "ID:BIAS", "default": [],
        "help": "added to the score of a token, from -100 to 100 给词元的分数加上偏置",
    },
    "seed": {"type": int, "metavar": "N", "default": 42, "help": "seed of the sampling 随机种子 (%(default)s)"},
}  # fmt: skip
"""Field of `Sampling` -> arguments of `add_argument`."""


def add_sampling_flags(parser: Any) -> None:
    """Add all flags of sampling to a parser or a group of one."""
    for name, arguments in FLAGS.items():
        parser.add_argument(f"--{name}", **arguments)


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """What the flags ask for. Raises: UserError for a value out of range."""
    given: dict[str, Any] = {name: getattr(arguments, name) for name in FLAGS}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Sampling(**{**given, **lists})

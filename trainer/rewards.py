"""Rewards: what an answer is worth, by a rule, a function of the user's, or a reward model."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.artifacts import sha256_file
from configs.paths import display, find_dataset
from configs.schema import UserError
from evaluation.rules import rule_of
from model.heads import read_reward_model
from trainer.rollout import Sample

RULE = "rule"
"""The value of `--reward` that stands for the rule of each prompt."""
SHOWN_CHARACTERS = 60
"""Of a prompt and an answer in an error."""

Score = Callable[[Sequence[Sample]], Sequence[float]]
"""Answers -> the reward of each, in their order."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward, and the file that it depends on."""

    name: str
    score: Score
    sha256: str = ""
    """Hash of the user's file or of the reward model; empty for the rule."""


def rule_reward(sample: Sample) -> float:
    """1 for an answer that ended by itself and is right by its rule, else 0.

    It is the same for a short and for a long answer, so length pays nothing.
    """
    return float(sample.ended and not rule_of(sample.record).broken(sample.answer))


def find_reward(name: str, reward_model_path: str, *, unproven: bool, tokenizer_sha256: str = "") -> Reward:
    """The reward that the flags ask for.

    Args: name: `rule`, `module:function` or `FILE.py:function`, where the function takes a `Sample`
    and gives a number. reward_model_path: weights of a reward model, which are taken instead.
    unproven: whether it may be one that is not above chance on held-out pairs. tokenizer_sha256:
    the policy's tokenizer, whose ids the reward model must know.
    Raises: UserError if there is no such function or model.
    """
    if reward_model_path:
        if name != RULE:
            raise UserError(
                f"--reward {name} beside --reward_model_path: they are two rewards. Leave one of them out.",
                "两种奖励只能用一种：请去掉其中一个",
            )
        return _of_model(find_dataset(Path(reward_model_path)), tokenizer_sha256, unproven=unproven)
    if name == RULE:
        return Reward(RULE, lambda samples: [rule_reward(sample) for sample in samples])
    function, file = _function(name)
    return Reward(name, lambda samples: [function(sample) for sample in samples], sha256_file(file) if file else "")


def _of_model(path: Path, tokenizer_sha256: str, *, unproven: bool) -> Reward:
    """The reward of a reward model. Raises: UserError for one that proves nothing, or that reads
    the ids of another tokenizer."""
    model = read_reward_model(path)
    if not model.proven and not unproven:
        raise UserError(
            f"{display(path)}: not shown to tell good answers from bad ones ({model.evidence}). Train a better one: python "
            "trainer/train_reward.py; or pass --reward_unproven.",
            "奖励模型的准确率不高于随机：请重新训练，或加 --reward_unproven",
        )
    if tokenizer_sha256 and model.tokenizer_sha256 != tokenizer_sha256:
        raise UserError(
            f"{display(path)}: made with another tokenizer ({model.tokenizer_sha256[:8]}) than the policy "
            f"({tokenizer_sha256[:8]}). Give a reward model that was trained with the same one.",
            "奖励模型用的是另一个分词器：请换一个",
        )
    return Reward(str(path), lambda samples: model.score([s.ids for s in samples]).tolist(), sha256_file(path))


def _function(name: str) -> tuple[Callable[[Sample], Any], Path | None]:
    """A function of the user's, and its file. Raises: UserError if there is none of that name."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(
            f"--reward {name}: must be rule, module:function or a Python file:function.",
            "只能是 rule、模块:函数 或 文件.py:函数",
        )
    try:
        module = _module(place)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--reward {name}: {place} can't be loaded ({type(error).__name__}: {error}). Check the name, and run it by "
            "itself with python.",
            "奖励函数所在的模块无法载入：请检查",
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"--reward {name}: {place} has no function {attribute}.", "模块里没有这个函数")
    file = getattr(module, "__file__", None)
    return function, Path(file) if file else None


def _module(place: str) -> Any:
    """A module by its name, also from the folder where the user stands; or a Python file."""
    if not place.endswith(".py"):
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        return importlib.import_module(place)
    path = find_dataset(Path(place))
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rewards_of(reward: Reward, samples: Sequence[Sample]) -> Tensor:
    """The reward of each answer, (B,) float32.

    Raises: UserError if one is no finite number: a mean over it would hide the fault.
    """
    values = list(reward.score(samples))
    assert len(values) == len(samples)
    for value, sample in zip(values, samples, strict=True):
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if not is_number:
            raise UserError(
                f"reward {reward.name} = {value!r}: must be a finite number. Prompt: {_short(sample.prompt)!r}; answer: "
                f"{_short(sample.answer)!r}.",
                "奖励必须是有限的数：请检查奖励函数",
            )
    return torch.tensor([float(value) for value in values])


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."

"""The stages that train a model, a row each: program, weights, data, start, settings, version.

A new stage is a row here, its settings in `stage_settings.py` where it has any of its own, and a
page in `trainer/`.
"""

import re
from dataclasses import dataclass

from configs.schema import ModelConfig, TrainConfig
from configs.stage_settings import DPOConfig

DATA_STEMS = {"documents": "pretrain", "conversations": "sft", "pairs": "dpo"}
"""Kind of data -> how its files begin: `sft_chinese.jsonl`, `sft_tokens/`. Several stages may share
a kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """What all programs know of one stage."""

    trainer: str
    """Its program, in `trainer/`."""
    weights: str
    """How its weight files begin: `full_sft` of `out/full_sft_512.pth`."""
    data: str
    """Kind of data that it learns from, a key of DATA_STEMS."""
    start: str
    """Weights that it starts from unless a flag names others; `none`: random ones."""
    rate_share: float
    """Its learning rate as a share of pretraining's, where no setting gives a rate: what is learnt
    already must not be lost. The profile `cpu` has rates of its own for SFT and DPO, found by
    experiment (docs/lab_log.md)."""
    recipe_version: int
    """See RECIPE_VERSION."""
    settings: type[TrainConfig] = TrainConfig
    """The class of its settings: that of all stages, or one of `stage_settings.py`."""
    arguments: str = ""
    """Environment variable with extra flags for its trainer; empty: `run.sh` does not run this
    stage."""


STAGE_TABLE = {
    "pretrain": StageSpec(
        trainer="train_pretrain.py", weights="pretrain", data="documents", start="none",
        rate_share=1.0, recipe_version=1, arguments="PRETRAIN_ARGS",
    ),
    "sft": StageSpec(
        trainer="train_full_sft.py", weights="full_sft", data="conversations", start="pretrain",
        rate_share=0.5, recipe_version=1, arguments="SFT_ARGS",
    ),
    "dpo": StageSpec(
        trainer="train_dpo.py", weights="rlhf", data="pairs", start="full_sft",
        rate_share=0.02, recipe_version=1, settings=DPOConfig, arguments="DPO_ARGS",
    ),
}  # fmt: skip
"""Stage -> its row, in the order in which they are trained."""

STAGES = tuple(stage for stage, spec in STAGE_TABLE.items() if spec.arguments)
"""The stages that `run.sh` trains and evaluates."""

RECIPE_VERSION = {"mix": 1, "tokenizer": 1, "export": 1} | {
    stage: spec.recipe_version for stage, spec in STAGE_TABLE.items()
}
"""Raised by hand where the arithmetic or a rule of a stage changes, so that the same settings and
inputs give another result: what was made before no longer counts as done. It stands in for a hash
of the source files, which would train everything again because a function moved.
`tests/test_recipe_version.py` fails where a result changed and this did not."""


def continues_text(stage: str) -> bool:
    """Whether a model of this stage has only read documents, so that it continues a text and
    answers nothing."""
    return stage in STAGE_TABLE and STAGE_TABLE[stage].data == "documents"


# --- names of files -------------------------------------------------------------------------------


def record_file(data: str) -> str:
    """The mix's training records of a kind."""
    return f"{DATA_STEMS[data]}_chinese.jsonl"


def heldout_file(data: str) -> str:
    """Its held-out records of a kind."""
    return f"{DATA_STEMS[data]}_chinese_heldout.jsonl"


def tensor_folder(data: str) -> str:
    """The token tensors of a kind."""
    return f"{DATA_STEMS[data]}_tokens"


WEIGHT_FILE = re.compile(r"(?P<stem>.+)_(?P<shape>\d+(_moe)?)(?P<previous>\.previous)?\.pth")
"""The name of a weight file. `.previous`: kept from before a change, and taken only where somebody
names it."""


def weight_file(stage: str, model: ModelConfig) -> str:
    """File name of a stage's weights, such as `full_sft_512.pth` or `pretrain_640_moe.pth`."""
    return f"{STAGE_TABLE[stage].weights}_{model.hidden_size}{'_moe' if model.use_moe else ''}.pth"


def weight_file_after(stage: str, start: str) -> str | None:
    """File name of a stage's weights that start from those of the name `start`; None where it tells
    no shape."""
    found = WEIGHT_FILE.fullmatch(start)
    return f"{STAGE_TABLE[stage].weights}_{found['shape']}.pth" if found else None


def trainer_of(file_name: str) -> str:
    """The program that writes weights of this file name, in `trainer/`; empty where this version
    has none."""
    found = WEIGHT_FILE.fullmatch(file_name)
    stem = found["stem"] if found else file_name
    return next((spec.trainer for spec in STAGE_TABLE.values() if spec.weights == stem), "")

"""The stages that train a model, a row each: program, weights, data, start, settings, version.

A new stage needs a row here, its own settings (if any) in `stage_settings.py`, and a page in
`trainer/`.
"""

import re
from dataclasses import dataclass

from configs.schema import ModelConfig, TrainConfig
from configs.stage_settings import DPOConfig

DATA_STEMS = {"documents": "pretrain", "conversations": "sft", "pairs": "dpo"}
"""Kind of data -> how its files begin, such as `sft_chinese.jsonl` and `sft_tokens/`. Several
stages may use the same kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """What all programs know about one stage."""

    trainer: str
    """Its program, in `trainer/`."""
    weights: str
    """How the names of its weights begin: `full_sft` for `out/full_sft_512.pth`."""
    data: str
    """The kind of data that it trains on, a key of DATA_STEMS."""
    start: str
    """The weights that it starts from unless a flag names others; `none`: random ones."""
    rate_share: float
    """Its learning rate, if no setting gives one, as a share of pretraining's rate. A later stage
    needs a smaller rate, so that the model does not forget. The profile `cpu` has its own rates for
    SFT and DPO; the experiments are in docs/lab_log.md."""
    recipe_version: int
    """See RECIPE_VERSION."""
    settings: type[TrainConfig] = TrainConfig
    """The class of its settings: TrainConfig, or a class of `stage_settings.py`."""
    arguments: str = ""
    """Environment variable with extra flags for its trainer; "": `run.sh` does not run this
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
"""Stage -> version. Raise it by hand when a change of the arithmetic or of a rule gives another
result for the same settings and inputs. Then older results no longer count as done. A hash of the
source files would do that too often: everything would be trained again because a function moved.
`tests/test_recipe_version.py` fails if a result changed and its version did not."""


def continues_text(stage: str) -> bool:
    """Whether a model of this stage only continues a text: it was trained on documents alone."""
    return stage in STAGE_TABLE and STAGE_TABLE[stage].data == "documents"


# --- names of files -------------------------------------------------------------------------------


def record_file(data: str) -> str:
    """Name of the file with the mix's training records of a kind."""
    return f"{DATA_STEMS[data]}_chinese.jsonl"


def heldout_file(data: str) -> str:
    """Name of the file with the mix's held-out records of a kind."""
    return f"{DATA_STEMS[data]}_chinese_heldout.jsonl"


def tensor_folder(data: str) -> str:
    """Name of the folder with the token tensors of a kind."""
    return f"{DATA_STEMS[data]}_tokens"


WEIGHT_FILE = re.compile(r"(?P<stem>.+)_(?P<shape>\d+(_moe)?)(?P<previous>\.previous)?\.pth")
"""The name of a weight file. `.previous` marks weights that were kept before a change. A program
takes them only if the user names them."""


def weight_file(stage: str, model: ModelConfig) -> str:
    """File name of a stage's weights, such as `full_sft_512.pth` or `pretrain_640_moe.pth`."""
    return f"{STAGE_TABLE[stage].weights}_{model.hidden_size}{'_moe' if model.use_moe else ''}.pth"


def weight_file_after(stage: str, start: str) -> str | None:
    """File name of a stage's weights, if it starts from the weights with the name `start`.

    None if that name does not tell the shape.
    """
    found = WEIGHT_FILE.fullmatch(start)
    return f"{STAGE_TABLE[stage].weights}_{found['shape']}.pth" if found else None


def trainer_of(file_name: str) -> str:
    """The program in `trainer/` that writes weights of this file name; "" if there is none."""
    found = WEIGHT_FILE.fullmatch(file_name)
    stem = found["stem"] if found else file_name
    return next((spec.trainer for spec in STAGE_TABLE.values() if spec.weights == stem), "")

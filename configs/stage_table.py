"""The stages that train a model, a row each: program, weights, data, start, settings, version.

A new stage needs a row here, its own settings (if any) in `stage_settings.py`, and a page in
`trainer/`.
"""

import re
from dataclasses import dataclass

from configs.schema import ModelConfig, TrainConfig
from configs.stage_settings import (
    AdapterConfig,
    DistillConfig,
    DPOConfig,
    GRPOConfig,
    PPOConfig,
    ReasonConfig,
    ReplayConfig,
    RewardConfig,
)

DATA_STEMS = {"documents": "pretrain", "conversations": "sft", "pairs": "dpo"}
"""Kind of data -> how its files begin, such as `sft_chinese.jsonl` and `sft_tokens/`. Several
stages may use the same kind."""
PROMPTS = "prompts"
"""A kind of data without tensors: conversations whose last answer the model does not see. It makes
answers of its own, and a reward judges them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """What all programs know about one stage."""

    trainer: str
    """Its program, in `trainer/`."""
    weights: str
    """How the names of its weights begin: `full_sft` for `out/full_sft_512.pth`."""
    data: str
    """The kind of data that it trains on: a key of DATA_STEMS, or PROMPTS."""
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
    optional: bool = False
    """Whether `run.sh` trains it only where `--with` names it."""
    data_set: str = ""
    """The bundled data set (dataset/samples/sets.py) that it trains on unless a flag names other
    data; "": the records of the mix."""
    folder: str = ""
    """Where its weights are below OUT_DIR; "": in OUT_DIR itself."""
    talks: bool = True
    """Whether its weights write text. Those of a reward model only judge one."""
    named_by: str = ""
    """The setting that names its file of weights in place of `weights`; "": none does."""


STAGE_TABLE = {
    "pretrain": StageSpec(
        trainer="train_pretrain.py", weights="pretrain", data="documents", start="none",
        rate_share=1.0, recipe_version=1, arguments="PRETRAIN_ARGS",
    ),
    "sft": StageSpec(
        trainer="train_full_sft.py", weights="full_sft", data="conversations", start="pretrain",
        rate_share=0.5, recipe_version=1, settings=ReplayConfig, arguments="SFT_ARGS",
    ),
    "dpo": StageSpec(
        trainer="train_dpo.py", weights="rlhf", data="pairs", start="full_sft",
        rate_share=0.02, recipe_version=1, settings=DPOConfig, arguments="DPO_ARGS",
    ),
    "lora": StageSpec(
        trainer="train_lora.py", weights="lora_identity", data="conversations", start="full_sft",
        rate_share=5.0, recipe_version=1, settings=AdapterConfig, arguments="LORA_ARGS", optional=True,
        data_set="lora_identity", folder="lora", named_by="lora_name",
    ),
    "reason": StageSpec(
        trainer="train_distill_reason.py", weights="reason", data="conversations", start="full_sft",
        rate_share=0.25, recipe_version=1, settings=ReasonConfig, arguments="REASON_ARGS", optional=True,
        data_set="reasoning",
    ),
    "distill": StageSpec(
        trainer="train_distillation.py", weights="full_dist", data="conversations", start="none",
        rate_share=1.0, recipe_version=1, settings=DistillConfig, arguments="DISTILL_ARGS", optional=True,
    ),
    "reward": StageSpec(
        trainer="train_reward.py", weights="reward", data="pairs", start="full_sft",
        rate_share=0.05, recipe_version=1, settings=RewardConfig, arguments="REWARD_ARGS", optional=True,
        talks=False,
    ),
    "grpo": StageSpec(
        trainer="train_grpo.py", weights="grpo", data=PROMPTS, start="full_sft",
        rate_share=0.02, recipe_version=1, settings=GRPOConfig, arguments="GRPO_ARGS", optional=True,
        data_set="prompts_sums",
    ),
    "ppo": StageSpec(
        trainer="train_ppo.py", weights="ppo_actor", data=PROMPTS, start="full_sft",
        rate_share=0.02, recipe_version=1, settings=PPOConfig, arguments="PPO_ARGS", optional=True,
        data_set="prompts_sums",
    ),
}  # fmt: skip
"""Stage -> its row, in the order in which they are trained."""

STAGES = tuple(stage for stage, spec in STAGE_TABLE.items() if spec.arguments and not spec.optional)
"""The stages that `run.sh` always trains and evaluates."""
OPTIONAL_STAGES = tuple(stage for stage, spec in STAGE_TABLE.items() if spec.arguments and spec.optional)
"""Those that it trains and evaluates after them where `--with` names them."""

TALKING_WEIGHTS = tuple(
    spec.weights for stage, spec in STAGE_TABLE.items() if stage in OPTIONAL_STAGES and spec.talks and not spec.folder
)
"""How the names of the optional stages' weights begin, as far as one can talk to them alone."""

RECIPE_VERSION = {"mix": 1, "tokenizer": 1, "export": 1} | {
    stage: spec.recipe_version for stage, spec in STAGE_TABLE.items()
}
"""Stage -> version. Raise it by hand when a change of the arithmetic or of a rule gives another
result for the same settings and inputs. Then older results no longer count as done. A hash of the
source files would do that too often: everything would be trained again because a function moved.
`tests/test_recipe_version.py` fails if a result changed and its version did not."""


def data_of(stage: str, settings: TrainConfig | None = None) -> str:
    """The kind of data of a stage: that of its row, unless its settings choose another kind."""
    return settings.data_kind if isinstance(settings, DistillConfig) else STAGE_TABLE[stage].data


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


def weights_stem(stage: str, train: TrainConfig | None = None) -> str:
    """How the path of a stage's weights begins, below OUT_DIR: `full_sft`, `lora/lora_medical`.

    Args: train: its settings, which may name the file; None: the name without settings.
    """
    spec = STAGE_TABLE[stage]
    name = getattr(train, spec.named_by) if spec.named_by and train else spec.weights
    return f"{spec.folder}/{name}" if spec.folder else name


def weight_file(stage: str, model: ModelConfig, train: TrainConfig | None = None) -> str:
    """Path of a stage's weights below OUT_DIR, such as `full_sft_512.pth`, `pretrain_640_moe.pth`
    or `lora/lora_identity_512.pth`.

    Args: train: as for `weights_stem`.
    """
    return f"{weights_stem(stage, train)}_{model.hidden_size}{'_moe' if model.use_moe else ''}.pth"


def weight_file_after(stage: str, start: str, train: TrainConfig | None = None) -> str | None:
    """The same path, if the stage starts from the weights with the file name `start`.

    None if that name does not tell the shape.
    """
    found = WEIGHT_FILE.fullmatch(start)
    return f"{weights_stem(stage, train)}_{found['shape']}.pth" if found else None


def trainer_of(file_name: str) -> str:
    """The program in `trainer/` that writes weights of this file name; "" if there is none."""
    found = WEIGHT_FILE.fullmatch(file_name)
    stem = found["stem"] if found else file_name
    return next((spec.trainer for spec in STAGE_TABLE.values() if spec.weights == stem), "")

"""Every knob of MiniLLM, as small frozen dataclasses, and the error that users see.

A default lives here and nowhere else. `configs/*.yaml` overrides it for a whole run, a flag overrides both.
"""

import math
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from configs.messages import both

CHAT_CATEGORIES = ("general", "knowledge", "math", "identity")
CATEGORIES = (*CHAT_CATEGORIES, "preference", "corpus")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("trapezoid", "cosine", "constant")
LARGEST_SEED = 2**62
"""Processes add their rank to it, and torch takes 64 bits."""
LARGEST_COUNT = 2**31 - 1
"""No count, size or length is larger; beyond 64 bits torch and NumPy would fail in their own words."""


class UserError(Exception):
    """Something the user can fix. The message is one line: what, where, what to do. Printed without
    a traceback.

    Args: english: the message, and all of `str(error)`. chinese: its short Chinese half.
    """

    def __init__(self, english: str, chinese: str = "") -> None:
        super().__init__(english)
        self.chinese = chinese

    @property
    def line(self) -> str:
        """What is printed: both halves."""
        return both(" ".join(str(self).splitlines()), self.chinese)


def _at_least(config: Any, bound: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not bound <= value < math.inf:  # false for nan too
            raise UserError(
                f"{name} = {value}: must be {bound} or more{'' if value < bound else ', and a number'}.",
                f"必须是不小于 {bound} 的数",
            )
        if isinstance(value, int) and value > LARGEST_COUNT:
            raise UserError(f"{name} = {value}: must be at most {LARGEST_COUNT}.", f"必须不大于 {LARGEST_COUNT}")


def check_seed(seed: int) -> None:
    """Raises: UserError where torch's generators can't take it."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed = {seed}: must be from 0 to {LARGEST_SEED}.", "随机种子超出范围")


def _one_of(config: Any, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise UserError(f"{name} = {getattr(config, name)!r}: must be one of {', '.join(choices)}.", "只能取其中之一")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a Qwen3 (dense) or Qwen3-MoE network; the names are those of transformers."""

    vocab_size: int = 6400
    """Rows of the embedding, special tokens included."""
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 0
    """Width of one head; 0: hidden_size / num_attention_heads."""
    intermediate_size: int = 0
    """Width of the SwiGLU; 0: 8/3 of hidden_size, rounded up to 64."""
    max_position_embeddings: int = 32768
    rope_theta: float = 1.0e6
    rope_scaling_factor: float = 1.0
    """YaRN (arXiv:2309.00071), at inference only: contexts this many times as long as the original; 1: plain RoPE."""
    original_max_position_embeddings: int = 2048
    """Longest row seen in training, from which YaRN stretches."""
    rms_norm_eps: float = 1.0e-6
    initializer_range: float = 0.02
    """Standard deviation of the initial embedding."""
    dropout: float = 0.0
    """Share of the residual branch's outputs dropped while training."""
    use_moe: bool = False
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 1088
    router_aux_loss_coef: float = 0.01
    """Weight of the load-balancing loss."""

    def __post_init__(self) -> None:
        _at_least(
            self, 1, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"
        )
        _at_least(self, 0, "head_dim", "intermediate_size", "moe_intermediate_size", "router_aux_loss_coef")
        _at_least(self, 1, "max_position_embeddings", "rope_theta", "num_experts", "num_experts_per_tok")
        _at_least(self, 0, "rms_norm_eps", "initializer_range")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout = {self.dropout}: must be in [0, 1).", "丢弃率应不小于 0 且小于 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads = {self.num_attention_heads}: must be a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}.",
                "查询头数必须是键值头数的整数倍",
            )
        if not self.head_dim and self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size = {self.hidden_size}: must be a multiple of "
                f"num_attention_heads = {self.num_attention_heads}, or give head_dim.",
                "隐藏层宽度必须是头数的整数倍，或给出 head_dim",
            )
        if (self.head_dim or self.hidden_size // self.num_attention_heads) % 2:
            raise UserError(
                "head_dim must be even, since RoPE turns pairs of numbers: change num_attention_heads.",
                "每个头的宽度必须是偶数：请修改 num_attention_heads",
            )
        _at_least(self, 1, "rope_scaling_factor", "original_max_position_embeddings")
        if self.use_moe:
            if not 1 <= self.num_experts_per_tok <= self.num_experts:
                raise UserError(
                    f"num_experts_per_tok = {self.num_experts_per_tok}: must be 1 to num_experts = {self.num_experts}.",
                    "每个 token 用的专家数应在 1 到专家总数之间",
                )
            for name in ("hidden_size", "moe_intermediate_size"):
                if getattr(self, name) % 8 or getattr(self, name) < 8:
                    raise UserError(
                        f"{name} = {getattr(self, name)}: must be a multiple of 8 in a mixture of experts, "
                        "whose grouped products read 16 bytes at one time.",
                        "混合专家模型中必须是 8 的倍数",
                    )

    @property
    def norm_topk_prob(self) -> bool:
        """Whether the weights of a token's experts are made to sum to one; a single one would always be 1."""
        return self.num_experts_per_tok > 1

    def resolve(self) -> "ModelConfig":
        """A copy in which the widths given as 0 are filled in; this is what a checkpoint stores."""
        return replace(
            self,
            head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
            intermediate_size=self.intermediate_size or -(-int(self.hidden_size * 8 / 3) // 64) * 64,
        )


PRESETS: dict[str, dict[str, Any]] = {
    "minillm-26m": {
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
        "use_moe": False,
    },
    "minillm-104m": {
        "hidden_size": 768, "num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 2,
        "use_moe": False,
    },
    "minillm-moe-145m": {
        "hidden_size": 640, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
        "use_moe": True, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1088,
    },
}  # fmt: skip
"""Shapes by name: fields of ModelConfig. The vocabulary's size is the tokenizer's."""


def preset(name: str) -> dict[str, Any]:
    """Fields of ModelConfig by name, or by width x depth, such as `256x4`: dense, heads of 32 below width 512.

    Raises: UserError on anything else.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if size is None:
        raise UserError(
            f"preset {name!r}: must be one of {', '.join(PRESETS)}, or width x depth, such as 256x4.",
            "没有这个预设：请用列出的名称，或 宽度x层数",
        )
    width, depth = int(size[1]), int(size[2])
    if width % 32:
        raise UserError(f"preset {name!r}: the width must be a multiple of 32.", "宽度必须是 32 的倍数")
    heads = 8 if width >= 512 else width // 32
    return {
        "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
        "num_key_value_heads": 1 if heads % 2 else 2, "use_moe": False,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training stage. A step is one optimizer update over batch_size * accumulation_steps * processes rows."""

    epochs: int = 1
    max_steps: int = 0
    """Stop after this many steps; 0: as many as the epochs need."""
    tokens_per_step: int = 0
    """Tokens of one step over all processes, where batch_size and accumulation_steps don't say it; 0: from the sizes of
    model and data, by the rule in trainer/autoconfig.py."""
    batch_size: int = 0
    """Rows (pairs in DPO) in one micro-batch of one process; 0: as many as are fast and fit the free memory."""
    accumulation_steps: int = 0
    """Micro-batches in one step; 0: as many as its tokens need."""
    cpu_processes: int = 1
    """Processes that share a step's rows on a CPU, each with a core at least: for a small model faster than as many threads
    (trainer/processes.py)."""
    max_seq_len: int = 2048
    """Tokens in one row."""
    optimizer: str = "muon"
    learning_rate: float = 0.0
    """Peak learning rate; 0: from the width of the model and the stage, by the rule in trainer/autoconfig.py."""
    embedding_lr_ratio: float = 0.0
    """Rate of the embedding, which is the output matrix too, as a multiple of the other parameters'; 0: where it is
    learnt from nothing, 20 with Muon and 60 with AdamW; 1 afterwards."""
    schedule: str = "trapezoid"
    """trapezoid: warm-up, constant, linear warm-down; cosine: warm-up, cosine; constant: warm-up, constant."""
    warmup_ratio: float = 0.03
    """Share of the steps over which the rate climbs."""
    warmdown_ratio: float = 0.5
    """Share of the steps over which the trapezoid's rate falls."""
    min_lr_ratio: float = 0.05
    """Last learning rate as a share of the peak."""
    weight_decay: float = 0.1
    """Decoupled decay of the matrices; embeddings and norms have none."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    beta: float = 0.1
    """DPO: strength of the pull towards the reference model."""
    sft_loss_weight: float = 0.0
    """DPO: weight of the chosen answer's mean loss, which keeps what SFT taught (RPO, arXiv:2404.19733)."""
    seed: int = 42
    device: str = "auto"
    dtype: str = "auto"
    use_compile: bool | None = None
    """Compile the blocks; None: where the run is long enough for it to pay."""
    deterministic: bool = False
    """On a GPU, take only kernels that give the same bits in each run, which may be slower. A CPU's always do."""
    gradient_checkpointing: bool = False
    """Keep only the input of each block for the backward pass, and compute the rest again: less memory, a third slower."""
    num_workers: int = 0
    """Worker processes that build tensors when a JSONL file is given; 0: one a core."""
    eval_interval: int = 0
    """Steps between validation losses; 0: five evaluations in the run."""
    log_interval: int = 10
    """Steps between lines of the metrics file."""
    save_interval: int = 100
    """Steps between saves of the resume state."""
    use_wandb: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "log_interval", "save_interval", "cpu_processes")
        _at_least(self, 2, "max_seq_len")
        _at_least(
            self, 0, "max_steps", "tokens_per_step", "batch_size", "accumulation_steps", "learning_rate",
            "embedding_lr_ratio", "weight_decay", "grad_clip", "num_workers", "eval_interval", "sft_loss_weight",
        )  # fmt: skip
        for name in ("warmup_ratio", "warmdown_ratio", "min_lr_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} = {getattr(self, name)}: must be from 0 to 1.", "应在 0 到 1 之间")
        check_seed(self.seed)
        if not 0 < self.beta < math.inf:
            raise UserError(f"beta = {self.beta}: must be above 0, and a number.", "必须是大于 0 的数")
        _one_of(self, "optimizer", OPTIMIZERS)
        _one_of(self, "schedule", SCHEDULES)
        _one_of(self, "dtype", DTYPES)
        if self.device not in DEVICES and not self.device.startswith("cuda:"):
            raise UserError(
                f"device = {self.device!r}: must be one of {', '.join(DEVICES)}, or cuda:N.",
                "没有这种设备：请用列出的名称",
            )


RESULT_NEUTRAL = frozenset(
    {"log_interval", "save_interval", "eval_interval", "num_workers", "use_wandb", "device", "gradient_checkpointing"}
    | {"cpu_processes"}
)
"""Fields of TrainConfig that change what is printed or where it runs, but not what is learnt: they redo no stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """What goes into the mixture. Targets count records."""

    general: int = 460_000
    knowledge: int = 100_000
    math: int = 8_000
    identity: int = 1_000
    """Records of each identity file: the bundled one, or those of the user that take its place."""
    preference: int = 60_000
    corpus: int = 0
    """Raw text records; 0: all of them."""
    max_rounds: int = 8
    """How often one record may be repeated to reach a target (identity follows its target)."""
    heldout_share: float = 0.05
    heldout_min: int = 50
    heldout_max: int = 2_000
    seed: int = 42
    name: str = "MiniLLM"
    """Fills {{name}} in identity records."""
    author: str = "MiniLLM团队"
    """Fills {{author}} in identity records."""

    def __post_init__(self) -> None:
        _at_least(self, 0, *CATEGORIES, "heldout_min", "heldout_max")
        _at_least(self, 1, "max_rounds")
        check_seed(self.seed)
        if not 0.0 <= self.heldout_share < 1.0:
            raise UserError(f"heldout_share = {self.heldout_share}: must be in [0, 1).", "留出比例应不小于 0 且小于 1")
        if not self.name.strip() or not self.author.strip():
            raise UserError(
                "name and author must not be empty: they fill the identity records.", "模型名和作者名不能为空"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Evaluation after a stage, on the test half of the held-out records."""

    max_samples: int = 0
    """Largest number of records a category; 0: all of them."""
    batch_size: int = 64
    """Answers generated side by side."""
    max_new_tokens: int = 128
    seed: int = 42

    def __post_init__(self) -> None:
        _at_least(self, 0, "max_samples")
        _at_least(self, 1, "batch_size", "max_new_tokens")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One whole run: `configs/NAME.yaml`."""

    profile: str = "default"
    model: ModelConfig = field(default_factory=ModelConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    sft: TrainConfig = field(default_factory=TrainConfig)
    dpo: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)

    def stage(self, name: str) -> TrainConfig:
        """The training settings of `pretrain`, `sft` or `dpo`."""
        config: TrainConfig = getattr(self, name)
        return config


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain data, nested ones included."""
    return {
        f.name: as_dict(value) if hasattr(value := getattr(config, f.name), "__dataclass_fields__") else value
        for f in fields(config)
    }

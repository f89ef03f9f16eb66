"""Every setting of MiniLLM, as small frozen dataclasses, and the error that users see.

Each default and its help are here and nowhere else. `configs/*.yaml` overrides a default for a
whole pipeline, and a flag overrides both. What a single stage adds is in `stage_settings.py`.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from configs.knobs import knob, knobs_of
from configs.messages import both

CHAT_CATEGORIES = ("general", "knowledge", "math", "identity")
CATEGORIES = (*CHAT_CATEGORIES, "preference", "corpus")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("trapezoid", "cosine", "constant")
LARGEST_SEED = 2**62
"""Each process adds its rank to the seed, and torch takes 64 bits."""
LARGEST_COUNT = 2**31 - 1
"""The largest count, size or length that we accept. With a larger one torch or NumPy would fail
with an error that the user does not understand."""


class UserError(Exception):
    """An error that the user can fix: one line that says what, where, and what to do.

    Programs print it without a traceback.
    Args: english: the message, which is also `str(error)`. chinese: its short Chinese half.
    """

    def __init__(self, english: str, chinese: str = "") -> None:
        super().__init__(english)
        self.chinese = chinese

    @property
    def line(self) -> str:
        """The line that programs print, with both halves."""
        return both(" ".join(str(self).splitlines()), self.chinese)


def at_least(config: Any, bound: float, *names: str) -> None:
    """Raises: UserError when one of these fields is below `bound`, too large, or not a number."""
    for name in names:
        value = getattr(config, name)
        if not bound <= value < math.inf:  # every comparison with nan is false
            raise UserError(
                f"{name} = {value}: must be {bound} or more{'' if value < bound else ', and a number'}.",
                f"必须是不小于 {bound} 的数",
            )
        if isinstance(value, int) and value > LARGEST_COUNT:
            raise UserError(f"{name} = {value}: must be at most {LARGEST_COUNT}.", f"必须不大于 {LARGEST_COUNT}")


def check_seed(seed: int) -> None:
    """Raises: UserError for a seed that torch's generators can't take."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed = {seed}: must be from 0 to {LARGEST_SEED}.", "随机种子超出范围")


def one_of_its_choices(config: Any, *names: str) -> None:
    """Raises: UserError when one of these fields is not among the choices of its knob."""
    for name in names:
        value, choices = getattr(config, name), knobs_of(type(config))[name].choices
        if value not in choices:
            raise UserError(f"{name} = {value!r}: must be one of {', '.join(choices)}.", "只能取其中之一")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of a Qwen3 (dense) or Qwen3-MoE network. The names are those of transformers."""

    vocab_size: int = knob(6400, "tokens in the vocabulary", "词表大小")
    """Rows of the embedding, special tokens included."""
    hidden_size: int = knob(512, "width of the network", "隐藏层宽度")
    num_hidden_layers: int = knob(8, "number of blocks", "层数")
    num_attention_heads: int = knob(8, "query heads", "查询头数")
    num_key_value_heads: int = knob(2, "key and value heads", "键值头数")
    head_dim: int = knob(0, "width of one head; 0: hidden_size / num_attention_heads", "每个头的宽度", flag=False)
    intermediate_size: int = knob(0, "width of the SwiGLU", "前馈层宽度")
    """0: 8/3 of hidden_size, rounded up to a multiple of 64."""
    max_position_embeddings: int = knob(32768, "longest text in tokens", "最长文本", flag=False)
    rope_theta: float = knob(1.0e6, "base of RoPE's wavelengths", "RoPE 的底数", flag=False)
    rope_scaling_factor: float = knob(
        1.0, "contexts so many times as long; 1: plain RoPE", "上下文扩展倍数", flag=False
    )
    """By YaRN (arXiv:2309.00071), at inference only."""
    original_max_position_embeddings: int = knob(2048, "longest row of the training in tokens", "训练行长", flag=False)
    """The context that YaRN extends."""
    rms_norm_eps: float = knob(1.0e-6, "added to the mean square in RMSNorm", "RMSNorm 的小常数", flag=False)
    initializer_range: float = knob(0.02, "standard deviation of the first embedding", "初始词嵌入标准差", flag=False)
    dropout: float = knob(0.0, "share of residual outputs dropped", "丢弃率", "P")
    """In training only."""
    use_moe: bool = knob(False, "mixture of experts", "混合专家模型")
    num_experts: int = knob(8, "experts in a block", "专家数")
    num_experts_per_tok: int = knob(2, "experts a token", "每个词元用的专家数")
    moe_intermediate_size: int = knob(1088, "width of an expert", "专家宽度")
    router_aux_loss_coef: float = knob(0.01, "weight of the load-balancing loss", "负载均衡损失的权重", flag=False)

    def __post_init__(self) -> None:
        at_least(
            self, 1, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"
        )
        at_least(self, 0, "head_dim", "intermediate_size", "moe_intermediate_size", "router_aux_loss_coef")
        at_least(self, 1, "max_position_embeddings", "rope_theta", "num_experts", "num_experts_per_tok")
        at_least(self, 0, "rms_norm_eps", "initializer_range")
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
        at_least(self, 1, "rope_scaling_factor", "original_max_position_embeddings")
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
                        "whose grouped products read 16 bytes at once.",
                        "混合专家模型中必须是 8 的倍数",
                    )

    @property
    def norm_topk_prob(self) -> bool:
        """Whether the weights of a token's experts are scaled to the sum 1.

        Not for a single expert: its weight would always be 1, and the router would get no gradient.
        """
        return self.num_experts_per_tok > 1

    def resolve(self) -> "ModelConfig":
        """A copy in which each width of 0 is replaced by its value. Weights store this copy."""
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
"""Name -> fields of ModelConfig. The vocabulary's size comes from the tokenizer."""


def preset(name: str) -> dict[str, Any]:
    """The fields of ModelConfig for a name of PRESETS, or for WIDTHxDEPTH, such as `256x4`.

    `256x4` is a dense network. Below width 512 its heads are 32 wide, else it has 8 heads.
    Raises: UserError for anything else.
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
    """The settings of all training stages. What one stage adds is in `stage_settings.py`.

    A step is one update of the optimizer, over batch_size * accumulation_steps * processes rows.
    """

    epochs: int = knob(1, "passes over the data", "轮数")
    max_steps: int = knob(0, "stop after N steps; 0: by epochs", "最多步数")
    tokens_per_step: int = knob(0, "tokens in a step; 0: by rule", "每步词元数，0 为自动")
    """Of all processes together. It counts only if batch_size or accumulation_steps is 0. The rule
    depends on the sizes of model and data."""
    batch_size: int = knob(0, "rows in a micro-batch; 0: by memory", "微批大小（行），0 为自动")
    """Of one process. 0: as many as are fast and fit into the free memory."""
    accumulation_steps: int = knob(0, "micro-batches in a step; 0: by rule", "梯度累积，0 为自动")
    """0: as many as the tokens of a step need."""
    cpu_processes: int = knob(1, "processes on a CPU, a core each at least", "CPU 上的进程数", changes_result=False)
    """They share the rows of a step. For a small model this is faster than the same number of
    threads (trainer/processes.py)."""
    max_seq_len: int = knob(2048, "tokens in a row", "序列长度")
    learning_rate: float = knob(0.0, "peak learning rate; 0: by rule", "峰值学习率，0 为自动", "LR")
    """The rule depends on the width of the model and on the stage."""
    optimizer: str = knob("muon", "muon or adamw", "优化器", choices=OPTIMIZERS)
    schedule: str = knob("trapezoid", "learning rate over time", "学习率曲线", choices=SCHEDULES)
    """All begin with the warm-up. The trapezoid is constant, then falls linearly."""
    embedding_lr_ratio: float = knob(
        0.0, "embedding's rate as a multiple of the others'; 0: by rule", "词嵌入学习率的倍数，0 为自动", "R"
    )
    """The embedding is also the output matrix. The rule: in training from scratch 20 with Muon and
    60 with AdamW, else 1."""
    warmup_ratio: float = knob(0.03, "share of steps to warm up", "预热比例", "P")
    warmdown_ratio: float = knob(0.5, "share of steps to warm down", "衰减比例", "P")
    """In these last steps the trapezoid's rate falls."""
    min_lr_ratio: float = knob(0.05, "last rate as a share of the peak", "最终学习率占峰值的比例", "P")
    weight_decay: float = knob(0.1, "decay of the matrices", "权重衰减", "W")
    """Decoupled weight decay. Embeddings and norms have none."""
    grad_clip: float = knob(1.0, "largest gradient norm; 0: none", "梯度裁剪", "G")
    seed: int = knob(42, "seed of all randomness", "随机种子")
    device: str = knob("auto", f"{', '.join(DEVICES)} or cuda:N", "设备", changes_result=False)
    dtype: str = knob("auto", "arithmetic of the products", "计算精度", choices=DTYPES)
    use_compile: bool | None = knob(None, "torch.compile the step (default: in long runs)", "编译训练步")
    """Only the blocks are compiled. None: if the run is long enough to save time by it."""
    deterministic: bool = knob(False, "on a GPU: the same bits in each run, slower", "显卡上逐位可复现，较慢")
    """On a CPU the results are always the same to the last bit."""
    gradient_checkpointing: bool = knob(
        False, "keep less and compute it again: less memory, slower", "重算激活以节省显存", changes_result=False
    )
    """Only the input of each block is kept for the backward pass. This is a third slower."""
    num_workers: int = knob(0, "processes that tokenize; 0: one a core", "分词进程数", changes_result=False)
    """Only used if a JSONL file is given instead of tensors."""
    log_interval: int = knob(10, "steps between log lines", "日志间隔", changes_result=False)
    save_interval: int = knob(100, "steps between saves", "保存间隔", changes_result=False)
    eval_interval: int = knob(0, "steps between validations; 0: five", "验证间隔", changes_result=False)
    use_wandb: bool = knob(False, "log to wandb or swanlab", "记录到 wandb 或 swanlab", changes_result=False)

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "log_interval", "save_interval", "cpu_processes")
        at_least(self, 2, "max_seq_len")
        at_least(self, 0, "max_steps", "tokens_per_step", "batch_size", "accumulation_steps", "learning_rate")
        at_least(self, 0, "embedding_lr_ratio", "weight_decay", "grad_clip", "num_workers", "eval_interval")
        for name in ("warmup_ratio", "warmdown_ratio", "min_lr_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} = {getattr(self, name)}: must be from 0 to 1.", "应在 0 到 1 之间")
        check_seed(self.seed)
        one_of_its_choices(self, "optimizer", "schedule", "dtype")
        if self.device not in DEVICES and not self.device.startswith("cuda:"):
            raise UserError(
                f"device = {self.device!r}: must be one of {', '.join(DEVICES)}, or cuda:N.",
                "没有这种设备：请用列出的名称",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """The settings of the mix. Targets are numbers of records."""

    general: int = knob(460_000, "general talk; 0: none", "通用对话，0 为不用")
    knowledge: int = knob(100_000, "knowledge; 0: none", "知识，0 为不用")
    math: int = knob(8_000, "math; 0: none", "数学，0 为不用")
    identity: int = knob(1_000, "who the model is, of each file; 0: none", "自我认知，每个文件的条数，0 为不用")
    """For each identity file: the bundled one, or those of the user that replace it."""
    preference: int = knob(60_000, "pairs of answers; 0: none", "偏好，0 为不用")
    corpus: int = knob(0, "raw text; 0: all", "语料，0 为全部")
    max_rounds: int = knob(8, "how often a record may be repeated", "单条最多重复次数")
    """To reach a target. For identity records there is no limit."""
    heldout_share: float = knob(0.05, "share of keys never trained on", "留出比例", "P")
    heldout_min: int = knob(50, "fewest held-out records of a category", "每类最少留出条数", flag=False)
    heldout_max: int = knob(2_000, "most held-out records of a category", "每类最多留出条数", flag=False)
    seed: int = knob(42, "seed of all randomness", "随机种子")
    name: str = knob("MiniLLM", "what the model calls itself", "模型的名字", "TEXT")
    """Replaces {{name}} in identity records."""
    author: str = knob("MiniLLM团队", "who made it", "作者", "TEXT")
    """Replaces {{author}} in identity records."""

    def __post_init__(self) -> None:
        at_least(self, 0, *CATEGORIES, "heldout_min", "heldout_max")
        at_least(self, 1, "max_rounds")
        check_seed(self.seed)
        if not 0.0 <= self.heldout_share < 1.0:
            raise UserError(f"heldout_share = {self.heldout_share}: must be in [0, 1).", "留出比例应不小于 0 且小于 1")
        if not self.name.strip() or not self.author.strip():
            raise UserError(
                "name and author must not be empty: they fill the identity records.", "模型名和作者名不能为空"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """The settings of the evaluation after a stage, on the test half of the held-out records."""

    max_samples: int = knob(0, "records a category; 0: all", "每类最多条数")
    batch_size: int = knob(64, "answers side by side", "并行生成条数")
    max_new_tokens: int = knob(128, "longest answer in tokens", "回答最长词元数", flag=False)
    seed: int = knob(42, "seed of the choice of samples", "随机种子")

    def __post_init__(self) -> None:
        at_least(self, 0, "max_samples")
        at_least(self, 1, "batch_size", "max_new_tokens")
        check_seed(self.seed)

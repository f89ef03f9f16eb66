"""The settings that one stage adds to those of all stages.

A class here is named in the stage's row of `stage_table.py`. Its flags, their help and its block in
a profile follow from that. A stage has no setting that it does not use.
"""

import math
import re
from dataclasses import dataclass

from configs.knobs import knob
from configs.schema import OPTIMIZERS, TrainConfig, UserError, at_least, one_of_its_choices

NAME = re.compile(r"\w[\w.-]*")
"""A name that can be part of a file name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOConfig(TrainConfig):
    """The settings of preference training. Its rows are pairs."""

    batch_size: int = knob(0, "pairs in a micro-batch; 0: by memory", "微批大小（对），0 为自动")
    beta: float = knob(0.1, "pull towards the reference", "参考模型约束强度", "B")
    sft_loss_weight: float = knob(0.0, "weight of the chosen answer's loss", "优选回答的损失权重", "W")
    """The mean loss of the chosen answers is added with this weight, so that the model keeps what
    SFT taught (RPO, arXiv:2404.19733)."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)  # super() without arguments fails in a dataclass with slots
        at_least(self, 0, "sft_loss_weight")
        if not 0 < self.beta < math.inf:
            raise UserError(f"beta = {self.beta}: must be above 0, and a number.", "必须是大于 0 的数")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig(TrainConfig):
    """The settings of stages that can take old rows beside their new ones (trainer/replay.py)."""

    replay_share: float = knob(0.0, "share of rows from the SFT mix", "每步中复习旧数据的比例", "P")
    replay_path: str = knob("", "its tensors (DATA_DIR/sft_tokens)", "旧数据的张量目录", "DIR", changes_result=False)
    """Where they lie does not matter; fingerprints cover their content."""
    replay_without: str = knob("", "old names not to learn, with commas", "复习时不再学的旧名字")
    """Empty: the names of the mix, if the new data gives the model another name."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if not 0.0 <= self.replay_share < 1.0:
            raise UserError(f"replay_share = {self.replay_share}: must be in [0, 1).", "复习比例应不小于 0 且小于 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonConfig(ReplayConfig):
    """The settings of learning to think before the answer."""

    replay_share: float = knob(0.5, "share of rows from the SFT mix", "每步中复习旧数据的比例", "P")
    """Without them the model would answer everything as it answers problems."""
    tag_weight: float = knob(1.0, "how much the marks of thought and answer count", "思考与回答标记的损失权重", "W")
    """1: as much as other tokens. More makes answers well formed sooner; here they soon are
    (docs/methods/reasoning.md)."""

    def __post_init__(self) -> None:
        ReplayConfig.__post_init__(self)
        if not 0 < self.tag_weight < math.inf:
            raise UserError(f"tag_weight = {self.tag_weight}: must be above 0, and a number.", "必须是大于 0 的数")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig(ReplayConfig):
    """The settings of LoRA (model/model_lora.py)."""

    epochs: int = knob(10, "passes over the data", "轮数")
    """What an adapter learns is small."""
    optimizer: str = knob("adamw", "adamw, the only one for adapters", "优化器，适配器只用 AdamW", choices=OPTIMIZERS)
    """Muon makes all directions of an update equally large. A and B are read one after the other,
    and only their product means something, so no direction of one alone should be made large."""
    weight_decay: float = knob(0.0, "decay of the matrices", "权重衰减", "W")
    """The frozen base keeps the weights close to what they were."""
    replay_share: float = knob(0.5, "share of rows from the SFT mix", "每步中复习旧数据的比例", "P")
    lora_name: str = knob("lora_identity", "file: lora/NAME_512.pth", "适配器的名字", changes_result=False)
    lora_rank: int = knob(8, "rank of A and B", "秩")
    lora_alpha: float = knob(16.0, "B A is multiplied by alpha / rank", "缩放系数", "A")
    lora_dropout: float = knob(0.0, "share of A's inputs dropped", "A 输入的丢弃率", "P")
    use_rslora: bool = knob(False, "multiply by alpha / sqrt(rank) instead", "改用 alpha / sqrt(秩)")
    target_modules: str = knob("", "such as q_proj,o_proj; empty: all linear layers", "加适配器的层，空为全部线性层")

    def __post_init__(self) -> None:
        ReplayConfig.__post_init__(self)
        at_least(self, 1, "lora_rank")
        if self.optimizer != "adamw":
            raise UserError(
                f"optimizer = {self.optimizer!r}: adapters are trained with adamw. Leave it out.",
                "适配器只用 AdamW 训练：请去掉该选项",
            )
        if not NAME.fullmatch(self.lora_name):
            raise UserError(
                f"lora_name = {self.lora_name!r}: must be a plain name, since the file is lora/NAME_512.pth.",
                "只能是普通名字，不能含路径",
            )


DATA_KINDS = ("conversations", "documents")
"""What a student can learn from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(TrainConfig):
    """The settings of distillation (trainer/divergence.py)."""

    teacher: str = knob(
        "full_sft", "weights of the teacher, or its folder", "教师权重或目录", "NAME|PATH", changes_result=False
    )
    """Its content counts, not its name."""
    data_kind: str = knob("conversations", "what the rows hold", "数据种类", choices=DATA_KINDS)
    """Conversations, as for SFT, or documents, as for pretraining."""
    alpha: float = knob(0.5, "weight of the labels' own loss, 0 to 1", "标签损失的权重，0 到 1", "A")
    """The divergence from the teacher has the rest."""
    temperature: float = knob(1.0, "divides both models' logits", "蒸馏温度", "T")
    beta: float = knob(0.0, "0: forward KL, 1: reverse KL, between: JSD", "0 为正向 KL，1 为反向 KL", "B")
    on_policy_share: float = knob(0.0, "share of rows that the student answers", "学生自己作答的比例", "P")
    """On these rows the loss is the reverse KL alone, for each token of the answer
    (trainer/on_policy.py)."""
    max_gen_len: int = knob(128, "longest answer of the student in tokens", "学生回答的最长词元数")

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        at_least(self, 1, "max_gen_len")
        for name in ("alpha", "beta", "on_policy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be from 0 to 1.", "应在 0 到 1 之间")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature = {self.temperature}: must be above 0, and a number.", "必须是大于 0 的数")
        if self.data_kind not in DATA_KINDS:
            raise UserError(
                f"data_kind = {self.data_kind!r}: must be one of {', '.join(DATA_KINDS)}.", "只能取其中之一"
            )
        if self.on_policy_share and self.data_kind == "documents":
            raise UserError(
                f"on_policy_share = {self.on_policy_share}: documents have no prompts to answer. Give --data_kind "
                "conversations, or leave it out.",
                "文档里没有可回答的提问：请改用对话数据，或去掉该选项",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(TrainConfig):
    """The settings of a reward model (model/heads.py). Its rows are pairs."""

    batch_size: int = knob(0, "pairs in a micro-batch; 0: by memory", "微批大小（对），0 为自动")
    centering: float = knob(0.01, "pull of the mean reward towards 0", "奖励均值归零的强度", "C")

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        at_least(self, 0, "centering")


# --- learning from rewards ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig(TrainConfig):
    """The settings of stages that learn from rewards. Their rows are prompts.

    A step samples `num_generations` answers to each of batch_size * accumulation_steps * processes
    prompts, and makes one update of the optimizer for each part of them (`num_minibatches`).
    """

    batch_size: int = knob(8, "prompts in a micro-batch", "微批大小（提示）")
    accumulation_steps: int = knob(4, "micro-batches of prompts in a step", "每步的微批数")
    optimizer: str = knob("adamw", "muon or adamw", "优化器", choices=("muon", "adamw"))
    learning_rate: float = knob(1.0e-4, "peak learning rate", "峰值学习率", "LR")
    """The rate decides more than any variant of the loss: three times as much is too much."""
    warmup_ratio: float = knob(0.0, "share of steps to warm up", "预热比例", "P")
    warmdown_ratio: float = knob(1.0, "share of steps to warm down", "衰减比例", "P")
    min_lr_ratio: float = knob(0.0, "last rate as a share of the peak", "最终学习率占峰值的比例", "P")
    weight_decay: float = knob(0.0, "decay of the matrices", "权重衰减", "W")
    max_seq_len: int = knob(512, "tokens of prompt and answer", "提示与回答的最大长度")
    dtype: str = knob("float32", "arithmetic of the products", "计算精度", choices=("auto", "float32", "bfloat16"))
    """In float32 the answers are sampled from the very distribution that is trained."""
    use_compile: bool | None = knob(False, "torch.compile the step", "编译训练步")
    save_interval: int = knob(20, "steps between saves", "保存间隔", changes_result=False)
    log_interval: int = knob(1, "steps between log lines", "日志间隔", changes_result=False)
    eval_interval: int = knob(20, "steps between validations; 0: five", "验证间隔")
    """A validation chooses the weights that are kept."""

    num_generations: int = knob(8, "answers to each prompt", "每个提示的回答数")
    max_gen_len: int = knob(64, "longest answer in tokens", "回答最长词元数")
    temperature: float = knob(1.0, "of the sampling", "采样温度", "T")
    """At 1 the model is trained on what it says itself. There is no top-k and no top-p: they would
    cut off tokens that the loss believes to be possible."""
    num_minibatches: int = knob(1, "updates from the answers of a step", "每步的更新次数")
    clip_epsilon: float = knob(0.2, "how far a ratio of probabilities may move", "概率比的裁剪范围", "E")
    beta: float = knob(0.0, "weight of the divergence from the start; 0: none", "与起始模型的 KL 权重", "B")
    reward: str = knob("rule", "rule, module:function or FILE.py:function", "奖励：rule 或 模块:函数", "NAME")
    reward_model_path: str = knob("", "a reward model instead", "改用奖励模型", "PATH", changes_result=False)
    """Where it lies does not matter; fingerprints cover its content."""
    reward_unproven: bool = knob(False, "take a reward model that is not above chance", "允许未经证实的奖励模型")
    rollback: bool = knob(True, "keep the best weights, and end after a fall of 5 points", "保留最佳权重，变差时停止")

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        at_least(self, 1, "batch_size", "accumulation_steps", "num_generations", "max_gen_len", "num_minibatches")
        at_least(self, 0, "beta")
        one_of_its_choices(self, "dtype")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} = {getattr(self, name)}: must be above 0, and a number.", "必须是大于 0 的数")
        if not 0 < self.clip_epsilon < 1:
            raise UserError(f"clip_epsilon = {self.clip_epsilon}: must be above 0 and below 1.", "应在 0 和 1 之间")
        if self.max_gen_len >= self.max_seq_len:
            raise UserError(
                f"max_gen_len = {self.max_gen_len}: leaves no room for a prompt within max_seq_len = {self.max_seq_len}.",
                "没有给提示留出余地：请调小 max_gen_len",
            )
        prompts = self.batch_size * self.accumulation_steps
        if self.num_minibatches > prompts:
            raise UserError(
                f"num_minibatches = {self.num_minibatches}: more than the {prompts} prompts of a step.",
                "更新次数多于每步的提示数",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOConfig(PolicyConfig):
    """The settings of GRPO: three switches of the loss (trainer/losses.py)."""

    advantage: str = knob("mean", "none, mean or deviation", "优势的算法", choices=("none", "mean", "deviation"))
    ratio: str = knob("clip", "none, clip or cispo", "概率比的用法", choices=("none", "clip", "cispo"))
    loss_mean: str = knob(
        "constant", "constant, tokens or sequences", "损失的平均方式", choices=("constant", "tokens", "sequences")
    )

    def __post_init__(self) -> None:
        PolicyConfig.__post_init__(self)
        one_of_its_choices(self, "advantage", "ratio", "loss_mean")
        if self.advantage != "none" and self.num_generations < 2:
            raise UserError(
                f"num_generations = {self.num_generations}: an answer is compared with others to the same prompt. Give 2 or "
                "more, or --advantage none.",
                "每个提示至少要有 2 个回答",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig(PolicyConfig):
    """The settings of PPO: those of its value model, and of the advantages."""

    num_minibatches: int = knob(4, "updates from the answers of a step", "每步的更新次数")
    value_learning_rate: float = knob(1.0e-3, "peak learning rate of the value model", "价值模型的学习率", "LR")
    value_warmup_steps: int = knob(5, "steps that train the value model alone", "先只训练价值模型的步数")
    """Values of an untrained head say nothing, and neither do advantages over them."""
    gamma: float = knob(1.0, "discount of later rewards", "折扣", "G")
    gae_lambda: float = knob(0.95, "how far advantages look ahead", "优势估计的衰减", "L")
    value_clip_epsilon: float = knob(0.2, "how far a value may move in a step", "价值的裁剪范围", "E")

    def __post_init__(self) -> None:
        PolicyConfig.__post_init__(self)
        at_least(self, 0, "value_warmup_steps", "value_learning_rate")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be from 0 to 1.", "应在 0 到 1 之间")
        if not 0 < self.value_clip_epsilon < math.inf:
            raise UserError(f"value_clip_epsilon = {self.value_clip_epsilon}: must be above 0.", "必须大于 0")

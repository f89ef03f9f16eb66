"""The settings that one stage adds to those of all stages.

A class here is named in the stage's row of `stage_table.py`. Its flags, their help and its block in
a profile follow from that. A stage has no setting that it does not use.
"""

import math
from dataclasses import dataclass

from configs.knobs import knob
from configs.schema import TrainConfig, UserError, at_least


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

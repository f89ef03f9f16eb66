"""What a stage adds to the settings of all stages. A knob exists only where it does something.

A class here goes into the stage's row of `stage_table.py`; its flags, their help and its block of a
profile follow from it.
"""

import math
from dataclasses import dataclass

from configs.knobs import knob
from configs.schema import TrainConfig, UserError, at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOConfig(TrainConfig):
    """Preference training; its rows are pairs."""

    batch_size: int = knob(0, "pairs in a micro-batch; 0: by memory", "微批大小（对），0 为自动")
    beta: float = knob(0.1, "pull towards the reference", "参考模型约束强度", "B")
    sft_loss_weight: float = knob(0.0, "weight of the chosen answer's loss", "优选回答的损失权重", "W")
    """Its mean loss keeps what SFT taught (RPO, arXiv:2404.19733)."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)  # super() fails in a class with slots
        at_least(self, 0, "sft_loss_weight")
        if not 0 < self.beta < math.inf:
            raise UserError(f"beta = {self.beta}: must be above 0, and a number.", "必须是大于 0 的数")

"""Muon for the matrices, AdamW for the rest, and the learning rate over time."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import TrainConfig

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic whose iteration drives all singular values towards one (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrix of each of (n, rows, columns), by five Newton-Schulz steps in `dtype`."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices.to(dtype)
    # The Gram matrix is square in the smaller side, so a tall matrix is turned: fewer operations.
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    # No singular value is larger than the Frobenius norm. Below one they all go towards one: x <- a x + b G x + c G G x.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G G, without a pass of its own
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def on_host(tensor: Tensor) -> bool:
    """Whether reading a number from it costs nothing."""
    return tensor.device.type == "cpu"


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon=True` follow Muon, the others AdamW; both with decoupled weight decay.

    Muon (Jordan et al. 2024): Nesterov momentum, then the update is replaced by the nearest semi-orthogonal matrix,
    times 0.2 * sqrt(max(rows, columns)), which gives it the size of an AdamW update (Moonlight, arXiv:2502.16982,
    eq. 4), so that one learning rate serves both. Equal to `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, but
    in float32 where bfloat16 is slow, on stacked expert weights (each its own matrix), and all matrices of one
    shape in one product. AdamW: arXiv:1711.05101, algorithm 2.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, newton_schulz_dtype: torch.dtype = torch.float32) -> None:
        defaults = {
            "lr": 0.0, "weight_decay": 0.0, "muon": False, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8,
            "lr_ratio": 1.0, "step": 0.0,
        }  # fmt: skip
        super().__init__(groups, defaults)
        self.newton_schulz_dtype = newton_schulz_dtype

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which looks at the number of parameters alone. Raises: ValueError where a part is missing or of another
        shape: the next step would fail."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            names = ("momentum",) if group["muon"] else ("exp_avg", "exp_avg_sq")
            for parameter in group["params"]:
                parts = self.state.get(parameter) or {}
                if parts and not all(getattr(parts.get(name), "shape", None) == parameter.shape for name in names):
                    raise ValueError(f"a parameter's {' or '.join(names)} is missing or of another shape")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, taken: Tensor | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Args: taken: whether to take the step, () boolean; where it is false nothing changes, whatever the gradients hold.
        """
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure")
        gate: float | Tensor = 1.0
        if taken is not None and on_host(taken):
            if not taken:
                return
        elif taken is not None:
            # On a GPU nobody waits to learn whether the step is taken: every change is multiplied by 1 or 0 there.
            gate = taken.float()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if isinstance(gate, Tensor):
                _remove_gradients(parameters, where=gate == 0)
            if group["muon"]:
                self._muon(group, parameters, gate)
            else:
                self._adamw(group, parameters, gate)

    def _muon(self, group: dict[str, Any], parameters: list[nn.Parameter], gate: float | Tensor) -> None:
        # What is the same for all parameters is computed once: on a GPU each of these numbers is a kernel.
        kept = 1 - group["lr"] * group["weight_decay"] * gate
        newest = (1 - group["momentum"]) * gate
        by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            state, grad = self.state[parameter], parameter.grad
            assert grad is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            # Nesterov: the momentum takes in the new gradient, and the update looks one more step ahead.
            state["momentum"].lerp_(grad, newest)
            by_shape[parameter.shape[-2:]].append((parameter, grad.lerp(state["momentum"], group["momentum"])))
        for (rows, columns), members in by_shape.items():
            # All matrices of a shape go through one product: many small ones would leave a GPU idle.
            stacked = torch.cat([update.reshape(-1, rows, columns) for _, update in members])
            updates = orthogonalize(stacked, self.newton_schulz_dtype)
            # A semi-orthogonal matrix has entries of the mean square 1 / max(rows, columns). This factor gives them
            # the size 0.2 of an AdamW update.
            updates *= group["lr"] * 0.2 * math.sqrt(max(rows, columns)) * gate
            offset = 0
            for parameter, _ in members:
                count = parameter.numel() // (rows * columns)
                parameter.mul_(kept)
                parameter.sub_(updates[offset : offset + count].view_as(parameter))
                offset += count

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter], gate: float | Tensor) -> None:
        beta1, beta2 = group["betas"]
        group["step"] = group["step"] + gate  # of the group, whose parameters all have a gradient in each step
        # Both moments start at 0, so the first steps would be too small: dividing by 1 - beta^t makes up for it. `counted`
        # is never 0: a first step that is not taken must not divide by it.
        counted = group["step"] + (1.0 - gate)
        scale = (1 - beta2**counted) ** 0.5
        rate = group["lr"] * gate / (1 - beta1**counted)
        kept = 1 - group["lr"] * group["weight_decay"] * gate
        newest, newest_square = (1 - beta1) * gate, (1 - beta2) * gate
        for parameter in parameters:
            state, grad = self.state[parameter], parameter.grad
            assert grad is not None
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["exp_avg"].lerp_(grad, newest)
            state["exp_avg_sq"].lerp_(grad.square(), newest_square)
            denominator = (state["exp_avg_sq"].sqrt() / scale).add_(group["eps"])
            parameter.mul_(kept)
            parameter.sub_((state["exp_avg"] / denominator).mul_(rate))


def _remove_gradients(parameters: Iterable[nn.Parameter], *, where: Tensor) -> None:
    """Put zeros in place of gradients that may hold NaN, which times 0 would still be NaN."""
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad = torch.where(where, 0.0, parameter.grad)


def build_optimizer(model: nn.Module, config: TrainConfig, newton_schulz_dtype: torch.dtype) -> MuonAdamW:
    """Groups: hidden matrices (Muon, or AdamW when asked, with decay), then the embedding, then routers and norms (AdamW).

    A router is a classifier over few experts, where an orthogonal update has no meaning, so it is AdamW's. A token's row
    of the embedding moves in few of the steps, and bears a higher rate.
    """
    matrices: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            embeddings.append(parameter)
        elif parameter.dim() < 2 or name.endswith("mlp.gate.weight"):
            rest.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "muon": config.optimizer == "muon", "weight_decay": config.weight_decay, "lr_ratio": 1.0},
        {"params": embeddings, "muon": False, "weight_decay": 0.0, "lr_ratio": config.embedding_lr_ratio},
        {"params": rest, "muon": False, "weight_decay": 0.0, "lr_ratio": 1.0},
    ]
    return MuonAdamW(groups, newton_schulz_dtype=newton_schulz_dtype)


def lr_at(step: int, num_steps: int, config: TrainConfig) -> float:
    """Learning rate of a step (0 is the first): linear warm-up, then the schedule's shape down to the last rate."""
    peak, last = config.learning_rate, config.learning_rate * config.min_lr_ratio
    warmup = max(1, round(config.warmup_ratio * num_steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, num_steps - warmup)
        return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * progress))
    # Trapezoid: the peak until the warm-down, then a straight line that reaches `last` one step after the run.
    warmdown = max(1, round(config.warmdown_ratio * num_steps))
    left = min(1.0, (num_steps - step) / warmdown)
    return last + (peak - last) * left


def decay_has_begun(steps_done: int, num_steps: int, config: TrainConfig) -> bool:
    """Whether the rate of the last of these steps was already on its way down."""
    warmup = max(1, round(config.warmup_ratio * num_steps))
    rate = lr_at(steps_done - 1, num_steps, config)
    return steps_done > warmup and rate < config.learning_rate * (1 - 1e-9)  # 1e-9: rounding


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all groups this learning rate, times their own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]

"""Muon for the matrices, AdamW for the rest, and the learning rate over time."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import TrainConfig
from model.weights import REWARD_HEAD

NEWTON_SCHULZ_STEPS = 5
"""Iterations of `orthogonalize`."""
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the polynomial a x + b x^3 + c x^5, which brings singular values close to 1 when it is
applied again and again (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """About the nearest semi-orthogonal matrix of each matrix: all singular values become about 1.

    It takes NEWTON_SCHULZ_STEPS iterations of products, which a GPU is fast at; a singular value
    decomposition would be slow.
    Args: matrices: (n, rows, columns). dtype: that of the products.
    Returns: (n, rows, columns), in the dtype of `matrices`.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices.to(dtype)
    # x x^T has as many rows as x. A tall matrix is transposed first, so that it is the small one of
    # the two possible squares: fewer operations.
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    # The iteration needs singular values of 1 at most. None is larger than the Frobenius norm, so
    # dividing by that is enough.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    # x <- a x + b G x + c G G x, where G = x x^T. This applies the polynomial to each singular
    # value, and leaves the directions as they are.
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G G in one kernel
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def on_host(tensor: Tensor) -> bool:
    """Whether a number can be read from the tensor without waiting for a GPU."""
    return tensor.device.type == "cpu"


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon=True` follow Muon, the others AdamW; both with decoupled weight decay.

    Muon (Jordan et al. 2024): Nesterov momentum, then the update is replaced by the nearest
    semi-orthogonal matrix. The factor 0.2 * sqrt(max(rows, columns)) gives it the size of an AdamW
    update (Moonlight, arXiv:2502.16982, eq. 4), so that one learning rate serves both.
    AdamW: arXiv:1711.05101, algorithm 2.

    The update is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, but:
    - It runs in float32 where bfloat16 is slow.
    - Weights of experts may be stacked; each of them is a matrix of its own.
    - All matrices of one shape go through one product.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, newton_schulz_dtype: torch.dtype = torch.float32) -> None:
        defaults = {
            "lr": 0.0, "weight_decay": 0.0, "muon": False, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8,
            "lr_ratio": 1.0, "step": 0.0,
        }  # fmt: skip
        # lr_ratio: the group's rate as a multiple of the run's. step: updates that AdamW has made.
        super().__init__(groups, defaults)
        self.newton_schulz_dtype = newton_schulz_dtype

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a saved state back.

        torch itself checks only how many parameters there are.
        Raises: ValueError where a part is missing or of another shape. Without this check the next
        step would fail.
        """
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

        Args: taken: whether to take the step, () boolean. Where it is false nothing changes, even
        if gradients hold NaN.
        Raises: ValueError where a closure is given.
        """
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure")
        gate: float | Tensor = 1.0
        if taken is not None and on_host(taken):
            if not taken:
                return
        elif taken is not None:
            # Reading `taken` would make the host wait for the GPU. So the GPU computes the update
            # in any case, and every change is multiplied by 1 or 0.
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
        """Muon's update of one group. `gate` is 1, or 0 where the step is not taken."""
        # `gate` may be a tensor on a GPU, where each of these numbers costs a kernel. They are the
        # same for all parameters, so they are computed once.
        kept = 1 - group["lr"] * group["weight_decay"] * gate
        newest = (1 - group["momentum"]) * gate
        by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            state, grad = self.state[parameter], parameter.grad
            assert grad is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            # The momentum is a moving average of gradients. Nesterov: the update mixes the new
            # gradient in once more, and so looks one step ahead.
            state["momentum"].lerp_(grad, newest)
            by_shape[parameter.shape[-2:]].append((parameter, grad.lerp(state["momentum"], group["momentum"])))
        for (rows, columns), members in by_shape.items():
            # All matrices of one shape are stacked and go through one product. Many small products
            # would leave a GPU idle most of the time. Stacked experts are taken apart here.
            stacked = torch.cat([update.reshape(-1, rows, columns) for _, update in members])
            updates = orthogonalize(stacked, self.newton_schulz_dtype)
            # The squares of the entries of a semi-orthogonal matrix have the mean
            # 1 / max(rows, columns). This factor brings their root to 0.2, as in AdamW's updates.
            updates *= group["lr"] * 0.2 * math.sqrt(max(rows, columns)) * gate
            # Give each parameter its part of the stack. Weight decay comes first, and by itself.
            offset = 0
            for parameter, _ in members:
                count = parameter.numel() // (rows * columns)
                parameter.mul_(kept)
                parameter.sub_(updates[offset : offset + count].view_as(parameter))
                offset += count

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter], gate: float | Tensor) -> None:
        """AdamW's update of one group. `gate` is 1, or 0 where the step is not taken."""
        beta1, beta2 = group["betas"]
        group["step"] = group["step"] + gate  # one count is enough: in each step all of them have a gradient
        # Both moments start at 0, so they are too small at first. Dividing by 1 - beta^t corrects
        # that. A first step that is not taken has t = 0 and would divide by 0: `counted` is 1 then.
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
            # The mean gradient over the root of the mean square: about 1 where gradients agree.
            denominator = (state["exp_avg_sq"].sqrt() / scale).add_(group["eps"])
            parameter.mul_(kept)
            parameter.sub_((state["exp_avg"] / denominator).mul_(rate))


def _remove_gradients(parameters: Iterable[nn.Parameter], *, where: Tensor) -> None:
    """Replace all gradients by zeros if `where`, () boolean, is true: NaN times 0 is still NaN."""
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad = torch.where(where, 0.0, parameter.grad)


def build_optimizer(model: nn.Module, config: TrainConfig, newton_schulz_dtype: torch.dtype) -> MuonAdamW:
    """The optimizer with its three groups of parameters. Frozen ones are in none of them.

    1. Matrices inside the blocks: Muon, or AdamW where asked, with weight decay.
    2. The embedding: AdamW. Most tokens are rare, so a row gets few gradients and needs a higher
       rate.
    3. Norms, routers and the head of a reward model: AdamW. A router is a classifier over few
       experts, and the head is a vector: an orthogonal update has no meaning there.
    """
    matrices: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("embed_tokens.weight"):
            embeddings.append(parameter)
        elif parameter.dim() < 2 or name.endswith(("mlp.gate.weight", REWARD_HEAD)):
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
    """Learning rate of a step; 0 is the first.

    It rises in a straight line, and then follows the schedule from the peak down to the last rate.
    `constant` stays at the peak.
    """
    peak, last = config.learning_rate, config.learning_rate * config.min_lr_ratio
    warmup = max(1, round(config.warmup_ratio * num_steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, num_steps - warmup)
        return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * progress))
    # Trapezoid: the peak until the warm-down, then a straight line. It would reach `last` one step
    # after the end of the run, so that no step is wasted on a rate near 0.
    warmdown = max(1, round(config.warmdown_ratio * num_steps))
    left = min(1.0, (num_steps - step) / warmdown)
    return last + (peak - last) * left


def decay_has_begun(steps_done: int, num_steps: int, config: TrainConfig) -> bool:
    """Whether the last of `steps_done` steps had a rate below the peak, after the warm-up."""
    warmup = max(1, round(config.warmup_ratio * num_steps))
    rate = lr_at(steps_done - 1, num_steps, config)
    return steps_done > warmup and rate < config.learning_rate * (1 - 1e-9)  # 1e-9: rounding


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group this learning rate times its own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]

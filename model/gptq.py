"""GPTQ: round to 4 bits so that what a matrix gives on real text changes least (arXiv:2210.17323).

Shapes: O outputs of a matrix, I inputs, E experts, N tokens, C hidden size, k experts a token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.model_minillm import Experts, MiniLLM
from model.quantize import EMBEDDING, GROUP, Parts, Rounding, encode, group_range, matrix_names, nearest, two_in_a_byte

DAMPING = 0.01
"""Share of the mean squared input that is added to every input's own, so that an input which the
text never uses does not make the matrix of inputs singular."""
BATCH_ROWS = 8
"""Rows of text that are read at once."""


def gptq_rounding(model: MiniLLM, input_ids: Tensor, document_ids: Tensor | None = None) -> Rounding:
    """What `quantized_state` takes to round a model's matrices after this text.

    Args: model: in float32, on the CPU. input_ids (B, T): training text, a few 10,000 tokens. Never
    held-out text: the model would be fitted to it. document_ids (B, T): as `input_products`.
    """
    products = input_products(model, input_ids, document_ids)

    def rounding(name: str, weight: Tensor) -> Parts:
        assert name in products, name
        if weight.dim() == 2:
            return gptq(weight, products[name])
        experts = [gptq(one, product) for one, product in zip(weight, products[name], strict=True)]
        return {part: torch.stack([expert[part] for expert in experts]) for part in experts[0]}

    return rounding


def gptq(weight: Tensor, products: Tensor) -> Parts:
    """Round a matrix input by input; what rounding one adds to the outputs, the next ones take
    back.

    How much each of those changes follows from how the inputs vary together: with H the sum of
    x x^T over the text, an error at input j is best made up for by row j of the upper Cholesky
    factor of H's inverse (eq. 3 and step 3 of the paper).
    Args: weight (O, I). products (I, I): H. Returns: those of `encode` for int4.
    """
    if not products.any():  # an expert that the text never reaches
        return encode(weight, "int4")
    missing = -weight.shape[1] % GROUP
    weight, products = F.pad(weight, (0, missing)).clone(), F.pad(products.double(), (0, missing, 0, missing))
    mean = products.diagonal().mean()
    products.diagonal().add_(DAMPING * mean)
    factor = torch.linalg.cholesky(torch.linalg.inv(products), upper=True).float()
    scales, zeros, steps = [], [], []
    for start in range(0, weight.shape[1], GROUP):
        end = start + GROUP
        scale, zero = group_range(weight[:, None, start:end])  # (O, 1)
        errors = torch.zeros(len(weight), GROUP)
        for place in range(start, end):
            column = weight[:, place : place + 1]
            step = nearest(column[..., None], scale, zero)[..., 0]  # (O, 1)
            rounded = (step.float() - 8) * scale.float() + zero.float()
            error = (column - rounded) / factor[place, place]
            weight[:, place + 1 : end] -= error * factor[place, place + 1 : end]
            errors[:, place - start] = error[:, 0]
            steps.append(step)
        weight[:, end:] -= errors @ factor[start:end, end:]  # later groups, all at once
        scales.append(scale)
        zeros.append(zero)
    return {
        "": two_in_a_byte(torch.cat(steps, dim=1)),
        "scale": torch.cat(scales, dim=1),
        "zero": torch.cat(zeros, dim=1),
    }


@torch.no_grad()
def input_products(model: MiniLLM, input_ids: Tensor, document_ids: Tensor | None = None) -> dict[str, Tensor]:
    """Sum of x x^T over the inputs x of each matrix that is rounded, by the matrix's name.

    Args: document_ids (B, T): a token sees only its own document; a negative id means padding,
    which is left out. None: each row is one document.
    Returns: (I, I), and (E, I, I) for the stacked matrices of experts.
    """
    products: dict[str, Tensor] = {}
    if document_ids is None:
        document_ids = torch.zeros_like(input_ids)
    real = torch.empty(0)  # which tokens of the rows that are read are no padding, (N,)

    def add(name: str, x: Tensor) -> None:
        x = x.flatten(0, -2)[real]
        products[name] = products.get(name, torch.zeros(())) + x.T @ x

    def add_of_experts(name: str, module: Experts, x: Tensor, chosen: Tensor) -> None:
        pairs = []
        for expert, gate_up in enumerate(module.gate_up_proj):
            rows = x[(chosen == expert).any(dim=1) & real]  # (N of the expert, C)
            gate, up = F.linear(rows, gate_up).chunk(2, dim=-1)
            inner = F.silu(gate) * up
            pairs.append((rows.T @ rows, inner.T @ inner))
        for weight, ours in zip(("gate_up_proj", "down_proj"), zip(*pairs, strict=True), strict=True):
            key = f"{name}.{weight}"
            products[key] = products.get(key, torch.zeros(())) + torch.stack(ours)

    def listen(name: str, module: nn.Module) -> Any:
        if isinstance(module, Experts):
            return module.register_forward_pre_hook(lambda _, args: add_of_experts(name, module, args[0], args[1]))
        return module.register_forward_pre_hook(lambda _, args: add(f"{name}.weight", args[0]))

    names = {name.rpartition(".")[0] for name in matrix_names(model)} - {EMBEDDING}
    handles = [listen(name, model.get_submodule(name)) for name in names]
    try:
        for rows, documents in zip(input_ids.split(BATCH_ROWS), document_ids.split(BATCH_ROWS), strict=True):
            real = (documents >= 0).flatten()
            hidden, _ = model.hidden_states(rows, document_ids=documents)
            add(f"{EMBEDDING}.weight", hidden)  # as the output matrix: as a table it has no inputs
    finally:
        for handle in handles:
            handle.remove()
    return products

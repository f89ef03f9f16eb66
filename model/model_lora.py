"""LoRA: a small matrix beside each linear layer is trained, the layer itself stays as it is.

A layer with an adapter computes h = W x + scale * B A dropout(x) (arXiv:2106.09685, eq. 3). W is
frozen. A and B are so narrow that they have a few percent of its parameters. The file
`out/lora/NAME_512.pth` holds A and B of all layers, and which weights they were made for.

Shapes: I inputs and O outputs of a layer, r rank of an adapter.
Sources: LoRA arXiv:2106.09685; rsLoRA arXiv:2312.03732.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.artifacts import fingerprint, optional_part
from configs.load import from_mapping
from configs.paths import display
from configs.schema import ModelConfig, UserError, at_least
from model.manifest import WeightsManifest, wrong_parts
from model.model_minillm import MiniLLM
from model.weights import check_state, read_checkpoint, write_checkpoint

ATTENTION_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR_LAYERS = (*ATTENTION_LAYERS, "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block. The embedding is also the output matrix, so it gets no adapter."""
FOLDER = "lora"
"""Adapters are in this folder, beside the weights that they belong to."""
BASE = "base_sha256"
"""Key of the fingerprint of these weights in an adapter's manifest."""
REMEDY = "Give another path."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """What an adapter is, besides its numbers. An adapter file holds these five as plain data."""

    r: int = 8
    """Rank: rows of A, columns of B."""
    alpha: float = 16.0
    """B A is multiplied by alpha / r."""
    dropout: float = 0.0
    """Share of the inputs of A that are dropped, in training only."""
    target_modules: tuple[str, ...] = ()
    """The layers of a block that get an adapter, names of LINEAR_LAYERS; empty: all that can."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(r) instead. With alpha / r a higher rank learns hardly more
    (arXiv:2312.03732)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "r")
        if not 0.0 < self.alpha < math.inf:  # every comparison with nan is false
            raise UserError(f"alpha = {self.alpha}: must be a number above 0.", "必须是大于 0 的数")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout = {self.dropout}: must be in [0, 1).", "丢弃率应不小于 0 且小于 1")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def resolve(self, model: ModelConfig) -> "LoraConfig":
        """A copy that names its layers, in their order in a block.

        Raises: UserError for a layer that a network of this shape has not.
        """
        known = ATTENTION_LAYERS if model.use_moe else LINEAR_LAYERS
        wrong = [name for name in self.target_modules if name not in known]
        if wrong:
            why = (
                "the experts of a mixture are stacked in one tensor, which takes no adapter"
                if wrong[0] in LINEAR_LAYERS
                else "no linear layer of a block has this name"
            )
            raise UserError(
                f"target_modules: {wrong[0]}: {why}. Choose among {', '.join(known)}.",
                "这一层不能加适配器：请从列出的层中选择",
            )
        return replace(
            self, target_modules=tuple(n for n in known if not self.target_modules or n in self.target_modules)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A trained adapter, apart from any model."""

    state: Mapping[str, Tensor]
    """`model.layers.0.self_attn.q_proj.lora_A` (r, I), `.lora_B` (O, r) and so on, float32."""
    config: LoraConfig
    manifest: WeightsManifest
    """How it was made. Without a stage: nobody noted it (peft)."""
    base: str
    """`base_fingerprint` of the weights that it was made for. Empty: nobody noted it (peft)."""


class LoraLinear(nn.Module):
    """A linear layer with an adapter: h = W x + scale * B A dropout(x)."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout)
        self.lora_A = nn.Parameter(base.weight.new_empty(config.r, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, config.r))
        # As in peft: uniform with a bound of 1 / sqrt(I). With B at zero nothing changes at first.
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        # First down to r numbers: B A itself would be as large as W.
        narrow = F.linear(self.dropout(x), self.lora_A) * self.scale  # (..., r)
        y: Tensor = self.base(x) + F.linear(narrow, self.lora_B)  # (..., O)
        return y

    @property
    def weight(self) -> Tensor:
        """(O, I): W + scale * B A, for what copies weights, as generation does
        (model/decoder.py)."""
        return self.base.weight + self.lora_B @ self.lora_A * self.scale


# --- on a model -----------------------------------------------------------------------------------


def attach(model: MiniLLM, config: LoraConfig) -> LoraConfig:
    """Put a new adapter on a model. Its weights are frozen; only A and B can be trained.

    The output stays as it was, to the last bit, because B is zero. A is drawn with torch's global
    generator. An adapter that was attached before is detached: one is active at a time.
    Returns: the config with its layers named. Raises: UserError for layers that the model has not.
    """
    detach(model)
    config = config.resolve(model.config)
    model.requires_grad_(False)
    for name, layer in _layers(model, config):
        model.set_submodule(name, LoraLinear(layer, config).train(layer.training))
    return config


def attach_adapter(model: MiniLLM, adapter: Adapter, path: Path, base: Path) -> None:
    """Put a trained adapter on a model, instead of the one that was attached before.

    Args: path: where the adapter is from. base: where the model is from.
    Raises: UserError when it was made for other weights, when a tensor is missing, unknown or of
    another shape, or when it holds NaN or infinity.
    """
    ours = base_fingerprint(model)
    if adapter.base not in {"", ours}:
        raise UserError(
            f"{display(path)}: made for other weights ({adapter.base[:8]}) than {display(base)} ({ours[:8]}). Give the "
            "weights that it was trained on, or train it again on these.",
            "适配器是在别的权重上训练的：请给出那份权重，或重新训练",
        )
    try:
        config = adapter.config.resolve(model.config)
    except UserError as error:
        raise UserError(f"{display(path)}: {error}", error.chinese) from None
    check_state(_empty_state(model, config), adapter.state, path)
    attach(model, config)
    with torch.no_grad():
        for name, tensor in adapter.state.items():
            model.get_parameter(name).copy_(tensor)


def detach(model: MiniLLM) -> None:
    """Take the adapter away. The weights are as before, to the last bit, and can be trained."""
    attached = list(_attached(model))
    for name, layer in attached:
        model.set_submodule(name, layer.base)
    if attached:  # else it is not ours to say which weights can be trained
        model.requires_grad_(True)


@torch.no_grad()
def merge(model: MiniLLM) -> None:
    """Add the adapter to the weights: W + scale * B A. The adapter is gone then."""
    for _, layer in _attached(model):
        layer.base.weight.copy_(layer.weight)
    detach(model)


def adapter_state(model: MiniLLM) -> dict[str, Tensor]:
    """A copy of the tensors of the adapter that is attached, on the CPU."""
    return {
        f"{layer_name}.{name}": getattr(layer, name).detach().to("cpu").clone()
        for layer_name, layer in _attached(model)
        for name in ("lora_A", "lora_B")
    }


def base_fingerprint(model: MiniLLM) -> str:
    """SHA-256 of the weights without an adapter: names, shapes and numbers.

    It is that of the numbers and not of a file, so an adapter also fits the same weights in another
    format. Merged weights are other weights.
    """
    state = model.state_dict()
    return _numbers_hash({name.replace(".base.", "."): state[name] for name in state if ".lora_" not in name})


def _numbers_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _attached(model: MiniLLM) -> Iterator[tuple[str, LoraLinear]]:
    """Name and layer, for each that has an adapter."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear))


def _layers(model: MiniLLM, config: LoraConfig) -> list[tuple[str, nn.Linear]]:
    """The layers of a model that a config with named layers means, without their adapters."""
    found = [(name, layer) for name, layer in model.named_modules() if name.rpartition(".")[2] in config.target_modules]
    return [(name, layer.base if isinstance(layer, LoraLinear) else layer) for name, layer in found]


def _empty_state(model: MiniLLM, config: LoraConfig) -> dict[str, Tensor]:
    """Names and shapes of the adapter that a model would have.

    The tensors take no memory, so a huge rank in a file is refused before anything is made.
    """
    state = {}
    for name, layer in _layers(model, config):
        state[f"{name}.lora_A"] = torch.empty(config.r, layer.in_features, device="meta")
        state[f"{name}.lora_B"] = torch.empty(layer.out_features, config.r, device="meta")
    return state


# --- in a file ------------------------------------------------------------------------------------


def adapter_file(name: str, model: ModelConfig) -> str:
    """File name of an adapter for weights of this shape, such as `lora_medical_512.pth`."""
    return f"{name}_{model.hidden_size}{'_moe' if model.use_moe else ''}.pth"


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Write `{"model", "config", "manifest"}` atomically.

    Raises: UserError when it can't be written.
    """
    config = asdict(adapter.config) | {"target_modules": list(adapter.config.target_modules)}
    state = {name: tensor.detach().to("cpu").clone() for name, tensor in adapter.state.items()}
    write_checkpoint(path, {"model": state, "config": config, "manifest": described(adapter)})


def read_adapter(path: Path) -> Adapter:
    """The adapter in a file of `save_adapter`.

    Raises: UserError when it is missing, damaged, or holds something else.
    """
    content = read_checkpoint(path, REMEDY)
    state: dict[str, Any] = optional_part(content, "model", {})
    config: dict[str, Any] = optional_part(content, "config", {})
    manifest: dict[str, Any] = optional_part(content, "manifest", {})
    if config.keys() != {one.name for one in fields(LoraConfig)}:
        raise UserError(
            f"{display(path)}: no LoRA adapter. Give one of out/{FOLDER}/, or a folder of peft.",
            f"不是 LoRA 适配器：请给出 out/{FOLDER}/ 中的文件或 peft 目录",
        )
    wrong = [f"model: {name}" for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    wrong += [f"manifest: {name}" for name in wrong_parts(manifest)]
    wrong += [] if optional_part(manifest, BASE, "") else [f"manifest: {BASE}"]
    if wrong:
        raise UserError(
            f"{display(path)}: not as MiniLLM writes adapters ({wrong[0]} is missing or of another type). {REMEDY}",
            "不是 MiniLLM 写出的适配器：请换一个路径",
        )
    return Adapter(
        state={name: tensor.float() for name, tensor in state.items()},
        config=_config_of(config, display(path)),
        manifest=WeightsManifest.from_plain(manifest),
        base=manifest[BASE],
    )


def described(adapter: Adapter) -> dict[str, Any]:
    """The manifest of an adapter as plain data, with the fingerprint of its base."""
    return adapter.manifest.as_plain() | {BASE: adapter.base}


def _config_of(values: Mapping[str, Any], where: str) -> LoraConfig:
    """The config in a file. Raises: UserError for a value that it can't have."""
    names = values["target_modules"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: target_modules must be a list of names. {REMEDY}", "层名列表有误：请换一个路径")
    config = from_mapping(LoraConfig(), {key: value for key, value in values.items() if key != "target_modules"}, where)
    return replace(config, target_modules=tuple(names))


def merged_manifest(base: WeightsManifest, adapter: Adapter) -> WeightsManifest:
    """How weights were made into which an adapter was merged: the adapter's training was the last.

    They have seen what either has seen. Where nobody noted how the adapter was made (peft), all
    that is known is what the base has seen, and that the weights are others now.
    """
    if not adapter.manifest.stage:
        return replace(base, fingerprint=fingerprint([base.fingerprint, _numbers_hash(adapter.state)]))
    seen = (*base.training_data, *(file for file in adapter.manifest.training_data if file not in base.training_data))
    return replace(adapter.manifest, tokenizer_sha256=base.tokenizer_sha256, training_data=seen)

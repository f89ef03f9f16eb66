"""Open weights with their tokenizer, and find the weights to open if no path is given."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs.paths import OUT_DIR, default_tokenizer_dir, display, env_path, find_dataset, latest_weights
from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer
from inference.adapters import merge_adapter
from model.export import read_plain, read_tensors
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.quantize import NONE, is_quantized, load_quantized
from model.quantize import quantize as rounded
from model.weights import check_tokenizer, load_model, load_strict

WEIGHTS_OF_MODE = {0: "pretrain", 1: "full_sft", 2: "rlhf", 3: "reason"}
"""`--model_mode` -> how the names of its weight files begin."""
LAST_STAGE_FIRST = ("rlhf", "full_sft", "pretrain")
"""Weights that are looked for, in this order, if neither a path nor a mode is given."""


@dataclass(frozen=True)
class OpenModel:
    """Weights that were opened, with the tokenizer that they were trained with."""

    path: Path
    model: MiniLLM
    """In the mode for evaluation: without dropout."""
    tokenizer: RustBPETokenizer
    manifest: WeightsManifest
    """How the weights were made."""
    num_parameters: int
    """Those of the network, however they are kept in memory."""


def open_model(
    path: Path,
    *,
    device: torch.device,
    tokenizer_dir: Path | None = None,
    rope_scaling_factor: float = 1.0,
    quantize: str = NONE,
    lora: str | Path | None = None,
) -> OpenModel:
    """Open a weight file: a .pth, or a .safetensors of scripts/convert_model.py.

    Args: tokenizer_dir: without it, the tokenizer that was trained beside the weights, else the one
    that ships. rope_scaling_factor: above 1, YaRN stretches the context that the model can read.
    quantize: how its weights are kept in memory, one of model/quantize.py's KINDS, or `none`.
    lora: name or path of an adapter, which is merged into the weights before they are rounded.
    Raises: UserError when a file is missing or damaged, or the tokenizer is another one; when the
    adapter was made for other weights; or when weights that are to be rounded are not on the CPU.
    """
    tokenizer_dir = tokenizer_dir or default_tokenizer_dir(path.parent)
    tokenizer = RustBPETokenizer.from_directory(tokenizer_dir)
    if path.suffix == ".safetensors":
        model, manifest = _load_safetensors(path, device, rope_scaling_factor, quantize, lora)
    else:
        model, manifest = load_model(path, device=device, rope_scaling_factor=rope_scaling_factor)
        model, manifest = _prepared(model, manifest, path, quantize, lora)
    check_tokenizer(path, manifest, tokenizer.sha256, display(tokenizer_dir))
    with torch.device("meta"):  # rounded weights are no parameters, so a network of that shape is counted
        num_parameters = MiniLLM(model.config).num_parameters()
    return OpenModel(path, model.eval(), tokenizer, manifest, num_parameters)


def _prepared(
    model: MiniLLM, manifest: WeightsManifest, path: Path, quantize: str, lora: str | Path | None
) -> tuple[MiniLLM, WeightsManifest]:
    """Float32 weights with the adapter merged, then rounded, and how they are made. Raises:
    UserError."""
    if lora is not None:
        model, manifest = merge_adapter(model, manifest, lora, path)
    return rounded(model.eval(), quantize), manifest


def _load_safetensors(
    path: Path, device: torch.device, rope_scaling_factor: float, quantize: str, lora: str | Path | None
) -> tuple[MiniLLM, WeightsManifest]:
    """The model of a .safetensors file, rounded or not, and how it was made. Raises: UserError."""
    tensors, facts = read_tensors(path)
    if is_quantized(facts):
        kind = facts["quantize"]
        if lora is not None:
            raise UserError(
                f"{display(path)}: its weights are {kind} already, and an adapter needs those in float32. Merge it into "
                f"them: python scripts/convert_model.py --input WEIGHTS.pth --lora_name {lora} --merge --to safetensors "
                f"--quantize {kind} --output FILE.safetensors.",
                "该文件已量化，不能再加适配器：请先用所列命令合并再量化",
            )
        if quantize != NONE or device.type != "cpu":
            raise UserError(
                f"{display(path)}: its weights are {kind} already, for the CPU. Leave --quantize out, and "
                "add --device cpu.",
                "该文件已量化，只能在 CPU 上使用：请去掉 --quantize 并加 --device cpu",
            )
        model, content = load_quantized(tensors, facts, display(path), rope_scaling_factor=rope_scaling_factor)
        return model, WeightsManifest.from_plain(content)
    state, config, manifest = read_plain(path)
    model = MiniLLM(replace(config, rope_scaling_factor=rope_scaling_factor)).eval()
    load_strict(model, state, path)
    return _prepared(model.to(device), manifest, path, quantize, lora)


def weights_to_talk_to(
    given: Path | None, *, mode: int | None, out_dir: Path | None, hidden_size: int | None = None
) -> Path:
    """The weights that the flags of a program ask for.

    Args: given: a path, which alone decides. mode: a key of WEIGHTS_OF_MODE; without it the last
    stage that was trained. out_dir: the folder with the weights; without it `OUT_DIR`, or `out`.
    Raises: UserError when there are none.
    """
    if given:
        return find_dataset(given)
    out_dir = out_dir or env_path("OUT_DIR", OUT_DIR)
    if mode is not None:
        return latest_weights(WEIGHTS_OF_MODE[mode], out_dir, hidden_size=hidden_size)
    for stem in LAST_STAGE_FIRST[:-1]:
        with contextlib.suppress(UserError):
            return latest_weights(stem, out_dir, hidden_size=hidden_size)
    return latest_weights(LAST_STAGE_FIRST[-1], out_dir, hidden_size=hidden_size)

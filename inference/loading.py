"""Open weights with their tokenizer, and find the weights to open if no path is given.

Weights are a file of ours, or the Hugging Face folder of another model.
"""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs.paths import (
    OUT_DIR,
    default_tokenizer_dir,
    display,
    env_path,
    find_dataset,
    kept_tokenizer_dir,
    latest_weights,
)
from configs.schema import ModelConfig, UserError
from configs.stage_table import TALKING_WEIGHTS
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
LAST_STAGE_FIRST = ("rlhf", "full_sft", "pretrain", *TALKING_WEIGHTS)
"""Weights that are looked for, in this order, if neither a path nor a mode is given. Those of an
optional stage were trained for one thing, so they come after the others."""


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
    quantize: str = NONE
    """How the weights are kept in memory."""


def open_model(
    path: Path,
    *,
    device: torch.device,
    tokenizer_dir: Path | None = None,
    rope_scaling_factor: float = 1.0,
    quantize: str = NONE,
    lora: str | Path | None = None,
) -> OpenModel:
    """Open a weight file: a .pth, or a .safetensors of scripts/convert_model.py; or the Hugging
    Face folder of a Qwen3.

    Args: tokenizer_dir: without it, the tokenizer that belongs to the weights (`tokenizer_of`).
    rope_scaling_factor: above 1, YaRN stretches the context that the model can read.
    quantize: how its weights are kept in memory, one of model/quantize.py's KINDS, or `none`.
    lora: name or path of an adapter, which is merged into the weights before they are rounded.
    Raises: UserError when a file is missing or damaged, or the tokenizer is another one; when the
    adapter was made for other weights; or when weights that are to be rounded are not on the CPU.
    """
    if path.suffix == ".safetensors":
        model, manifest, quantize = _load_safetensors(path, device, rope_scaling_factor, quantize, lora)
    else:
        model, manifest = load_model(path, device=device, rope_scaling_factor=rope_scaling_factor)
        model, manifest = _prepared(model, manifest, path, quantize, lora)
    tokenizer, manifest = tokenizer_of(path, manifest, model.config, tokenizer_dir)
    with torch.device("meta"):  # rounded weights are no parameters, so a network of that shape is counted
        num_parameters = MiniLLM(model.config).num_parameters()
    return OpenModel(path, model.eval(), tokenizer, manifest, num_parameters, quantize)


def tokenizer_of(
    path: Path, manifest: WeightsManifest, config: ModelConfig, given: Path | None = None
) -> tuple[RustBPETokenizer, WeightsManifest]:
    """The tokenizer that belongs to weights, and their manifest with its fingerprint.

    It is the one in the folder `given`. Without it: that of a Hugging Face folder is inside. For
    weights that were trained from such a folder, it is kept beside them. Else it is the one that
    was trained beside the weights, or the one that ships.
    Args: config: the shape of the weights.
    Raises: UserError when it is missing or damaged, or when the weights have another one.
    """
    own = path if path.is_dir() else kept_tokenizer_dir(path.parent, manifest.tokenizer_sha256)
    folder = given or (own if own.is_dir() else default_tokenizer_dir(path.parent))
    if folder == path and not any((path / name).is_file() for name in ("tokenizer.pkl", "tokenizer.json")):
        raise UserError(
            f"{display(path)}: no tokenizer.json in it. Add that of the model, or give a folder with --tokenizer_dir.",
            "目录中没有 tokenizer.json：请补上，或用 --tokenizer_dir 指定",
        )
    tokenizer = RustBPETokenizer.from_directory(folder)
    if path.is_dir() and not manifest.tokenizer_sha256:  # of another model, which knows no fingerprints
        manifest = replace(manifest, tokenizer_sha256=tokenizer.sha256)
    check_tokenizer(path, manifest, tokenizer.sha256, display(folder))
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{display(folder)}: {tokenizer.get_vocab_size()} tokens, but {display(path)} has {config.vocab_size} rows for "
            "them. Give the tokenizer of this model.",
            "分词器的词元比模型的词表多：请给出该模型自己的分词器",
        )
    return tokenizer, manifest


def keep_tokenizer(tokenizer: RustBPETokenizer, out_dir: Path) -> None:
    """Write the tokenizer of another model to where `tokenizer_of` finds it for the weights of a
    folder."""
    if tokenizer.is_foreign:
        tokenizer.save(kept_tokenizer_dir(out_dir, tokenizer.sha256))


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
) -> tuple[MiniLLM, WeightsManifest, str]:
    """The model of a .safetensors file, how it was made, how it is rounded. Raises: UserError."""
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
        return model, WeightsManifest.from_plain(content), kind
    state, config, manifest = read_plain(path)
    model = MiniLLM(replace(config, rope_scaling_factor=rope_scaling_factor)).eval()
    load_strict(model, state, path)
    return *_prepared(model.to(device), manifest, path, quantize, lora), quantize


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
    for stem in LAST_STAGE_FIRST:
        with contextlib.suppress(UserError):
            return latest_weights(stem, out_dir, hidden_size=hidden_size)
    return latest_weights("pretrain", out_dir, hidden_size=hidden_size)  # there are none: how to train them

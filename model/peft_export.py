"""Adapters in the layout of peft, there and back: names of tensors, settings, the folder.

A folder holds:

adapter_config.json        the settings, for peft and vLLM
adapter_model.safetensors  the tensors in float32
minillm.json               what the others do not ask for: how it was made, and for which weights
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.artifacts import optional_part, read_json, write_json
from configs.load import from_mapping
from configs.paths import display
from configs.schema import UserError
from model.export import OURS, read_tensors, write_tensors
from model.manifest import WeightsManifest
from model.model_lora import BASE, LINEAR_LAYERS, Adapter, LoraConfig, described

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, TENSORS, OURS)
REMEDY = "Give a folder that peft can read."
REMEDY_CHINESE = "请给出 peft 能读取的目录"
PREFIX = "base_model.model."
"""What peft puts before the name of a layer: it wraps the model twice."""
THEIR_NAME = re.compile(rf"{re.escape(PREFIX)}(.+\.lora_[AB])\.weight")

_READ = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "use_rslora"}
"""Key of adapter_config.json -> field of LoraConfig."""
_IGNORED = {
    "peft_type", "target_modules", "exclude_modules", "task_type", "auto_mapping", "base_model_name_or_path", "revision",
    "inference_mode", "peft_version", "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Keys that change no number once the tensors are there. The last two are defaults of methods that
are off."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # the others change the base too
}
"""Keys with values that plain LoRA has. All other keys must be off: false, null, 0 or empty."""


def is_peft(path: Path) -> bool:
    """Whether this is the folder of an adapter of peft."""
    return (path / CONFIG).is_file()


def peft_config(config: LoraConfig) -> dict[str, Any]:
    """`adapter_config.json` of an adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "target_modules": list(config.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def write_peft(folder: Path, adapter: Adapter) -> None:
    """Write the three files of FILES into a folder that exists.

    Raises: UserError when the disk is full or the package safetensors is missing.
    """
    tensors = {f"{PREFIX}{name}.weight": tensor for name, tensor in adapter.state.items()}
    write_tensors(folder / TENSORS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, peft_config(adapter.config))
    write_json(folder / OURS, {"manifest": described(adapter)})


def read_peft(folder: Path) -> Adapter:
    """The adapter in a folder, ours or of another program.

    The names of its tensors say which layers it has: `target_modules` may be a pattern. Whether
    they fit a model is checked when it is attached.
    Raises: UserError when a file is missing or damaged, or the adapter is more than plain LoRA.
    """
    values, where = _mapping(folder / CONFIG), display(folder / CONFIG)
    if fault := _foreign_part(values):
        raise UserError(
            f"{where}: {fault}, which MiniLLM has not. It reads LoRA and rsLoRA without extras on {', '.join(LINEAR_LAYERS)}.",
            "不是普通的 LoRA 适配器：只能读取普通的 LoRA 和 rsLoRA",
        )
    if missing := [name for name in ("r", "lora_alpha") if name not in values]:
        raise UserError(f"{where}: {missing[0]} is missing. {REMEDY}", f"缺少配置项：{REMEDY_CHINESE}")
    config = from_mapping(LoraConfig(), {ours: values[key] for key, ours in _READ.items() if key in values}, where)
    state = {}
    for name, tensor in read_tensors(folder / TENSORS)[0].items():
        found = THEIR_NAME.fullmatch(name)
        state[found[1] if found else name] = tensor.float()
    layers = {name.split(".")[-2] for name in state if ".lora_" in name}
    if lacking := _wanted_layers(values.get("target_modules")) - layers:
        raise UserError(
            f"{display(folder / TENSORS)}: no tensors for {min(lacking)}, which {CONFIG} names. {REMEDY}",
            f"缺少配置中列出的层：{REMEDY_CHINESE}",
        )
    known = tuple(name for name in LINEAR_LAYERS if name in layers)
    ours: dict[str, Any] = optional_part(_mapping(folder / OURS), "manifest", {}) if (folder / OURS).exists() else {}
    return Adapter(
        state=state,
        config=replace(config, target_modules=(*known, *sorted(layers.difference(known)))),
        manifest=WeightsManifest.from_plain(ours),
        base=optional_part(ours, BASE, ""),
    )


def _wanted_layers(targets: object) -> set[str]:
    """The layers that `target_modules` lists, `q_proj` for `model.layers.0.self_attn.q_proj`.

    A pattern lists none.
    """
    return {str(name).rpartition(".")[2] for name in targets} if isinstance(targets, list) else set()


def _foreign_part(values: Mapping[str, Any]) -> str:
    """The first thing in an adapter_config.json that our adapters can't do; empty where there is
    none."""
    if values.get("peft_type") != "LORA":
        return f"peft_type is {values.get('peft_type')!r}"
    for name, value in values.items():
        if name in _IGNORED or name in _READ or value in _PLAIN.get(name, ()):
            continue
        if any(value.values()) if isinstance(value, dict) else value:
            return f"{name} is {value!r}"
    return ""


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path, REMEDY, f"无法读取：{REMEDY_CHINESE}")
    if not isinstance(values, dict):
        raise UserError(f"{display(path)}: must hold a JSON object. {REMEDY}", f"内容有误：{REMEDY_CHINESE}")
    return values

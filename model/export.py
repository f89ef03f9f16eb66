"""Weights in the layout of Hugging Face, there and back: names of tensors, config.json, the folder.

A folder holds:

config.json              the shape, for transformers, vLLM, SGLang, MLX
generation_config.json   greedy, and the tokens that end an answer
model.safetensors        the tensors in float32; the experts of a MoE one by one
minillm.json             what the others do not ask for: our whole shape, and the manifest

The tokenizer's files are written beside them by `scripts/convert_model.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from configs.artifacts import atomic_write, optional_part, read_json, write_json
from configs.load import from_mapping
from configs.paths import display
from configs.schema import ModelConfig, UserError
from model.manifest import IMPORTED, WeightsManifest
from model.quantize import is_quantized

CONFIG, GENERATION, TENSORS, OURS = (
    "config.json", "generation_config.json", "model.safetensors", "minillm.json",
)  # fmt: skip
FILES = (CONFIG, GENERATION, TENSORS, OURS)
REMEDY = "Give a folder that transformers can read."
REMEDY_CHINESE = "请给出 transformers 能读取的目录"

_SAME_NAME = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "rms_norm_eps", "initializer_range",
)  # fmt: skip
"""Fields of ModelConfig that config.json has under the same name and in the same sense."""
_SAME_NAME_MOE = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "router_aux_loss_coef")
YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""Turns in the original length between which YaRN changes its mind (model/model_minillm.py)."""


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens that other programs treat in a special way."""

    begin: int
    ends: tuple[int, ...]
    """Each of them ends an answer or a text; the first is the end of an answer."""
    padding: int


# --- names of tensors -----------------------------------------------------------------------------


def experts_apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of transformers' files: each expert has three matrices.

    We stack the matrices of all experts, gate above up: `experts.gate_up_proj` (E, 2I, C) and
    `experts.down_proj` (E, C, I). In files expert 3 has `experts.3.gate_proj.weight` (I, C),
    `experts.3.up_proj.weight` (I, C) and `experts.3.down_proj.weight` (C, I).
    """
    tensors = {}
    for name, tensor in state.items():
        place, is_of_experts, matrix = name.rpartition(".experts.")
        if not is_of_experts:
            tensors[name] = tensor
            continue
        for number, of_expert in enumerate(tensor):
            parts = of_expert.chunk(2) if matrix == "gate_up_proj" else (of_expert,)
            names = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else ("down_proj",)
            for part_name, part in zip(names, parts, strict=True):
                tensors[f"{place}.experts.{number}.{part_name}.weight"] = part
    return tensors


def experts_stacked(tensors: Mapping[str, Tensor], config: ModelConfig, where: str) -> dict[str, Tensor]:
    """The way back of `experts_apart`, in float32.

    A tensor that is missing stays missing: `model.weights.load_strict` names it.
    Raises: UserError where the output matrix is another than the embedding.
    """
    state = {name: tensor.float() for name, tensor in tensors.items()}
    head = state.pop("lm_head.weight", None)
    if head is not None and not _equal(head, state.get("model.embed_tokens.weight")):
        raise UserError(
            f"{where}: its output matrix (lm_head) is not its embedding; MiniLLM has one matrix for both. {REMEDY}",
            "输出矩阵与词嵌入不共享，MiniLLM 不支持：请换一个模型",
        )
    if not config.use_moe:
        return state
    for layer in range(config.num_hidden_layers):
        place = f"model.layers.{layer}.mlp.experts"
        names = [
            f"{place}.{e}.{part}_proj.weight" for e in range(config.num_experts) for part in ("gate", "up", "down")
        ]
        if not all(name in state for name in names):
            continue
        matrices = [state.pop(name) for name in names]  # gate, up, down of expert 0, then of expert 1 ...
        gates, ups, downs = (torch.stack(matrices[first::3]) for first in range(3))  # (E, I, C) twice, (E, C, I)
        state[f"{place}.gate_up_proj"] = torch.cat((gates, ups), dim=1)  # (E, 2I, C)
        state[f"{place}.down_proj"] = downs
    return state


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


# --- config.json ----------------------------------------------------------------------------------


def hugging_face_config(config: ModelConfig, marks: Marks) -> dict[str, Any]:
    """`config.json` of a shape.

    RoPE is told in three ways, since no one of them is read by every program: `rope_theta` at the
    top level and `rope_scaling` (transformers 4, vLLM, llama.cpp, MLX), `rope_parameters`
    (transformers 5). transformers 4 reads a file with `rope_parameters` alone without a word, with
    a theta of 10,000, and all its logits are wrong.
    """
    config = config.resolve()
    scaling: dict[str, Any] | None = None
    if config.rope_scaling_factor != 1.0:
        scaling = {
            "rope_type": "yarn", "factor": config.rope_scaling_factor,
            "original_max_position_embeddings": config.original_max_position_embeddings, **YARN_BETAS,
        }  # fmt: skip
    kind = "Qwen3Moe" if config.use_moe else "Qwen3"
    values: dict[str, Any] = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": "qwen3_moe" if config.use_moe else "qwen3",
        **{name: getattr(config, name) for name in _SAME_NAME},
        "max_position_embeddings": _longest_text(config),
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": marks.begin,
        "eos_token_id": list(marks.ends),
        "pad_token_id": marks.padding,
    }
    if config.use_moe:
        values |= {name: getattr(config, name) for name in _SAME_NAME_MOE}
        values |= {"norm_topk_prob": config.norm_topk_prob, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return values


def _longest_text(config: ModelConfig) -> int:
    """`max_position_embeddings`: with YaRN transformers wants it to be what the factor makes of the
    original length, and warns of anything else."""
    if config.rope_scaling_factor == 1.0:
        return config.max_position_embeddings
    return int(config.original_max_position_embeddings * config.rope_scaling_factor)


def generation_config(marks: Marks) -> dict[str, Any]:
    """`generation_config.json`: greedy, as `eval_model.py` answers by default."""
    return {
        "bos_token_id": marks.begin, "eos_token_id": list(marks.ends), "pad_token_id": marks.padding,
        "do_sample": False, "max_new_tokens": 512,
    }  # fmt: skip


def shape_of(values: Mapping[str, Any], where: str, base: ModelConfig | None = None) -> ModelConfig:
    """The shape that a `config.json` describes.

    Args: base: what the file does not say. Raises: UserError for a network that MiniLLM is not.
    """
    if fault := _foreign_part(values):
        raise UserError(
            f"{where}: {fault}, which MiniLLM has not. It reads qwen3 and qwen3_moe in their plain form.",
            "结构与 MiniLLM 不同：只能读取普通的 qwen3 和 qwen3_moe",
        )
    use_moe = values["model_type"] == "qwen3_moe"
    values = {"num_experts": values.get("num_local_experts"), **values}  # as transformers 5 calls them
    names = (*_SAME_NAME, *_SAME_NAME_MOE) if use_moe else _SAME_NAME
    found = {name: values[name] for name in names if values.get(name) is not None}
    if missing := [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in found]:
        raise UserError(f"{where}: {missing[0]} is missing. {REMEDY}", f"缺少配置项：{REMEDY_CHINESE}")
    rope = _rope(values)
    found |= {"use_moe": use_moe, "rope_theta": rope["rope_theta"], "rope_scaling_factor": rope.get("factor", 1.0)}
    if "original_max_position_embeddings" in rope:
        found["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    elif base is None and "max_position_embeddings" in found:
        found["original_max_position_embeddings"] = found["max_position_embeddings"]
    config = from_mapping(base or ModelConfig(), found, where).resolve()
    if (
        base is not None
        and config.rope_scaling_factor != 1.0
        and config.max_position_embeddings == _longest_text(config)
    ):
        config = replace(config, max_position_embeddings=base.max_position_embeddings)
    return config


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of RoPE, in whichever of the three ways."""
    rope = {**(values.get("rope_parameters") or {}), **(values.get("rope_scaling") or {})}
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    if values.get("rope_theta") is not None:
        rope["rope_theta"] = values["rope_theta"]
    rope.setdefault("rope_theta", 10_000.0)  # what transformers takes where nothing is said
    return {name: value for name, value in rope.items() if value is not None}


def _foreign_part(values: Mapping[str, Any]) -> str:
    """The first thing in a config.json that our network can't do; empty where there is none."""
    if (kind := values.get("model_type")) not in {"qwen3", "qwen3_moe"}:
        return f"model_type is {kind!r}"
    plain = {
        "attention_bias": False, "use_sliding_window": False, "hidden_act": "silu", "quantization_config": None,
        "mlp_only_layers": [], "decoder_sparse_step": 1,
    }  # fmt: skip
    for name, wanted in plain.items():
        if values.get(name) not in (wanted, None):
            return f"{name} is {values[name]!r}"
    rope = _rope(values)
    if rope["rope_type"] not in {"default", "yarn"}:
        return f"rope_type is {rope['rope_type']!r}"
    if rope["rope_type"] == "yarn":
        for name, beta in YARN_BETAS.items():
            if rope.get(name, beta) != beta:
                return f"YaRN's {name} is {rope[name]!r}"
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if name in rope:
                return f"YaRN has {name}"
    if kind == "qwen3_moe":
        one_expert = values.get("num_experts_per_tok", 8) == 1  # 8, False: defaults of transformers
        if bool(values.get("norm_topk_prob", False)) is one_expert:
            return f"norm_topk_prob is {values.get('norm_topk_prob', False)} with so many experts a token"
    return ""


# --- the folder -----------------------------------------------------------------------------------


def write_hugging_face(
    folder: Path, state: Mapping[str, Tensor], config: ModelConfig, manifest: WeightsManifest, marks: Marks
) -> None:
    """Write the four files of FILES into a folder that exists.

    Raises: UserError when the disk is full or the package safetensors is missing.
    """
    write_tensors(folder / TENSORS, experts_apart(state), {"format": "pt"})
    write_json(folder / CONFIG, hugging_face_config(config, marks))
    write_json(folder / GENERATION, generation_config(marks))
    write_json(folder / OURS, {"config": asdict(config), "manifest": manifest.as_plain()})


def read_hugging_face(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, WeightsManifest]:
    """State dict, shape and manifest of a folder, ours or that of another Qwen3.

    The tensors decide about nothing but numbers: `model.weights.load_strict` checks their shapes.
    In a folder of others the manifest says no more than that the weights were imported.
    Raises: UserError when a file is missing or damaged, or the network is none that MiniLLM can be.
    """
    where = display(folder)
    values = _mapping(folder / CONFIG)
    ours = _mapping(folder / OURS) if (folder / OURS).exists() else {}
    base = from_mapping(ModelConfig(), ours["config"], display(folder / OURS)) if "config" in ours else None
    config = shape_of(values, display(folder / CONFIG), base)
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_tensors(path)[0]
    if not tensors:
        raise UserError(f"{where}: no *.safetensors in it. {REMEDY}", f"目录中没有 safetensors 文件：{REMEDY_CHINESE}")
    manifest = WeightsManifest.from_plain(optional_part(ours, "manifest", {}) or {"stage": IMPORTED})
    return experts_stacked(tensors, config, where), config, manifest


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path, REMEDY, f"无法读取：{REMEDY_CHINESE}")
    if not isinstance(values, dict):
        raise UserError(f"{display(path)}: must hold a JSON object. {REMEDY}", f"内容有误：{REMEDY_CHINESE}")
    return values


# --- one file of tensors --------------------------------------------------------------------------


def write_plain(path: Path, state: Mapping[str, Tensor], config: ModelConfig, manifest: WeightsManifest) -> None:
    """Our tensors under our names as one safetensors file; shape and manifest are in its header."""
    facts = {"config": json.dumps(asdict(config)), "manifest": json.dumps(manifest.as_plain(), ensure_ascii=False)}
    write_tensors(path, state, {"format": "pt", **facts})


def read_plain(path: Path) -> tuple[dict[str, Tensor], ModelConfig, WeightsManifest]:
    """State dict, shape and manifest of a file of `write_plain`. Raises: UserError."""
    tensors, facts = read_tensors(path)
    if is_quantized(facts):
        raise UserError(
            f"{display(path)}: holds weights of {facts['quantize']}, which can't become float32 again. Give the weights "
            "that it was made from.",
            "文件中的权重已量化，无法还原：请给出原来的权重",
        )
    try:
        values, manifest = json.loads(facts["config"]), json.loads(facts["manifest"])
    except (KeyError, ValueError):
        raise UserError(
            f"{display(path)}: tensors without their shape. Give the folder that holds its config.json.",
            "文件里没有模型形状：请给出含 config.json 的目录",
        ) from None
    return tensors, from_mapping(ModelConfig(), values, display(path)).resolve(), WeightsManifest.from_plain(manifest)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, str]) -> None:
    """One safetensors file, whole or not at all. Raises: UserError when it can't be written."""
    library = _safetensors()
    # Views are copied: in the file each tensor has memory of its own.
    whole = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path, "wb") as file:
        file.write(library.torch.save(whole, metadata=facts))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and the text in its header. Raises: UserError."""
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, library.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{display(path)}: missing, damaged or cut short ({reason}). Give another path.",
            "文件缺失、损坏或不完整：请换一个路径",
        ) from None


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise UserError(
            "the package safetensors is missing. Run: pip install safetensors", "缺少 safetensors：请运行所列命令安装"
        ) from None
    return safetensors


# --- whole or not at all --------------------------------------------------------------------------

"""Weights as a GGUF file, for llama.cpp, ollama and LM Studio; and the numbers of such a file.

llama.cpp's own converter refuses vocabularies that it does not know, so the file is written here,
over the package `gguf`. What llama.cpp computes is Qwen3 and Qwen3-MoE, as in our network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.artifacts import write_error
from configs.paths import display
from configs.schema import ModelConfig, UserError
from model.export import Marks

KINDS = ("f32", "f16", "q8_0", "q5_0", "q4_0")
"""Types of the matrices, from exact to small: 32, 16, 8.5, 5.5 and 4.5 bits a weight."""
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q5_0": 8}
"""What `general.file_type` says of each."""
BLOCK = 32
"""Weights of a row that share a scale. K-quants, which llama.cpp can make too, share 256."""
COARSE = {"q5_0", "q4_0"}
"""Types too coarse for the embedding, which is also the output matrix: it is written in Q8_0."""

_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
}  # fmt: skip
"""Our name inside a block -> llama.cpp's, both without `.weight`."""


@dataclass(frozen=True)
class Words:
    """What llama.cpp needs of a tokenizer."""

    tokenizer_json: Mapping[str, Any]
    """The content of `tokenizer.json`."""
    is_qwen2: bool
    """Whether texts are cut by Qwen2's pattern: llama.cpp knows no other one of ours by name."""
    chat_template: str
    marks: Marks


# --- what can't be written ------------------------------------------------------------------------


def check_exportable(config: ModelConfig, words: Words) -> None:
    """Raises: UserError for a model that llama.cpp would read without a word and compute wrong."""
    if config.use_moe and not config.norm_topk_prob:
        raise UserError(
            "a mixture with one expert a token: llama.cpp makes the router's weight 1, the model needs it as it is. "
            "Use --to hf.",
            "每个词元只用一个专家的模型无法用 GGUF 表示：请改用 --to hf",
        )
    if not words.is_qwen2:
        raise UserError(
            "a tokenizer with another pattern than qwen2: llama.cpp has no name for it and would cut texts otherwise. "
            "Use --to hf.",
            "llama.cpp 不认识这个分词器的切分规则：请改用 --to hf",
        )
    model = words.tokenizer_json["model"]
    if unreachable := len(model["vocab"]) - 256 - len(model["merges"]):
        raise UserError(
            f"a tokenizer with {unreachable} tokens that no merges lead to: llama.cpp would never use them. Use --to hf.",
            "分词器中有无法由合并得到的词元：请改用 --to hf",
        )


OPENS_A_THOUGHT = "enable_thinking is true"
"""The line of the chat template that opens a thought says so."""


def template_for_llama_cpp(chat_template: str, *, thinks: bool) -> str:
    """The chat template as llama.cpp should use it.

    llama.cpp says `enable_thinking = true` unless somebody turns it off, so the template would open
    a thought in every answer, also of models that have never learnt to think. For those the line
    that does so is left out.
    """
    if thinks:
        return chat_template
    kept = [line for line in chat_template.split("\n") if OPENS_A_THOUGHT not in line]
    return "\n".join(kept)


# --- tensors --------------------------------------------------------------------------------------


def llama_cpp_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under llama.cpp's names; gate and up of the experts apart, (E, I, C) each."""
    tensors = {}
    for name, tensor in state.items():
        if name == "model.embed_tokens.weight":
            tensors["token_embd.weight"] = tensor
        elif name == "model.norm.weight":
            tensors["output_norm.weight"] = tensor
        else:
            layer, _, inside = name.removeprefix("model.layers.").partition(".")
            if inside == "mlp.experts.gate_up_proj":
                gate, up = tensor.chunk(2, dim=1)
                tensors |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
            elif inside == "mlp.experts.down_proj":
                tensors[f"blk.{layer}.ffn_down_exps.weight"] = tensor
            else:
                tensors[f"blk.{layer}.{_NAMES[inside.removesuffix('.weight')]}.weight"] = tensor
    return tensors


def our_names(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `llama_cpp_names`. Args: like: a state dict of that shape."""
    state = {}
    for name, tensor in like.items():
        theirs = list(llama_cpp_names({name: tensor}))  # two for gate and up of the experts
        state[name] = torch.cat([tensors[one] for one in theirs], dim=1) if len(theirs) > 1 else tensors[theirs[0]]
    return state


def kind_of(name: str, tensor: Tensor, kind: str) -> str:
    """The type in which a tensor is written: norms and the router stay in float32.

    A rounded router sends tokens to other experts. Rows that are no multiple of BLOCK can't be cut
    into blocks and are written in float16.
    """
    if tensor.dim() == 1 or "ffn_gate_inp" in name:
        return "f32"
    if kind in COARSE and name == "token_embd.weight":
        kind = "q8_0"
    return "f16" if kind.startswith("q") and tensor.shape[-1] % BLOCK else kind


def packed(tensor: Tensor, kind: str) -> np.ndarray:
    """The bytes of a tensor in a type, as an array that the package gguf can write."""
    library = _gguf()
    array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    with np.errstate(over="ignore"):  # `write_gguf` names a weight that float16 can't hold
        return np.asarray(library.quants.quantize(array, _type(kind)))


def rounded(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors that a file of this type holds, under llama.cpp's names, in float32."""
    library = _gguf()
    found = {}
    for name, tensor in llama_cpp_names(state).items():
        of_tensor = kind_of(name, tensor, kind)
        array = library.quants.dequantize(packed(tensor, of_tensor), _type(of_tensor))
        found[name] = torch.from_numpy(np.array(array, dtype=np.float32)).view(tensor.shape)
    return found


def _type(kind: str) -> Any:
    return _gguf().GGMLQuantizationType[kind.upper()]


# --- the file -------------------------------------------------------------------------------------


def write_gguf(path: Path, state: Mapping[str, Tensor], config: ModelConfig, words: Words, kind: str) -> list[str]:
    """Write a GGUF file, whole or not at all.

    Returns: names of matrices that could not be cut into blocks and stand in float16.
    Raises: UserError for a model that llama.cpp can't compute, an overflow of float16, a full disk.
    """
    check_exportable(config, words)
    library = _gguf()
    architecture = "qwen3moe" if config.use_moe else "qwen3"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = library.GGUFWriter(temporary, architecture)
        _describe(writer, config, kind, path.stem)
        _add_words(writer, words)
        in_float16 = []
        for name, tensor in llama_cpp_names(state).items():
            of_tensor = kind_of(name, tensor, kind)
            if kind.startswith("q") and of_tensor == "f16":
                in_float16.append(name)
            array = packed(tensor, of_tensor)
            if of_tensor == "f16" and not np.isfinite(array).all():
                raise UserError(
                    f"{name}: a weight is too large for float16. Use --quantize f32.", "权重超出 float16 范围：请用 f32"
                )
            writer.add_tensor(name, array, raw_dtype=_type(of_tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return in_float16


def _describe(writer: Any, config: ModelConfig, kind: str, name: str) -> None:
    """The shape, as llama.cpp asks for it."""
    library = _gguf()
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    # llama.cpp reserves memory for the whole length at once, so it is told what the model has read.
    writer.add_context_length(int(config.original_max_position_embeddings * config.rope_scaling_factor))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling_factor != 1.0:
        writer.add_rope_scaling_type(library.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_scaling_factor)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if config.use_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_words(writer: Any, words: Words) -> None:
    """The tokenizer. The template writes the begin token, so llama.cpp must add none."""
    library = _gguf()
    vocab: Mapping[str, int] = words.tokenizer_json["model"]["vocab"]
    special = {token["content"]: token["id"] for token in words.tokenizer_json["added_tokens"]}
    tokens = sorted({**vocab, **special}.items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in tokens])
    kinds = library.TokenType
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token, _ in tokens])
    writer.add_token_merges(words.tokenizer_json["model"]["merges"])
    writer.add_bos_token_id(words.marks.begin)
    writer.add_eos_token_id(words.marks.ends[0])
    writer.add_eot_token_id(words.marks.ends[0])
    writer.add_eom_token_id(words.marks.ends[-1])
    writer.add_pad_token_id(words.marks.padding)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(words.chat_template)


def read_gguf(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors in float32 under llama.cpp's names, and the values of the header.

    Raises: UserError when the file is missing or damaged.
    """
    library = _gguf()
    try:
        reader = library.GGUFReader(path)
        tensors = {}
        for entry in reader.tensors:
            array = library.quants.dequantize(entry.data, entry.tensor_type)
            shape = tuple(int(size) for size in reversed(entry.shape))
            tensors[entry.name] = torch.from_numpy(np.array(array, dtype=np.float32)).view(shape)
        return tensors, {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{display(path)}: missing or damaged ({reason}). Export it again.", "文件缺失或损坏：请重新导出"
        ) from None


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is missing. Run: pip install gguf", "缺少 gguf：请运行所列命令安装") from None
    return gguf

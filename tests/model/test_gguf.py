"""GGUF: what the file holds, what is refused because llama.cpp would compute it wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import ModelConfig, UserError
from dataset.chat import CHAT_TEMPLATE
from dataset.tokenizer import QWEN2_PATTERN, RustBPETokenizer
from dataset.tokenizer_files import hugging_face_json
from model.export import Marks
from model.gguf import (
    FILE_TYPES,
    KINDS,
    Words,
    kind_of,
    llama_cpp_names,
    our_names,
    read_gguf,
    rounded,
    template_for_llama_cpp,
    write_gguf,
)
from tests.dataset.small_tokenizers import tokenizer_with
from tests.model.test_model_minillm import busy_model
from tests.tiny_run import DENSE, MOE

pytest.importorskip("gguf", reason="the package gguf is not installed")

SMALL = tokenizer_with(QWEN2_PATTERN, "ab", "abc", "de")
LARGEST_ERROR = {"f32": 0.0, "f16": 1e-3, "q8_0": 0.01, "q5_0": 0.1, "q4_0": 0.2}
"""Of a weight, as a share of the largest one: half a step, and the rounding of the scale."""


def words_of(tokenizer: RustBPETokenizer, *, is_qwen2: bool = True) -> Words:
    """What llama.cpp needs of a tokenizer."""
    marks = Marks(
        tokenizer.get_bos_token_id(), (tokenizer.assistant_end_id, tokenizer.end_of_text_id), tokenizer.end_of_text_id
    )
    return Words(hugging_face_json(tokenizer), is_qwen2, CHAT_TEMPLATE, marks)


def written(config: ModelConfig, path: Path, kind: str, words: Words | None = None) -> dict[str, torch.Tensor]:
    """Write a busy model; returns its tensors."""
    state = busy_model(config).state_dict()
    write_gguf(path, state, config, words or words_of(SMALL), kind)
    return state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_the_file_holds_the_tensors_as_far_as_its_type_goes(config: ModelConfig, kind: str, tmp_path: Path) -> None:
    state = written(config, tmp_path / "a.gguf", kind)
    tensors, header = read_gguf(tmp_path / "a.gguf")
    assert header["general.file_type"] == FILE_TYPES[kind]
    again = our_names(tensors, state)
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        error = (again[name] - tensor).abs().max() / tensor.abs().max()
        assert error <= LARGEST_ERROR[kind], name
        if tensor.dim() == 1 or name.endswith("mlp.gate.weight"):
            assert torch.equal(again[name], tensor), name
    expected = rounded(state, kind)
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_the_header_says_the_shape_and_the_tokenizer(tmp_path: Path) -> None:
    written(replace(MOE, rope_scaling_factor=4.0), tmp_path / "a.gguf", "f32")
    _, header = read_gguf(tmp_path / "a.gguf")
    assert header["general.architecture"] == "qwen3moe"
    shape = {name.removeprefix("qwen3moe."): value for name, value in header.items() if name.startswith("qwen3moe.")}
    assert (shape["attention.key_length"], shape["attention.head_count_kv"], shape["block_count"]) == (8, 2, 2)
    assert (shape["expert_count"], shape["expert_used_count"], shape["expert_feed_forward_length"]) == (4, 2, 24)
    assert (shape["rope.freq_base"], shape["context_length"]) == (1e6, 4 * 2048)
    assert (shape["rope.scaling.type"], shape["rope.scaling.factor"]) == ("yarn", 4.0)
    assert shape["rope.scaling.original_context_length"] == 2048
    assert header["tokenizer.ggml.pre"] == "qwen2"
    assert header["tokenizer.ggml.add_bos_token"] is False
    assert header["tokenizer.ggml.eos_token_id"] == SMALL.assistant_end_id
    kinds, tokens = header["tokenizer.ggml.token_type"], header["tokenizer.ggml.tokens"]
    assert len(tokens) == SMALL.get_vocab_size()
    for name, number in SMALL.special_tokens.items():
        assert (tokens[number], kinds[number]) == (name, 3)
    assert set(kinds[: len(SMALL.mergeable_ranks)]) == {1}


def test_rows_that_cannot_be_cut_into_blocks_are_in_float16(tmp_path: Path) -> None:
    state = busy_model(MOE).state_dict()  # an expert is 24 wide
    named = write_gguf(tmp_path / "a.gguf", state, MOE, words_of(SMALL), "q8_0")
    assert named == [f"blk.{layer}.ffn_down_exps.weight" for layer in range(2)]


def test_coarse_types_leave_the_embedding_in_eight_bits() -> None:
    tensors = llama_cpp_names(busy_model(DENSE).state_dict())
    embedding = tensors["token_embd.weight"]
    assert [kind_of("token_embd.weight", embedding, kind) for kind in KINDS] == ["f32", "f16", "q8_0", "q8_0", "q8_0"]
    assert kind_of("blk.0.attn_q.weight", tensors["blk.0.attn_q.weight"], "q4_0") == "q4_0"


# --- what is refused ------------------------------------------------------------------------------


def refused(tmp_path: Path, match: str, **changes: Any) -> None:
    """Writing fails in one line, and nothing is left behind."""
    config, words = changes.get("config", DENSE), changes.get("words", words_of(SMALL))
    state = changes.get("state") or busy_model(config).state_dict()
    with pytest.raises(UserError, match=match) as caught:
        write_gguf(tmp_path / "a.gguf", state, config, words, changes.get("kind", "f16"))
    assert "\n" not in caught.value.line
    assert not list(tmp_path.iterdir())


def test_a_router_that_does_not_normalise_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "one expert a token", config=replace(MOE, num_experts_per_tok=1))


def test_a_pattern_that_llama_cpp_does_not_know_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "another pattern than qwen2", words=words_of(SMALL, is_qwen2=False))


def test_a_token_that_no_merges_lead_to_is_refused(tmp_path: Path) -> None:
    words = words_of(SMALL)
    model = words.tokenizer_json["model"]
    short = {**words.tokenizer_json, "model": {**model, "merges": model["merges"][:-1]}}
    refused(tmp_path, "1 tokens that no merges lead to", words=replace(words, tokenizer_json=short))


def test_a_weight_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    state = busy_model(DENSE).state_dict()
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    refused(tmp_path, r"blk\.0\.ffn_up\.weight: a weight is too large", state=state)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    written(DENSE, tmp_path / "a.gguf", "f32")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:1000])
    for name in ("a.gguf", "b.gguf"):
        with pytest.raises(UserError, match=f"{name}: missing or damaged"):
            read_gguf(tmp_path / name)


# --- the template ---------------------------------------------------------------------------------


def test_only_a_model_that_thinks_is_asked_to_think() -> None:
    """llama.cpp says enable_thinking = true by default."""
    shortened = template_for_llama_cpp(CHAT_TEMPLATE, thinks=False)
    assert "enable_thinking is true" not in shortened
    assert "enable_thinking is false" in shortened
    assert len(CHAT_TEMPLATE.split("\n")) == len(shortened.split("\n")) + 1
    assert template_for_llama_cpp(CHAT_TEMPLATE, thinks=True) == CHAT_TEMPLATE

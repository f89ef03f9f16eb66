"""A checkpoint of others for tests: a Qwen3 as transformers writes it, with its own tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>")
"""Special in tokenizer.json."""
LESSER_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Added there too, but not called special, as in Qwen3."""
PADDING_ROWS = 13
"""Rows of the embedding that no token has."""

PLAIN = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""ChatML and nothing else."""
WITH_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\n你是好助手。<|im_end|>\n{% endif %}" + PLAIN
"""Plain, with a system message for conversations that have none."""
THINKING = r"""
{%- macro turn(role, text) -%}{{- '<|im_start|>' + role + '\n' + text + '<|im_end|>\n' -}}{%- endmacro -%}
{%- set first = messages[0] -%}
{%- if tools -%}
{{- '<|im_start|>system\n' + ((first.content + '\n\n') if first.role == 'system' else '') -}}
{{- 'You have tools.\n\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\n</tools>\n\nCall them inside <tool_call></tool_call>.<|im_end|>\n' -}}
{%- elif first.role == 'system' -%}{{- turn('system', first.content) -}}
{%- endif -%}
{%- set found = namespace(question=messages | length - 1) -%}
{%- for message in messages -%}
{%- set text = message.content if message.content is string else '' -%}
{%- if message.role == 'user' and not (text.startswith('<tool_response>') and text.endswith('</tool_response>')) -%}
{%- set found.question = loop.index0 -%}
{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set text = message.content if message.content is string else '' -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}{{- turn(message.role, text) -}}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' -}}
{{- '\n<tool_response>\n' + text + '\n</tool_response>' -}}
{{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '' -}}
{%- elif message.role == 'assistant' -%}
{%- set thought = message.reasoning_content if message.reasoning_content is string else '' -%}
{%- if message.reasoning_content is not string and '</think>' in text -%}
{%- set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set text = text.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > found.question and (loop.last or thought) -%}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') -}}
{%- else -%}{{- text -}}
{%- endif -%}
{%- for given in message.tool_calls or [] -%}
{%- set call = given.function or given -%}
{{- '\n' if text or not loop.first else '' -}}
{{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' -}}
{{- call.arguments if call.arguments is string else (call.arguments | tojson) -}}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
"""
"""Thoughts and tools, in the way of Qwen3's template, in words of our own."""

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(
    folder: Path, *, template: str = THINKING, vocab_size: int = 400, marks_first: bool = False
) -> Path:
    """Train a byte-level BPE and write its files in the way of Qwen3's.

    Args: marks_first: the marks have the lowest ids, and `ByteLevel` splits by GPT-2's pattern, as
    in the tokenizers of minimind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts, level = tokenizers.pre_tokenizers, tokenizers.pre_tokenizers.ByteLevel
    if marks_first:
        tokenizer.pre_tokenizer = level(add_prefix_space=False)
    else:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
        split = parts.Split(tokenizers.Regex(QWEN2_SPLIT), "isolated")
        tokenizer.pre_tokenizer = parts.Sequence([split, level(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    first = list(MARKS) if marks_first else []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=level.alphabet(), special_tokens=first, show_progress=False
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    tokenizer.add_special_tokens(list(MARKS))
    if not marks_first:
        tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in LESSER_MARKS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer" if not marks_first else "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return folder


def write_model(folder: Path, *, moe: bool = False, tied: bool = True, **options: Any) -> Path:
    """Write a random Qwen3 for the tokenizer in a folder, in bfloat16, with rows to spare.

    Args: options: those of `save_pretrained`, such as the size of a file.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": num_tokens(folder) + PADDING_ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 512,
        "tie_word_embeddings": tied, "initializer_range": 0.3,
    }  # fmt: skip
    if moe:
        kind = "Qwen3Moe"
        shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
    else:
        kind = "Qwen3"
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**shape)).eval()
    ends = _ids_of(folder, "<|im_end|>", "<|endoftext|>")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, ends[1]
    model.bfloat16().save_pretrained(folder, **options)
    return folder


def sample_texts() -> list[str]:
    """What the tokenizer is trained on: sums, talk, code, a little of everything."""
    sums = [f"{a}+{b}等于多少？ {a}+{b}={a + b}。" for a in range(20) for b in range(7)]
    talk = [
        "你好，我是助手。",
        "今天天气很好，我们去公园吧！",
        "Don't worry, it's fine.",
        "for i in range(10):\n    print(i)\n",
    ]
    return sums + talk * 20


def ids_without_marks(folder: Path, texts: list[str]) -> list[list[int]]:
    """Ids of texts by the package tokenizers, which is told of no marks: so all text is text."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plain = tokenizers.Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))
    return [one.ids for one in plain.encode_batch(texts, add_special_tokens=False)]


def change_json(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None takes a key away."""
    before = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in (before | values).items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def _ids_of(folder: Path, *names: str) -> list[int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.token_to_id(name) for name in names]


def num_tokens(folder: Path) -> int:
    """Tokens of the tokenizer in a folder."""
    return int(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())

"""The model card: README.md of an exported folder, what the model is and how it was made."""

from collections.abc import Sequence
from pathlib import Path

from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM

FOLDER_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
messages = [{"role": "user", "content": "你是谁？"}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

The chat template writes `<|bos|>` at the beginning: add no second one. A text that spells a mark,
such as `<|user_end|>`, becomes that mark in most programs: `split_special_tokens=True` prevents it.
"""
"""How one uses an exported folder."""


def model_card(
    model: MiniLLM, manifest: WeightsManifest, *, use: str = FOLDER_USE, sections: Sequence[str] = ()
) -> str:
    """Text of the card, in Markdown. Nothing is claimed that the weight file does not know, but in
    the sections.

    Args: model: may be on the device `meta`: only its shape counts. use: how one uses what the card
    lies beside. sections: more of it in Markdown, such as the scores of a run.
    """
    config = model.config
    kind = (
        f"Qwen3-MoE, {config.num_experts} experts, {config.num_experts_per_tok} a token" if config.use_moe else "Qwen3"
    )
    context = f"{config.original_max_position_embeddings:,} tokens a row in training"
    if config.rope_scaling_factor != 1.0:
        context += f", stretched {config.rope_scaling_factor:g} times by YaRN"
    facts = {
        "Architecture": f"{kind}, {config.num_hidden_layers} blocks of width {config.hidden_size}",
        "Parameters": f"{model.num_parameters():,}, float32, one matrix for input and output",
        "Vocabulary": f"{config.vocab_size:,} tokens, byte-level BPE",
        "Context": context,
        "Last stage of the training": manifest.stage or "unknown",
        "Tokenizer": f"`{manifest.tokenizer_sha256 or 'unknown'}`",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    data = "\n".join(f"- {Path(source.path).name}" for source in manifest.training_data) or "- unknown"
    more = "".join(f"\n{section.strip()}\n" for section in sections)
    return f"""\
---
language: [zh]
library_name: transformers
pipeline_tag: text-generation
tags: [minillm]
---

# A small Chinese language model

Trained from nothing with MiniLLM. 用 MiniLLM 从零训练的中文小语言模型。

| | |
|---|---|
{rows}

Files that it was trained on:

{data}
{more}
It is small: it knows little, it makes facts up, and it should decide nothing of weight.
它很小：知道得少，会编造事实，不应由它决定重要的事。

{use}"""

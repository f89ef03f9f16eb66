"""Records, jobs and a tokenizer with one token for each byte, for the tests of tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs.stage_table import STAGE_TABLE
from dataset.tensors import IGNORE, open_tensors
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.tokens.build import TensorJob, build_tensors
from dataset.tokens.encoding import RecordEncoder

# One token for each byte, so that a person can read ids: the id of "a" is ord("a").
tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)})
BOS, EOS = tokenizer.get_bos_token_id(), tokenizer.end_of_text_id
USER, USER_END, BOT, BOT_END = (
    tokenizer.encode_special(f"<|{name}|>") for name in ("user_start", "user_end", "assistant_start", "assistant_end")
)
NO = IGNORE
TEXTS = ["你好，世界", "abc", "a longer text, with é and 👍", "x", "短文。" * 30]
CHATS = [[("你好", "你好！")], [("1+1=?", "2"), ("再加 1 呢？", "3。")], [("hi", "y" * 70)]]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def documents(path: Path, texts: list[str] = TEXTS) -> Path:
    return write_lines(path, [{"text": text} for text in texts])


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def chats(path: Path, conversations: list[list[tuple[str, str]]] = CHATS) -> Path:
    return write_lines(path, [{"conversations": conversation(turns)} for turns in conversations])


def pairs(path: Path, triples: list[tuple[str, str, str]]) -> Path:
    return write_lines(
        path, [{"chosen": conversation([(q, a)]), "rejected": conversation([(q, b)])} for q, a, b in triples]
    )


def job(stage: str, source: Path, **settings: Any) -> TensorJob:
    defaults = {"output": source.with_name("tensors"), "max_length": 16, "num_workers": 1, "progress": False}
    return TensorJob(STAGE_TABLE[stage].data, source, tokenizer=tokenizer, **(defaults | settings))


def encoder(stage: str, source: Path = Path("a.jsonl"), **settings: Any) -> RecordEncoder:
    defaults = {"max_length": 64, "bos_token": "<|bos|>", "append_eos": stage == "pretrain", "split": ""}
    return RecordEncoder(STAGE_TABLE[stage].data, source, tokenizer, **(defaults | settings))


def arrays_of(task: TensorJob) -> dict[str, np.ndarray]:
    build_tensors(task)
    return {name: tensor.numpy() for name, tensor in open_tensors(task.output).items()}


def ids(text: str) -> list[int]:
    return list(text.encode())

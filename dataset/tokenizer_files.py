"""The tokenizer's folder: tokenizer.pkl, its description, and two files for Hugging Face.

tokenizer.pkl           pattern, ranks and special tokens, which decide the ids; plain data only
tokenizer_meta.json     how it was trained, statistics of its vocabulary, its fingerprint
tokenizer.json          the same vocabulary for Hugging Face's `tokenizers`, with the same ids
tokenizer_config.json   how transformers, vLLM and llama.cpp use it, with the chat template
"""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from configs.artifacts import atomic_write, read_json, write_json
from configs.schema import ModelConfig, UserError
from dataset.chat import ASSISTANT_END, BOS, CHAT_TEMPLATE, END_OF_TEXT

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer_meta.json", "tokenizer.pkl")
REMEDY = "Train one: python scripts/train_tokenizer.py --output DIR; or name another folder with --tokenizer_dir."
REMEDY_CHINESE = "请重新训练分词器，或用 --tokenizer_dir 另指定"


class Vocabulary(Protocol):
    """The parts of a tokenizer that the files store."""

    pattern: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    metadata: dict[str, Any]
    sha256: str

    def merges(self) -> Iterator[tuple[bytes, bytes]]:
        """The two parts of which each token is made, in the order of ranks."""


# --- the folder -----------------------------------------------------------------------------------


def write_folder(folder: Path, tokenizer: Vocabulary) -> None:
    """Write the four files. `tokenizer.pkl` comes last: a folder that has it is complete."""
    with atomic_write(folder / "tokenizer.json") as file:
        json.dump(hugging_face_json(tokenizer), file, ensure_ascii=False, indent=1)
        file.write("\n")
    write_json(folder / "tokenizer_config.json", hugging_face_config(tokenizer))
    facts = {
        "pattern": tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "sha256": tokenizer.sha256,
    }
    write_json(folder / "tokenizer_meta.json", tokenizer.metadata | facts)
    plain = {
        "pattern": tokenizer.pattern,
        "mergeable_ranks": tokenizer.mergeable_ranks,
        "special_tokens": tokenizer.special_tokens,
    }
    with atomic_write(folder / "tokenizer.pkl", "wb") as file:
        pickle.dump(plain, file, protocol=4)


def read_metadata(path: Path, sha256: str) -> dict[str, Any]:
    """What `tokenizer_meta.json` says about the tokenizer with this fingerprint.

    It is empty when the file is missing.
    Raises: UserError when the file is damaged, or describes another tokenizer.
    """
    if not path.exists():
        return {}
    meta = read_json(path, REMEDY, f"分词器说明损坏：{REMEDY_CHINESE}")
    if not isinstance(meta, dict) or meta.pop("sha256", None) != sha256:
        raise UserError(
            f"{path}: does not belong to the tokenizer.pkl beside it. {REMEDY}",
            f"与同目录的 tokenizer.pkl 不配套：{REMEDY_CHINESE}",
        )
    return {key: value for key, value in meta.items() if key not in {"pattern", "special_tokens"}}


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text, bytes and containers only.

    A pickle can also name a function to call, which would let a file from the internet run any
    code. Here such a name is never looked up.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is code, not data")


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """The dict in `tokenizer.pkl`.

    Raises: UserError when the file is missing, damaged, or holds anything but plain data.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. {REMEDY}", f"找不到分词器：{REMEDY_CHINESE}") from None
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror}). {REMEDY}", f"分词器无法读取：{REMEDY_CHINESE}"
        ) from None
    try:
        data = _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: is refused ({reason}). {REMEDY}", f"分词器损坏或含有代码，已拒绝：{REMEDY_CHINESE}"
        ) from None
    if not isinstance(data, dict) or set(data) != {"pattern", "mergeable_ranks", "special_tokens"}:
        raise UserError(
            f"{path}: must hold pattern, mergeable_ranks and special_tokens, nothing else. {REMEDY}",
            f"不是本项目的分词器：{REMEDY_CHINESE}",
        )
    return data


# --- Hugging Face's files -------------------------------------------------------------------------


def hugging_face_json(tokenizer: Vocabulary) -> dict[str, Any]:
    """`tokenizer.json`: the vocabulary with its merges, for Hugging Face's `tokenizers`.

    That library gives the same ids as ours.
    """
    shown = {token: to_byte_alphabet(token) for token in tokenizer.mergeable_ranks}
    merges = [f"{shown[left]} {shown[right]}" for left, right in tokenizer.merges()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, token_id in tokenizer.special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # As in tiktoken, a piece that is itself a token becomes that token, whatever the
            # merges would give.
            "ignore_merges": True,
            "vocab": {text: tokenizer.mergeable_ranks[token] for token, text in shown.items()},
            "merges": merges,
        },
    }


def hugging_face_config(tokenizer: Vocabulary) -> dict[str, Any]:
    """`tokenizer_config.json`: how transformers, vLLM and llama.cpp use the tokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        # Programs stop generating at eos, so eos is the end of an answer. Padding must be another
        # token: code that hides padding from the loss would hide the end of each answer too. So
        # padding is the end of a document.
        "eos_token": ASSISTANT_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [
            name for name in tokenizer.special_tokens if name not in {BOS, ASSISTANT_END, END_OF_TEXT}
        ],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": ModelConfig().max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }


def _byte_alphabet() -> list[str]:
    """One visible character for each byte, the same as in GPT-2.

    A byte that is a visible character in Latin-1 stands for itself. The others take the characters
    from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(0x100)]


_BYTE_TO_CHARACTER = _byte_alphabet()
_CHARACTER_TO_BYTE = {character: byte for byte, character in enumerate(_BYTE_TO_CHARACTER)}


def to_byte_alphabet(token: bytes) -> str:
    """A token as `tokenizer.json` writes it."""
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in token)


def from_byte_alphabet(text: str) -> bytes:
    """The bytes of a token as `tokenizer.json` writes it."""
    return bytes(_CHARACTER_TO_BYTE[character] for character in text)

"""Where things are: the repository root, the default folders, and how a user's path is found."""

import os
import re
from pathlib import Path

from configs.schema import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG_DIR = ROOT / "configs"
SOURCE_DIR = ROOT / "data" / "chinese"
SAMPLE_DIR = ROOT / "data" / "samples"
DATA_DIR = ROOT / "data" / "processed"
OUT_DIR = ROOT / "out"
TF_DIR = ROOT / "tf_dir"
TOKENIZER_DIR = ROOT / "model"
IDENTITY_SOURCE = "identity_conversations.jsonl"
"""The user's identity file in SOURCE_DIR; the mix creates it from IDENTITY_SAMPLE when it is missing."""
IDENTITY_MARK = ".identity_conversations.sha256"
"""Beside it: its hash as the mix wrote it, which tells whether somebody has edited it since."""
IDENTITY_SAMPLE = ROOT / "dataset" / "identity_cn_sample.jsonl"
FIRST_MINUTES = ROOT / "dataset" / "first_minutes.jsonl"
"""What people type first: an exam after SFT and each later stage."""
DANGER_PROMPTS = ROOT / "dataset" / "danger_prompts.jsonl"
"""What people type when a life is in danger, and harmless neighbours: the other exam."""


def source_dir(data_dir: Path = DATA_DIR) -> Path:
    """The folder of the user's files: `SOURCE_DIR` of the environment, else `data/chinese`; in a read-only checkout
    without that one, `chinese` in `data_dir`."""
    if given := os.environ.get("SOURCE_DIR"):
        return Path(given)
    return SOURCE_DIR if SOURCE_DIR.is_dir() or _is_writable(SOURCE_DIR) else data_dir / "chinese"


def sample_dir(data_dir: Path = DATA_DIR) -> Path:
    """Where the bundled samples are made: `data/samples`; in a read-only checkout `samples` in `data_dir`."""
    return SAMPLE_DIR if _is_writable(SAMPLE_DIR) else data_dir / "samples"


def _is_writable(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, can be written."""
    return os.access(next(path for path in (folder, *folder.parents) if path.exists()), os.W_OK)


def find_dataset(path: Path) -> Path:
    """The data file or folder that a user named: as given, else in `dataset/`, the sources' folder or the root.

    Raises: UserError naming every place that was looked at.
    """
    candidates = [path] if path.is_absolute() else [path, ROOT / "dataset" / path, source_dir() / path, ROOT / path]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    places = ", ".join(str(candidate) for candidate in candidates)
    maker = _maker(path)
    remedy = f"Check the path, or make it: {maker}" if maker else "Check the path."
    raise UserError(
        f"{path}: no such file or folder (looked for {places}). {remedy}",
        "找不到：请检查路径" + ("，或运行该命令生成" if maker else ""),
    )


def _maker(path: Path) -> str:
    """The command that makes a file or folder of this name; empty where none of ours does."""
    name = path.name
    if match := re.fullmatch(r"(pretrain|sft|dpo)_tokens", name):
        return f"python scripts/export_embeddings.py {match[1]} (bash scripts/run.sh does all in order)"
    if re.fullmatch(r"(pretrain|sft|dpo)_chinese(_heldout)?\.jsonl", name):
        return "python scripts/build_chinese_mix.py (bash scripts/run.sh does all in order)"
    stem = re.sub(r"_\d+(_moe)?\.pth$", "", name)
    return trainer_command(stem)


TRAINER_OF_WEIGHTS = {"pretrain": "train_pretrain.py", "full_sft": "train_full_sft.py", "rlhf": "train_dpo.py"}
"""Stem of a weight file -> the program that writes it."""


def trainer_command(stem: str) -> str:
    """The command that trains weights of this stem; empty where this version has none."""
    if stem not in TRAINER_OF_WEIGHTS:
        return ""
    return f"python trainer/{TRAINER_OF_WEIGHTS[stem]} (bash scripts/run.sh does all in order)"


def display(path: Path) -> str:
    """The path as a reader knows it: relative to where they stand when it lies below, else absolute."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)

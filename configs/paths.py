"""Where things are: the repository root, the default folders, and how a user's path is found."""

import os
from pathlib import Path

from configs.schema import UserError
from configs.stage_table import DATA_STEMS, heldout_file, record_file, tensor_folder, trainer_of

ROOT = Path(__file__).resolve().parents[1]
CONFIG_DIR = ROOT / "configs"
SOURCE_DIR = ROOT / "data" / "chinese"
SAMPLE_DIR = ROOT / "data" / "samples"
DATA_DIR = ROOT / "data" / "processed"
OUT_DIR = ROOT / "out"
TF_DIR = ROOT / "tf_dir"
TOKENIZER_DIR = ROOT / "model"
IDENTITY_SOURCE = "identity_conversations.jsonl"
"""The user's identity file in SOURCE_DIR.

If it is missing, the mix copies IDENTITY_SAMPLE there.
"""
IDENTITY_MARK = ".identity_conversations.sha256"
"""A file beside it with the hash of what the mix wrote. It shows whether somebody has edited it."""
IDENTITY_SAMPLE = ROOT / "dataset" / "identity_cn_sample.jsonl"
FIRST_MINUTES = ROOT / "dataset" / "first_minutes.jsonl"
"""An exam after SFT and each later stage: what people type first."""
DANGER_PROMPTS = ROOT / "dataset" / "danger_prompts.jsonl"
"""The other exam: what people type when a life is in danger, and harmless texts that look alike."""


def env_path(variable: str, default: Path) -> Path:
    """A folder from the environment (`DATA_DIR`, `OUT_DIR`, `TF_DIR`), else the default."""
    value = os.environ.get(variable)
    return Path(value) if value else default


def default_tokenizer_dir(out_dir: Path) -> Path:
    """The tokenizer that was trained in `OUT_DIR/tokenizer`, else the one in `model/`."""
    trained = out_dir / "tokenizer"
    return trained if (trained / "tokenizer.pkl").exists() else TOKENIZER_DIR


def kept_tokenizer_dir(out_dir: Path, sha256: str) -> Path:
    """Where the tokenizer of another model is kept for the weights in `out_dir` that use it."""
    return out_dir / "tokenizers" / (sha256[:12] or "unknown")


def source_dir(data_dir: Path = DATA_DIR) -> Path:
    """The folder of the user's files: `SOURCE_DIR` of the environment, else `data/chinese`.

    In a read-only checkout that has no `data/chinese`, it is `chinese` in `data_dir`.
    """
    if given := os.environ.get("SOURCE_DIR"):
        return Path(given)
    return SOURCE_DIR if SOURCE_DIR.is_dir() or _is_writable(SOURCE_DIR) else data_dir / "chinese"


def sample_dir(data_dir: Path = DATA_DIR) -> Path:
    """The folder of the bundled samples: `data/samples`, or in a read-only checkout
    `data_dir/samples`."""
    return SAMPLE_DIR if _is_writable(SAMPLE_DIR) else data_dir / "samples"


def _is_writable(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, can be written."""
    return os.access(next(path for path in (folder, *folder.parents) if path.exists()), os.W_OK)


def find_dataset(path: Path) -> Path:
    """A user's data file or folder: as given, else in `dataset/`, the folder of sources or the
    root.

    Raises: UserError that names every place where we looked.
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


def find_model_folder(path: Path) -> Path:
    """The Hugging Face folder of a model, found as a data file is.

    Raises: UserError when there is none.
    """
    found = find_dataset(path)
    if not (found / "config.json").is_file():
        raise UserError(
            f"{path}: no folder with a config.json. Give the Hugging Face folder of a Qwen3.",
            "不是模型目录：请给出含 config.json 的 Hugging Face 目录",
        )
    return found


def heldout_beside(source: Path) -> Path | None:
    """The held-out file of a training file: `sft_chinese_heldout.jsonl` beside `sft_chinese.jsonl`.

    None if there is no such file. The part of the name after its first dot stays: `a.jsonl.gz` has
    `a_heldout.jsonl.gz`.
    """
    name, dot, suffix = source.name.partition(".")
    if not name:  # such as / or ..
        return None
    path = source.with_name(f"{name}_heldout{dot}{suffix}")
    return path if path.is_file() else None


def _maker(path: Path) -> str:
    """The command that makes a file or folder of this name; "" if none of ours does."""
    for data, stem in DATA_STEMS.items():
        if path.name == tensor_folder(data):
            return f"python scripts/export_embeddings.py {stem} {IN_ORDER}"
        if path.name in {record_file(data), heldout_file(data)}:
            return f"python scripts/build_chinese_mix.py {IN_ORDER}"
    return trainer_command(path.name)


IN_ORDER = "(bash scripts/run.sh does all in order)"


def trainer_command(weights: str) -> str:
    """The command that trains weights of this file name (or this beginning of one); "" if there is
    none."""
    trainer = trainer_of(weights)
    return f"python trainer/{trainer} {IN_ORDER}" if trainer else ""


def latest_weights(stem: str, out_dir: Path, *, hidden_size: int | None = None, use_moe: bool | None = None) -> Path:
    """The weights `stem_*.pth` in a folder: the only match, else the newest.

    Weights that were kept before a change (`stem_192.previous.pth`) do not count.
    Raises: UserError when there are none.
    """
    matches = [
        path
        for path in out_dir.glob(f"{stem}_*.pth")
        if not path.stem.endswith(".previous")
        and (hidden_size is None or path.stem.removesuffix("_moe") == f"{stem}_{hidden_size}")
        and (use_moe is None or path.stem.endswith("_moe") == use_moe)
    ]
    if not matches:
        missing = display(out_dir / f"{stem}_{hidden_size or '*'}.pth")
        elsewhere = sorted(out_dir.glob(f"smoke/{stem}_*.pth"))
        command = trainer_command(stem)
        raise UserError(
            f"{missing}: no such weights. "
            + (
                f"Train them: {command}; or give a path."
                if command
                else f"This version has no program that trains {stem} weights; put some there, or give a path."
            )
            + (f" Those of a smoke test are in {display(elsewhere[0].parent)} (--out_dir)." if elsewhere else ""),
            "没有这样的权重：请先运行该命令训练，或指定路径" if command else "没有这样的权重，此版本也没有训练它的程序",
        )
    return max(matches, key=lambda path: path.stat().st_mtime_ns)


def display(path: Path) -> str:
    """The path for a message: relative if it is below the current folder, else absolute."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""The tokens that `on_gpu.py` trains on: made once, small enough to be carried elsewhere.

    data/on_gpu/corpus/        text, as benchmarks/training/corpus.py prepares it
    data/on_gpu/sft_tokens/    conversations
    data/on_gpu/dpo_tokens/    pairs
    data/on_gpu/prepared.json  what they were made from

Where no file is given, they come from the bundled samples.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.training.corpus import prepare as prepare_corpus
from configs.artifacts import read_json, require_writable, write_json
from configs.load import load_profile
from configs.paths import ROOT, TOKENIZER_DIR, display, find_dataset
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from dataset.records.files import read_records
from dataset.tensors import read_manifest
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.build import TensorJob, build_tensors

MANIFEST = "prepared.json"
FORMAT = 1
MAX_TOKENS = 8_000_000
"""Tokens of the text. With conversations and pairs the folder stays below 64 MiB."""
MOST_RECORDS = {"sft": 4_000, "dpo": 1_500}
HELDOUT_DOCUMENTS = 60
TINY_ROW_TOKENS = 512
"""The least that benchmarks/training/arms.py takes. Its windows are longer than the smoke profile's
rows."""
BUNDLED = "bundled samples"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What to make."""

    profile: str
    """Whose bundled mix, and whose lengths of rows are taken."""
    row_tokens: Mapping[str, int]
    files: Mapping[str, Path]
    """Stage -> the user's file, where there is one."""
    max_tokens: int = MAX_TOKENS

    @classmethod
    def of(cls, *, tiny: bool, files: Mapping[str, Path] | None = None, max_tokens: int = MAX_TOKENS) -> "Recipe":
        """For the profile `default`, or `smoke`."""
        profile = load_profile("smoke" if tiny else "default")
        lengths = {
            stage: TINY_ROW_TOKENS if tiny else profile.stages[stage].max_seq_len
            for stage in ("pretrain", "sft", "dpo")
        }
        return cls(profile=profile.profile, row_tokens=lengths, files=files or {}, max_tokens=max_tokens)


def prepare(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Make the folder anew. Returns: what it holds. Raises: UserError."""
    files = {stage: find_dataset(path) for stage, path in recipe.files.items()}  # a misspelt name ends here
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    require_writable(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as name:
        scratch = Path(name)
        if files.keys() != {"pretrain", "sft", "dpo"}:
            mix_bundled(recipe.profile, scratch)
        sources = {stage: files.get(stage, scratch / f"{stage}_chinese.jsonl") for stage in ("pretrain", "sft", "dpo")}
        prepare_corpus(
            folder / "corpus",
            sources["pretrain"],
            tokenizer,
            row_tokens=recipe.row_tokens["pretrain"],
            max_tokens=recipe.max_tokens,
            num_heldout=HELDOUT_DOCUMENTS,
        )
        for stage, most in MOST_RECORDS.items():
            part = scratch / f"{stage}.jsonl"
            with part.open("w", encoding="utf-8") as lines:
                for record in islice(read_records(sources[stage]), most):
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            heldout = None if stage in files else scratch / f"{stage}_chinese_heldout.jsonl"
            length = recipe.row_tokens[stage]
            build_tensors(
                TensorJob(
                    STAGE_TABLE[stage].data, part, tensors(folder, stage, length), tokenizer, length, heldout=heldout
                )
            )
    found = {
        "format": FORMAT,
        "row_tokens": dict(recipe.row_tokens),
        "tokenizer_sha256": tokenizer.sha256,
        "from": {stage: files[stage].name if stage in files else BUNDLED for stage in sources},
        "tokens": {
            stage: read_manifest(tensors(folder, stage, length)).num_tokens
            for stage, length in recipe.row_tokens.items()
        },
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }
    write_json(folder / MANIFEST, found)
    return found


def mix_bundled(profile: str, folder: Path) -> None:
    """The mix of the bundled samples alone, whatever lies in the user's folder.

    Raises: UserError where it fails.
    """
    command = [sys.executable, str(ROOT / "scripts" / "build_chinese_mix.py"), "--profile", profile]
    command += ["--source_dir", str(folder / "no_sources"), "--output_dir", str(folder)]
    (folder / "no_sources").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise UserError(f"{Path(command[1]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def tensors(folder: Path, stage: str, row_tokens: int) -> Path:
    """Where a stage's tensors are."""
    return folder / "corpus" / f"rows_{row_tokens}" if stage == "pretrain" else folder / f"{stage}_tokens"


def prepared(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What a folder holds if it is exactly what is needed here; else None, and a line says why."""
    if not (folder / MANIFEST).exists():
        return None
    found: dict[str, Any] = read_json(folder / MANIFEST, "Delete the folder, and make it again with --prepare.")
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    wanted = {"format": FORMAT, "row_tokens": dict(recipe.row_tokens), "tokenizer_sha256": tokenizer.sha256}
    if wanted.items() <= found.items():
        return found
    print(f"{display(folder)}: made for other rows or another tokenizer; the bundled samples are taken", flush=True)
    return None

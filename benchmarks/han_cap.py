"""Which cap on runs of Han is best while a tokenizer is trained.

    python benchmarks/han_cap.py --text pretrain.jsonl.xz --caps none 2 4 8 --seeds 0 1 2 \\
        --json han_cap.json

For each cap, a tokenizer of 6,400 tokens is trained on the text, every twentieth record left out.
On those records two things are measured: characters per token, and the bits per byte of a model of
192 x 4, one for each seed, trained for the same number of steps of 8,192 tokens. Text is always
encoded with the plain pattern. Needs the crate (maturin develop --release) and no GPU. The result
does not depend on what else runs.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.report import add_json_flag
from benchmarks.tokenizer.text import read_texts
from configs.artifacts import write_json
from configs.cli import Parser, run
from configs.hardware import cpu_instructions, cpu_name
from configs.paths import ROOT
from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer

HOLD_OUT_EVERY = 20
VOCAB_SIZE = 6400
NUM_EVALUATED = 300
"""Held-out records that bits per byte are measured on."""


def split_texts(path: Path, folder: Path) -> tuple[Path, Path]:
    """Training and held-out records as two JSONL files."""
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    with train.open("w", encoding="utf-8") as kept, heldout.open("w", encoding="utf-8") as left_out:
        for index, text in enumerate(read_texts(path)):
            file = kept if index % HOLD_OUT_EVERY else left_out
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return train, heldout


def call(*words: object) -> None:
    """Run one of the project's own programs.

    Raises: UserError with its last words when it fails.
    """
    result = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"{words[0]}: exit {result.returncode}: {result.stderr[-2000:]}")


def bits_per_byte(folder: Path, tokens: Path, tokenizer: Path, heldout: Path, seed: int, steps: int) -> float:
    """Train one model and measure it."""
    out = folder / f"seed_{seed}"
    results = out / "results.jsonl"
    call(
        *("trainer/train_pretrain.py", "--profile", "cpu", "--data_path", tokens, "--tokenizer_dir", tokenizer),
        *("--out_dir", out, "--tf_dir", out, "--seed", seed, "--max_steps", steps, "--save_interval", steps),
    )
    call(
        *("scripts/evaluate_stage.py", "--stage", "pretrain", "--profile", "cpu", "--tokenizer_dir", tokenizer),
        *("--out_dir", out, "--data_path", heldout, "--results_file", results, "--max_samples", NUM_EVALUATED),
    )
    return float(json.loads(results.read_text(encoding="utf-8"))["metrics"]["bits_per_byte"]["value"])


def measure_cap(
    cap: int | None, train: Path, heldout: Path, folder: Path, seeds: Sequence[int], steps: int
) -> dict[str, Any]:
    """Train a tokenizer with this cap, and a model for each seed.

    Returns: its object of the JSON.
    """
    tokenizer = RustBPETokenizer.train_from_iterator(read_texts(train), VOCAB_SIZE, max_han_run=cap)
    tokenizer.save(folder / "tokenizer")
    texts = list(read_texts(heldout))
    density = sum(map(len, texts)) / sum(map(len, tokenizer.encode_batch(texts)))
    arm: dict[str, Any] = {"cap": cap, "characters_per_token": round(density, 4)}
    if seeds:
        export = ("scripts/export_embeddings.py", "pretrain", "--input", train, "--output", folder / "tokens")
        call(*export, "--tokenizer_dir", folder / "tokenizer", "--max-length", 256)
        arm["bits_per_byte"] = [
            bits_per_byte(folder, folder / "tokens", folder / "tokenizer", heldout, seed, steps) for seed in seeds
        ]
    return arm


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each cap, print a table."""
    parser = Parser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help=".jsonl or .jsonl.xz of records with `text` 文本")
    parser.add_argument("--caps", nargs="+", default=["none", "2", "4", "8"], help="none or characters 上限")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="a model each 随机种子")
    parser.add_argument("--steps", type=int, default=200, help="of 8,192 tokens 步数 (%(default)s)")
    add_json_flag(parser)
    args = parser.parse_args(argv)
    arms = []
    with tempfile.TemporaryDirectory(prefix="han_cap_") as name:
        train, heldout = split_texts(args.text, Path(name))
        print(f"{cpu_name()} ({', '.join(cpu_instructions())}), {args.steps} steps of 8,192 tokens")
        for word in args.caps:
            folder = Path(name) / word
            arm = measure_cap(None if word == "none" else int(word), train, heldout, folder, args.seeds, args.steps)
            arms.append(arm)
            line = f"cap {word:>4}: {arm['characters_per_token']:.4f} characters per token"
            if values := arm.get("bits_per_byte"):
                spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
                line += f", {mean(values):.4f}{spread} bits per byte ({', '.join(f'{value:.4f}' for value in values)})"
            print(line, flush=True)
            if args.json:
                write_json(args.json, arms)
    best = max(arms, key=lambda arm: arm["characters_per_token"])
    print(f"densest: cap {best['cap']}")
    return 0


if __name__ == "__main__":
    run(main)

"""Show that a change of structure changed no number: compare the pipelines of two checkouts.

python benchmarks/same_numbers.py run --checkout . --out /tmp/before
python benchmarks/same_numbers.py compare /tmp/before /tmp/after

Compared to the last bit: each tensor of the weights, all losses and validation losses, the metrics
of each result line, the records of the mix and the arrays of the tensors; of the profiles `smoke`
and `cpu` (30 steps a stage), with the tokenizer that ships and with one trained here. Fingerprints,
times and ids may differ.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs.artifacts import sha256_file
from configs.cli import Parser, run
from configs.paths import ROOT
from configs.schema import UserError

STEPS = {"smoke": 20, "cpu": 30}
ARMS = tuple(f"{profile}{tokenizer}" for profile in STEPS for tokenizer in ("", "+rustbpe"))
TIMES = {"tokens_per_second", "seconds", "mfu"}
"""Values of a step that are measured with a clock."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the arms of a checkout, or compare two folders of arms."""
    parser = Parser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    once = verbs.add_parser("run", help="run the pipeline of a checkout 运行一次")
    once.add_argument("--checkout", type=Path, required=True, metavar="DIR", help="the project 项目目录")
    once.add_argument("--out", type=Path, required=True, metavar="DIR", help="where all is written 输出目录")
    once.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="which runs 运行哪些")
    both = verbs.add_parser("compare", help="compare two such folders 比较两次运行")
    both.add_argument("folders", nargs=2, type=Path, metavar="DIR", help="what `run` wrote 输出目录")
    arguments = parser.parse_args(argv)
    if arguments.verb == "run":
        for arm in arguments.arms:
            run_arm(arguments.checkout.resolve(), arguments.out.resolve() / arm, arm)
        return 0
    return compare(*arguments.folders)


def run_arm(checkout: Path, folder: Path, arm: str) -> None:
    """One whole pipeline. Raises: UserError when it fails."""
    profile, _, trained = arm.partition("+")
    folder.mkdir(parents=True, exist_ok=True)
    steps = {f"{stage}_ARGS": f"--max_steps {STEPS[profile]}" for stage in ("PRETRAIN", "SFT", "DPO")}
    places = {name: str(folder / name) for name in ("DATA_DIR", "OUT_DIR", "TF_DIR", "SOURCE_DIR")}
    Path(places["SOURCE_DIR"]).mkdir(exist_ok=True)
    venv = {"VENV_DIR": os.environ.get("VENV_DIR", str(ROOT / ".venv"))}
    environment = os.environ | steps | places | venv | {"ENABLE_RUSTBPE": str(int(bool(trained)))}
    command = ["bash", str(checkout / "scripts" / "run.sh"), "--profile", profile]
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(command, cwd=checkout, env=environment, stdout=log, stderr=log, check=False).returncode
    if code:
        raise UserError(f"{folder / 'log.txt'}: the run ended with {code}. See there.", "运行失败：见日志")
    print(f"{arm}: done")


def compare(before: Path, after: Path) -> int:
    """Print what differs; 0 when nothing does."""
    found = 0
    for arm in sorted(path.name for path in before.iterdir() if path.is_dir()):
        numbers = [dict(numbers_of(folder / arm)) for folder in (before, after)]
        names = sorted(set(numbers[0]) | set(numbers[1]))
        different = [name for name in names if numbers[0].get(name) != numbers[1].get(name)]
        print(f"{arm}: {len(names):,} compared, {len(different)} differ", *different[:20], sep="\n  ")
        found += len(different) + (not names)
    return int(found > 0)


def numbers_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and value, or hash, of all that must stay the same."""
    for path in sorted((folder / "OUT_DIR").glob("*.pth")):
        for name, tensor in torch.load(path, weights_only=True)["model"].items():
            yield f"{path.name} {name}", hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()
    for path in sorted((folder / "TF_DIR" / "metrics").glob("*.jsonl")):
        stage = path.stem.partition("_")[0]  # the rest is a fingerprint
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            values = {name: value for name, value in json.loads(line).items() if name not in TIMES}
            yield f"{stage} log line {number}", values
    for line in (folder / "TF_DIR" / "eval_results.jsonl").read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        for name, metric in result["metrics"].items():
            yield f"{result['stage']} {name}", metric
    data = folder / "DATA_DIR"
    for path in sorted([*data.glob("*.jsonl"), *data.rglob("*.npy")]):
        yield str(path.relative_to(data)), sha256_file(path)


if __name__ == "__main__":
    run(main)

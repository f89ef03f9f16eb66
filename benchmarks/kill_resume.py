"""Whether a pipeline that is killed again and again ends in the same way as an undisturbed one.

    python benchmarks/kill_resume.py --work_dir /path/with/space
    python benchmarks/kill_resume.py --work_dir /path/with/space --profile configs/cpu.yaml \\
        --seed 7 --json kills.json

There are three runs: one that is left undisturbed, one that is killed and started again each time,
and one that is killed while its settings change. The kills are `kill -9` at random moments (of a
seed): in the mix, in the export, after and during saves of each trainer, in an evaluation, between
the evaluation's line and the mark that its stage is done, and of `run.sh` alone.

The settings that change: pretraining is begun as a shorter run and made longer, and SFT is begun at
another rate. Once everything is done, that rate is tried again and given up. At every kill the
finished weights must still be there.

All files go below the work folder. The environment is that of `run.sh` (VENV_DIR), so run that once
before.
"""

import json
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import proc
from benchmarks.kills.differences import differences
from benchmarks.kills.killer import Killer
from benchmarks.kills.pipeline import Folders
from benchmarks.kills.undisturbed import reference_run
from benchmarks.report import add_json_flag
from configs.artifacts import write_json
from configs.cli import Parser, run
from configs.load import read_yaml
from configs.paths import CONFIG_DIR

STEPS = {"pretrain": 120, "sft": 120, "dpo": 80}
SAVE_INTERVAL = 4
"""Steps of the small profile, which is `smoke` but for these."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--work_dir", type=Path, required=True, metavar="DIR", help="where all files go 工作目录")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="a profile's YAML file (small, made for this) 配置文件"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of all runs 线程数 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the moments 随机种子 (%(default)s)")
    add_json_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the three runs and compare their ends. Exit code 1 where they differ."""
    arguments = build_parser().parse_args(argv)
    proc.require("/proc/self/stat", "finds processes")
    work = arguments.work_dir.resolve()
    reference, killed, changed = (Folders(work / name) for name in ("reference", "killed", "changed"))
    for folders in (reference, killed, changed):
        shutil.rmtree(folders.base, ignore_errors=True)
        folders.base.mkdir(parents=True)
    profile = arguments.profile.resolve() if arguments.profile else small_profile(work / "kill_resume.yaml")
    took = reference_run(reference, profile, arguments.threads)
    print(f"undisturbed run: {took['all']:.0f} s", flush=True)

    reports = {"killed": kill_as_planned(killed, profile, took, arguments, reference)}
    if arguments.profile:
        print("the run whose settings change is left out: it needs the small profile, whose steps are known")
    else:
        reports["changed"] = kill_with_changes(changed, profile, took, arguments, reference)
    problems = [f"{name}: {text}" for name, report in reports.items() for text in report["problems"]]
    for problem in problems:
        print(f"DIFFERS: {problem}")
    print(f"verdict: {'FAILED' if problems else 'weights bit-identical, nothing lost, nothing left over'}")
    if arguments.json:
        facts = {"seed": arguments.seed, "threads": arguments.threads, "profile": str(profile)}
        facts |= {"torch": torch.__version__, "undisturbed_seconds": round(took["all"], 1)}
        write_json(arguments.json, facts | reports)
    return 1 if problems else 0


def kill_as_planned(
    folders: Folders, profile: Path, took: dict[str, float], arguments: Namespace, reference: Folders
) -> dict[str, Any]:
    """Kill a run as planned, and compare its end. Returns: kills, seconds and problems."""
    started = time.perf_counter()
    killer = Killer(folders, profile, arguments.threads, arguments.seed, took)
    with killer:
        code = killer.carry_out(killer.plan())
    problems = [f"{killer.pipeline.log}: ended with {code}"] if code else differences(reference, folders)
    return killer.report(problems, time.perf_counter() - started)


def kill_with_changes(
    folders: Folders, profile: Path, took: dict[str, float], arguments: Namespace, reference: Folders
) -> dict[str, Any]:
    """The same with settings that change, and in the end are those of the undisturbed run."""
    started = time.perf_counter()
    shorter = small_profile(folders.base / "shorter.yaml", pretrain={"max_steps": STEPS["pretrain"] // 2})
    other_rate = small_profile(folders.base / "other_rate.yaml", sft={"learning_rate": 5.0e-3})
    killer = Killer(folders, shorter, arguments.threads, arguments.seed, took)
    with killer:
        code = killer.carry_out(killer.plan_of_changes(profile, other_rate))
        problems = [f"{killer.pipeline.log}: ended with {code}"] if code else []
        if not problems:
            problems = differences(reference, folders, settings_changed=True)
            problems += killer.try_and_give_up(other_rate)
            problems += differences(reference, folders, settings_changed=True)
    return killer.report(problems, time.perf_counter() - started)


def small_profile(path: Path, **changes: dict[str, Any]) -> Path:
    """Write a profile: `smoke` with more steps and frequent saves.

    There is no warm-up, so that a shorter run begins as a longer one does.

    Args: changes: stage -> settings.
    """
    values = read_yaml(CONFIG_DIR / "smoke.yaml") | {"profile": "kill_resume"}
    for stage, steps in STEPS.items():
        own = {"epochs": 100, "max_steps": steps, "save_interval": SAVE_INTERVAL, "warmup_ratio": 0.0}
        values[stage] = values[stage] | own | changes.get(stage, {})
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML
    return path


if __name__ == "__main__":
    run(main)

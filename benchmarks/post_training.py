"""Methods of post-training beside their controls: each run is a line of a file that is kept.

    python benchmarks/post_training.py --list
    python benchmarks/post_training.py --method lora --arm lora full --seed 0 1 2
    python benchmarks/post_training.py --method lora --table

All starts derive from a finished `bash scripts/run.sh --profile cpu`. `--run_dir` names a folder
with its `out/` and `data/` if they are not where run.sh leaves them. The start that the arms of a
task share is built once, in `--work_dir`. Runs that stand in the file already are not made again,
and a run that was interrupted resumes, on another machine from its beginning. Several of these
programs may work at once. Commit the file after every run: nothing else is kept.

A method's module is `post_training_arms/METHOD.py`, and what it offers is in `arm.py` there.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import configs  # noqa: F401  sets how OpenMP's threads wait, which torch reads when it is loaded

from benchmarks.post_training_arms.arm import RUN_DIR, Method, Start, finished_run, targets_of
from benchmarks.post_training_arms.runs import RunLine, append_run, in_use, read_runs, table, tables
from configs.artifacts import read_json, write_json
from configs.cli import Parser, run
from configs.hardware import cpu_name, num_cores
from configs.locks import Lock, take_lock
from configs.paths import ROOT, display
from configs.schema import UserError

METHODS = ("lora", "reasoning", "distillation", "reward", "grpo")
RESULTS = ROOT / "benchmarks" / "results" / "post_training.jsonl"
WORK_DIR = ROOT / "out" / "post_training"
CLOCK = "clock.json"
"""A file in a run's folder: the seconds of its earlier attempts, and whether one is running."""


def load_method(name: str) -> Method:
    """The module of a method. Raises: UserError where this version has none."""
    try:
        return cast(Method, importlib.import_module(f"benchmarks.post_training_arms.{name}"))
    except ModuleNotFoundError as error:
        if error.name != f"benchmarks.post_training_arms.{name}":
            raise
        raise UserError(f"--method {name}: benchmarks/post_training_arms/{name}.py is missing.") from None


def among(flag: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that were given, once each. Raises: UserError on one that is not known."""
    for name in given:
        if name not in known:
            raise UserError(f"{flag} {name}: must be one of {', '.join(known)}.")
    return list(dict.fromkeys(given))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only program that works in a folder; while another one is there, wait."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if take_lock(descriptor) is Lock.TAKEN:
            tell(f"{display(folder)}: another program works there; waiting until it ends")
            take_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def tell(line: str) -> None:
    """Say how far the work is, on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def timed(folder: Path) -> Iterator[dict[str, float | None]]:
    """Time a run that may take several attempts.

    Yields: an object whose "seconds" are, at the end, those of all attempts; None where one was
    killed, so that nobody knows how long it took.
    """
    path = folder / CLOCK
    before = read_json(path, "Delete it.") if path.exists() else {"seconds": 0.0, "running": False}
    known = None if before["running"] else before["seconds"]
    write_json(path, {"seconds": known, "running": True})
    clock: dict[str, float | None] = {"seconds": None}
    begin = time.monotonic()
    try:
        yield clock
    finally:
        clock["seconds"] = None if known is None else round(known + time.monotonic() - begin, 1)
        write_json(path, {"seconds": clock["seconds"], "running": False})


def prepared(method: Method, task: str, folder: Path) -> Start:
    """The start of a task, from one program at a time; another finished run gives another one."""
    place = folder / f"start-{finished_run().fingerprint()[:12]}"
    with alone_in(place):
        return method.prepare(task, place)


def measured(name: str, method: Method, task: str, arm: str, seed: int, folder: Path, results: Path) -> None:
    """One run, unless the file holds it already."""
    what = f"{name}, {task}, {arm}, seed {seed}"
    start = prepared(method, task, folder)
    if not start.weights.exists():
        raise UserError(f"{display(start.weights)}: the start of {name} names these weights, but they are missing.")
    place = folder / f"{arm}-{seed}-{start.sha256[:12]}"
    with alone_in(place):
        if (name, arm, task, seed, start.sha256) in {line.key for line in read_runs(results)}:
            return tell(f"{what}: in {display(results)} already")
        tell(f"{what}: start")
        with timed(place) as clock:
            outcome = method.measure(arm, task, seed, start, place)
        cpu = f"{cpu_name()}, {in_use(num_cores())}"
        line = RunLine(name, arm, task, seed, start.sha256, cpu, outcome.steps, clock["seconds"], outcome.metrics)
        append_run(results, line)
    return tell(f"{what}: {clock['seconds']} s, {json.dumps(outcome.metrics, ensure_ascii=False, default=str)}")


def show(lines: Sequence[RunLine], name: str, method: Method, tasks: Sequence[str]) -> None:
    """Print the tables of a method's tasks, and its targets."""
    own = [line for line in lines if line.method == name and line.task in tasks]
    if not own:
        print(f"{name}: no runs yet")
    for title, runs in tables(own, method.ARMS):
        print(*table(title, runs), "", *targets_of(method, runs), "", sep="\n")


def list_methods(lines: Sequence[RunLine]) -> None:
    """Print the methods with their tasks and arms, and which seeds have a run."""
    for name in METHODS:
        try:
            method = load_method(name)
        except UserError as error:
            print(f"{name}: {error}")
            continue
        for task in method.TASKS:
            for arm in method.ARMS:
                seeds = sorted({line.seed for line in lines if (line.method, line.task, line.arm) == (name, task, arm)})
                print(f"{name} --task {task} --arm {arm}: " + (f"seeds {', '.join(map(str, seeds))}" if seeds else "-"))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, and print the table of the method."""
    parser = Parser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, help="方法")
    parser.add_argument(
        "--arm", nargs="+", metavar="A", help="the method itself or its controls; all: every one 对照组"
    )
    parser.add_argument("--task", metavar="T", help="one of the method's tasks; default: its first 任务")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], metavar="N", help="随机种子 (0)")
    parser.add_argument("--run_dir", type=Path, metavar="DIR", help="has out/ and data/ of a finished run 已完成的训练")
    parser.add_argument("--work_dir", type=Path, default=WORK_DIR, metavar="DIR", help="starts and runs 工作目录")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="a line a run 结果文件")
    parser.add_argument("--list", action="store_true", help="methods, tasks, arms, and what has been run 列出")
    parser.add_argument("--table", action="store_true", help="only print the table 只打印表格")
    args = parser.parse_args(argv)
    if args.list:
        list_methods(read_runs(args.results))
        return 0
    if args.method is None:
        parser.error("--method or --list is needed")
    if args.run_dir:
        os.environ[RUN_DIR] = str(args.run_dir.resolve())
    method = load_method(args.method)
    tasks = among("--task", [args.task] if args.task else method.TASKS[:1], method.TASKS)
    if args.table:
        show(read_runs(args.results), args.method, method, tasks if args.task else method.TASKS)
        return 0
    wanted = args.arm or method.ARMS[:1]
    arms = list(method.ARMS) if wanted == ["all"] else among("--arm", wanted, method.ARMS)
    folder = args.work_dir.resolve() / args.method / tasks[0]
    for seed in dict.fromkeys(args.seed):
        for arm in arms:
            measured(args.method, method, tasks[0], arm, seed, folder, args.results)
    show(read_runs(args.results), args.method, method, tasks)
    return 0


if __name__ == "__main__":
    run(main)

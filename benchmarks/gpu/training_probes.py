"""What `on_gpu.py` measures inside a trainer: memory, where time goes, and how it resumes."""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.training.speed import read_lines
from configs.paths import ROOT, latest_weights
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from configs.train_run import parse_run
from model.weights import read_weights
from trainer import train_dpo, train_full_sft, train_pretrain
from trainer.loop import Outcome, Run
from trainer.resume import saved_states

GIGA = 1e9
TRAINERS: dict[str, Callable[[Sequence[str]], int]] = {
    "pretrain": train_pretrain.main,
    "sft": train_full_sft.main,
    "dpo": train_dpo.main,
}
PROGRAMS = {"pretrain": "train_pretrain.py", "sft": "train_full_sft.py", "dpo": "train_dpo.py"}
FIRST_PROFILED = 4
"""Steps before the profiler starts: kernels are loaded and compiled in them."""
PROFILE_ROWS = 20
POLL_SECONDS = 0.005
RESUMED_STEPS, SAVED_EACH = 12, 2


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Call a trainer in this process, and tell what only this process knows.

    That is: its memory, what it chose, and where the time went.
    """
    on_gpu = torch.cuda.is_available()
    if args.memory_gb:
        if not on_gpu:
            raise UserError("--memory_gb: the memory of a CPU can't be limited so. Leave it out.")
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gb * GIGA / total))
    started = time.perf_counter()
    with watched(args.profile_steps) as seen:
        code = TRAINERS[args.stage](args.flags)
    if code:
        raise UserError(f"train {args.stage}: ended with {code}. See what it said.")
    settings = parse_run(args.stage, "", args.flags)
    manifest = read_weights(latest_weights(STAGE_TABLE[args.stage].weights, settings.out_dir))[2]
    chosen = manifest.choices
    found = {
        "dtype": chosen["dtype"],
        "micro_batch": chosen["batch_size"],
        "accumulation": chosen["accumulation_steps"],
        "compiled": bool(chosen["use_compile"]),
        "first_step_s": round(seen["first"] - started, 1),
        **progress(settings.tf_dir, args.stage),
    }
    if on_gpu:
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / GIGA, 2)
        found["reserved_memory_gb"] = round(torch.cuda.max_memory_reserved() / GIGA, 2)
    return found | seen.get("profile", {})


def progress(tf_dir: Path, stage: str) -> dict[str, Any]:
    """Losses of all steps, and the tokens a second of the later half.

    Raises: UserError where there are too few steps.
    """
    path = next(iter((tf_dir / "metrics").glob(f"{stage}_*.jsonl")), tf_dir / "none")
    lines = read_lines(path)
    if len(lines) < 4:
        raise UserError(f"{path}: {len(lines)} steps, too few to tell a speed. Pass --log_interval 1 and more steps.")
    losses = [line["loss"] for line in lines]
    tokens, seconds = (lines[-1][key] - lines[len(lines) // 2 - 1][key] for key in ("tokens", "seconds"))
    return {
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "losses": [round(loss, 5) for loss in losses],
        "tokens_per_s": round(tokens / max(seconds, 1e-9)),
    }


@contextmanager
def watched(profile_steps: int) -> Iterator[dict[str, Any]]:
    """Note when the first step has ended, and profile a few of the later ones.

    The trainer's own code stays as it is: its `after_step` is replaced from outside.
    """
    after_step, seen = Run.after_step, dict[str, Any]()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    profiler = profile(activities=activities)

    def watching(self: Run, outcome: Outcome, *rest: Any) -> None:
        after_step(self, outcome, *rest)
        step = outcome.step
        seen.setdefault("first", time.perf_counter())
        if profile_steps and step in (FIRST_PROFILED, FIRST_PROFILED + profile_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step == FIRST_PROFILED:
                profiler.start()
                seen["clock"] = time.perf_counter()
            else:
                seconds = time.perf_counter() - seen["clock"]
                profiler.stop()
                seen["profile"] = where_time_goes(profiler, seconds, profile_steps)

    with mock.patch.object(Run, "after_step", watching):
        yield seen


def where_time_goes(profiler: profile, seconds: float, steps: int) -> dict[str, Any]:
    """The kernels that take longest, and the share of the time in which any of them ran."""
    on_gpu = torch.cuda.is_available()
    rows = []
    for event in profiler.key_averages():
        is_kernel = str(event.device_type) == "DeviceType.CUDA" and not event.is_user_annotation
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micros > 0 and (is_kernel or not on_gpu):
            rows.append({"name": event.key[:90], "calls": event.count // steps, "ms": micros / 1000 / steps})
    rows.sort(key=lambda row: -row["ms"])
    busy = sum(row["ms"] for row in rows)
    for row in rows:
        row["share"] = round(row["ms"] / busy, 4)
        row["ms"] = round(row["ms"], 3)
    return {
        "step_ms": round(1000 * seconds / steps, 2),
        "kernels_ms": round(busy, 2),
        "busy_share": round(busy * steps / 1000 / seconds, 3),
        "kernels": rows[:PROFILE_ROWS],
    }


# --- killed and resumed ---------------------------------------------------------------------------


def resume(args: argparse.Namespace) -> dict[str, Any]:
    """Whether a deterministic run that is killed after a save and resumed ends in the same bits.

    It is compared with an undisturbed run. Each is a process of its own. Raises: UserError where
    one fails, or ends before it is killed.
    """
    base = parse_run(args.stage, "", args.flags).out_dir
    more = ["--deterministic", "--max_steps", str(RESUMED_STEPS), "--save_interval", str(SAVED_EACH)]

    def command(folder: Path) -> list[str]:
        where = ["--out_dir", str(folder), "--tf_dir", str(folder)]
        return [sys.executable, str(ROOT / "trainer" / PROGRAMS[args.stage]), *args.flags, *more, *where]

    unbroken, killed = base / "unbroken", base / "killed"
    said(command(unbroken))
    states = killed / "checkpoints" / args.stage
    with subprocess.Popen(command(killed), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not saved_states(states):
            time.sleep(POLL_SECONDS)
        if process.poll() is not None:
            raise UserError(f"the run that was to be killed ended before, with {process.returncode}. Take more steps.")
        process.send_signal(signal.SIGKILL)
    resumed = next((line for line in said(command(killed)).splitlines() if line.startswith("resuming after")), "")
    if not resumed:
        raise UserError("the second run did not resume from the saved state. See what it said.")
    stem = STAGE_TABLE[args.stage].weights
    ours, theirs = (read_weights(latest_weights(stem, folder))[0] for folder in (killed, unbroken))
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    found: dict[str, Any] = {
        "resumed": resumed.removeprefix("resuming "),
        "tensors": len(theirs),
        "different": len(different),
    }
    if different:
        largest = max((ours[name] - theirs[name]).abs().max().item() for name in different)
        found["problem"] = f"{len(different)} tensors differ, by {largest:.3g} at most: {', '.join(different[:3])}"
    return found


def said(command: Sequence[str]) -> str:
    """Run a command. Returns: what it said on stderr. Raises: UserError where it fails."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode:
        raise UserError(f"{Path(command[1]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stderr

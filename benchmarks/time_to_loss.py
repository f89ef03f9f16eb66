"""How soon our trainer predicts held-out text as well as a tutorial's loop does in the end.

    python benchmarks/time_to_loss.py --model 512x8 --text pretrain.jsonl.xz --work_dir DIR \\
        --minutes 20 --json FILE
    python benchmarks/time_to_loss.py --from_json FILE

The clock starts with the process: tokens are on the disk, nothing is compiled. It stops when the
process ends, the weights written. Scoring comes after. A learning rate falls until the end of its
run, so each point of a curve is a run of its own with its own budget. Bits per byte count every
byte of the same held-out documents in windows of 340 tokens, for both arms.

The baseline (benchmarks/training/baseline.py) is the best of its learning rates and batch sizes.
Each is tried for a share of --minutes, then the best has all of them. With --epochs it has so many
passes over its documents instead. Ours needs its number of steps beforehand: a first run, outside
the clock, shows how long its start and a step take. Needs an otherwise idle machine.

Each finished run and each measured speed is noted at once in FILE.runs.jsonl. A call that needs the
same does not make it again: a benchmark that was interrupted resumes, and one with more seeds or
rates makes what is missing. After a change of an arm's code all of its runs are made anew.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import configs  # noqa: F401  sets how OpenMP's threads wait, which torch reads when it is loaded

import torch

from benchmarks.report import Figures, Page, keep, show, shows_old_figures
from benchmarks.training.arms import ARMS, Bench, add_flags, start_bench
from benchmarks.training.baseline import build_model
from benchmarks.training.corpus import WINDOW_TOKENS
from benchmarks.training.pace import our_run, paced
from benchmarks.training.runs import Run, finished, once, tell
from configs.artifacts import read_json
from configs.cli import Parser, run
from configs.hardware import cpu_has_bf16
from configs.schema import UserError
from evaluation.plots import line_chart

OUR_SHARES = (0.1, 0.2, 0.35)
"""Budgets of ours as shares of the baseline's seconds."""
TIMES_FASTER = {True: 5.0, False: 20 / 7}
"""What the baseline reaches in 20 minutes, ours shall reach in 4, or in 7 without bfloat16
instructions."""


# --- the baseline ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings of the baseline to choose from."""

    learning_rate: float
    batch_size: int

    def __str__(self) -> str:
        return f"baseline, rate {self.learning_rate:g}, batches of {self.batch_size}"


def baseline_run(bench: Bench, candidate: Candidate, seed: int, share: float) -> Run:
    """One run of the baseline with a share of its budget."""
    args = bench.args

    def command(folder: Path) -> list[str]:
        if args.epochs:
            steps = max(1, round(share * args.epochs * len(bench.documents) / candidate.batch_size))
            budget = ["--max_steps", str(steps)]
        else:
            budget = ["--seconds", str(share * args.minutes * 60), "--started", str(time.time())]
        return bench.baseline_command(folder, seed, candidate.learning_rate, candidate.batch_size, *budget)

    def load(folder: Path) -> torch.nn.Module:
        model = build_model(bench.shape)
        model.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
        return model

    key = {"arm": "baseline", "seed": seed, "share": share, "minutes": args.minutes, "epochs": args.epochs}
    run = once(bench, Run, key | asdict(candidate), lambda: finished(bench, command, load))
    return tell(f"{candidate}, {share:.0%} of the budget", run)


def baseline_arm(bench: Bench) -> dict[str, Any]:
    """Choose the baseline's settings, run it in full. Returns: its object of the JSON."""
    candidates = list(itertools.starmap(Candidate, itertools.product(bench.args.learning_rates, bench.batch_sizes)))
    share, seeds = bench.args.search_share, bench.args.seeds
    tried = {}
    if len(candidates) > 1 or share == 1:
        tried = {candidate: baseline_run(bench, candidate, seeds[0], share) for candidate in candidates}
    # Each candidate has a share of the budget; the best of them then has all of it.
    best = min(tried, key=lambda candidate: tried[candidate].heldout_bpb) if tried else candidates[0]
    if at_edge(best.learning_rate, bench.args.learning_rates):
        print(
            f"warning: the best rate, {best.learning_rate:g}, is the first or last of --learning_rates: try more",
            file=sys.stderr,
            flush=True,
        )
    curve = [point([tried[best]])] if tried and share < 1 else []
    full = [tried[best]] if share == 1 else [baseline_run(bench, best, seeds[0], 1.0)]
    full += [baseline_run(bench, best, seed, 1.0) for seed in seeds[1:]]
    return {
        "arm": "baseline",
        "dtype": bench.baseline_dtype,
        "curve": [*curve, point(full)],
        "learning_rate": best.learning_rate,
        "batch_size": best.batch_size,
        "epochs": bench.args.epochs,
        "search_share": share,
        "candidates": [asdict(candidate) | asdict(found) for candidate, found in tried.items()],
    }


def at_edge(value: float, choices: Sequence[float]) -> bool:
    """Whether a better value may lie beyond those tried."""
    return len(choices) > 2 and value in (min(choices), max(choices))


# --- ours -----------------------------------------------------------------------------------------


def our_arm(bench: Bench, baseline_seconds: float) -> dict[str, Any]:
    """One run for each budget and seed. Returns: our object of the JSON."""
    args = bench.args
    asked = [60 * minutes for minutes in args.budgets or ()]
    budgets = sorted(asked or (share * baseline_seconds for share in OUR_SHARES))
    curve, paces = [], []  # type: ignore[var-annotated]
    for budget in budgets:
        pace = paced(bench, budget, paces[-1].step_words if paces else ())
        startup, step = pace.speed.startup_seconds, pace.speed.step_seconds
        print(f"minillm: {startup:.1f} s to start, {step:.3f} s a step", file=sys.stderr, flush=True)
        if budget < startup + step:
            print(f"warning: {budget:.0f} s are over before the first step", file=sys.stderr, flush=True)
        steps = pace.steps(budget)
        runs = [
            tell(f"minillm, budget {budget:.0f} s", our_run(bench, seed, steps, pace.step_words)) for seed in args.seeds
        ]
        curve.append(point(runs) | {"budget_seconds": budget})
        paces.append(pace)
    return {
        "arm": "minillm",
        "dtype": paces[0].speed.dtype,
        "curve": curve,
        "flags": list(bench.words),
        "step_flags": [pace.step_words for pace in paces],
        "calibrations": [asdict(pace.speed) for pace in paces],
    }


def baseline_seconds(bench: Bench, results: Sequence[dict[str, Any]]) -> float:
    """Seconds of the baseline, of which our budgets are shares.

    That is its own budget, or, where the budget is a number of epochs, what these took.

    Args: results: of this call. Raises: UserError where the baseline has not run yet, and --budgets
    is not given either.
    """
    args, facts = bench.args, bench.facts()
    if args.budgets or not args.epochs:
        return 60.0 * args.minutes
    wanted = {"arm": "baseline", "epochs": args.epochs} | {name: facts[name] for name in ("model", "device", "corpus")}
    earlier = read_json(args.json, "Give --json another file.") if args.json and args.json.exists() else []
    for result in [*results, *earlier]:
        if all(result.get(name) == value for name, value in wanted.items()):
            return float(result["curve"][-1]["seconds"])
    raise UserError(
        f"--epochs {args.epochs}: our budgets are shares of the time that the baseline takes, and no result of it is at hand. "
        "Run --arms baseline first, with the same --json, or give --budgets."
    )


def point(runs: Sequence[Run]) -> dict[str, Any]:
    """A point of a curve: means over the seeds."""
    return {
        "seconds": round(mean(run.seconds for run in runs), 2),
        "tokens": round(mean(run.tokens for run in runs)),
        "heldout_bpb": round(mean(run.heldout_bpb for run in runs), 5),
        "bytes_scored": runs[0].bytes_scored,
        "steps": runs[0].steps,
        "bpb_of_seeds": [run.heldout_bpb for run in runs],
        "peak_rss_mb": max(run.peak_rss_mb for run in runs),
    }


# --- what is shown --------------------------------------------------------------------------------


def seconds_to(curve: Sequence[dict[str, Any]], level: float) -> tuple[float, bool] | None:
    """When a curve reaches so few bits per byte, and whether that is exact; None: never.

    Between two points the curve is taken as straight over the logarithm of time. Where the first
    point is low enough already, its time is an upper bound: not exact.
    """
    points = sorted((p["seconds"], p["heldout_bpb"]) for p in curve)
    for number, (seconds, bpb) in enumerate(points):
        if bpb <= level:
            if number == 0:
                return seconds, bpb == level
            before, above = points[number - 1]
            part = (above - level) / (above - bpb)  # share of the way down, and so of the way in log time
            return before * (seconds / before) ** part, True
    return None


def table(results: Figures) -> list[str]:
    """Lines of Markdown."""
    first = results[0]
    scored = first["curve"][0]["bytes_scored"]
    lines = [
        f"{first['model']} on {first['device']}, {first['threads']} threads; {scored:,} held-out bytes, windows of "
        f"{WINDOW_TOKENS} tokens",
        "",
        "| arm | dtype | seconds | steps | tokens | bits per byte | by seed | peak RSS, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for p in result["curve"]:
            by_seed = ", ".join(f"{value:.4f}" for value in p["bpb_of_seeds"])
            lines.append(
                f"| {result['arm']} | {result['dtype']} | {p['seconds']:.1f} | {p['steps']} | {p['tokens']:,} | "
                f"{p['heldout_bpb']:.4f} | {by_seed} | {p['peak_rss_mb']:,.0f} |"
            )
    for result in results:
        if result.get("candidates"):
            share = result["search_share"]
            lines += ["", f"baseline's candidates, {share:.0%} of the budget each:", ""]
            lines += [
                "| learning rate | batch | seconds | steps | tokens | bits per byte |",
                "|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {c['learning_rate']:g} | {c['batch_size']} | {c['seconds']:.1f} | {c['steps']} | {c['tokens']:,} | "
                f"{c['heldout_bpb']:.4f} |"
                for c in result["candidates"]
            ]
    return lines


def targets(results: Figures) -> list[str]:
    """How much sooner ours is where the baseline ends, a line to print.

    The target is set for 512x8 and 20 minutes on a CPU.
    """
    arms = {result["arm"]: result for result in results}
    if len(arms) < 2:
        return []
    end = min(arms["baseline"]["curve"], key=lambda p: p["heldout_bpb"])
    level, seconds = end["heldout_bpb"], end["seconds"]
    reached = seconds_to(arms["minillm"]["curve"], level)
    if reached is None:
        best = min(p["heldout_bpb"] for p in arms["minillm"]["curve"])
        return [f"- the baseline's {level:.4f} bits per byte ({seconds:.0f} s): NOT met, ours has {best:.4f} at best"]
    ours, exact = reached
    wanted = TIMES_FASTER[arms["minillm"]["has_bf16"]]
    times = seconds / ours
    met = "met" if times >= wanted else "NOT met"
    verdict = "" if arms["minillm"]["on_gpu"] else f" (target {wanted:.2f}x): {met}"
    return [
        f"- the baseline's {level:.4f} bits per byte, which it has after {seconds:.0f} s, ours has after "
        f"{'' if exact else 'at most '}{ours:.0f} s: {times:.2f}x sooner{verdict}"
    ]


def draw(path: Path, results: Figures) -> None:
    """Both curves, and the baseline's end as a level."""
    series = {r["arm"]: [(p["seconds"], p["heldout_bpb"]) for p in r["curve"]] for r in results}
    level = min((y for _, y in series["baseline"]), default=None) if "baseline" in series else None
    title = f"Held-out bits per byte: {results[0]['model']}, {results[0]['device']}"
    line_chart(path, title, "seconds from the start of the process", "bits per byte", series, level=level)


PAGE = Page(lambda results: [*table(results), "", *targets(results)], draw)


def main(argv: Sequence[str] | None = None) -> int:
    """Run both arms, score them, print a table, draw it."""
    parser = Parser(description=__doc__)
    add_flags(parser, minutes=20.0, minutes_help="budget of the baseline 基线总分钟数")
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        metavar="M",
        help="minutes of ours, a run each 我们的分钟数 (10%% 20%% 35%% of the baseline's)",
    )
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="budget of the baseline instead 基线轮数")
    parser.add_argument(
        "--search_share",
        type=float,
        default=0.25,
        metavar="P",
        help="of the budget, for each of the baseline's candidates; 1: each in full 搜索所用比例 (%(default)s)",
    )
    parser.add_argument(
        "--calibrate_minutes", type=float, default=0.5, metavar="M", help="to learn our speed 测速分钟数 (%(default)s)"
    )
    args = parser.parse_args(argv)
    if shows_old_figures(PAGE, args):
        return 0
    if not 0 < args.search_share <= 1:
        raise UserError(f"--search_share {args.search_share}: must be above 0, and 1 at most.")
    bench = start_bench(args)
    if bench is None:
        return 0
    common = bench.facts() | {
        "minutes": args.minutes,
        "has_bf16": cpu_has_bf16() if bench.device.type == "cpu" else True,
        "on_gpu": bench.device.type == "cuda",
    }
    results: list[dict[str, Any]] = []
    if "baseline" in args.arms:
        results.append(baseline_arm(bench) | common)
        kept = keep(args.json, results, ARMS)
    if "minillm" in args.arms:
        results.append(our_arm(bench, baseline_seconds(bench, results)) | common)
        kept = keep(args.json, results, ARMS)
    show(PAGE, kept, args.json)
    return 0


if __name__ == "__main__":
    run(main)

"""Tokens a second of our trainer, beside its matrix products alone and a tutorial's loop.

    python benchmarks/train_speed.py --model 512x8 --text pretrain.jsonl.xz --work_dir DIR \\
        --minutes 2 --json FILE
    python benchmarks/train_speed.py --from_json FILE

A real token is a label other than -100. The time is the wall clock's between two lines of a run's
own metrics: loader, optimizer, saves and logging are in it. What comes before (imports,
compilation) is reported separately. The bound is the rate at which the arm's own matrix products
run alone (benchmarks/training/products.py says which), in the better of float32 and bfloat16. They
are replayed before, between and after the arms. MFU: (6 N + 12 L d T) operations a real token, N
with the output matrix once, over the machine's peak.

The baseline (benchmarks/training/baseline.py) has the faster of its batch sizes. Its speed is
compared with a plain loop around transformers (benchmarks/training/plain_loop.py) in an environment
without our settings, which shows that nothing of ours slows it down. Needs an otherwise idle
machine.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import configs  # noqa: F401  sets how OpenMP's threads wait, which torch reads when it is loaded

from benchmarks.report import Figures, Page, Target, keep, show, shows_old_figures
from benchmarks.training.arms import ARMS, Bench, add_flags, start_bench
from benchmarks.training.corpus import WINDOW_TOKENS
from benchmarks.training.processes import started
from benchmarks.training.products import Bound
from benchmarks.training.speed import Speed, measure_speed
from configs.cli import Parser, run
from configs.hardware import cpu_has_bf16, cpu_instructions, num_cores
from evaluation.plots import Bar, bar_chart
from trainer.flops import machine_peak, training_flops

SHARE_OF_BOUND = 0.9
TIMES_BASELINE = {True: 2.5, False: 1.3}
"""With bfloat16 instructions, and without."""
GPU_MFU = 0.35
QUIET_SPREAD = 1.2
"""The slowest replay may take so many times as long as the fastest; else other programs were at
work."""
SHARE_OF_PLAIN = 0.9
"""The baseline must not be slower than this share of the plain loop."""


def measure(bench: Bench, json_file: Path | None) -> list[dict[str, Any]]:
    """Run the arms with replays of their products between them."""
    seconds = bench.args.minutes * 60
    peak, peak_from = machine_peak(bench.device)
    bounds = {}
    if "minillm" in bench.args.arms:
        bounds["minillm"] = Bound(bench.our_step(), bench.device)
    if "baseline" in bench.args.arms:
        bounds["baseline"] = Bound(bench.baseline_step(max(bench.batch_sizes)), bench.device)
    results: list[dict[str, Any]] = []

    def replay() -> None:
        for bound in bounds.values():
            bound.measure()

    def kept() -> list[dict[str, Any]]:
        for result in results:
            bound = bounds[result["arm"]]
            rate = result["real_tokens_per_s"]
            result |= {
                "gemm_bound_tokens_per_s": round(bound.tokens_per_second * bound.step.target_share, 1),
                "mfu": round(training_flops(bench.shape, result["row_tokens"]) * rate / peak, 4),
                "bound_plan": str(bound.plan),
                "bound_seconds": bound.seconds,
                "bound_tflops": bound.flops_per_second / 1e12,
                "peak_tflops": peak / 1e12,
                "peak_from": peak_from,
                "has_bf16": cpu_has_bf16() if bench.device.type == "cpu" else True,
                "on_gpu": bench.device.type == "cuda",
            } | bench.facts()
        return keep(json_file, results, ARMS)

    replay()
    if "minillm" in bench.args.arms:
        speeds = [our_speed(bench, seed, seconds) for seed in bench.args.seeds]
        replay()
        facts = bench.corpus.tensor_facts()
        padded = 1 - facts.num_tokens / (facts.rows * facts.max_length)
        results.append(figures("minillm", speeds, padded) | {"row_tokens": facts.max_length})
        kept()  # in case the other arm fails
    if "baseline" in bench.args.arms:
        by_batch = {
            size: [baseline_speed(bench, seed, size, seconds) for seed in bench.args.seeds]
            for size in bench.batch_sizes
        }
        best = max(by_batch, key=lambda size: middle_speed(by_batch[size]))
        plain = plain_speed(bench, best, seconds)
        replay()
        results.append(
            figures("baseline", by_batch[best], bench.documents.padded_share)
            | {
                "row_tokens": WINDOW_TOKENS,
                "batch_size": best,
                "by_batch_size": {str(size): middle_speed(speeds) for size, speeds in by_batch.items()},
                "plain_loop_tokens_per_s": plain,
            }
        )
    return kept()


def our_speed(bench: Bench, seed: int, seconds: float) -> Speed:
    """Speed of our trainer, in steps of the size it would choose itself."""
    step = bench.step_words(bench.run.train.epochs * bench.corpus.tensor_facts().num_tokens)
    speed = measure_speed(
        bench,
        lambda folder: bench.our_command(folder, seed, *step),
        seconds=seconds,
        dtype=bench.run.train.dtype,
    )
    return tell("minillm", speed)


def baseline_speed(bench: Bench, seed: int, batch_size: int, seconds: float) -> Speed:
    """Speed of the baseline."""
    endless = ("--max_steps", str(10**9))
    speed = measure_speed(
        bench,
        lambda folder: bench.baseline_command(folder, seed, bench.args.learning_rates[0], batch_size, *endless),
        seconds=seconds,
        dtype=bench.baseline_dtype,
    )
    return tell(f"baseline, batches of {batch_size}", speed)


def plain_speed(bench: Bench, batch_size: int, seconds: float) -> float:
    """Real tokens a second of the plain loop."""
    rate = bench.args.learning_rates[0]
    command = bench.plain_command(rate, batch_size, seconds)
    with started(bench, lambda folder: command, own_waiting=True) as (program, _):
        program.wait()
        program.check()
        found = json.loads(program.log.read_text(encoding="utf-8").strip().splitlines()[-1])
    print(
        f"plain loop, batches of {batch_size}: {found['tokens_per_second']:,.0f} tokens/s", file=sys.stderr, flush=True
    )
    return float(found["tokens_per_second"])


def tell(what: str, speed: Speed) -> Speed:
    """Say on stderr how a run went."""
    print(
        f"{what}: {speed.tokens_per_second:,.0f} tokens/s over {speed.steps} steps in {speed.seconds:.0f} s, "
        f"after {speed.startup_seconds:.0f} s of start-up",
        file=sys.stderr,
        flush=True,
    )
    return speed


def middle_speed(speeds: Sequence[Speed]) -> float:
    """Real tokens a second, by the median of all seeds."""
    return median(speed.tokens_per_second for speed in speeds)


def figures(arm: str, speeds: Sequence[Speed], padded_share: float) -> dict[str, Any]:
    """The figures that follow from an arm's own runs."""
    return {
        "arm": arm,
        "dtype": speeds[0].dtype,
        "real_tokens_per_s": round(middle_speed(speeds), 1),
        "padded_share": round(padded_share, 4),
        "peak_rss_mb": round(max(speed.peak_rss_mb for speed in speeds), 1),
        "startup_seconds": round(median(speed.startup_seconds for speed in speeds), 2),
        "measured_seconds": round(min(speed.seconds for speed in speeds), 2),
        "runs": [asdict(speed) for speed in speeds],
    }


# --- what is shown --------------------------------------------------------------------------------


def table(results: Figures) -> list[str]:
    """Lines of Markdown."""
    first = results[0]
    lines = [
        f"{first['model']} on {first['device']}, {first['threads']} threads; peak {first['peak_tflops']:.3g} TFLOP/s "
        f"({first['peak_from']})",
        "",
        "| arm | dtype | real tokens/s | padded | bound, tokens/s | of bound | MFU | peak RSS, MB | start-up, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rate, bound = result["real_tokens_per_s"], result["gemm_bound_tokens_per_s"]
        lines.append(
            f"| {result['arm']} | {result['dtype']} | {rate:,.0f} | {result['padded_share']:.1%} | {bound:,.0f} | "
            f"{rate / bound:.1%} | {result['mfu']:.1%} | {result['peak_rss_mb']:,.0f} | {result['startup_seconds']:.1f} |"
        )
    lines.append("")
    for result in results:
        lines.append(f"bound of {result['arm']}: {result['bound_tflops']:.3g} TFLOP/s with {result['bound_plan']}")
        fastest, slowest = min(result["bound_seconds"]), max(result["bound_seconds"])
        if slowest > QUIET_SPREAD * fastest:
            lines.append(
                f"warning: its replays took {fastest:.3f} to {slowest:.3f} s: the machine was busy. Run it again."
            )
    return lines


def targets(results: Figures) -> list[Target]:
    """The targets, met or not.

    Those of a CPU are set for 512x8, those of a GPU for the default model over 2 minutes or more.
    """
    arms = {result["arm"]: result for result in results}
    ours, baseline = arms.get("minillm"), arms.get("baseline")
    found = []
    if ours:
        rate = ours["real_tokens_per_s"]
        if ours["on_gpu"]:
            minutes = ours["measured_seconds"] / 60
            found.append(Target(f"MFU over {minutes:.1f} minutes", 100 * GPU_MFU, 100 * ours["mfu"], "%"))
        else:
            share = 100 * rate / ours["gemm_bound_tokens_per_s"]
            found.append(Target("share of the bound", 100 * SHARE_OF_BOUND, share, "%"))
    if ours and baseline:
        times = ours["real_tokens_per_s"] / baseline["real_tokens_per_s"]
        found.append(Target("real tokens/s of the baseline", TIMES_BASELINE[ours["has_bf16"]], times))
    if baseline:
        share = 100 * baseline["real_tokens_per_s"] / baseline["plain_loop_tokens_per_s"]
        found.append(Target("baseline as fast as the plain loop", 100 * SHARE_OF_PLAIN, share, "%"))
    return found


def draw(path: Path, results: Figures) -> None:
    """Bars of the speeds, with each arm's bound as a mark."""
    bars = [
        Bar(f"{r['arm']}, {r['dtype']}", r["real_tokens_per_s"], f"MFU {r['mfu']:.1%}", r["gemm_bound_tokens_per_s"])
        for r in results
    ]
    bars += [Bar("plain loop", r["plain_loop_tokens_per_s"], "") for r in results if "plain_loop_tokens_per_s" in r]
    title = f"Real tokens a second: {results[0]['model']}, {results[0]['device']}"
    bar_chart(path, title, bars, mark="bound of its matrix products")


PAGE = Page(lambda results: [*table(results), "", *(f"- {target}" for target in targets(results))], draw)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both arms, print a table, draw it."""
    parser = Parser(description=__doc__)
    add_flags(parser, minutes=2.0, minutes_help="measured of each run, after its start-up 每项测量分钟数")
    args = parser.parse_args(argv)
    if shows_old_figures(PAGE, args):
        return 0
    bench = start_bench(args)
    if bench is None:
        return 0
    print(f"{', '.join(cpu_instructions())}; {num_cores()} cores", file=sys.stderr, flush=True)
    show(PAGE, measure(bench, args.json), args.json)
    return 0


if __name__ == "__main__":
    run(main)

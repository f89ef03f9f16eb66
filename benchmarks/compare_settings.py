"""Settings of our trainer against each other: the same model and text, and equal time.

    python benchmarks/compare_settings.py --model 192x4 --text pretrain.jsonl.xz --work_dir DIR \\
        --minutes 3 --seeds 0 1 2 --json FILE \\
        --try "muon:" --try "adamw:--optimizer adamw --learning_rate 4e-3"
    python benchmarks/compare_settings.py --from_json FILE

A setting is a name, a colon, and flags of trainer/train_pretrain.py. In them `{padded}` stands for
the documents cut or padded to 340 tokens, one a row. The speed of each setting is measured first,
one after the other. From it follows the number of steps that fill --minutes, start-up included, so
that the learning rate ends where the time does. Then come the runs, one for each seed. Speeds need
an idle machine. The runs do not, because their steps are fixed by then. A setting with a
--max_steps of its own is not measured.

A setting that FILE holds already is not run again: another call adds to it. Speeds and runs are
noted in FILE.runs.jsonl as they end, as in benchmarks/time_to_loss.py. A call that needs the same
takes them from there.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import configs  # noqa: F401  sets how OpenMP's threads wait, which torch reads when it is loaded

from benchmarks.report import Figures, Page, show, shows_old_figures
from benchmarks.training.arms import Bench, add_flags, start_bench
from benchmarks.training.corpus import padded_rows
from benchmarks.training.pace import our_run, paced
from benchmarks.training.runs import tell
from benchmarks.training.speed import Speed
from configs.artifacts import read_json, write_json
from configs.cli import Parser, run, split_words
from configs.paths import display
from configs.schema import UserError
from configs.train_run import parse_run
from evaluation.plots import line_chart

PADDED = "{padded}"


@dataclass(frozen=True, slots=True)
class Setting:
    """A name, and the flags it stands for."""

    name: str
    flags: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """From `name:flags`. Raises: UserError."""
        name, colon, flags = text.partition(":")
        if not colon or not name.strip():
            raise UserError(f"--try {text!r}: must be a name, a colon, and flags, such as cosine:--schedule cosine.")
        return cls(name.strip(), split_words("--try", flags))


@dataclass(frozen=True, slots=True)
class Timed:
    """A setting whose speed is known."""

    setting: Setting
    bench: Bench
    speed: Speed | None
    steps: int


def calibrate(bench: Bench, setting: Setting) -> Timed:
    """Measure a setting's speed; from it follow the steps of its runs."""
    flags = list(setting.flags)
    if PADDED in flags:
        flags[flags.index(PADDED)] = str(padded_rows(bench.corpus, bench.tokenizer))
    words = (*bench.words, *flags)
    own = replace(bench, words=words, run=parse_run("pretrain", "", words))
    if "--max_steps" in flags:
        return Timed(setting, own, None, int(flags[flags.index("--max_steps") + 1]))
    pace = paced(own, 60 * bench.args.minutes)
    speed, steps = pace.speed, pace.steps(60 * bench.args.minutes)
    print(
        f"{setting.name}: {speed.startup_seconds:.1f} s to start, {speed.step_seconds:.3f} s a step, "
        f"{speed.tokens_per_second:,.0f} tokens/s: {steps} steps {' '.join(pace.step_words)}",
        file=sys.stderr,
        flush=True,
    )
    return Timed(setting, replace(own, words=(*own.words, *pace.step_words)), speed, steps)


def measure(timed: Timed, seeds: Sequence[int]) -> dict[str, Any]:
    """One run for each seed. Returns: the setting's object of the JSON."""
    runs = [tell(f"{timed.setting.name}, seed {seed}", our_run(timed.bench, seed, timed.steps)) for seed in seeds]
    return {
        "name": timed.setting.name,
        "flags": shlex.join(timed.setting.flags),
        "steps": timed.steps,
        "tokens": runs[0].tokens,
        "real_tokens_per_s": round(timed.speed.tokens_per_second, 1) if timed.speed else None,
        "startup_seconds": round(timed.speed.startup_seconds, 1) if timed.speed else None,
        "heldout_bpb": round(mean(run.heldout_bpb for run in runs), 5),
        "bpb_of_seeds": [run.heldout_bpb for run in runs],
        "bytes_scored": runs[0].bytes_scored,
    }


def table(results: Figures) -> list[str]:
    """Lines of Markdown, the best first."""
    first = results[0]
    lines = [
        f"{first['model']} on {first['device']} ({', '.join(first['instructions'])}), {first['threads']} threads, "
        f"{first['minutes']:g} minutes a run, seeds {', '.join(map(str, first['seeds']))}; "
        f"{first['bytes_scored']:,} held-out bytes",
        "",
        "| setting | flags | bits per byte | by seed | steps | tokens | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda result: result["heldout_bpb"]):
        values = result["bpb_of_seeds"]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        lines.append(
            f"| {result['name']} | {result['flags'] or '-'} | {result['heldout_bpb']:.4f}{spread} | "
            f"{', '.join(f'{value:.4f}' for value in values)} | {result['steps']} | {result['tokens']:,} | "
            f"{f'{speed:,.0f}' if (speed := result['real_tokens_per_s']) else 'given steps'} |"
        )
    return lines


def draw(path: Path, results: Figures) -> None:
    """One point for each setting: what its speed and what its learning are worth."""
    series = {r["name"]: [(r["tokens"] / 1e6, r["heldout_bpb"])] for r in results}
    title = f"{results[0]['minutes']:g} minutes at {results[0]['model']}"
    line_chart(path, title, "million tokens learnt in that time", "bits per byte", series, level=None)


PAGE = Page(table, draw)


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate, run, print a table, draw it."""
    parser = Parser(description=__doc__)
    add_flags(parser, minutes=3.0, minutes_help="of each run 每次训练分钟数")
    parser.add_argument("--try", dest="tries", action="append", metavar="NAME:FLAGS", help="a setting 一组设置")
    parser.add_argument(
        "--calibrate_minutes", type=float, default=0.25, metavar="M", help="to learn a speed 测速分钟数 (%(default)s)"
    )
    args = parser.parse_args(argv)
    if shows_old_figures(PAGE, args):
        return 0
    settings = [Setting.parse(text) for text in args.tries or ["default:"]]
    bench = start_bench(args)
    if bench is None:
        return 0
    common = bench.facts() | {"minutes": args.minutes}
    results: list[dict[str, Any]] = []
    if args.json and args.json.exists():
        results = read_json(args.json, "Give --json another file.")
        if any(result.get(key) != value for result in results for key, value in common.items()):
            raise UserError(
                f"{display(args.json)}: of another model, machine, text or budget. Give --json another file."
            )
    known = {(result["name"], result["flags"]) for result in results}
    missing = [setting for setting in settings if (setting.name, shlex.join(setting.flags)) not in known]
    timed = [calibrate(bench, setting) for setting in missing]
    for setting in timed:
        results.append(measure(setting, args.seeds) | common)
        if args.json:
            write_json(args.json, results)
    show(PAGE, results, args.json)
    return 0


if __name__ == "__main__":
    run(main)

"""What works on this machine's GPU, in about eight minutes. 八分钟看清显卡上哪些能用、有多快。

    bash benchmarks/on_gpu.sh --out gpu_report
    bash benchmarks/on_gpu.sh --parts tests,steps --out gpu_report
    bash benchmarks/on_gpu.sh --device cpu --tiny --out gpu_report
    bash benchmarks/on_gpu.sh --prepare --text pretrain.jsonl.xz

Five parts, the most important first; the first four take the eight minutes. Each check in them is a
process of its own with a time limit. Results go to DIR/results.json as they come, with a traceback
where something fails. DIR/report.md shows them in tables, DIR/PART.log holds all that was printed.
Send the folder to report back.
结果随时写入 DIR/results.json，表格在 DIR/report.md，全部输出在 DIR/PART.log；反馈时请附上该目录。

Needs torch, transformers, pytest, tiktoken, numpy, pyyaml and tqdm, and no network. The tokens to
train on are those that --prepare made in data/on_gpu/, a folder that can be carried to another
machine. Where it is missing, those of the bundled samples are taken.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.gpu.checks import NOT_RUN, Row
from benchmarks.gpu.commands import PROBES
from benchmarks.gpu.data import MAX_TOKENS, Recipe, prepare, prepared
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.results import Results
from benchmarks.gpu.session import Part, Session, run_part
from configs.artifacts import atomic_write, require_writable
from configs.cli import Parser, add_switch, run
from configs.paths import OUT_DIR, ROOT, display, env_path
from configs.schema import UserError

DATA_FOLDER = ROOT / "data" / "on_gpu"
"""Made by --prepare, and replaced by the next --prepare."""
PROBE_SECONDS = 180.0
"""For the first look at the machine, which may have to read torch from a slow disk."""
FIGURES_SHOWN = 12
HIDDEN = {"check", "status", "seconds", "error", "traceback", "notes"}
"""Keys of a row that are not figures."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, epilog=parts_help())
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes 报告目录")
    parser.add_argument("--parts", metavar="A,B", help="numbers or names of parts, with commas; all 要运行的部分")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="设备 (%(default)s)")
    add_switch(parser, "--tiny", default=False, help="tiny shapes: does every check run? 极小模型，只看能否运行")
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="X", help="time limits times X, for a slow card 时限倍数 (1)"
    )
    data = parser.add_argument_group("prepare 准备数据")
    add_switch(data, "--prepare", default=False, help="make the tokens and stop 只准备数据")
    data.add_argument("--text", type=Path, metavar="FILE", help='JSONL of {"text": ...} 预训练文本 (bundled)')
    data.add_argument("--conversations", type=Path, metavar="FILE", help="JSONL of chats 对话 (bundled)")
    data.add_argument("--pairs", type=Path, metavar="FILE", help="JSONL of preference pairs 偏好对 (bundled)")
    data.add_argument("--max_tokens", type=int, metavar="N", help=f"of the text 文本词元上限 ({MAX_TOKENS:,})")
    return parser


def parts_help() -> str:
    """The parts with their time limits."""
    lines = [f"  {number} {part.name:<9} {part.limit:4.0f} s  {part.about}" for number, part in enumerate(PARTS, 1)]
    return "parts and their time limits 各部分与时限:\n" + "\n".join(lines)


def chosen_parts(text: str | None, parts: Sequence[Part]) -> list[Part]:
    """The parts that numbers or names stand for, in their order. Raises: UserError."""
    if text is None:
        return list(parts)
    by_name = {str(number): part for number, part in enumerate(parts, 1)} | {part.name: part for part in parts}
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in by_name:
            known = ", ".join(f"{number} {part.name}" for number, part in enumerate(parts, 1))
            raise UserError(f"--parts {word}: unknown. Give numbers or names with commas between: {known}.")
    if not words:
        raise UserError("--parts: names no part. Leave it out to run all.")
    wanted = {by_name[word].name for word in words}
    return [part for part in parts if part.name in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and report. Exit code 1 where a check failed."""
    args = build_parser().parse_args(argv)
    if args.prepare:
        return make_data(args)
    for name in ("text", "conversations", "pairs", "max_tokens"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: only with --prepare, which makes the tokens. Add it, or leave this out.")
    parts = chosen_parts(args.parts, PARTS)
    if args.out is None:
        raise UserError("--out is missing: name a folder for the report.")
    if not args.patience > 0:
        raise UserError(f"--patience {args.patience}: must be above 0.")
    if args.device == "cpu" and not args.tiny:
        raise UserError("--device cpu: the shapes of a GPU take hours on a CPU. Add --tiny.")
    out, work = args.out.absolute(), env_path("OUT_DIR", OUT_DIR).absolute() / "on_gpu"
    shutil.rmtree(work, ignore_errors=True)
    require_writable(out)
    require_writable(work)
    started = time.time()
    facts = look_at_machine()
    if args.device != "cpu" and not facts["card"]:
        raise UserError(
            f"no CUDA GPU: PyTorch {facts['torch']} sees none. See scripts/doctor.py, or pass --device cpu --tiny."
        )
    device = "cpu" if args.device == "cpu" else "cuda"
    where, told = data_for(parts, work / "data", tiny=args.tiny)
    head = {
        "format": 1,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command_line(argv),
        "commit": commit(),
        "device": device,
        "tiny": args.tiny,
        "machine": facts,
        "data": told,
    }
    session = Session(
        device=device,
        tiny=args.tiny,
        data=where,
        work=work,
        out=out,
        machine=facts,
        results=Results(out / "results.json", head),
        patience=args.patience,
    )
    print("\n".join(machine_lines(session.results.content)), flush=True)
    bad = run_parts(parts, session)
    print(
        f"\n{time.time() - started:.0f} s; {bad or 'no'} part{'' if bad == 1 else 's'} with a failure -> {display(out)}"
    )
    return 1 if bad else 0


def run_parts(parts: Sequence[Part], session: Session) -> int:
    """Run parts one after the other, even if earlier ones failed.

    Returns: how many have a failure.
    """
    bad = 0
    for part in parts:
        print(f"\n{part.name}: {part.about}, {part.limit * session.patience:.0f} s at most", flush=True)
        found = run_part(part, session)
        bad += found["status"] != "done"
        print("\n" + "\n".join(part_lines(part.name, found)), flush=True)
        with atomic_write(session.out / "report.md") as file:
            file.write("\n".join(report(session.results.content)) + "\n")
    return bad


def make_data(args: argparse.Namespace) -> int:
    """Do what --prepare asks for: make the tokens."""
    given = {"pretrain": args.text, "sft": args.conversations, "dpo": args.pairs}
    files = {stage: path for stage, path in given.items() if path is not None}
    most = MAX_TOKENS if args.max_tokens is None else args.max_tokens
    if most < 1:
        raise UserError(f"--max_tokens {most}: must be 1 or more.")
    found = prepare(DATA_FOLDER, Recipe.of(tiny=args.tiny, files=files, max_tokens=most))
    for stage, source in found["from"].items():
        print(f"{stage:<8} {found['tokens'][stage]:>10,} tokens from {source}")
    print(f"{display(DATA_FOLDER)}: {found['bytes'] / 2**20:.1f} MiB")
    return 0


def data_for(parts: Sequence[Part], scratch: Path, *, tiny: bool) -> tuple[Path, dict[str, Any]]:
    """The tokens for these parts: those prepared, else made now from the bundled samples.

    Returns: where they are, and what they are.
    """
    recipe = Recipe.of(tiny=tiny)
    if found := prepared(DATA_FOLDER, recipe):
        return DATA_FOLDER, found
    if not {part.name for part in parts} & {"steps", "speed", "shapes"}:
        return scratch, {}
    print("tokens: from the bundled samples, as none were made with --prepare 使用自带样例", flush=True)
    return scratch, prepare(scratch, recipe)


def look_at_machine() -> Row:
    """What the probe `machine` says. Raises: UserError where torch can't be loaded."""
    command = [sys.executable, PROBES, "machine"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the machine did not answer within {PROBE_SECONDS:.0f} s. Try: {shlex.join(command)}"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"{sys.executable} can't measure here ({last}). Set PYTHON to one that has torch.")
    facts: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def command_line(argv: Sequence[str] | None) -> str:
    """The command as a person would type it."""
    return shlex.join(["bash", "benchmarks/on_gpu.sh", *(sys.argv[1:] if argv is None else argv)])


def commit() -> str:
    """The code's commit; empty in a copy without history."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# --- the report -----------------------------------------------------------------------------------


def report(content: Row) -> list[str]:
    """The whole report as Markdown, from the results alone."""
    lines = [
        "# On a GPU" if content["device"] == "cuda" else "# On a CPU, with tiny shapes",
        "",
        *machine_lines(content),
        "",
    ]
    for name, found in content["parts"].items():
        lines += [f"## {name}", "", *part_lines(name, found), ""]
    lines += ["## For docs/results.md", "", "| date | card | command | result |", "|---|---|---|---|"]
    return lines + [docs_row(content, name) for name in content["parts"]]


def machine_lines(content: Row) -> list[str]:
    """The machine and the data."""
    facts, told = content["machine"], content["data"]
    card = f"{facts['card']}, {facts['memory_gb']:g} GB, driver {facts['driver']}" if facts["card"] else "no GPU"
    flags = f" ({', '.join(facts['cpu_flags'])})" if facts["cpu_flags"] else ""
    lines = [
        f"{content['date']}, commit {content['commit'] or 'unknown'}: `{content['command']}`",
        f"{card}; {facts['cores']} cores of {facts['cpu']}{flags}; "
        f"Python {facts['python']}, torch {facts['torch']}, CUDA {facts['cuda'] or 'none'}",
    ]
    if told:
        lines.append(
            "tokens: "
            + ", ".join(f"{stage} {told['tokens'][stage]:,} ({told['from'][stage]})" for stage in told["from"])
        )
    return lines


def part_lines(name: str, found: Row) -> list[str]:
    """A part's table, and more where there is more."""
    lines = ["| check | status | s | found |", "|---|---|---|---|"]
    for row in found["checks"]:
        words = cell("; ".join([*figures(row), *row.get("notes", []), *([row["error"]] if "error" in row else [])]))
        seconds = "" if row["status"] == NOT_RUN else f"{row['seconds']:.1f}"
        lines.append(f"| {row['check']} | {row['status']} | {seconds} | {words} |")
    if "error" in found:
        lines += ["", f"the part itself failed: {found['error']}"]
    if "seconds" in found:
        lines += [
            "",
            f"{found['status']} after {found['seconds']:.0f} of {found['limit_seconds']:.0f} s: {found['result']}",
        ]
    details = found.get("details", [])
    return [*lines, *(["", *details] if details else [])]


def figures(row: Row) -> list[str]:
    """The plain figures of a row; lists and tables have a place of their own."""
    plain = {name: value for name, value in row.items() if name not in HIDDEN and not isinstance(value, list | dict)}
    words = []
    for name, value in list(plain.items())[:FIGURES_SHOWN]:
        is_count = isinstance(value, int) and not isinstance(value, bool)
        words.append(f"{name} {value:,}" if is_count else f"{name} {value}")
    return words


def docs_row(content: Row, name: str) -> str:
    """A part's line for the table in docs/results.md."""
    found = content["parts"][name]
    card = content["machine"]["card"] if content["device"] == "cuda" else f"none ({content['machine']['cpu']}, --tiny)"
    command = f"`bash benchmarks/on_gpu.sh --parts {name}`"
    return f"| {content['date'][:10]} | {card} | {command} | {cell(found.get('result', found['status']))} |"


def cell(text: str) -> str:
    """Text that fits a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    run(main)

"""Speed and memory of the crate rustbpe beside other trainers and encoders of BPE.

    python benchmarks/tokenizer_speed.py --text pretrain.jsonl.xz --sizes 30 all --work_dir DIR \\
        --json FILE

All arms have the same text, machine and threads. Training compares ours, the package `rustbpe` of
PyPI and Hugging Face `tokenizers` (the same split pattern, ByteLevel). SentencePiece (BPE at its
defaults, except for what `tokenizer/trainers.py` says) is compared with ours with runs of Han
capped at 8. Ranks must be those of PyPI's package, byte for byte. Encoding: all texts with one
tokenizer; ids must be the same.

Each measurement is a fresh process, and the arms take turns. The time is that of the call alone:
the texts are in memory before, as a list whose UTF-8 is ready, so the list adds nothing to the
memory of any arm. Only SentencePiece reads its text in that time, from a prepared file of one
paragraph a line. Memory is the peak of the resident set less what was resident just before the
call.

Needs the crate (maturin develop --release), `tokenizers`, Linux, and an otherwise idle machine.
PyPI's package has the name of our crate. So it gets, with sentencepiece, an environment of its own
in the work folder, made on the first run. Exit code 1: ranks or ids differ. Targets that are missed
are only printed, since they depend on the machine. Each is judged by the smaller of two ratios, of
medians and of minima.
"""

import importlib
import math
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import proc
from benchmarks.report import Target, add_json_flag
from benchmarks.tokenizer.arms import our_trainer
from benchmarks.tokenizer.processes import Bench, other_environment
from benchmarks.tokenizer.results import NUM_BYTES, Result, measure_encoders, measure_trainers
from benchmarks.tokenizer.tables import encoding_table, encoding_targets, training_table, training_targets
from benchmarks.tokenizer.text import first_texts, parse_size, prepare, read_texts
from configs.artifacts import require_writable, write_json
from configs.cli import Parser, run
from configs.hardware import cpu_instructions, cpu_name, num_cores
from configs.paths import display
from configs.schema import UserError
from dataset.tokenizer import NAMED_PATTERNS


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--text", type=Path, required=True, metavar="FILE", help=".jsonl or .jsonl.xz of records with `text` 文本"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["30", "all"],
        metavar="MB",
        help="measure on the first so many MB, or all 取文本开头的若干 MB，或 all 全部 (30 all)",
    )
    parser.add_argument(
        "--vocab_sizes",
        type=int,
        nargs="+",
        default=[6400, 32000],
        metavar="N",
        help="ranks to learn; encoding takes the first 词表大小，编码用第一个 (6400 32000)",
    )
    parser.add_argument(
        "--pattern", default="gpt4", metavar="NAME|REGEX", help="split pattern of all arms 切分规则 (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each arm 每项的线程数 (%(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="runs of each arm 每项重复次数 (%(default)s)"
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="of sentencepiece; 1 needs more tokens than the text has different characters "
        "sentencepiece 的字符覆盖率；取 1 时词表须大于字符种数 (%(default)s)",
    )
    parser.add_argument(
        "--work_dir", type=Path, required=True, metavar="DIR", help="environment and files for a while 工作目录"
    )
    add_json_flag(parser)
    return parser


def check_machine() -> None:
    """Raises: UserError when something is missing, before anything is measured."""
    proc.require("/proc/self/status", "reads a process's memory")
    our_trainer()
    for name in ("tokenizers", "tiktoken"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"the package {name} is missing. Install it with: pip install {name}") from None


def measure(
    bench: Bench, texts: list[str], sizes: Sequence[float], vocab_sizes: Sequence[int], json_file: Path | None
) -> bool:
    """Measure and print everything; True when all ranks and ids are the same."""
    results: list[Result] = []
    facts = {
        "cpu": cpu_name(),
        "instructions": cpu_instructions(),
        "cores": num_cores(),
        "python": platform.python_version(),
        "threads": bench.threads,
        "pattern": bench.pattern,
    }

    def keep(new: Sequence[Result], lines: Iterator[str], targets: Sequence[Target]) -> None:
        results.extend(new)
        if json_file:
            write_json(json_file, [asdict(result) | facts for result in results])
        print(*lines, *(f"- {target}" for target in targets), sep="\n", flush=True)

    print(f"{facts['cpu']} ({', '.join(cpu_instructions())}), {num_cores()} cores, {bench.threads} threads an arm")
    all_equal = True
    for number, size in enumerate(sizes):
        prepared = prepare(list(first_texts(iter(texts), size)), bench.folder / f"text_{number}")
        tokens: list[bytes] = []
        for vocab_size in vocab_sizes:
            trained, learnt, equal = measure_trainers(bench, prepared, vocab_size)
            keep(trained, training_table(trained), training_targets(trained))
            tokens = tokens or learnt
            all_equal &= equal
        if size == max(sizes):
            encoded, equal = measure_encoders(bench, prepared, tokens)
            keep(encoded, encoding_table(encoded), encoding_targets(encoded))
            all_equal &= equal
    return all_equal


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all arms and print tables."""
    args = build_parser().parse_args(argv)
    sizes = sorted({parse_size(word) for word in args.sizes})
    for name, value, least in (
        ("vocab_sizes", min(args.vocab_sizes), NUM_BYTES + 1),
        ("threads", args.threads, 1),
        ("repeat", args.repeat, 1),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: must be {least} or more.")
    check_machine()
    texts = list(first_texts(read_texts(args.text), max(sizes)))
    num_bytes = sum(len(text.encode("utf-8")) for text in texts)
    if not texts:
        raise UserError(f"{display(args.text)}: no text. Give JSONL of records with `text`.")
    if any(num_bytes < size < math.inf for size in sizes):
        raise UserError(f"{display(args.text)}: {num_bytes / 1e6:.1f} MB of text, less than --sizes asks for. Say all.")
    require_writable(args.work_dir)
    other_python = other_environment(args.work_dir.absolute() / "pypi")
    with tempfile.TemporaryDirectory(prefix="tokenizer_speed_", dir=args.work_dir.absolute()) as folder:
        bench = Bench(
            Path(folder),
            other_python,
            NAMED_PATTERNS.get(args.pattern, args.pattern),
            args.threads,
            args.repeat,
            args.character_coverage,
        )
        return 0 if measure(bench, texts, sizes, args.vocab_sizes, args.json) else 1


if __name__ == "__main__":
    run(main)

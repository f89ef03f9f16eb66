"""One measurement in a process of its own.

    python benchmarks/tokenizer/child.py TASK RESULT

So memory and threads of another arm cannot change it. Reads a task as `processes.py` writes it
(JSON), and writes what it found. It also runs in the environment of PyPI's package, which has
neither tiktoken nor numpy: so nothing is imported before an arm needs it.
"""

import ctypes
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.tokenizer.encoders import measure_encoding
from benchmarks.tokenizer.trainers import measure_training
from configs.artifacts import write_json
from configs.cli import Parser, run


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Do what a task says."""
    texts: list[str] = []
    if task["arm"] != "sentencepiece":  # which reads the paragraphs itself
        with Path(task["texts"]).open(encoding="utf-8") as lines:
            texts += map(json.loads, lines)
    hold_utf8(texts)
    return {"train": measure_training, "encode": measure_encoding}[task["task"]](task, texts)


def hold_utf8(texts: Sequence[str]) -> None:
    """Make Python keep the UTF-8 of each text beside it.

    Rust asks each string for its UTF-8, which then stays as long as the string. Asked for now, it
    costs no trainer any time and counts in the memory of none.
    """
    as_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
    as_utf8.argtypes, as_utf8.restype = [ctypes.py_object, ctypes.c_void_p], ctypes.c_void_p
    for text in texts:
        as_utf8(text, None)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the result."""
    parser = Parser(description=__doc__)
    parser.add_argument("task", type=Path, metavar="TASK", help="what to measure, JSON 任务文件")
    parser.add_argument("result", type=Path, metavar="RESULT", help="where the figures go 结果文件")
    args = parser.parse_args(argv)
    write_json(args.result, measure(json.loads(args.task.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    run(main)

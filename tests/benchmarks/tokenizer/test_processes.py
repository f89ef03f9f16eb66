"""A measurement is a process of its own, whose failure is told in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tokenizer.processes import CHILD, Bench, last_words
from benchmarks.tokenizer.text import prepare
from configs.schema import UserError


def test_the_last_words_of_a_program_are_its_last_line() -> None:
    assert last_words("noise\nerror: a.jsonl: missing.\n") == "a.jsonl: missing."
    assert last_words("Traceback\nRuntimeError: too small\n\n") == "RuntimeError: too small"
    assert last_words("")


def test_a_measurement_in_a_process_of_its_own_brings_seconds_memory_and_tokens(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    prepared = prepare(["今天天气很好。今天去公园。"] * 50, tmp_path / "text")
    bench = Bench(tmp_path, Path(sys.executable), r"\p{L}+|[^\p{L}]+", threads=1, repeats=2, character_coverage=1.0)
    (runs,) = bench.take_turns("train", ["tokenizers"], prepared, 260).values()
    assert len(runs) == 2 and all(run["seconds"] > 0 for run in runs)
    assert runs[0]["tokens"] == runs[1]["tokens"]
    assert bytes.fromhex(runs[0]["tokens"][256]) in "今天。".encode()


def test_a_measurement_that_fails_is_quoted(tmp_path: Path) -> None:
    prepared = prepare(["今天"], tmp_path / "text")
    bench = Bench(tmp_path, Path(sys.executable), "x", threads=1, repeats=1, character_coverage=1.0)
    with pytest.raises(UserError, match=r"train, pypi: exit 1: .*has not the package rustbpe of PyPI"):
        bench.run_child("train", "pypi", prepared, 300)


def test_a_measurement_loads_nothing_that_the_other_environment_lacks() -> None:
    program = (
        "import json, runpy, sys\n"
        f"sys.path.insert(0, {str(CHILD.parents[2])!r})\n"
        "import benchmarks.tokenizer.child\n"
        "print(json.dumps([name for name in ('numpy', 'tiktoken', 'torch', 'yaml') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

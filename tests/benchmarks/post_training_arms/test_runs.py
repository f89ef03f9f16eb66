"""The file of runs: written by several programs at once, read strictly, and shown as a table."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.post_training_arms.runs import RunLine, append_run, in_use, read_runs, table, tables
from configs.schema import UserError


def run(arm: str, seed: int, *, start: str = "s" * 64, seconds: float | None = 60.0, **metrics: Any) -> RunLine:
    return RunLine("m", arm, "t", seed, start, "a CPU, 1 of 2 cores", 100, seconds, metrics)


def test_a_line_holds_the_named_fields_in_this_order(tmp_path: Path) -> None:
    path = tmp_path / "results" / "runs.jsonl"
    line = run("own", 3, right={"value": 0.5, "n": 8, "ci95": [0.2, math.nan]}, loss=math.inf)
    append_run(path, line)
    shown = json.loads(path.read_text())
    assert list(shown) == ["method", "arm", "task", "seed", "start_sha256", "cpu", "steps", "seconds", "metrics"]
    assert shown["metrics"] == {"right": {"value": 0.5, "n": 8, "ci95": [0.2, None]}, "loss": None}
    assert read_runs(path)[0].key == line.key and math.isnan(read_runs(path)[0].value("loss"))


def test_lines_of_several_programs_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: append_run(path, run("own", seed, text="长" * 3000)), range(40)))
    assert sorted(line.seed for line in read_runs(path)) == list(range(40))


def test_a_line_that_is_no_run_is_named_and_of_two_equal_keys_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert read_runs(path) == []
    append_run(path, run("own", 0, right=0.5))
    append_run(path, run("own", 0, right=0.7))
    assert [line.value("right") for line in read_runs(path)] == [0.5]
    with path.open("a") as file:
        file.write('{"method": "m"')
    with pytest.raises(UserError, match=r"runs.jsonl:3: not a run .* Delete the line"):
        read_runs(path)


def test_the_table_shows_mean_and_spread_and_differences_by_seed() -> None:
    lines = [run("own", seed, right={"value": value, "n": 500}) for seed, value in ((0, 0.9), (1, 0.8), (2, 0.7))]
    lines += [run("control", seed, seconds=None, right={"value": 0.6, "n": 500}) for seed in (2, 0)]
    ((title, runs),) = tables(lines, ("own", "control", "absent"))
    assert title == f"m, task t, start {'s' * 12}" and runs.arms == ["own", "control"]
    shown = list(table(title, runs))
    assert "| seeds | 0, 1, 2 | 0, 2 |" in shown and "| steps | 100 | 100 |" in shown
    assert "| seconds | 60 ± 0 | - |" in shown
    assert "| right, n 500 | 0.8 ± 0.1 | 0.6 ± 0 |" in shown
    assert "| minus own | - | -0.2 ± 0.14 |" in shown  # seeds 0 and 2 alone: -0.3 and -0.1
    assert runs.difference("control", "own", "right") == pytest.approx(-0.2)
    assert math.isnan(runs.difference("control", "own", "loss"))


def test_a_single_run_is_shown_with_its_interval() -> None:
    ((title, runs),) = tables([run("own", 0, right={"value": 0.9, "n": 500, "ci95": [0.87, 0.92]})], ())
    assert "| right, n 500 | 0.9 [0.87, 0.92] |" in list(table(title, runs))


def test_runs_from_different_starts_stand_in_different_tables() -> None:
    assert len(list(tables([run("own", 0), run("own", 1, start="o" * 64)], ("own",)))) == 2


@pytest.mark.parametrize(("variable", "shown"), [("1", "1 of 4 cores"), ("", "4 of 4 cores"), ("9", "4 of 4 cores")])
def test_the_cores_that_a_run_uses_are_noted(variable: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert in_use(4) == shown

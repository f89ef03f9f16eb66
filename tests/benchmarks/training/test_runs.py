"""A finished run is noted, and not made again while nothing it depends on has changed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.training import runs
from benchmarks.training.runs import SOURCES, Run, once
from benchmarks.training.speed import Speed
from configs.paths import ROOT


def test_a_finished_run_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = SimpleNamespace(
        args=SimpleNamespace(json=tmp_path / "loss.json"),
        corpus=SimpleNamespace(facts={"num_heldout": 60}),
        facts=lambda: {"model": "512x8", "instructions": ("avx2",), "seeds": seeds},
    )
    made: list[Run] = []

    def make() -> Run:
        made.append(Run(10.0 + len(made), 100, 2.0, 50, 3, 7.0))
        return made[-1]

    def run(arm: str, seed: int) -> Run:
        return once(bench, Run, {"arm": arm, "seed": seed}, make)

    seeds = [0]
    first = run("minillm", 0)
    seeds = [0, 1]  # more of them later
    assert run("minillm", 0) == first and len(made) == 1
    assert run("minillm", 1) == made[1] != first
    assert run("baseline", 1) == made[2]
    bench.corpus.facts["num_heldout"] = 300
    assert run("minillm", 1) == made[3]
    monkeypatch.setattr(runs, "sha256_file", lambda path: "changed")
    assert run("minillm", 1) == made[4]
    bench.args.json = None
    assert [run("minillm", 1), run("minillm", 1)] == made[5:]


def test_a_speed_and_a_run_of_the_same_flags_are_noted_apart(tmp_path: Path) -> None:
    bench: Any = SimpleNamespace(
        args=SimpleNamespace(json=tmp_path / "loss.json"),
        corpus=SimpleNamespace(facts={"num_heldout": 60}),
        facts=lambda: {"model": "512x8"},
    )
    speed, run, key = Speed(3.0, 30.0, 7, 900.5, 80.0, "bfloat16"), Run(10.0, 100, 2.0, 50, 3, 7.0), {"arm": "minillm"}
    assert once(bench, Speed, key, lambda: speed) == speed
    assert once(bench, Run, key, lambda: run) == run
    assert once(bench, Speed, key, pytest.fail) == speed and once(bench, Run, key, pytest.fail) == run


def test_each_name_of_an_arm_s_sources_stands_for_files() -> None:
    for patterns in SOURCES.values():
        for pattern in patterns:
            assert any(ROOT.glob(pattern)), pattern

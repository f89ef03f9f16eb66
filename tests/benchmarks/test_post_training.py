"""post_training.py with a method that trains nothing: what is run, skipped, resumed and shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import post_training
from benchmarks.post_training import METHODS, load_method, main, timed
from benchmarks.post_training_arms.arm import Outcome, Start, start_sha256
from benchmarks.post_training_arms.runs import Runs, read_runs
from benchmarks.report import Target
from configs.schema import UserError


class FakeMethod:
    """Its start is a file; each arm has a value."""

    TASKS = ("sums", "words")
    ARMS = ("own", "control")

    def __init__(self) -> None:
        self.runs: list[tuple[str, str, int]] = []
        self.fails = False
        self.contents = "weights"

    def prepare(self, task: str, folder: Path) -> Start:
        weights = folder / "start.bin"
        weights.write_text(self.contents)
        return Start(weights, {}, start_sha256({"weights": weights}, {"task": task}))

    def measure(self, arm: str, task: str, seed: int, start: Start, folder: Path) -> Outcome:
        assert start.weights.read_text() == self.contents and folder.is_dir()
        if self.fails:
            raise UserError("x: broken.", "坏了")
        self.runs.append((task, arm, seed))
        return Outcome(100, {"right": {"value": 0.9 if arm == "own" else 0.5, "n": 500}, "loss": 1.0 + seed})

    def targets(self, runs: Runs) -> list[Target]:
        return [
            Target("right over control", 0.5, -runs.difference("control", "own", "right"), ""),
            Target("loss", 2.0, runs.mean("own", "loss"), " nats", at_most=True),
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMethod:
    method = FakeMethod()
    monkeypatch.setattr(post_training, "load_method", lambda name: method)
    monkeypatch.setenv("POST_TRAINING_RUN_DIR", str(tmp_path / "no run"))
    return method


def call(folder: Path, *words: str) -> int:
    return main(["--work_dir", str(folder / "work"), "--results", str(folder / "runs.jsonl"), *words])


def test_runs_are_noted_and_not_made_again(
    fake: FakeMethod, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, "--method", "lora", "--arm", "all", "--seed", "0", "1") == 0
    assert fake.runs == [("sums", "own", 0), ("sums", "control", 0), ("sums", "own", 1), ("sums", "control", 1)]
    shown = capsys.readouterr().out
    assert "| right, n 500 | 0.9 ± 0 | 0.5 ± 0 |" in shown and "| minus own | - | -0.4 ± 0 |" in shown
    assert "right over control: 0.40 (target 0.5): NOT met" in shown
    assert "loss: 1.50 nats (target at most 2 nats): met" in shown
    assert call(tmp_path, "--method", "lora", "--arm", "own", "--seed", "0", "2") == 0
    assert fake.runs[4:] == [("sums", "own", 2)]
    assert [line.seed for line in read_runs(tmp_path / "runs.jsonl") if line.arm == "own"] == [0, 1, 2]


def test_a_start_with_other_contents_is_run_again(fake: FakeMethod, tmp_path: Path) -> None:
    call(tmp_path, "--method", "lora")
    fake.contents = "other weights"
    call(tmp_path, "--method", "lora")
    assert fake.runs == [("sums", "own", 0)] * 2
    assert len({line.start_sha256 for line in read_runs(tmp_path / "runs.jsonl")}) == 2


def test_a_run_of_another_machine_counts_wherever_the_folders_are(fake: FakeMethod, tmp_path: Path) -> None:
    call(tmp_path, "--method", "lora")
    main(["--work_dir", str(tmp_path / "elsewhere"), "--results", str(tmp_path / "runs.jsonl"), "--method", "lora"])
    assert fake.runs == [("sums", "own", 0)]


def test_a_run_that_fails_leaves_no_line_and_its_time_counts(fake: FakeMethod, tmp_path: Path) -> None:
    fake.fails = True
    with pytest.raises(UserError, match="x: broken"):
        call(tmp_path, "--method", "lora")
    assert not (tmp_path / "runs.jsonl").exists()
    clock = next((tmp_path / "work").rglob("clock.json"))
    clock.write_text(json.dumps({"seconds": 1000.0, "running": False}))
    fake.fails = False
    call(tmp_path, "--method", "lora")
    seconds = read_runs(tmp_path / "runs.jsonl")[0].seconds
    assert seconds is not None and seconds >= 1000


def test_after_a_kill_nobody_knows_how_long_it_took(tmp_path: Path) -> None:
    (tmp_path / "clock.json").write_text(json.dumps({"seconds": 9.0, "running": True}))
    with timed(tmp_path) as clock:
        pass
    assert clock["seconds"] is None
    with timed(tmp_path) as clock:
        pass
    assert clock["seconds"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arm", "none"), "--arm none: must be one of own, control."),
        (("--task", "none"), "--task none: must be one of sums, words."),
    ],
)
def test_unknown_names_are_refused_with_the_list(
    words: tuple[str, ...], message: str, fake: FakeMethod, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        call(tmp_path, "--method", "lora", *words)


def test_the_list_says_what_has_been_run(fake: FakeMethod, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path, "--method", "lora", "--task", "words", "--seed", "4", "2")
    capsys.readouterr()
    assert call(tmp_path, "--list") == 0
    shown = capsys.readouterr().out
    assert "lora --task words --arm own: seeds 2, 4" in shown and "lora --task sums --arm own: -" in shown
    call(tmp_path, "--method", "lora", "--table")
    assert "lora, task words" in capsys.readouterr().out and len(fake.runs) == 2


def test_each_method_that_is_there_keeps_the_interface() -> None:
    for name in METHODS:
        try:
            method: Any = load_method(name)
        except UserError:
            continue  # not written yet
        assert method.TASKS and method.ARMS and callable(method.prepare) and callable(method.measure), name

"""What a GPU will be asked to do: every command is one that its program understands."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import correctness, pipeline
from benchmarks.gpu.checks import OK, Check, Row
from benchmarks.gpu.commands import PROBES
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.session import Session
from benchmarks.on_gpu import run_parts
from benchmarks.training.arms import add_flags, our_words
from configs.cli import Parser
from configs.paths import ROOT
from configs.train_run import parse_run
from tests.benchmarks.gpu.conftest import MACHINE


@pytest.fixture
def asked(session: Session, monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    """The checks of all parts on a large card, by name, as if each had gone well."""
    session.device, session.tiny = "cuda", False
    session.machine = {**MACHINE, "card": "NVIDIA H100", "memory_gb": 85.0}
    checks: dict[str, Check] = {}

    def run(self: Session, given: Sequence[Check], at_once: int = 1) -> list[Row]:
        checks.update({check.name: check for check in given})
        well = {"status": OK, "seconds": 1.0, "peak_memory_gb": 9.0, "micro_batch": 16, "losses": [8.0, 7.0]}
        return [self.found({"check": check.name, **well}) for check in given]

    monkeypatch.setattr(Session, "run", run)
    monkeypatch.setattr(correctness, "weights", lambda session, check, stage: Path("full_sft_512.pth"))
    monkeypatch.setattr(pipeline, "latest_weights", lambda stem, folder: Path(f"{stem}_512.pth"))
    monkeypatch.setattr(pipeline, "ask", lambda *words, environment: ["scripts/program.py", *words])
    assert run_parts(PARTS, session) == 0
    return checks


def test_every_trainer_that_a_gpu_is_given_understands_its_flags(asked: dict[str, Check]) -> None:
    stages = []
    for check in asked.values():
        words = list(check.command)
        if words[1] == PROBES and words[2] in ("train", "resume"):
            run = parse_run(words[3], "", words[words.index("--") + 1 :])
            stages.append(run.stage)
            assert run.profile == "default" and run.train.device == "cuda" and run.train.log_interval == 1
            is_halved = check.name == "out of memory, halved"
            assert ("--memory_gb" in words) == (is_halved or check.name == "out of memory, refused")
    assert {stage: stages.count(stage) for stage in ("pretrain", "sft", "dpo")} == {"pretrain": 12, "sft": 2, "dpo": 3}
    names = ["pretrain eager", "pretrain compiled", "sft compiled", "dpo compiled", "MoE 145 M deterministic"]
    assert set(names) <= asked.keys()
    assert not parse_run("pretrain", "", asked["104 M eager"].command[-2:]).train.use_compile


def test_the_benchmarks_that_a_gpu_is_given_understand_their_flags(asked: dict[str, Check]) -> None:
    for name, minutes in (("train speed", 0.3), ("time to loss", 0.5)):
        parser = Parser()
        add_flags(parser, minutes=1.0, minutes_help="")
        parser.add_argument("--budgets", type=float, nargs="+")
        parser.add_argument("--calibrate_minutes", type=float)
        args = parser.parse_args(list(asked[name].command[2:]))
        assert (args.minutes, args.model, args.device) == (minutes, "minillm-26m", "cuda")
        assert parse_run("pretrain", "", our_words(args, torch.device("cuda"))).train.max_seq_len == 2048


def test_the_tests_that_a_gpu_is_given_are_there(asked: dict[str, Check]) -> None:
    paths = [word for check in asked.values() for word in check.command if word.startswith("tests/")]
    assert paths and all((ROOT / path).exists() for path in paths), paths

"""The script for a GPU: a check that fails, crashes or hangs stops no other, and each result is
kept as it comes."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import on_gpu
from benchmarks.gpu import parts as gpu_parts
from benchmarks.gpu import probes
from benchmarks.gpu.checks import (
    FAILED,
    NOT_RUN,
    OK,
    TIMED_OUT,
    Check,
    CheckFailed,
    Ended,
    Part,
    Results,
    Row,
    Session,
    run_part,
)
from benchmarks.gpu.commands import PROBES, of_junit, of_training
from benchmarks.gpu.data import BUNDLED, Recipe, prepare, prepared, tensors
from benchmarks.gpu.parts import PARTS, TALKS, compare, memory_checks, of_talk
from benchmarks.on_gpu import chosen_parts, main, report, run_parts
from benchmarks.training.arms import add_flags, our_words
from benchmarks.training.corpus import prepare as prepare_corpus
from configs.cli import Parser
from configs.flags import parse_run
from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from dataset.lm_dataset import DPODataset, PretrainDataset, SFTDataset
from dataset.tokenizer import RustBPETokenizer
from tests.tiny_run import TinyRun, write_records

MACHINE: Row = {
    "torch": "2.11.0", "cuda": "13.0", "python": "3.12.3", "cpu": "a CPU", "cpu_flags": ["avx2"], "cores": 2,
    "card": "", "memory_gb": 0.0, "driver": "",
}  # fmt: skip
HEAD: Row = {
    "format": 1, "date": "2026-11-27 12:00:00", "command": "bash benchmarks/on_gpu.sh", "commit": "abc", "device": "cpu",
    "tiny": True, "machine": MACHINE, "data": {},
}  # fmt: skip
HANG = "import time\ndef asleep():\n    time.sleep(60)\nasleep()"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    out = tmp_path / "report"
    out.mkdir()
    results = Results(out / "results.json", HEAD)
    return Session(
        device="cpu", tiny=True, data=tmp_path / "data", work=tmp_path / "work", out=out, machine=MACHINE, results=results
    )  # fmt: skip


def program(name: str, text: str, limit: float = 30.0, **more: Any) -> Check:
    return Check(name=name, command=[sys.executable, "-c", text], limit=limit, **more)


def part(name: str, *checks: Check, limit: float = 60.0, at_once: int = 1) -> Part:
    def run(session: Session) -> None:
        session.run(checks, at_once)

    return Part(name, f"the part {name}", limit, run, lambda rows: f"{len(rows)} rows")


def written(session: Session) -> Row:
    """The results file as it stands."""
    content: Row = json.loads((session.out / "results.json").read_text(encoding="utf-8"))
    return content


# --- parts and checks -----------------------------------------------------------------------------


def test_a_part_that_fails_one_that_hangs_and_one_that_crashes_do_not_stop_the_next(session: Session) -> None:
    def broken(session: Session) -> None:
        session.run([program("before", "pass")])
        raise RuntimeError("no such thing")

    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    parts = [
        Part("broken", "raises", 60.0, broken, lambda rows: ""),
        part("hanging", program("asleep", HANG, limit=2.5)),
        part("crashing", program("segfault", crash), program("error", "raise ValueError('what it was')")),
        part("sound", program("well", "print('done')")),
    ]
    assert run_parts(parts, session) == 3
    found = written(session)["parts"]
    assert [found[name]["status"] for name in ("broken", "hanging", "crashing", "sound")] == [FAILED] * 3 + ["done"]
    assert "RuntimeError: no such thing" in found["broken"]["traceback"]
    assert found["broken"]["checks"][0]["status"] == OK
    asleep = found["hanging"]["checks"][0]
    assert asleep["status"] == TIMED_OUT and "in asleep" in asleep["traceback"]
    segfault, error = found["crashing"]["checks"]
    assert segfault["status"] == FAILED and f"exit code -{signal.SIGSEGV:d}" in segfault["error"]
    assert "Fatal Python error: Segmentation fault" in segfault["traceback"]
    assert error["error"] == "exit code 1: ValueError: what it was"
    assert error["traceback"].startswith("Traceback (most recent call last)")
    assert found["sound"]["checks"][0]["status"] == OK


def test_each_result_is_in_the_file_before_the_next_check_starts(session: Session) -> None:
    look = f"import json; print(json.dumps(json.load(open({str(session.out / 'results.json')!r}))))"
    second = program("second", look, read=lambda ended: {"seen": ended.json()["parts"]["kept"]})
    run_part(part("kept", program("first", "pass"), second), session)
    seen = written(session)["parts"]["kept"]["checks"][1]["seen"]
    assert seen["status"] == "running"
    assert [row["check"] for row in seen["checks"]] == ["first"]


def test_checks_run_side_by_side_and_come_back_in_their_order(session: Session) -> None:
    names = ["slow", "quick"]
    meet = """
import sys, time
from pathlib import Path
mine, other = Path(sys.argv[1]), Path(sys.argv[2])
mine.touch()
while not other.exists():
    time.sleep(0.01)
"""
    session.work.mkdir()
    files = [str(session.work / name) for name in names]
    checks = [
        Check(name=name, command=[sys.executable, "-c", meet, *order], limit=30)
        for name, order in zip(names, (files, files[::-1]), strict=True)
    ]
    session.part = "both"
    session.results.begin("both", 60.0)
    assert [(row["check"], row["status"]) for row in session.run(checks, at_once=2)] == [(name, OK) for name in names]


def test_a_check_has_what_is_left_of_its_part_s_time_and_one_that_comes_later_is_not_run(session: Session) -> None:
    started = time.monotonic()
    found = run_part(part("short", program("asleep", HANG), program("late", "pass"), limit=1.0), session)
    assert time.monotonic() - started < 20
    assert [row["status"] for row in found["checks"]] == [TIMED_OUT, NOT_RUN]
    assert found["checks"][1]["error"] == "the part's time was over"
    assert "timed out: asleep; not run: late" in found["result"]


@pytest.mark.parametrize("hangs", [True, False], ids=["hanging", "ended"])
def test_what_a_check_has_started_ends_with_it(session: Session, tmp_path: Path, hangs: bool) -> None:
    alive = tmp_path / "alive"
    child = f"import pathlib, time\nwhile True:\n    pathlib.Path({str(alive)!r}).touch()\n    time.sleep(0.01)"
    text = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}]){'.wait()' if hangs else ''}"
    run_part(part("family", program("parent", text, limit=2.0)), session)
    alive.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not alive.exists()


def test_a_figure_that_is_wrong_fails_its_check_and_is_kept(session: Session) -> None:
    def read(ended: Ended) -> Row:
        raise CheckFailed("too slow", {"tokens_per_s": 3, "loss": math.nan, "losses": [math.inf]})

    found = run_part(
        part("speed", program("steps", "pass", read=read), program("other", "pass", read=unreadable)), session
    )
    row = written(session)["parts"]["speed"]["checks"][0]
    assert (row["status"], row["error"], row["tokens_per_s"]) == (FAILED, "too slow", 3)
    assert (row["loss"], row["losses"]) == ("nan", ["inf"])
    assert "its results can't be read (KeyError: 'figure')" in found["checks"][1]["error"]


def unreadable(ended: Ended) -> Row:
    raise KeyError("figure")


def test_what_a_program_did_in_another_way_than_asked_is_noted(session: Session) -> None:
    say = "import sys; print('torch.compile failed (no compiler): training goes on', file=sys.stderr)"
    row = run_part(part("noted", program("steps", say)), session)["checks"][0]
    assert row["notes"] == ["torch.compile failed (no compiler): training goes on"]


def test_settings_of_the_user_s_own_runs_reach_no_check(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT_DIR", "/home/user/out")
    look = program("look", "import os; assert 'OUT_DIR' not in os.environ and os.environ['DATA_DIR'] == 'here'")
    given = Check(name="look", command=look.command, limit=30, environment={"DATA_DIR": "here"})
    assert run_part(part("alone", given), session)["checks"][0]["status"] == OK


# --- the command line -----------------------------------------------------------------------------


def test_parts_are_chosen_by_number_or_name_and_keep_their_order() -> None:
    assert [part.name for part in PARTS] == ["tests", "steps", "pipeline", "speed", "shapes"]
    assert [part.name for part in chosen_parts("4, tests,1", PARTS)] == ["tests", "speed"]
    assert chosen_parts(None, PARTS) == list(PARTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x", "--parts", "6"], "--parts 6: unknown. Give numbers or names with commas between: 1 tests"),
        (["--out", "x", "--parts", "tests,sleed"], "--parts sleed: unknown"),
        (["--out", "x", "--parts", ","], "names no part"),
        (["--parts", "1"], "--out is missing"),
        (["--out", "x", "--device", "cpu"], "Add --tiny"),
        (["--out", "x", "--patience", "0"], "--patience 0.0: must be above 0"),
        (["--out", "x", "--text", "a.jsonl"], "--text: only with --prepare"),
        (["--prepare", "--max_tokens", "0"], "--max_tokens 0: must be 1 or more"),
        (["--prepare", "--text", "missing.jsonl"], "missing.jsonl: no such file"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)


def test_without_a_gpu_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "look_at_machine", lambda: MACHINE)
    with pytest.raises(UserError, match=r"PyTorch 2\.11\.0 sees none.*--device cpu --tiny"):
        main(["--out", str(tmp_path)])


def test_a_python_without_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module_as_this")
    monkeypatch.setattr(on_gpu, "PROBES", str(broken))
    with pytest.raises(UserError, match=r"No module named 'no_such_module_as_this'.*Set PYTHON"):
        on_gpu.look_at_machine()


def test_a_failing_part_gives_exit_code_1_and_a_whole_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_gpu, "look_at_machine", lambda: MACHINE)
    monkeypatch.setattr(
        on_gpu, "PARTS", (part("bad", program("no", "raise SystemExit('a | b')")), part("good", program("yes", "pass")))
    )
    monkeypatch.setenv("OUT_DIR", str(tmp_path / "weights"))
    out = tmp_path / "report"
    assert main(["--device", "cpu", "--tiny", "--out", str(out)]) == 1
    text = (out / "report.md").read_text(encoding="utf-8")
    assert r"| no | failed |" in text and r"exit code 1: a \| b" in text
    assert "| `bash benchmarks/on_gpu.sh --parts good` | 1 of 1 checks ok; 1 rows |" in text
    assert sorted(path.name for path in out.iterdir()) == ["bad.log", "good.log", "report.md", "results.json"]
    assert "$ " in (out / "bad.log").read_text(encoding="utf-8")
    assert "1 part with a failure" in capsys.readouterr().out


def test_a_report_names_card_data_and_result() -> None:
    content = {
        **HEAD,
        "device": "cuda",
        "machine": {**MACHINE, "card": "NVIDIA H100", "memory_gb": 85.0, "driver": "580"},
        "data": {"tokens": {"pretrain": 5000}, "from": {"pretrain": "text.jsonl"}},
        "parts": {
            "speed": {
                "status": "done", "seconds": 61.2, "limit_seconds": 150.0, "result": "1 of 1 checks ok; fast",
                "details": ["more"], "checks": [{"check": "train", "status": OK, "seconds": 60.0, "tokens_per_s": 1234567}],
            }
        },
    }  # fmt: skip
    lines = report(content)
    assert "| 2026-11-27 | NVIDIA H100 | `bash benchmarks/on_gpu.sh --parts speed` | 1 of 1 checks ok; fast |" in lines
    assert "tokens: pretrain 5,000 (text.jsonl)" in lines
    assert "| train | ok | 60.0 | tokens_per_s 1,234,567 |" in lines and "more" in lines


# --- the tokens -----------------------------------------------------------------------------------


def test_prepared_tokens_open_with_the_product_s_own_readers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "records")
    files = {stage: tmp_path / "records" / f"{stage}.jsonl" for stage in ("pretrain", "sft", "dpo")}
    recipe, folder = Recipe.of(tiny=True, files=files), tmp_path / "on_gpu"
    found = prepare(folder, recipe)
    assert found["from"] == {stage: f"{stage}.jsonl" for stage in files}
    lengths = recipe.row_tokens
    kinds = {"pretrain": PretrainDataset, "sft": SFTDataset, "dpo": DPODataset}
    for stage, kind in kinds.items():
        rows = kind(tensors(folder, stage, lengths[stage]))
        assert len(rows) and rows.batch(rows.largest(1))["input_ids"].shape[0] == (2 if stage == "dpo" else 1)
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    corpus = prepare_corpus(
        folder / "corpus", None, tokenizer, row_tokens=lengths["pretrain"]
    )  # as train_speed.py does
    assert corpus.facts["documents"] == 57
    assert prepared(folder, recipe) == found
    assert prepared(tmp_path / "nowhere", recipe) is None
    assert prepared(folder, Recipe.of(tiny=False)) is None
    assert "made for other rows" in capsys.readouterr().out


def test_what_no_file_is_given_for_comes_from_the_bundled_samples(tmp_path: Path) -> None:
    write_records(tmp_path / "records")
    found = prepare(
        tmp_path / "on_gpu", Recipe.of(tiny=True, files={"pretrain": tmp_path / "records" / "pretrain.jsonl"})
    )
    assert found["from"] == {"pretrain": "pretrain.jsonl", "sft": BUNDLED, "dpo": BUNDLED}
    assert (tmp_path / "on_gpu" / "sft_tokens" / "validation").is_dir()
    assert not list((tmp_path / "on_gpu").glob(".*"))


# --- what a GPU will be asked to do ---------------------------------------------------------------


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
    monkeypatch.setattr(gpu_parts, "weights", lambda session, check, stage: Path("full_sft_512.pth"))
    monkeypatch.setattr(gpu_parts, "latest_weights", lambda stem, folder: Path(f"{stem}_512.pth"))
    monkeypatch.setattr(gpu_parts, "ask", lambda *words, environment: ["scripts/program.py", *words])
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


def test_several_checks_run_at_once_only_where_card_and_cores_have_room(session: Session, monkeypatch: Any) -> None:
    session.device = "cuda"
    for memory, cores, at_once in ((85.0, 16, 4), (42.0, 16, 2), (8.0, 16, 1), (85.0, 2, 1)):
        monkeypatch.setattr("benchmarks.gpu.checks.num_cores", lambda cores=cores: cores)
        session.machine = {**MACHINE, "memory_gb": memory}
        assert session.at_once == at_once


# --- what checks make of what they find -----------------------------------------------------------


def test_a_run_that_falls_back_or_does_not_learn_has_failed(tmp_path: Path) -> None:
    learnt = json.dumps({"first_loss": 8.7, "last_loss": 7.1})
    assert of_training(True, Ended(f"noise\n{learnt}"))["last_loss"] == 7.1
    with pytest.raises(CheckFailed, match="FlexAttention cannot be used here"):
        of_training(True, Ended(learnt, "FlexAttention cannot be used here (RuntimeError: x)"))
    for last in ("8.8", "NaN"):
        with pytest.raises(CheckFailed, match="the loss does not fall"):
            of_training(True, Ended(f'{{"first_loss": 8.7, "last_loss": {last}}}'))
    assert of_training(False, Ended('{"first_loss": 0.69, "last_loss": 0.70}'))["last_loss"] == 0.7


def test_compiled_steps_must_have_the_losses_of_eager_ones(session: Session) -> None:
    session.part = "steps"
    session.results.begin("steps", 60.0)
    eager = {"losses": [8.7, 8.1, 7.5]}
    compare(session, "near", eager, {"losses": [8.7, 8.11, 7.49]})
    compare(session, "far", eager, {"losses": [8.7, 8.2, 7.5]})
    compare(session, "broken", eager, {"losses": [8.7, math.nan, 7.5]})
    compare(session, "missing", eager, None)
    rows = written(session)["parts"]["steps"]["checks"]
    assert [(row["check"], row["status"]) for row in rows] == [("near", OK), ("far", FAILED), ("broken", FAILED)]


def test_with_less_memory_the_micro_batch_must_shrink_or_the_run_end_in_one_line(
    session: Session, tmp_path: Path
) -> None:
    session.part = "steps"
    session.results.begin("steps", 60.0)
    assert memory_checks(session, {"check": "pretrain eager", "status": OK}) == []  # a CPU: noted as not run
    assert {row["error"] for row in written(session)["parts"]["steps"]["checks"]} == {"needs a GPU"}
    halved, refused = memory_checks(session, {"peak_memory_gb": 10.0, "micro_batch": 16})
    assert "--memory_gb" in halved.command and "6.000" in halved.command
    for rows, is_well in ((8, True), (16, False)):
        text = json.dumps({"first_loss": 8.7, "last_loss": 7.1, "micro_batch": rows})
        if is_well:
            assert halved.read(Ended(text))["micro_batch"] == 8
        else:
            with pytest.raises(CheckFailed, match="not halved: 16 rows"):
                halved.read(Ended(text))
    assert refused.code == 1
    line = "error: batch_size = 16: a micro-batch of so many rows does not fit the GPU's memory. Pass a smaller one."
    assert refused.read(Ended("", f"pretrain: 16 rows\n{line}"))["said"] == line
    with pytest.raises(CheckFailed, match="not the one line"):
        refused.read(Ended("", "Traceback (most recent call last):\nOutOfMemoryError"))


def test_a_talk_is_read_answer_by_answer(tmp_path: Path) -> None:
    questions = [question for turns in TALKS for question in turns]
    said = [f"答{number}\n第二行" for number in range(len(questions))]
    out, number = "", 0
    for turns in TALKS:
        out += "你: " if number else ""  # /new, which is answered by another question
        for _ in turns:
            out += f"你: 模型: {said[number]}\n"
            number += 1
    talk = of_talk(Ended(f"{out}你: \n"))["talk"]
    assert talk == [list(pair) for pair in zip(questions, said, strict=True)]
    with pytest.raises(CheckFailed, match="11 answers to 12 questions"):
        of_talk(Ended(out.rpartition("你: 模型: ")[0]))


def test_failures_of_pytest_come_with_their_tracebacks(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="one"/><testcase classname="a" name="two">'
        '<failure message="m">line\nE assert 1 == 2</failure></testcase><testcase classname="b" name="three">'
        "<skipped/></testcase></testsuite></testsuites>"
    )
    found = of_junit(path, Ended("", ""))
    assert (found["passed"], found["failed_tests"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == [{"test": "a::two", "traceback": "line\nE assert 1 == 2"}]
    rows: Mapping[str, Row] = {"tests of attention": {**found, "status": FAILED}}
    assert gpu_parts.tests_details(rows)[-1] == "- a::two: E assert 1 == 2"


# --- probes ---------------------------------------------------------------------------------------


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    """A trainer's signal handlers do not outlive the test."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def last_line(capsys: pytest.CaptureFixture[str]) -> Row:
    found: Row = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.usefixtures("handlers_kept")
def test_a_trainer_is_watched_from_inside(tiny: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    flags = tiny.flags("pretrain", "--max_steps", "8", "--from_resume", "0", "--tf_dir", str(tiny.out / "new"))
    assert probes.main(["train", "pretrain", "--profile_steps", "2", "--", *flags]) == 0
    found = last_line(capsys)
    assert len(found["losses"]) == 8 and found["last_loss"] < found["first_loss"]
    assert (found["micro_batch"], found["accumulation"], found["dtype"]) == (2, 2, "float32")
    assert found["tokens_per_s"] > 0 and found["kernels"][0]["ms"] >= found["kernels"][-1]["ms"] > 0
    assert "peak_memory_gb" not in found


@pytest.mark.usefixtures("handlers_kept")
def test_too_few_steps_to_tell_a_speed_are_refused(tiny: TinyRun) -> None:
    flags = tiny.flags("pretrain", "--max_steps", "3", "--from_resume", "0", "--tf_dir", str(tiny.out / "new"))
    with pytest.raises(UserError, match="3 steps, too few"):
        probes.main(["train", "pretrain", "--", *flags])


def test_attention_and_decoding_are_measured_on_a_cpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--rows", "1", "--heads", "4", "--tokens", "40", "--head_dim", "10"]
    assert probes.main(["attention", "--device", "cpu", *size]) == 0
    assert last_line(capsys)["blocked_float32_error"] < 1e-5
    assert (
        probes.main(["decode", "--device", "cpu", "--model", "32x1", "--batch_sizes", "1", "3", "--tokens", "3"]) == 0
    )
    found = last_line(capsys)
    assert found["tokens_per_s_batch_1"] > 0 and found["tokens_per_s_batch_3"] > 0


def test_attention_that_is_wrong_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = probes.blocked_attention
    monkeypatch.setattr(probes, "blocked_attention", lambda q, k, v, bias: 1.1 * right(q, k, v, bias))
    assert probes.main(["attention", "--device", "cpu", "--rows", "1", "--tokens", "24", "--head_dim", "8"]) == 1
    assert "blocked in float32: values, dq, dk, dv are off by" in last_line(capsys)["problem"]

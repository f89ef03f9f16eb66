"""`run.sh` with fake stages: what it runs, what it leaves alone, how it stops and resumes."""

import functools
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts.fake_repository import DOCTOR, ROOT, TRAINER, FakeRepository

ALL = ["mix", "tokenizer", "export", "pretrain", "sft", "dpo"]
UP_TO_DATE = [f"{stage}: up to date" for stage in ["env", *ALL]]
DPO_ALONE = ["train_dpo", "evaluate_stage"]
SFT_AND_DPO = ["train_full_sft", "evaluate_stage", *DPO_ALONE]


@pytest.fixture
def fresh(tmp_path: Path) -> FakeRepository:
    """A clone in which nothing has run."""
    return FakeRepository(tmp_path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> FakeRepository:
    """A finished run, made once."""
    repository = FakeRepository(tmp_path_factory.mktemp("template"))
    result = repository.run()
    assert result.code == 0, result.errors
    return repository


@pytest.fixture
def done(tmp_path: Path, template: FakeRepository) -> FakeRepository:
    """A copy of a finished run."""
    repository = FakeRepository(tmp_path)
    repository.take_results_of(template)
    return repository


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail if it never does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def waiting_pid(repository: FakeRepository, process: subprocess.Popen[str]) -> int:
    """The process id of the fake that waits at the gate; returns as soon as one waits."""
    path = Path(f"{repository.log}.waiting")
    wait_until(lambda: process.poll() is not None or (path.exists() and path.read_text() != ""))
    pid = int(path.read_text())
    path.unlink()
    return pid


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read a run's output until a line holds this text."""
    assert process.stdout is not None
    while text not in (line := process.stdout.readline()):
        assert line, f"the run ended without saying: {text}"


# --- a plain run ----------------------------------------------------------------------------------


def test_a_first_run_passes_every_stage_in_order_and_says_how_to_chat(fresh: FakeRepository) -> None:
    result = fresh.run()
    assert result.code == 0, result.errors
    assert result.stages() == ["env: up to date", *(f"{s}: {what}" for s in ALL for what in ("start", "done"))]
    assert fresh.names() == [
        "build_chinese_mix",
        "export_embeddings-pretrain",
        "export_embeddings-sft",
        "export_embeddings-dpo",
        "train_pretrain",
        "evaluate_stage",
        "train_full_sft",
        "evaluate_stage",
        "train_dpo",
        "evaluate_stage",
    ]
    assert [line["stage"] for line in fresh.results()] == ["pretrain", "sft", "dpo"]
    assert len({line["run_id"] for line in fresh.results()}) == 1
    assert "eval_model.py --model_mode 2" in result.output
    assert result.output.endswith("Report: | 报告：\n  out/report.html\n")
    assert "profile: cpu (hardware: no NVIDIA GPU)" in result.output


def test_a_report_that_fails_leaves_a_run_complete(done: FakeRepository) -> None:
    result = done.run(FAKE_FAIL="run_report")
    assert (result.code, result.stages()) == (0, UP_TO_DATE)
    assert "the report could not be written" in result.output


def test_a_second_run_does_nothing_and_says_so(done: FakeRepository) -> None:
    result = done.run()
    assert (result.code, result.stages(), done.names()) == (0, UP_TO_DATE, [])
    assert "everything is up to date" in result.output
    assert "doctor was here" not in result.output  # the doctor imports torch


def test_each_trainer_starts_from_the_weights_of_the_stage_before(fresh: FakeRepository) -> None:
    fresh.run()
    calls = {call["name"]: call["argv"] for call in fresh.calls()}
    assert "--from_weight" not in calls["train_pretrain"]
    assert calls["train_full_sft"][-1] == str(fresh.root / "out" / "pretrain_192.pth")
    assert calls["train_dpo"][-1] == str(fresh.root / "out" / "full_sft_192.pth")


def test_relative_folders_are_relative_to_where_the_user_stands(fresh: FakeRepository) -> None:
    elsewhere = fresh.folder / "elsewhere"
    elsewhere.mkdir()
    result = fresh.run(cwd=elsewhere, DATA_DIR="d", OUT_DIR="o", TF_DIR="t", VENV_DIR="../venv")
    assert result.code == 0, result.errors
    assert (elsewhere / "o" / "rlhf_192.pth").exists()
    assert (elsewhere / "d" / "pretrain_chinese.jsonl").exists()
    assert (elsewhere / "t" / "eval_results.jsonl").exists()
    assert not (fresh.root / "out").exists()


def test_a_gpu_makes_it_the_default_profile_and_more_than_one_starts_torchrun(fresh: FakeRepository) -> None:
    gpus = "default 2 2 2 x NVIDIA Something"
    result = fresh.run(FAKE_HARDWARE=gpus, FAKE_HIDDEN="512")
    assert result.code == 0, result.errors
    assert "profile: default (hardware: 2 x NVIDIA Something)" in result.output
    assert "python trainer/torchrun.py --standalone --nproc_per_node 2 trainer/train_pretrain.py" in result.output
    one = fresh.run("--from-stage", "dpo", FAKE_HARDWARE=gpus, FAKE_HIDDEN="512", NUM_GPUS="1")
    assert one.code == 0, one.errors
    assert "torchrun" not in one.output


# --- what redoes what -----------------------------------------------------------------------------


def test_changed_dpo_args_redo_dpo_alone(done: FakeRepository) -> None:
    assert done.run(DPO_ARGS="--beta 0.2").started() == ["dpo"]
    assert done.names() == DPO_ALONE
    assert [line["stage"] for line in done.results()] == ["pretrain", "sft", "dpo", "dpo"]
    assert done.results()[-1]["run_id"] != done.results()[-2]["run_id"]


def test_changed_sft_args_redo_sft_and_dpo_under_one_new_run_id(done: FakeRepository) -> None:
    assert done.run(SFT_ARGS="--learning-rate 0.02").started() == ["sft", "dpo"]
    assert done.names() == SFT_AND_DPO
    assert len({line["run_id"] for line in done.results()[3:]}) == 1


def test_a_log_interval_redoes_nothing(done: FakeRepository) -> None:
    assert done.run(SFT_ARGS="--log_interval 3", PRETRAIN_ARGS="--num_workers 1").stages() == UP_TO_DATE


def test_an_output_cut_short_redoes_its_stage_and_those_whose_input_changed(done: FakeRepository) -> None:
    os.truncate(done.root / "out" / "full_sft_192.pth", 5)
    assert done.run().started() == ["sft"]  # the weights came out the same, so DPO stands
    os.truncate(done.root / "data" / "processed" / "sft_chinese.jsonl", 2)
    assert done.run().started() == ["mix"]
    (done.root / "data" / "processed" / "dpo_tokens" / "input_ids.npy").unlink()
    assert done.run().started() == ["export"]
    assert done.run().stages() == UP_TO_DATE


def test_a_missing_result_line_is_evaluated_again_without_training(done: FakeRepository) -> None:
    results = done.root / "tf_dir" / "eval_results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:2]))
    result = done.run()
    assert result.started() == ["dpo"]
    assert "trained already" in result.output
    assert [line["stage"] for line in done.results()] == ["pretrain", "sft", "dpo"]


def test_a_new_source_file_redoes_everything_from_the_mix(done: FakeRepository) -> None:
    done.write("data/chinese/sft_mine.jsonl", '{"conversations": []}\n')
    assert done.run().started() == ["mix"]  # these fakes mix the same from any source, so the rest stands


def test_the_identity_file_that_the_mix_creates_is_no_new_source(done: FakeRepository) -> None:
    done.write("data/chinese/identity_conversations.jsonl", "{}\n")
    assert done.run().stages() == UP_TO_DATE
    done.write("data/chinese/identity_conversations.jsonl", '{"edited": 1}\n')
    assert done.run().started() == ["mix"]


def test_a_longer_row_exports_and_trains_again(done: FakeRepository) -> None:
    assert done.run(DPO_ARGS="--max_seq_len 512").started() == ["export", "dpo"]


def test_another_profile_keeps_the_weights_of_the_first(done: FakeRepository) -> None:
    result = done.run("--profile", "default", FAKE_HIDDEN="512")
    assert result.code == 0, result.errors
    assert result.started() == ["mix", "export", "pretrain", "sft", "dpo"]
    assert (done.root / "out" / "pretrain_192.pth").exists()
    done.names()
    back = done.run("--profile", "cpu")
    assert back.started() == ["mix", "export", "pretrain", "sft", "dpo"]
    assert back.output.count("trained already") == 3


def test_from_stage_redoes_it_and_all_after_it(done: FakeRepository) -> None:
    assert done.run("--from-stage", "sft").started() == ["sft", "dpo"]
    assert done.names() == SFT_AND_DPO
    assert done.run("--from_stage=dpo").output.count("from step 0") == 1


def test_until_stage_ends_after_it(fresh: FakeRepository) -> None:
    assert fresh.run("--until-stage", "env").stages() == ["env: up to date"]
    assert fresh.run("--until-stage", "tokenizer").started() == ["mix", "tokenizer"]
    assert fresh.run("--until-stage=tokenizer").stages()[-1] == "tokenizer: up to date"


def test_fresh_redoes_all_stages_even_when_it_is_interrupted_and_resumes_without_the_flag(done: FakeRepository) -> None:
    assert done.run("--fresh", FAKE_FAIL="train_pretrain before").code == 1
    done.names()
    assert done.run().started() == ["pretrain", "sft", "dpo"]
    assert len(done.results()) == 6
    assert len({line["run_id"] for line in done.results()}) == 2


def test_the_smoke_test_runs_afresh_in_its_own_folders(done: FakeRepository) -> None:
    weights = done.root / "out" / "pretrain_192.pth"
    before = weights.stat().st_mtime_ns
    for count in (6, 9):
        result = done.run("--smoke-test", FAKE_HIDDEN="64")
        assert result.code == 0, result.errors
        assert result.started() == ALL
        assert result.output.count("from step 0") == 3
        assert len(done.results()) == count
    assert sorted(path.name for path in (done.root / "out" / "smoke").glob("*.pth")) == [
        "full_sft_64.pth",
        "pretrain_64.pth",
        "rlhf_64.pth",
    ]
    assert weights.stat().st_mtime_ns == before
    assert done.run().stages() == UP_TO_DATE


# --- mistakes -------------------------------------------------------------------------------------


def test_quotes_in_extra_flags_are_honoured_and_nothing_in_them_is_run(fresh: FakeRepository) -> None:
    data = fresh.folder / "my data $(touch x).jsonl"
    data.write_text("{}\n")
    result = fresh.run(PRETRAIN_ARGS=f"--data_path '{data}' --epochs 1")
    assert result.code == 0, result.errors
    call = next(call for call in fresh.calls() if call["name"] == "train_pretrain")
    assert call["argv"][-4:] == ["--data_path", str(data), "--epochs", "1"]
    assert not (fresh.root / "x").exists()


@pytest.mark.parametrize(
    ("flags", "variables", "code", "message"),
    [
        (["--nonsense"], {}, 2, "unknown flag --nonsense"),
        (["--from-stage", "lunch"], {}, 2, "must be one of env mix tokenizer"),
        (["--smoke-test", "--profile", "cpu"], {}, 2, "leave out --profile"),
        (["--until-stage"], {}, 2, "--until-stage needs a name"),
        ([], {"DPO_ARGS": "--betta 1"}, 2, "DPO_ARGS: error: unrecognized arguments"),
        ([], {"DPO_ARGS": "--beta 'x"}, 1, "error: DPO_ARGS: can't be split into words"),
        ([], {"SFT_ARGS": "--epochs 0"}, 1, "SFT_ARGS: epochs = 0"),
        ([], {"SFT_ARGS": "--out_dir x"}, 1, "Use OUT_DIR"),
        ([], {"NUM_GPUS": "many"}, 1, "error: NUM_GPUS=many"),
        ([], {"ENABLE_RUSTBPE": "yes"}, 1, "error: ENABLE_RUSTBPE=yes"),
        (["--profile", "huge"], {}, 1, "no such file. Profiles there are: cpu, default, smoke"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    fresh: FakeRepository, flags: list[str], variables: dict[str, str], code: int, message: str
) -> None:
    result = fresh.run(*flags, **variables)
    assert result.code == code
    assert message in result.errors
    assert result.errors.count("error:") == 1
    assert fresh.names() == []


def test_a_folder_that_can_not_be_written_is_named(fresh: FakeRepository) -> None:
    (fresh.folder / "file").touch()
    result = fresh.run(OUT_DIR=str(fresh.folder / "file" / "out"))
    assert result.code == 1
    assert result.errors.startswith(f"error: {fresh.folder}/file/out: can't be written")
    assert result.errors.count("\n") == 1


def test_help_speaks_both_languages(fresh: FakeRepository) -> None:
    result = fresh.run("--help")
    assert result.code == 0
    assert "--smoke-test" in result.output
    assert "冒烟测试" in result.output


def test_a_stage_that_fails_stops_the_run_and_the_next_one_resumes_there(fresh: FakeRepository) -> None:
    result = fresh.run(FAKE_FAIL="export_embeddings-sft before")
    assert result.code == 1
    assert result.stages()[-1] == "export: start"
    assert result.errors.splitlines() == [
        "error: asked to fail",
        "stage export: failed (exit 1). Fix the cause above, then rerun the same command to resume here. "
        "| 失败：请按上面的提示修正，再次运行同一命令即可继续",
    ]
    assert fresh.run().started() == ["export", "pretrain", "sft", "dpo"]


# --- stopped, killed, run twice -------------------------------------------------------------------


def test_a_trainer_that_ended_after_a_save_resumes_from_it(done: FakeRepository) -> None:
    assert done.run(DPO_ARGS="--beta 0.3", FAKE_FAIL="train_dpo after a save").code == 1
    result = done.run(DPO_ARGS="--beta 0.3")
    assert result.output.count("resumed") == 1
    assert [line["stage"] for line in done.results()] == ["pretrain", "sft", "dpo", "dpo"]


def test_changed_settings_do_not_resume_from_a_save_of_others(done: FakeRepository) -> None:
    assert done.run(DPO_ARGS="--beta 0.3", FAKE_FAIL="train_dpo after a save").code == 1
    assert "from step 0" in done.run(DPO_ARGS="--beta 0.4").output


def test_a_kill_between_the_result_line_and_the_mark_adds_no_second_line(fresh: FakeRepository) -> None:
    assert fresh.run(FAKE_FAIL="evaluate_stage sft after the line").code == 1
    result = fresh.run()
    assert result.started() == ["sft", "dpo"]
    assert "trained already" in result.output
    assert [line["stage"] for line in fresh.results()] == ["pretrain", "sft", "dpo"]
    assert len({line["run_id"] for line in fresh.results()}) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_running_command_and_gives_its_exit_code(
    done: FakeRepository, number: signal.Signals, code: int
) -> None:
    done.gate.touch()
    process = done.start("--from-stage", "dpo", FAKE_WAIT="train_dpo")
    child = waiting_pid(done, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert done.run().started() == ["dpo"]


def test_a_signal_between_two_programs_says_how_to_resume(done: FakeRepository) -> None:
    stage = done.root / "scripts" / "pipeline" / "ask.py"
    real = stage.read_text()
    stage.write_text("import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\n" + real)
    for flags, words in (
        ([], "stopped (SIGINT); the same command resumes from here | 已停止；再次运行同一命令即可继续"),
        (
            ["--from-stage", "dpo"],
            "stopped (SIGINT); the same command without --fresh and --from-stage resumes from here "
            "| 已停止；去掉 --fresh 和 --from-stage 再次运行即可继续",
        ),
        (["--smoke-test"], "stopped (SIGINT); --smoke-test starts afresh each time | 已停止；冒烟测试每次从头开始"),
    ):
        result = done.run(*flags)
        assert result.code == 130
        assert result.output.splitlines()[-1] == words
        assert result.errors == ""


@pytest.mark.parametrize("flags", [[], ["--smoke-test"]])
def test_a_command_that_was_stopped_itself_says_how_to_resume(done: FakeRepository, flags: list[str]) -> None:
    done.write("scripts/doctor.py", DOCTOR + "if '--hardware' not in sys.argv: sys.exit(143)\n")
    result = done.run("--from-stage", "dpo") if not flags else done.run(*flags)
    assert result.code == 143
    assert result.output.splitlines()[-1].startswith("stopped (SIGTERM); ")


def test_a_killed_command_is_told_of_in_one_line(done: FakeRepository) -> None:
    done.gate.touch()
    process = done.start("--from-stage", "dpo", FAKE_WAIT="train_dpo")
    os.kill(waiting_pid(done, process), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines() == [
        "error: stage dpo: killed (exit 137), often for lack of memory. Free some, then rerun the same command to resume here. "
        "| 被系统终止，多半是内存不足：释放内存后再次运行同一命令即可继续"
    ]


def test_a_second_signal_ends_the_command_at_once_without_words_of_bash(done: FakeRepository) -> None:
    done.write("trainer/train_dpo.py", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + TRAINER)
    done.gate.touch()
    process = done.start("--from-stage", "dpo", FAKE_WAIT="train_dpo")
    child = waiting_pid(done, process)
    process.send_signal(signal.SIGINT)
    wait_for_line(process, "stopping on SIGINT")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert output.splitlines()[-1].startswith("stopped (SIGINT); ")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# --- how it is started ----------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["run.sh", "run_cn_pipeline.sh"])
def test_sh_starts_it_too(fresh: FakeRepository, script: str) -> None:
    shown = subprocess.run(
        ["sh", f"scripts/{script}", "--help"], cwd=fresh.root, env=fresh.environment, capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--smoke-test" in shown.stdout


def test_a_bash_that_is_called_sh_starts_it_too(fresh: FakeRepository) -> None:
    sh = fresh.folder / "bin" / "sh"
    sh.symlink_to(shutil.which("bash") or "/bin/bash")
    shown = subprocess.run(
        [sh, "scripts/run.sh", "--until-stage", "env"],
        cwd=fresh.root,
        env=fresh.environment,
        capture_output=True,
        text=True,
    )
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("script", ["run.sh", "run_cn_pipeline.sh"])
def test_a_symbolic_link_is_followed_to_the_repository(fresh: FakeRepository, script: str) -> None:
    (fresh.folder / "links").mkdir()
    (fresh.folder / "first").symlink_to(fresh.root / "scripts" / script)
    (fresh.folder / "links" / "second").symlink_to("../first")
    shown = subprocess.run(
        ["bash", "second", "--until-stage", "env"],
        cwd=fresh.folder / "links",
        env=fresh.environment | {"ENV_TOOL": "pip"},
        capture_output=True,
        text=True,
    )
    if script == "run.sh":
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "stage env: up to date" in shown.stdout
    else:  # this one wants uv, which may not be here; in both cases it was run.sh that spoke
        assert shown.returncode == 0 or shown.stderr.startswith("error: uv: not found")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--smoke", "--smoke-test"),
        ("--smoke_tests", "--smoke-test"),
        ("--prof=cpu", "--profile"),
        ("--until", "--until-stage"),
        ("-h2", ""),
        ("--", ""),
        ("smoke-test", "--smoke-test"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_one_that_was_meant(fresh: FakeRepository, typed: str, meant: str) -> None:
    result = fresh.run(typed)
    assert result.code == 2
    question = f": did you mean {meant}?" if meant else ""
    assert result.errors == f"error: unknown flag {typed}{question} (see --help) | 没有这个参数，用法见 --help\n"


def test_a_checkout_with_windows_line_ends_keeps_those_that_a_shell_reads(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    names = ["scripts/run.sh", "configs/cpu.yaml", "eval_model.py", ".ci/run", "requirements.txt", ".gitattributes"]
    source = tmp_path / "source"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)

    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "core.autocrlf=true"]
        subprocess.run(["git", *who, *words], cwd=source, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    git("clone", ".", "../crlf")
    assert [name for name in names if b"\r\n" in (tmp_path / "crlf" / name).read_bytes()] == []


def test_two_runs_in_one_folder_take_turns(done: FakeRepository) -> None:
    done.gate.touch()
    first = done.start("--from-stage", "dpo", FAKE_WAIT="train_dpo")
    waiting_pid(done, first)
    second = done.start()
    wait_for_line(second, "another run is using it")
    done.gate.unlink()
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert "stage dpo: up to date" in output
    assert done.names().count("train_dpo") == 1


def test_after_a_kill_of_run_sh_alone_the_next_run_waits_for_the_trainer_that_is_left(done: FakeRepository) -> None:
    done.gate.touch()
    first = done.start("--from-stage", "dpo", FAKE_WAIT="train_dpo")
    waiting_pid(done, first)
    first.kill()
    first.wait()
    second = done.start()
    wait_for_line(second, "another run is using it")
    done.gate.unlink()
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert "stage dpo: start" in output
    assert done.names() == ["train_dpo", "train_dpo ended", *DPO_ALONE]


# --- the environment ------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> FakeRepository:
    """A clone on a machine where nothing is installed and the run ends at the mix."""
    return FakeRepository(tmp_path, installed=False, environment={"FAKE_FAIL": "build_chinese_mix before"})


def closed_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_the_environment_is_made_once_and_again_when_the_requirements_change(bare: FakeRepository) -> None:
    index = closed_port()
    assert bare.run(TORCH_INDEX_URL=index).started() == ["env", "mix"]
    assert bare.installations() == [f"-m pip install -r {bare.root}/requirements.txt"]
    assert bare.run(TORCH_INDEX_URL=index).stages()[0] == "env: up to date"
    assert bare.installations() == []
    bare.write("requirements.txt", "torch>=2.9\ntqdm\nnumpy\n")
    assert bare.run(TORCH_INDEX_URL=index).started() == ["env", "mix"]
    assert len(bare.installations()) == 1


def test_an_installation_that_failed_is_not_taken_for_a_finished_one(bare: FakeRepository) -> None:
    index = closed_port()
    result = bare.run(TORCH_INDEX_URL=index, FAKE_PIP_EXIT="1")
    assert result.code == 1
    assert "error: requirements.txt: the installation failed" in result.errors
    assert not (bare.venv / ".deps_installed").exists()
    assert bare.run(TORCH_INDEX_URL=index).started() == ["env", "mix"]


def test_an_index_that_can_not_be_reached_gives_way_to_the_ordinary_package(bare: FakeRepository) -> None:
    index = closed_port()
    result = bare.run(TORCH_INDEX_URL=index)
    assert f"{index}: can't be reached within 5 seconds; taking the ordinary torch package" in result.output


def test_an_index_that_answers_gives_torch_and_the_rest_comes_from_where_it_always_does(bare: FakeRepository) -> None:
    (bare.folder / "index" / "torch").mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=bare.folder / "index")
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}"
        bare.run(TORCH_INDEX_URL=index)
        server.shutdown()
    assert bare.installations() == [
        f"-m pip install --index-url {index} torch>=2.9",
        f"-m pip install -r {bare.root}/requirements.txt",
    ]


def test_from_stage_env_installs_again(done: FakeRepository) -> None:
    result = done.run("--from-stage", "env", TORCH_INDEX_URL=closed_port())
    assert result.started() == ["env", *ALL]
    assert len(done.installations()) == 1


def test_a_python_that_is_too_old_is_refused(bare: FakeRepository) -> None:
    result = bare.run(FAKE_VERSION="3.9.2")
    assert result.code == 1
    assert "Python 3.9.2: Python 3.10 or later is needed" in result.errors
    assert not bare.venv.exists()


def test_a_folder_that_is_no_environment_is_left_alone(bare: FakeRepository) -> None:
    bare.venv.mkdir()
    (bare.venv / "diary.txt").touch()
    result = bare.run(TORCH_INDEX_URL=closed_port())
    assert result.code == 1
    assert "neither empty nor a Python environment" in result.errors
    assert (bare.venv / "diary.txt").exists()


def test_the_cn_pipeline_makes_the_environment_with_uv(bare: FakeRepository) -> None:
    calls = bare.folder / "uv-calls"
    script = f'#!/bin/sh\necho "$*" >>{calls}\n[ "$1" != venv ] || {bare.python} -m venv "$4"\n'
    bare.executable("bin/uv", script)
    path = f"{bare.folder}/bin:{os.environ['PATH']}"
    result = bare.run(script="run_cn_pipeline.sh", PATH=path, TORCH_INDEX_URL=closed_port())
    assert result.started() == ["env", "mix"]
    assert calls.read_text().splitlines() == [
        f"venv --python {bare.python} {bare.venv}",
        f"pip install --python {bare.venv}/bin/python -r {bare.root}/requirements.txt",
    ]


def test_the_cn_pipeline_says_how_to_get_uv(bare: FakeRepository) -> None:
    tools = bare.folder / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "dirname", "mkdir"):
        found = next(Path(folder, name) for folder in os.environ["PATH"].split(":") if Path(folder, name).exists())
        (tools / name).symlink_to(found)
    result = bare.run(script="run_cn_pipeline.sh", PATH=str(tools))
    assert result.code == 1
    assert "error: uv: not found. Install it with 'pip install uv'" in result.errors


def maturin_calls(repository: FakeRepository) -> list[str]:
    path = Path(f"{repository.log}.maturin")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_the_crate_is_built_once_and_again_where_its_sources_changed(fresh: FakeRepository) -> None:
    path = fresh.with_rust()
    assert fresh.run("--until-stage", "env", PATH=path).stages() == ["env: up to date"]
    assert fresh.run("--until-stage", "env", ENABLE_RUSTBPE="1", PATH=path).started() == ["env"]
    assert maturin_calls(fresh) == [
        f"develop --release --manifest-path {fresh.root}/rustbpe/Cargo.toml in {fresh.venv}"
    ]
    assert fresh.run("--until-stage", "env", ENABLE_RUSTBPE="1", PATH=path).stages() == ["env: up to date"]
    assert maturin_calls(fresh) == []
    fresh.write("rustbpe/src/lib.rs", "// changed")
    assert fresh.run("--until-stage", "env", ENABLE_RUSTBPE="1", PATH=path).started() == ["env"]
    assert len(maturin_calls(fresh)) == 1
    assert fresh.installations() == []


def test_an_environment_that_cannot_be_changed_is_one_line_with_the_variable(fresh: FakeRepository) -> None:
    mark = fresh.venv / ".deps_installed"
    mark.unlink(missing_ok=True)
    mark.mkdir(parents=True)  # `rm -f` fails on it for whoever runs the tests
    result = fresh.run("--from-stage", "env", "--until-stage", "env")
    assert result.code == 1
    assert len(result.errors.splitlines()) == 1
    assert re.search(r"error: .*: can't be changed\. .*VENV_DIR", result.errors)


def test_a_crate_whose_build_failed_is_built_again(fresh: FakeRepository) -> None:
    path = fresh.with_rust()
    result = fresh.run(ENABLE_RUSTBPE="1", PATH=path, FAKE_MATURIN_EXIT="1")
    assert result.code == 1
    assert "error: rustbpe: the crate can't be built (exit 1)" in result.errors
    assert fresh.run("--until-stage", "env", ENABLE_RUSTBPE="1", PATH=path).started() == ["env"]


def test_a_trained_tokenizer_serves_every_later_stage_until_it_is_switched_off(fresh: FakeRepository) -> None:
    path = fresh.with_rust()
    assert fresh.run(ENABLE_RUSTBPE="1", PATH=path).started() == ["env", *ALL]
    trained = str(fresh.root / "out" / "tokenizer")
    calls = fresh.calls()
    assert calls[1]["name"] == "train_rustbpe_tokenizer"
    data = fresh.root / "data" / "processed"
    texts = [str(data / f"{stage}_chinese.jsonl") for stage in ("pretrain", "sft", "dpo")]
    assert calls[1]["argv"] == ["--input", *texts, "--output", trained, "--vocab_size", "6400"]
    later = [call["argv"] for call in calls[2:]]
    assert len(later) == 9
    assert all(words[words.index("--tokenizer_dir") + 1] == trained for words in later)
    assert fresh.run(ENABLE_RUSTBPE="1", PATH=path).stages() == UP_TO_DATE
    assert fresh.run(PATH=path).started() == ["tokenizer", "export", "pretrain", "sft", "dpo"]
    assert (fresh.root / "out" / "tokenizer.previous" / "tokenizer.pkl").is_file()
    later = [call["argv"] for call in fresh.calls()]
    assert all(words[words.index("--tokenizer_dir") + 1] == str(fresh.root / "model") for words in later)


def test_with_uv_the_crate_is_installed_with_uv(fresh: FakeRepository) -> None:
    path = fresh.with_rust()
    fresh.executable("bin/uv", "#!/bin/sh\nexit 0\n")
    result = fresh.run("--until-stage", "env", script="run_cn_pipeline.sh", ENABLE_RUSTBPE="1", PATH=path)
    assert result.started() == ["env"]
    assert maturin_calls(fresh)[0].endswith(f"/rustbpe/Cargo.toml --uv in {fresh.venv}")


def test_without_cargo_it_says_what_is_missing_and_how_to_get_it(fresh: FakeRepository) -> None:
    fresh.with_rust()
    tools = fresh.folder / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "dirname", "mkdir", "cat", "rm", "mv", "cmp"):
        found = next(Path(folder, name) for folder in os.environ["PATH"].split(":") if Path(folder, name).exists())
        (tools / name).symlink_to(found)
    result = fresh.run(ENABLE_RUSTBPE="1", PATH=str(tools), HOME=str(tools), CARGO_HOME=str(tools))
    assert result.code == 1
    assert "error: cargo: not found" in result.errors
    assert "https://rustup.rs" in result.errors
    assert fresh.names() == []  # told before any work is done


SAYS = re.compile(r'\b(?:log|die|usage_error) "')
HAN = re.compile("[一-鿿]")


def statements_of(script: str) -> list[str]:
    """The lines of a script, each with those that continue it."""
    return re.sub(r"\\\n\s*", "", script).splitlines()


def test_every_message_of_the_script_has_a_chinese_half() -> None:
    said = [
        line for line in statements_of((ROOT / "scripts" / "run.sh").read_text(encoding="utf-8")) if SAYS.search(line)
    ]
    assert len(said) > 40
    only_shown = ('log "\\$ python', 'log "error: $1')  # a command to type; the two that put a message together
    missing = [line.strip() for line in said if not HAN.search(line) and not line.strip().startswith(only_shown)]
    assert missing == []


def test_stage_lines_keep_their_english_form_and_have_a_chinese_half(done: FakeRepository) -> None:
    lines = [line for line in done.run("--from-stage", "dpo").output.splitlines() if line.startswith("stage ")]
    assert lines[:-1] == [
        *(f"stage {name}: up to date | 无需重做" for name in ("env", "mix", "tokenizer", "export", "pretrain", "sft")),
        "stage dpo: start | 开始：偏好对齐",
    ]
    assert re.fullmatch(r"stage dpo: done in \d+ s \| 完成：偏好对齐", lines[-1])


def test_the_closing_summary_speaks_both_languages_and_says_what_smoke_scores_are(done: FakeRepository) -> None:
    usual, last = done.run().output, done.run("--smoke-test", FAKE_HIDDEN="64")
    assert (last.code, last.errors) == (0, "")
    smoke = last.output
    for words in (
        "Weights: | 权重：",
        "Scores: | 评测结果：",
        "Talk to it: | 和它对话：",
        "Web page and API: | 网页与接口：",
    ):
        assert words in usual.splitlines()
        assert words in smoke.splitlines()
    assert "these scores mean nothing" not in usual
    assert smoke.count("these scores mean nothing | 冒烟测试只检查流程能否跑通，分数没有意义") == 1

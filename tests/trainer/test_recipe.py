"""A whole call of a trainer: what is done already, its data, and how it starts and stops."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from configs.paths import ROOT, latest_weights
from configs.schema import UserError
from configs.stage_table import RECIPE_VERSION
from configs.train_run import parse_run
from dataset.lm_dataset import PretrainDataset
from model import device
from model.weights import read_weights
from tests.terminal import PATIENCE_SECONDS, Terminal
from tests.tiny_run import (
    SHAPE,
    TRAINERS,
    Killed,
    TinyRun,
    kept_signal_handlers,
    killed_in_step,
    same,
    sum_record,
    write_jsonl,
)
from trainer import autoconfig, recipe, runtime
from trainer.facts import Facts, gather
from trainer.loop import Run
from trainer.objectives import NextToken
from trainer.recipe import begin, is_done
from trainer.runtime import Runtime

STAGES = ("pretrain", "sft", "dpo")
FILES = {"pretrain": "train_pretrain", "sft": "train_full_sft", "dpo": "train_dpo"}


# --- done, or to be done again --------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_rerun_of_what_is_done_returns_without_training(
    tiny: TinyRun, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.path(stage).stat().st_mtime_ns
    assert tiny.train(stage) == 0
    assert "is already the result of these settings, data and starting weights" in capsys.readouterr().err
    assert tiny.path(stage).stat().st_mtime_ns == before


@pytest.mark.parametrize("words", [["--log_interval", "3"], ["--save_interval", "5"], ["--device", "auto"]])
def test_what_changes_no_weight_trains_nothing_again(tiny: TinyRun, words: list[str]) -> None:
    before = tiny.path("sft").stat().st_mtime_ns
    assert tiny.train("sft", *words) == 0
    assert tiny.path("sft").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "words", [["--learning_rate", "0.02"], ["--seed", "7"], ["--max_steps", "5"], ["--dropout", "0.1"]]
)
def test_a_changed_setting_trains_again(tiny: TinyRun, words: list[str]) -> None:
    before = tiny.weights("sft")
    assert tiny.train("sft", *words) == 0
    assert not same(tiny.weights("sft"), before)


def test_a_raised_recipe_version_trains_again(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPE_VERSION, "pretrain", RECIPE_VERSION["pretrain"] + 1)
    assert tiny.train("pretrain") == 0
    assert "made with another version of the recipe; training starts anew" in capsys.readouterr().err
    assert tiny.manifest("pretrain").recipe_version == RECIPE_VERSION["pretrain"]


def test_what_two_processes_train_is_no_result_or_state_of_one(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def facts() -> Facts:
        return gather(parse_run("pretrain", "", tiny.flags("pretrain")))

    alone = facts()
    monkeypatch.setattr(Runtime, "start", lambda *_, **__: replace(alone.runtime, world_size=2))
    monkeypatch.setattr(Runtime, "barrier", lambda self: None)
    shared = facts()
    assert is_done(alone) and not is_done(shared)
    assert alone.state.folder != shared.state.folder and alone.state.family != shared.state.family


def test_changed_data_trains_again(tiny: TinyRun) -> None:
    before = tiny.manifest("sft").fingerprint
    write_jsonl(tiny.data / "sft.jsonl", [sum_record(n, 5) for n in range(60)])
    assert tiny.train("sft") == 0
    assert tiny.manifest("sft").fingerprint != before


def test_changed_starting_weights_train_again_but_their_name_does_not_matter(tiny: TinyRun) -> None:
    before = tiny.manifest("sft").fingerprint
    tiny.path("pretrain").rename(tiny.out / "mine.pth")
    assert tiny.train("sft", "--from_weight", str(tiny.out / "mine.pth")) == 0
    assert tiny.manifest("sft").fingerprint == before
    assert tiny.train("pretrain", "--seed", "7") == 0
    assert tiny.train("sft") == 0
    assert tiny.manifest("sft").fingerprint != before


def test_from_resume_0_trains_again_to_the_same_end(tiny: TinyRun) -> None:
    before, written = tiny.weights("dpo"), tiny.path("dpo").stat().st_mtime_ns
    assert tiny.train("dpo", "--from_resume", "0") == 0
    assert tiny.path("dpo").stat().st_mtime_ns != written
    assert same(tiny.weights("dpo"), before)


def test_damaged_weights_are_trained_again(tiny: TinyRun) -> None:
    before = tiny.weights("sft")
    tiny.path("sft").write_bytes(tiny.path("sft").read_bytes()[:500])
    assert tiny.train("sft") == 0
    assert same(tiny.weights("sft"), before)


def test_the_starting_weights_may_be_replaced_or_go_while_a_stage_trains(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, before = tiny.path("pretrain"), tiny.manifest("sft")
    after_step = Run.after_step

    def losing(self: Run, *arguments: Any) -> None:
        start.unlink(missing_ok=True)
        after_step(self, *arguments)

    monkeypatch.setattr(Run, "after_step", losing)
    assert tiny.train("sft", "--from_resume", "0") == 0
    assert not start.exists()
    assert tiny.manifest("sft") == before


# --- what a change costs --------------------------------------------------------------------------


def test_finished_weights_stay_until_those_of_other_settings_are_complete_and_then_beside(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.path("sft").read_bytes()
    with killed_in_step(4):
        tiny.train("sft", "--seed", "7")
    said = capsys.readouterr().err
    assert tiny.path("sft").read_bytes() == before
    told = (
        "full_sft_16.pth: made with seed 42 (now 7); training starts anew. The old weights stay until the new ones are"
    )
    assert said.index(told) < said.index("trainable parameters")
    assert tiny.train("sft", "--seed", "7") == 0
    kept = tiny.out / "full_sft_16.previous.pth"
    assert kept.read_bytes() == before != tiny.path("sft").read_bytes()
    assert f"the weights of before are {kept}" in capsys.readouterr().err
    assert latest_weights("full_sft", tiny.out) == tiny.path("sft")
    assert tiny.train("dpo", "--from_weight", str(kept)) == 0  # these are the weights that DPO started from


def test_the_same_run_once_more_keeps_nothing_beside(tiny: TinyRun) -> None:
    assert tiny.train("sft", "--from_resume", "0") == 0
    assert not (tiny.out / "full_sft_16.previous.pth").exists()


def test_old_weights_are_copied_where_a_file_can_have_only_one_name(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refused)
    before = tiny.path("sft").read_bytes()
    assert tiny.train("sft", "--seed", "7") == 0
    assert (tiny.out / "full_sft_16.previous.pth").read_bytes() == before


def test_a_kill_while_the_new_weights_are_written_leaves_the_old_ones(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    before = tiny.path("sft").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "save_weights", killed)
        with pytest.raises(Killed):
            tiny.train("sft", "--seed", "7")
    assert tiny.path("sft").read_bytes() == before
    assert tiny.train("sft", "--seed", "7") == 0
    assert (tiny.out / "full_sft_16.previous.pth").read_bytes() == before


def test_a_stopped_run_is_found_again_after_one_of_other_settings(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.train("sft", "--seed", "5") == 0
    unbroken = tiny.weights("sft")
    tiny.path("sft").unlink()
    with killed_in_step(5):
        tiny.train("sft", "--seed", "5")
    (state,) = tiny.states("sft")
    capsys.readouterr()
    assert tiny.train("sft", "--seed", "6") == 0
    assert f"no resume state fits these settings and data; {state}, of others, stays" in capsys.readouterr().err
    assert tiny.train("sft", "--seed", "5") == 0
    assert f"resuming after step 4 of 6 ({state})" in capsys.readouterr().err
    assert same(tiny.weights("sft"), unbroken)


def test_training_once_more_that_was_interrupted_resumes_though_the_weights_are_there(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with killed_in_step(5):
        tiny.train("sft", "--from_resume", "0")
    assert tiny.train("sft") == 0
    assert "resuming after step 4 of 6" in capsys.readouterr().err
    assert tiny.train("sft") == 0
    assert "is already the result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "raised", "steps"),
    [
        (["--max_steps", "8"], ["--max_steps", "12"], 12),
        (["--max_steps", "8"], ["--max_steps", "0"], 15),
        (["--max_steps", "0", "--epochs", "1"], ["--max_steps", "0", "--epochs", "2"], 30),
        (["--max_steps", "8", "--epochs", "1"], ["--max_steps", "20", "--epochs", "2"], 20),
    ],
)
def test_a_run_stopped_before_its_warm_down_and_made_longer_ends_as_the_longer_run(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str], before: list[str], raised: list[str], steps: int
) -> None:
    words = ["--seed", "5", "--warmup_ratio", "0", "--data_path", str(tiny.data / "sft.jsonl"), *SHAPE]
    words += ["--from_weight", "none", "--max_seq_len", "16", "--batch_size", "2"]
    assert tiny.train("sft", *words, *raised) == 0
    unbroken = tiny.weights("sft")
    assert max(tiny.metric("sft")) == steps
    tiny.path("sft").unlink()
    with killed_in_step(4):
        tiny.train("sft", *words, *before)
    capsys.readouterr()
    assert tiny.train("sft", *words, *raised) == 0
    said = capsys.readouterr().err
    assert "resuming under the schedule of the longer run" in said and f"resuming after step 2 of {steps}" in said
    assert same(tiny.weights("sft"), unbroken)


@pytest.mark.parametrize(
    ("killed_in", "steps", "reason"),
    [(8, "12", "step 6 of 8, whose warm-down had begun"), (4, "6", "step 2 of 8, and this run has 6")],
)
def test_a_run_that_cannot_be_made_longer_or_shorter_starts_anew_and_says_so(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str], killed_in: int, steps: str, reason: str
) -> None:
    assert tiny.train("pretrain", "--seed", "5", "--max_steps", steps) == 0
    unbroken = tiny.weights("pretrain")
    tiny.path("pretrain").unlink()
    with killed_in_step(killed_in):
        tiny.train("pretrain", "--seed", "5", "--max_steps", "8")
    (state,) = tiny.states("pretrain")
    capsys.readouterr()
    assert tiny.train("pretrain", "--seed", "5", "--max_steps", steps) == 0
    said = capsys.readouterr().err
    assert f"{reason}: it can't be resumed as this run, and stays" in said and "resuming" not in said
    assert same(tiny.weights("pretrain"), unbroken)
    assert tiny.states("pretrain") == [state]


def test_a_finished_run_made_longer_starts_anew_says_so_first_and_keeps_the_old_weights(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.path("pretrain").read_bytes()
    assert tiny.train("pretrain", "--max_steps", "9") == 0
    said = capsys.readouterr().err
    assert said.startswith(f"{tiny.path('pretrain')}: made with max_steps 6 (now 9); training starts anew.")
    assert min(tiny.metric("pretrain")) == 1
    assert (tiny.out / "pretrain_16.previous.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tiny, patch: patch.setitem(RECIPE_VERSION, "sft", 99), "another version of the recipe"),
        (lambda tiny, patch: write_jsonl(tiny.data / "sft.jsonl", [sum_record(n, 5) for n in range(60)]), "other data"),
        (lambda tiny, patch: tiny.train("pretrain", "--seed", "7"), "other starting weights"),
    ],
)
def test_what_was_changed_is_named(
    tiny: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[TinyRun, pytest.MonkeyPatch], Any],
    words: str,
) -> None:
    change(tiny, monkeypatch)
    capsys.readouterr()
    assert tiny.train("sft", "--max_steps", "1") == 0
    assert f"made with max_steps 6 (now 1), {words}; training starts anew" in capsys.readouterr().err


def test_a_changed_rule_trains_again_what_was_left_to_it(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    open_flags = ["--batch_size", "0", "--accumulation_steps", "0", "--learning_rate", "0", "--max_steps", "2"]
    for name, value in (("LEARNING_RATE", 2e-2), ("FRESH_EMBEDDING_RATIO", {"muon": 7.0}), ("MIN_STEP_TOKENS", 64)):
        assert tiny.train("pretrain", *open_flags) == 0
        before = tiny.manifest("pretrain")
        monkeypatch.setattr(autoconfig, name, value)
        assert tiny.train("pretrain", *open_flags) == 0
        after = tiny.manifest("pretrain")
        assert before.settings == after.settings and before.fingerprint != after.fingerprint
        assert before.resolved != after.resolved


def test_finished_weights_that_are_copied_to_another_machine_are_not_trained_again(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_flags = ["--batch_size", "0", "--accumulation_steps", "0", "--learning_rate", "0", "--dtype", "auto"]
    assert tiny.train("pretrain", *open_flags, "--max_steps", "1") == 0
    written = tiny.path("pretrain").stat().st_mtime_ns
    monkeypatch.setattr(autoconfig, "free_memory", lambda device: 0)
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(device, "num_cores", lambda: 64)
    monkeypatch.setattr(runtime, "num_cores", lambda: 64)
    assert tiny.train("pretrain", *open_flags, "--max_steps", "1") == 0
    assert tiny.path("pretrain").stat().st_mtime_ns == written


# --- data -----------------------------------------------------------------------------------------


def altered(path: Path) -> None:
    """Overwrite a few bytes in the middle of a file, and put its time back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(times.st_size // 2)
        file.write(b"\x07\x00\x09\x00")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("stage", "name"),
    [("pretrain", "labels"), ("sft", "loss_mask"), ("dpo", "rejected_input_ids"), ("sft", "validation/input_ids")],
)
def test_altered_tensors_are_refused_even_where_the_weights_are_done(tiny: TinyRun, stage: str, name: str) -> None:
    folder = tiny.data / f"{stage}_{stage}_tokens"
    where = ["--data_path", str(folder)]
    assert tiny.train(stage, *where) == 0
    altered(folder / f"{name}.npy")
    with pytest.raises(
        UserError, match=rf"{name}\.npy: its bytes have changed\. Delete .* and rerun: python scripts/export_embeddings"
    ):
        tiny.train(stage, *where)


@pytest.mark.parametrize("stage", STAGES)
def test_a_jsonl_is_not_needed_once_its_tensors_exist(tiny: TinyRun, stage: str) -> None:
    (tiny.data / f"{stage}.jsonl").unlink()
    (tiny.data / f"{stage}_heldout.jsonl").unlink()
    assert tiny.train(stage, "--seed", "11") == 0
    assert tiny.metric(stage, "validation_loss")
    shows_bits = "validation_bits_per_byte" in next((tiny.tf_dir / "metrics").glob(f"{stage}_*.jsonl")).read_text()
    assert shows_bits is (stage != "dpo")


def test_a_tensor_folder_may_be_given_in_place_of_the_jsonl(tiny: TinyRun) -> None:
    before = tiny.weights("sft")
    assert tiny.train("sft", "--from_resume", "0", "--data_path", str(tiny.data / "sft_sft_tokens")) == 0
    assert same(tiny.weights("sft"), before)


def test_data_that_is_nowhere_or_of_another_stage_is_refused(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl: no such file"):
        tiny.train("sft", "--data_path", "nothing.jsonl")
    with pytest.raises(UserError, match="tensors of pairs; this needs conversations"):
        tiny.train("sft", "--data_path", str(tiny.data / "dpo_dpo_tokens"))
    with pytest.raises(UserError, match="rows of 32 tokens, but --max_seq_len is 16"):
        tiny.train("sft", "--data_path", str(tiny.data / "sft_sft_tokens"), "--max_seq_len", "16")


def test_dpo_needs_weights_to_start_from(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match="this stage needs weights to start from"):
        tiny.train("dpo", *SHAPE, "--from_weight", "none")


def test_sft_may_start_from_random_weights(tiny: TinyRun) -> None:
    assert tiny.train("sft", *SHAPE, "--from_weight", "none") == 0
    assert tiny.manifest("sft").start is None


def test_a_mixture_of_experts_trains_and_its_weights_say_so(tiny: TinyRun) -> None:
    moe = ["--use_moe", "1", "--num_experts", "4", "--moe_intermediate_size", "24", "--max_steps", "1"]
    assert tiny.train("pretrain", *moe) == 0
    _, config, _ = read_weights(tiny.out / "pretrain_16_moe.pth")
    assert (config.use_moe, config.num_experts) == (True, 4)
    assert tiny.train("sft", "--use_moe", "--max_steps", "1") == 0
    assert (tiny.out / "full_sft_16_moe.pth").exists()


# --- how it is started ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_help_speaks_both_languages(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        TRAINERS[stage](["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--batch_size" in shown
    flags = re.split(r"\n  (?=--)", shown)[1:]
    without = [flag.split()[0] for flag in flags if not re.search("[一-鿿]", flag)]
    assert not without, "flags without a Chinese help text"


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_flag_exits_with_2(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        TRAINERS[stage](["--no_such_flag", "1"])
    assert stop.value.code == 2
    assert "--no_such_flag" in capsys.readouterr().err


def test_hyphens_and_the_forms_of_a_switch_reach_the_trainer(tiny: TinyRun) -> None:
    before = tiny.path("pretrain").stat().st_mtime_ns
    for words in (["--batch-size", "2"], ["--batch_size=2"], ["--no-use_moe"], ["--use_moe", "0"]):
        assert tiny.train("pretrain", *words) == 0
        assert tiny.path("pretrain").stat().st_mtime_ns == before, words
    assert tiny.train("pretrain", "--batch-size", "3") == 0
    assert tiny.path("pretrain").stat().st_mtime_ns != before


def environment(**changes: str) -> dict[str, str]:
    """Our environment variables, with one thread and without PYTHONPATH."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


@pytest.mark.parametrize(
    ("stage", "place", "words"),
    [
        ("pretrain", ".", ["trainer/train_pretrain.py"]),
        ("sft", "trainer", ["train_full_sft.py"]),
        ("dpo", ".", ["-m", "trainer.train_dpo"]),
    ],
)
def test_a_trainer_runs_from_the_root_from_its_folder_and_as_a_module(
    tiny: TinyRun, stage: str, place: str, words: list[str]
) -> None:
    shown = subprocess.run(
        [sys.executable, *words, *tiny.flags(stage)],
        cwd=ROOT / place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "is already the result" in shown.stderr


def test_an_error_is_one_line_and_exit_code_1(tiny: TinyRun) -> None:
    flags = tiny.flags("sft", "--from_weight", "missing")
    shown = subprocess.run(
        [sys.executable, "trainer/train_full_sft.py", *flags],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1


# --- how it is stopped ----------------------------------------------------------------------------


def test_sigterm_saves_and_exits_with_143_and_the_resumed_run_ends_the_same(tiny: TinyRun) -> None:
    words = ["--max_steps", "400", "--dropout", "0.1", "--save_interval", "1000"]
    metrics = tiny.tf_dir / "metrics"
    for file in metrics.glob("*"):
        file.unlink()
    process = subprocess.Popen(
        [sys.executable, "trainer/train_pretrain.py", *tiny.flags("pretrain", *words)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not any(file.stat().st_size for file in metrics.glob("*.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143
    assert "stopped (SIGTERM); the state is saved" in said
    assert len(tiny.states("pretrain")) == 1
    assert tiny.train("pretrain", *words) == 0
    resumed = tiny.weights("pretrain")
    assert tiny.train("pretrain", *words, "--from_resume", "0") == 0
    assert same(tiny.weights("pretrain"), resumed)


def test_a_terminal_that_is_closed_saves_and_ends_the_run(tiny: TinyRun) -> None:
    words = tiny.flags(
        "pretrain", "--max_steps", "4000", "--epochs", "1000", "--save_interval", "10000", "--dropout", "0.2"
    )
    terminal = Terminal(["-m", "trainer.train_pretrain", *words])
    terminal.wait_for("validation_loss")  # the first step is done
    before = len(tiny.states("pretrain"))
    os.close(terminal.ours)
    terminal.child.send_signal(signal.SIGHUP)  # what the kernel sends where it is the controlling terminal
    assert terminal.child.wait(PATIENCE_SECONDS) == 128 + signal.SIGHUP
    assert len(tiny.states("pretrain")) == before + 1


def test_a_trainer_whose_pipeline_is_gone_saves_and_ends(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    unbroken = tiny.weights("sft")
    tiny.path("sft").unlink()
    monkeypatch.setenv("MINILLM_PARENT_PID", str(gone.pid))
    assert tiny.train("sft") == 143
    assert len(tiny.states("sft")) == 1
    assert not tiny.path("sft").exists()
    monkeypatch.setenv("MINILLM_PARENT_PID", str(os.getpid()))
    assert tiny.train("sft") == 0
    assert same(tiny.weights("sft"), unbroken)


# --- several processes ----------------------------------------------------------------------------


def torchrun(script: Path | str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes with torch's own launcher, as a user does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launcher, str(script), *words], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


def test_two_processes_give_the_losses_of_one_with_the_same_global_batch(tiny: TinyRun) -> None:
    moe = ["--use_moe", "--num_experts", "4", "--moe_intermediate_size", "24", "--optimizer", "adamw"]
    assert tiny.train("pretrain", *moe, "--accumulation_steps", "4") == 0
    losses, validation = tiny.metric("pretrain"), tiny.metric("pretrain", "validation_loss")
    shown = torchrun("trainer/train_pretrain.py", *tiny.flags("pretrain", *moe, "--accumulation_steps", "2"))
    assert shown.returncode == 0, shown.stderr
    assert_close(tiny.metric("pretrain"), losses, rtol=1e-4, atol=1e-5)
    assert_close(tiny.metric("pretrain", "validation_loss"), validation, rtol=1e-4, atol=1e-5)


def test_two_processes_that_were_killed_resume_with_the_dropout_of_each(tiny: TinyRun, tmp_path: Path) -> None:
    script = tmp_path / "killed_resumed_and_unbroken.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.tiny_run import TRAINERS, killed_in_step\n"
        "from trainer.runtime import Runtime\n"
        "Runtime.close = lambda self: None  # one group for all three\n"
        "with killed_in_step(4):\n"
        "    TRAINERS['dpo'](sys.argv[1:])\n"
        "TRAINERS['dpo'](sys.argv[1:])\n"
        "TRAINERS['dpo']([*sys.argv[1:], '--from_resume', '0', '--out_dir', sys.argv[-1] + '/unbroken'])\n"
    )
    start = str(tiny.path("sft"))
    flags = tiny.flags("dpo", "--dropout", "0.3", "--batch_size", "1", "--from_weight", start)
    shown = torchrun(script, *flags, "--out_dir", str(tiny.out))
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr.count("resuming after step 2 of 6") == 1
    assert same(read_weights(tiny.out / "unbroken" / "rlhf_16.pth")[0], tiny.weights("dpo"))


@pytest.mark.parametrize("launcher", [["-m", "torch.distributed.run"], ["trainer/torchrun.py"]])
def test_a_users_mistake_in_two_processes_is_reported_once_and_last(tiny: TinyRun, launcher: list[str]) -> None:
    words = [*launcher, "--standalone", "--nproc_per_node", "2", "trainer/train_pretrain.py"]
    shown = subprocess.run(
        [sys.executable, *words, *tiny.flags("pretrain", "--dropout", "7")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    line = "error: dropout = 7.0: must be in [0, 1). | 丢弃率应不小于 0 且小于 1"
    assert shown.returncode == 1
    if launcher == ["trainer/torchrun.py"]:
        assert shown.stderr == f"{line}\n"
    else:  # torchrun's report, whose last lines are the reason
        assert shown.stderr.splitlines().count(line) == 1
        assert f"traceback : {line}" in shown.stderr.splitlines()[-2]


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("sys.exit(3 if rank == '1' else 0)", 3, ""),
        ("os.kill(os.getpid(), 9) if rank == '1' else time.sleep(60)", 1, "signal 9"),
    ],
)
def test_the_launcher_ends_as_the_process_that_failed(tmp_path: Path, end: str, code: int, words: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys, time\nrank = os.environ['RANK']\n{end}\n")
    shown = subprocess.run(
        [sys.executable, "trainer/torchrun.py", "--standalone", "--nproc_per_node", "2", str(script)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == code
    assert words in shown.stderr
    assert shown.stderr.count("\n") == bool(words)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_each_process_starts_its_dropout_from_a_seed_of_its_own(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    seeds = []
    monkeypatch.setattr(recipe, "train", lambda *_: seeds.append(torch.initial_seed()))
    facts = gather(parse_run("pretrain", "", tiny.flags("pretrain", "--seed", "7", "--from_resume", "0")))
    training = begin(facts)
    training.runtime = replace(training.runtime, rank=rank)
    with kept_signal_handlers():
        training.fit(PretrainDataset(facts.tensors_path), NextToken(), None)
    assert seeds == [7 + rank]

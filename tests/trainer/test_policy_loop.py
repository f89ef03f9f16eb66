"""What GRPO and PPO share: exact resumes, equal processes, roll-back, and what is refused."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.paths import ROOT
from configs.schema import UserError
from model.weights import read_weights
from tests.tiny_run import TinyRun, same, write_jsonl
from tests.trainer.tiny_policy import WEIGHTS, TinyPolicy, killed_in
from trainer import policy_loop
from trainer.policy_loop import PolicyRun

STAGES = pytest.mark.parametrize("stage", ["grpo", "ppo"])


@pytest.fixture
def policy(tiny: TinyRun) -> TinyPolicy:
    return TinyPolicy(tiny)


@STAGES
@pytest.mark.parametrize(("method", "call"), [("sample", 3), ("update", 5), ("after_step", 3)])
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(
    policy: TinyPolicy, tmp_path: Path, stage: str, method: str, call: int
) -> None:
    words = ["--num_minibatches=2", "--no-rollback"]
    with killed_in(method, call):
        policy.train(stage, *words)
    assert not (policy.out / WEIGHTS[stage]).exists()
    assert policy.train(stage, *words) == 0
    resumed, lines = policy.weights(stage), policy.lines(stage)
    assert policy.train(stage, *words, "--out_dir", str(tmp_path / "unbroken")) == 0
    assert same(resumed, read_weights(tmp_path / "unbroken" / WEIGHTS[stage])[0])
    timed = ("seconds", "sampling_seconds")
    unbroken = policy.lines(stage)
    assert [{k: v for k, v in line.items() if k not in timed} for line in lines] == [
        {k: v for k, v in line.items() if k not in timed} for line in unbroken
    ]


@STAGES
def test_finished_weights_are_not_trained_again(
    policy: TinyPolicy, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert policy.train(stage) == 0
    assert policy.train(stage) == 0
    assert "is already the result" in capsys.readouterr().err
    policy.rewards.write_text(policy.rewards.read_text() + "\n# another reward\n", encoding="utf-8")
    capsys.readouterr()
    assert policy.train(stage) == 0
    assert "is already the result" not in capsys.readouterr().err


RANK_PROGRAM = """
import hashlib, os, sys
from trainer import train_grpo, train_ppo
from trainer.recipe import Training
write = Training.write_weights
def written(self):
    state = self.model.state_dict()
    digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
    print("weights", digest, flush=True)
    return write(self)
Training.write_weights = written
stage, *words = sys.argv[1:]
sys.exit({"grpo": train_grpo.main, "ppo": train_ppo.main}[stage](words))
"""
"""A trainer that prints the hash of the weights that this process ends with."""


@pytest.mark.parametrize(("stage", "reward"), [("grpo", "first_rank_alone"), ("ppo", "parity")])
def test_two_processes_with_different_prompts_end_with_the_same_bits(
    policy: TinyPolicy, stage: str, reward: str
) -> None:
    policy.rewards.write_text(
        policy.rewards.read_text(encoding="utf-8")
        + "import os\ndef first_rank_alone(sample):\n    return parity(sample) if os.environ['RANK'] == '0' else 0.0\n",
        encoding="utf-8",
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = policy.flags(stage, "--no-rollback", "--max_steps=2", f"--reward={policy.rewards}:{reward}")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, stage, *words],
            cwd=ROOT,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found_hashes = []
    for process in processes:
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        found_hashes.append([line.split()[1] for line in out.splitlines() if line.startswith("weights")])
    assert found_hashes[0] == found_hashes[1] and len(found_hashes[0]) == 1
    start = read_weights(policy.start)[0]
    before = hashlib.sha256(b"".join(start[name].numpy().tobytes() for name in sorted(start))).hexdigest()
    assert found_hashes[0] != [before]  # they have learnt something


def test_equal_rewards_leave_the_weights_as_they_were(policy: TinyPolicy) -> None:
    assert policy.train("grpo", f"--reward={policy.rewards}:equal", "--no-rollback") == 0
    assert same(policy.weights("grpo"), read_weights(policy.start)[0])
    steps = [line for line in policy.lines("grpo") if "reward" in line]
    assert [line["updates"] for line in steps] == [0.0] * 4
    assert [line["groups_without_variance"] for line in steps] == [1.0] * 4


@pytest.mark.parametrize("reward", ["nan", "none"])
def test_a_reward_that_is_no_number_ends_the_run_and_is_named(policy: TinyPolicy, reward: str) -> None:
    with pytest.raises(UserError, match=rf"reward .*:{reward} = (nan|None).*Prompt: .*answer: "):
        policy.train("grpo", f"--reward={policy.rewards}:{reward}")


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Give the validations these scores, in their order."""
    values = iter(scores)
    monkeypatch.setattr(policy_loop, "validation_score", lambda run: (next(values), 0.5, 1.0))


def test_after_a_fall_of_5_points_the_best_weights_are_written_and_the_run_ends(
    policy: TinyPolicy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: dict[int, dict[str, torch.Tensor]] = {}
    after_step = PolicyRun.after_step

    def remembering(self: PolicyRun, step: int, *arguments: Any) -> None:
        kept[step] = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        after_step(self, step, *arguments)

    monkeypatch.setattr(PolicyRun, "after_step", remembering)
    scripted(monkeypatch, [0.50, 0.52, 0.48, 0.46])
    assert policy.train("grpo", "--max_steps=8", "--eval_interval=1") == 0
    assert max(kept) == 4  # 0.46 is more than 5 points below 0.52, 0.48 is not
    assert same(policy.weights("grpo"), kept[2])
    assert "fallen from 0.520 after step 2" in capsys.readouterr().err


def test_without_roll_back_the_last_weights_are_written_and_the_best_beside_them(
    policy: TinyPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.9, 0.1])
    assert policy.train("grpo", "--no-rollback") == 0
    best, _, manifest = read_weights(policy.out / "best_grpo_16.pth")
    assert manifest.stage == "grpo"
    assert not same(best, policy.weights("grpo"))


def test_a_run_logs_what_shows_that_it_is_healthy(policy: TinyPolicy, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy.train("grpo", "--beta=0.1") == 0
    lines = policy.lines("grpo")
    wanted = {
        "reward", "accuracy", "well_formed", "groups_without_variance", "entropy", "kl", "length", "cut_share",
        "clip_share", "grad_norm", "engine_difference", "sampling_seconds", "lr", "updates",
    }  # fmt: skip
    first = lines[0]
    assert wanted <= first.keys()
    assert first["kl"] == 0.0 and first["clip_share"] == 0.0  # before the first update both models are one
    assert first["engine_difference"] < 1e-5
    texts = next(line["texts"] for line in lines if "texts" in line)
    assert len(texts) == 4 and set(texts[0]) == {"prompt", "answer", "reward", "ended"}
    assert {line["step"] for line in lines if "validation_reward" in line} == {2, 4}
    said = capsys.readouterr().err
    assert "sampling and training agree to" in said and "% of the time" in said


def test_an_empty_or_wrong_file_of_prompts_is_refused_in_one_line(policy: TinyPolicy, tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "从前有一座山。"}])
    with pytest.raises(UserError, match=r"texts\.jsonl:1: no conversation"):
        policy.train("grpo", "--data_path", str(texts))
    with pytest.raises(UserError, match="a folder"):
        policy.train("grpo", "--data_path", str(tmp_path))
    with pytest.raises(UserError, match="no prompt of at most 2 tokens among 30 records"):
        policy.train("grpo", "--max_seq_len=8", "--max_gen_len=6")
    with pytest.raises(UserError, match="no such file"):
        policy.train("grpo", "--data_path", str(tmp_path / "none.jsonl"))
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match="no prompt of at most"):
        policy.train("grpo", "--data_path", str(empty))


def test_without_starting_weights_there_is_nothing_to_learn_from(policy: TinyPolicy) -> None:
    with pytest.raises(UserError, match="--from_weight none"):
        policy.train("grpo", "--from_weight", "none")


def test_the_manifest_says_what_the_policy_was_trained_on(policy: TinyPolicy) -> None:
    assert policy.train("grpo") == 0
    manifest = read_weights(policy.out / WEIGHTS["grpo"])[2]
    assert manifest.training_data[-1].path.endswith("prompts.jsonl")
    assert manifest.settings.train["num_generations"] == 4
    assert manifest.start is not None and manifest.start.path == policy.start.name
    assert "reward" in manifest.inputs
    json.dumps(manifest.as_plain())


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_dropout_is_refused_because_the_sampled_policy_has_none(policy: TinyPolicy, stage: str) -> None:
    with pytest.raises(UserError, match="--dropout"):
        policy.train(stage, "--dropout=0.1")

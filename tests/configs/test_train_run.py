"""A trainer's flags override the profile, work in every spelling, and none is ignored."""

import os
from pathlib import Path

import pytest

from configs.artifacts import fingerprint
from configs.paths import latest_weights
from configs.schema import ModelConfig, UserError
from configs.stage_table import weight_file
from configs.train_run import hashed_settings, parse_run, run_settings


@pytest.fixture(autouse=True)
def no_folders_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_DIR", "OUT_DIR", "TF_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_flag_beats_the_profile_and_the_profile_beats_the_schema() -> None:
    run = parse_run("sft", "", ["--profile", "cpu", "--learning_rate", "0.5", "--hidden_size", "96"])
    assert (run.train.learning_rate, run.train.max_seq_len, run.train.grad_clip) == (0.5, 256, 1.0)
    assert run.model.hidden_size == 96
    assert run.shape_flags == {"hidden_size": 96}


def test_a_preset_beats_the_profile_and_a_flag_beats_the_preset(tmp_path: Path) -> None:
    profile = tmp_path / "wide.yaml"
    profile.write_text("model: {hidden_size: 128, head_dim: 64, intermediate_size: 640}\n")
    words = ["--profile", str(profile), "--preset", "minillm-moe-145m", "--num_experts", "4"]
    run = parse_run("pretrain", "", words)
    model = run.model
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (640, 8, 8)
    assert (model.use_moe, model.num_experts, model.moe_intermediate_size) == (True, 4, 1088)
    assert run.shape_flags["hidden_size"] == 640  # a later stage compares these with the weights that it starts from
    assert weight_file("pretrain", model) == "pretrain_640_moe.pth"
    narrow = parse_run("pretrain", "", ["--profile", str(profile), "--preset", "256x4"]).model
    assert (narrow.head_dim, narrow.intermediate_size) == (32, 704)  # computed from the width
    with pytest.raises(UserError, match="minillm-104m"):
        parse_run("pretrain", "", ["--preset", "huge"])


def test_a_hyphen_is_an_underscore() -> None:
    assert parse_run("sft", "", ["--max-seq-len=64"]).train.max_seq_len == 64
    assert parse_run("sft", "", ["--save-dir", "a-b"]).out_dir == Path("a-b")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--use_moe"], True),
        (["--use_moe", "1"], True),
        (["--use_moe", "0"], False),
        (["--no-use_moe"], False),
    ],
)
def test_a_switch_takes_three_forms(words: list[str], value: bool) -> None:
    assert parse_run("pretrain", "", words).model.use_moe is value


@pytest.mark.parametrize("words", [["--use_moe", "maybe"], ["--hidden", "96"], ["--beta", "1"], ["--epochs", "x"]])
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_run("pretrain", "", words)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_folders_come_from_the_flag_else_the_environment_else_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT_DIR", "elsewhere")
    monkeypatch.setenv("DATA_DIR", "there")
    assert parse_run("dpo", "", []).out_dir == Path("elsewhere")
    assert parse_run("dpo", "", ["--out_dir", "here"]).out_dir == Path("here")
    assert parse_run("dpo", "", []).data_path == Path("there/dpo_tokens")


def test_each_stage_starts_from_the_one_before() -> None:
    assert [parse_run(stage, "", []).from_weight for stage in ("pretrain", "sft", "dpo")] == [
        "none",
        "pretrain",
        "full_sft",
    ]


def test_weights_are_named_after_stage_and_shape() -> None:
    assert weight_file("dpo", ModelConfig(hidden_size=192, num_attention_heads=6)) == "rlhf_192.pth"
    assert weight_file("sft", ModelConfig(hidden_size=640, use_moe=True)) == "full_sft_640_moe.pth"


def test_the_newest_weights_are_taken_unless_a_shape_is_given(tmp_path: Path) -> None:
    for age, name in enumerate(["full_sft_640_moe.pth", "full_sft_512.pth", "full_sft_192.pth", "pretrain_64.pth"]):
        path = tmp_path / name
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert latest_weights("full_sft", tmp_path).name == "full_sft_640_moe.pth"
    assert latest_weights("full_sft", tmp_path, use_moe=False).name == "full_sft_512.pth"
    assert latest_weights("full_sft", tmp_path, hidden_size=192).name == "full_sft_192.pth"
    with pytest.raises(UserError, match=r"rlhf_\*\.pth: no such weights"):
        latest_weights("rlhf", tmp_path)


def test_missing_weights_name_the_command_that_trains_them(tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    for stem, command in (("pretrain", "train_pretrain"), ("full_sft", "train_full_sft"), ("rlhf", "train_dpo")):
        with pytest.raises(UserError, match=rf"Train them: python trainer/{command}\.py .*run\.sh.*give a path\.$"):
            latest_weights(stem, tmp_path)
        (tmp_path / "smoke" / f"{stem}_64.pth").touch()
        with pytest.raises(UserError, match=r"Those of a smoke test are in .*/smoke \(--out_dir\)\.$"):
            latest_weights(stem, tmp_path)
    with pytest.raises(UserError, match="This version has no program that trains vlm weights"):
        latest_weights("vlm", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "nan"],
        ["--learning_rate", "inf"],
        ["--grad_clip", "nan"],
        ["--weight_decay", "inf"],
        ["--beta", "nan"],
        ["--beta", "inf"],
        ["--warmup_ratio", "nan"],
        ["--dropout", "nan"],
        ["--seed", "9" * 20],
        ["--seed", "-1"],
        ["--embedding_lr_ratio", "nan"],
        ["--sft_loss_weight", "inf"],
    ],
)
def test_what_is_no_number_or_out_of_range_is_refused_by_name(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"{words[0][2:]} = .*must be"):
        parse_run("dpo", "", words)


def test_what_is_only_printed_or_where_it_runs_is_no_part_of_the_result() -> None:
    plain = run_settings(parse_run("sft", "", []))
    words = ["--log_interval", "3", "--num_workers", "2", "--device", "cpu", "--out_dir", "x", "--save_interval", "9"]
    assert run_settings(parse_run("sft", "", words)) == plain
    assert run_settings(parse_run("sft", "", ["--seed", "1"])) != plain


def test_fingerprints_of_stages_that_once_had_settings_of_dpo_cover_them_still() -> None:
    for stage in ("pretrain", "sft"):
        settings = run_settings(parse_run(stage, "", []))
        assert "beta" not in settings["train"]
        kept = {name: value for name, value in settings["train"].items() if not name.startswith("replay")}
        assert hashed_settings(settings)["train"] == kept | {"beta": 0.1, "sft_loss_weight": 0.0}
    settings = run_settings(parse_run("dpo", "", ["--beta", "0.5"]))
    assert hashed_settings(settings) == settings
    assert settings["train"]["beta"] == 0.5


def test_a_setting_that_a_stage_has_gained_counts_where_somebody_sets_it() -> None:
    plain, with_replay = (
        hashed_settings(run_settings(parse_run("sft", "", words)))["train"] for words in ([], ["--replay_share", "0.5"])
    )
    assert "replay_share" not in plain and with_replay == plain | {"replay_share": 0.5}
    assert "replay_share" in hashed_settings(run_settings(parse_run("lora", "", [])))["train"]


def test_a_stage_with_a_bundled_set_trains_on_it_unless_a_flag_says_otherwise() -> None:
    assert parse_run("lora", "", []).data_path == Path("lora_identity")
    assert parse_run("lora", "", ["--data_path", "x.jsonl"]).data_path == Path("x.jsonl")


FINGERPRINTS = {"pretrain": "fa59c4ab77f0892d", "sft": "ee2c16cb5b39e074", "dpo": "59086189c41d4cc4"}
"""Fingerprints of the default settings. If one changes, all finished work of all users is done
again. So a new setting must not change it, unless that is wanted."""


@pytest.mark.parametrize("stage", FINGERPRINTS)
def test_what_earlier_versions_trained_with_the_defaults_is_still_done(stage: str, tmp_path: Path) -> None:
    profile = tmp_path / "plain.yaml"
    profile.write_text("profile: plain\n")
    settings = run_settings(parse_run(stage, "", ["--profile", str(profile)]))
    assert fingerprint(hashed_settings(settings))[:16] == FINGERPRINTS[stage]

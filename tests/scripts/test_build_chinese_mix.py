"""The mix as a person runs it: flags, messages, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import paths
from configs.paths import ROOT
from configs.schema import UserError
from scripts import build_chinese_mix

SCRIPT = ROOT / "scripts" / "build_chinese_mix.py"
TARGETS = ("general", "knowledge", "math", "preference")


def chat(question: str) -> dict[str, Any]:
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": "答"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources for every category, so that no sample has to be made."""
    sources = tmp_path / "sources"
    sources.mkdir()
    made: dict[str, list[dict[str, Any]]] = {
        "sft_mini_512.jsonl": [chat(f"聊{n}") for n in range(30)],
        "knowledge.jsonl": [chat(f"知{n}") for n in range(30)],
        "math.jsonl": [chat(f"算{n}") for n in range(30)],
        "dpo.jsonl": [{"prompt": f"选{n}", "chosen": "好", "rejected": "坏"} for n in range(30)],
        "pretrain_hq.jsonl": [{"text": f"第{n}段。"} for n in range(30)],
        "r1_mix_1024.jsonl": [chat("推理")],
    }
    for name, records in made.items():
        (sources / name).write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8"
        )
    return tmp_path


def flags(folder: Path, *more: str) -> list[str]:
    small = [part for name in TARGETS for part in (f"--{name}", "50")]
    return [
        "--source_dir",
        str(folder / "sources"),
        "--output_dir",
        str(folder / "out"),
        "--identity",
        "20",
        *small,
        *more,
    ]


def manifest(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "out" / "mix_manifest.json").read_text(encoding="utf-8"))
    return value


def test_flags_go_over_the_profile_and_the_result_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--profile",
        "cpu",
        "--seed",
        "7",
        "--heldout-share",
        "0.1",
        "--max_rounds",
        "1",
        "--name",
        "小灵",
        "--corpus",
        "5",
    ]
    assert build_chinese_mix.main(flags(folder, *given)) == 0
    made = manifest(folder)
    assert made["seed"] == 7
    assert {made["settings"][key] for key in ("heldout_share", "max_rounds", "name")} == {0.1, 1, "小灵"}
    assert {name: (t["asked"], t["reached"]) for name, t in made["categories"].items()} == {
        "general": (50, 50),  # with the bundled lines about what no such model can do
        "knowledge": (50, 27),
        "math": (50, 27),
        "identity": (20, 20),
        "preference": (50, 27),
        "corpus": (5, 5),
    }
    printed = capsys.readouterr().out
    assert "general 通用对话" in printed
    assert "r1_mix_1024.jsonl (skip" in printed
    assert "sft_chinese.jsonl: 124 records" in printed


def test_it_runs_from_another_folder_with_paths_relative_to_it(folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), *flags(folder)]
    command[command.index("--source_dir") + 1], command[command.index("--output_dir") + 1] = "sources", "out"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert manifest(folder)["outputs"]["dpo_chinese.jsonl"]["records"] == 50


def test_a_file_without_a_category_ends_it_with_one_line_that_says_what_to_add(folder: Path) -> None:
    (folder / "sources" / "secret.jsonl").write_text("{}\n")
    done = subprocess.run([sys.executable, str(SCRIPT), *flags(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert "`  secret.jsonl: general`" in done.stderr
    assert not (folder / "out").exists()


def test_a_missing_source_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        build_chinese_mix.main(["--source_dir", str(tmp_path / "nowhere")])


def test_sources_are_taken_from_the_folder_that_the_environment_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DIR", str(folder / "sources"))
    words = flags(folder)
    place = words.index("--source_dir")
    build_chinese_mix.main(words[:place] + words[place + 2 :])
    assert "math.jsonl" in capsys.readouterr().out
    monkeypatch.setenv("SOURCE_DIR", str(folder / "nowhere"))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        build_chinese_mix.main(words[:place] + words[place + 2 :])


def test_a_read_only_checkout_keeps_sources_and_samples_below_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, data = tmp_path / "checkout" / "data", tmp_path / "processed"
    checkout.mkdir(parents=True)
    monkeypatch.setattr(paths, "SOURCE_DIR", checkout / "chinese")
    monkeypatch.setattr(paths, "SAMPLE_DIR", checkout / "samples")
    monkeypatch.delenv("SOURCE_DIR", raising=False)
    assert (paths.source_dir(data), paths.sample_dir(data)) == (checkout / "chinese", checkout / "samples")
    may_write = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: checkout not in (path, *Path(path).parents) and may_write(path, mode)
    )
    assert (paths.source_dir(data), paths.sample_dir(data)) == (data / "chinese", data / "samples")
    (checkout / "chinese").mkdir()  # with files of the user's: they are read where they lie
    assert paths.source_dir(data) == checkout / "chinese"


def test_bad_lines_are_counted_in_what_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "sources" / "math.jsonl").open("a") as file:
        file.write("{broken\n")
    build_chinese_mix.main(flags(folder))
    printed = capsys.readouterr().out
    assert "1 from math.jsonl: malformed JSON" in printed
    assert "rejects.jsonl" in printed


def test_the_table_is_aligned_for_double_width_characters() -> None:
    assert build_chinese_mix._pad("数学", 6, right=False) == "数学  "
    assert build_chinese_mix._pad("12", 4, right=True) == "  12"

"""scripts/export_embeddings.py: defaults, reuse, what it prints, what it says about mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from dataset.tensors import open_tensors, read_manifest
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from scripts import export_embeddings

RECORDS = {
    "pretrain": {"text": "你好"},
    "sft": {"conversations": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c\nd"}]},
    "dpo": {
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}],
    },
}


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the mix leaves it, and a tokenizer of single bytes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for stage, record in RECORDS.items():
        line = json.dumps(record, ensure_ascii=False)
        (folder / f"{stage}_chinese.jsonl").write_text(f"{line}\n" * 3, encoding="utf-8")
        held = json.dumps(record | {"split": "validation"}, ensure_ascii=False)
        (folder / f"{stage}_chinese_heldout.jsonl").write_text(f"{held}\n", encoding="utf-8")
    RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)}).save(
        tmp_path / "out" / "tokenizer"
    )
    monkeypatch.setenv("DATA_DIR", str(folder))
    monkeypatch.setenv("OUT_DIR", str(tmp_path / "out"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return folder


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_each_stage_goes_from_the_data_folder_to_its_tensors(
    data_dir: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_embeddings.main([stage]) == 0
    output = data_dir / f"{stage}_tokens"
    manifest = read_manifest(output)
    assert manifest.data == STAGE_TABLE[stage].data
    assert manifest.max_length == 2048
    assert manifest.source.records == 3
    assert read_manifest(output / "validation").source.records == 1
    assert open_tensors(output)
    assert "up to date" not in capsys.readouterr().out
    before = (output / "manifest.json").stat().st_mtime_ns
    assert export_embeddings.main([stage]) == 0
    assert "up to date" in capsys.readouterr().out
    assert (output / "manifest.json").stat().st_mtime_ns == before


def test_flags_reach_the_tensors(data_dir: Path) -> None:
    flags = ["--max-length", "32", "--bos-token", "none", "--append-eos", "0", "--num-workers", "1"]
    export_embeddings.main(["pretrain", *flags, "--output", str(data_dir / "mine")])
    manifest = read_manifest(data_dir / "mine")
    assert (manifest.max_length, manifest.bos_token, manifest.append_eos) == (32, None, False)
    assert open_tensors(data_dir / "mine")["input_ids"][0, :6].tolist() == list("你好".encode())


def test_an_end_mark_that_is_asked_for_in_chats_is_not_learnt(data_dir: Path) -> None:
    export_embeddings.main(["sft", "--append_eos", "--max_length", "32"])
    arrays = open_tensors(data_dir / "sft_tokens")
    end = read_manifest(data_dir / "sft_tokens").pad_id
    assert arrays["input_ids"][0, 10] == end
    assert arrays["document_ids"][0, 10] == 0
    assert (arrays["labels"] != end).all()


def test_the_length_comes_from_the_profile_unless_a_flag_gives_it(data_dir: Path) -> None:
    export_embeddings.main(["sft", "--profile", "smoke"])
    assert read_manifest(data_dir / "sft_tokens").max_length == 256
    export_embeddings.main(["sft", "--profile", "smoke", "--max-length", "64"])
    assert read_manifest(data_dir / "sft_tokens").max_length == 64


def test_a_heldout_file_can_be_named(data_dir: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"text": "x", "split": "validation"}\n' * 5)
    export_embeddings.main(["pretrain", "--heldout", str(held)])
    assert read_manifest(data_dir / "pretrain_tokens" / "validation").source.records == 5


def test_once_the_tensors_exist_the_records_may_be_deleted(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_embeddings.main(["sft"])
    (data_dir / "sft_chinese.jsonl").unlink()
    (data_dir / "sft_chinese_heldout.jsonl").unlink()
    assert export_embeddings.main(["sft", "--inspect", "1"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_without_records_and_tensors_the_missing_file_is_named(data_dir: Path) -> None:
    (data_dir / "sft_chinese.jsonl").unlink()
    with pytest.raises(UserError, match=r"sft_chinese\.jsonl: no such file"):
        export_embeddings.main(["sft"])


def test_inspect_marks_learnt_tokens_with_brackets(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_embeddings.main(["sft", "--inspect", "1", "--max-length", "16"])
    out = capsys.readouterr().out
    expected = "<|bos|>·<|user_start|>·a·b·<|user_end|>·<|assistant_start|>·[c]·[\\n]·[d]·[<|assistant_end|>]"
    assert "row 0, document 0: 10 tokens, 4 learnt" in out
    assert expected in out.splitlines()
    assert "\033" not in out


def test_a_character_of_several_tokens_is_shown_over_each_of_them() -> None:
    shipped = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    shown = export_embeddings.token_texts(shipped.encode("猜谜吗"), shipped)
    assert [text for text in shown if "谜" in text] == ["谜1/2", "谜2/2"]
    assert not any("\\x" in text for text in shown)


@given(ids=st.lists(st.integers(0, 6399), max_size=12))
@settings(deadline=None)
def test_every_token_shows_something_whatever_stands_beside_it(ids: list[int]) -> None:
    shipped = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    shown = export_embeddings.token_texts(ids, shipped)
    assert len(shown) == len(ids) and all(shown)


def test_inspect_shows_ids_and_both_sides_of_a_pair(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_embeddings.main(["dpo", "--inspect", "2", "--show-ids"])
    out = capsys.readouterr().out
    assert "pair 0, chosen: 9 tokens, 4 learnt" in out
    assert "pair 2, rejected: 8 tokens, 3 learnt" in out
    assert "q(113)" in out
    assert "[y(121)]" in out


def test_inspect_colours_on_a_terminal_unless_told_otherwise(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    export_embeddings.main(["sft", "--inspect", "1"])
    out = capsys.readouterr().out
    assert "\033[32mc\033[0m" in out
    assert "\033[90ma\033[0m" in out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    export_embeddings.main(["sft", "--inspect", "1"])
    assert "[c]" in capsys.readouterr().out


def test_a_bad_line_ends_with_one_line_and_exit_code_1(data_dir: Path) -> None:
    with (data_dir / "sft_chinese.jsonl").open("a") as file:
        file.write("{oops\n")
    command = [sys.executable, str(ROOT / "scripts" / "export_embeddings.py"), "sft"]
    shown = subprocess.run(
        command, cwd=ROOT / "scripts", env=os.environ.copy(), capture_output=True, text=True, check=False
    )
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].startswith("error: ")
    assert "sft_chinese.jsonl:4: malformed JSON" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not [path for path in data_dir.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    "flags", [["--max-length", "1"], ["--num-workers", "-1"], ["--inspect", "-1"], ["--bos-token", "x"]]
)
def test_flags_out_of_range_are_refused(data_dir: Path, flags: list[str]) -> None:
    with pytest.raises(UserError, match=flags[0]):
        export_embeddings.main(["sft", *flags])
    assert not (data_dir / "sft_tokens").exists()

"""Bad input and bad disks, from end to end: one clear line, what was good is kept, nothing
half-written is trusted."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import eval_model
from configs.artifacts import append_line
from configs.cli import run
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.tokens.build import TensorJob, build_tensors
from scripts import build_chinese_mix, evaluate_stage, export_embeddings
from tests.scripts.fake_repository import FakeRepository
from tests.tiny_run import kept_signal_handlers
from trainer import train_full_sft, train_pretrain
from trainer.resume import ResumeState, saved_states

Main = Callable[[Sequence[str]], int]
SHAPE = ("--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--num_key_value_heads", "1")
LENGTH = ("--max_seq_len", "16", "--batch_size", "2", "--accumulation_steps", "1", "--max_steps", "6")
TARGETS = ("--general", "9", "--knowledge", "0", "--math", "0", "--identity", "0", "--preference", "0")
NOBODY = 65534


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    with kept_signal_handlers():
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@dataclass(frozen=True)
class Small:
    """A folder with records, tensors, a tokenizer of bytes, and weights pretrained on them."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "out" / "pretrain_32.pth"

    def flags(self, stage: str, out: Path, *more: str) -> list[str]:
        """Arguments of a trainer."""
        return [
            *("--profile", "smoke", *LENGTH, *more),
            *("--data_path", str(self.folder / f"{stage}_tokens"), "--tokenizer_dir", str(self.folder / "tokenizer")),
            *("--out_dir", str(out), "--tf_dir", str(self.folder / "tf_dir")),
        ]

    def evaluation(self, weights: Path, results: Path) -> list[str]:
        """Arguments of an evaluation."""
        return [
            *("--stage", "pretrain", "--profile", "smoke"),
            *("--checkpoint", str(weights), "--results_file", str(results)),
            *("--data_path", str(self.folder / "heldout.jsonl"), "--tokenizer_dir", str(self.folder / "tokenizer")),
        ]

    def chat(self, weights: Path) -> list[str]:
        """Arguments of a question."""
        return ["--weight", str(weights), "--prompt", "你好", "--tokenizer_dir", str(self.folder / "tokenizer")]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)})
    tokenizer.save(folder / "tokenizer")
    records = {"pretrain": [{"text": f"第{n}段话。" * 9} for n in range(20)], "sft": [chat(f"{n}") for n in range(20)]}
    for stage, given in records.items():
        source = write(folder / f"{stage}.jsonl", given)
        build_tensors(
            TensorJob(STAGE_TABLE[stage].data, source, folder / f"{stage}_tokens", tokenizer, 16, 1, progress=False)
        )
    write(folder / "heldout.jsonl", [{"text": f"留出的第{n}段。"} for n in range(5)])
    made = Small(folder)
    with kept_signal_handlers():
        assert train_pretrain.main(made.flags("pretrain", folder / "out", *SHAPE)) == 0
    return made


def chat(question: str) -> dict[str, Any]:
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": "答"}]}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def error_of(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(lambda: main(arguments))
    assert stop.value.code == 1
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert len(lines[0]) < 600
    return lines[0].removeprefix("error: ")


def mix_flags(folder: Path, output: Path | None = None) -> list[str]:
    return ["--source_dir", str(folder), "--output_dir", str(output or folder.parent / "mixed"), *TARGETS]


def fill(disk: Path) -> Path:
    """Leave no room on a disk. Returns: the file to remove again."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- records --------------------------------------------------------------------------------------


def test_good_records_survive_every_kind_of_bad_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    good = [json.dumps({"text": f"第{n}段"}, ensure_ascii=False).encode() for n in range(100)]
    long = json.dumps({"text": "长" * 3_500_000}, ensure_ascii=False).encode()  # 10 MB
    bad = {
        "malformed JSON": b'{"text": "half',
        "text is not a string": b'{"text": 5}',
        "invalid UTF-8": b'{"text": "\xff\xfe"}',
        "line above 64 MB": b'{"text": "' + b"x" * (64 << 20) + b'"}',
    }
    lines = [*good[:50], *bad.values(), b"", long, *good[50:]]
    (sources / "pretrain_mine.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))  # a BOM, no last line end
    write(sources / "sft_mine.jsonl", [*(chat(f"问{n}") for n in range(30)), {"conversations": []}])
    assert build_chinese_mix.main(mix_flags(sources)) == 0
    assert "bad lines are in" in capsys.readouterr().out
    mixed = tmp_path / "mixed"
    rejects = read(mixed / "rejects.jsonl")
    assert [(r["file"], r["line"]) for r in rejects if r["file"].startswith("sft")] == [("sft_mine.jsonl", 31)]
    found = {r["reason"]: r["line"] for r in rejects}
    assert found.pop("empty conversation") == 31
    assert list(found.values()) == [51, 52, 53, 54]
    assert set(found) == set(bad)
    kept = [r["text"] for half in ("", "_heldout") for r in read(mixed / f"pretrain_chinese{half}.jsonl")]
    assert sum(text.startswith("第") for text in kept) == 100
    assert any(len(text) == 3_500_000 for text in kept)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["{}"] * 2, "pretrain_mine.jsonl: no readable record"),
        (['{"text": "好"}'] * 20 + ["no JSON"] * 4, "pretrain_mine.jsonl: 4 of 24 records can't be used"),
        ([], "pretrain_mine.jsonl: is empty"),
    ],
)
def test_a_file_that_is_mostly_bad_stops_the_mix_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], expected: str
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "pretrain_mine.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    write(sources / "sft_mine.jsonl", [chat(f"问{n}") for n in range(30)])
    assert expected in error_of(build_chinese_mix.main, mix_flags(sources), capsys)
    assert files_in(tmp_path / "mixed") == [".mix.lock", "rejects.jsonl"]
    assert len(read(tmp_path / "mixed" / "rejects.jsonl")) == sum(line != '{"text": "好"}' for line in lines)


@pytest.mark.parametrize(
    "name", [b"sft_\xd6\xd0\xce\xc4.jsonl", b"sft_a\nb.jsonl"]
)  # 中文 in GBK, as old archives unpack it
def test_a_file_whose_name_is_no_text_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    write(sources / os.fsdecode(name), [chat(f"问{n}") for n in range(30)])
    message = error_of(build_chinese_mix.main, mix_flags(sources), capsys)
    assert "sources/'sft_" in message and "its name holds what is no text. Rename the file" in message


@contextmanager
def without_root() -> Iterator[None]:
    """Permissions do not bind root, so be somebody else."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(NOBODY)
    except PermissionError:
        pytest.skip("this root may not become another user")
    try:
        yield
    finally:
        os.seteuid(0)


def test_missing_permissions_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(tempfile.mkdtemp())  # tmp_path is closed to other users
    try:
        sources, mixed = folder / "sources", folder / "mixed"
        for path in (sources, mixed):
            path.mkdir()
            path.chmod(0o777)
        folder.chmod(0o755)
        write(sources / "sft_mine.jsonl", [chat(f"问{n}") for n in range(30)])
        source = write(sources / "pretrain_mine.jsonl", [{"text": f"第{n}段"} for n in range(9)])
        source.chmod(0)
        with without_root():
            message = error_of(build_chinese_mix.main, mix_flags(sources), capsys)
            assert "pretrain_mine.jsonl: can't be read (Permission denied). Check the file's permissions" in message
        source.chmod(0o644)
        mixed.chmod(0o555)
        with without_root():
            message = error_of(build_chinese_mix.main, mix_flags(sources, mixed / "new"), capsys)
            assert "mixed/new: can't be written (Permission denied)" in message
    finally:
        shutil.rmtree(folder)


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_stops_mix_and_export_and_leaves_nothing_that_is_trusted(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    source = write(sources / "pretrain_mine.jsonl", [{"text": f"第{n}段" * 99} for n in range(1500)])
    write(sources / "sft_mine.jsonl", [chat(f"问{n}") for n in range(30)])
    message = error_of(build_chinese_mix.main, mix_flags(sources, disk / "mixed"), capsys)
    assert "disk/mixed: can't be written (No space left on device). Free disk space" in message
    assert files_in(disk) == ["mixed/.mix.lock", "mixed/rejects.jsonl"]
    export = ["pretrain", "--input", str(source), "--output", str(disk / "tokens"), "--num-workers", "1"]
    message = error_of(export_embeddings.main, export, capsys)
    assert "disk/tokens: can't be written (No space left on device). Free disk space" in message
    assert not [path for path in disk.iterdir() if path.name != "mixed"]


def test_a_full_disk_stops_a_trainer_which_goes_on_from_its_last_save(
    small: Small, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_fill(state: ResumeState, content: dict[str, Any]) -> list[Path]:
        removed = save(state, content)
        fill(disk)
        return removed

    save = ResumeState.save
    flags = small.flags("pretrain", disk, *SHAPE, "--save_interval", "2")
    with monkeypatch.context() as patch:
        patch.setattr(ResumeState, "save", save_and_fill)
        message = error_of(train_pretrain.main, flags, capsys)
    (state,) = saved_states(disk / "checkpoints" / "pretrain")
    assert f"{state}: can't be written (No space left on device). Free disk space" in message
    assert files_in(disk) == [str(state.relative_to(disk)), "filler"]
    (disk / "filler").unlink()
    assert train_pretrain.main(flags) == 0
    assert "resuming after step 2 of 6" in capsys.readouterr().err
    ours, theirs = (torch.load(path, weights_only=True)["model"] for path in (small.weights, disk / "pretrain_32.pth"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_full_disk_tears_no_line(disk: Path) -> None:
    results = disk / "eval_results.jsonl"
    append_line(results, {"stage": "pretrain"})
    fill(disk)
    with pytest.raises(UserError, match="No space left on device"):
        for _ in range(3):
            append_line(results, {"stage": "sft", "text": "x" * 3000})
    assert all(line["stage"] in {"pretrain", "sft"} for line in read(results))
    assert results.read_bytes().endswith(b"\n")


# --- a read-only folder ---------------------------------------------------------------------------


def test_a_read_only_folder_is_named_before_any_work(
    tmp_path: Path, small: Small, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    write(sources / "sft_mine.jsonl", [chat(f"问{n}") for n in range(30)])
    export = ["pretrain", "--input", str(small.folder / "pretrain.jsonl"), "--output", str(disk / "tokens")]
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for main, flags, name in (
        (build_chinese_mix.main, mix_flags(sources, disk / "mixed"), "disk/mixed"),
        (export_embeddings.main, export, "disk/tokens"),
        (train_pretrain.main, small.flags("pretrain", disk, *SHAPE), "disk"),
        (evaluate_stage.main, small.evaluation(small.weights, disk / "results.jsonl"), "disk"),
    ):
        message = error_of(main, flags, capsys)
        assert f"{name}: can't be written (Read-only file system). Free disk space or check the folder's" in message
    result = FakeRepository(tmp_path).run(OUT_DIR=str(disk))
    assert result.code == 1
    assert result.errors.startswith(f"error: {disk}: can't be written. Check its permissions and the disk")
    assert len(result.errors.splitlines()) == 1


# --- weights that do not fit ----------------------------------------------------------------------


def cut(path: Path, target: Path) -> Path:
    """The first half of a file."""
    content = path.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    return target


def changed(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Weights in which something was changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, target)
    return target


def test_weights_that_do_not_fit_are_refused_by_all_who_read_them(
    tmp_path: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    def more_layers(content: dict[str, Any]) -> None:
        content["config"]["num_hidden_layers"] = 2

    def other_tokenizer(content: dict[str, Any]) -> None:
        content["manifest"]["tokenizer_sha256"] = "0" * 64

    def bare(content: dict[str, Any]) -> None:
        content |= content.pop("model")
        del content["config"], content["manifest"]

    wrong = {
        cut(small.weights, tmp_path / "cut_32.pth"): "damaged or cut short",
        changed(small.weights, tmp_path / "layers_32.pth", more_layers): "weights of another shape (11 tensors differ",
        changed(small.weights, tmp_path / "other_32.pth", other_tokenizer): "made with another tokenizer (00000000)",
        changed(small.weights, tmp_path / "bare_32.pth", bare): "not a MiniLLM checkpoint",
    }
    results, out = tmp_path / "results.jsonl", tmp_path / "out"
    for path, expected in wrong.items():
        for main, flags in (
            (train_full_sft.main, small.flags("sft", out, "--from_weight", str(path))),
            (evaluate_stage.main, small.evaluation(path, results)),
            (eval_model.main, small.chat(path)),
        ):
            assert f"{path}: {expected}" in error_of(main, flags, capsys)
    assert not results.exists()
    assert files_in(out) == []


def test_a_resume_state_cut_in_half_is_named_with_the_folder_to_delete(
    tmp_path: Path, small: Small, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResumeState, "clear", lambda state: None)
    flags = small.flags("pretrain", tmp_path, *SHAPE, "--save_interval", "2")
    assert train_pretrain.main(flags) == 0
    (tmp_path / "pretrain_32.pth").unlink()
    (state,) = saved_states(tmp_path / "checkpoints" / "pretrain")
    cut(state, state)
    message = error_of(train_pretrain.main, flags, capsys)
    assert f"{state}: damaged or cut short" in message
    assert f"Delete {state.parent} to train this stage from its start." in message
    shutil.rmtree(state.parent)
    assert train_pretrain.main(flags) == 0


def test_weights_cut_in_half_are_trained_again(tmp_path: Path, small: Small) -> None:
    weights = cut(small.weights, tmp_path / "pretrain_32.pth")
    assert train_pretrain.main(small.flags("pretrain", tmp_path, *SHAPE)) == 0
    assert weights.stat().st_size == small.weights.stat().st_size


def test_a_shape_flag_against_the_weights_is_refused(
    tmp_path: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = small.flags("sft", tmp_path, "--from_weight", str(small.weights), "--hidden_size", "64")
    message = error_of(train_full_sft.main, flags, capsys)
    assert message.startswith(f"--hidden_size 64: {small.weights} was made with 32. Leave the flag out")


def test_tensors_of_another_tokenizer_are_refused(
    tmp_path: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = {bytes([byte]): byte for byte in range(NUM_BYTES)}
    RustBPETokenizer(QWEN2_PATTERN, ranks | {b"ab": NUM_BYTES}).save(tmp_path / "other")
    flags = [*small.flags("pretrain", tmp_path, *SHAPE), "--tokenizer_dir", str(tmp_path / "other")]
    message = error_of(train_pretrain.main, flags, capsys)
    assert f"{small.folder / 'pretrain_tokens'}: made with another tokenizer (" in message
    assert "Rerun python scripts/export_embeddings.py pretrain, or pass --tokenizer_dir." in message

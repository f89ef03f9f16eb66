"""dataset/tensors.py: exact labels, equal files from any number of workers, nothing half-written trusted."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.artifacts import sha256_file, write_json
from configs.paths import ROOT, heldout_beside
from configs.schema import UserError
from configs.stage_table import RECIPE_VERSION, STAGE_TABLE
from dataset import encoding, packing, tensors
from dataset.tensors import (
    IGNORE,
    TensorJob,
    build_tensors,
    check_contents,
    current_tensors,
    ensure_tensors,
    open_tensors,
    read_manifest,
)
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer

# A token a byte, so that ids can be read: the id of "a" is ord("a").
tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)})
BOS, EOS = tokenizer.get_bos_token_id(), tokenizer.end_of_text_id
USER, USER_END, BOT, BOT_END = (
    tokenizer.encode_special(f"<|{name}|>") for name in ("user_start", "user_end", "assistant_start", "assistant_end")
)
NO = IGNORE
TEXTS = ["你好，世界", "abc", "a longer text, with é and 👍", "x", "短文。" * 30]
CHATS = [[("你好", "你好！")], [("1+1=?", "2"), ("再加 1 呢？", "3。")], [("hi", "y" * 70)]]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def documents(path: Path, texts: list[str] = TEXTS) -> Path:
    return write_lines(path, [{"text": text} for text in texts])


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def chats(path: Path, conversations: list[list[tuple[str, str]]] = CHATS) -> Path:
    return write_lines(path, [{"conversations": conversation(turns)} for turns in conversations])


def pairs(path: Path, triples: list[tuple[str, str, str]]) -> Path:
    return write_lines(
        path, [{"chosen": conversation([(q, a)]), "rejected": conversation([(q, b)])} for q, a, b in triples]
    )


def job(stage: str, source: Path, **settings: Any) -> TensorJob:
    defaults = {"output": source.with_name("tensors"), "max_length": 16, "num_workers": 1, "progress": False}
    return TensorJob(STAGE_TABLE[stage].data, source, tokenizer=tokenizer, **(defaults | settings))


def arrays_of(task: TensorJob) -> dict[str, np.ndarray]:
    build_tensors(task)
    return {name: tensor.numpy() for name, tensor in open_tensors(task.output).items()}


def ids(text: str) -> list[int]:
    return list(text.encode())


# --- pretraining ------------------------------------------------------------------------------------------------------


def test_documents_are_cut_into_rows_that_share_the_token_at_the_cut(tmp_path: Path) -> None:
    arrays = arrays_of(job("pretrain", documents(tmp_path / "a.jsonl", ["abcde", "f"]), max_length=4))
    a, b, c, d, e, f = ids("abcdef")
    assert arrays["input_ids"].tolist() == [[BOS, a, b, c], [c, d, e, EOS], [BOS, f, EOS, EOS]]
    assert arrays["labels"].tolist() == [[a, b, c, NO], [d, e, EOS, NO], [f, EOS, NO, NO]]
    assert arrays["document_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, -1]]


def test_documents_that_share_a_row_are_numbered_and_never_predict_each_other(tmp_path: Path) -> None:
    arrays = arrays_of(job("pretrain", documents(tmp_path / "a.jsonl", ["a", "b", "cd"]), max_length=8))
    a, b, c, d = ids("abcd")
    assert arrays["input_ids"].tolist() == [[BOS, a, EOS, BOS, b, EOS, BOS, c], [c, d, EOS, *[EOS] * 5]]
    assert arrays["labels"].tolist() == [[a, EOS, NO, b, EOS, NO, c, NO], [d, EOS, *[NO] * 6]]
    assert arrays["document_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, *[-1] * 5]]


@pytest.mark.parametrize("max_length", [2, 3, 5, 16, 64, 1000])
@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_every_token_but_the_first_of_a_document_is_predicted_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_length: int, batch_bytes: int
) -> None:
    monkeypatch.setattr(encoding, "BATCH_BYTES", batch_bytes)
    arrays = arrays_of(job("pretrain", documents(tmp_path / "a.jsonl"), max_length=max_length))
    labels = arrays["labels"]
    assert labels[labels != IGNORE].tolist() == [token for text in TEXTS for token in [*ids(text), EOS]]
    check_alignment(arrays)
    assert (arrays["document_ids"][:-1] >= 0).all()  # padding only in the last row


def check_alignment(arrays: dict[str, np.ndarray]) -> None:
    """A label is the next token of the same document, or IGNORE."""
    labels, document_ids = arrays["labels"], arrays["document_ids"]
    here = labels[:, :-1] != IGNORE
    assert (labels[:, :-1][here] == arrays["input_ids"][:, 1:][here]).all()
    assert (document_ids[:, :-1][here] == document_ids[:, 1:][here]).all()
    assert (labels[:, -1] == IGNORE).all()
    assert (labels[document_ids < 0] == IGNORE).all()
    assert (arrays["input_ids"][document_ids < 0] == EOS).all()


def test_without_marks_a_document_is_its_text_alone(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl", ["ab", "cd"])
    arrays = arrays_of(job("pretrain", source, max_length=5, bos_token=None, append_eos=False))
    assert arrays["input_ids"].tolist() == [[*ids("abcd"), EOS]]
    assert arrays["labels"].tolist() == [[ord("b"), NO, ord("d"), NO, NO]]


def test_another_special_token_may_open_documents(tmp_path: Path) -> None:
    arrays = arrays_of(job("pretrain", documents(tmp_path / "a.jsonl", ["a"]), bos_token="<|endoftext|>"))
    assert arrays["input_ids"][0, :3].tolist() == [EOS, ord("a"), EOS]


def test_a_bos_token_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--bos-token <s>: no special token"):
        job("pretrain", documents(tmp_path / "a.jsonl"), bos_token="<s>")


def test_the_manifest_counts_tokens_targets_and_bytes_exactly(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    arrays = open_tensors(task.output)
    assert manifest["num_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest["num_targets"] == int((arrays["labels"] != IGNORE).sum())
    assert manifest["num_tokens"] == int((arrays["document_ids"] >= 0).sum())
    assert manifest["rows"] == len(arrays["input_ids"])
    assert manifest["source"]["records"] == len(TEXTS)
    assert manifest["truncated"] == {"records": 0, "share": 0.0}


def test_each_setting_of_the_tensors_is_in_their_fingerprint(tmp_path: Path) -> None:
    task = job("pretrain", tmp_path / "a.jsonl")
    settings = ({"bos_token": None}, {"append_eos": False}, {"split": "validation"}, {"max_length": 17})
    tasks = [task, job("sft", tmp_path / "a.jsonl", append_eos=True), *(replace(task, **each) for each in settings)]
    inputs = [("x", None), ("y", None), ("x", "y")]
    assert len({each.fingerprint(*hashes) for each in tasks for hashes in inputs}) == len(tasks) * len(inputs)
    assert replace(task, num_workers=3, progress=True).fingerprint("x", None) == task.fingerprint("x", None)


# --- SFT --------------------------------------------------------------------------------------------------------------


def test_all_answers_and_their_ends_are_learnt_and_nothing_else(tmp_path: Path) -> None:
    arrays = arrays_of(job("sft", chats(tmp_path / "a.jsonl", [[("a", "b"), ("c", "de")]])))
    a, b, c, d, e = ids("abcde")
    row = [BOS, USER, a, USER_END, BOT, b, BOT_END, USER, c, USER_END, BOT, d, e, BOT_END]
    learnt = [NO, NO, NO, NO, b, BOT_END, NO, NO, NO, NO, d, e, BOT_END, NO]
    assert arrays["input_ids"].tolist() == [[*row, EOS, EOS]]
    assert arrays["labels"].tolist() == [[*learnt, NO, NO]]
    assert arrays["document_ids"].tolist() == [[*[0] * 14, -1, -1]]
    assert arrays["loss_mask"].dtype == np.bool_
    assert (arrays["loss_mask"] == (arrays["labels"] != IGNORE)).all()


def test_conversations_in_a_row_are_whole_and_keep_their_own_numbers(tmp_path: Path) -> None:
    arrays = arrays_of(job("sft", chats(tmp_path / "a.jsonl"), max_length=128))
    check_alignment(arrays)
    found = []
    for row, documents_of_row in zip(arrays["input_ids"], arrays["document_ids"], strict=True):
        found += [row[documents_of_row == number].tolist() for number in range(documents_of_row.max() + 1)]
    expected = [tokenizer.render_conversation(conversation(turns))[0] for turns in CHATS]
    assert sorted(found) == sorted(expected)


def test_bytes_of_answers_are_counted_exactly(tmp_path: Path) -> None:
    manifest = build_tensors(job("sft", chats(tmp_path / "a.jsonl"), max_length=128))
    assert manifest["num_bytes"] == sum(len(answer.encode()) for turns in CHATS for _, answer in turns)


def test_a_conversation_that_just_fits_is_not_counted_as_cut(tmp_path: Path) -> None:
    turns = [[("q", "z" * length)] for length in (10, 11)]  # with 5 special tokens and the question 16 and 17 tokens
    manifest = build_tensors(job("sft", chats(tmp_path / "a.jsonl", turns)))
    assert (manifest["rows"], manifest["num_tokens"]) == (2, 32)
    assert manifest["truncated"]["records"] == 1


def test_long_conversations_are_cut_and_those_without_an_answer_left_are_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [[("q", "a")], [("q", "z" * 50)], [("q" * 50, "a")]]
    manifest = build_tensors(job("sft", chats(tmp_path / "a.jsonl", turns)))
    assert manifest["truncated"] == {"records": 1, "share": round(1 / 3, 6)}
    assert manifest["dropped"] == {"no answer within 16 tokens": 1}
    assert manifest["source"]["records"] == 3
    warning = capsys.readouterr().err
    assert "1 of 3 records (33.3%) are longer than 16 tokens and were cut there" in warning
    assert "1 of 3 records (33.3%) were left out: no answer within 16 tokens" in warning


# --- DPO --------------------------------------------------------------------------------------------------------------


def test_pairs_are_stored_without_padding_and_only_the_last_answer_is_learnt(tmp_path: Path) -> None:
    before = conversation([("a", "b")])
    chosen, rejected = ([*before, *conversation([("c", answer)])] for answer in ("d", "ef"))
    source = write_lines(tmp_path / "a.jsonl", [{"chosen": chosen, "rejected": rejected}])
    arrays = arrays_of(job("dpo", source))
    a, b, c, d, e, f = ids("abcdef")
    prompt = [BOS, USER, a, USER_END, BOT, b, BOT_END, USER, c, USER_END, BOT]
    assert arrays["chosen_input_ids"].tolist() == [*prompt, d, BOT_END]
    assert arrays["chosen_labels"].tolist() == [*[NO] * 10, d, BOT_END, NO]
    assert arrays["rejected_input_ids"].tolist() == [*prompt, e, f, BOT_END]
    assert arrays["rejected_labels"].tolist() == [*[NO] * 10, e, f, BOT_END, NO]
    assert arrays["chosen_offsets"].tolist() == [0, 13]
    assert arrays["rejected_offsets"].tolist() == [0, 14]


def test_offsets_go_on_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BATCH_BYTES", 1)
    source = pairs(tmp_path / "a.jsonl", [("q", "yes", "no"), ("r", "1", "234"), ("s", "左", "右边")])
    arrays = arrays_of(job("dpo", source, max_length=64))
    assert np.diff(arrays["chosen_offsets"]).tolist() == [6 + 3, 6 + 1, 6 + 3]
    assert np.diff(arrays["rejected_offsets"]).tolist() == [6 + 2, 6 + 3, 6 + 6]
    assert len(arrays["rejected_labels"]) == arrays["rejected_offsets"][-1]


def test_cut_pairs_are_counted_and_those_that_no_longer_differ_are_dropped(tmp_path: Path) -> None:
    source = pairs(
        tmp_path / "a.jsonl", [("q", "a", "b" * 50), ("q" * 50, "a", "b"), ("q", "a" * 50 + "x", "a" * 50 + "y")]
    )
    manifest = build_tensors(job("dpo", source))
    assert manifest["rows"] == 1
    assert manifest["truncated"]["records"] == 1
    assert manifest["dropped"] == {"both answers equal within 16 tokens": 1, "no answer within 16 tokens": 1}


# --- what goes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_files_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    sources = {
        "pretrain": documents(tmp_path / "t.jsonl", TEXTS * 20),
        "sft": chats(tmp_path / "c.jsonl", CHATS * 20),
        "dpo": pairs(tmp_path / "p.jsonl", [("q", "a" * n, "b") for n in range(2, 60)]),
    }
    one = build_tensors(job(stage, sources[stage], output=tmp_path / "one"))
    monkeypatch.setattr(encoding, "BATCH_BYTES", 500)
    monkeypatch.setattr(encoding, "BYTES_PER_WORKER", 1)
    three = build_tensors(job(stage, sources[stage], output=tmp_path / "three", num_workers=3))
    assert one == three


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert build_tensors(job("pretrain", source))["source"]["records"] == 2


def test_a_long_line_is_one_document(tmp_path: Path) -> None:
    text = "很长的一行。" * 100_000
    manifest = build_tensors(job("pretrain", documents(tmp_path / "a.jsonl", ["a", text]), max_length=2048))
    assert manifest["num_bytes"] == 1 + len(text.encode())


@pytest.mark.parametrize(
    ("stage", "line", "reason"),
    [
        ("pretrain", b'{"text": "a"', "malformed JSON"),
        ("pretrain", b'{"text": 3}', "text is not a string"),
        ("pretrain", b'{"text": "\xff"}', "invalid UTF-8"),
        ("sft", b'{"text": "a"}', "no conversation"),
        ("sft", b'{"conversations": []}', "empty conversation"),
        ("sft", b'{"conversations": [{"role": "user", "content": "a"}]}', "no assistant answer"),
        (
            "dpo",
            b'{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "no preference",
        ),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_bad_line_is_named_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, line: bytes, reason: str, num_workers: int
) -> None:
    good = {"pretrain": documents, "sft": chats}.get(stage, lambda path: pairs(path, [("q", "a", "b")] * 4))
    source = good(tmp_path / "a.jsonl")
    count = len(source.read_bytes().splitlines())
    with source.open("ab") as file:
        file.write(line + b"\n" + line + b"\n")
    monkeypatch.setattr(encoding, "BATCH_BYTES", 100)
    monkeypatch.setattr(encoding, "BYTES_PER_WORKER", 1)
    with pytest.raises(UserError, match=rf"a\.jsonl:{count + 1}: {reason}"):
        build_tensors(job(stage, source, num_workers=num_workers, max_length=200))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("\n")
    with pytest.raises(UserError, match="no record to train on"):
        build_tensors(job("pretrain", source))
    assert not (tmp_path / "tensors").exists()


@pytest.mark.parametrize("setting", [{"max_length": 1}, {"num_workers": -1}])
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be"):
        job("pretrain", documents(tmp_path / "a.jsonl"), **setting)


def test_validation_tensors_come_from_the_validation_half_of_the_heldout_file(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")
    splits = ["test", "validation", "test", "validation"]
    held = [{"text": str(number), "split": split} for number, split in enumerate(splits)]
    assert heldout_beside(source) is None
    write_lines(tmp_path / "a_heldout.jsonl", held)
    manifest = build_tensors(job("pretrain", source, heldout=heldout_beside(source)))
    assert manifest["validation"]["records"] == 2
    arrays = open_tensors(tmp_path / "tensors" / "validation")
    assert arrays["input_ids"][0, :6].tolist() == [BOS, ord("1"), EOS, BOS, ord("3"), EOS]
    assert read_manifest(tmp_path / "tensors" / "validation")["split"] == "validation"


def test_a_heldout_file_without_validation_records_gives_no_folder(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")
    heldout = write_lines(tmp_path / "a_heldout.jsonl", [{"text": "x", "split": "test"}])
    task = job("pretrain", source, heldout=heldout)
    build_tensors(task)
    assert not (tmp_path / "tensors" / "validation").exists()
    assert current_tensors(task) is not None


# --- what is on the disk ----------------------------------------------------------------------------------------------


def test_tensors_are_made_once_and_again_when_anything_they_depend_on_changes(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")

    def ensure(max_length: int = 16) -> int:
        ensure_tensors(
            "documents", source, tmp_path / "tensors", tokenizer, max_length=max_length, num_workers=1, progress=False
        )
        return (tmp_path / "tensors" / "manifest.json").stat().st_mtime_ns

    first = ensure()
    assert ensure() == first
    second = ensure(32)
    assert second != first
    documents(source, ["new"])
    third = ensure(32)
    assert third != second
    documents(tmp_path / "a_heldout.jsonl", ["held"])
    assert ensure(32) != third


def test_a_raised_version_of_the_recipe_makes_tensors_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    assert current_tensors(task) is not None
    monkeypatch.setitem(RECIPE_VERSION, "export", RECIPE_VERSION["export"] + 1)
    assert current_tensors(task) is None


def test_the_record_file_may_be_deleted_once_the_tensors_exist(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")
    heldout = write_lines(tmp_path / "a_heldout.jsonl", [{"text": "x", "split": "validation"}])
    task = job("pretrain", source, heldout=heldout)
    manifest = build_tensors(task)
    source.unlink()
    heldout.unlink()
    assert current_tensors(job("pretrain", source)) == manifest
    with pytest.raises(UserError, match="other settings or another tokenizer"):
        current_tensors(job("pretrain", source, max_length=32))


def test_neither_records_nor_tensors_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl: no such file"):
        current_tensors(job("pretrain", tmp_path / "a.jsonl"))


@pytest.mark.parametrize("lost", [1, 100])
def test_a_file_cut_short_is_refused_and_made_anew(tmp_path: Path, lost: int) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    labels = tmp_path / "tensors" / "labels.npy"
    labels.write_bytes(labels.read_bytes()[:-lost])
    with pytest.raises(
        UserError, match=r"labels\.npy: .* bytes instead of .* rerun: python scripts/export_embeddings\.py pretrain"
    ):
        open_tensors(task.output)
    assert current_tensors(task) is None
    assert build_tensors(task) == manifest
    assert "labels" in open_tensors(task.output)


def test_a_changed_byte_a_missing_file_and_a_torn_manifest_are_noticed(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    array = tmp_path / "tensors" / "input_ids.npy"
    content = array.read_bytes()
    array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert current_tensors(task) is None
    array.unlink()
    assert current_tensors(task) is None
    with pytest.raises(UserError, match="missing"):
        open_tensors(task.output)
    manifest = tmp_path / "tensors" / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    assert current_tensors(task) is None


def test_tensors_that_were_compared_once_are_not_read_again_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(tensors, "sha256_file", noted)
    check_contents(task.output, manifest)
    assert sorted(read) == sorted(f"{name}.npy" for name in manifest["files"])
    check_contents(task.output, manifest)
    assert len(read) == len(manifest["files"])
    os.utime(task.output / "labels.npy")  # touched, not changed
    check_contents(task.output, manifest)
    assert read[len(manifest["files"]) :] == ["labels.npy"]
    manifest["files"]["labels"]["sha256"] = "0" * 64  # the note is about another checksum
    with pytest.raises(UserError, match=r"labels\.npy: its bytes have changed"):
        check_contents(task.output, manifest)


def test_a_byte_changed_under_the_old_size_and_time_of_writing_is_found(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    check_contents(task.output, manifest)
    array = task.output / "labels.npy"
    status = array.stat()
    array.write_bytes(array.read_bytes()[:-1] + b"\x01")
    while array.stat().st_ctime_ns == status.st_ctime_ns or array.stat().st_mtime_ns != status.st_mtime_ns:
        os.utime(array, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"labels\.npy: its bytes have changed"):
        check_contents(task.output, manifest)


@pytest.mark.parametrize("note", ["", "{", "[]", '{"labels": 1}', '{"labels": {"size": 1}}'])
def test_a_torn_note_of_what_was_compared_is_no_harm(tmp_path: Path, note: str) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    (task.output / tensors.CHECKED_FILE).write_text(note)
    check_contents(task.output, manifest)
    array = task.output / "labels.npy"
    array.write_bytes(array.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="its bytes have changed"):
        check_contents(task.output, manifest)


def test_tensors_in_a_folder_that_cannot_be_written_are_compared_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, value: Any) -> None:
        raise UserError(f"{path}: can't be written")

    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    monkeypatch.setattr(tensors, "write_json", refused)
    for _ in range(2):
        check_contents(task.output, manifest)
    assert not (task.output / tensors.CHECKED_FILE).exists()


@pytest.mark.parametrize("part", tensors.MANIFEST_PARTS)
def test_a_manifest_without_a_part_is_refused_by_name(tmp_path: Path, part: str) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)
    del manifest[part]
    write_json(task.output / "manifest.json", manifest)
    with pytest.raises(
        UserError,
        match=f"manifest.json: has no '{part}'. Delete .* and rerun: python scripts/export_embeddings.py pretrain",
    ):
        open_tensors(task.output)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"files": []}, "files"),
        ({"files": {"labels": 3}}, "files: labels"),
        ({"files": {"labels": {"bytes": "4"}}}, "files: labels"),
        ({"rows": "many"}, "rows"),
        ({"validation": {"rows": 2}}, "validation"),
        ({"source": {}}, "source"),
    ],
)
def test_a_manifest_with_a_part_of_another_type_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    write_json(task.output / "manifest.json", build_tensors(task) | change)
    with pytest.raises(UserError, match=f"manifest.json: '{named}' is not as it was written. Delete"):
        open_tensors(task.output)


def test_an_array_of_another_shape_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    path = tmp_path / "tensors" / "labels.npy"
    array = np.load(path)
    np.save(path, array.reshape(-1, 8))
    with pytest.raises(UserError, match="not the array that the manifest describes"):
        open_tensors(task.output)


def test_writing_into_an_opened_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    build_tensors(task)
    open_tensors(task.output)["input_ids"].zero_()
    assert open_tensors(task.output)["input_ids"][0, 0] == BOS


BUILD = """
import os, signal, sys
from pathlib import Path
from dataset import packing, tensors
from dataset.tokenizer import QWEN2_PATTERN, RustBPETokenizer
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
source, output, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if moment:
    owner, name = moment.split(".")
    setattr(tensors if owner == "tensors" else getattr(packing, owner), name, die)
tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(256)})
tensors.ensure_tensors("documents", source, output, tokenizer, max_length=16, num_workers=1, progress=False)
print("torch" in sys.modules)
"""


def build_elsewhere(task: TensorJob, die_in: str = "") -> "subprocess.CompletedProcess[str]":
    """Build in another process, which kills itself where it enters a function."""
    command = [sys.executable, "-c", BUILD, str(task.source), str(task.output), die_in]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    "moment", ["ArrayFile.append", "ArrayFile.finish", "tensors.write_json", "tensors._move_folder"]
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_at_any_moment_leaves_nothing_that_is_trusted(tmp_path: Path, moment: str, existing: bool) -> None:
    source = documents(tmp_path / "a.jsonl")
    task = job("pretrain", source)
    if existing:
        build_tensors(job("pretrain", source, max_length=32))
    assert build_elsewhere(task, die_in=moment).returncode == -signal.SIGKILL
    assert task.output.exists() == existing
    assert current_tensors(task) is None
    build_tensors(task)
    assert current_tensors(task) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tensors"]


def test_a_full_disk_is_one_clear_message_and_leaves_the_old_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    manifest = build_tensors(task)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.ArrayFile, "append", full)
        with pytest.raises(UserError, match=r"can't be written \(No space left on device\)"):
            build_tensors(job("pretrain", task.source, max_length=32))
    assert current_tensors(task) == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tensors"]


def test_a_second_builder_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    task = job("pretrain", documents(tmp_path / "a.jsonl"))
    folder = tmp_path / ".tensors.tmp"
    folder.mkdir()
    (folder / "labels.npy").write_bytes(b"half")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is making it"):
            build_tensors(task)
        assert (folder / "labels.npy").exists()
    finally:
        os.close(descriptor)
    build_tensors(task)


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"holds other things \(a\.jsonl\)"):
        build_tensors(job("pretrain", source, output=tmp_path))
    with pytest.raises(UserError, match="holds other things"):
        build_tensors(job("pretrain", source, output=source))
    assert source.exists()


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: can't be read"):
        build_tensors(job("pretrain", folder))
    with pytest.raises(UserError, match=r"b\.jsonl: can't be read"):
        build_tensors(job("pretrain", tmp_path / "b.jsonl"))


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = documents(tmp_path / "a.jsonl")
    real = packing.DocumentRows.finish

    def meddle(writer: packing.DocumentRows) -> Any:
        documents(source, ["other"])
        return real(writer)

    monkeypatch.setattr(packing.DocumentRows, "finish", meddle)
    with pytest.raises(UserError, match="changed while it was read"):
        build_tensors(job("pretrain", source))


def test_a_worker_that_dies_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BYTES_PER_WORKER", 1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="a process that encodes text ended"):
        build_tensors(job("pretrain", documents(tmp_path / "a.jsonl"), num_workers=2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_building_needs_no_torch(tmp_path: Path) -> None:
    assert build_elsewhere(job("pretrain", documents(tmp_path / "a.jsonl"))).stdout == "False\n"

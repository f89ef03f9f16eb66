"""Tensors from record files: exact labels and counts, with any number of workers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.paths import heldout_beside
from configs.schema import UserError
from dataset.tensors import IGNORE, TruncatedFacts, open_tensors, read_manifest
from dataset.tokens import workers
from dataset.tokens.build import build_tensors, current_tensors
from tests.dataset.tokens.byte_tokens import (
    BOS,
    BOT,
    BOT_END,
    CHATS,
    EOS,
    NO,
    TEXTS,
    USER,
    USER_END,
    arrays_of,
    chats,
    conversation,
    documents,
    ids,
    job,
    pairs,
    tokenizer,
    write_lines,
)


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
    monkeypatch.setattr(workers, "BATCH_BYTES", batch_bytes)
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
    assert manifest.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest.num_targets == int((arrays["labels"] != IGNORE).sum())
    assert manifest.num_tokens == int((arrays["document_ids"] >= 0).sum())
    assert manifest.rows == len(arrays["input_ids"])
    assert manifest.source.records == len(TEXTS)
    assert manifest.truncated == TruncatedFacts(records=0, share=0.0)


def test_each_setting_of_the_tensors_is_in_their_fingerprint(tmp_path: Path) -> None:
    task = job("pretrain", tmp_path / "a.jsonl")
    settings = ({"bos_token": None}, {"append_eos": False}, {"split": "validation"}, {"max_length": 17})
    tasks = [task, job("sft", tmp_path / "a.jsonl", append_eos=True), *(replace(task, **each) for each in settings)]
    inputs = [("x", None), ("y", None), ("x", "y")]
    assert len({each.fingerprint(*hashes) for each in tasks for hashes in inputs}) == len(tasks) * len(inputs)
    assert replace(task, num_workers=3, progress=True).fingerprint("x", None) == task.fingerprint("x", None)


def test_all_answers_and_their_ends_are_targets_and_nothing_else(tmp_path: Path) -> None:
    arrays = arrays_of(job("sft", chats(tmp_path / "a.jsonl", [[("a", "b"), ("c", "de")]])))
    a, b, c, d, e = ids("abcde")
    row = [BOS, USER, a, USER_END, BOT, b, BOT_END, USER, c, USER_END, BOT, d, e, BOT_END]
    targets = [NO, NO, NO, NO, b, BOT_END, NO, NO, NO, NO, d, e, BOT_END, NO]
    assert arrays["input_ids"].tolist() == [[*row, EOS, EOS]]
    assert arrays["labels"].tolist() == [[*targets, NO, NO]]
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


def test_a_conversation_with_thoughts_becomes_a_sequence_for_each_of_them(tmp_path: Path) -> None:
    talk = conversation([("a", "b"), ("c", "d")])
    thinking = [turn | ({"reasoning_content": "x"} if turn["role"] == "assistant" else {}) for turn in talk]
    path = write_lines(tmp_path / "a.jsonl", [{"conversations": thinking}])
    arrays = arrays_of(job("sft", path, max_length=32))
    a, b, c, d, x = ids("abcdx")
    think, think_end = (tokenizer.encode_special(f"<|think_{name}|>") for name in ("start", "end"))
    answers = [think, x, think_end, b, BOT_END], [think, x, think_end, d, BOT_END]
    first = [BOS, USER, a, USER_END, BOT, *answers[0]]
    second = [BOS, USER, a, USER_END, BOT, b, BOT_END, USER, c, USER_END, BOT, *answers[1]]
    rows = sorted(arrays["input_ids"][arrays["document_ids"] == number].tolist() for number in range(2))
    assert rows == sorted([first, second])
    labels = arrays["labels"]
    assert sorted(labels[labels != IGNORE].tolist()) == sorted([*answers[0], *answers[1]])


def test_bytes_of_answers_are_counted_exactly(tmp_path: Path) -> None:
    manifest = build_tensors(job("sft", chats(tmp_path / "a.jsonl"), max_length=128))
    assert manifest.num_bytes == sum(len(answer.encode()) for turns in CHATS for _, answer in turns)


def test_a_conversation_that_just_fits_is_not_counted_as_cut(tmp_path: Path) -> None:
    turns = [[("q", "z" * length)] for length in (10, 11)]  # with 5 special tokens and the question 16 and 17 tokens
    manifest = build_tensors(job("sft", chats(tmp_path / "a.jsonl", turns)))
    assert (manifest.rows, manifest.num_tokens) == (2, 32)
    assert manifest.truncated.records == 1


def test_long_conversations_are_cut_and_those_without_an_answer_left_are_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [[("q", "a")], [("q", "z" * 50)], [("q" * 50, "a")]]
    manifest = build_tensors(job("sft", chats(tmp_path / "a.jsonl", turns)))
    assert manifest.truncated == TruncatedFacts(records=1, share=round(1 / 3, 6))
    assert manifest.dropped == {"no answer within 16 tokens": 1}
    assert manifest.source.records == 3
    warning = capsys.readouterr().err
    assert "1 of 3 records (33.3%) are longer than 16 tokens and were cut there" in warning
    assert "1 of 3 records (33.3%) were left out: no answer within 16 tokens" in warning


def test_pairs_are_stored_without_padding_and_only_the_last_answer_has_targets(tmp_path: Path) -> None:
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
    monkeypatch.setattr(workers, "BATCH_BYTES", 1)
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
    assert manifest.rows == 1
    assert manifest.truncated.records == 1
    assert manifest.dropped == {"both answers equal within 16 tokens": 1, "no answer within 16 tokens": 1}


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
    monkeypatch.setattr(workers, "BATCH_BYTES", 500)
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
    three = build_tensors(job(stage, sources[stage], output=tmp_path / "three", num_workers=3))
    assert one == three


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert build_tensors(job("pretrain", source)).source.records == 2


def test_a_long_line_is_one_document(tmp_path: Path) -> None:
    text = "很长的一行。" * 100_000
    manifest = build_tensors(job("pretrain", documents(tmp_path / "a.jsonl", ["a", text]), max_length=2048))
    assert manifest.num_bytes == 1 + len(text.encode())


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
    monkeypatch.setattr(workers, "BATCH_BYTES", 100)
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
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
    assert manifest.validation.records == 2
    arrays = open_tensors(tmp_path / "tensors" / "validation")
    assert arrays["input_ids"][0, :6].tolist() == [BOS, ord("1"), EOS, BOS, ord("3"), EOS]
    assert read_manifest(tmp_path / "tensors" / "validation").split == "validation"


def test_a_heldout_file_without_validation_records_gives_no_folder(tmp_path: Path) -> None:
    source = documents(tmp_path / "a.jsonl")
    heldout = write_lines(tmp_path / "a_heldout.jsonl", [{"text": "x", "split": "test"}])
    task = job("pretrain", source, heldout=heldout)
    build_tensors(task)
    assert not (tmp_path / "tensors" / "validation").exists()
    assert current_tensors(task) is not None

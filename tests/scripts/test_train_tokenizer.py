"""scripts/train_tokenizer.py: the folder it makes, what it reads, what it says when something is wrong."""

import json
import lzma
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from configs.paths import ROOT
from configs.schema import UserError
from dataset.tokenizer import TOKENIZER_FILES, RustBPETokenizer
from scripts import train_tokenizer

pytest.importorskip("tokenizers")
WORDS = ["人工智能", "今天天气很好", "你好", "北京", "学习"]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = [f"{WORDS[i % 5]}，{WORDS[i * 7 % 5]}{WORDS[i * 3 % 4]}。" for i in range(200)]
    return write_lines(tmp_path / "corpus.jsonl", [{"text": text, "source": "来源"} for text in texts])


def train(*arguments: object) -> int:
    return train_tokenizer.main([str(argument) for argument in arguments])


def test_it_writes_a_folder_that_loads_with_the_size_asked_for(corpus: Path, tmp_path: Path) -> None:
    assert train("--input", corpus, "--output", tmp_path / "t", "--vocab_size", 290) == 0
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted(TOKENIZER_FILES)
    tokenizer = RustBPETokenizer.from_directory(tmp_path / "t")
    assert tokenizer.get_vocab_size() == 290
    assert len(tokenizer.encode("人工智能")) < len("人工智能".encode())
    facts = tokenizer.metadata
    assert facts["training_text"]["description"] == "corpus.jsonl"
    assert facts["training_text"]["texts"] == 190  # 200 less every twentieth
    assert facts["vocabulary"]["heldout"]["characters"] > 0
    assert str(tmp_path) not in (tmp_path / "t" / "tokenizer_meta.json").read_text(encoding="utf-8")


def test_the_same_text_gives_the_same_tokenizer_whether_compressed_or_not(corpus: Path, tmp_path: Path) -> None:
    packed = tmp_path / "corpus.jsonl.xz"
    packed.write_bytes(lzma.compress(b"\xef\xbb\xbf" + corpus.read_bytes().replace(b"\n", b"\r\n")))
    for path, name in ((corpus, "a"), (packed, "b")):
        train("--input", path, "--output", tmp_path / name, "--vocab-size", 300)
    folders = [RustBPETokenizer.from_directory(tmp_path / name) for name in "ab"]
    assert folders[0].sha256 == folders[1].sha256


def test_merges_equal_those_of_a_slow_obvious_trainer(tmp_path: Path) -> None:
    text = "aaab aaab bcbc bcbcbc bca " * 3
    train("--input", write_lines(tmp_path / "c.jsonl", [{"text": text}]), "--output", tmp_path / "t",
          "--vocab-size", 275, "--leave-out-every", 0)  # fmt: skip
    tokenizer = RustBPETokenizer.from_directory(tmp_path / "t")
    words = [[piece[i : i + 1] for i in range(len(piece))] for piece in (p.encode() for p in tokenizer._pieces(text))]
    for token in list(tokenizer.mergeable_ranks)[256:]:
        counts: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = [pair for pair, count in counts.items() if count == max(counts.values())]
        chosen = next(pair for pair in best if b"".join(pair) == token)  # ties may go to any of the best
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == chosen:
                    word[i : i + 2] = [token]
                i += 1


def test_a_text_too_small_for_the_vocabulary_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_lines(tmp_path / "small.jsonl", [{"text": "你好你好"}])
    assert train("--input", small, "--output", tmp_path / "t", "--leave-out-every", 0) == 0
    size = RustBPETokenizer.from_directory(tmp_path / "t").get_vocab_size()
    assert 272 < size < 300
    assert f"warning: the text is too small for 6,400 tokens, the vocabulary has {size}" in capsys.readouterr().err


def test_texts_of_all_shapes_are_read_and_labels_are_not() -> None:
    answer = {"role": "assistant", "content": "答", "reasoning_content": "想"}
    record = {
        "conversations": [{"role": "user", "content": "问"}, answer],
        "chosen": [{"from": "gpt", "value": "好"}],
        "prompt": "提",
        "source": "来源",
        "origin": "a.jsonl:3",
        "score": 3,
    }
    assert list(train_tokenizer.texts_of(record)) == ["问", "答", "想", "好", "提"]
    assert list(train_tokenizer.texts_of({"text": "a\ud800"})) == ["a\ufffd"]


def test_held_out_records_are_never_learnt(tmp_path: Path) -> None:
    records = [{"text": "学"}, {"text": "验", "split": "validation"}, {"text": "测", "split": "test"}]
    corpus = train_tokenizer.Corpus([write_lines(tmp_path / "c.jsonl", records)], leave_out_every=0)
    assert list(corpus.training_texts()) == ["学"]


def test_lines_that_are_no_json_are_counted_and_skipped(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with corpus.open("ab") as file:
        file.write(b'{"text": \n{"text": "\xff"}\n')
    assert train("--input", corpus, "--output", tmp_path / "t", "--vocab-size", 280) == 0
    assert "2 lines hold no JSON record" in capsys.readouterr().err


def test_without_files_named_it_takes_the_mix_else_the_sources_else_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed, sources = tmp_path / "processed", tmp_path / "sources"
    monkeypatch.setenv("DATA_DIR", str(processed))
    monkeypatch.setattr(train_tokenizer, "SOURCE_DIR", sources)
    monkeypatch.setattr(
        train_tokenizer, "write_samples", lambda folder, categories: {c: folder / c for c in categories}
    )
    for folder in (processed, sources):
        folder.mkdir()
    (sources / "identity_conversations.jsonl").touch()
    samples = [path.name for path in train_tokenizer.default_inputs()]
    assert samples == ["general", "knowledge", "math", "corpus", "identity_cn_sample.jsonl"]
    (sources / "a.jsonl").touch()
    assert train_tokenizer.default_inputs() == [sources / "a.jsonl", sources / "identity_conversations.jsonl"]
    (processed / "sft_chinese.jsonl").touch()
    (processed / "sft_chinese_heldout.jsonl").touch()
    assert train_tokenizer.default_inputs() == [processed / "sft_chinese.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vocab-size", "271"], "must be 272 or more"),
        (["--leave-out-every", "1"], "0 \\(none\\) or 2 or more"),
        (["--split-pattern", "("], "can't be compiled|no regular expression"),
        (["--input", "nowhere.jsonl"], "no such file"),
    ],
)
def test_wrong_settings_are_refused(corpus: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train("--input", corpus, "--output", tmp_path / "t", *arguments)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("content", [b"", b"\n", b'{"text": ""}\n', b"no json\n"])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="no text to train on"):
        train("--input", tmp_path / "empty.jsonl", "--output", tmp_path / "t")


def test_a_damaged_archive_is_refused(tmp_path: Path, corpus: Path) -> None:
    broken = tmp_path / "broken.jsonl.xz"
    broken.write_bytes(lzma.compress(corpus.read_bytes())[:-20])
    with pytest.raises(UserError, match=r"broken\.jsonl\.xz: can't be read"):
        train("--input", broken, "--output", tmp_path / "t")


def test_without_the_package_it_says_how_to_install_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install"):
        train("--input", corpus, "--output", tmp_path / "t")


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (["scripts/train_tokenizer.py"], ROOT),
        (["train_tokenizer.py"], ROOT / "scripts"),
        (["-m", "scripts.train_tokenizer"], ROOT),
    ],
)
def test_it_runs_from_the_root_from_its_folder_and_as_a_module(command: list[str], folder: Path) -> None:
    result = subprocess.check_output([sys.executable, *command, "--help"], cwd=folder, text=True)
    assert "--leave-out-every" in result

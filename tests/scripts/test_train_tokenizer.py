"""The two tokenizer trainers: what they read, the folder they make, what they say of mistakes."""

import json
import lzma
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from configs.paths import ROOT
from configs.schema import UserError
from dataset.chat import SPECIAL_TOKENS
from dataset.tokenizer import RustBPETokenizer, rust_class
from dataset.tokenizer_files import TOKENIZER_FILES
from scripts import train_rustbpe_tokenizer, train_tokenizer

pytest.importorskip("tokenizers")
WORDS = ["人工智能", "今天天气很好", "你好", "北京", "学习"]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = [f"{WORDS[i % 5]}，{WORDS[i * 7 % 5]}{WORDS[i * 3 % 4]}。" for i in range(200)]
    return write_lines(tmp_path / "corpus.jsonl", [{"text": text, "source": "来源"} for text in texts])


def crate_is_built() -> bool:
    try:
        rust_class()
    except UserError:
        return False
    return True


NEEDS_CRATE = pytest.mark.skipif(not crate_is_built(), reason="the crate is not built: maturin develop --release")


@pytest.fixture(params=[train_tokenizer, pytest.param(train_rustbpe_tokenizer, marks=NEEDS_CRATE)])
def trainer(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two programs."""
    module: ModuleType = request.param
    return module


def train(trainer: ModuleType, *arguments: object) -> int:
    code: int = trainer.main([str(argument) for argument in arguments])
    return code


def test_it_writes_a_folder_that_loads_with_the_size_asked_for(
    trainer: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    assert train(trainer, "--input", corpus, "--output", tmp_path / "t", "--vocab_size", 290) == 0
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted(TOKENIZER_FILES)
    tokenizer = RustBPETokenizer.from_directory(tmp_path / "t")
    assert tokenizer.get_vocab_size() == 290
    assert tokenizer.special_tokens == {name: 271 + number for number, name in enumerate(SPECIAL_TOKENS)}
    assert len(tokenizer.encode("人工智能")) < len("人工智能".encode())
    facts = tokenizer.metadata
    assert facts["training_text"]["description"] == "corpus.jsonl"
    assert facts["training_text"]["texts"] == 190  # 200 less every twentieth
    assert facts["vocabulary"]["heldout"]["characters"] > 0
    assert str(tmp_path) not in (tmp_path / "t" / "tokenizer_meta.json").read_text(encoding="utf-8")


def test_the_same_text_gives_the_same_tokenizer_whether_compressed_or_not(
    trainer: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "corpus.jsonl.xz"
    packed.write_bytes(lzma.compress(b"\xef\xbb\xbf" + corpus.read_bytes().replace(b"\n", b"\r\n")))
    for path, name in ((corpus, "a"), (packed, "b")):
        train(trainer, "--input", path, "--output", tmp_path / name, "--vocab-size", 300)
    folders = [RustBPETokenizer.from_directory(tmp_path / name) for name in "ab"]
    assert folders[0].sha256 == folders[1].sha256


def test_merges_equal_those_of_a_slow_obvious_trainer(trainer: ModuleType, tmp_path: Path) -> None:
    text = "aaab aaab bcbc bcbcbc bca " * 3
    corpus = write_lines(tmp_path / "c.jsonl", [{"text": text}])
    size = ("--vocab-size", 275, "--leave-out-every", 0)
    train(trainer, "--input", corpus, "--output", tmp_path / "t", *size)
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
    trainer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_lines(tmp_path / "small.jsonl", [{"text": "你好你好"}])
    assert train(trainer, "--input", small, "--output", tmp_path / "t", "--leave-out-every", 0) == 0
    size = RustBPETokenizer.from_directory(tmp_path / "t").get_vocab_size()
    assert 272 < size < 300
    assert f"warning: the text is too small for 6,400 tokens, the vocabulary has {size}" in capsys.readouterr().err


def test_a_single_record_is_learnt_rather_than_held_out(
    trainer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = write_lines(tmp_path / "single.jsonl", [{"text": "你好" * 50}])
    assert train(trainer, "--input", single, "--output", tmp_path / "t") == 0
    facts = RustBPETokenizer.from_directory(tmp_path / "t").metadata
    assert (facts["training_text"]["characters"], facts["training_text"]["leave_out_every"]) == (100, 0)
    assert facts["vocabulary"]["characters_per_token"] is None
    assert "too few lines to hold any out" in capsys.readouterr().err


def test_lines_that_are_no_json_are_counted_and_skipped(
    trainer: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with corpus.open("ab") as file:
        file.write(b'{"text": \n{"text": "\xff"}\n')
    assert train(trainer, "--input", corpus, "--output", tmp_path / "t", "--vocab-size", 280) == 0
    assert "2 records that no stage can read are skipped (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vocab-size", "271"], "must be 275 or more"),
        (["--leave-out-every", "1"], "0 \\(none\\) or 2 or more"),
        (["--split-pattern", "("], "can't be compiled|not a valid regular expression"),
        (["--input", "nowhere.jsonl"], "no such file"),
    ],
)
def test_wrong_settings_are_refused(
    trainer: ModuleType, corpus: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(trainer, "--input", corpus, "--output", tmp_path / "t", *arguments)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("content", [b"", b"\n", b'{"text": ""}\n', b"no json\n"])
def test_a_file_without_text_is_refused(trainer: ModuleType, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="no text to train on"):
        train(trainer, "--input", tmp_path / "empty.jsonl", "--output", tmp_path / "t")


def test_a_damaged_archive_is_refused(trainer: ModuleType, tmp_path: Path, corpus: Path) -> None:
    broken = tmp_path / "broken.jsonl.xz"
    broken.write_bytes(lzma.compress(corpus.read_bytes())[:-20])
    with pytest.raises(UserError, match=r"broken\.jsonl\.xz: damaged"):
        train(trainer, "--input", broken, "--output", tmp_path / "t")


def test_without_its_package_it_says_how_to_get_it(
    trainer: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tokenizers", "rustbpe"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install tokenizers|maturin develop"):
        train(trainer, "--input", corpus, "--output", tmp_path / "t")


@NEEDS_CRATE
def test_the_pypi_package_of_that_name_is_not_taken_for_the_crate(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModuleType("rustbpe")
    other.Tokenizer = type("Tokenizer", (), {"train_from_iterator": None})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rustbpe", other)
    with pytest.raises(UserError, match="is not in this Python environment"):
        train(train_rustbpe_tokenizer, "--input", corpus, "--output", tmp_path / "t")


@NEEDS_CRATE
def test_a_cap_on_han_runs_shortens_tokens_and_is_recorded(corpus: Path, tmp_path: Path) -> None:
    for cap, name in ((0, "plain"), (2, "capped")):
        size = ("--vocab-size", 330, "--max_han_run", cap)
        train(train_rustbpe_tokenizer, "--input", corpus, "--output", tmp_path / name, *size)
    plain, capped = (RustBPETokenizer.from_directory(tmp_path / name) for name in ("plain", "capped"))
    assert capped.pattern == plain.pattern
    assert max(len(token.decode(errors="ignore")) for token in plain.mergeable_ranks) > 4
    assert max(len(token.decode(errors="ignore")) for token in capped.mergeable_ranks) == 3  # a mark and two Han
    assert capped.metadata["training"] == {"trainer": "rustbpe", "max_han_run": 2}
    with pytest.raises(UserError, match="must be 0"):
        train(train_rustbpe_tokenizer, "--input", corpus, "--max-han-run", -1)


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (["scripts/train_tokenizer.py"], ROOT),
        (["train_tokenizer.py"], ROOT / "scripts"),
        (["-m", "scripts.train_tokenizer"], ROOT),
        (["scripts/train_rustbpe_tokenizer.py"], ROOT),
        (["train_rustbpe_tokenizer.py"], ROOT / "scripts"),
        (["-m", "scripts.train_rustbpe_tokenizer"], ROOT),
    ],
)
def test_it_runs_from_the_root_from_its_folder_and_as_a_module(command: list[str], folder: Path) -> None:
    result = subprocess.check_output([sys.executable, *command, "--help"], cwd=folder, text=True)
    assert "--leave-out-every" in result

"""Tokenizers of others: the ids of the package tokenizers, and one line for what can't be read."""

import json
import pickle
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from configs.schema import UserError
from dataset.chat import ChatFormat
from dataset.foreign_tokenizer import GPT2_PATTERN, are_those_of_ranks
from dataset.tokenizer import QWEN2_PATTERN, RustBPETokenizer, merge_bytes
from dataset.tokens.build import TensorJob
from tests.foreign_model import LESSER_MARKS, MARKS, PLAIN, change_json, ids_without_marks, num_tokens, write_tokenizer

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

RANGES = (
    (0x20, 0x7F), (0x4E00, 0x9FA6), (0x3000, 0x30FF), (0x1F300, 0x1F640), (0x20, 0x7C0), (0x300, 0x370), (0x900, 0x980),
    (0xE00, 0xE80), (0x1100, 0x1200), (0x1E00, 0x1F00), (0x2000, 0x3000), (0xAC00, 0xD7A4),
)  # fmt: skip
"""Characters of random texts: ASCII, Han, kana, emoji, Latin with marks, Hindi, Thai, Korean. The
package tokenizers knows Unicode 9. Python knows 51 combining marks more, which it may reorder."""
WORDS = (*MARKS, *LESSER_MARKS, "  ", "\n\n", " \r\n", "12345", "等于多少", "don't", "é", "e\u0301", "ＡＢ", "\u200d")


def texts(count: int) -> list[str]:
    """Random texts, always the same."""
    rng, made = random.Random(5), ["", " ", "\n", "\x00"]
    while len(made) < count:
        parts = [chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randrange(40))]
        parts += rng.choices(WORDS, k=rng.randrange(4))
        rng.shuffle(parts)
        made.append("".join(parts))
    return made


@pytest.fixture(scope="module", params=["qwen", "marks first"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in the way of Qwen's, or of minimind's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return write_tokenizer(folder, template=PLAIN, marks_first=request.param != "qwen")


def test_thousands_of_texts_have_the_ids_of_the_package_tokenizers(folder: Path) -> None:
    tokenizer, asked = RustBPETokenizer.from_directory(folder), texts(4000)
    assert tokenizer.encode_batch(asked) == ids_without_marks(folder, asked)


def test_transformers_gives_the_same_ids_where_it_is_told_that_marks_are_text(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer, theirs = RustBPETokenizer.from_directory(folder), transformers.AutoTokenizer.from_pretrained(folder)
    asked = [text for text in texts(1000) if not any(mark in text for mark in LESSER_MARKS)]
    found = theirs(asked, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert [tokenizer.encode(text) for text in asked] == found


def test_ids_return_the_text_in_its_normal_form(folder: Path) -> None:
    tokenizer = RustBPETokenizer.from_directory(folder)
    form = (lambda text: unicodedata.normalize("NFC", text)) if tokenizer.normalizes else str
    for text in texts(500):
        assert tokenizer.decode(tokenizer.encode(text)) == form(text)


def test_the_parts_are_those_of_the_files(folder: Path) -> None:
    tokenizer = RustBPETokenizer.from_directory(folder)
    is_qwen = tokenizer.normalizes
    assert tokenizer.pattern == (QWEN2_PATTERN if is_qwen else GPT2_PATTERN)
    assert tokenizer.is_foreign and tokenizer.get_vocab_size() == num_tokens(folder)
    assert set(tokenizer.special_tokens) == {*MARKS, *(LESSER_MARKS if is_qwen else ())}
    assert min(tokenizer.special_tokens.values()) == (num_tokens(folder) - 10 if is_qwen else 0)
    assert tokenizer.decode([tokenizer.assistant_end_id, tokenizer.end_of_text_id]) == "<|im_end|><|endoftext|>"
    assert tokenizer.get_bos_token_id() == tokenizer.end_of_text_id


def test_a_row_without_a_token_has_no_text(folder: Path) -> None:
    """An embedding may have more rows than the tokenizer has tokens."""
    tokenizer = RustBPETokenizer.from_directory(folder)
    assert tokenizer.decode([*tokenizer.encode("好"), tokenizer.get_vocab_size() + 100]) == "好"
    with pytest.raises(ValueError, match="not in the vocabulary"):
        tokenizer.decode([-1])


def test_bytes_come_with_or_without_the_marks(folder: Path) -> None:
    tokenizer = RustBPETokenizer.from_directory(folder)
    ids = [tokenizer.end_of_text_id, *tokenizer.encode("好a"), tokenizer.assistant_end_id]
    assert tokenizer.decode_bytes(ids, special=False) == "好a".encode()


def test_a_saved_tokenizer_has_the_same_files_and_fingerprint(folder: Path, tmp_path: Path) -> None:
    tokenizer = RustBPETokenizer.from_directory(folder)
    tokenizer.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert RustBPETokenizer.from_directory(tmp_path).sha256 == tokenizer.sha256
    assert pickle.loads(pickle.dumps(tokenizer)).encode("你好") == tokenizer.encode("你好")


def test_the_fingerprint_tells_chat_formats_and_normal_forms_apart(tmp_path: Path) -> None:
    folders = [write_tokenizer(tmp_path / "a"), write_tokenizer(tmp_path / "b", template=PLAIN)]
    folders.append(write_tokenizer(tmp_path / "c"))
    change_json(folders[2] / "tokenizer.json", normalizer=None)
    assert len({RustBPETokenizer.from_directory(folder).sha256 for folder in folders}) == 3


def test_a_template_may_have_its_own_file_or_a_name(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    expected = RustBPETokenizer.from_directory(folder)
    template = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": template}]
    change_json(folder / "tokenizer_config.json", chat_template=named)
    assert RustBPETokenizer.from_directory(folder).sha256 == expected.sha256
    change_json(folder / "tokenizer_config.json", chat_template="x")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert RustBPETokenizer.from_directory(folder).sha256 == expected.sha256


def test_merges_may_be_written_as_text_or_as_lists(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    before = RustBPETokenizer.from_directory(folder).sha256
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    flat = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    for merges in (flat, [pair.split(" ") for pair in flat]):
        change_json(folder / "tokenizer.json", model=model | {"merges": merges})
        assert RustBPETokenizer.from_directory(folder).sha256 == before


def test_a_document_opens_with_the_token_of_the_tokenizer_and_a_conversation_with_none(tmp_path: Path) -> None:
    chat_format = RustBPETokenizer.from_directory(write_tokenizer(tmp_path)).chat_format
    assert (chat_format.opening("documents"), chat_format.opening("conversations")) == ("<|endoftext|>", None)
    ours = ChatFormat()
    assert ours.opening("documents") == ours.opening("conversations") == TensorJob.bos_token


def split(regex: str = "x", **changes: Any) -> dict[str, Any]:
    """A pre-tokenizer that splits by a pattern."""
    step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} | changes
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [step, level]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"type": "WordPiece"}}, "not BPE"),
        ({"model": None}, "not as byte-level BPE is written"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "has byte_fallback"),
        ({"model": {"type": "BPE", "vocab": {"好": 0}, "merges": []}}, "not as byte-level BPE is written"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "not every byte has a token"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises texts by Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not byte-level"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "not byte-level"),
        ({"pre_tokenizer": [1]}, "not as byte-level BPE is written"),
        ({"decoder": {"type": "WordPiece"}}, "not byte-level"),
        ({"pre_tokenizer": split(pattern={"String": " "})}, "other rules than one pattern"),
        ({"pre_tokenizer": split(behavior="Removed")}, "throws away"),
        ({"pre_tokenizer": split("(")}, "no regular expression"),
        ({"added_tokens": [{"id": 9999, "content": "你好", "special": False}]}, "is a word"),
        ({"added_tokens": []}, "no special token"),
    ],
)
def test_what_is_no_byte_level_bpe_is_refused_in_one_line(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    folder = write_tokenizer(tmp_path)
    change_json(folder / "tokenizer.json", **values)
    with pytest.raises(UserError, match=said) as caught:
        RustBPETokenizer.from_directory(folder)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_merges_that_would_give_other_ids_are_refused(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = model["merges"]
    wrong = [[merges[1], merges[0], *merges[2:]], merges[:-1]]
    for changed in wrong:
        change_json(folder / "tokenizer.json", model=model | {"merges": changed})
        with pytest.raises(UserError, match="merges do not make its tokens"):
            RustBPETokenizer.from_directory(folder)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(min_size=2, max_size=6).map(lambda data: bytes(97 + byte % 3 for byte in data)), unique=True))
def test_merges_are_those_of_ranks_exactly_if_the_plain_algorithm_makes_them(tokens: list[bytes]) -> None:
    """Any list of two parts a token, tried against the parts that merging by ranks leaves."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {token: 256 + n for n, token in enumerate(tokens)}
    left = [merge_bytes(token, ranks, below=ranks[token]) for token in tokens]
    merges = [(parts[0], b"".join(parts[1:])) for parts in left]
    assert are_those_of_ranks(merges, ranks) is all(len(parts) == 2 for parts in left)
    for number, (token, parts) in enumerate(zip(tokens, left, strict=True)):
        for cut in range(1, len(token)):
            other = [*merges[:number], (token[:cut], token[cut:]), *merges[number + 1 :]]
            is_right = all(len(parts) == 2 for parts in left) and token[:cut] == parts[0]
            assert are_those_of_ranks(other, ranks) is is_right


def test_a_folder_without_a_template_or_with_damaged_files_is_refused(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    change_json(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(UserError, match="no chat template"):
        RustBPETokenizer.from_directory(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json: missing"):
        RustBPETokenizer.from_directory(folder)
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="can't be read"):
        RustBPETokenizer.from_directory(folder)

"""The tokenizer: lossless, unforgeable, equal to the plain algorithm."""

import hashlib
import json
import pickle

import pytest

from configs.paths import ROOT
from configs.schema import UserError
from dataset import tokenizer as tokenizer_module
from dataset.chat import SPECIAL_TOKENS
from dataset.tokenizer import GPT4_PATTERN, NAMED_PATTERNS, QWEN2_PATTERN, RustBPETokenizer, merge_bytes
from tests.dataset.small_tokenizers import any_text, shipped, tokenizer_with

hypothesis = pytest.importorskip("hypothesis")
example, given, settings, st = hypothesis.example, hypothesis.given, hypothesis.settings, hypothesis.strategies


# Text to ids and back


@settings(max_examples=500)
@given(any_text)
def test_any_text_comes_back(text: str) -> None:
    assert shipped.decode(shipped.encode(text)) == text


@given(st.binary(max_size=64))
def test_any_bytes_have_ids_that_decode_to_them(data: bytes) -> None:
    assert shipped.decode(data) == data.decode("utf-8", "replace")  # the first 256 ids are the bytes


@given(any_text)
def test_a_stream_is_whole_characters_and_adds_up_to_the_text(text: str) -> None:
    ids = list(text.encode())
    chunks = list(shipped.decode_stream(ids))
    assert "".join(chunks) == text
    assert chunks == list(text)
    assert "".join(shipped.decode_stream(shipped.encode(text))) == text


@given(st.lists(st.integers(0, shipped.get_vocab_size() - 1), max_size=40))
def test_a_stream_of_any_ids_equals_decode(ids: list[int]) -> None:
    assert "".join(shipped.decode_stream(ids)) == shipped.decode(ids)


def test_a_character_cut_by_the_end_becomes_the_replacement_character() -> None:
    cut = list("好".encode())[:2]
    assert shipped.decode(cut) == "�"
    assert list(shipped.decode_stream([*shipped.encode("你"), *cut])) == ["你", "�"]


def test_bytes_come_with_or_without_the_marks() -> None:
    ids = [shipped.get_bos_token_id(), *shipped.encode("好a"), shipped.end_of_text_id]
    assert shipped.decode_bytes(ids) == "<|bos|>好a<|endoftext|>".encode()
    assert shipped.decode_bytes(ids, special=False) == "好a".encode()


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for token_id in (-1, shipped.get_vocab_size()):
        with pytest.raises(ValueError, match="not in the vocabulary"):
            shipped.decode([token_id])


def test_half_a_surrogate_pair_becomes_the_replacement_character_and_a_whole_one_its_character() -> None:
    text = json.loads(r'"a\ud800b\udc00 \ud83d\ude00"')
    assert shipped.decode(shipped.encode(text)) == "a\ufffdb\ufffd 😀"
    assert shipped.decode(shipped.encode("\ud83d\ude00\udead")) == "😀\ufffd"
    other = tokenizer_with("a")
    assert other.decode(other.encode("\ud83d\ude00\udead")) == "😀\ufffd"


@pytest.mark.parametrize("unit", ["a", "中", " ", "\n", "\u3000", " \n", "!", "1", "👍"])
def test_a_million_times_the_same_character_is_encoded(unit: str) -> None:
    text = unit * 1_000_000
    for whole in (text, text + "x"):
        assert shipped.decode(shipped.encode(whole)) == whole


@settings(max_examples=500)
@given(any_text)
def test_the_path_for_endless_space_gives_the_same_ids_as_the_fast_one(text: str) -> None:
    by_pieces = [token_id for piece in shipped._pieces(text) for token_id in shipped._piece_bpe.encode_ordinary(piece)]
    assert shipped.encode(text) == by_pieces


@settings(max_examples=50)
@given(st.lists(any_text, max_size=40), st.integers(0, 3))
def test_a_batch_equals_one_by_one(texts: list[str], num_threads: int) -> None:
    assert shipped.encode_batch(texts, num_threads) == [shipped.encode(text) for text in texts]


def test_a_vocabulary_whose_tokens_have_no_two_parts_is_left_to_tiktoken() -> None:
    assert tokenizer_with(QWEN2_PATTERN, "abc")._rust_encoder is None  # it can't be made by merges
    assert tokenizer_with("[a-z]+", "ab")._rust_encoder is None  # a pattern that two engines may read differently
    assert tokenizer_with(QWEN2_PATTERN, "abc").encode_batch(["abc ab", "x"]) == [[256, 32, 97, 98], [120]]


@given(any_text)
def test_no_text_becomes_a_special_token(text: str) -> None:
    for mark in SPECIAL_TOKENS:
        forged = text + mark + text
        assert max(shipped.encode(forged)) < len(shipped.mergeable_ranks)


# Patterns


@pytest.mark.parametrize("pattern", NAMED_PATTERNS.values())
@given(text=any_text)
def test_a_named_pattern_matches_every_text_without_a_gap(pattern: str, text: str) -> None:
    tokenizer = tokenizer_with(pattern)
    assert tokenizer.encode(text) == list(text.encode())
    assert "".join(match.group() for match in tokenizer._splitter.finditer(text)) == text


@pytest.mark.parametrize("pattern", ["[a-z]+", "(?!)", "x*", "", r"\p{Han}{1,2}", "(?=a)|b"])
@given(text=any_text)
def test_text_that_a_pattern_skips_is_kept(pattern: str, text: str) -> None:
    tokenizer = tokenizer_with(pattern, "你好")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_a_pattern_skips_is_one_piece() -> None:
    tokenizer = tokenizer_with("[a-z]+", "你", "好", "你好", "ab")
    assert [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode("ab你好ab!")] == ["ab", "你好", "ab", "!"]


def test_digits_are_split_one_by_one_and_words_keep_their_space() -> None:
    pieces = list(tokenizer_with(QWEN2_PATTERN)._pieces("It's 2024年，好 了。\n\n行"))
    assert pieces == ["It", "'s", " ", "2", "0", "2", "4", "年", "，好", " 了", "。\n\n", "行"]


# The shipped vocabulary


def test_the_shipped_vocabulary_has_6400_ids_with_the_special_ones_at_the_top() -> None:
    assert shipped.get_vocab_size() == 6400
    assert shipped.pattern == QWEN2_PATTERN
    assert [shipped.encode_special(name) for name in SPECIAL_TOKENS] == list(range(6381, 6400))
    assert (shipped.get_bos_token_id(), shipped.end_of_text_id, shipped.assistant_end_id) == (6384, 6385, 6391)


FIRST_TABLE = "76ed5b574fa3b41409f1f8ba9c1d2b952ab1a690b5f0342f4ca471f91aa0de20"
"""SHA-256 of the tokens with ids 0 to 6380, in hexadecimal, one a line. They are older than the
three special tokens with ids 6381 to 6383."""
FIRST_MARKS = [
    *("bos", "endoftext", "system_start", "system_end", "user_start", "user_end", "assistant_start", "assistant_end"),
    *("think_start", "think_end", "tools_start", "tools_end", "tool_call_start", "tool_call_end"),
    *("tool_result_start", "tool_result_end"),
]
"""The special tokens of that version, from id 6384 on."""


def test_no_published_id_has_changed() -> None:
    table = "\n".join(token.hex() for token, rank in shipped.mergeable_ranks.items() if rank < 6381)
    assert hashlib.sha256(table.encode()).hexdigest() == FIRST_TABLE
    marks = {f"<|{name}|>": 6384 + number for number, name in enumerate(FIRST_MARKS)}
    assert shipped.special_tokens == {"<|image|>": 6381, "<|spare_0|>": 6382, "<|spare_1|>": 6383, **marks}


def test_the_shipped_vocabulary_is_dense_on_chinese() -> None:
    vocabulary = shipped.metadata["vocabulary"]
    assert vocabulary["characters_per_token"] >= 1.53
    assert vocabulary["share_of_han_tokens"] > 0.5


def test_each_shipped_token_is_reached_by_merging_its_bytes() -> None:
    for token, rank in shipped.mergeable_ranks.items():
        assert merge_bytes(token, shipped.mergeable_ranks, below=rank + 1) == [token]


@settings(max_examples=100)
@given(any_text)
def test_ids_equal_those_of_the_plain_algorithm(text: str) -> None:
    ranks = shipped.mergeable_ranks
    expected = [
        ranks[token]
        for piece in shipped._pieces(text)
        for token in merge_bytes(piece.encode(), ranks, below=len(ranks))
    ]
    assert shipped.encode(text) == expected


def test_tokens_are_shown_as_text_or_as_the_bytes_of_a_cut_character() -> None:
    assert shipped.id_to_token(ord("a")) == "a"
    assert shipped.id_to_token(0xE4) == "\\xe4"
    assert shipped.id_to_token(6384) == "<|bos|>"


def test_the_fingerprint_tells_tokenizers_apart() -> None:
    kinds = [(QWEN2_PATTERN, "ab"), (QWEN2_PATTERN, "ac"), (GPT4_PATTERN, "ab")]
    assert len({tokenizer_with(*kind).sha256 for kind in kinds}) == 3
    assert tokenizer_with(*kinds[0]).sha256 == tokenizer_with(*kinds[0]).sha256


def test_a_tokenizer_travels_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(shipped))
    assert copy.encode("你好，世界") == shipped.encode("你好，世界")


@pytest.mark.parametrize("version", ["0.9.0", "0.12.0", "0.3", "0.12.0rc1"])
def test_an_old_tiktoken_is_refused_in_one_line_with_the_command(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module.tiktoken, "__version__", version)
    with pytest.raises(UserError, match=r"too old.* pip install 'tiktoken>=0\.13,<1'") as raised:
        RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(256)}).encode("汉")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("version", ["0.13.0", "0.14.0", "1.0", "0.13.0.dev1"])
def test_a_new_tiktoken_is_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module.tiktoken, "__version__", version)
    assert RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(256)}).encode("汉") == [
        *"汉".encode()
    ]


def test_the_requirements_ask_for_the_oldest_tiktoken_that_is_taken() -> None:
    oldest = ".".join(map(str, tokenizer_module.OLDEST_TIKTOKEN))
    for name in ("requirements.txt", "pyproject.toml"):
        assert f"tiktoken>={oldest},<1" in (ROOT / name).read_text(encoding="utf-8")

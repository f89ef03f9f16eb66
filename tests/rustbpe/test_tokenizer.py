"""The crate's Python interface: equal to a slow, obvious trainer and to tiktoken, and clear about what it refuses."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import tiktoken

rustbpe = pytest.importorskip("rustbpe", exc_type=ImportError)
if not hasattr(rustbpe, "Tokenizer"):  # the folder of the sources, which Python takes for a package, is not the module
    pytest.skip("the crate is not installed: maturin develop --release", allow_module_level=True)
if not hasattr(rustbpe, "QWEN2_PATTERN"):
    pytest.skip("another package named rustbpe is installed", allow_module_level=True)

TEXTS = [
    "今天天气很好，我们去公园散步。今天天气很好，她们去公园。",
    "the cat sat on the mat; the cat's hat, it'll do. 12345 123 45",
    "aaaa aaaaaaa aaa abcabc ababab\n\n\n  def f(x):\n\treturn x ** 2\r\n",
    "人工智能（AI）是计算机科学的分支。人工智能的发展很快！Ｑ＆Ａ　全角",
]
LETTERS = "ab天气，。 \n1'sé👍\u3000\u0301"


def random_texts(seed: int, num_texts: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randint(1, 60))) for _ in range(num_texts)]


def train(texts: list[str], vocab_size: int, **settings: Any) -> Any:
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, **settings)
    return tokenizer


def train_slowly(texts: list[str], vocab_size: int, pattern: str) -> list[tuple[bytes, int]]:
    """Count every pair anew for each merge, and merge the most frequent; of several, the lowest."""
    pieces = Counter(tuple(piece.encode()) for text in texts for piece in regex.findall(pattern, text))
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        counts: Counter[tuple[int, int]] = Counter()
        for piece, count in pieces.items():
            for pair in pairwise(piece):
                counts[pair] += count
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        merged: Counter[tuple[int, ...]] = Counter()
        for piece, count in pieces.items():
            merged[merge(piece, (left, right), len(tokens))] += count
        pieces = merged
        tokens.append(tokens[left] + tokens[right])
    return list(zip(tokens, range(vocab_size), strict=True))


def merge(piece: tuple[int, ...], pair: tuple[int, int], new: int) -> tuple[int, ...]:
    merged: list[int] = []
    at = 0
    while at < len(piece):
        if piece[at : at + 2] == pair:
            merged.append(new)
            at += 2
        else:
            merged.append(piece[at])
            at += 1
    return tuple(merged)


def as_tiktoken(tokenizer: Any) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "trained",
        pat_str=tokenizer.get_pattern(),
        mergeable_ranks=dict(tokenizer.get_mergeable_ranks()),
        special_tokens={},
    )


@pytest.mark.parametrize("pattern", [rustbpe.GPT4_PATTERN, rustbpe.NANOCHAT_PATTERN, rustbpe.QWEN2_PATTERN, r"(?s).+"])
@pytest.mark.parametrize("texts", [TEXTS * 3, random_texts(0, 40)], ids=["real", "random"])
def test_merges_equal_those_of_a_slow_trainer(texts: list[str], pattern: str) -> None:
    tokenizer = train(texts, 330, pattern=pattern)
    assert tokenizer.get_mergeable_ranks() == train_slowly(texts, 330, pattern)
    assert tokenizer.get_pattern() == pattern
    assert tokenizer.vocab_size == 330


@pytest.mark.parametrize("pattern", [rustbpe.GPT4_PATTERN, rustbpe.QWEN2_PATTERN])
def test_ids_equal_tiktokens(pattern: str) -> None:
    tokenizer = train(TEXTS * 3, 400, pattern=pattern)
    encoding = as_tiktoken(tokenizer)
    texts = TEXTS + random_texts(1, 200) + ["a" * 3000, "今天" * 400]
    expected = [encoding.encode_ordinary(text) for text in texts]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.batch_encode(texts) == expected


def test_decoding_gives_the_text_back_even_where_the_pattern_matches_nothing() -> None:
    tokenizer = train(TEXTS, 300, pattern="[0-9]+")
    for text in [*TEXTS, *random_texts(2, 50), "", "\0"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_order_and_buffers_do_not_change_the_result() -> None:
    texts = random_texts(3, 60)
    expected = train(texts, 350).get_mergeable_ranks()
    assert train(texts[::-1], 350, buffer_size=1).get_mergeable_ranks() == expected


def test_files_give_the_result_of_their_text_and_invalid_bytes_are_reported(tmp_path: Path) -> None:
    text = "\n".join(TEXTS)
    (tmp_path / "a.txt").write_bytes(text.encode() + b"\xff\xfe")
    tokenizer = rustbpe.Tokenizer()
    with pytest.warns(UserWarning, match="skipped 2 bytes that are not UTF-8"):
        tokenizer.train_from_files([tmp_path / "a.txt"], 300)
    assert tokenizer.get_mergeable_ranks() == train([text], 300).get_mergeable_ranks()
    with pytest.raises(OSError, match="missing"):
        tokenizer.train_from_files([tmp_path / "missing.txt"], 300)


def test_a_cap_shortens_tokens_but_not_the_stored_pattern() -> None:
    capped = train(["今天天气很好"] * 9, 262, pattern=rustbpe.QWEN2_PATTERN, max_han_run=1)
    assert capped.get_pattern() == rustbpe.QWEN2_PATTERN
    assert all(len(token) <= 3 for token, _ in capped.get_mergeable_ranks())


def test_progress_ends_with_the_number_of_merges() -> None:
    calls: list[tuple[int, int]] = []
    train(TEXTS, 300, progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls[-1] == (44, 44)


@pytest.mark.parametrize("texts", [["a"], ["   "], ["ab"]])
def test_a_vocabulary_larger_than_can_be_learnt_is_smaller_and_warned_of(texts: list[str]) -> None:
    with pytest.warns(UserWarning, match="no more pairs"):
        tokenizer = train(texts, 5000)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


@pytest.mark.parametrize(
    ("texts", "vocab_size", "settings", "reason"),
    [
        ([], 300, {}, "no text"),
        (["", ""], 300, {}, "no text"),
        (["a"], 255, {}, "at least 256"),
        (["a"], 300, {"pattern": "("}, "not a valid regular expression"),
        (["a"], 300, {"buffer_size": 0}, "buffer_size"),
        (["a"], 300, {"max_han_run": 0}, "max_han_run"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(
    texts: list[str], vocab_size: int, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        train(texts, vocab_size, **settings)


def test_an_error_of_the_iterator_or_of_the_progress_comes_through_and_keeps_the_old_vocabulary() -> None:
    def broken() -> Iterator[str]:
        yield "text"
        raise KeyboardInterrupt

    tokenizer = train(TEXTS, 300)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.train_from_iterator(broken(), 400)
    with pytest.raises(TypeError):
        tokenizer.train_from_iterator(iter([b"bytes"]), 400)
    assert tokenizer.vocab_size == 300

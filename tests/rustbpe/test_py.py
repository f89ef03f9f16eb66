"""The crate's Python interface: equal to a slow, obvious trainer and to tiktoken, and clear about
what it refuses."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import tiktoken

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies
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
NAMED_PATTERNS = [rustbpe.GPT4_PATTERN, rustbpe.NANOCHAT_PATTERN, rustbpe.QWEN2_PATTERN]
SLOW_PATTERN = r"(?=(a+)+$)a"
"""Reads the rest of a run of "a" at each of them: hours for a few millions."""
ANY_TEXT = st.text(st.characters()) | st.text(LETTERS) | st.text("ab", max_size=300)
"""Half surrogates are among the characters."""


def random_texts(seed: int, num_texts: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randint(1, 60))) for _ in range(num_texts)]


def train(texts: list[str], vocab_size: int, **arguments: Any) -> Any:
    tokenizer = rustbpe.Tokenizer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the text has no more pairs", UserWarning)
        tokenizer.train_from_iterator(iter(texts), vocab_size, **arguments)
    return tokenizer


def merges_of_a_slow_trainer(texts: list[str], pattern: str) -> Iterator[tuple[bytes, bytes, bool]]:
    """Count every pair anew for each merge, and merge the most frequent; of several, the lowest,
    and tell (True)."""
    pieces = Counter(tuple(piece.encode()) for text in texts for piece in regex.findall(pattern, text))
    tokens = [bytes([byte]) for byte in range(256)]
    while True:
        counts: Counter[tuple[int, int]] = Counter()
        for piece, count in pieces.items():
            for pair in pairwise(piece):
                counts[pair] += count
        if not counts:
            return
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        yield tokens[left], tokens[right], sum(count == counts[left, right] for count in counts.values()) > 1
        merged: Counter[tuple[int, ...]] = Counter()
        for piece, count in pieces.items():
            merged[merge(piece, (left, right), len(tokens))] += count
        pieces = merged
        tokens.append(tokens[left] + tokens[right])


def train_slowly(texts: list[str], vocab_size: int, pattern: str) -> list[tuple[bytes, int]]:
    merges = islice(merges_of_a_slow_trainer(texts, pattern), vocab_size - 256)
    tokens = chain((bytes([byte]) for byte in range(256)), (left + right for left, right, _ in merges))
    return list(zip(tokens, range(vocab_size), strict=False))


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


def without_half_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def run_python(code: str, folder: Path, **variables: str) -> str:
    """What code prints in a process of its own; `folder` is not the one with the crate's sources in
    it."""
    site = str(Path(rustbpe.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": site, **variables},
        cwd=folder,
        check=True,
        timeout=120,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


# What is learnt


@pytest.mark.parametrize("pattern", [*NAMED_PATTERNS, r"(?s).+"])
@pytest.mark.parametrize("texts", [TEXTS * 3, random_texts(0, 40)], ids=["real", "random"])
def test_merges_equal_those_of_a_slow_trainer(texts: list[str], pattern: str) -> None:
    tokenizer = train(texts, 330, pattern=pattern)
    assert tokenizer.get_mergeable_ranks() == train_slowly(texts, 330, pattern)
    assert tokenizer.get_pattern() == pattern
    assert tokenizer.vocab_size == 330


@settings(deadline=None)
@given(
    texts=st.lists(st.text(LETTERS, min_size=1) | st.text("ab", min_size=1, max_size=60), min_size=1, max_size=6),
    vocab_size=st.integers(256, 300),
    pattern=st.sampled_from([*NAMED_PATTERNS, r"(?s).+"]),
)
def test_merges_of_any_text_equal_those_of_a_slow_trainer(texts: list[str], vocab_size: int, pattern: str) -> None:
    ranks = train(texts, vocab_size, pattern=pattern).get_mergeable_ranks()
    assert ranks == train_slowly(texts, vocab_size, pattern)


def test_merges_equal_those_of_hugging_face_up_to_the_first_tie() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    rng = random.Random(2)
    # No Han: the two pairs of bytes inside a character are a tie.
    texts = ["".join(rng.choices("etaoinshr  ", weights=range(1, 12), k=30_000))]
    slow = merges_of_a_slow_trainer(texts, rustbpe.QWEN2_PATTERN)
    expected = []
    for left, right, is_tie in slow:
        if is_tie:
            break
        expected.append(left + right)
    assert len(expected) > 30

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(rustbpe.QWEN2_PATTERN), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab_size = 256 + len(expected)
    model.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False),
    )
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}  # the others are shown from U+0100 on
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(0x100 + i): byte for i, byte in enumerate(b for b in range(256) if b not in printable)}
    learnt = sorted(model.get_vocab().items(), key=lambda item: item[1])[256:]
    assert [bytes(byte_of[character] for character in token) for token, _ in learnt] == expected
    ranks = train(texts, vocab_size, pattern=rustbpe.QWEN2_PATTERN).get_mergeable_ranks()
    assert [token for token, _ in ranks[256:]] == expected


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(LETTERS, min_size=1), min_size=1), buffer_size=st.integers(1, 5), data=st.data())
def test_order_and_buffers_do_not_change_the_result(texts: list[str], buffer_size: int, data: st.DataObject) -> None:
    expected = train(texts, 300).get_mergeable_ranks()
    shuffled = data.draw(st.permutations(texts))
    assert train(shuffled, 300, buffer_size=buffer_size).get_mergeable_ranks() == expected


def test_the_number_of_threads_does_not_change_the_result(tmp_path: Path) -> None:
    code = """
        import random, rustbpe
        rng = random.Random(0)
        texts = ["".join(rng.choices("ab天气，。 1", k=2000)) for _ in range(50)]
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(texts, 2000, buffer_size=7)
        print(tokenizer.get_mergeable_ranks(), tokenizer.batch_encode(texts[:5]))
    """
    assert len({run_python(code, tmp_path, RAYON_NUM_THREADS=threads) for threads in ("1", "2", "5")}) == 1


@settings(deadline=None, max_examples=50)
@given(text=st.text(LETTERS, min_size=1), pattern=st.sampled_from(NAMED_PATTERNS))
def test_a_file_gives_the_result_of_its_text(tmp_path_factory: pytest.TempPathFactory, text: str, pattern: str) -> None:
    path = tmp_path_factory.mktemp("files") / "text.txt"
    path.write_bytes(text.encode())
    tokenizer = rustbpe.Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tokenizer.train_from_files([path, path], 290, pattern)
    assert tokenizer.get_mergeable_ranks() == train([text, text], 290, pattern=pattern).get_mergeable_ranks()


def test_invalid_bytes_of_a_file_are_reported_and_end_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("天气".encode() + b"\xff\xfe" + "天气\n".encode() + "天".encode()[:2])
    tokenizer = rustbpe.Tokenizer()
    with pytest.warns(UserWarning, match=r"a\.txt: skipped 4 bytes that are not UTF-8"):
        tokenizer.train_from_files([tmp_path / "a.txt"], 258)
    assert tokenizer.get_mergeable_ranks() == train(["天气", "天气\n"], 258).get_mergeable_ranks()


def test_lines_of_a_file_are_texts_for_a_pattern_that_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\ncd\n cd\n\nab\n")
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_files([str(tmp_path / "a.txt")], 262, "(?s).+")
    expected = train(["ab\n", "cd\n cd\n\n", "ab\n"], 262, pattern="(?s).+")
    assert tokenizer.get_mergeable_ranks() == expected.get_mergeable_ranks()


def test_a_cap_shortens_tokens_but_not_the_stored_pattern() -> None:
    capped = train(["今天天气很好"] * 9, 262, pattern=rustbpe.QWEN2_PATTERN, max_han_run=1)
    assert capped.get_pattern() == rustbpe.QWEN2_PATTERN
    assert all(len(token) <= 3 for token, _ in capped.get_mergeable_ranks())


def test_progress_ends_with_the_number_of_merges() -> None:
    calls: list[tuple[int, int]] = []
    train(TEXTS, 300, progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls[-1] == (44, 44)


# Encoding


@pytest.mark.parametrize("pattern", NAMED_PATTERNS)
def test_ids_equal_tiktokens(pattern: str) -> None:
    tokenizer = train(TEXTS * 3, 400, pattern=pattern)
    encoding = as_tiktoken(tokenizer)
    texts = TEXTS + random_texts(1, 200) + ["a" * 3000, "今天" * 400, "", "\ud83d\udc4d\ud83d"]
    expected = [encoding.encode_ordinary(text) for text in texts]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.batch_encode(texts) == expected


@settings(deadline=None)
@given(
    corpus=st.lists(st.text(LETTERS, min_size=1) | st.text("ab", min_size=1, max_size=60), min_size=1, max_size=6),
    texts=st.lists(ANY_TEXT, max_size=5),
    pattern=st.sampled_from(NAMED_PATTERNS),
)
def test_ids_of_any_text_equal_tiktokens_and_decode_to_it(corpus: list[str], texts: list[str], pattern: str) -> None:
    tokenizer = train(corpus, 320, pattern=pattern)
    encoding = as_tiktoken(tokenizer)
    for text in texts + corpus:
        ids = tokenizer.encode(text)
        assert ids == encoding.encode_ordinary(text)
        assert tokenizer.decode(ids) == without_half_surrogates(text)
    assert tokenizer.batch_encode(texts) == [tokenizer.encode(text) for text in texts]


def test_a_long_text_is_encoded_like_its_lines() -> None:
    tokenizer = train(TEXTS * 3, 400)
    lines = [f"{text} {i}\n" for i, text in enumerate(TEXTS * 12_000)]
    text = "".join(lines)
    assert len(text.encode()) > 2 << 20
    assert tokenizer.encode(text) == list(chain.from_iterable(tokenizer.batch_encode(lines)))


@pytest.mark.parametrize("pattern", ["[0-9]+", "nothing", "a*", "(?=a)", r"\b", ""])
def test_decoding_gives_the_text_back_whatever_the_pattern_matches(pattern: str) -> None:
    tokenizer = train([*TEXTS, "baaab"], 300, pattern=pattern)
    for text in [*TEXTS, *random_texts(2, 50), "", "\0", "baaab"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_surrogates_become_the_replacement_character() -> None:
    texts = ["天\ud800地 \udc4d\ud83d", "\ud83d\udc4d", "\udfff" * 3]
    replaced = ["天\ufffd地 \ufffd\ufffd", "👍", "\ufffd" * 3]
    tokenizer = train(texts, 262)
    assert tokenizer.get_mergeable_ranks() == train(replaced, 262).get_mergeable_ranks()
    assert [tokenizer.encode(text) for text in texts] == [tokenizer.encode(text) for text in replaced]
    assert tokenizer.batch_encode(texts) == tokenizer.batch_encode(replaced)


# Extremes


@pytest.mark.parametrize("pattern", [rustbpe.QWEN2_PATTERN, rustbpe.GPT4_PATTERN])
@pytest.mark.parametrize("character", [" ", "a", "汉", "\n", "1"])
def test_millions_of_one_character_are_learnt_and_encoded(character: str, pattern: str) -> None:
    text = character * 2_000_000
    tokenizer = train([text], 280, pattern=pattern)
    assert tokenizer.decode(tokenizer.encode(text + character)) == text + character
    untrained = train(["xy"], 257, pattern=pattern)
    assert untrained.encode(text) == list(text.encode())


def test_text_without_any_break_is_learnt_and_encoded() -> None:
    rng = random.Random(4)
    text = "".join(rng.choices("天地人你我他", weights=[32, 16, 8, 4, 2, 1], k=200_000))
    tokenizer = train([text], 300, pattern=rustbpe.QWEN2_PATTERN)
    assert tokenizer.encode(text) == as_tiktoken(tokenizer).encode_ordinary(text)
    merges = train([text], 2000, pattern="nothing").get_mergeable_ranks()
    assert merges == train([text], 2000, pattern="(?s).+").get_mergeable_ranks()


@pytest.mark.parametrize("texts", [["a"], ["   "], ["ab"], ["天" * 9]])
@pytest.mark.parametrize("vocab_size", [5000, 2**32 - 3])
def test_a_vocabulary_larger_than_can_be_learnt_is_smaller_and_warned_of(texts: list[str], vocab_size: int) -> None:
    tokenizer = rustbpe.Tokenizer()
    with pytest.warns(UserWarning, match=f"no more pairs to merge: .* tokens instead of {vocab_size}") as caught:
        tokenizer.train_from_iterator(texts, vocab_size)
    assert caught[0].filename == __file__
    assert 256 <= tokenizer.vocab_size < 270
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


# What is refused


@pytest.mark.parametrize(
    ("texts", "vocab_size", "arguments", "reason"),
    [
        ([], 300, {}, "no text"),
        (["", ""], 300, {}, "no text"),
        (["a"], 255, {}, "at least 256"),
        (["a"], 0, {}, "vocab_size is 0; it must be at least 256"),
        (["a"], -1, {}, "vocab_size is -1; it must be at least 256"),
        (["a"], 2**32, {}, "below 4294967294"),
        (["a"], 300, {"pattern": "("}, r'"\(" is not a valid regular expression: .*position 1'),
        (["a"], 300, {"pattern": "[z-a]"}, "not a valid regular expression"),
        (["a"], 300, {"pattern": r"\p{Nonsense}"}, "not a valid regular expression"),
        (["a"], 300, {"pattern": "(" * 9999 + "a" + ")" * 9999}, r'"\(+\.\.\." is not .*: .*deeply nested'),
        (["a"], 300, {"pattern": "(?:a{999}){9999}"}, "not a valid regular expression"),
        (["a"], 300, {"buffer_size": 0}, "buffer_size must be at least 1"),
        (["a"], 300, {"buffer_size": -1}, "buffer_size must be at least 1"),
        (["a"], 300, {"max_han_run": 0}, "max_han_run must be at least 1"),
        (["a"], 300, {"max_han_run": -1}, "max_han_run must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(
    texts: list[str], vocab_size: int, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        train(texts, vocab_size, **arguments)


def test_what_is_no_list_of_texts_is_refused() -> None:
    tokenizer = rustbpe.Tokenizer()
    with pytest.raises(TypeError, match="one string; give an iterable of strings"):
        tokenizer.train_from_iterator("one text", 300)
    with pytest.raises(TypeError):
        tokenizer.train_from_iterator([b"bytes"], 300)
    with pytest.raises(TypeError):
        tokenizer.batch_encode("one text")
    with pytest.raises(TypeError):
        tokenizer.encode(b"bytes")
    with pytest.raises(ValueError, match="token 256 is not in the vocabulary"):
        tokenizer.decode([256])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tokenizer = rustbpe.Tokenizer()
    with pytest.raises(FileNotFoundError) as missing:
        tokenizer.train_from_files([tmp_path / "missing.txt"], 300)
    assert missing.value.filename == str(tmp_path / "missing.txt")
    with pytest.raises(OSError, match=tmp_path.name):
        tokenizer.train_from_files([tmp_path], 300)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="no text"):
        tokenizer.train_from_files([tmp_path / "empty.txt"], 300)
    with pytest.raises(ValueError, match="no text"):
        tokenizer.train_from_files([], 300)


def test_a_pattern_that_needs_too_many_steps_is_refused_and_the_place_shown() -> None:
    with pytest.raises(ValueError, match=r'the split pattern gave up at "a{40}b": .* backtrack'):
        train(["x" + "a" * 40 + "b"], 300, pattern=r"(a|a)*(?!\S)c|x")
    with pytest.raises(ValueError, match="the split pattern gave up at"):
        train([" " * 2_000_000], 300, pattern=r"\s+(?!\S)|\S+")


def test_an_error_of_the_iterator_or_of_the_progress_comes_through_and_keeps_the_old_vocabulary() -> None:
    def broken() -> Iterator[str]:
        yield "text"
        raise KeyboardInterrupt

    def fail(done: int, wanted: int) -> None:
        raise LookupError(f"{wanted}")

    tokenizer = train(TEXTS, 300)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.train_from_iterator(broken(), 400)
    with pytest.raises(LookupError, match="44"):
        tokenizer.train_from_iterator(TEXTS * 2, 300, progress=fail, pattern=rustbpe.QWEN2_PATTERN)
    with pytest.raises(ValueError, match="no text"):
        tokenizer.train_from_iterator([], 300)
    assert tokenizer.get_pattern() == rustbpe.GPT4_PATTERN
    assert tokenizer.get_mergeable_ranks() == train(TEXTS, 300).get_mergeable_ranks()


# Interruptions

INTERRUPTED_AFTER_A_MOMENT = """
    import itertools, os, random, signal, threading, time, rustbpe

    def press_ctrl_c(*_):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        press.clear()

    press = [press_ctrl_c]
    tokenizer = rustbpe.Tokenizer()
    try:
        {call}
    except KeyboardInterrupt:
        print("stopped", tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("still 好")))
"""


@pytest.mark.parametrize(
    "call",
    [
        'press_ctrl_c(); tokenizer.train_from_iterator(itertools.repeat("the same "), 300)',
        'press_ctrl_c(); tokenizer.train_from_iterator(itertools.repeat(""), 300)',
        'press_ctrl_c(); tokenizer.train_from_iterator(["a" * 9_000_000], 300, pattern=SLOW)',
        'press_ctrl_c(); tokenizer.train_from_files(["a.txt"], 300, SLOW)',
        "tokenizer.train_from_iterator([NOISE], 10**9, pattern='(?s).+', progress=lambda *_: [now() for now in press])",
    ],
    ids=["counting", "counting nothing", "counting one text", "counting a file", "merging"],
)
def test_ctrl_c_stops_training(tmp_path: Path, call: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 9_000_000)
    call = call.replace("NOISE", "random.Random(0).randbytes(6_000_000).hex()")
    code = INTERRUPTED_AFTER_A_MOMENT.format(call=call.replace("SLOW", repr(SLOW_PATTERN)))
    assert run_python(code, tmp_path) == "stopped 256 still 好\n"


@pytest.mark.parametrize("call", ["tokenizer.encode(text)", "tokenizer.batch_encode([text, text])"])
def test_ctrl_c_stops_encoding(tmp_path: Path, call: str) -> None:
    call = f'tokenizer.train_from_iterator(["a"], 256, pattern={SLOW_PATTERN!r}); text = "a" * 9_000_000; press_ctrl_c(); {call}'
    assert run_python(INTERRUPTED_AFTER_A_MOMENT.format(call=call), tmp_path) == "stopped 256 still 好\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork processes")
def test_a_forked_process_trains_and_encodes(tmp_path: Path) -> None:
    code = """
        import os, rustbpe
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(["今天天气很好"] * 9, 262)
        expected = tokenizer.batch_encode(["今天", "天气"] * 999)
        child = os.fork()
        if child == 0:
            again = rustbpe.Tokenizer()
            again.train_from_iterator(["今天天气很好"] * 9, 262)
            same = tokenizer.batch_encode(["今天", "天气"] * 999) == expected == again.batch_encode(["今天", "天气"] * 999)
            os._exit(0 if same else 1)
        print(os.waitpid(child, 0)[1], tokenizer.batch_encode(["今天", "天气"] * 999) == expected)
    """
    assert run_python(code, tmp_path) == "0 True\n"


def test_merges_of_an_earlier_training_give_the_same_ids() -> None:
    trained = train(TEXTS * 3, 400, pattern=rustbpe.QWEN2_PATTERN)
    tokens = [token for token, _ in trained.get_mergeable_ranks()]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for rank in range(256, 400):  # the two parts of a token: its bytes, merged with all that came before it
        parts = [tokens[rank][i : i + 1] for i in range(len(tokens[rank]))]
        while len(parts) > 2:
            _, i = min((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(pairwise(parts)))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        merges.append((ranks[parts[0]], ranks[parts[1]]))
    again = rustbpe.Tokenizer.from_merges(merges, rustbpe.QWEN2_PATTERN)
    texts = TEXTS + random_texts(8, 100)
    assert again.batch_encode(texts) == trained.batch_encode(texts)
    assert again.get_mergeable_ranks() == trained.get_mergeable_ranks()
    with pytest.raises(ValueError, match="comes twice, or before its tokens"):
        rustbpe.Tokenizer.from_merges([(97, 300)])

"""The tokenizer: lossless, unforgeable, equal to the other programs that read its folder, safe to load."""

import hashlib
import json
import lzma
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import UserError
from dataset import tokenizer as tokenizer_module
from dataset.chat import SPECIAL_TOKENS
from dataset.tokenizer import (
    GPT4_PATTERN,
    NAMED_PATTERNS,
    NUM_BYTES,
    QWEN2_PATTERN,
    TOKENIZER_FILES,
    RustBPETokenizer,
    from_byte_alphabet,
    merge_bytes,
    to_byte_alphabet,
)

hypothesis = pytest.importorskip("hypothesis")
example, given, settings, st = hypothesis.example, hypothesis.given, hypothesis.settings, hypothesis.strategies

shipped = RustBPETokenizer.from_directory(TOKENIZER_DIR)
bytes_alone = {bytes([byte]): byte for byte in range(NUM_BYTES)}

whole_characters = st.characters(exclude_categories=["Cs"])
emoji = st.sampled_from(["👍🏽", "👨‍👩‍👧‍👦", "🇨🇳", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️‍🔥", "☺️", "7️⃣"])
fragments = st.sampled_from(
    ["你好，世界", "人工智能", "。\n", "\r\n", " \n\n ", "\t", "\u3000", "don't", "'LL", "'ſ", "ﬅ", "İ", "12", "٣", "①",
     "½", "é", "e\u0301", "ह\u093f", "\u200d", "\x1c", "\x85", "\xa0", "\u2028", "<|bos|>", "!!", "\ufeff",
     "\U00020000"]
)  # fmt: skip
any_text = st.lists(st.one_of(st.text(whole_characters, max_size=8), emoji, fragments), max_size=12).map("".join)


def tokenizer_with(pattern: str, *merges: str) -> RustBPETokenizer:
    """A small tokenizer: the bytes and the given tokens, each of which its predecessors must be able to form."""
    return RustBPETokenizer(pattern, bytes_alone | {token.encode(): NUM_BYTES + i for i, token in enumerate(merges)})


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
    assert tokenizer_with(QWEN2_PATTERN, "abc")._rust_encoder is None  # no merges lead to it
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
"""SHA-256 of the tokens of ids 0 to 6380 in hexadecimal, one a line, as they were before three marks took 6381 to 6383."""
FIRST_MARKS = [
    *("bos", "endoftext", "system_start", "system_end", "user_start", "user_end", "assistant_start", "assistant_end"),
    *("think_start", "think_end", "tools_start", "tools_end", "tool_call_start", "tool_call_end"),
    *("tool_result_start", "tool_result_end"),
]
"""Special tokens of that time, from id 6384 on."""


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


def test_the_byte_alphabet_goes_both_ways() -> None:
    every_byte = bytes(range(256))
    assert from_byte_alphabet(to_byte_alphabet(every_byte)) == every_byte
    assert to_byte_alphabet(b" \n!") == "ĠĊ!"


def test_tokens_are_shown_as_text_or_as_the_bytes_of_a_cut_character() -> None:
    assert shipped.id_to_token(ord("a")) == "a"
    assert shipped.id_to_token(0xE4) == "\\xe4"
    assert shipped.id_to_token(6384) == "<|bos|>"


# Equal to Hugging Face tokenizers and transformers


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(TOKENIZER_DIR / "tokenizer.json"))


def plain_ids(hugging_face: Any, texts: list[str]) -> list[list[int]]:
    """Ids by Hugging Face of texts that spell no special token."""
    return [encoding.ids for encoding in hugging_face.encode_batch(texts, add_special_tokens=False)]


@settings(max_examples=1000)
@given(text=any_text.filter(lambda text: "<|" not in text))
@example("'ſt 'ﬅ 'ß don'T we'Ll K's")
@example("\x1c\x1d \x85x \x1fa\u180e b\u200b")
def test_ids_equal_those_of_hugging_face_tokenizers(hugging_face: Any, text: str) -> None:
    assert plain_ids(hugging_face, [text]) == [shipped.encode(text)]
    assert hugging_face.decode(shipped.encode(text), skip_special_tokens=False) == text


def test_ids_equal_those_of_hugging_face_tokenizers_on_long_random_text(hugging_face: Any) -> None:
    rng = random.Random(7)
    ranges = [(0x20, 0x7F), (0x4E00, 0x9FA6), (0x3000, 0x3040), (0xFF00, 0xFFEF), (0x1F300, 0x1F640), (0x20, 0x2FFF)]
    texts = []
    for _ in range(200):
        picks = (rng.choice(ranges) for _ in range(500))
        texts.append("".join(chr(rng.randrange(*pick)) for pick in picks))
    assert plain_ids(hugging_face, texts) == shipped.encode_batch(texts)


def test_ids_equal_those_of_hugging_face_tokenizers_on_real_text(hugging_face: Any) -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "pretrain_zh.jsonl.xz"
    if not path.exists():
        pytest.skip("the text this compares on is not here")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(1000), file, strict=False)]
    assert plain_ids(hugging_face, texts) == shipped.encode_batch(texts)


@pytest.mark.parametrize("pattern", [GPT4_PATTERN, "[a-z]+"])
@given(text=any_text.filter(lambda text: "<|" not in text))
def test_other_patterns_give_equal_ids_too(pattern: str, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizer_with(pattern, "你", "好", "你好", "  ", "12", "do", "ab")
    other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer._hugging_face_json()))
    assert plain_ids(other, [text]) == [tokenizer.encode(text)]


def test_a_token_that_no_merges_reach_has_equal_ids_too() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizer_with(QWEN2_PATTERN, "abc")
    other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer._hugging_face_json()))
    for text in ("abc", "abcd", "x abc"):
        assert plain_ids(other, [text]) == [tokenizer.encode(text)]


TOOLS = [{"type": "function", "function": {"name": "天气", "parameters": {"城市": {"type": "string"}}}}]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "你好"}],
    [
        {"role": "user", "content": "  你好\n\n"},
        {"role": "assistant", "content": "\n好 "},
        {"role": "user", "content": "'s"},
    ],
    [{"role": "system", "content": "简短 <b>&'\""}, {"role": "user", "content": "一"}],
    [
        {"role": "system", "content": "查", "tools": TOOLS},
        {"role": "user", "content": "冷吗"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "要查。\n",
            "tool_calls": [
                {"type": "function", "function": {"name": "天气", "arguments": {"城市": "北京", "天": [1, 2.5, None]}}},
                {"name": "天气", "arguments": '{"城市":"上海"}'},
                {"name": "时间"},
            ],
        },
        {"role": "tool", "content": "3 度"},
    ],
]


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(TOKENIZER_DIR)


def template_ids(transformers_tokenizer: Any, messages: Any, **options: Any) -> list[int]:
    ids = transformers_tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return list(ids)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_template_gives_the_ids_of_the_renderer(transformers_tokenizer: Any, messages: Any) -> None:
    prompt = template_ids(transformers_tokenizer, messages, add_generation_prompt=True)
    assert prompt == shipped.render_for_completion(messages)
    answered = [*messages, {"role": "assistant", "content": "好。", "reasoning_content": "想"}]
    assert template_ids(transformers_tokenizer, answered) == shipped.render_conversation(answered)[0]


@pytest.mark.parametrize("enable_thinking", [None, True, False])
def test_the_chat_template_opens_or_closes_a_thought_as_the_renderer_does(
    transformers_tokenizer: Any, enable_thinking: bool | None
) -> None:
    messages = [{"role": "user", "content": "问"}]
    options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    prompt = template_ids(transformers_tokenizer, messages, add_generation_prompt=True, **options)
    assert prompt == shipped.render_for_completion(messages, enable_thinking=enable_thinking)
    marks = {None: [], True: ["<|think_start|>"], False: ["<|think_start|>", "<|think_end|>"]}[enable_thinking]
    opening = [shipped.encode_special(mark) for mark in ("<|assistant_start|>", *marks)]
    assert prompt == shipped.render_conversation(messages)[0] + opening


def test_tools_given_beside_the_messages_stand_in_the_system_turn(transformers_tokenizer: Any) -> None:
    question: dict[str, Any] = {"role": "user", "content": "冷吗"}
    for content, messages in (("", [question]), ("查", [{"role": "system", "content": "查"}, question])):
        ours: list[dict[str, Any]] = [{"role": "system", "content": content, "tools": TOOLS}, question]
        given_beside = template_ids(transformers_tokenizer, messages, tools=TOOLS, add_generation_prompt=True)
        assert given_beside == shipped.render_for_completion(ours)


def test_the_chat_template_refuses_an_unknown_role(transformers_tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role: human"):
        template_ids(transformers_tokenizer, [{"role": "human", "content": "x"}])


def test_transformers_stops_at_the_end_of_an_answer_and_pads_with_another_token(transformers_tokenizer: Any) -> None:
    assert transformers_tokenizer.eos_token_id == shipped.assistant_end_id
    assert transformers_tokenizer.pad_token_id == shipped.end_of_text_id
    assert transformers_tokenizer.bos_token_id == shipped.get_bos_token_id()
    assert len(transformers_tokenizer) == shipped.get_vocab_size()
    assert transformers_tokenizer("你好 <|user_end|>")["input_ids"][-1] == shipped.encode_special("<|user_end|>")
    assert transformers_tokenizer.decode(shipped.encode("a , b 's")) == "a , b 's"


# Files


def test_a_saved_folder_loads_as_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("[a-z]+", "你好")
    tokenizer.metadata = {"training_text": {"description": "two words"}}
    tokenizer.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(TOKENIZER_FILES)
    loaded = RustBPETokenizer.from_directory(tmp_path / "new" / "folder")
    assert (loaded.sha256, loaded.pattern, loaded.metadata) == (tokenizer.sha256, tokenizer.pattern, tokenizer.metadata)
    assert loaded.encode("你好a") == tokenizer.encode("你好a")


def test_saving_the_shipped_tokenizer_again_changes_no_byte(tmp_path: Path) -> None:
    shipped.save(tmp_path)
    for name in TOKENIZER_FILES:
        assert (tmp_path / name).read_bytes() == (TOKENIZER_DIR / name).read_bytes(), name


def test_the_fingerprint_tells_tokenizers_apart() -> None:
    kinds = [(QWEN2_PATTERN, "ab"), (QWEN2_PATTERN, "ac"), (GPT4_PATTERN, "ab")]
    assert len({tokenizer_with(*kind).sha256 for kind in kinds}) == 3
    assert tokenizer_with(*kinds[0]).sha256 == tokenizer_with(*kinds[0]).sha256


def test_a_tokenizer_travels_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(shipped))
    assert copy.encode("你好，世界") == shipped.encode("你好，世界")


class Intruder:
    """A pickle of this would run a command where pickles are loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_with_code_in_it_is_refused_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "was_run"
    plain = {"pattern": "a", "mergeable_ranks": bytes_alone, "special_tokens": {}}
    for intruder in (Intruder(target), plain | {"pattern": Intruder(target)}, Path("x"), print):
        (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(intruder))
        with pytest.raises(UserError, match="code, not data"):
            RustBPETokenizer.from_directory(tmp_path)
    assert not target.exists()


def damaged(change: Callable[[dict[str, Any]], object]) -> bytes:
    data = {
        "pattern": "a",
        "mergeable_ranks": dict(bytes_alone),
        "special_tokens": {name: NUM_BYTES + i for i, name in enumerate(SPECIAL_TOKENS)},
    }
    change(data)
    return pickle.dumps(data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is refused"),
        (b"\x80\x04nonsense", "is refused"),
        (damaged(lambda data: None)[:-100], "is refused"),
        (pickle.dumps([1]), "must hold pattern"),
        (damaged(lambda data: data.pop("pattern")), "must hold pattern"),
        (damaged(lambda data: data.update(pattern=1)), "pattern must be text"),
        (damaged(lambda data: data.update(pattern="(")), "no regular expression"),
        (damaged(lambda data: data["mergeable_ranks"].pop(b"a")), "each single byte"),
        (damaged(lambda data: data["mergeable_ranks"].update({b"a": 98, b"b": 97})), "each single byte"),
        (damaged(lambda data: data["mergeable_ranks"].update({"ab": 256})), "bytes to whole numbers"),
        (damaged(lambda data: data["mergeable_ranks"].update({b"ab": 256})), "without a gap"),
        (damaged(lambda data: data["special_tokens"].update({"<|new|>": 300})), "without a gap"),
        (damaged(lambda data: data["special_tokens"].pop("<|bos|>")), "special tokens are missing"),
        (damaged(lambda data: data["special_tokens"].pop("<|spare_1|>")), "special tokens are missing"),
        (damaged(lambda data: data["special_tokens"].update({"<|new|>": True})), "names to whole numbers"),
    ],
)
def test_a_damaged_tokenizer_is_refused_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        RustBPETokenizer.from_directory(tmp_path)
    assert str(tmp_path / "tokenizer.pkl") in str(caught.value)


def test_a_missing_tokenizer_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file.*scripts/train_tokenizer\.py"):
        RustBPETokenizer.from_directory(tmp_path)


def test_files_of_two_tokenizers_in_one_folder_are_noticed(tmp_path: Path) -> None:
    tokenizer_with(QWEN2_PATTERN, "ab").save(tmp_path)
    mixed_up = (tmp_path / "tokenizer.pkl").read_bytes()
    tokenizer_with(QWEN2_PATTERN, "ac").save(tmp_path)
    (tmp_path / "tokenizer.pkl").write_bytes(mixed_up)
    with pytest.raises(UserError, match="does not belong"):
        RustBPETokenizer.from_directory(tmp_path)


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

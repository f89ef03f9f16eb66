"""The tokenizer's folder is safe to load, and Hugging Face's programs give the same ids."""

import json
import lzma
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from dataset.chat import SPECIAL_TOKENS
from dataset.tokenizer import GPT4_PATTERN, NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.tokenizer_files import TOKENIZER_FILES, from_byte_alphabet, hugging_face_json, to_byte_alphabet
from tests.dataset.small_tokenizers import any_text, bytes_alone, shipped, tokenizer_with

hypothesis = pytest.importorskip("hypothesis")
example, given, settings = hypothesis.example, hypothesis.given, hypothesis.settings


def test_the_byte_alphabet_goes_both_ways() -> None:
    every_byte = bytes(range(256))
    assert from_byte_alphabet(to_byte_alphabet(every_byte)) == every_byte
    assert to_byte_alphabet(b" \n!") == "ĠĊ!"


# Equal to Hugging Face tokenizers and transformers


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(TOKENIZER_DIR / "tokenizer.json"))


def plain_ids(hugging_face: Any, texts: list[str]) -> list[list[int]]:
    """The ids of Hugging Face's tokenizer, for texts that contain no special token."""
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
    other = tokenizers.Tokenizer.from_str(json.dumps(hugging_face_json(tokenizer)))
    assert plain_ids(other, [text]) == [tokenizer.encode(text)]


def test_a_token_that_no_merges_reach_has_equal_ids_too() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizer_with(QWEN2_PATTERN, "abc")
    other = tokenizers.Tokenizer.from_str(json.dumps(hugging_face_json(tokenizer)))
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
    [
        {"role": "user", "content": "一"},
        {"role": "assistant", "content": "二", "reasoning_content": "想"},
        {"role": "user", "content": "三"},
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


class Intruder:
    """A pickle of this object runs a command when it is loaded without care."""

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

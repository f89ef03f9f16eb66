"""The tokenizer of another model: its Hugging Face files -> the parts of a RustBPETokenizer.

tokenizer.json          the vocabulary with its merges, the split pattern, the special tokens
tokenizer_config.json   which of them begin and end texts; often the chat template too
chat_template.jinja     the chat template, where it has a file of its own

Only byte-level BPE is read, as GPT-2, Qwen and many others have it. There a token is bytes, and
each merge makes the token of its id. So ranks, pattern and special tokens say all, and the same
code encodes for all models.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import read_json
from configs.paths import display
from configs.schema import UserError
from dataset.chat import END_OF_TEXT, ChatFormat
from dataset.chatml import format_of_template
from dataset.tokenizer_files import from_byte_alphabet

FILE, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
FILES = (FILE, CONFIG, TEMPLATE, "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files that belong to a tokenizer, as far as a folder has them."""
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` splits by if no other pattern is stated."""
REMEDY = "Give the folder of another model."
REMEDY_CHINESE = "请换一个模型的目录"
_MARK = re.compile(r"<.+>|\[.+\]", re.DOTALL)
"""What a special token looks like."""


@dataclass(frozen=True)
class ForeignTokenizer:
    """What the files of another model say of its tokenizer."""

    where: str
    pattern: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    normalizes: bool
    """Whether texts are brought to Unicode's form NFC."""
    chat_format: ChatFormat
    files: dict[str, bytes]


def read_foreign(folder: Path) -> ForeignTokenizer:
    """The tokenizer in the folder of another model.

    Raises: UserError when a file is missing or damaged, or when it is none that we can be.
    """
    where, values, config = display(folder / FILE), _mapping(folder / FILE), _mapping(folder / CONFIG)
    try:
        return _parts(folder, where, values, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # something of another type than it must be
        raise _refused(where, f"it is not as byte-level BPE is written ({error!r:.60})") from None


def _parts(folder: Path, where: str, values: Mapping[str, Any], config: Mapping[str, Any]) -> ForeignTokenizer:
    """The parts of the tokenizer in these files."""
    model = values["model"]
    if model.get("type") != "BPE":
        raise _refused(where, "its model is not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise _refused(where, f"its BPE has {name}")
    special_tokens = _special_tokens(values, where)
    vocabulary = {token: number for token, number in model["vocab"].items() if token not in special_tokens}
    ranks = {from_byte_alphabet(token): number for token, number in vocabulary.items()}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merges = [(from_byte_alphabet(left), from_byte_alphabet(right)) for left, right in pairs]
    if not are_those_of_ranks(merges, ranks):
        raise _refused(where, "its merges do not make its tokens in the order of their ids")
    return ForeignTokenizer(
        where=where,
        pattern=_pattern(values, where),
        mergeable_ranks=ranks,
        special_tokens=special_tokens,
        normalizes=_normalizes(values, where),
        chat_format=_chat_format(folder, config, special_tokens),
        files={name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()},
    )


def are_those_of_ranks(merges: Sequence[tuple[bytes, bytes]], ranks: Mapping[bytes, int]) -> bool:
    """Whether merging by ranks alone gives every text the ids that a list of merges gives it.

    Other programs merge what is in their list. We merge any two neighbours whose bytes together are
    a token, the lowest rank first. Both do the same if the list makes each token once, in the order
    of ranks, out of the two parts that the merges before it leave of its bytes.
    """
    tokens = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    if [left + right for left, right in merges] != tokens:
        return False
    parts: dict[bytes, tuple[bytes, bytes]] = {}
    for left, right in merges:
        is_made = all(len(part) == 1 or part in parts for part in (left, right))
        if not is_made or _merges_across(left, right, parts, ranks):
            return False
        parts[left + right] = left, right
    return True


def _merges_across(
    left: bytes, right: bytes, parts: Mapping[bytes, tuple[bytes, bytes]], ranks: Mapping[bytes, int]
) -> bool:
    """Whether a merge joins the end of `left` to the beginning of `right` before both are whole.

    Args: parts: the two parts of each token so far.
    """
    # The tokens that touch the border from the left, the last byte first, and from the right.
    ends, starts = [left], [right]
    while len(ends[-1]) > 1:
        ends.append(parts[ends[-1]][1])
    while len(starts[-1]) > 1:
        starts.append(parts[starts[-1]][0])
    end, start = ends.pop(), starts.pop()
    while ends or starts:
        grows_left, grows_right = (ranks[rest[-1]] if rest else math.inf for rest in (ends, starts))
        across = ranks.get(end + start)
        # Of equal ranks the leftmost merges first: `left` grows, then the border, then `right`.
        if across is not None and across < grows_left and across <= grows_right:
            return True
        if grows_left <= grows_right:
            end = ends.pop()
        else:
            start = starts.pop()
    return False


def _special_tokens(values: Mapping[str, Any], where: str) -> dict[str, int]:
    """Name -> id of the tokens that are added to the vocabulary.

    Other programs also find some of them in texts, such as `<think>`. Here text stays text.
    """
    tokens = {token["content"]: token["id"] for token in values.get("added_tokens") or []}
    words = [token["content"] for token in values.get("added_tokens") or [] if not token.get("special")]
    if found := [word for word in words if not _MARK.fullmatch(word)]:
        raise _refused(where, f"its added token {found[0]!r} is a word, which other programs find in texts")
    return tokens


def _pattern(values: Mapping[str, Any], where: str) -> str:
    """The regular expression that splits texts."""
    steps = values.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [] if steps.get("type") == "Sequence" else [steps]
    *splits, last = steps or [{}]
    decoder = (values.get("decoder") or {}).get("type")
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or decoder != "ByteLevel":
        raise _refused(where, "it is not byte-level")
    if not splits and last.get("use_regex", True):
        return GPT2_PATTERN
    stated = splits[0].get("pattern") or {} if len(splits) == 1 and splits[0].get("type") == "Split" else {}
    if "Regex" not in stated or last.get("use_regex", True):
        raise _refused(where, "it splits texts by other rules than one pattern")
    if splits[0].get("behavior") != "Isolated" or splits[0].get("invert"):
        raise _refused(where, "it throws away what its pattern matches")
    return str(stated["Regex"])


def _normalizes(values: Mapping[str, Any], where: str) -> bool:
    """Whether texts are brought to the form NFC."""
    steps = values.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = steps.get("normalizers") or [] if steps.get("type") == "Sequence" else [steps]
    if others := [step.get("type") for step in steps if step.get("type") != "NFC"]:
        raise _refused(where, f"it normalises texts by {others[0]}")
    return bool(steps)


def _chat_format(folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, int]) -> ChatFormat:
    """The chat format of a folder. Raises: UserError if it has none, or an unknown one."""
    template = config.get("chat_template")
    if isinstance(template, list):  # several with names, as in older versions
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if (folder / TEMPLATE).is_file():
        template = (folder / TEMPLATE).read_text(encoding="utf-8")
    if not isinstance(template, str):
        raise _refused(display(folder), "it has no chat template")
    named = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    variables = {name: token for name, token in named.items() if token}
    end_of_text = END_OF_TEXT if END_OF_TEXT in special_tokens else named["pad_token"]
    begin = named["bos_token"] or end_of_text
    if not {begin, end_of_text} <= special_tokens.keys():
        raise _refused(display(folder), f"it has no special token {END_OF_TEXT} to end texts")
    return format_of_template(
        template, special_tokens, begin=begin, end_of_text=end_of_text, where=display(folder), variables=variables
    )


def _content(token: Any) -> str:
    """The text of a token in tokenizer_config.json; empty if there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path, REMEDY, f"无法读取：{REMEDY_CHINESE}")
    if not isinstance(values, dict):
        raise _refused(display(path), "it holds no JSON object")
    return values


def _refused(where: str, fault: str) -> UserError:
    return UserError(
        f"{where}: {fault}. MiniLLM reads byte-level BPE with one pattern, as Qwen's. {REMEDY}",
        f"不支持这种分词器，只支持 Qwen 那样的字节级 BPE：{REMEDY_CHINESE}",
    )

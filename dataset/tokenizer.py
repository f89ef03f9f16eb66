"""The tokenizer: text to ids and back, and conversations to ids with their loss mask.

All text is encoded by `RustBPETokenizer`, so that training, evaluation and chat see the same ids.
"""

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import regex
import tiktoken

from configs.artifacts import atomic_write, fingerprint
from configs.hardware import num_cores
from configs.schema import UserError
from dataset import chat
from dataset.chat import SPECIAL_TOKENS, ChatFormat
from dataset.foreign_tokenizer import FILE, GPT2_PATTERN, read_foreign
from dataset.tokenizer_files import REMEDY, REMEDY_CHINESE, read_metadata, read_plain_pickle, write_folder

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
NAMED_PATTERNS = {
    "qwen2": QWEN2_PATTERN,
    "gpt4": GPT4_PATTERN,
    "nanochat": GPT4_PATTERN.replace("{1,3}", "{1,2}"),
}
"""Name -> split pattern. Each of these matches every text completely and skips no character."""

NUM_BYTES = 256
"""Values of a byte, each a token of its own."""
SMALLEST_VOCABULARY = NUM_BYTES + len(SPECIAL_TOKENS)
"""Tokens of a vocabulary without any merge."""
SPACE_WINDOW = 50_000
"""Characters. tiktoken's regular expression overflows its stack on about a million spaces in a row.
So a text is split by `_pieces` when one of its windows of this size is nothing but white space."""
OLDEST_TIKTOKEN = (0, 13)
"""Major and minor version, as in requirements.txt. In older ones the time to encode a piece grows
with the square of its length."""
_BATCH_TASKS_PER_THREAD = 8
"""Groups of texts for each thread. A thread that finishes early takes another group."""


class RustBPETokenizer:
    """Byte-level BPE: text becomes a list of ids from 0 to vocabulary size - 1, and back.

    How a text is encoded:

    1. `pattern`, a regular expression, cuts it into pieces: words, clauses, single digits, runs of
       punctuation. Text that the pattern does not match becomes pieces of its own.
    2. A piece starts as its UTF-8 bytes, 256 tokens that can write any text ("你" is three).
    3. The two neighbours whose concatenation has the lowest rank merge into one token. This is
       repeated until no pair of neighbours is in the vocabulary. Training gave the ranks: the most
       frequent pair came first.

    A token's rank is its id. 0 to 255 are the single bytes, then come the merges in the order of
    training, and at the top the special tokens of `dataset.chat`, which mark turns. Special tokens
    never come from text: "<|bos|>" typed by a user becomes ordinary ids. Only `encode_special` and
    the two `render_` methods put marks in.

    A tokenizer of others (`dataset/foreign_tokenizer.py`) may have other ids, another chat format,
    and may normalise texts. All else is the same.

    Half of a surrogate pair (JSON's "\\ud800") is no character and can't be written in UTF-8. It
    becomes U+FFFD, the replacement character. `decode` gives all other text back unchanged.
    """

    def __init__(
        self,
        pattern: str,
        mergeable_ranks: Mapping[bytes, int],
        special_tokens: Mapping[str, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        chat_format: ChatFormat | None = None,
        normalizes: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Build from plain data.

        Args: mergeable_ranks: token -> rank. special_tokens: name -> id; by default those of
        `dataset.chat`, above the ranks. metadata: what `tokenizer_meta.json` also keeps, such as
        the statistics of the vocabulary. chat_format: None: our own. Only with another one may ids
        have another order, and gaps. normalizes: whether texts are brought to Unicode's form NFC.
        files: the folder of a tokenizer of others, name -> content.
        Raises: UserError when a byte is missing, ids have gaps, or the pattern is no regular
        expression.
        """
        if special_tokens is None:
            special_tokens = {name: len(mergeable_ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.chat_format = chat_format or ChatFormat()
        _check(pattern, mergeable_ranks, special_tokens, self.chat_format.needed, with_gaps=self.is_foreign)
        self.normalizes, self.files = normalizes, dict(files or {})
        self.pattern = pattern
        self.mergeable_ranks = dict(sorted(mergeable_ranks.items(), key=lambda item: item[1]))
        self.special_tokens = dict(sorted(special_tokens.items(), key=lambda item: item[1]))
        self.metadata = dict(metadata or {})
        self._token_bytes = [b""] * (1 + max([*self.mergeable_ranks.values(), *self.special_tokens.values()]))
        for token, token_id in self.mergeable_ranks.items():
            self._token_bytes[token_id] = token
        for name, token_id in self.special_tokens.items():
            self._token_bytes[token_id] = name.encode()
        self._gapless = pattern in {*NAMED_PATTERNS.values(), GPT2_PATTERN}
        self._splitter = regex.compile(pattern)
        facts: dict[str, Any] = {
            "pattern": pattern,
            "ranks": [token.hex() for token in self.mergeable_ranks],
            "special_tokens": self.special_tokens,
        }
        if self.is_foreign:
            written = {name: value for name, value in asdict(self.chat_format).items() if name != "template"}
            facts |= {"normalizes": normalizes, "chat_format": written}
        self.sha256 = fingerprint(facts)
        """Fingerprint of all that decides the ids. Tensors and weights store it."""

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs. A Rust encoder can't be sent: that process makes its own."""
        return {key: value for key, value in vars(self).items() if key != "_rust_encoder"}

    # --- text to ids ---

    @cached_property
    def _bpe(self) -> tiktoken.Encoding:
        """Splits by the pattern, then merges.

        Only for patterns without gaps: tiktoken drops the text that a pattern skips.
        """
        return self._encoding(self.pattern)

    @cached_property
    def _piece_bpe(self) -> tiktoken.Encoding:
        """Merges a text as one piece, for pieces that `_pieces` has split."""
        return self._encoding(r"(?s:.+)")

    def _encoding(self, pattern: str) -> tiktoken.Encoding:
        _check_tiktoken(tiktoken.__version__)
        return tiktoken.Encoding("minillm", pat_str=pattern, mergeable_ranks=self.mergeable_ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        """Ids of a text, none of them special, whatever the text says."""
        if self.normalizes:
            text = unicodedata.normalize("NFC", text)
        if self._gapless and not _has_endless_space(text):
            return self._bpe.encode_ordinary(text)
        # The slow way, for what tiktoken can't split: `regex` splits, tiktoken only merges.
        ids: list[int] = []
        for piece in self._pieces(without_surrogates(text)):
            ids += self._piece_bpe.encode_ordinary(piece)
        return ids

    @cached_property
    def _rust_encoder(self) -> Any | None:
        """The crate's encoder, three times as fast; None if it is not built or ids could differ.

        It knows which two ids make a new one. tiktoken merges any two neighbours whose bytes
        together are a token. Both give the same ids if each token is made of two parts (`merges`),
        and if both split the text alike, which holds for the patterns of NAMED_PATTERNS.
        """
        if self.is_foreign:  # the crate has ids of its own for bytes
            return None
        merges = [(self.mergeable_ranks[left], self.mergeable_ranks[right]) for left, right in self.merges()]
        if not self._gapless or len(merges) != len(self.mergeable_ranks) - NUM_BYTES:
            return None
        try:
            return rust_class().from_merges(merges, self.pattern)
        except UserError:
            return None

    def encode_batch(self, texts: Sequence[str], num_threads: int = 0) -> list[list[int]]:
        """Ids of each text, in order, encoded on several threads.

        Args: num_threads: 0: the crate if it is built, else one thread a core.
        """
        if num_threads == 0 and (encoder := self._rust_encoder) is not None:
            ids: list[list[int]] = encoder.batch_encode(list(texts))
            return ids
        num_threads = num_threads or num_cores()
        if num_threads == 1 or len(texts) < 2:
            return [self.encode(text) for text in texts]
        size = max(1, len(texts) // (num_threads * _BATCH_TASKS_PER_THREAD))
        groups = [texts[start : start + size] for start in range(0, len(texts), size)]
        with ThreadPoolExecutor(num_threads) as pool:
            encoded = pool.map(lambda group: [self.encode(text) for text in group], groups)
            return [ids for group in encoded for ids in group]

    def _pieces(self, text: str) -> Iterator[str]:
        """The pieces of a text. What the pattern skips becomes a piece too, so nothing is lost."""
        end = 0
        for match in self._splitter.finditer(text):
            if match.start() > end:
                yield text[end : match.start()]
            if match.end() > match.start():
                yield match.group()
            end = match.end()
        if end < len(text):
            yield text[end:]

    def encode_special(self, name: str) -> int:
        """Id of a special token, such as `<|bos|>`. Raises: KeyError for another name."""
        return self.special_tokens[name]

    # --- ids to text ---

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. Bytes of a cut character become U+FFFD, special tokens become their names.

        Raises: ValueError for an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, special: bool = True) -> bytes:
        """UTF-8 bytes of ids. `special` false leaves out the names of special tokens."""
        marks = () if special else frozenset(self.special_tokens.values())
        kept = ids if special else (i for i in ids if i not in marks)
        return b"".join(map(self._bytes_of, kept))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of ids as they arrive, in whole characters; all chunks together equal `decode`."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            if chunk := decoder.decode(self._bytes_of(token_id)):
                yield chunk
        if chunk := decoder.decode(b"", final=True):
            yield chunk

    def id_to_token(self, token_id: int) -> str:
        """A token for people to read: its text, with `\\xe4` for a byte of a cut character."""
        return self._bytes_of(token_id).decode("utf-8", errors="backslashreplace")

    def _bytes_of(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self._token_bytes):
            if self.is_foreign and token_id >= 0:
                return b""  # the embedding of another model may have more rows than its tokenizer has tokens
            raise ValueError(f"id {token_id}: not in the vocabulary of {len(self._token_bytes)}")
        return self._token_bytes[token_id]

    # --- conversations ---

    def render_conversation(
        self, messages: Sequence[chat.Message], max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of a conversation and its loss mask (1: the token counts in the loss), both (T,).

        Both are cut to `max_length` tokens when it is given. The format is `chat_format`.
        Raises: UserError for a malformed message.
        """
        ids, mask = self.chat_format.render_conversation(self, messages)
        return ids[:max_length], mask[:max_length]

    def render_for_completion(
        self, messages: Sequence[chat.Message], *, enable_thinking: bool | None = None
    ) -> list[int]:
        """Ids of a conversation up to the place where the model's answer begins.

        Args: enable_thinking: True opens a thought there, False puts an empty one, None neither.
        Other formats know less of this.
        Raises: UserError for a malformed message.
        """
        return self.chat_format.render_for_completion(self, messages, enable_thinking=enable_thinking)

    # --- the vocabulary ---

    @property
    def is_foreign(self) -> bool:
        """Whether it is the tokenizer of another model."""
        return self.chat_format != ChatFormat()

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included: the rows of the model's embedding."""
        return len(self._token_bytes)

    def get_bos_token_id(self) -> int:
        """Id of `<|bos|>`, which opens every document and conversation."""
        return self.special_tokens[self.chat_format.begin]

    @property
    def end_of_text_id(self) -> int:
        """Id of `<|endoftext|>`: the end of a document, and padding."""
        return self.special_tokens[self.chat_format.end_of_text]

    @property
    def assistant_end_id(self) -> int:
        """Id of `<|assistant_end|>`, the end of an answer."""
        return self.special_tokens[self.chat_format.answer_end]

    def merges(self) -> Iterator[tuple[bytes, bytes]]:
        """The two parts of which each token is made, in the order of ranks.

        The files store only the token and its rank. Its parts are what its bytes become when only
        the merges of lower rank are done, because inside a text the token forms in the same way. A
        token that no merges lead to has no two parts and is left out. It is used only where a whole
        piece is this token.
        """
        for token, rank in self.mergeable_ranks.items():
            if len(token) > 1:
                parts = merge_bytes(token, self.mergeable_ranks, below=rank)
                if len(parts) == 2:
                    yield parts[0], parts[1]

    # --- training ---

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str = QWEN2_PATTERN,
        max_han_run: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> "RustBPETokenizer":
        """Train a vocabulary with the crate `rustbpe` on all cores, in one pass over the texts.

        Args: vocab_size: tokens, special ones included. From too little text comes a smaller
        vocabulary and a UserWarning. max_han_run: runs of Han are cut after this many characters,
        in training only. progress: called from time to time with the number of merges made and the
        number wanted.
        Raises: UserError when the crate is not built, there is no text, or a setting is impossible.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"a vocabulary of {vocab_size}: must be {SMALLEST_VOCABULARY} or more "
                f"({NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens).",
                f"词表太小：至少 {SMALLEST_VOCABULARY}",
            )
        trainer = rust_class()()
        try:
            trainer.train_from_iterator(
                iter(texts),
                vocab_size - len(SPECIAL_TOKENS),
                pattern=pattern,
                max_han_run=max_han_run,
                progress=progress,
            )
        except ValueError as error:
            raise UserError(f"the tokenizer can't be trained: {error}.", "分词器无法训练：请检查参数和文本") from None
        return cls(pattern, dict(trainer.get_mergeable_ranks()))

    # --- files ---

    @classmethod
    def from_directory(cls, folder: Path | str) -> "RustBPETokenizer":
        """Load a tokenizer folder, ours or that of another model.

        Raises: UserError when a file is missing or damaged, or its tokenizer is none that can be.
        """
        path = Path(folder) / "tokenizer.pkl"
        if not path.exists() and (Path(folder) / FILE).exists():
            return cls._from_foreign(Path(folder))
        data = read_plain_pickle(path)
        try:
            tokenizer = cls(data["pattern"], data["mergeable_ranks"], data["special_tokens"])
        except UserError as error:
            raise UserError(f"{path}: {error} {REMEDY}", f"分词器有误（{error.chinese}）：{REMEDY_CHINESE}") from None
        tokenizer.metadata = read_metadata(path.with_name("tokenizer_meta.json"), tokenizer.sha256)
        return tokenizer

    @classmethod
    def _from_foreign(cls, folder: Path) -> "RustBPETokenizer":
        """The tokenizer of another model. Raises: UserError, also when its ids would differ."""
        found = read_foreign(folder)
        try:
            return cls(
                found.pattern,
                found.mergeable_ranks,
                found.special_tokens,
                chat_format=found.chat_format,
                normalizes=found.normalizes,
                files=found.files,
            )
        except UserError as error:
            raise UserError(f"{found.where}: {error}", error.chinese) from None

    def save(self, folder: Path | str) -> None:
        """Write a tokenizer folder, in the format of `tokenizer_files.py`; that of another model as
        it was."""
        if not self.is_foreign:
            write_folder(Path(folder), self)
        for name, content in self.files.items():
            with atomic_write(Path(folder) / name, "wb") as file:
                file.write(content)


def merge_bytes(piece: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """The tokens of a piece when only merges of a rank below `below` are done.

    This is the plain algorithm of BPE (Sennrich et al. 2016, arXiv:1508.07909), for short pieces.
    """
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        # The lowest rank merges first, of equal ranks the leftmost. `below` means: no such token.
        rank, i = min((ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1))
        if rank >= below:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


# --- checks and limits ----------------------------------------------------------------------------


def rust_class() -> Any:
    """The crate's Tokenizer.

    Raises: UserError when the crate is not built, or another package has its name.
    """
    try:
        from rustbpe import Tokenizer
    except ImportError:  # without the crate Python takes the folder of its sources for an empty package
        Tokenizer = None
    if not hasattr(Tokenizer, "from_merges"):  # the package of this name on PyPI has no such method
        raise UserError(
            "the crate rustbpe is not in this Python environment. Build it with: "
            "maturin develop --release --manifest-path rustbpe/Cargo.toml (or ENABLE_RUSTBPE=1 bash scripts/run.sh).",
            "本环境没有编译 rustbpe：请运行所列命令",
        )
    return Tokenizer


def _check_tiktoken(version: str) -> None:
    """Raises: UserError for a version older than OLDEST_TIKTOKEN."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TIKTOKEN:
        oldest = ".".join(map(str, OLDEST_TIKTOKEN))
        raise UserError(
            f"tiktoken {version}: is too old: it takes minutes over a long run of Chinese characters. "
            f"Run: pip install 'tiktoken>={oldest},<1'",
            "tiktoken 版本过旧：请升级",
        )


def _has_endless_space(text: str) -> bool:
    """Whether some window of `text` is nothing but white space. It costs almost no time."""
    return len(text) >= SPACE_WINDOW and any(
        text[start : start + SPACE_WINDOW].isspace() for start in range(0, len(text), SPACE_WINDOW)
    )


def without_surrogates(text: str) -> str:
    """The text with surrogate pairs joined and single halves replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _check(pattern: Any, ranks: Any, special_tokens: Any, needed: Sequence[str], *, with_gaps: bool) -> None:
    """Raises: UserError when the parts of a tokenizer are not what they must be.

    Args: needed: names of special tokens. with_gaps: ids may be any, as in tokenizers of others.
    """
    if not isinstance(pattern, str) or not isinstance(ranks, Mapping) or not isinstance(special_tokens, Mapping):
        raise UserError("pattern must be text, mergeable_ranks and special_tokens mappings.", "分词器内容的类型不对")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"the split pattern {pattern!r} is no regular expression ({error}).", "切分规则不是合法的正则表达式"
        ) from None
    if not all(type(token) is bytes and type(rank) is int for token, rank in ranks.items()):
        raise UserError("mergeable_ranks must map bytes to whole numbers.", "mergeable_ranks 应是字节到整数")
    if not all(type(name) is str and type(token_id) is int for name, token_id in special_tokens.items()):
        raise UserError("special_tokens must map names to whole numbers.", "special_tokens 应是名称到整数")
    if with_gaps and not all(bytes([byte]) in ranks for byte in range(NUM_BYTES)):
        raise UserError("not every byte has a token.", "缺少单字节词元")
    if not with_gaps and any(ranks.get(bytes([byte])) != byte for byte in range(NUM_BYTES)):
        raise UserError(
            f"each single byte must have its own value as rank, 0 to {NUM_BYTES - 1}.", "单字节的编号应是它自己的值"
        )
    if missing := [name for name in needed if name not in special_tokens]:
        raise UserError(f"special tokens are missing: {', '.join(missing)}.", "缺少特殊词元")
    if with_gaps:
        if len({*ranks.values(), *special_tokens.values()}) < len(ranks) + len(special_tokens):
            raise UserError("two tokens have the same id.", "有编号重复的词元")
        return
    # Ranks are ids, and the rows of the embedding: a gap would be a row that nothing uses.
    num_tokens = len(ranks) + len(special_tokens)
    if sorted(ranks.values()) != list(range(len(ranks))) or sorted(special_tokens.values()) != list(
        range(len(ranks), num_tokens)
    ):
        raise UserError(
            "ids must be 0, 1, 2, ... without a gap, those of the special tokens at the top.",
            "编号应从 0 起连续，特殊词元在最后",
        )

"""Tokenizers and texts for the tests of the tokenizer and of its folder."""

import pytest

from configs.paths import TOKENIZER_DIR
from dataset.tokenizer import NUM_BYTES, RustBPETokenizer

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

shipped = RustBPETokenizer.from_directory(TOKENIZER_DIR)
bytes_alone = {bytes([byte]): byte for byte in range(NUM_BYTES)}

whole_characters = st.characters(exclude_categories=["Cs"])
emoji = st.sampled_from(["👍🏽", "👨‍👩‍👧‍👦", "🇨🇳", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️‍🔥", "☺️", "7️⃣"])
FRAGMENTS = [
    "你好，世界", "人工智能", "。\n", "\r\n", " \n\n ", "\t", "\u3000", "don't", "'LL", "'ſ", "ﬅ", "İ", "12", "٣", "①",
    "½", "é", "e\u0301", "ह\u093f", "\u200d", "\x1c", "\x85", "\xa0", "\u2028", "<|bos|>", "!!", "\ufeff",
    "\U00020000",
]  # fmt: skip
fragments = st.sampled_from(FRAGMENTS)
any_text = st.lists(st.one_of(st.text(whole_characters, max_size=8), emoji, fragments), max_size=12).map("".join)


def tokenizer_with(pattern: str, *merges: str) -> RustBPETokenizer:
    """A small tokenizer of all bytes and these tokens. Each must be made of two earlier ones."""
    return RustBPETokenizer(pattern, bytes_alone | {token.encode(): NUM_BYTES + i for i, token in enumerate(merges)})

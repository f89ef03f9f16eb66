"""Marks of other chat formats inside texts, such as `<|im_start|>` and `<s>`: they are taken out.

Our tokenizer does not know them, so the model would learn them as text. In an exchange in
minimind's format that would be 16 of 40 tokens. They separate turns or documents, so they become
line ends.
"""

import re

_ROLE = r"(?:system|user|assistant|tool|model|human|gpt)"
_TURN = re.compile(
    rf"<\|im_start\|>[ \t]*{_ROLE}|<\|start_header_id\|>[ \t]*{_ROLE}|<start_of_turn>[ \t]*{_ROLE}"
    r"|<\|(?:Human|MOSS|user|assistant)\|>|<｜(?:User|Assistant)｜>|\[/INST\]"
)
"""A mark that begins a turn."""
_BORDER = re.compile(
    rf"<\|im_start\|>(?:[ \t]*{_ROLE}[ \t]*\n)?|<\|im_end\|>"  # ChatML: Qwen, minimind since 2025
    rf"|<\|start_header_id\|>[ \t]*{_ROLE}[ \t]*<\|end_header_id\|>|<\|(?:begin|end)_of_text\|>|<\|eot_id\|>"  # Llama 3
    rf"|<start_of_turn>(?:[ \t]*{_ROLE}[ \t]*\n)?|<end_of_turn>"  # Gemma
    r"|<eo[hma]>|<\|(?:Human|MOSS)\|>:?"  # MOSS
    r"|<\|(?:system|user|assistant|observation|end)\|>|\[gMASK\]|<sop>"  # GLM, Phi, Zephyr
    r"|<｜(?:begin▁of▁sentence|end▁of▁sentence|User|Assistant)｜>"  # DeepSeek
    r"|\[/?INST\]|<</?SYS>>"  # Llama 2
    r"|<\|endoftext\|>|<bos>|<eos>"  # GPT-2, Qwen, Gemma
)
"""Any mark."""
_SENTENCE = re.compile(r"</?s>")
"""A mark of Llama 2 and of older minimind files. In HTML it means text that is struck out."""
_SPACES = re.compile(r"[ \t]*\n\s*")


def without_foreign_marks(text: str) -> tuple[str, int]:
    """The text with line ends instead of the marks of other formats, and how many marks there were.

    `<s>` and `</s>` are marks only if the text begins with `<s>` or ends with `</s>`. A text
    without marks is returned unchanged.
    """
    # Almost all texts hold no mark, and this test is much faster than the regular expressions.
    if "<" not in text and "INST]" not in text and "[gMASK]" not in text:
        return text, 0
    cleaned, count = _BORDER.subn("\n", text)
    bare = cleaned.strip()
    if bare.startswith("<s>") or bare.endswith("</s>"):
        cleaned, more = _SENTENCE.subn("\n", cleaned)
        count += more
    return (_SPACES.sub("\n", cleaned).strip(), count) if count else (text, 0)


def is_wrapped(text: str) -> bool:
    """Whether a turn's text is wrapped in marks: it begins with one and a role, or ends with one.

    Other marks stay, because somebody may talk about them.
    """
    bare = text.strip()
    *_, last = [0, *(mark.end() for mark in _BORDER.finditer(bare))]
    ends_so = bare.endswith("</s>") and "<s>" not in bare[1:]  # else HTML's mark
    return _TURN.match(bare) is not None or last == len(bare) > 0 or ends_so or bare.startswith("<s>[INST]")


def holds_turns(text: str) -> bool:
    """Whether the text of a single turn holds several turns, with the marks of other formats."""
    return sum(bool(without_foreign_marks(piece)[0].strip()) for piece in _TURN.split(text)) > 1

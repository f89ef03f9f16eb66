"""ollama's Modelfile: the marks of the chat template, in the same places."""

import re

from dataset.chat import CHAT_TEMPLATE
from model.ollama import CHAT, TEXT, modelfile


def test_the_template_in_go_uses_the_marks_of_the_one_in_jinja() -> None:
    marks = re.compile(r"<\|\w+\|>")
    assert set(marks.findall(CHAT)) == set(marks.findall(CHAT_TEMPLATE))
    assert CHAT.startswith("<|bos|>") and CHAT.endswith("<|assistant_start|>")
    assert CHAT.count("<|bos|>") == 1


def test_every_block_of_the_template_is_closed() -> None:
    opened = re.findall(r"\{\{ (?:range|if) ", CHAT)
    assert len(opened) == CHAT.count("{{ end }}")


def test_a_pretrained_model_continues_a_text() -> None:
    text = modelfile("a.gguf", context=2048, ends=["<|endoftext|>"], completes=True)
    assert f'TEMPLATE """{TEXT}"""' in text and "user_start" not in text
    assert 'PARAMETER stop "<|endoftext|>"\n' in text and "PARAMETER num_ctx 2048\n" in text

r"""ChatML, the chat format of Qwen3 and of many others, and how a folder's template is recognised.

One question and answer. Each T marks a target:

    <|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n你好！<|im_end|>\n
                                                            TTTTTTTTTTTTTT

The folder of another model brings its format as a Jinja template. Such a template writes text, and
can't say which tokens are targets. So it is not used for rendering. `format_of_template` lets it
write some conversations, and takes the variant of ChatML that writes the same texts.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any, NamedTuple

from configs.schema import UserError
from dataset.chat import ChatFormat, Message, TextEncoder, as_json, call_json, check_messages, parsed, require_question

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
THOUGHT = ("<think>", "</think>")
TOOL_CALL = ("<tool_call>", "</tool_call>")
_TOOL_MARKS = re.compile(f"({'|'.join(TOOL_CALL)})")
TOOL_RESULT = ("<tool_response>", "</tool_response>")
KNOWN = "ChatML: plain, or as Qwen3 writes it, with thoughts, tools or both"
"""The templates that are recognised, for messages."""


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    is_mark: bool = False
    """Whether it is a special token, if the vocabulary has one of this name."""
    is_target: bool = False


@dataclass(frozen=True)
class ChatML(ChatFormat):
    """One variant of ChatML."""

    begins_conversations: bool = False
    answer_end: str = TURN_END
    thought: tuple[str, str] = THOUGHT
    tool_call: tuple[str, str] = TOOL_CALL
    needed: tuple[str, ...] = (TURN_START, TURN_END)
    marks: tuple[str, ...] = ()
    """Special tokens of the vocabulary. `<think>` and the marks of tools are text in others."""
    default_system: str = ""
    """The system message of a conversation that has none."""
    thinks: bool = False
    """Whether answers begin with a thought, if only an empty one. As in Qwen3, the thoughts before
    the last question are left out."""
    tools: tuple[str, str] | None = None
    """What stands in the system message before and after the list of tools. None: no tools."""

    def render_conversation(self, encoder: TextEncoder, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Ids of a whole conversation and its loss mask, both (T,) for T tokens. Nothing is cut.

        The mask is 1 on what an assistant writes, from its thought to the end of its turn; in a
        format with thoughts only behind the last question. The ids are those of the template, with
        one exception: an answer that begins with a line end. The template would merge it with the
        line end before it, which no model can do that writes the answer.
        Raises: UserError that names the wrong message and the mistake.
        """
        check_messages(messages)
        return self._encoded(encoder, self.pieces(messages))

    def render_for_completion(
        self, encoder: TextEncoder, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> list[int]:
        """Ids of a conversation up to the point where the assistant starts to write.

        Args: enable_thinking: False puts an empty thought there, if the format has thoughts.
        Raises: UserError if a message is wrong, or if the last message is from the assistant.
        """
        check_messages(messages)
        require_question(messages)
        opening = [*self.pieces(messages), *self.answer_opening(enable_thinking=enable_thinking)]
        return self._encoded(encoder, opening)[0]

    def _encoded(self, encoder: TextEncoder, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
        """Ids and loss mask of pieces."""
        ids: list[int] = []
        mask: list[int] = []
        # Neighbours are encoded as one text, as programs do that encode the text of a template. A
        # target never shares a token with what the program writes before it.
        for (is_mark, is_target), group in groupby(pieces, lambda piece: (self._is_mark(piece), piece.is_target)):
            texts = [piece.text for piece in group]
            found = [encoder.encode_special(text) for text in texts] if is_mark else encoder.encode("".join(texts))
            ids += found
            mask += [int(is_target)] * len(found)
        return ids, mask

    def _is_mark(self, piece: Piece) -> bool:
        return piece.is_mark and piece.text in self.marks

    # --- what is written --------------------------------------------------------------------------

    def answer_opening(self, *, enable_thinking: bool | None = None) -> list[Piece]:
        """The beginning of an answer, which the program writes."""
        opening = [Piece(TURN_START, is_mark=True), Piece("assistant\n")]
        if self.thinks and enable_thinking is False:
            opening += [*_block(THOUGHT, "\n\n"), Piece("\n\n")]  # no target: the program writes it
        return opening

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The pieces of a conversation. Raises: UserError for what this format can't write."""
        last_question = _last_question(messages)
        written = [] if messages[0]["role"] == "system" else self._system({"content": self.default_system})
        for place, message in enumerate(messages):
            role, content = message["role"], message.get("content") or ""
            if role == "system":
                written += self._system(message, given=True)
            elif role == "user":
                written += _turn("user", content)
            elif role == "tool":
                self._require_tools("a tool result")
                # Results that follow each other share one turn.
                if messages[place - 1]["role"] != "tool":
                    written += [Piece(TURN_START, is_mark=True), Piece("user")]
                written += [Piece("\n"), *_block(TOOL_RESULT, f"\n{content}\n")]
                if place + 1 == len(messages) or messages[place + 1]["role"] != "tool":
                    written += _END_OF_TURN
            else:
                is_last, is_new = place + 1 == len(messages), place > last_question
                # A new answer begins with a thought. Before the last question it stands without it,
                # as no model should write it.
                is_target = message.get("loss") is not False and (is_new or not self.thinks)
                is_silent = is_last and message.get("enable_thinking") is False
                written += self.answer_opening(enable_thinking=False if is_silent else None)
                body = [*self._answer(message, is_last=is_last, is_new=is_new), _END_OF_TURN[0]]
                written += [piece._replace(is_target=is_target) for piece in body]
                written.append(_END_OF_TURN[1])
        return written

    def _system(self, message: Message, *, given: bool = False) -> list[Piece]:
        """The system message, with the tools behind its text.

        Args: given: whether the conversation has one.
        """
        content, tools = message.get("content") or "", parsed(message.get("tools") or [])
        if not tools:
            return _turn("system", content) if given or content else []
        before, after = self._require_tools("a list of tools")
        content = content or self.default_system
        listed = "".join(f"\n{as_json(tool)}" for tool in tools)
        return [
            Piece(TURN_START, is_mark=True),
            Piece(f"system\n{content}\n\n" if content else "system\n"),
            *_split_at_marks(before),
            Piece(listed),
            *_split_at_marks(after),
            *_END_OF_TURN,
        ]

    def _answer(self, message: Message, *, is_last: bool, is_new: bool) -> Iterator[Piece]:
        """What an assistant writes.

        Args: is_new: whether it stands behind the last question.
        """
        reasoning, content = message.get("reasoning_content"), message.get("content") or ""
        if self.thinks:
            if not isinstance(reasoning, str):
                reasoning, content = _apart(content)
            if is_last and message.get("enable_thinking") is False:
                yield Piece(content.lstrip("\n"))
            elif is_new and (is_last or reasoning):
                stripped = reasoning.strip("\n")
                yield from _block(THOUGHT, f"\n{stripped}\n")
                yield Piece("\n\n" + content.lstrip("\n"))
            else:
                yield Piece(content)
        elif reasoning:
            raise UserError(
                "reasoning_content: the chat format of this tokenizer has no thoughts. Take it out of the records.",
                "该分词器的对话格式没有思考：请从数据中去掉 reasoning_content",
            )
        else:
            yield Piece(content)
        calls = parsed(message.get("tool_calls") or [])
        if calls:
            self._require_tools("a tool call")
        for number, call in enumerate(calls):
            yield Piece("\n" if content or number else "")
            yield from _block(TOOL_CALL, f"\n{call_json(call)}\n")

    def _require_tools(self, what: str) -> tuple[str, str]:
        """The texts around the list of tools. Raises: UserError if this format has no tools."""
        if self.tools is None:
            raise UserError(
                f"{what}: the chat format of this tokenizer has no tools. Take such messages out of the records.",
                "该分词器的对话格式没有工具：请去掉这类消息",
            )
        return self.tools


_END_OF_TURN = (Piece(TURN_END, is_mark=True), Piece("\n"))


def _turn(role: str, content: str) -> list[Piece]:
    return [Piece(TURN_START, is_mark=True), Piece(f"{role}\n{content}"), *_END_OF_TURN]


def _block(marks: tuple[str, str], text: str) -> list[Piece]:
    """A text between two marks."""
    return [Piece(marks[0], is_mark=True), Piece(text), Piece(marks[1], is_mark=True)]


def _split_at_marks(text: str) -> list[Piece]:
    """The pieces of a text of the format itself, which names marks: it explains how tools are
    called."""
    return [Piece(part, is_mark=part in TOOL_CALL) for part in _TOOL_MARKS.split(text)]


def _last_question(messages: Sequence[Message]) -> int:
    """Place of the last question. A tool's result that stands in a user's turn is none."""
    for place in range(len(messages) - 1, -1, -1):
        content = messages[place].get("content") or ""
        is_result = content.startswith(TOOL_RESULT[0]) and content.endswith(TOOL_RESULT[1])
        if messages[place]["role"] == "user" and not is_result:
            return place
    return len(messages) - 1


def _apart(content: str) -> tuple[str, str]:
    """The thought and the answer of a text in which both stand, as a model writes them."""
    if THOUGHT[1] not in content:
        return "", content
    before, *_, answer = content.split(THOUGHT[1])
    return before.rstrip("\n").split(THOUGHT[0])[-1].lstrip("\n"), answer.lstrip("\n")


# --- which variant a template writes --------------------------------------------------------------


Template = Callable[..., str]
"""Messages, tools and options -> text."""

_ASKS: Message = {"role": "user", "content": "你是谁？\nWho?"}
_SAYS: Message = {"role": "assistant", "content": "我是助手。"}
_RULE: Message = {"role": "system", "content": "用中文\n回答。"}
_THINKS: Message = {"role": "assistant", "content": "好。", "reasoning_content": "想一想"}
_CALLS: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "天气", "arguments": {"城市": "北京"}}}],
}
_CALLS_TWICE: Message = {"role": "assistant", "content": "查。", "tool_calls": [{"name": "a", "arguments": "{}"}] * 2}
_RESULT: Message = {"role": "tool", "content": "晴"}
_TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("天气", "时间")]

_PLAIN_TALK: tuple[tuple[Message, ...], ...] = (
    (_ASKS,), (_ASKS, _SAYS), (_ASKS, _SAYS, _ASKS), (_RULE, _ASKS, _SAYS, _ASKS, _SAYS),
)  # fmt: skip
_THOUGHTFUL_TALK: tuple[tuple[Message, ...], ...] = (
    (_ASKS, _THINKS), (_ASKS, _THINKS, _ASKS), (_RULE, _ASKS, _THINKS, _ASKS, _THINKS),
    (_ASKS, {"role": "assistant", "content": "<think>\n想\n</think>\n\n好。"}, _ASKS, _SAYS),
)  # fmt: skip
_TOOL_TALK: tuple[tuple[Message, ...], ...] = (
    (_ASKS, _CALLS), (_ASKS, _CALLS, _RESULT), (_RULE, _ASKS, _CALLS_TWICE, _RESULT, _RESULT, _SAYS),
)  # fmt: skip


def format_of_template(
    template: str, marks: Mapping[str, int], *, begin: str, end_of_text: str, where: str, variables: Mapping[str, str]
) -> ChatML:
    """The variant of ChatML that a folder's template writes.

    Args: marks: special tokens of the vocabulary. where: the folder, for messages. variables: such
    as `bos_token`, which a template may name.
    Raises: UserError if it is none of them.
    """
    write = _program(template, variables)
    plain = ChatML(
        begin=begin,
        end_of_text=end_of_text,
        needed=(TURN_START, TURN_END, begin, end_of_text),
        marks=tuple(sorted(marks)),
        template=template,
    )
    plain = replace(plain, default_system=_default_system(write))
    for tools, thinks in product((_texts_around_tools(write), None), (True, False)):
        variant = replace(plain, tools=tools, thinks=thinks)
        if _writes_the_same(variant, write):
            return variant
    raise UserError(
        f"{where}: its chat template is none that MiniLLM knows ({KNOWN}). Give another folder, or such a template.",
        "不认识它的对话模板：只支持 ChatML（普通的，或 Qwen3 那样的）",
    )


def _program(template: str, variables: Mapping[str, str]) -> Template:
    """A template as a function. It runs where it can reach no file and no other code.

    Raises: UserError if jinja2 is missing.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError(
            "the package jinja2 is missing. Run: pip install jinja2", "缺少 jinja2：请运行所列命令安装"
        ) from None

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **({"ensure_ascii": False} | options))

    # The settings and functions that transformers gives a template.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    try:
        program = environment.from_string(template)
    except TemplateError:
        return lambda messages, **options: "no text"  # which is what no variant writes

    def write(messages: Sequence[Message], **options: Any) -> str:
        try:
            return program.render(messages=[dict(message) for message in messages], **variables, **options)
        except Exception:  # a template is a program, and may raise anything
            return "no text"

    return write


def _default_system(write: Template) -> str:
    """The system message that a template writes where there is none."""
    head, text = f"{TURN_START}system\n", write([_ASKS])
    return text.removeprefix(head).split(TURN_END)[0] if text.startswith(head) else ""


def _texts_around_tools(write: Template) -> tuple[str, str] | None:
    """What a template writes before and after a list of tools; None if it lists none."""
    listed = "".join(f"\n{as_json(tool)}" for tool in _TOOLS)
    before, found, after = write([_RULE, _ASKS], tools=_TOOLS).partition(listed)
    head = f"{TURN_START}system\n{_RULE['content']}\n\n"
    if not found or not before.startswith(head):
        return None
    return before.removeprefix(head), after.split(TURN_END)[0]


def _writes_the_same(variant: ChatML, write: Template) -> bool:
    """Whether a variant writes the texts of a template."""
    talks: list[tuple[tuple[Message, ...], dict[str, Any]]]
    talks = [(talk, {}) for talk in _PLAIN_TALK + (_THOUGHTFUL_TALK if variant.thinks else ())]
    if variant.tools is not None:
        talks += [(talk, tools) for talk in _TOOL_TALK for tools in ({}, {"tools": _TOOLS})]
    return all(
        _text(variant, talk, options.get("tools"), thinking) == write(talk, **options, **_options_of(talk, thinking))
        for talk, options in talks
        for thinking in (None, True, False)
    )


def _options_of(talk: Sequence[Message], thinking: bool | None) -> dict[str, Any]:
    """How a template is asked for the beginning of an answer, if the talk has none yet."""
    if talk[-1]["role"] == "assistant":
        return {}
    return {"add_generation_prompt": True} | ({} if thinking is None else {"enable_thinking": thinking})


def _text(variant: ChatML, talk: Sequence[Message], tools: Any, thinking: bool | None) -> str:
    """The text that a variant writes."""
    if tools:
        system = talk[0] if talk[0]["role"] == "system" else {"role": "system", "content": ""}
        talk = [{**system, "tools": tools}, *(message for message in talk if message["role"] != "system")]
    pieces = variant.pieces(talk)
    if talk[-1]["role"] != "assistant":
        pieces += variant.answer_opening(enable_thinking=thinking)
    return "".join(piece.text for piece in pieces)

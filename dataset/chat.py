"""The chat template, the special tokens, the loss mask of a conversation, the check of messages.

This is the format of one question and answer. There are no line breaks between the marks. Below,
each T marks a target:

    <|bos|><|user_start|>你好<|user_end|><|assistant_start|>你好！<|assistant_end|>
                                                           TTTTTTTTTTTTTTTTTTT

An answer may begin with a thought. Thoughts stand only behind the last question: a model that is
asked again no longer reads what it thought before. `training_views` makes records of this kind out
of a conversation with several thoughts, so that training and use see the same text.

Ids and loss mask are built together: the code that appends an id also says whether this id is a
target. Other programs make the mask later, by searching the ids for markers. Such a mask is wrong
if a text looks like a marker, or if the conversation was cut.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from configs.schema import UserError

BOS = "<|bos|>"
"""Beginning of a document or a conversation."""
END_OF_TEXT = "<|endoftext|>"
"""End of a document, and padding."""
ASSISTANT_START = "<|assistant_start|>"
ASSISTANT_END = "<|assistant_end|>"
THOUGHT = ("<|think_start|>", "<|think_end|>")
"""Before and after what an assistant thinks."""
TOOL_CALL = ("<|tool_call_start|>", "<|tool_call_end|>")
"""Before and after a call of a tool."""
IMAGE = "<|image|>"
"""Stands for a picture in the text, for a model that can see pictures."""
SPECIAL_TOKENS = (
    IMAGE,
    "<|spare_0|>",
    "<|spare_1|>",
    BOS,
    END_OF_TEXT,
    "<|system_start|>",
    "<|system_end|>",
    "<|user_start|>",
    "<|user_end|>",
    ASSISTANT_START,
    ASSISTANT_END,
    *THOUGHT,
    "<|tools_start|>",
    "<|tools_end|>",
    *TOOL_CALL,
    "<|tool_result_start|>",
    "<|tool_result_end|>",
)
"""In the order of their ids, which are the highest ids of the vocabulary. These ids never change
after publication. If a later version needs a new token, the token replaces a spare one."""

Message = Mapping[str, Any]
"""`role` (system, user, assistant, tool) and `content`; an assistant may have `reasoning_content`
and `tool_calls`, a system message may have `tools`. An assistant's turn whose `loss` is false is
only context: it has no targets. One that has `enable_thinking` answers a prompt that was rendered
so, and what the prompt writes of the thought is no target: its first mark, or with false the empty
thought before the answer. Other keys are not rendered."""

# Role -> the special tokens that open and close a turn.
_TURN_MARKS = {
    "system": ("<|system_start|>", "<|system_end|>"),
    "user": ("<|user_start|>", "<|user_end|>"),
    "assistant": (ASSISTANT_START, ASSISTANT_END),
    "tool": ("<|tool_result_start|>", "<|tool_result_end|>"),
}
ROLES = tuple(_TURN_MARKS)
_ONLY_ON = {"reasoning_content": "assistant", "tool_calls": "assistant", "tools": "system"}
"""Key of a message -> the only role that may have it."""

CHAT_TEMPLATE = """
{%- if tools and not (messages and messages[0]['role'] == 'system') -%}
{%- set loose_tools = '<|system_start|><|tools_start|>' + (tools | tojson) + '<|tools_end|><|system_end|>' -%}
{%- endif -%}
{{- '<|bos|>' + (loose_tools or '') -}}
{%- set last = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set content = message['content'] or '' -%}
{%- if message['role'] == 'system' -%}
{{- '<|system_start|>' + content -}}
{%- set listed = message['tools'] or tools -%}
{%- if listed is string -%}{{- raise_exception('tools must be a list, not text') -}}{%- endif -%}
{%- if listed -%}{{- '<|tools_start|>' + (listed | tojson) + '<|tools_end|>' -}}{%- endif -%}
{{- '<|system_end|>' -}}
{%- elif message['role'] == 'user' -%}
{{- '<|user_start|>' + content + '<|user_end|>' -}}
{%- elif message['role'] == 'tool' -%}
{{- '<|tool_result_start|>' + content + '<|tool_result_end|>' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<|assistant_start|>' -}}
{%- if message['reasoning_content'] and loop.index0 > last.question -%}
{{- '<|think_start|>' + message['reasoning_content'] + '<|think_end|>' -}}
{%- endif -%}
{{- content -}}
{%- if message['tool_calls'] is string -%}{{- raise_exception('tool_calls must be a list, not text') -}}{%- endif -%}
{%- for given in message['tool_calls'] or [] -%}
{%- set call = given['function'] or given -%}
{{- '<|tool_call_start|>{"name": ' + (call['name'] | tojson) + ', "arguments": ' -}}
{{- call['arguments'] if call['arguments'] is string else ((call['arguments'] or {}) | tojson) -}}
{{- '}<|tool_call_end|>' -}}
{%- endfor -%}
{{- '<|assistant_end|>' -}}
{%- else -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant_start|>' -}}
{%- if enable_thinking is defined and enable_thinking is true -%}{{- '<|think_start|>' -}}{%- endif -%}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<|think_start|><|think_end|>' -}}{%- endif -%}
{%- endif -%}
""".strip()
"""The same format as a Jinja template, for transformers, vLLM and llama.cpp. A test shows that
template and code give the same ids. Those programs search the finished text for special tokens, so
there a user can type a mark and fake a turn. Our code makes this impossible."""


class TextEncoder(Protocol):
    """The two methods of a tokenizer that rendering needs."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text. No id is that of a special token."""

    def encode_special(self, name: str) -> int:
        """Id of a special token."""


@dataclass(frozen=True)
class ChatFormat:
    """How a tokenizer writes conversations, as data that travels with it.

    The defaults are our own format. Another one is in `dataset/chatml.py`.
    """

    begin: str = BOS
    """Opens a document."""
    begins_conversations: bool = True
    """Whether it also opens a conversation."""
    end_of_text: str = END_OF_TEXT
    """Ends a document, and is the padding."""
    answer_end: str = ASSISTANT_END
    thought: tuple[str, str] = THOUGHT
    """Before and after what an assistant thinks."""
    tool_call: tuple[str, str] = TOOL_CALL
    """Before and after a call of a tool."""
    needed: tuple[str, ...] = SPECIAL_TOKENS
    """Special tokens that a vocabulary must have for this format."""
    template: str = field(default=CHAT_TEMPLATE, compare=False, repr=False)
    """The same format as a Jinja template."""

    def answer_of(self, text: str, *, begins_with_thought: bool = False) -> str:
        """What a model says behind its thought; nothing if the thought has no end.

        Args: begins_with_thought: the prompt has opened the thought, so its first mark is not in
        the text.
        """
        begin, end = self.thought
        if end in text:
            return text.rpartition(end)[2].lstrip("\n")
        return "" if begins_with_thought or text.lstrip().startswith(begin) else text

    def opening(self, data: str) -> str | None:
        """The special token that opens a sequence of this kind of data; None if there is none."""
        return self.begin if self.begins_conversations or data == "documents" else None

    def render_conversation(self, encoder: TextEncoder, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """As the function below, in this format."""
        return render_conversation(encoder, messages)

    def render_for_completion(
        self, encoder: TextEncoder, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> list[int]:
        """As the function below, in this format."""
        return render_for_completion(encoder, messages, enable_thinking=enable_thinking)


def render_conversation(encoder: TextEncoder, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and its loss mask, both (T,) for T tokens. Nothing is cut.

    The mask is 1 on the targets: everything that an assistant writes (reasoning, answer, tool
    calls), and the end token after it. Without the end token the model would never learn to stop.
    The mask is 0 on everything else. It is 0 on a whole turn if its `loss` is false, or if its
    thought stands before the last question and is left out: it would teach to answer without it.
    Raises: UserError that names the wrong message and the mistake.
    """
    check_messages(messages)
    last = last_question(messages)
    ids = [encoder.encode_special(BOS)]
    mask = [0]
    for place, message in enumerate(messages):
        start, end = (encoder.encode_special(mark) for mark in _TURN_MARKS[message["role"]])
        # Thoughts stand only behind the last question. The program writes an empty one.
        thought = _thought(encoder, message) if place > last else []
        body = _body(encoder, message)
        is_target = int(
            message["role"] == "assistant"
            and message.get("loss") is not False
            and not (place < last and opens_thought(message))
        )
        thought_mask = [is_target * bool(message.get("reasoning_content"))] * len(thought)
        if thought and message.get("enable_thinking") is True:
            thought_mask[0] = 0
        # The start token is never a target: when the model answers, the program writes that token.
        ids += [start, *thought, *body, end]
        mask += [0, *thought_mask, *[is_target] * (len(body) + 1)]
    return ids, mask


def render_for_completion(
    encoder: TextEncoder, messages: Sequence[Message], *, enable_thinking: bool | None = None
) -> list[int]:
    """Ids of a conversation up to the point where the assistant starts to write.

    Args: enable_thinking: True: the answer begins with a thought. False: it begins with an empty
    thought, as in Qwen3's template. None: the model decides.
    Raises: UserError if a message is wrong, or if the last message is from the assistant.
    """
    ids, _ = render_conversation(encoder, messages)
    require_question(messages)
    opening = {None: (), True: THOUGHT[:1], False: THOUGHT}[enable_thinking]
    return ids + [encoder.encode_special(mark) for mark in (ASSISTANT_START, *opening)]


def _thought(encoder: TextEncoder, message: Message) -> list[int]:
    """Ids of the thought that opens an answer, which may be empty."""
    return _block(encoder, "think", message.get("reasoning_content") or "") if opens_thought(message) else []


def _body(encoder: TextEncoder, message: Message) -> list[int]:
    """Ids between the two marks of a turn, behind its thought."""
    # Keep the order of CHAT_TEMPLATE: the content, then tools or tool calls.
    ids: list[int] = []
    if content := message.get("content"):
        ids += encoder.encode(content)
    if tools := message.get("tools"):
        ids += _block(encoder, "tools", as_json(parsed(tools)))
    if tool_calls := message.get("tool_calls"):
        for call in parsed(tool_calls):
            ids += _block(encoder, "tool_call", call_json(call))
    return ids


def _block(encoder: TextEncoder, name: str, text: str) -> list[int]:
    """Ids of a text between the marks `<|name_start|>` and `<|name_end|>`."""
    return [
        encoder.encode_special(f"<|{name}_start|>"),
        *encoder.encode(text),
        encoder.encode_special(f"<|{name}_end|>"),
    ]


# --- thoughts -------------------------------------------------------------------------------------


def opens_thought(message: Message) -> bool:
    """Whether an assistant's turn begins with a thought, or with the empty one of a prompt whose
    `enable_thinking` is false."""
    return message["role"] == "assistant" and (
        bool(message.get("reasoning_content")) or message.get("enable_thinking") is False
    )


def last_question(messages: Sequence[Message]) -> int:
    """Place of the last message of the user; -1 if there is none."""
    return max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)


def training_views(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """What to train on, so that each answer is a target once, behind the text that it has in use.

    In use, an answer is written before thoughts are left out, its own included, and every later
    prompt is written without them. So a conversation becomes: one that ends behind the answer for
    each question that is answered with a thought, in which only this answer has targets; and if
    there are answers without a thought too, one more in which only they have targets. Without
    thoughts it stays as it is.
    """
    questions = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not questions or not any(map(opens_thought, messages)):
        return [messages]
    views: list[Sequence[Message]] = []
    context, plain = list(messages[: questions[0]]), list(messages[: questions[0]])
    length = 0  # of `plain` up to its last answer without a thought
    for start, end in pairwise([*questions, len(messages)]):
        exchange, as_context = messages[start:end], [*map(_as_context, messages[start:end])]
        if any(map(opens_thought, exchange)):
            views.append([*context, *exchange])
            plain += as_context
        else:
            plain += exchange
            length = len(plain)
        context += as_context
    return [*views, plain[:length]] if length else views


def _as_context(message: Message) -> Message:
    """An answer without its thought, and without targets; another message as it is."""
    if message["role"] != "assistant":
        return message
    kept = {name: value for name, value in message.items() if name not in {"reasoning_content", "enable_thinking"}}
    return {**kept, "content": message.get("content") or "", "loss": False}


# --- JSON of tools and calls ----------------------------------------------------------------------


def as_json(value: Any) -> str:
    """JSON as Hugging Face's templates write it: Chinese stays readable."""
    return json.dumps(value, ensure_ascii=False)


def parsed(value: Any) -> Any:
    """The list of tools or calls. In data sets it is a list, or the same list as JSON text."""
    return json.loads(value) if isinstance(value, str) else value


def call_json(call: Mapping[str, Any]) -> str:
    """A call as `{"name": ..., "arguments": ...}`. In OpenAI's format it is inside `function`."""
    function = call.get("function") or call
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else as_json(arguments)  # OpenAI stores the arguments as JSON text
    return f'{{"name": {as_json(function["name"])}, "arguments": {text}}}'


def require_question(messages: Sequence[Message]) -> None:
    """Raises: UserError if the last message is from the assistant."""
    if messages[-1]["role"] == "assistant":
        raise UserError(
            f"message {len(messages)}: is the assistant's already. End with a user or tool message.",
            "最后一条已是助手的话：请以 user 或 tool 消息结尾",
        )


def check_messages(messages: Any) -> None:
    """Check a conversation before it is rendered.

    Raises: UserError with the number (from 1) of the first wrong message.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(
            'a conversation must be a list of at least one message {"role": ..., "content": ...}.',
            "对话应是至少含一条消息的列表",
        )
    before = ""
    for number, message in enumerate(messages, start=1):
        fault = message_fault(message) or place_fault(message, before, to_learn=False)
        if fault:
            raise UserError(f"message {number}: {fault.english}", f"第 {number} 条消息：{fault.chinese}")
        before = message["role"]


# --- the check of messages, shared by the mix, the export and the chat ----------------------------


class Fault(NamedTuple):
    """What is wrong with a message."""

    reason: str
    """A fixed phrase. The mix counts dropped records by this phrase."""
    english: str
    """The message for the user, in English."""
    chinese: str


def message_fault(message: Any) -> Fault | None:
    """What is wrong with one message alone, without its neighbours. None: nothing is wrong."""
    if not isinstance(message, Mapping):
        return Fault("turn is not an object", 'must be {"role": ..., "content": ...}.', "应含 role 和 content")
    role = message.get("role")
    if not isinstance(role, str) or role not in _TURN_MARKS:
        return Fault("unknown role", f"role is {role!r}: must be one of {', '.join(ROLES)}.", "role 只能取所列之一")
    content = message.get("content")
    if not isinstance(content, str) and not is_wordless(message):
        said = f"content is {type(content).__name__}: must be text."
        return Fault("turn's content is not a string", said, "content 应是文字")
    if not isinstance(message.get("reasoning_content") or "", str):
        said = "reasoning_content must be text."
        return Fault("reasoning_content is not a string", said, "reasoning_content 应是文字")
    if message.get("enable_thinking") is False and message.get("reasoning_content"):
        said = "enable_thinking is false, but there is reasoning_content. Leave one of the two out."
        return Fault("enable_thinking is false beside reasoning_content", said, "enable_thinking 为假时不应有思考内容")
    for key, owner in _ONLY_ON.items():
        if message.get(key) and role != owner:
            return Fault(
                "tools, tool_calls or reasoning_content in the wrong role",
                f"{key} belongs to a message of role {owner}, not {role}.",
                f"{key} 只能出现在 {owner} 消息中",
            )
    return _tools_fault(message)


def is_wordless(message: Message) -> bool:
    """Whether a message has no content because it only thinks or calls tools.

    The template renders the missing content as an empty text.
    """
    has_more = message.get("tool_calls") or message.get("reasoning_content")
    return message.get("content") is None and bool(has_more)


def has_name(entry: Any) -> bool:
    """Whether a tool or a call has the name of its function, also inside OpenAI's `function`."""
    function = (entry.get("function") or entry) if isinstance(entry, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _tools_fault(message: Message) -> Fault | None:
    """What is wrong with `tools` and `tool_calls` of a message. None: nothing is wrong."""
    for key in ("tools", "tool_calls"):
        if not message.get(key):
            continue
        try:
            entries = parsed(message[key])
        except (ValueError, RecursionError):
            said = f"{key} is text that is not JSON."
            return Fault("tools or tool_calls are not JSON", said, f"{key} 不是合法的 JSON")
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            said = f"{key} must be a list of JSON objects."
            return Fault("a tool or tool call without a name", said, f"{key} 应是 JSON 对象的列表")
        if key == "tool_calls" and not all(map(has_name, entries)):
            said = "each tool call needs a name."
            return Fault("a tool or tool call without a name", said, "每个工具调用都要有 name")
    return None


_MAY_FOLLOW = {"user": {"", "system", "assistant"}, "assistant": {"user", "tool"}}
"""Role -> the roles of the message before, as training data allows. "" means: no message before."""


def place_fault(message: Message, before: str, *, to_learn: bool) -> Fault | None:
    """What is wrong with the place of a message in its conversation. None: nothing is wrong.

    In a chat, user and assistant turns may come in any order, and turns may be empty, because a
    model may answer with nothing, or may be stopped while it thinks. In training data this is
    forbidden, because an empty answer would teach the model to say nothing. So in the mix and the
    export, user and assistant must take turns, and each must say something. A thought alone does
    not count as an answer, but a tool call does.

    Args: message: it is right by itself (`message_fault`). before: role of the message before; ""
    if there is none. to_learn: whether the conversation is training data.
    """
    role = message["role"]
    if role == "system" and before:
        said = "a system message must be the first."
        return Fault("system message is not the first", said, "system 消息只能是第一条")
    if role == "tool" and before not in {"assistant", "tool"}:
        said = "a tool result must follow the assistant's call."
        return Fault("tool result without a call", said, "tool 消息应跟在助手的调用之后")
    if not to_learn or role not in _MAY_FOLLOW:
        return None
    # From here on, the message is a user's or an assistant's turn in training data.
    if before not in _MAY_FOLLOW[role]:
        return Fault("roles do not alternate", "user and assistant must take turns.", "用户与助手应轮流发言")
    if (message["content"] or "").strip() or message.get("tool_calls"):
        return None
    if role == "user":
        return Fault("empty user turn", "the user says nothing.", "用户没有说话")
    return Fault("empty assistant answer", "the assistant says nothing.", "助手没有回答")

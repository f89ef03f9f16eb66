"""Requests: the body of a chat or completion becomes prompts as token ids and a `Sampling`."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from configs.schema import LARGEST_SEED, UserError
from dataset.tokenizer import RustBPETokenizer
from inference.parts import opens_thought
from inference.sampling import LOWEST_TEMPERATURE, Sampling, check_ids
from inference.serving.errors import ApiError, from_user_error, invalid
from inference.serving.fields import Body, Field, shown

Kind = Literal["chat", "text"]
ROLES = {"developer": "system"}
"""OpenAI's newer name -> ours."""


@dataclass(frozen=True)
class Reader:
    """What a served model needs to read a request."""

    tokenizer: RustBPETokenizer
    room: int
    """Tokens of prompt and answer together that the model can read."""
    completes: bool
    """The model was only pretrained: it knows no turns, and continues the last message."""


@dataclass(frozen=True)
class Ask:
    """What is asked for: `n` answers to each prompt."""

    kind: Kind
    prompts: list[list[int]]
    sampling: Sampling
    max_tokens: int
    """Longest answer. 0: none, so that the sampling's limit does not count."""
    n: int
    stream: bool
    include_usage: bool
    begins_with_thought: bool = False
    """The prompt ends where a thought begins."""
    echo: list[str] | None = None
    """Texts of the prompts, if the answer is to begin with them."""

    @property
    def num_answers(self) -> int:
        """Answers to all prompts together."""
        return self.n * len(self.prompts)


def read_chat(body: Body, reader: Reader) -> Ask:
    """A request of `/v1/chat/completions`. Raises: ApiError that names the field."""
    _refuse_format(body)
    logprobs = body.plain("top_logprobs", 0) if body.logprobs("chat") else None
    if logprobs is None and body.plain("top_logprobs"):
        raise invalid("top_logprobs", "needs logprobs: true.", "需要同时设置 logprobs 为 true")
    thinks = _enable_thinking(body)
    messages = _with_tools(read_messages(body), body)
    prompt = _render(messages, reader, thinks)
    begins_with_thought = not reader.completes and opens_thought(prompt, reader.tokenizer)
    return _ask("chat", body, reader, [prompt], logprobs, begins_with_thought=begins_with_thought)


def read_completion(body: Body, reader: Reader) -> Ask:
    """A request of `/v1/completions`. Raises: ApiError that names the field."""
    if body.plain("suffix"):
        raise invalid(
            "suffix", "this model can't fill in a gap. Leave suffix out.", "本模型不支持 suffix", "unsupported"
        )
    if body.plain("best_of", 1) not in (1, body.plain("n", 1)):
        raise invalid("best_of", "must be 1, or the same as n.", "只能是 1 或与 n 相同", "unsupported")
    prompts = read_prompts(body, reader.tokenizer)
    echo = [reader.tokenizer.decode(_without_bos(ids, reader.tokenizer)) for ids in prompts]
    ask = _ask("text", body, reader, prompts, body.logprobs("text"))
    return replace(ask, echo=echo if body.plain("echo", False) else None)


# --- prompts --------------------------------------------------------------------------------------


def read_prompts(body: Body, tokenizer: RustBPETokenizer) -> list[list[int]]:
    """`prompt`: a text, texts, token ids, or lists of token ids. Raises: ApiError."""
    value = body.values.get("prompt")
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise invalid(
            "prompt", f"{shown(value)} must be text, token ids, or a list of them.", "必须是文本、词元编号或其列表"
        )
    if all(isinstance(one, str) for one in value):
        return [[tokenizer.get_bos_token_id(), *tokenizer.encode(text)] for text in value]
    lists = value if all(isinstance(one, list) for one in value) else [value]
    token = Field("integer", 0, tokenizer.get_vocab_size() - 1)
    prompts = [[token.check("prompt", one) for one in ids] for ids in lists]
    if not all(prompts):
        raise invalid("prompt", "a list of token ids is empty.", "词元编号列表为空")
    return prompts


def _without_bos(ids: Sequence[int], tokenizer: RustBPETokenizer) -> Sequence[int]:
    return ids[1:] if ids[0] == tokenizer.get_bos_token_id() else ids


def read_messages(body: Body) -> list[dict[str, Any]]:
    """`messages` in the shape of training records: the contents as texts, one system message at
    most, in front. Raises: ApiError."""
    given = body.array("messages")
    if not given:
        raise invalid("messages", "must have at least one message.", "至少要有一条消息")
    messages, system = [], []
    for number, message in enumerate(given):
        if not isinstance(message, Mapping):
            raise invalid("messages", f"message {number + 1} must be an object.", f"第 {number + 1} 条消息应是对象")
        role = message.get("role")
        role = ROLES.get(role, role) if isinstance(role, str) else role
        content = _content(message.get("content"), number)
        if role == "system" and isinstance(content, str):
            # Clients send several (instructions, a summary of older turns). The template has room
            # for one, in front.
            system.append(content)
            continue
        kept = {"role": role, "content": content}
        if role == "assistant":
            kept |= {name: message[name] for name in ("reasoning_content", "tool_calls") if message.get(name)}
        messages.append(kept)
    first = [{"role": "system", "content": "\n\n".join(text for text in system if text)}] if system else []
    return [*first, *messages]


def _content(value: Any, number: int) -> Any:
    """A content as text: it may be a list of parts. Raises: ApiError for parts that are no text."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image_url", "image", "input_image", "input_audio", "file"):
            raise invalid(
                "messages",
                f"message {number + 1} has a part of type {kind}; this model reads text only.",
                "本模型只能读文字",
                "unsupported_content",
            )
        else:
            raise invalid(
                "messages",
                f'message {number + 1}: a part must be {{"type": "text", "text": ...}}.',
                f"第 {number + 1} 条消息的内容格式有误",
            )
    return "".join(texts)


def _with_tools(messages: list[dict[str, Any]], body: Body) -> list[dict[str, Any]]:
    """The tools stand in the system message, which is made if there is none. Raises: ApiError."""
    tools, choice = body.array("tools"), body.values.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise invalid(
            "tool_choice", "must be auto or none: a call can't be forced.", "只支持 auto 或 none", "unsupported"
        )
    if not tools or choice == "none":
        return messages
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return [{**messages[0], "tools": tools}, *messages[1:]]


def _render(messages: list[dict[str, Any]], reader: Reader, thinks: bool | None) -> list[int]:
    """Raises: ApiError for a malformed conversation."""
    tokenizer = reader.tokenizer
    try:
        if reader.completes:
            tokenizer.render_conversation(messages)  # the same check
            return [tokenizer.get_bos_token_id(), *tokenizer.encode(messages[-1]["content"] or "")]
        return tokenizer.render_for_completion(messages, enable_thinking=thinks)
    except UserError as error:
        raise from_user_error(error, "messages") from None


def _enable_thinking(body: Body) -> bool | None:
    value = body.object("chat_template_kwargs").get("enable_thinking")
    if value is not None and not isinstance(value, bool):
        raise invalid("chat_template_kwargs", "enable_thinking must be true or false.", "enable_thinking 只能是真或假")
    return value


def _refuse_format(body: Body) -> None:
    """Raises: ApiError for an answer that is to be JSON."""
    kind = body.object("response_format").get("type", "text")
    if kind != "text":
        raise invalid(
            "response_format", f"type {shown(kind)}: only text is possible.", "只支持 text 格式", "unsupported"
        )


# --- settings -------------------------------------------------------------------------------------


def _ask(
    kind: Kind,
    body: Body,
    reader: Reader,
    prompts: list[list[int]],
    logprobs: int | None,
    *,
    begins_with_thought: bool = False,
) -> Ask:
    """Raises: ApiError."""
    longest = max(map(len, prompts))
    asked = _limit(kind, body)
    if longest + (asked != 0) > reader.room:
        raise ApiError(
            400,
            "context_length_exceeded",
            f"the prompt has {longest} tokens and leaves no room for an answer: the model can read {reader.room} "
            "tokens. Shorten it.",
            "提示词太长，请缩短",
            param="messages" if kind == "chat" else "prompt",
        )
    room = reader.room - longest
    max_tokens = room if asked is None else min(asked, room)
    options = body.object("stream_options")
    return Ask(
        kind=kind,
        prompts=prompts,
        sampling=_sampling(body, reader, max(max_tokens, 1), logprobs),
        max_tokens=max_tokens,
        n=body.plain("n", 1),
        stream=body.plain("stream", False),
        include_usage=PLAIN_SWITCH.check("stream_options", options.get("include_usage") or False),
        begins_with_thought=begins_with_thought,
    )


PLAIN_SWITCH = Field("boolean")


def _limit(kind: Kind, body: Body) -> int | None:
    """The longest answer that is asked for; None: as long as there is room. Raises: ApiError."""
    names = (
        ("max_new_tokens", "max_tokens", "max_completion_tokens")
        if kind == "chat"
        else ("max_new_tokens", "max_tokens")
    )
    given = [body.plain(name) for name in names if name in body]
    # OpenAI's own default for completions is 16. Hardly any client expects that.
    return given[-1] if given else None


def _sampling(body: Body, reader: Reader, max_new_tokens: int, logprobs: int | None) -> Sampling:
    """Raises: ApiError for values that the engine refuses."""
    # Some clients send 1e-8 when they mean greedy.
    temperature = body.plain("temperature", 0.0)
    seed = body.plain("seed", secrets.randbelow(LARGEST_SEED))
    try:
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=0.0 if temperature < LOWEST_TEMPERATURE else temperature,
            top_k=max(body.plain("top_k", 0), 0),
            top_p=body.plain("top_p", 1.0),
            min_p=body.plain("min_p", 0.0),
            repetition_penalty=body.plain("repetition_penalty", 1.0),
            presence_penalty=body.plain("presence_penalty", 0.0),
            frequency_penalty=body.plain("frequency_penalty", 0.0),
            no_repeat_ngram_size=body.plain("no_repeat_ngram_size", 0),
            stop=body.stop(),
            stop_token_ids=body.stop_token_ids(),
            logit_bias=body.logit_bias(),
            seed=seed % (LARGEST_SEED + 1),
            logprobs=logprobs,
        )
        check_ids(sampling, reader.tokenizer.get_vocab_size())
    except UserError as error:
        raise from_user_error(error) from None
    return sampling

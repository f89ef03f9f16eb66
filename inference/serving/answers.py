"""Answers in OpenAI's shapes: whole ones as JSON, growing ones as chunks of a stream."""

import codecs
import json
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any

from dataset.tokenizer import RustBPETokenizer
from inference.parts import Splitter, marks_of, parse_call
from inference.sampling import TokenLogprob
from inference.serving.errors import ApiError, closing_error, engine_error, scores_error
from inference.serving.protocol import Ask
from inference.serving.worker import Delta

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients skip. It keeps proxies from closing a stream that waits."""
OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk"), "text": ("text_completion", "text_completion")}


def dump(value: object) -> bytes:
    """JSON in UTF-8. Half a surrogate pair, which a client may have sent, becomes `?`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: object) -> bytes:
    """One event of a stream."""
    return b"data: " + dump(value) + b"\n\n"


def failure(delta: Delta) -> ApiError | None:
    """Why an answer ended early; None: it did not."""
    if delta.finish_reason == "error":
        return scores_error()
    if delta.finish_reason == "crash":
        return engine_error()
    return closing_error() if delta.finish_reason == "abort" else None


class Answering:
    """The answers to one request as they grow."""

    def __init__(self, ask: Ask, model: str, tokenizer: RustBPETokenizer) -> None:
        """Args: model: the name that the client sees."""
        self.ask, self.tokenizer = ask, tokenizer
        self.choices = [_Choice(ask, index, tokenizer) for index in range(ask.num_answers)]
        self.num_cached = 0
        self.id = f"{'chatcmpl' if ask.kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        self.head = {"id": self.id, "object": "", "created": int(time.time()), "model": model}

    def usage(self) -> dict[str, Any]:
        """Tokens read and written."""
        prompt = sum(map(len, self.ask.prompts))
        written = sum(choice.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }

    def take(self, delta: Delta) -> list[dict[str, Any]]:
        """What a delta adds, as choices of chunks. Of a prompt's samples the first one counts for
        the tokens that were in the cache: the others share what it reads."""
        choice = self.choices[delta.answer]
        if choice.num_tokens == 0 and delta.answer % self.ask.n == 0:
            self.num_cached += delta.cached_tokens
        return list(choice.take(delta))

    def first_events(self) -> Iterator[bytes]:
        """What a stream begins with: the role, at once; of a completion the echoed prompt."""
        for choice in self.choices:
            yield from self._events([choice.beginning()])

    def events(self, delta: Delta) -> Iterator[bytes]:
        """The events of a delta."""
        yield from self._events(self.take(delta))

    def last_events(self) -> Iterator[bytes]:
        """The end of a stream."""
        if self.ask.include_usage:
            yield event({**self._head(1), "choices": [], "usage": self.usage()})
        yield DONE

    def _events(self, choices: Iterable[dict[str, Any] | None]) -> Iterator[bytes]:
        usage = {"usage": None} if self.ask.include_usage else {}
        for choice in choices:
            if choice is not None:
                yield event({**self._head(1), "choices": [choice], **usage})

    def _head(self, form: int) -> dict[str, Any]:
        return {**self.head, "object": OBJECTS[self.ask.kind][form]}

    def whole(self) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        return {**self._head(0), "choices": [choice.whole() for choice in self.choices], "usage": self.usage()}


class _Choice:
    """One answer."""

    def __init__(self, ask: Ask, index: int, tokenizer: RustBPETokenizer) -> None:
        self.ask, self.index, self.tokenizer = ask, index, tokenizer
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._echo = ask.echo[index // ask.n] if ask.echo else ""
        self._texts = {"answer": "", "thought": ""}
        self._calls: list[dict[str, Any]] = []
        self._splitter = Splitter(marks_of(tokenizer.chat_format), begins_with_thought=ask.begins_with_thought)
        # If the prompt is echoed, its log-probabilities come first, so places count from 0.
        self._logprobs = _ChatLogprobs(tokenizer) if ask.kind == "chat" else _TextLogprobs(tokenizer)

    @property
    def text(self) -> str:
        """The answer so far, without thoughts and calls."""
        return self._texts["answer"]

    def beginning(self) -> dict[str, Any] | None:
        """The choice of the first chunk."""
        if self.ask.kind == "chat":
            return self._chunk({"role": "assistant", "content": ""}, None)
        return self._chunk(self._echo, None) if self._echo else None

    def take(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """What a delta adds: one choice with text, one with the end."""
        self.num_tokens += len(delta.ids)
        ends = delta.finish_reason is not None
        logprobs = None
        if delta.prompt_logprobs and isinstance(self._logprobs, _TextLogprobs):
            first = self.ask.prompts[self.index // self.ask.n][0]
            logprobs = self._logprobs.add_prompt(first, delta.prompt_logprobs)
        elif delta.logprobs:
            logprobs = self._logprobs.add(delta.logprobs)
        added = self._add_chat(delta.text, ends) if self.ask.kind == "chat" else self._add_text(delta.text)
        if added or logprobs:
            yield self._chunk(added, logprobs)
        if ends:
            self.finish_reason = "tool_calls" if self._calls else delta.finish_reason
            yield self._chunk({} if self.ask.kind == "chat" else "", None)

    def _add_text(self, text: str) -> str:
        self._texts["answer"] += text
        return text

    def _add_chat(self, text: str, ends: bool) -> dict[str, Any]:
        added: dict[str, Any] = {}
        for part in self._splitter.add(text, last=ends):
            if part.kind == "call":
                call = {"id": f"call_{secrets.token_hex(8)}", "type": "function", "function": parse_call(part.text)}
                added.setdefault("tool_calls", []).append({"index": len(self._calls), **call})
                self._calls.append(call)
                continue
            self._texts[part.kind] += part.text
            name = "content" if part.kind == "answer" else "reasoning_content"
            added[name] = added.get(name, "") + part.text
        return added

    def _chunk(self, added: Any, logprobs: Any) -> dict[str, Any]:
        name = "delta" if self.ask.kind == "chat" else "text"
        return {"index": self.index, name: added, "logprobs": logprobs, "finish_reason": self.finish_reason}

    def whole(self) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        logprobs = self._logprobs.all() if self.ask.sampling.logprobs is not None else None
        end = {"logprobs": logprobs, "finish_reason": self.finish_reason}
        if self.ask.kind == "text":
            return {"index": self.index, "text": self._echo + self.text, **end}
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self._texts["thought"]:
            message["reasoning_content"] = self._texts["thought"]
        if self._calls:
            message |= {"content": self.text or None, "tool_calls": self._calls}
        return {"index": self.index, "message": message, **end}


class _ChatLogprobs:
    """Log-probabilities as chats have them: an object a token."""

    def __init__(self, tokenizer: RustBPETokenizer) -> None:
        self._tokenizer = tokenizer
        self._content: list[dict[str, Any]] = []

    def add(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Those of new tokens."""
        content = [
            {
                **self._one(token.id, token.logprob),
                "top_logprobs": [self._one(one, logprob) for one, logprob in token.top],
            }
            for token in tokens
        ]
        self._content += content
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokenizer.id_to_token(token),
            "logprob": logprob,
            "bytes": list(self._tokenizer.decode_bytes([token])),
        }

    def all(self) -> dict[str, Any]:
        """Those of the whole answer."""
        return {"content": self._content, "refusal": None}


class _TextLogprobs:
    """Log-probabilities as completions have them: lists side by side."""

    def __init__(self, tokenizer: RustBPETokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add_prompt(self, first: int, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Those of a prompt that is echoed. Its first token has none; it is left out if it is the
        mark that begins a text, which is not echoed either."""
        if first != self._tokenizer.get_bos_token_id():
            raw = self._tokenizer.decode_bytes([first])
            nothing = [self._tokenizer.id_to_token(first), None, None, 0]
            for values, value in zip(self._lists.values(), nothing, strict=True):
                values.append(value)
            self._offset += len(self._decoder.decode(raw))
        self.add(tokens)
        return self.all()

    def add(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Those of new tokens."""
        known = len(self._lists["tokens"])
        name = self._tokenizer.id_to_token
        for token in tokens:
            self._lists["tokens"].append(name(token.id))
            self._lists["token_logprobs"].append(token.logprob)
            self._lists["top_logprobs"].append({name(one): logprob for one, logprob in token.top})
            raw, begun = self._tokenizer.decode_bytes([token.id]), self._decoder.getstate()[0]
            # A token may begin within a character: then its place is that character's. Bytes that
            # it does not complete are shown as U+FFFD before it.
            goes_on = 0x80 <= raw[0] < 0xC0
            before = 0 if goes_on else len(begun.decode("utf-8", "replace"))
            self._lists["text_offset"].append(self._offset + before)
            self._offset += len(self._decoder.decode(raw))
        return {key: values[known:] for key, values in self._lists.items()}

    def all(self) -> dict[str, Any]:
        """Those of the whole answer."""
        return self._lists

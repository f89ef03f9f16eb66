"""The fields of a request: one table says what is allowed, and what the API's schema shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import LARGEST_COUNT
from inference.sampling import LARGEST_BIAS, LARGEST_PENALTY, MOST_LOGPROBS
from inference.serving.errors import ApiError, invalid

MOST_STOPS = 16
LARGEST_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Field:
    """One plain field: its type and the values that it may have."""

    kind: Literal["integer", "number", "boolean", "string"]
    lowest: float = 0
    highest: float = LARGEST_COUNT

    def check(self, name: str, value: object) -> Any:
        """The value. Raises: ApiError if it is impossible."""
        if self.kind == "boolean":
            if not isinstance(value, bool):
                raise invalid(name, f"{shown(value)} must be true or false.", "只能是 true 或 false")
        elif self.kind == "string":
            if not isinstance(value, str):
                raise invalid(name, f"{shown(value)} must be text.", "必须是字符串")
        else:
            types = (int,) if self.kind == "integer" else (int, float)
            # NaN is in no range.
            if isinstance(value, bool) or not isinstance(value, types) or not self.lowest <= value <= self.highest:
                what = "a whole number" if self.kind == "integer" else "a number"
                raise invalid(
                    name,
                    f"{shown(value)} must be {what} from {self.lowest:g} to {self.highest:g}.",
                    f"必须是 {self.lowest:g} 到 {self.highest:g} 的{'整数' if self.kind == 'integer' else '数'}",
                )
        return value

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the field; null is the same as no value."""
        limits = {"minimum": self.lowest, "maximum": self.highest} if self.kind in ("integer", "number") else {}
        return {"type": [self.kind, "null"], **limits}


PLAIN = {
    "model": Field("string"),
    "stream": Field("boolean"),
    "n": Field("integer", 1, 1024),
    "max_tokens": Field("integer"),
    "max_completion_tokens": Field("integer"),
    "max_new_tokens": Field("integer"),
    "temperature": Field("number"),
    "top_k": Field("integer", -1),
    "top_p": Field("number", 0, 1),
    "min_p": Field("number", 0, 1),
    "repetition_penalty": Field("number"),
    "presence_penalty": Field("number", -LARGEST_PENALTY, LARGEST_PENALTY),
    "frequency_penalty": Field("number", -LARGEST_PENALTY, LARGEST_PENALTY),
    "no_repeat_ngram_size": Field("integer"),
    "seed": Field("integer", -LARGEST_INT64 - 1, LARGEST_INT64),
    "top_logprobs": Field("integer", 0, MOST_LOGPROBS),
    "echo": Field("boolean"),
    "best_of": Field("integer", 1, 1024),
    "suffix": Field("string"),
}  # fmt: skip
"""Name -> what it may be. `logprobs` is a switch in chats and a number in completions."""
LOGPROBS = {"chat": Field("boolean"), "text": Field("integer", 0, MOST_LOGPROBS)}


class Body:
    """The JSON object of a request. A field that is null is absent; unknown fields are let pass."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def plain(self, name: str, default: Any = None) -> Any:
        """A field of the table. Raises: ApiError."""
        return PLAIN[name].check(name, self.values[name]) if name in self.values else default

    def logprobs(self, kind: str) -> Any:
        """The field of this name, which two endpoints use differently. Raises: ApiError."""
        return LOGPROBS[kind].check("logprobs", self.values["logprobs"]) if "logprobs" in self.values else None

    def object(self, name: str) -> Mapping[str, Any]:
        """A field that holds an object; empty if absent. Raises: ApiError."""
        value = self.values.get(name, {})
        if not isinstance(value, Mapping):
            raise invalid(name, f"{shown(value)} must be an object.", "必须是对象")
        return value

    def array(self, name: str) -> list[Any]:
        """A field that holds a list; empty if absent. Raises: ApiError."""
        value = self.values.get(name, [])
        if not isinstance(value, list):
            raise invalid(name, f"{shown(value)} must be a list.", "必须是列表")
        return value

    def stop(self) -> tuple[str, ...]:
        """One text, or a list of them; empty texts are left out. Raises: ApiError."""
        value = self.values.get("stop", [])
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise invalid("stop", f"{shown(value)} must be text or a list of texts.", "必须是字符串或字符串列表")
        if len(texts) > MOST_STOPS:
            raise invalid(
                "stop", f"has {len(texts)} texts; at most {MOST_STOPS} are possible.", f"最多 {MOST_STOPS} 个"
            )
        return tuple(text for text in texts if text)

    def stop_token_ids(self) -> tuple[int, ...]:
        """Raises: ApiError unless it is a list of whole numbers."""
        one = Field("integer")
        return tuple(one.check("stop_token_ids", value) for value in self.array("stop_token_ids"))

    def logit_bias(self) -> tuple[tuple[int, float], ...]:
        """An object of token id (as text) and number. Raises: ApiError."""
        one, pairs = Field("number", -LARGEST_BIAS, LARGEST_BIAS), {}
        for key, value in self.object("logit_bias").items():
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise invalid("logit_bias", f"{shown(key)} is not the id of a token.", "键必须是词元编号")
            pairs[int(key)] = float(one.check("logit_bias", value))
        return tuple(pairs.items())


def shown(value: object) -> str:
    """A value in a message: short, on one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def parse(raw: bytes) -> Body:
    """The body of a request. Raises: ApiError if it is not a JSON object."""
    try:
        values = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise ApiError(400, "invalid_json", f"the body is not JSON ({reason}).", "请求体不是合法的 JSON") from None
    if not isinstance(values, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object.", "请求体应是 JSON 对象")
    return Body(values)


def _no_number(word: str) -> None:
    """JSON has no NaN and no infinity. Raises: ValueError."""
    raise ValueError(f"{word} is not a number")


# --- the schema that /openapi.json shows ----------------------------------------------------------

_TEXT_OR_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MOST_STOPS}]}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "null"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                    },
                },
            ]
        },
        "reasoning_content": {"type": ["string", "null"]},
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
    },
}
_SHARED = {
    **{name: field.schema() for name, field in PLAIN.items()},
    "stop": {"anyOf": [*_TEXT_OR_TEXTS["anyOf"], {"type": "null"}]},
    "stop_token_ids": {"type": ["array", "null"], "items": Field("integer").schema()},
    "logit_bias": {
        "type": ["object", "null"],
        "additionalProperties": {"type": "number", "minimum": -LARGEST_BIAS, "maximum": LARGEST_BIAS},
    },
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": ["boolean", "null"]}}},
}
_ONLY_CHAT = ("top_logprobs", "max_completion_tokens")
_ONLY_TEXT = ("echo", "best_of", "suffix")


def schema(kind: Literal["chat", "text"]) -> dict[str, Any]:
    """JSON Schema of the requests of one endpoint."""
    left_out = _ONLY_TEXT if kind == "chat" else _ONLY_CHAT
    properties: dict[str, Any] = {name: value for name, value in _SHARED.items() if name not in left_out}
    properties["logprobs"] = LOGPROBS[kind].schema()
    if kind == "chat":
        properties |= {
            "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
            "tools": {"type": ["array", "null"], "items": {"type": "object"}},
            "tool_choice": {"enum": ["none", "auto", None]},
            "response_format": {"type": ["object", "null"], "properties": {"type": {"const": "text"}}},
            "chat_template_kwargs": {
                "type": ["object", "null"],
                "properties": {"enable_thinking": {"type": ["boolean", "null"]}},
            },
        }
    else:
        ids = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
        properties["prompt"] = {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
                ids,
                {"type": "array", "minItems": 1, "items": ids},
            ]
        }
    return {"type": "object", "required": ["messages" if kind == "chat" else "prompt"], "properties": properties}

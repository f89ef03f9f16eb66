"""What the API answers when it refuses a request or fails: OpenAI's shape, with codes as text."""

import re
from collections.abc import Mapping
from typing import Any

from configs.messages import both
from configs.schema import UserError

INVALID = "invalid_value"
"""Code of a field that has an impossible value."""
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""HTTP status -> type; all others below 500 are `invalid_request_error`."""


class ApiError(Exception):
    """A request that gets no answer, and why."""

    def __init__(
        self,
        status: int,
        code: str,
        english: str,
        chinese: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Args: param: the field that is wrong."""
        super().__init__(english)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})
        self.message = both(english, chinese)

    def body(self) -> dict[str, Any]:
        """The JSON object that the client gets."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str, english: str, chinese: str, code: str = INVALID) -> ApiError:
    """A field with an impossible value: 400."""
    return ApiError(400, code, f"{param}: {english}", chinese, param=param)


def from_user_error(error: UserError, param: str | None = None) -> ApiError:
    """A UserError of the engine or the template: 400. Without `param` its first word is the field,
    as in `top_p = 2: must be ...`."""
    text = str(error)
    found = re.match(r"(\w+)(?: = |: | of )", text)
    return ApiError(400, INVALID, text, error.chinese, param=param or (found[1] if found else None))


def scores_error() -> ApiError:
    """The model's scores are NaN or infinite: 500."""
    return ApiError(
        500,
        "model_error",
        "the model's scores are NaN or infinite: its weights are damaged. Serve other weights, or make these again.",
        "模型输出不是有限的数：权重已损坏，请换用或重新训练",
    )


def engine_error() -> ApiError:
    """The engine failed, by a mistake of ours or for lack of memory: 500."""
    return ApiError(
        500, "engine_error", "the engine failed; the server's log says why. Try again.", "生成引擎出错，请看服务器日志"
    )


def closing_error() -> ApiError:
    """The server ends: 503."""
    return ApiError(
        503,
        "server_shutting_down",
        "the server is shutting down. Try again later.",
        "服务器正在关闭，请稍后再试",
        headers={"Retry-After": "5"},
    )

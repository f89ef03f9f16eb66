"""What stands before the app: who may ask (Host, key), and a log line for each request."""

import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from inference.serving.answers import dump
from inference.serving.errors import ApiError
from inference.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/", "/health")
"""What needs no key: the page, which asks for one, and the question whether the server lives."""
QUIET_PATHS = ("/health", "/metrics")
"""Asked every few seconds by other programs, so not logged."""
FACTS = "minillm.facts"
"""Key of a scope: what the log says of a request beside its path and status."""


async def send_json(send: Send, status: int, body: object, headers: MutableMapping[str, str] | None = None) -> None:
    """Answer with a JSON object."""
    raw = dump(body)
    fields = {"content-type": "application/json", "content-length": str(len(raw)), **(headers or {})}
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": raw})


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with an error in OpenAI's shape."""
    await send_json(send, error.status, error.body(), error.headers)


class HostGuard:
    """Lets pass only requests for a name of this machine.

    A web page of another site can make its own name point to 127.0.0.1 (DNS rebinding), and then
    the browser lets it read what it gets. The Host header still has that name.
    """

    def __init__(self, app: App, hosts: Sequence[str]) -> None:
        """Args: hosts: names that may be asked for, beside those of the loopback."""
        self.app, self.hosts = app, {name.lower() for name in (*LOOPBACK, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and host_name(header(scope, b"host")) not in self.hosts:
            error = ApiError(
                403,
                "host_not_allowed",
                "this name is not one of the server's. Start it with --allowed_hosts NAME to let it pass.",
                "请求的主机名不被允许：可用 --allowed_hosts 添加",
            )
            await send_error(send, error)
            return
        await self.app(scope, receive, send)


class KeyGuard:
    """Lets pass only requests with the key."""

    def __init__(self, app: App, api_key: str) -> None:
        self.app, self.api_key = app, api_key.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._has_key(scope):
            error = ApiError(
                401,
                "invalid_api_key",
                "the API key is missing or wrong. Send it as: Authorization: Bearer KEY.",
                "API 密钥缺失或错误",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await send_error(send, error)
            return
        await self.app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        kind, _, given = header(scope, b"authorization").partition(b" ")
        # The time of the comparison does not tell how much of the key is right.
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.api_key)


class RequestLog:
    """One JSON line for each request, when it ends. It counts them too."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note how it ends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # as nginx calls it: the client left before an answer
        facts: dict[str, Any] = {}
        scope[FACTS] = facts

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            status = 500  # uvicorn answers so, and its log has the traceback
            raise
        finally:
            self.metrics.requests[status] = self.metrics.requests.get(status, 0) + 1
            if scope["path"] not in QUIET_PATHS:
                line = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "client": (scope.get("client") or ["?"])[0],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.monotonic() - began, 4),
                    **facts,
                }
                print(json.dumps(line, ensure_ascii=True), file=sys.stdout, flush=True)


def header(scope: Scope, name: bytes) -> bytes:
    """A header of a request; empty if it has none. Args: name: in lower case."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def host_name(value: bytes) -> str:
    """`localhost:8000` -> `localhost`, `[::1]:8000` -> `[::1]`."""
    text = value.decode("latin-1").strip().lower()
    end = text.find("]") + 1 if text.startswith("[") else text.find(":")
    return text[:end] if end > 0 else text

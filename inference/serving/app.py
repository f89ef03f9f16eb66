"""The HTTP side of the API: its paths, its streams, and what becomes of a client that leaves.

It needs fastapi (group `serve` of pyproject.toml); inference/api.py checks that.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from inference.page import page_html
from inference.serving.answers import KEEP_ALIVE, Answering, dump, event, failure
from inference.serving.errors import ApiError, closing_error, engine_error
from inference.serving.fields import Body, parse, schema
from inference.serving.guard import FACTS, HostGuard, KeyGuard, Receive, RequestLog, Scope, Send
from inference.serving.metrics import CONTENT_TYPE, Metrics
from inference.serving.models import Models, Served
from inference.serving.protocol import Ask, Reader, read_chat, read_completion
from inference.serving.worker import Delta, Job

KEEP_ALIVE_SECONDS = 5.0
"""After so long a silence a stream gets a comment."""
BODY_SECONDS = 60.0
"""A body that takes longer is given up."""
SEND_SECONDS = 60.0
"""A client that takes nothing for so long has left."""
THROWN_AWAY_BYTES = 2**26
"""A body that is too large is read on and thrown away, up to so much. Most clients look at the
answer only when they have sent everything; if the connection closes before, they never see it."""
LARGE_BODY = 16_384
"""Bytes from which on a body is read in another thread, so that streams do not wait."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask, and how much."""

    api_key: str = ""
    checks_host: bool = True
    """Whether the Host header must name this machine."""
    allowed_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    max_body_bytes: int = 1_048_576
    log_text: bool = False
    """Whether the log has prompts and answers."""


class Api:
    """The state of the app."""

    def __init__(self, models: Models, access: Access) -> None:
        self.models, self.access = models, access
        self.metrics = Metrics()
        self.closing = False

    def begin_closing(self) -> None:
        """Take no further requests. What runs goes on."""
        self.closing = True

    def end_all(self) -> None:
        """End all answers that are being made."""
        for served in self.models.by_name.values():
            served.end_all()

    # --- paths ------------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        """The web page."""
        headers = {"x-frame-options": "DENY", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
        return Response(page_html(), media_type="text/html; charset=utf-8", headers=headers)

    async def health(self, request: Request) -> Response:
        """Whether the server takes requests."""
        return _json({"status": "closing"}, 503) if self.closing else _json({"status": "ok"})

    async def metrics_text(self, request: Request) -> Response:
        """Counters for Prometheus."""
        models = self.models
        text = self.metrics.text(running=models.num_running, waiting=models.num_waiting)
        return Response(text, media_type=CONTENT_TYPE)

    async def list_models(self, request: Request) -> Response:
        """The models that are served."""
        return _json({"object": "list", "data": self.models.listed()})

    async def one_model(self, request: Request) -> Response:
        """One of them."""
        name = self.models.find(request.path_params["name"]).name
        return _json(next(one for one in self.models.listed() if one["id"] == name))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._generate(request, read_chat)

    async def completion(self, request: Request) -> Response:
        """Continue a text."""
        return await self._generate(request, read_completion)

    # --- generation -------------------------------------------------------------------------------

    async def _generate(self, request: Request, read: Callable[[Body, Reader], Ask]) -> Response:
        """Raises: ApiError."""
        began, facts = time.monotonic(), request.scope[FACTS]
        raw = await read_body(request, self.access.max_body_bytes)
        if self.closing:
            raise closing_error()

        def understand() -> tuple[Served, Ask]:
            body = parse(raw)
            served = self.models.find(body.plain("model"))
            return served, read(body, served.reader)

        served, ask = await asyncio.to_thread(understand) if len(raw) > LARGE_BODY else understand()
        facts |= {"model": served.name, "stream": ask.stream}
        job = served.submit(ask)
        flow = _Flow(self, served, ask, job, facts, began)
        return flow if ask.stream else await flow.whole(request)


class _Flow(Response):
    """The answers to one request on their way to the client. As a response it is a stream."""

    def __init__(self, api: Api, served: Served, ask: Ask, job: Job, facts: dict[str, Any], began: float) -> None:
        super().__init__(media_type="text/event-stream; charset=utf-8")
        self.headers.update({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.api, self.served, self.ask, self.job = api, served, ask, job
        self.facts, self.began = facts, began
        self.answering = Answering(ask, served.name, served.reader.tokenizer)

    async def _deltas(self) -> AsyncIterator[Delta | None]:
        """What the answers gain; None after a long silence. Raises: ApiError if one fails."""
        unfinished, loop = self.ask.num_answers, asyncio.get_running_loop()
        while unfinished:
            # A timer is far cheaper than `wait_for`, which starts a task each time.
            timer = loop.call_later(KEEP_ALIVE_SECONDS, self.job.deltas.put_nowait, None)
            delta = await self.job.deltas.get()
            timer.cancel()
            if delta is None:
                yield None
                continue
            if error := failure(delta):
                raise error
            if delta.ids and "first_token_seconds" not in self.facts:
                self.facts["first_token_seconds"] = round(time.monotonic() - self.began, 4)
                self.api.metrics.first_token.observe(time.monotonic() - self.began)
            self.api.metrics.generated_tokens += len(delta.ids)
            unfinished -= delta.finish_reason is not None
            yield delta

    def _leave(self) -> None:
        """The end, however it came: free the slots, and note what the log says."""
        self.served.leave(self.job)
        usage, choices = self.answering.usage(), self.answering.choices
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.facts |= {
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": cached,
            "completion_tokens": usage["completion_tokens"],
            "finish_reason": [choice.finish_reason or "abort" for choice in choices],
        }
        if self.api.access.log_text:
            decode = self.served.reader.tokenizer.decode
            self.facts |= {
                "prompt": [decode(prompt) for prompt in self.ask.prompts],
                "text": [choice.text for choice in choices],
            }
        self.api.metrics.prompt_tokens += usage["prompt_tokens"]
        self.api.metrics.cached_tokens += cached

    # --- whole ------------------------------------------------------------------------------------

    async def whole(self, request: Request) -> Response:
        """All answers as one JSON object. Raises: ApiError if one fails."""

        async def collect() -> None:
            async for delta in self._deltas():
                if delta is not None:
                    self.answering.take(delta)

        try:
            if await until_left(collect(), request.receive):
                return _json(self.answering.whole())
            return Response(status_code=499)  # nobody reads it
        finally:
            self._leave()

    # --- stream -----------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, until it ends or the client leaves."""
        try:
            await until_left(self._stream(send), receive)
        finally:
            self._leave()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        loop, task, gave_up = asyncio.get_running_loop(), asyncio.current_task(), False
        assert task is not None

        def give_up() -> None:
            nonlocal gave_up
            gave_up = True
            task.cancel()

        try:
            async for chunk in self._chunks():
                timer = loop.call_later(SEND_SECONDS, give_up)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                timer.cancel()
        except ApiError as error:
            await send({"type": "http.response.body", "body": event(error.body()), "more_body": True})
        except asyncio.CancelledError:
            if gave_up:
                return  # the client takes nothing: uvicorn closes the connection, as the answer has no end
            raise
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self) -> AsyncIterator[bytes]:
        """Raises: ApiError if an answer fails."""
        answering = self.answering
        yield b"".join(answering.first_events())
        async for delta in self._deltas():
            chunk = KEEP_ALIVE if delta is None else b"".join(answering.events(delta))
            if chunk:
                yield chunk
        yield b"".join(answering.last_events())


async def until_left(work: Any, receive: Receive) -> bool:
    """Do the work, unless the client leaves before it is done. Returns: whether it was done.

    Raises: what the work raises.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _left(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises: ApiError: 413 if it is too large, 408 if it takes too long.
    """
    too_large = ApiError(
        413,
        "request_too_large",
        f"the body has more than {most} bytes (--max_body_bytes).",
        "请求体太大",
        headers={"Connection": "close"},
    )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most and "expect" in request.headers:
        raise too_large  # the client waits for a word before it sends the body

    async def read() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size <= most:
                parts.append(part)
            elif size > most + THROWN_AWAY_BYTES:
                raise too_large
        if size > most:
            raise too_large
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(
            408,
            "request_timeout",
            f"the body did not come within {BODY_SECONDS:g} seconds.",
            "请求体接收超时",
            headers={"Connection": "close"},
        ) from None


def _json(value: object, status: int = 200) -> Response:
    return Response(dump(value), status_code=status, media_type="application/json")


# --- the app --------------------------------------------------------------------------------------


def build_app(models: Models, access: Access) -> FastAPI:
    """The app, with its state in `app.state.api`."""
    api = Api(models, access)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for served in models.by_name.values():
            served.start(asyncio.get_running_loop())
        yield
        for served in models.by_name.values():
            served.close()

    # The pages of FastAPI for its schema load scripts from other hosts, so they are off.
    app = FastAPI(title="MiniLLM", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.api = api
    _add_paths(app, api)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _mistake)
    # The last one added is the first that a request meets.
    if access.api_key:
        app.add_middleware(KeyGuard, api_key=access.api_key)
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            max_age=600,
        )
    if access.checks_host:
        app.add_middleware(HostGuard, hosts=access.allowed_hosts)
    app.add_middleware(RequestLog, metrics=api.metrics)
    return app


def _add_paths(app: FastAPI, api: Api) -> None:
    def body(kind: Any) -> dict[str, Any]:
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema(kind)}}}}

    app.add_api_route("/", api.index, include_in_schema=False)
    app.add_api_route("/health", api.health)
    app.add_api_route("/metrics", api.metrics_text)
    for prefix in ("/v1", ""):
        shown = bool(prefix)
        app.add_api_route(f"{prefix}/models", api.list_models, include_in_schema=shown)
        app.add_api_route(f"{prefix}/models/{{name}}", api.one_model, include_in_schema=False)
        for path, answer, kind in (
            ("/chat/completions", api.chat, "chat"),
            ("/completions", api.completion, "text"),
        ):
            app.add_api_route(
                prefix + path, answer, methods=["POST"], include_in_schema=shown, openapi_extra=body(kind)
            )


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    response = _json(error.body(), error.status)
    response.headers.update(error.headers)
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    english = f"{request.method} {request.url.path}: {error.detail}."
    return await _api_error(request, ApiError(error.status_code, code, english, "路径或方法不存在"))


async def _mistake(request: Request, error: Exception) -> Response:
    return await _api_error(request, engine_error())

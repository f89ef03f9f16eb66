"""The API server: opens the weights, and serves them in OpenAI's protocol until it is stopped."""

import asyncio
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from types import FrameType
from typing import Any

from configs.messages import both, warn
from configs.schema import LARGEST_COUNT, UserError
from inference.engine import MAX_BATCH_SIZE
from inference.serving.guard import LOOPBACK
from inference.serving.models import Models

MOST_AT_ONCE = 1024
LONGEST_DRAIN = 86_400
IDLE_SECONDS = 75
"""An idle connection is closed after so long. Clients that use one again close theirs sooner, so
that hardly any sends a request into a connection that is being closed."""
LAST_WORDS_SECONDS = 5
"""How long the server waits for clients to take the end of their streams."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the server listens and whom it answers."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    api_key: str = ""
    """What clients must send; empty: nothing."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header beside those of the loopback."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may ask; `*`: all."""
    max_batch_size: int = MAX_BATCH_SIZE
    """Answers of a model at once."""
    max_queue: int = 64
    """Further answers of a model that may wait."""
    max_body_bytes: int = 1_048_576
    drain_seconds: float = 30.0
    log_text: bool = False
    """Whether the log has prompts and answers."""

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("port", 0, 65_535),
            ("max_batch_size", 1, MOST_AT_ONCE),
            ("max_queue", 0, LARGEST_COUNT),
            ("max_body_bytes", 1, LARGEST_COUNT),
            ("drain_seconds", 0, LONGEST_DRAIN),
        ):
            value = getattr(self, name)
            if not lowest <= value <= highest:  # NaN is in no range
                raise UserError(
                    f"--{name} {value}: must be from {lowest} to {highest}.", f"必须在 {lowest} 到 {highest} 之间"
                )
        if not self.api_key.isprintable() or self.api_key != self.api_key.strip() or not self.api_key.isascii():
            raise UserError(
                "--api_key: must be letters, digits and marks of ASCII, since it is sent in an HTTP header.",
                "密钥只能用 ASCII 字符",
            )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    if host in LOOPBACK:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def require_packages() -> None:
    """Raises: UserError if a package of the group `serve` is missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'the package {error.name} is missing. Run: pip install "fastapi>=0.115" "uvicorn>=0.30"',
            "缺少服务器所需的包：请运行所列命令安装",
        ) from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises: UserError if the address can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"{host}:{port}: can't listen there ({getattr(error, 'strerror', None) or error}). Choose another --port or "
            "--host.",
            "无法监听该地址：请换一个 --port 或 --host",
        ) from None
    listener.setblocking(False)
    return listener


def serve(models: Models, settings: ServerSettings, on_start: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM. Then no new request is taken; what runs has `drain_seconds` to
    end, and is told if it can't.

    Args: on_start: called with the address when the server listens.
    Raises: UserError if a package is missing, or the address can't be had.
    """
    require_packages()
    import uvicorn

    from inference.serving.app import Access, Api, build_app

    loopback = is_loopback(settings.host)
    if not loopback and not settings.api_key:
        warn(
            f"{settings.host}: other machines can use this server, and it asks for no key. Set MINILLM_API_KEY.",
            "其他机器也能访问且没有密钥：请设置 MINILLM_API_KEY",
        )
    listener = listen(settings.host, settings.port)
    app = build_app(
        models,
        Access(
            api_key=settings.api_key,
            checks_host=loopback or bool(settings.allowed_hosts),
            allowed_hosts=(settings.host, *settings.allowed_hosts),
            cors_origins=settings.cors_origins,
            max_body_bytes=settings.max_body_bytes,
            log_text=settings.log_text,
        ),
    )
    api: Api = app.state.api

    class Server(uvicorn.Server):
        """Lets answers that run come to their end before it closes."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """The first signal begins the end, the second one hurries it."""
            if not api.closing:
                api.begin_closing()
                if api.models.num_running + api.models.num_waiting:
                    _say(
                        f"closing: answers that run have {settings.drain_seconds:g} seconds",
                        f"正在关闭：进行中的回答还有 {settings.drain_seconds:g} 秒",
                    )
                loop.call_soon_threadsafe(loop.call_later, settings.drain_seconds, api.end_all)
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.drain_seconds) + LAST_WORDS_SECONDS,
    )
    server = Server(config)
    loop: Any = None

    async def main() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        on_start(address_of(listener))
        await server.serve(sockets=[listener])

    asyncio.run(main())


def address_of(listener: socket.socket) -> str:
    """The address to type into a browser."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _say(english: str, chinese: str) -> None:
    print(both(english, chinese), file=sys.stderr, flush=True)

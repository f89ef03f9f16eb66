"""Serve models in OpenAI's protocol, with a web page. 以 OpenAI 接口提供模型服务，附网页。

python scripts/serve_openai_api.py
python scripts/serve_openai_api.py --weight out/full_sft_192.pth --weight out/rlhf_192.pth
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: let Python find the other packages of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do if torch is missing

# isort: split

import torch

from configs.cli import Parser, add_switch, run
from configs.flags import add_shared
from inference.api import ServerSettings, require_packages, serve
from inference.engine import MAX_BATCH_SIZE
from inference.loading import OpenModel, open_model, weights_to_talk_to
from inference.serving.models import open_models
from model.device import choose_device, leave_a_core
from model.quantize import KINDS, NONE

SETTINGS = ("host", "port", "max_batch_size", "max_queue", "max_body_bytes", "drain_seconds", "log_text")
"""Flags that are settings of the server as they are."""


def build_parser(port: int = 8000) -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--weight", type=Path, action="append", metavar="PATH", help="weights; may be given again 权重，可多次给出"
    )
    parser.add_argument(
        "--lora_name",
        action="append",
        default=[],
        metavar="NAME_OR_PATH",
        help="adapter, served as WEIGHT+NAME; may be given again 适配器，以 权重+名称 提供",
    )
    add_shared(parser, "out_dir", "tokenizer_dir", "device")
    parser.add_argument(
        "--quantize",
        choices=(NONE, *KINDS),
        default=NONE,
        help="keep the weights in less memory, on a CPU 量化权重，只用于 CPU (%(default)s)",
    )
    parser.add_argument(
        "--rope_scaling_factor",
        type=float,
        default=1.0,
        metavar="F",
        help="YaRN: read F times as much text 上下文扩展倍数",
    )
    group = parser.add_argument_group("server 服务器")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen 监听地址 (%(default)s)")
    group.add_argument("--port", type=int, default=port, metavar="N", help="0: any that is free 端口 (%(default)s)")
    group.add_argument("--api_key", metavar="KEY", help="what clients must send 密钥 (MINILLM_API_KEY)")
    group.add_argument(
        "--max_batch_size",
        type=int,
        default=MAX_BATCH_SIZE,
        metavar="N",
        help="answers at once 同时生成数 (%(default)s)",
    )
    group.add_argument(
        "--max_queue", type=int, default=64, metavar="N", help="answers that may wait 排队上限 (%(default)s)"
    )
    group.add_argument(
        "--max_body_bytes", type=int, default=1_048_576, metavar="N", help="largest request 请求体上限 (%(default)s)"
    )
    group.add_argument(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME", help="names of a reverse proxy 反向代理的主机名"
    )
    group.add_argument(
        "--cors_origins",
        nargs="+",
        default=[],
        metavar="ORIGIN",
        help="web pages that may ask 允许跨域的网页来源 (none 无)",
    )
    group.add_argument(
        "--drain_seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="time to finish when stopped 关闭前等待 (%(default)s)",
    )
    add_switch(group, "--log_text", help="log prompts and answers too 日志含文本", default=False)
    return parser


def main(argv: Sequence[str] | None = None, port: int = 8000) -> int:
    """Serve until Ctrl-C."""
    arguments = build_parser(port).parse_args(argv)
    settings = ServerSettings(
        **{name: getattr(arguments, name) for name in SETTINGS},
        api_key=os.environ.get("MINILLM_API_KEY", "") if arguments.api_key is None else arguments.api_key,
        allowed_hosts=tuple(arguments.allowed_hosts),
        cors_origins=tuple(arguments.cors_origins),
    )
    require_packages()
    given = arguments.weight or [None]
    paths = [weights_to_talk_to(path, mode=None, out_dir=arguments.out_dir) for path in given]

    def open_one(path: Path, adapter: str | None) -> OpenModel:
        return open_model(
            path,
            device=choose_device(arguments.device),
            tokenizer_dir=arguments.tokenizer_dir,
            rope_scaling_factor=arguments.rope_scaling_factor,
            quantize=arguments.quantize,
            lora=adapter,
        )

    models = open_models(
        paths,
        arguments.lora_name,
        open_one,
        max_batch_size=settings.max_batch_size,
        max_queue=settings.max_queue,
    )

    def say(address: str) -> None:
        names = ", ".join(models.by_name)
        print(f"{address}  web page 网页\n{address}/v1  API: {names}", file=sys.stderr, flush=True)

    leave_a_core()  # for HTTP, in the same process
    serve(models, settings, on_start=say)
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)

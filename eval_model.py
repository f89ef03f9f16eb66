"""Talk to a model. 与模型对话。

python eval_model.py
python eval_model.py --model_mode 1 --prompt "你是谁？"
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import configs  # noqa: F401  # before torch: it says what to do if torch is missing

# isort: split

with contextlib.suppress(ImportError):  # Windows has none
    import readline  # noqa: F401  # gives `input` its line editing and the arrow keys

import torch

from configs.cli import Parser, run
from configs.flags import add_shared
from configs.paths import display, find_model_folder
from configs.stage_table import continues_text
from inference.conversation import Conversation, context_tokens, prompt_ids
from inference.engine import Engine
from inference.loading import WEIGHTS_OF_MODE, open_model, weights_to_talk_to
from inference.replies import Reply
from inference.sampling import Sampling
from model.device import choose_device
from model.quantize import KINDS, NONE

COMMANDS = """\
/new   start over 开始新对话
/help  this list 显示本帮助
/exit  leave (also exit, quit, Ctrl-D) 退出
Ctrl-C stops an answer 停止当前回答; arrow keys edit and bring back lines 方向键可编辑、翻看历史"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model_mode",
        type=int,
        choices=sorted(WEIGHTS_OF_MODE),
        help="0 pretrain 预训练, 1 SFT 微调, 2 DPO 偏好对齐, 3 reasoning 推理 (the last stage trained 默认用最后训练的阶段)",
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--weight", type=Path, metavar="PATH", help="weights to load instead 直接指定权重文件")
    add_shared(given, "load_from")
    add_shared(parser, "out_dir")
    parser.add_argument("--hidden_size", type=int, metavar="N", help="which size, if there are several 隐藏层宽度")
    add_shared(parser, "tokenizer_dir", "lora_name")
    parser.add_argument("--prompt", metavar="TEXT", help="ask once and print the answer 只问一次")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0: always the likeliest token 采样温度 (%(default)s)"
    )
    parser.add_argument(
        "--top_k",
        type=int,
        default=0,
        help="sample among the k likeliest; 0: all 只从最可能的 k 个里采样 (%(default)s)",
    )
    parser.add_argument(
        "--top_p", type=float, default=0.9, help="sample among the likeliest of mass p 核采样概率 (%(default)s)"
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=512, help="longest answer, in tokens 最长回答 (%(default)s)"
    )
    parser.add_argument(
        "--rope_scaling_factor",
        type=float,
        default=1.0,
        metavar="F",
        help="YaRN: read F times as much text as the rows of the training held 上下文扩展倍数 (%(default)s)",
    )
    parser.add_argument(
        "--quantize",
        choices=(NONE, *KINDS),
        default=NONE,
        help="keep the weights in less memory, on a CPU 量化权重，省内存，只用于 CPU (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the sampling 随机种子 (%(default)s)")
    add_shared(parser, "device")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print one answer with --prompt, else hold a conversation."""
    arguments = build_parser().parse_args(argv)
    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    path = weights_to_talk_to(
        find_model_folder(arguments.load_from) if arguments.load_from else arguments.weight,
        mode=arguments.model_mode,
        out_dir=arguments.out_dir,
        hidden_size=arguments.hidden_size,
    )
    opened = open_model(
        path,
        device=choose_device(arguments.device),
        tokenizer_dir=arguments.tokenizer_dir,
        rope_scaling_factor=arguments.rope_scaling_factor,
        quantize=arguments.quantize,
        lora=arguments.lora_name,
    )
    model, tokenizer = opened.model, opened.tokenizer
    kept = "" if arguments.quantize == NONE else f", {arguments.quantize}"
    print(f"{display(path)}: {opened.num_parameters:,} parameters, {model.device}{kept}", file=sys.stderr)
    engine = Engine(model, tokenizer)
    completes = continues_text(opened.manifest.stage)  # pretrained only: it knows no turns
    if arguments.prompt is not None:
        messages = [{"role": "user", "content": arguments.prompt}]
        print(engine.answers([prompt_ids(tokenizer, messages, completes)], sampling)[0].text)
    else:
        chat(engine, Conversation(tokenizer, context_tokens(model), completes), sampling)
    return 0


def chat(engine: Engine, talk: Conversation, sampling: Sampling) -> None:
    """A conversation in the terminal, each answer shown as it comes."""
    print("输入问题后回车，/help 查看命令。 Type and press Enter; /help lists the commands.", file=sys.stderr)
    while True:
        try:
            question = input("你: ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if question.lower() in {"/exit", "/quit", "exit", "quit"}:
            return
        if question in {"/help", "/new"}:
            if question == "/new":
                talk.messages.clear()
            print(COMMANDS if question == "/help" else "新对话。 A new conversation.", file=sys.stderr)
            continue
        if not question:
            continue
        prompt = talk.ask(question)
        if talk.dropped:
            print(
                f"（最早的 {talk.dropped} 轮已超出模型能读的长度 {talk.dropped} oldest turns no longer fit）",
                file=sys.stderr,
            )
        if len(prompt) >= talk.room:
            print(
                f"（这段话有 {len(prompt)} 个 token，模型训练时只读过 {talk.room} 个，回答可能不可靠 longer than the "
                "rows it was trained on）",
                file=sys.stderr,
            )
        talk.hear(stream(engine, prompt, sampling))


def stream(engine: Engine, prompt: list[int], sampling: Sampling) -> str:
    """Print an answer as it comes, and return it. Ctrl-C ends the answer, not the program."""
    reply, stopped = Reply(engine, prompt, sampling), False
    print("模型: ", end="", flush=True)
    try:
        for piece in reply:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        stopped = True
    print(flush=True)
    if reply.loops:
        print("（回答在重复，已停止 stopped: it goes in circles）", file=sys.stderr)
    if stopped:
        print("（已停止 stopped）", file=sys.stderr)
    return reply.text


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)

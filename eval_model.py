"""Talk to a model. 与模型对话。

python eval_model.py
python eval_model.py --model_mode 1 --prompt "你是谁？"
"""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

with contextlib.suppress(ImportError):  # Windows has none
    import readline  # noqa: F401  # gives `input` its line editing and the arrow keys

import torch

from configs.cli import Parser, run
from configs.flags import default_tokenizer_dir, env_path
from configs.paths import OUT_DIR, display, find_dataset, latest_weights
from configs.schema import UserError
from configs.stage_table import continues_text
from dataset.tokenizer import RustBPETokenizer
from model.device import choose_device
from model.generate import Sampling, answer, generate, stop_ids
from model.model_minillm import MiniLLM
from model.weights import check_tokenizer, load_model

WEIGHTS_OF_MODE = {0: "pretrain", 1: "full_sft", 2: "rlhf", 3: "reason"}
LAST_STAGE_FIRST = ("rlhf", "full_sft", "pretrain")
"""Which weights are talked to where nobody says it."""
READ_SHARE = 0.75
"""Of the tokens that a row of the training held, what a conversation may fill; the rest is room for the answer."""
LONGEST_LOOP, LOOP_TOKENS = 32, 24
"""An answer is stopped when its last tokens, so many and three rounds at least, repeat a piece of at most so many."""
COMMANDS = """\
/new   start over 开始新对话
/help  this list 显示本帮助
/exit  leave (also exit, quit, Ctrl-D) 退出
Ctrl-C stops an answer 停止当前回答; arrow keys edit and bring back lines 方向键可编辑、翻看历史"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model_mode", type=int, choices=sorted(WEIGHTS_OF_MODE),
        help="0 pretrain 预训练, 1 SFT 微调, 2 DPO 偏好对齐, 3 reasoning 推理 (the last stage trained 默认用最后训练的阶段)",
    )  # fmt: skip
    parser.add_argument("--weight", type=Path, metavar="PATH", help="weights to load instead 直接指定权重文件")
    parser.add_argument("--out_dir", type=Path, metavar="DIR", help="where the weights are 权重所在目录 (out)")
    parser.add_argument("--hidden_size", type=int, metavar="N", help="which size, if there are several 隐藏层宽度")
    parser.add_argument("--tokenizer_dir", type=Path, metavar="DIR", help="tokenizer folder 分词器目录")
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
        "--rope_scaling_factor", type=float, default=1.0, metavar="F",
        help="YaRN: read F times as much text as the rows of the training held 上下文扩展倍数 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="seed of the sampling 随机种子 (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps 设备 (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """One answer with --prompt, else a conversation."""
    arguments = build_parser().parse_args(argv)
    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, top_k=arguments.top_k,
        top_p=arguments.top_p, seed=arguments.seed,
    )  # fmt: skip
    path, model, tokenizer, manifest = open_model(arguments, arguments.rope_scaling_factor)
    print(f"{display(path)}: {model.num_parameters():,} parameters, {model.output_weight.device}", file=sys.stderr)
    completes = continues_text(str(manifest.get("stage")))  # it has only seen raw text, so it goes on with yours
    if arguments.prompt is not None:
        messages = [{"role": "user", "content": arguments.prompt}]
        print(answer(model, tokenizer, [prompt_ids(tokenizer, messages, completes)], sampling)[0].text)
    else:
        chat(model, tokenizer, sampling, completes)
    return 0


def open_model(
    arguments: Namespace, rope_scaling_factor: float = 1.0
) -> tuple[Path, MiniLLM, RustBPETokenizer, dict[str, Any]]:
    """The weights that the flags ask for, opened: path, model, its tokenizer and its manifest.

    Args: arguments: `weight`, `model_mode`, `hidden_size`, `out_dir`, `tokenizer_dir`, `device`. Raises: UserError.
    """
    out_dir = arguments.out_dir or env_path("OUT_DIR", OUT_DIR)
    path = (
        find_dataset(arguments.weight)
        if arguments.weight
        else weights_of(arguments.model_mode, out_dir, arguments.hidden_size)
    )
    tokenizer_dir = arguments.tokenizer_dir or default_tokenizer_dir(path.parent)
    tokenizer = RustBPETokenizer.from_directory(tokenizer_dir)
    model, manifest = load_model(path, device=choose_device(arguments.device), rope_scaling_factor=rope_scaling_factor)
    check_tokenizer(path, manifest, tokenizer.sha256, display(tokenizer_dir))
    return path, model.eval(), tokenizer, manifest


def prompt_ids(tokenizer: RustBPETokenizer, messages: list[dict[str, str]], completes: bool) -> list[int]:
    """A conversation up to the assistant's turn; for a pretrained model the last text alone."""
    if completes:
        return [tokenizer.get_bos_token_id(), *tokenizer.encode(messages[-1]["content"])]
    return tokenizer.render_for_completion(messages)


def weights_of(mode: int | None, out_dir: Path, hidden_size: int | None) -> Path:
    """The weights of a mode, or of the last stage that was trained. Raises: UserError when there are none."""
    if mode is not None:
        return latest_weights(WEIGHTS_OF_MODE[mode], out_dir, hidden_size=hidden_size)
    for name in LAST_STAGE_FIRST[:-1]:
        with contextlib.suppress(UserError):
            return latest_weights(name, out_dir, hidden_size=hidden_size)
    return latest_weights(LAST_STAGE_FIRST[-1], out_dir, hidden_size=hidden_size)


def chat(model: MiniLLM, tokenizer: RustBPETokenizer, sampling: Sampling, completes: bool) -> None:
    """A conversation in the terminal, each answer shown as it comes."""
    print("输入问题后回车，/help 查看命令。 Type and press Enter; /help lists the commands.", file=sys.stderr)
    talk = Conversation(tokenizer, context_tokens(model), completes)
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
        talk.hear(stream(model, tokenizer, prompt, sampling))


class Conversation:
    """What was said so far, as much of it as the model is shown."""

    def __init__(self, tokenizer: RustBPETokenizer, room: int, completes: bool = False) -> None:
        """`room`: tokens that the model can read. `completes`: it goes on with the last text alone."""
        self.tokenizer, self.room, self.completes = tokenizer, room, completes
        self.messages: list[dict[str, str]] = []
        self.dropped = 0
        """Turns that fell out before the last question."""

    def ask(self, question: str) -> list[int]:
        """The prompt for the next question; the oldest turns fall out where it would be too long."""
        self.messages.append({"role": "user", "content": question})
        self.dropped = 0 if self.completes else forget(self.tokenizer, self.messages, int(READ_SHARE * self.room))
        return prompt_ids(self.tokenizer, self.messages, self.completes)

    def hear(self, answer: str) -> None:
        """Remember what the model said."""
        self.messages.append({"role": "assistant", "content": answer})


def context_tokens(model: MiniLLM) -> int:
    """Tokens that the model can read: those of the longest row in training, times YaRN's factor."""
    return int(model.config.original_max_position_embeddings * model.config.rope_scaling_factor)


def forget(tokenizer: RustBPETokenizer, messages: list[dict[str, str]], room: int) -> int:
    """Drop the oldest turns, question and answer together, until the rest fits; the last question stays.

    Returns: how many turns were dropped.
    """
    dropped = 0
    while len(messages) > 2 and len(tokenizer.render_for_completion(messages)) > room:
        del messages[:2]
        dropped += 1
    return dropped


class Reply:
    """An answer token by token, until the model ends it, it goes in circles, or it is as long as it may be."""

    def __init__(self, model: MiniLLM, tokenizer: RustBPETokenizer, prompt: list[int], sampling: Sampling) -> None:
        self.model, self.tokenizer, self.prompt, self.sampling = model, tokenizer, prompt, sampling
        self.ids: list[int] = []
        self.ended = self.loops = False

    def __iter__(self) -> Iterator[int]:
        stops = stop_ids(self.tokenizer)
        for column in generate(self.model, [self.prompt], stops, self.sampling):
            token = int(column[0])
            if token in stops:
                self.ended = True
                return
            self.ids.append(token)
            yield token
            if is_looping(self.ids):
                self.loops = True
                return

    @property
    def text(self) -> str:
        """What has come of it."""
        return self.tokenizer.decode(self.ids)


def stream(model: MiniLLM, tokenizer: RustBPETokenizer, prompt: list[int], sampling: Sampling) -> str:
    """Print an answer as it comes; returns all of it. Ctrl-C ends the answer alone, and so does one that goes in circles."""
    reply, stopped = Reply(model, tokenizer, prompt, sampling), False
    print("模型: ", end="", flush=True)
    try:
        for piece in tokenizer.decode_stream(iter(reply)):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        stopped = True
    print(flush=True)
    if reply.loops:
        print("（回答在重复，已停止 stopped: it goes in circles）", file=sys.stderr)
    if stopped:
        print("（已停止 stopped）", file=sys.stderr)
    return reply.text


def is_looping(ids: Sequence[int]) -> bool:
    """Whether the end of an answer is one short piece again and again."""
    for period in range(1, LONGEST_LOOP + 1):
        length = max(LOOP_TOKENS, 3 * period)
        tail = ids[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)

"""Talk to a model. 与模型对话。

python eval_model.py --model_mode 2
python eval_model.py --model_mode 1 --prompt "你是谁？"
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from configs.cli import Parser, run
from configs.flags import default_tokenizer_dir, env_path, latest_weights
from configs.paths import OUT_DIR, display, find_dataset
from dataset.tokenizer import RustBPETokenizer
from model.generate import Sampling, answer, generate, stop_ids
from model.model_minillm import MiniLLM
from trainer.checkpoint import check_tokenizer, load_model
from trainer.runtime import choose_device

WEIGHTS_OF_MODE = {0: "pretrain", 1: "full_sft", 2: "rlhf", 3: "reason"}


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model_mode", type=int, choices=sorted(WEIGHTS_OF_MODE), default=1,
        help="0 pretrain 预训练, 1 SFT 微调, 2 DPO 偏好对齐, 3 reasoning 推理 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--weight", type=Path, metavar="PATH", help="weights to load instead 直接指定权重文件")
    parser.add_argument("--out_dir", type=Path, metavar="DIR", help="where the weights are 权重所在目录 (out)")
    parser.add_argument("--hidden_size", type=int, metavar="N", help="which size, if there are several 隐藏层宽度")
    parser.add_argument("--tokenizer_dir", type=Path, metavar="DIR", help="tokenizer folder 分词器目录")
    parser.add_argument("--prompt", metavar="TEXT", help="ask once and print the answer 只问一次")
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="0: always the likeliest token 采样温度 (%(default)s)"
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
    out_dir = arguments.out_dir or env_path("OUT_DIR", OUT_DIR)
    path = (
        find_dataset(arguments.weight)
        if arguments.weight
        else latest_weights(WEIGHTS_OF_MODE[arguments.model_mode], out_dir, hidden_size=arguments.hidden_size)
    )
    tokenizer_dir = arguments.tokenizer_dir or default_tokenizer_dir(path.parent)
    tokenizer = RustBPETokenizer.from_directory(tokenizer_dir)
    model, manifest = load_model(
        path, device=choose_device(arguments.device), rope_scaling_factor=arguments.rope_scaling_factor
    )
    check_tokenizer(path, manifest, tokenizer.sha256, display(tokenizer_dir))
    model.eval()
    print(f"{display(path)}: {model.num_parameters():,} parameters, {model.output_weight.device}", file=sys.stderr)
    completes = manifest["stage"] == "pretrain"  # it has only seen raw text, so it goes on with yours
    if arguments.prompt is not None:
        messages = [{"role": "user", "content": arguments.prompt}]
        print(answer(model, tokenizer, [prompt_ids(tokenizer, messages, completes)], sampling)[0].text)
    else:
        chat(model, tokenizer, sampling, completes)
    return 0


def prompt_ids(tokenizer: RustBPETokenizer, messages: list[dict[str, str]], completes: bool) -> list[int]:
    """A conversation up to the assistant's turn; for a pretrained model the last text alone."""
    if completes:
        return [tokenizer.get_bos_token_id(), *tokenizer.encode(messages[-1]["content"])]
    return tokenizer.render_for_completion(messages)


def chat(model: MiniLLM, tokenizer: RustBPETokenizer, sampling: Sampling, completes: bool) -> None:
    """A conversation in the terminal, each answer shown as it comes."""
    print(
        "输入问题后回车；/new 开始新对话，/exit 退出。 Type and press Enter; /new starts over, /exit ends.",
        file=sys.stderr,
    )
    messages: list[dict[str, str]] = []
    while True:
        try:
            question = input("你: ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if question == "/exit":
            return
        if question == "/new":
            messages = []
            continue
        if not question:
            continue
        messages.append({"role": "user", "content": question})
        text = stream(model, tokenizer, prompt_ids(tokenizer, messages, completes), sampling)
        messages.append({"role": "assistant", "content": text})


def stream(model: MiniLLM, tokenizer: RustBPETokenizer, prompt: list[int], sampling: Sampling) -> str:
    """Print an answer as it comes; returns all of it."""
    stops = stop_ids(tokenizer)
    ids = (int(token[0]) for token in generate(model, [prompt], stops, sampling))
    pieces = []
    print("模型: ", end="", flush=True)
    for piece in tokenizer.decode_stream(token for token in ids if token not in stops):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)

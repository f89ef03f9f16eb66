"""Talk to a model. 与模型对话。

python eval_model.py
python eval_model.py --model_mode 1 --prompt "你是谁？"
python eval_model.py --benchmark --batch_size 8 --quantize int8 --json tf_dir/speed.json
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import configs  # noqa: F401  # before torch: it says what to do if torch is missing

# isort: split

import torch

from configs.cli import Parser, add_switch, run
from configs.flags import add_shared
from configs.paths import display, find_model_folder
from configs.stage_table import continues_text
from inference.adapters import base_of
from inference.benchmark import EXPLANATION, add_benchmark_flags, load_of, measure, show
from inference.conversation import Conversation, context_tokens
from inference.engine import Engine
from inference.loading import WEIGHTS_OF_MODE, open_model, weights_to_talk_to
from inference.parts import opens_thought
from inference.sampling import check_ids
from inference.sampling_flags import add_sampling_flags, sampling_of
from inference.terminal import Chat
from model.device import choose_device
from model.quantize import KINDS, NONE


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, epilog=EXPLANATION)
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
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt 系统提示")
    add_switch(
        parser,
        "--enable_thinking",
        help="begin answers with a thought, 0: without (the model decides) 先思考再回答，0 为不思考，默认由模型决定",
    )
    add_sampling_flags(parser)
    add_switch(parser, "--speed", help="show tokens a second behind each answer 显示速度", default=False)
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
    add_shared(parser, "device")
    add_benchmark_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print one answer with --prompt, else hold a conversation."""
    arguments = build_parser().parse_args(argv)
    sampling, load = (
        sampling_of(arguments),
        load_of(arguments, not_with=("prompt", "system", "enable_thinking", "speed", "stop", "stop_token_ids")),
    )
    given = find_model_folder(arguments.load_from) if arguments.load_from else arguments.weight
    if arguments.lora_name and given is None and arguments.model_mode is None:
        given = base_of(arguments.lora_name, arguments.out_dir, arguments.hidden_size)
    path = weights_to_talk_to(
        given,
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
    kept = f", with {arguments.lora_name}" if arguments.lora_name else ""
    kept += "" if opened.quantize == NONE else f", {opened.quantize}"
    print(f"{display(path)}: {opened.num_parameters:,} parameters, {model.device}{kept}", file=sys.stderr)
    check_ids(sampling, tokenizer.get_vocab_size())  # now, and not at the first question
    completes = continues_text(opened.manifest.stage)  # pretrained only: it knows no turns
    if load:
        engine = Engine(model, tokenizer, max_batch_size=load.batch_size)
        show(measure(engine, load, sampling, quantize=opened.quantize), arguments.json)
        return 0
    engine = Engine(model, tokenizer)
    talk = Conversation(tokenizer, context_tokens(model), completes, enable_thinking=arguments.enable_thinking)
    if arguments.system:
        talk.system = arguments.system
    if arguments.prompt is not None:
        prompt = talk.ask(arguments.prompt)
        (said,) = engine.answers([prompt], sampling)
        print(tokenizer.chat_format.answer_of(said.text, begins_with_thought=opens_thought(prompt, tokenizer)))
    else:
        Chat(engine, talk, sampling, name=path.name, shows_speed=arguments.speed).run()
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)

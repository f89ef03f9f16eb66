"""What `on_gpu.py` measures from inside a process; each command prints a JSON object last.

    python benchmarks/gpu/probes.py machine
    python benchmarks/gpu/probes.py attention --head_dim 96
    python benchmarks/gpu/probes.py decode --model minillm-26m --batch_sizes 1 8 64
    python benchmarks/gpu/probes.py train sft --profile_steps 3 -- --data_path ROWS ...
    python benchmarks/gpu/probes.py resume pretrain -- --data_path ROWS --out_dir DIR ...

Flags behind `--` go to the trainer.

Shapes: B rows, H query heads, K key/value heads, T tokens, D head size.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    import configs  # noqa: F401  sets how OpenMP's threads wait, which torch reads when it is loaded

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.training_probes import GIGA, resume, train
from configs.cli import Parser, run
from configs.hardware import cpu_instructions, cpu_name, num_cores
from configs.schema import ModelConfig, preset
from configs.stage_table import STAGES
from model.attention import blocked_attention, document_attention, document_blocks, repeated_attention
from model.decoder import Decoder
from model.device import DTYPES, choose_device, dtype_name
from model.model_minillm import MiniLLM
from trainer.flops import listed_peak, timed

LARGEST_ERROR = {torch.float32: 5e-3, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""Most that attention and its gradients may differ from float64: norm of the difference over the
norm."""


# --- the machine ----------------------------------------------------------------------------------


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the report says of the machine."""
    found = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpu_flags": cpu_instructions(),
        "cores": num_cores(),
        "card": "",
        "driver": "",
        "memory_gb": 0.0,
    }
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        found |= {
            "card": facts.name,
            "memory_gb": round(facts.total_memory / GIGA, 1),
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "peak_tflops": (listed_peak(facts.name) or 0.0) / 1e12,
            "driver": driver_version(),
        }
    return found


def driver_version() -> str:
    """Version of NVIDIA's driver; empty where nothing says."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


# --- attention ------------------------------------------------------------------------------------


def attention(args: argparse.Namespace) -> dict[str, Any]:
    """Attention of packed rows: its errors against a dense mask in float64, and its time.

    On a GPU of FlexAttention and of the masked kernel; on a CPU of the blocked one, which it takes.
    """
    device = choose_device(args.device)
    B, H, K, T, D = args.rows, args.heads, 2, args.tokens, args.head_dim
    torch.manual_seed(0)
    documents = torch.randint(0, 8, (B, T)).sort(dim=1).values
    documents[0, T - T // 8 :] = -1  # padding
    documents = documents.to(device)
    shapes = [(B, H, T, D), (B, K, T, D), (B, K, T, D)]
    start = [torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes]
    found: dict[str, Any] = {"head_dim": D, "tokens": T}
    for name in ("float32",) if device.type == "cpu" else ("bfloat16", "float16", "float32"):
        found |= attention_in(name, start, documents)
    return found


def attention_in(name: str, start: Sequence[Tensor], documents: Tensor) -> dict[str, Any]:
    """The same in one dtype.

    Args: start: q (B, H, T, D), k and v (B, K, T, D) in float64. documents (B, T), -1 for padding.
    """
    dtype, device = DTYPES[name], documents.device
    # A token sees the tokens before it in its own document, and itself; the truth is a dense mask.
    allowed = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]  # (B, 1, T, T)
    bias = torch.zeros(allowed.shape, dtype=torch.float64, device=device).masked_fill_(~allowed, -torch.inf)
    inputs = [x.to(dtype).requires_grad_() for x in start]
    precise = [x.detach().double().requires_grad_() for x in inputs]
    dense = partial(F.scaled_dot_product_attention, attn_mask=bias, enable_gqa=True)
    wanted = values_and_gradients(dense, precise)
    ways: dict[str, Callable[..., Tensor]]
    if device.type == "cpu":
        ways = {"blocked": partial(blocked_attention, bias=bias.to(dtype))}
    else:
        squares = document_blocks(documents)
        ways = {
            "flex": partial(document_attention, documents=squares),
            "masked": partial(repeated_attention, bias=bias.to(dtype)),
        }
    found: dict[str, Any] = {}
    for way, attend in ways.items():
        errors = [
            ((ours.double() - theirs).norm() / theirs.norm()).item()
            for ours, theirs in zip(values_and_gradients(attend, inputs), wanted, strict=True)
        ]
        seconds = min(timed(partial(values_and_gradients, attend, inputs), device, 5))
        found[f"{way}_{name}_error"] = float(f"{max(errors):.2g}")
        found[f"{way}_{name}_ms"] = round(1000 * seconds, 3)
        if not all(error <= LARGEST_ERROR[dtype] for error in errors):  # NaN, too
            found["problem"] = f"{way} in {name}: values, dq, dk, dv are off by {errors}"
    return found


def values_and_gradients(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Values of attention, and gradients of the sum of their squares for q, k and v."""
    y = attend(*inputs)
    return [y, *torch.autograd.grad(y.double().square().sum(), inputs)]


# --- decoding -------------------------------------------------------------------------------------


def decode(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of `model/decoder.py` at each batch size, greedy.

    The precision is the one in which weights are loaded.
    """
    device = choose_device(args.device)
    model = MiniLLM(ModelConfig(**preset(args.model)).resolve()).to(device).eval()
    found: dict[str, Any] = {"model": args.model, "dtype": dtype_name(model.output_weight.dtype)}
    decoder = Decoder(model)
    for batch in args.batch_sizes:
        decoder.reserve(batch, args.prompt_tokens + args.tokens)

        def generate(batch: int = batch) -> None:
            tokens = [100] * batch
            for place in range(args.prompt_tokens, args.prompt_tokens + args.tokens):
                tokens = decoder.step(tokens, [place] * batch).argmax(dim=-1).tolist()

        seconds = min(timed(generate, device, 2))
        found[f"tokens_per_s_batch_{batch}"] = round(batch * args.tokens / seconds, 1)
        found[f"ms_per_step_batch_{batch}"] = round(1000 * seconds / args.tokens, 2)
    return found


# --- the command line -----------------------------------------------------------------------------


def build_parser() -> Parser:
    """One verb for each thing that is measured."""
    parser = Parser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("machine").set_defaults(probe=machine)
    heads = verbs.add_parser("attention")
    heads.set_defaults(probe=attention)
    for flag, value in (("--head_dim", 64), ("--rows", 2), ("--heads", 8), ("--tokens", 2048)):
        heads.add_argument(flag, type=int, default=value, metavar="N")
    generation = verbs.add_parser("decode")
    generation.set_defaults(probe=decode)
    generation.add_argument("--model", default="minillm-26m", metavar="NAME", help="preset, or width x depth")
    generation.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    generation.add_argument("--tokens", type=int, default=128, metavar="N", help="generated for each prompt")
    generation.add_argument("--prompt_tokens", type=int, default=32, metavar="N")
    for verb, probe in (("train", train), ("resume", resume)):
        steps = verbs.add_parser(verb)
        steps.set_defaults(probe=probe)
        steps.add_argument("stage", choices=STAGES)
        if verb == "train":
            steps.add_argument("--profile_steps", type=int, default=0, metavar="N", help="steps to profile")
            steps.add_argument(
                "--memory_gb",
                type=float,
                default=0.0,
                metavar="G",
                help="let PyTorch have no more of the card's memory",
            )
    for verb_parser in (heads, generation):
        verb_parser.add_argument("--device", default="auto", metavar="NAME")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one thing and print it. Exit code 1 where it found a problem."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, flags = (words[: (cut := words.index("--"))], words[cut + 1 :]) if "--" in words else (words, [])
    args = build_parser().parse_args(own)
    args.flags = flags
    found = args.probe(args)
    print(json.dumps(found, ensure_ascii=False), flush=True)
    return 1 if "problem" in found else 0


if __name__ == "__main__":
    run(main)

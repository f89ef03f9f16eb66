"""What `on_gpu.py` measures from inside a process: a verb's last line is a JSON object.

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
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    import configs  # noqa: F401  sets how OpenMP's threads wait, which torch reads when it is loaded

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.training.speed import read_lines
from configs.cli import Parser, run
from configs.flags import parse_run
from configs.hardware import cpu_instructions, cpu_name, num_cores
from configs.paths import ROOT, latest_weights
from configs.schema import ModelConfig, UserError, preset
from configs.stage_table import STAGE_TABLE, STAGES
from inference.generate import generate
from inference.sampling import Sampling
from model.attention import blocked_attention, document_attention, document_blocks, masked_attention
from model.device import DTYPES, choose_device, dtype_name
from model.model_minillm import MiniLLM
from model.weights import read_weights
from trainer import train_dpo, train_full_sft, train_pretrain
from trainer.flops import listed_peak, timed
from trainer.loop import Outcome, Run
from trainer.resume import saved_states

GIGA = 1e9
TRAINERS: dict[str, Callable[[Sequence[str]], int]] = {
    "pretrain": train_pretrain.main,
    "sft": train_full_sft.main,
    "dpo": train_dpo.main,
}
PROGRAMS = {"pretrain": "train_pretrain.py", "sft": "train_full_sft.py", "dpo": "train_dpo.py"}
LARGEST_ERROR = {torch.float32: 5e-3, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""Of attention and its gradients against float64: norm of the difference over the norm."""
FIRST_PROFILED = 4
"""Steps before the profiler starts: kernels are loaded and compiled in them."""
PROFILE_ROWS = 20
POLL_SECONDS = 0.005
RESUMED_STEPS, SAVED_EACH = 12, 2


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
    """NVIDIA's driver; empty where nobody says."""
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
    """The same in one dtype. Args: start: q (B, H, T, D), k and v (B, K, T, D) in float64.
    documents (B, T)."""
    dtype, device = DTYPES[name], documents.device
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
            "masked": partial(masked_attention, bias=bias.to(dtype)),
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
    """Of attention, and of the sum of its squares for q, k and v."""
    y = attend(*inputs)
    return [y, *torch.autograd.grad(y.double().square().sum(), inputs)]


# --- steps of a trainer ---------------------------------------------------------------------------


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Call a trainer in this process, and tell what only this process knows: memory, choices, where
    the time went."""
    on_gpu = torch.cuda.is_available()
    if args.memory_gb:
        if not on_gpu:
            raise UserError("--memory_gb: the memory of a CPU can't be limited so. Leave it out.")
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gb * GIGA / total))
    started = time.perf_counter()
    with watched(args.profile_steps) as seen:
        code = TRAINERS[args.stage](args.flags)
    if code:
        raise UserError(f"train {args.stage}: ended with {code}. See what it said.")
    settings = parse_run(args.stage, "", args.flags)
    manifest = read_weights(latest_weights(STAGE_TABLE[args.stage].weights, settings.out_dir))[2]
    chosen = manifest["choices"]
    found = {
        "dtype": chosen["dtype"],
        "micro_batch": chosen["batch_size"],
        "accumulation": chosen["accumulation_steps"],
        "compiled": bool(chosen["use_compile"]),
        "first_step_s": round(seen["first"] - started, 1),
        **progress(settings.tf_dir, args.stage),
    }
    if on_gpu:
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / GIGA, 2)
        found["reserved_memory_gb"] = round(torch.cuda.max_memory_reserved() / GIGA, 2)
    return found | seen.get("profile", {})


def progress(tf_dir: Path, stage: str) -> dict[str, Any]:
    """Losses of all steps, and the tokens a second of the later half. Raises: UserError where there
    are too few steps."""
    path = next(iter((tf_dir / "metrics").glob(f"{stage}_*.jsonl")), tf_dir / "none")
    lines = read_lines(path)
    if len(lines) < 4:
        raise UserError(f"{path}: {len(lines)} steps, too few to tell a speed. Pass --log_interval 1 and more steps.")
    losses = [line["loss"] for line in lines]
    tokens, seconds = (lines[-1][key] - lines[len(lines) // 2 - 1][key] for key in ("tokens", "seconds"))
    return {
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "losses": [round(loss, 5) for loss in losses],
        "tokens_per_s": round(tokens / max(seconds, 1e-9)),
    }


@contextmanager
def watched(profile_steps: int) -> Iterator[dict[str, Any]]:
    """Note when the first step has ended, and profile a few of the later ones; the trainer's own
    code stays as it is."""
    after_step, seen = Run.after_step, dict[str, Any]()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    profiler = profile(activities=activities)

    def watching(self: Run, outcome: Outcome, *rest: Any) -> None:
        after_step(self, outcome, *rest)
        step = outcome.step
        seen.setdefault("first", time.perf_counter())
        if profile_steps and step in (FIRST_PROFILED, FIRST_PROFILED + profile_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step == FIRST_PROFILED:
                profiler.start()
                seen["clock"] = time.perf_counter()
            else:
                seconds = time.perf_counter() - seen["clock"]
                profiler.stop()
                seen["profile"] = where_time_goes(profiler, seconds, profile_steps)

    with mock.patch.object(Run, "after_step", watching):
        yield seen


def where_time_goes(profiler: profile, seconds: float, steps: int) -> dict[str, Any]:
    """The kernels that take longest, and the share of the clock's time in which any of them ran."""
    on_gpu = torch.cuda.is_available()
    rows = []
    for event in profiler.key_averages():
        is_kernel = str(event.device_type) == "DeviceType.CUDA" and not event.is_user_annotation
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micros > 0 and (is_kernel or not on_gpu):
            rows.append({"name": event.key[:90], "calls": event.count // steps, "ms": micros / 1000 / steps})
    rows.sort(key=lambda row: -row["ms"])
    busy = sum(row["ms"] for row in rows)
    for row in rows:
        row["share"] = round(row["ms"] / busy, 4)
        row["ms"] = round(row["ms"], 3)
    return {
        "step_ms": round(1000 * seconds / steps, 2),
        "kernels_ms": round(busy, 2),
        "busy_share": round(busy * steps / 1000 / seconds, 3),
        "kernels": rows[:PROFILE_ROWS],
    }


# --- killed and resumed ---------------------------------------------------------------------------


def resume(args: argparse.Namespace) -> dict[str, Any]:
    """Whether a deterministic run that is killed after a save and resumed ends as one undisturbed.

    Each is a process of its own. Raises: UserError where one fails, or ends before it is killed.
    """
    base = parse_run(args.stage, "", args.flags).out_dir
    more = ["--deterministic", "--max_steps", str(RESUMED_STEPS), "--save_interval", str(SAVED_EACH)]

    def command(folder: Path) -> list[str]:
        where = ["--out_dir", str(folder), "--tf_dir", str(folder)]
        return [sys.executable, str(ROOT / "trainer" / PROGRAMS[args.stage]), *args.flags, *more, *where]

    unbroken, killed = base / "unbroken", base / "killed"
    said(command(unbroken))
    states = killed / "checkpoints" / args.stage
    with subprocess.Popen(command(killed), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not saved_states(states):
            time.sleep(POLL_SECONDS)
        if process.poll() is not None:
            raise UserError(f"the run that was to be killed ended before, with {process.returncode}. Take more steps.")
        process.send_signal(signal.SIGKILL)
    resumed = next((line for line in said(command(killed)).splitlines() if line.startswith("resuming after")), "")
    if not resumed:
        raise UserError("the second run did not go on from the saved state. See what it said.")
    ours, theirs = (
        read_weights(latest_weights(STAGE_TABLE[args.stage].weights, folder))[0] for folder in (killed, unbroken)
    )
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    found: dict[str, Any] = {
        "resumed": resumed.removeprefix("resuming "),
        "tensors": len(theirs),
        "different": len(different),
    }
    if different:
        largest = max((ours[name] - theirs[name]).abs().max().item() for name in different)
        found["problem"] = f"{len(different)} tensors differ, by {largest:.3g} at most: {', '.join(different[:3])}"
    return found


def said(command: Sequence[str]) -> str:
    """Run a command; what it said on stderr, which is passed on. Raises: UserError where it
    fails."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode:
        raise UserError(f"{Path(command[1]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stderr


# --- decoding -------------------------------------------------------------------------------------


def decode(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of `inference/generate.py`, in the precision in which weights are loaded, at each
    batch size."""
    device = choose_device(args.device)
    model = MiniLLM(ModelConfig(**preset(args.model)).resolve()).to(device).eval()
    found: dict[str, Any] = {"model": args.model, "dtype": dtype_name(model.output_weight.dtype)}
    sampling = Sampling(max_new_tokens=args.tokens)
    for batch in args.batch_sizes:
        prompts = [list(range(100, 100 + args.prompt_tokens))] * batch

        def answer(prompts: list[list[int]] = prompts) -> None:
            for _ in generate(model, prompts, set(), sampling):
                pass

        seconds = min(timed(answer, device, 2))
        found[f"tokens_per_s_batch_{batch}"] = round(batch * args.tokens / seconds, 1)
        found[f"ms_per_step_batch_{batch}"] = round(1000 * seconds / args.tokens, 2)
    return found


# --- the command line -----------------------------------------------------------------------------


def build_parser() -> Parser:
    """A verb each."""
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

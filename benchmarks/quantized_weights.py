"""What fewer bits a weight gain and cost: memory, speed, bits per byte, answers that stay the same.

    python benchmarks/quantized_weights.py                       # memory and speed, random weights
    python benchmarks/quantized_weights.py --shapes --weight out/rlhf_192.pth
    python benchmarks/quantized_weights.py --shapes --weight out/pretrain_192.pth \\
        --data_path data/processed/pretrain_chinese_heldout.jsonl \\
        --calibration data/processed/pretrain_chinese.jsonl

A shape is hidden size x layers, and x experts for a mixture. Memory is what the process holds more
than before the model was there. Times are CPU seconds of one thread; the floor is the model's
matrices alone, in float32.
"""

import ctypes
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

import torch

from benchmarks import proc
from configs.cli import Parser, run
from configs.paths import FIRST_MINUTES, display
from configs.schema import ModelConfig, UserError
from dataset.calibration import calibration_text
from dataset.records.files import read_records
from evaluation.likelihood import bits_metric, raw_text, score, token_bytes
from inference.benchmark import floor_of
from inference.conversation import context_tokens, prompt_ids
from inference.engine import Engine
from inference.loading import OpenModel, open_model
from inference.sampling import Sampling
from model.decoder import Decoder
from model.gguf import our_names, rounded
from model.gptq import gptq_rounding
from model.model_minillm import MiniLLM
from model.quantize import KINDS, NONE, load_quantized, packer, quantize, quantized_state

CPU = torch.device("cpu")
SHAPES = ("192x4", "512x8", "192x4x4")
BATCHES = (1, 8, 32)
CONTEXT = 256
"""Tokens in the cache when a step is timed."""
ROW_TOKENS = 256
"""Tokens of a row when text is scored."""
ANSWER_TOKENS = 48
WITH_GPTQ = "int4 with GPTQ"
GGUF_KINDS = ("q8_0", "q5_0", "q4_0")
REPEATS = 9
"""How often a step is timed; the fastest counts, as others may use the machine."""


def shape_of(text: str) -> ModelConfig:
    """`512x8` or `192x4x4`. Raises: UserError."""
    with suppress(ValueError):
        hidden, layers, *experts = map(int, text.split("x"))
        if experts:
            return ModelConfig(
                hidden_size=hidden,
                num_hidden_layers=layers,
                use_moe=True,
                num_experts=experts[0],
                num_experts_per_tok=2,
            )
        return ModelConfig(hidden_size=hidden, num_hidden_layers=layers)
    raise UserError(f"--shapes {text}: not hidden size x layers, as in 512x8, or x experts, as in 192x4x4.")


def resident_bytes() -> int:
    """Memory of this process that is no file."""
    gc.collect()
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return proc.memory("status", "RssAnon")


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU milliseconds of one call, the fastest of several."""
    work()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        for _ in range(5):
            work()
        best = min(best, (time.process_time() - start) / 5)
    return best * 1000


def step_of(model: MiniLLM, batch: int) -> Callable[[], object]:
    """One new token for each row, behind CONTEXT tokens."""
    decoder = Decoder(model)
    decoder.reserve(batch, CONTEXT + 1)
    return lambda: decoder.step([0] * batch, [CONTEXT] * batch)


def memory_and_speed(text: str, batches: Sequence[int]) -> Iterator[str]:
    """Rows of a table: a shape with random weights, a row for each kind."""
    config = shape_of(text)
    floors: list[float] = []
    in_float32 = 0
    for kind in (NONE, *KINDS):
        before = resident_bytes()
        model = quantize(MiniLLM(config).eval(), kind)
        model(torch.zeros(1, 2, dtype=torch.long))
        held = resident_bytes() - before
        if kind == NONE:
            in_float32 = 4 * model.num_parameters()
            floors = [cpu_ms(floor_of(model, batch)) for batch in batches]
        times = [cpu_ms(step_of(model, batch)) for batch in batches]
        steps = [f"{ms:.2f} ({ms / floor:.2f})" for ms, floor in zip(times, floors, strict=True)]
        name = "float32" if kind == NONE else kind
        del model  # before the next one is measured
        yield f"| {text} | {name} | {held / 1e6:.1f} MB ({held / in_float32:.2f}) | {' | '.join(steps)} |"


def opened(path: Path, kind: str, calibration: Path | None = None) -> OpenModel:
    """The weights on the CPU.

    Args: kind: one of model/quantize.py's, WITH_GPTQ, or one of GGUF_KINDS: those in float32 again,
    as our network does not multiply by them. calibration: training text for WITH_GPTQ.
    """
    if kind in (NONE, *KINDS):
        return open_model(path, device=CPU, quantize=kind)
    one = open_model(path, device=CPU)
    if kind in GGUF_KINDS:
        state = one.model.state_dict()
        one.model.load_state_dict(our_names(rounded(state, kind), state))
        return one
    assert kind == WITH_GPTQ and calibration is not None
    text = calibration_text(calibration, one.tokenizer, row_tokens=context_tokens(one.model))
    rounding = gptq_rounding(one.model, text.input_ids, text.document_ids)
    model, _ = load_quantized(*quantized_state(one.model, "int4", rounding=rounding), display(path))
    return replace(one, model=model)


def kinds_of(calibration: Path | None) -> tuple[str, ...]:
    """The kinds that are compared: float32 first."""
    return (NONE, *KINDS, *([WITH_GPTQ] if calibration else []), *GGUF_KINDS)


def bits(path: Path, data: Path, most: int, calibration: Path | None) -> Iterator[str]:
    """Rows of a table: bits per byte of held-out documents."""
    texts = [record["text"] for record in read_records(data) if isinstance(record.get("text"), str)]
    random.Random(0).shuffle(texts)
    in_float32 = float("nan")
    for kind in kinds_of(calibration):
        one = opened(path, kind, calibration)
        documents = [raw_text(one.tokenizer, text) for text in texts[:most]]
        scored = score(one.model, documents, token_bytes(one.tokenizer), length=ROW_TOKENS, label=kind)
        value = bits_metric(scored).value
        in_float32 = value if kind == NONE else in_float32
        yield f"| {kind} | {value:.5f} | {100 * (value / in_float32 - 1):+.3f}% |"


def parity(path: Path, most: int, calibration: Path | None) -> Iterator[str]:
    """Rows of a table: greedy answers to what people type first, that are the same to the last
    character."""
    lines = [json.loads(line) for line in FIRST_MINUTES.read_text(encoding="utf-8").splitlines()]
    prompts = [line["prompt"] for line in lines if "prompt" in line][:most]
    wanted: list[str] = []
    for kind in kinds_of(calibration):
        one = opened(path, kind, calibration)
        ids = [prompt_ids(one.tokenizer, [{"role": "user", "content": prompt}], False) for prompt in prompts]
        said = Engine(one.model, one.tokenizer).answers(ids, Sampling(max_new_tokens=ANSWER_TOKENS))
        texts = [one.text for one in said]
        wanted = texts if kind == NONE else wanted
        yield f"| {kind} | {sum(a == b for a, b in zip(texts, wanted, strict=True))} of {len(wanted)} |"


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print tables in Markdown."""
    parser = Parser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="NxN", help="with random weights 模型形状")
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES, metavar="N", help="rows of a step 批大小")
    parser.add_argument("--weight", type=Path, metavar="PATH", help="trained weights 训练好的权重")
    parser.add_argument("--data_path", type=Path, metavar="PATH", help="held-out documents: score them 留出文本")
    parser.add_argument("--calibration", type=Path, metavar="PATH", help="training text: int4 with GPTQ too 校准文本")
    parser.add_argument(
        "--most", type=int, default=3000, metavar="N", help="documents or prompts 最多条数 (%(default)s)"
    )
    args = parser.parse_args(argv)
    proc.require("/proc/self/status", "reads memory")
    torch.set_num_threads(1)
    for kind in KINDS:
        packer(kind)  # tried once, before anything is measured
    if args.shapes:
        heads = " | ".join(f"step, ms (of floor), batch {batch}" for batch in args.batches)
        print(f"| shape | weights | memory (of float32) | {heads} |\n|---|---|---|{'---|' * len(args.batches)}")
        for text in args.shapes:
            for row in memory_and_speed(text, args.batches):
                print(row, flush=True)
    if args.weight and args.data_path:
        print("| weights | bits per byte | change |\n|---|---|---|")
        for row in bits(args.weight, args.data_path, args.most, args.calibration):
            print(row, flush=True)
    elif args.weight:
        print("| weights | same greedy answer |\n|---|---|")
        for row in parity(args.weight, args.most, args.calibration):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    run(main)

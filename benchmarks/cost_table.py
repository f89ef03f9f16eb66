"""What training costs: operations, memory, time and price of each profile and preset, as a table.

    python benchmarks/cost_table.py                    # print the tables
    python benchmarks/cost_table.py --write docs/costs.md

What was measured stands in MEASURED with its source. All else is computed from the shapes
(trainer/flops.py), data sheets, and the assumptions below. Each row says which it is.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs.artifacts import atomic_write
from configs.cli import Parser, run
from configs.load import load_profile
from configs.paths import display
from configs.schema import ModelConfig, UserError
from model.model_minillm import MiniLLM
from trainer.flops import active_parameters, listed_peak, training_flops

UTILISATION = 0.35
"""Assumed share of a GPU's peak that training reaches. It was measured on no GPU: a small model may
reach less."""
GPUS = {"RTX 3090": ("NVIDIA GeForce RTX 3090", 1.5), "RTX 4090": ("NVIDIA GeForce RTX 4090", 2.5),
        "A100": ("NVIDIA A100-SXM4-80GB", 7.0), "H100": ("NVIDIA H100 80GB HBM3", 15.0)}  # fmt: skip
"""Name -> how the driver calls it, and an assumed rent in yuan an hour."""
BUDGET = 1_000_000_000
"""Tokens of the table's time and price."""
CPU_SPEEDS = {"cpu": 11_624, "default": 2_994}
"""Preset -> measured tokens a second on 2 cores (MEASURED; `default` with rows of 512 tokens)."""
LARGE = 512
"""Width from which on a GPU has enough to do for UTILISATION: smaller shapes have no GPU times."""
BEGIN, END = "<!-- computed: benchmarks/cost_table.py -->\n", "<!-- end of the computed tables -->"


@dataclass(frozen=True, slots=True)
class Preset:
    """A shape to train, and the tokens of its rows."""

    name: str
    shape: ModelConfig
    row_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A run that took place."""

    what: str
    tokens: int
    seconds: float
    memory: str
    source: str


MEASURED = (
    Measured("cpu, pretrain", 4_710_153, 405.2, "–", "run.sh of 2026-11-28, report.json"),
    Measured("cpu, sft", 8_582_192, 769.1, "–", "the same run"),
    Measured("cpu, dpo", 316_151, 38.8, "–", "the same run"),
    Measured("default 512 x 8, pretrain, rows of 512", 2_994, 1.0, "2.6 GB", "docs/results.md, 2026-11-22"),
)
"""On 2 cores of an AMD EPYC in bfloat16. Other programs ran beside the first three, so a quiet
machine is faster."""


def presets() -> list[Preset]:
    """The shapes of the profiles, and the two larger presets."""
    found = []
    for name in ("smoke", "cpu", "default"):
        profile = load_profile(name)
        found.append(Preset(name, profile.model.resolve(), profile.stages["pretrain"].max_seq_len))
    large = ModelConfig(hidden_size=768, num_hidden_layers=16)
    experts = ModelConfig(hidden_size=640, num_hidden_layers=8, use_moe=True)
    found += [Preset("768 x 16", large.resolve(), 2048), Preset("MoE 640 x 8", experts.resolve(), 2048)]
    return found


def parameters(shape: ModelConfig) -> int:
    """All parameters."""
    with torch.device("meta"):
        return MiniLLM(shape).num_parameters()


def state_bytes(shape: ModelConfig) -> int:
    """Bytes of weights, gradients and optimizer in float32, without activations. Muon has one
    number a weight; AdamW, which trains the embedding, has two."""
    embedding = shape.vocab_size * shape.hidden_size
    return 4 * (3 * parameters(shape) + embedding)


def hours(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} d"


def shape_table() -> list[str]:
    """Sizes of each preset."""
    lines = [
        "| preset 预设 | parameters 参数 | active 每词元激活 | row 行长 | FLOPs a token 每词元 "
        "| weights, gradients, optimizer 状态 | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for one in presets():
        shape = one.shape
        lines.append(
            f"| {one.name} | {parameters(shape) / 1e6:.1f} M | {active_parameters(shape) / 1e6:.1f} M | {one.row_tokens} "
            f"| {training_flops(shape, one.row_tokens) / 1e6:,.0f} M | {state_bytes(shape) / 2**20:,.0f} MB | computed 计算 |"
        )
    return lines


def measured_table() -> list[str]:
    """What took place."""
    lines = [
        "| run 运行 | tokens/s 词元每秒 | tokens 词元 | time 用时 | peak memory 内存峰值 | source 出处 | |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for one in MEASURED:
        is_rate = one.seconds == 1.0
        amounts = "– | –" if is_rate else f"{one.tokens:,} | {hours(one.seconds)}"
        lines.append(
            f"| {one.what} | {one.tokens / one.seconds:,.0f} | {amounts} | {one.memory} | {one.source} | measured 实测 |"
        )
    return lines


def cpu_seconds(one: Preset, base: Preset) -> float | None:
    """Time of BUDGET tokens on 2 cores: by the preset's own measured speed, or for shapes above
    `base` by the speed of that and their operations; None for smaller ones."""
    if one.name in CPU_SPEEDS:
        return BUDGET / CPU_SPEEDS[one.name]
    if one.shape.hidden_size < LARGE:
        return None
    ratio = training_flops(one.shape, one.row_tokens) / training_flops(base.shape, one.row_tokens)
    return BUDGET / CPU_SPEEDS[base.name] * ratio


def gpu_cell(one: Preset, driver_name: str, rent: float) -> str:
    """Time and price of BUDGET tokens on a GPU."""
    peak = listed_peak(driver_name)
    assert peak, f"{driver_name} is not listed"
    if one.shape.hidden_size < LARGE:
        return "–"
    seconds = BUDGET * training_flops(one.shape, one.row_tokens) / (peak * UTILISATION)
    return f"{hours(seconds)}, ¥{seconds / 3600 * rent:.2f}"


def time_table() -> list[str]:
    """Time and price of BUDGET tokens, by preset and machine."""
    found = {one.name: one for one in presets()}
    lines = [
        f"| {BUDGET:,} tokens 词元 | 2 cores 两核 CPU | {' | '.join(GPUS)} | |",
        f"|---|--:|{'--:|' * len(GPUS)}---|",
    ]
    for one in found.values():
        seconds = cpu_seconds(one, found["default"])
        if seconds is None:
            continue
        cells = [hours(seconds), *(gpu_cell(one, *gpu) for gpu in GPUS.values())]
        how = "CPU: from its measured speed 由实测速度" if one.name in CPU_SPEEDS else "computed 计算"
        lines.append(
            f"| {one.name} | {' | '.join(cells)} | {how}{'' if '–' in cells or 'comp' in how else '; GPUs: computed 计算'} |"
        )
    return lines


def tables() -> str:
    """All tables, as the document has them."""
    parts = [measured_table(), shape_table(), time_table()]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into the document."""
    parser = Parser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="the document to write them into 写入文档")
    path = parser.parse_args(argv).write
    if path is None:
        print(tables(), end="")
        return 0
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{display(path)}: has no place for the tables. Give docs/costs.md.", "没有放表格的位置")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    with atomic_write(path) as file:
        file.write(f"{before}{BEGIN}{tables()}{END}{after}")
    return 0


if __name__ == "__main__":
    run(main)

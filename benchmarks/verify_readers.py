"""Weights for `verify_readers.sh`, and its table: what each reader gave for each export.

    python benchmarks/verify_readers.py weights DIR
    python benchmarks/verify_readers.py table DIR

The weights are random, but every one of them matters: fresh output projections, for one, are zero,
and a reader that ignored them would not be noticed. Their logits are as large as those of a trained
model.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

import torch

from configs.artifacts import read_json
from configs.cli import Parser, run
from configs.paths import TOKENIZER_DIR, display
from configs.schema import ModelConfig, UserError
from dataset.tokenizer import RustBPETokenizer
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import save_weights

SMALL: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"hidden_size": 512, "num_hidden_layers": 8},
    "moe": SMALL | {"use_moe": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
    "cpu": SMALL,
    "yarn": SMALL,
    "vocab6400": SMALL,
    "vocab32000": SMALL,
}
"""Name -> shape. `yarn` is exported with a longer context."""
OWN_TOKENIZERS = ("vocab6400", "vocab32000")
"""Models with a tokenizer made for this, DIR/tokenizers/NAME. The others have the shipped one."""
EMBEDDING_STD = 0.15
"""Makes the logits of hidden states of size 1 about 3.4 wide at 512."""
SEED = 0
RESULT = re.compile(r"(?P<environment>[^.]+)\.(?P<model>.+)\.(?P<kind>[a-z0-9_]+)\.json")
"""Name of a file in DIR/results: what `convert_model.py --verify` wrote; empty where it failed."""


def lively(config: ModelConfig) -> MiniLLM:
    """Random weights, each of which changes the logits."""
    torch.manual_seed(SEED)
    model = MiniLLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # norms
                weight.mul_(1 + 0.2 * torch.randn_like(weight))
            else:
                weight.normal_(std=EMBEDDING_STD if "embed" in name else weight.shape[-1] ** -0.5)
    return model


def write_weights(folder: Path) -> None:
    """`folder/weights/NAME.pth` for each of SHAPES. Raises: UserError without their tokenizers."""
    for name, shape in SHAPES.items():
        own = folder / "tokenizers" / name
        tokenizer = RustBPETokenizer.from_directory(own if name in OWN_TOKENIZERS else TOKENIZER_DIR)
        config = ModelConfig(**shape, vocab_size=tokenizer.get_vocab_size()).resolve()
        manifest = WeightsManifest(stage="sft", tokenizer_sha256=tokenizer.sha256)
        save_weights(folder / "weights" / f"{name}.pth", lively(config), manifest)


def rows_of(folder: Path) -> Iterator[tuple[bool, str]]:
    """Whether a reader is satisfied with an export, and its row of the table.

    Raises: UserError where nothing was verified.
    """
    files = sorted((folder / "results").glob("*.json"))
    if not files:
        raise UserError(
            f"{display(folder)}: no results. Run: bash benchmarks/verify_readers.sh {folder}.",
            "没有结果：请先运行该命令",
        )
    for file in files:
        parts = RESULT.fullmatch(file.name)
        if parts is None:
            continue
        readers = read_json(file, "Verify it again.") if file.stat().st_size else {}
        for reader, told in readers.items():
            greedy = f"{told['greedy_equal']} + {told['near_ties']} of {told['answers']}"
            ids, template = ("yes" if told[name] else "NO" for name in ("ids_equal", "template_equal"))
            figures = f"{told['max_logit_diff']:.1e} | {greedy} | {ids} | {template} | {told['more_bits']:+.3%}"
            ok = "yes" if told["ok"] else "NO"
            yield told["ok"], f"| {reader} {told['version']} | {parts['model']} | {parts['kind']} | {figures} | {ok} |"
        if not readers:
            where = parts["environment"]
            yield False, f"| ({where}) | {parts['model']} | {parts['kind']} | | | | | | NO: did not run |"


def table(folder: Path) -> int:
    """Print all results as Markdown. Returns: 1 where a reader gave something else, else 0."""
    rows = list(rows_of(folder))
    print("| reader | model | kind | logits differ by | greedy equal + near ties | ids | template | bits | ok |")
    print("|---|---|---|---|---|---|---|---|---|")
    for text in dict.fromkeys(text for _, text in rows):
        print(text)
    return 0 if all(ok for ok, _ in rows) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """One of the two steps."""
    parser = Parser(description=__doc__)
    parser.add_argument("step", choices=["weights", "table"], help="what to do 步骤")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of verify_readers.sh 工作目录")
    arguments = parser.parse_args(argv)
    if arguments.step == "table":
        return table(arguments.folder)
    write_weights(arguments.folder)
    return 0


if __name__ == "__main__":
    run(main)

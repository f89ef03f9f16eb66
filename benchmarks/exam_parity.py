"""Does lm-evaluation-harness decide each item of the public benchmarks as we do? Offline.

    pip install ".[export]" transformers "lm-eval[hf]==0.4.*"
    python scripts/convert_model.py --input out/pretrain_512.pth --to hf --output out/minillm_hf
    python benchmarks/exam_parity.py out/minillm_hf

It runs the tasks of benchmarks/lm_eval_tasks on an exported folder, and compares prompt, likelihood
and decision of each item with ours. An item whose two best options are nearer than 1e-4 nats is a
tie, and may be decided either way.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

from benchmarks.lm_eval_folder import evaluated
from configs.cli import Parser, run
from configs.paths import ROOT
from dataset.tokenizer import RustBPETokenizer
from evaluation.benchmarks.decisions import normalised
from evaluation.benchmarks.prompts import MARK, prompts_of
from evaluation.benchmarks.scorers import ModelScorer
from evaluation.benchmarks.tasks import TASKS
from inference.conversation import context_tokens
from model.export import read_hugging_face
from model.model_minillm import MiniLLM

YAML_DIR = Path(__file__).parent / "lm_eval_tasks"
LARGEST_DIFFERENCE = 1e-4
"""Nats between options up to which an item is a tie, for each token of float32 rounding."""
NUM_ITEMS = 500


@dataclass(frozen=True)
class Pairing:
    """A task of ours with its YAML file."""

    task: str
    form: str
    metrics: tuple[str, ...]

    @property
    def yaml(self) -> str:
        """Name of the file."""
        return f"{self.task}_{self.form}" if self.form else self.task


PAIRINGS = (
    Pairing("cmmlu", "letter", ("acc_letter",)),
    Pairing("cmmlu", "cloze", ("acc_cloze_sum", "acc_cloze_char")),
    Pairing("ceval", "letter", ("acc_letter",)),
    Pairing("ceval", "cloze", ("acc_cloze_sum", "acc_cloze_char")),
    Pairing("xcopa_zh", "", ("acc_pair_sum", "acc_pair_char")),
    Pairing("zhoblimp", "", ("acc_pair_sum", "acc_pair_char")),
)
Key = tuple[str, tuple[str, ...]]
"""Context and continuations."""


def ours(scorer: ModelScorer, pairing: Pairing, data_dir: Path, keys: Sequence[Key]) -> dict[Key, list[float]]:
    """Log-probabilities of these prompts; those that we would not ask are missing."""
    task = TASKS[pairing.task]
    items = task.items(data_dir, next(iter(task.splits))).items
    prompts = {(prompt.context, prompt.continuations): prompt for prompt in prompts_of(task, items, pairing.form, {})}
    known = [key for key in dict.fromkeys(keys) if key in prompts]
    nats = scorer([prompts[key] for key in known], [""] * len(known))
    return dict(zip(known, nats, strict=True))


def theirs(model: Path, length: int, tasks: Path, name: str, numbers: Sequence[int]) -> list[tuple[Key, list[float]]]:
    """Prompt and log-probabilities of some items. Args: length: longest text in tokens. Raises:
    UserError without the package."""
    reads = {"add_bos_token": True, "max_length": length}
    told = evaluated(model, tasks, name, reads, samples={name: list(numbers)}, log_samples=True)
    return [sample_of(sample) for sample in told["samples"][name]]


def sample_of(sample: Mapping[str, Any]) -> tuple[Key, list[float]]:
    """Prompt and log-probabilities of an item as lm-evaluation-harness logs it."""
    asked = sample["arguments"]
    asked = asked.values() if isinstance(asked, Mapping) else asked
    pairs = [tuple(one.values()) if isinstance(one, Mapping) else tuple(one) for one in asked]
    nats = [float(answer[0][0] if isinstance(answer[0], list | tuple) else answer[0]) for answer in sample["resps"]]
    return (pairs[0][0], tuple(pair[1] for pair in pairs)), nats


def compare(
    pairing: Pairing, told: Sequence[tuple[Key, list[float]]], own: Mapping[Key, list[float]]
) -> dict[str, Any]:
    """How many items have the same prompt and the same decision, and the largest difference."""
    result: dict[str, Any] = {"task": pairing.yaml, "n": len(told), "other_prompts": 0, "largest_difference": 0.0}
    result |= {metric: {"same": 0, "ties": 0, "different": 0} for metric in pairing.metrics}
    for key, nats in told:
        if key not in own:
            result["other_prompts"] += 1
            continue
        difference = max(abs(a - b) for a, b in zip(nats, own[key], strict=True))
        result["largest_difference"] = max(result["largest_difference"], difference)
        texts = [text.removeprefix(MARK) for text in key[1]]
        for metric in pairing.metrics:
            scores, other = (normalised(metric, texts, values, []) for values in (own[key], nats))
            first, second = sorted(scores, reverse=True)[:2]
            if scores.index(max(scores)) == other.index(max(other)):
                result[metric]["same"] += 1
            else:
                result[metric]["ties" if first - second < LARGEST_DIFFERENCE else "different"] += 1
    result["ok"] = not result["other_prompts"] and not any(result[metric]["different"] for metric in pairing.metrics)
    return result


def write_tasks(folder: Path, data_dir: Path) -> None:
    """The YAML files, with the data where it really is."""
    for path in YAML_DIR.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("data/benchmarks/", f"{data_dir.resolve()}/")
        (folder / path.name).write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Score a folder twice. Returns: 1 where a decision differs, else 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="made by convert_model.py --to hf 导出的目录")
    parser.add_argument(
        "--data_dir", type=Path, default=ROOT / "data" / "benchmarks", metavar="DIR", help="original files"
    )
    parser.add_argument("--items", type=int, default=NUM_ITEMS, metavar="N", help="items of each task (%(default)s)")
    parser.add_argument("--tasks", default="", metavar="NAMES", help="names of YAML files, comma between them (all)")
    arguments = parser.parse_args(argv)
    wanted = set(filter(None, arguments.tasks.split(",")))
    state, config, _ = read_hugging_face(arguments.folder)
    model = MiniLLM(config).eval()
    model.load_state_dict(state)
    scorer = ModelScorer(model, RustBPETokenizer.from_directory(arguments.folder))
    ok = True
    with tempfile.TemporaryDirectory() as path:
        tasks = Path(path)
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")}
        write_tasks(tasks, arguments.data_dir)
        for pairing in PAIRINGS:
            task = TASKS[pairing.task]
            if (wanted and pairing.yaml not in wanted) or not (arguments.data_dir / task.folder).is_dir():
                continue
            total = len(task.items(arguments.data_dir, next(iter(task.splits))).items)
            numbers = range(0, total, max(1, total // arguments.items))[: arguments.items]
            told = theirs(arguments.folder, context_tokens(model), tasks, f"minillm_{pairing.yaml}", numbers)
            result = compare(pairing, told, ours(scorer, pairing, arguments.data_dir, [key for key, _ in told]))
            print(json.dumps(result, ensure_ascii=False), flush=True)
            ok = ok and result["ok"]
    return 0 if ok else 1


if __name__ == "__main__":
    run(main)

"""Does lm-evaluation-harness give an exported folder the same bits per byte as we do? Offline.

    pip install ".[export]" transformers "lm-eval[hf]==0.4.*"
    python scripts/convert_model.py --input out/rlhf_512.pth --to hf --output out/minillm_hf
    python benchmarks/lm_eval_folder.py out/minillm_hf

Two small tasks are written on the spot: texts, whose bits per byte are compared with our own
(`rolling`), and sums with four answers each, asked through the chat template (`sums`). Nothing is
fetched. The share of right sums is reported: it says what the model knows, not how it was exported.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

from configs.cli import Parser, run
from configs.paths import IDENTITY_SAMPLE
from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer
from evaluation.likelihood import bits_metric, raw_text, score, token_bytes
from model.export import read_hugging_face
from model.model_minillm import MiniLLM

LARGEST_DIFFERENCE = 1e-4
"""Share by which bits per byte may differ: both compute in float32."""
NUM_TEXTS, NUM_SUMS = 100, 100
ROW_TOKENS = 2048
"""Longer than every text."""
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
SUMS = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def texts() -> list[str]:
    """What the bundled identity records answer."""
    records = [json.loads(line) for line in IDENTITY_SAMPLE.read_text(encoding="utf-8").splitlines()]
    answers = sorted({turn["content"] for record in records for turn in record["conversations"][1::2]})
    return random.Random(0).sample(answers, min(NUM_TEXTS, len(answers)))


def sums() -> list[dict[str, Any]]:
    """Sums below 100, each with the right answer among three near ones."""
    rng, records = random.Random(0), []
    for _ in range(NUM_SUMS):
        a, b = rng.randrange(1, 50), rng.randrange(1, 50)
        numbers = rng.sample([a + b, *rng.sample([n for n in range(1, 100) if n != a + b], 3)], 4)
        choices = [f"{a}+{b}={number}。" for number in numbers]
        records.append({"question": f"{a}+{b}等于多少？", "choices": choices, "label": numbers.index(a + b)})
    return records


def write_task(folder: Path, name: str, task: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """A task of lm-evaluation-harness and its data. JSON is YAML too."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **where, **task}), encoding="utf-8")


def theirs(model: Path, tasks: Path, name: str, **options: Any) -> dict[str, Any]:
    """The scores of one task. Raises: UserError without lm-evaluation-harness."""
    scores: dict[str, Any] = evaluated(model, tasks, name, {}, **options)["results"][name]
    return scores


def evaluated(model: Path, tasks: Path, name: str, model_args: dict[str, Any], **options: Any) -> dict[str, Any]:
    """All that lm-evaluation-harness says of one task in a folder of tasks, offline.

    Raises: UserError without it.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(
            'the package lm-eval is missing. Run: pip install "lm-eval[hf]==0.4.*"', "缺少 lm-eval：请运行所列命令安装"
        ) from None
    told: dict[str, Any] = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32", **model_args},
        tasks=[name],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        **options,
    )
    return told


def ours(folder: Path, given: Sequence[str]) -> float:
    """Bits per byte of texts, by our network with the weights of the folder."""
    state, config, _ = read_hugging_face(folder)
    model = MiniLLM(config).eval()
    model.load_state_dict(state)
    tokenizer = RustBPETokenizer.from_directory(folder)
    documents = [raw_text(tokenizer, text) for text in given]
    return bits_metric(score(model, documents, token_bytes(tokenizer), length=ROW_TOKENS, label="ours")).value


def main(argv: Sequence[str] | None = None) -> int:
    """Score a folder twice. Returns: 1 where both do not agree, else 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="made by convert_model.py --to hf 导出的目录")
    folder = parser.parse_args(argv).folder
    given = texts()
    with tempfile.TemporaryDirectory() as path:
        tasks = Path(path)
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")}
        write_task(tasks, "rolling", ROLLING, [{"text": text} for text in given])
        write_task(tasks, "sums", SUMS, sums())
        bits = theirs(folder, tasks, "rolling")["bits_per_byte,none"]
        right = theirs(folder, tasks, "sums", apply_chat_template=True)["acc,none"]
    wanted = ours(folder, given)
    ok = abs(bits / wanted - 1) <= LARGEST_DIFFERENCE
    print(json.dumps({"bits_per_byte": bits, "ours": wanted, "ok": ok, "sums": right}))
    return 0 if ok else 1


if __name__ == "__main__":
    run(main)

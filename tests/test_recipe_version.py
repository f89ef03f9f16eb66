"""A recipe whose results change has a raised version.

Small inputs go through each stage, and the results are compared with what came out before. Where a
change is meant, raise the stage's version in configs/stage_table.py and record the new results:

    python -m tests.test_recipe_version
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from configs.artifacts import fingerprint, sha256_file, write_json
from configs.schema import ModelConfig, TrainConfig, preset
from configs.stage_table import OPTIONAL_STAGES, PROMPTS, RECIPE_VERSION, STAGE_TABLE, STAGES
from dataset.mix import sources as mix_sources
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.tokens.build import TensorJob, build_tensors
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import save_weights
from scripts import build_chinese_mix
from scripts.pipeline.plan import PIPELINE
from tests.tiny_run import TinyRun, chat, kept_signal_handlers, lively, write_jsonl, write_records
from tests.trainer.tiny_policy import TRAINERS as POLICY_TRAINERS
from trainer import autoconfig
from trainer.autoconfig import DataFacts, fill_in, resolved_values
from trainer.runtime import Runtime

KEPT = Path(__file__).with_name("recipe_results.json")
"""Stage -> `version` of its recipe and the `results` that came out of it."""
TOLERANCE = 1e-4
"""Largest relative difference of a loss. In three steps of float32, the same arithmetic on other
CPUs differs by less than a tenth of it."""

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip
LOOP = [
    "--max_steps=3", "--epochs=9", "--batch_size=2", "--accumulation_steps=2", "--max_seq_len=64", "--learning_rate=0.02",
    "--embedding_lr_ratio=2", "--schedule=trapezoid", "--warmup_ratio=0.03", "--warmdown_ratio=0.5", "--min_lr_ratio=0.05",
    "--weight_decay=0.1", "--grad_clip=1", "--seed=42", "--device=cpu", "--dtype=float32", "--use_compile=0",
    "--log_interval=1", "--optimizer=muon",
]  # fmt: skip
MOE = ["--use_moe", "--num_experts=4", "--num_experts_per_tok=2", "--moe_intermediate_size=32"]


def bytes_tokenizer(folder: Path) -> RustBPETokenizer:
    """A tokenizer with a token for each byte, so that no change of the shipped one matters here."""
    tokenizer = RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)})
    tokenizer.save(folder)
    return tokenizer


def first_losses(stage: str, folder: Path) -> dict[str, Any]:
    """The losses of three steps.

    Pretraining starts from random weights: dense, MoE, and dense with AdamW. Other stages start
    from weights that are made here, so that pretraining does not matter to them.
    """
    write_records(folder / "data")
    tokenizer = bytes_tokenizer(folder / "tokenizer")
    run = TinyRun(folder / "data", folder / "out")
    words = [*LOOP, "--tokenizer_dir", str(folder / "tokenizer")]
    found = {}
    if stage == "pretrain":
        shape = [f"--{name}={value}" for name, value in SHAPE.items()]
        for kind, more in (("dense", []), ("moe", MOE), ("adamw", ["--optimizer=adamw"])):
            assert run.train(stage, *words, *shape, *more) == 0
            found[f"losses, {kind}"] = list(run.metric(stage).values())
        return found
    torch.manual_seed(1)
    model = lively(MiniLLM(ModelConfig(vocab_size=tokenizer.get_vocab_size(), **SHAPE).resolve()))
    start = folder / "out" / "start_64.pth"
    save_weights(start, model, WeightsManifest(tokenizer_sha256=tokenizer.sha256))
    if STAGE_TABLE[stage].data == PROMPTS:
        return {"losses, as the gradients of rewards": gradients_of_rewards(stage, run, start, folder)}
    own = {
        "dpo": ["--beta=0.1", "--sft_loss_weight=0.1"],
        "lora": ["--optimizer=adamw", "--lora_dropout=0.1", "--replay_share=0"],
        "reason": ["--tag_weight=2", "--replay_share=0"],
        "distill": ["--teacher", str(start), "--beta=0.3", "--alpha=0.4", "--temperature=2"],
        "reward": ["--centering=0.1"],
    }
    records = "dpo" if STAGE_TABLE[stage].data == "pairs" else "sft"
    words += ["--data_path", str(folder / "data" / f"{records}.jsonl"), *own.get(stage, ())]
    assert run.train(stage, *words, "--from_weight", str(start)) == 0
    return {"losses": list(run.metric(stage).values())}


def gradients_of_rewards(stage: str, run: TinyRun, start: Path, folder: Path) -> list[float]:
    """The norms of the policy's gradient in three steps. Rewarded is an odd sum of ids."""
    reward = folder / "reward.py"
    reward.write_text("def score(sample):\n    return sum(sample.ids) % 2\n", encoding="utf-8")
    prompts = [{"conversations": chat(f"{n}+1=？", f"{n}+1={n + 1}。")} for n in range(12)]
    words = [
        *("--data_path", str(write_jsonl(folder / "prompts.jsonl", prompts)), "--reward", f"{reward}:score"),
        *("--tokenizer_dir", str(folder / "tokenizer"), "--from_weight", str(start), "--max_gen_len=6"),
        *("--max_steps=3", "--learning_rate=0.01", "--dtype=float32", "--device=cpu", "--seed=42", "--log_interval=1"),
        *("--no-rollback", "--beta=0.1", "--batch_size=2", "--accumulation_steps=2", "--max_seq_len=64"),
    ]
    words += ["--profile=smoke", "--out_dir", str(run.out), "--tf_dir", str(run.tf_dir)]
    with kept_signal_handlers():
        assert POLICY_TRAINERS[stage](words) == 0
    return list(run.metric(stage, "grad_norm").values())


def chosen_values(stage: str) -> dict[str, Any]:
    """How often the rules choose each value, over data of many sizes.

    With the data grows the free memory of the CPU, from 0.5 to 12 GB.
    """
    found: dict[str, Any] = {}
    runtime = Runtime(torch.device("cpu"), torch.float32)
    for name in ("192x4", "minillm-26m", "minillm-moe-145m"):
        shape = ModelConfig(**preset(name)).resolve()
        for optimizer in ("muon", "adamw"):
            counted: dict[str, Counter[str]] = {}
            for power in range(160):
                rows = round(20 * 1.1**power)
                data = DataFacts(kind=STAGE_TABLE[stage].data, rows=rows, row_tokens=512)
                config, fresh = TrainConfig(optimizer=optimizer), stage == "pretrain"
                values: dict[str, Any] = resolved_values(config, stage, shape, data, fresh=fresh)
                with mock.patch.object(
                    autoconfig, "free_memory", lambda device, power=power: round((1 << 29) * 1.02**power)
                ):
                    filled = fill_in(config, stage, shape, data, runtime, fresh=fresh)
                values |= {"batch_size": filled.batch_size, "use_compile": filled.use_compile}
                for key, value in values.items():
                    counted.setdefault(key, Counter())[f"{value:g}"] += 1
            found |= {f"{key}, {name}, {optimizer}": dict(counts) for key, counts in counted.items()}
    return found


def training_results(stage: str) -> Callable[[Path], dict[str, Any]]:
    """Losses and choices of a training stage."""
    return lambda folder: first_losses(stage, folder) | chosen_values(stage)


def mix_results(folder: Path) -> dict[str, Any]:
    """Which records go where. The bundled samples are left out: they are input, and may change."""
    sources, out = folder / "sources", folder / "out"
    sources.mkdir(parents=True)
    for name in ("general", "knowledge", "math", "identity_conversations"):
        questions = [f"{name}的第{n}个问题是什么，和第{n * 7 % 40}个有何不同？" for n in range(40)]
        records = [{"conversations": chat(question, f"答{n % 9}")} for n, question in enumerate(questions)]
        write_jsonl(sources / f"{name}.jsonl", records)
    pairs = [{"prompt": f"请选第{n}个", "chosen": "好的", "rejected": "不好"} for n in range(40)]
    write_jsonl(sources / "dpo.jsonl", pairs)
    write_jsonl(sources / "pretrain_hq.jsonl", [{"text": f"第{n}段，<|im_start|>说的是{n % 7}。"} for n in range(40)])
    targets = [f"--{name}=60" for name in ("general", "knowledge", "math", "preference")]
    words = ["--source_dir", str(sources), "--output_dir", str(out), "--identity=20", "--seed=42", *targets]
    with mock.patch.object(mix_sources, "sample_names", lambda *_: ()):
        assert build_chinese_mix.main(words) == 0
    found = {}
    for path in sorted(out.glob("*_chinese*.jsonl")):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.name] = f"{len(records)} records, {fingerprint(records)[:16]}"
    return found


def tokenizer_results(folder: Path) -> dict[str, Any]:
    """Hash of the tokenizer that the crate trains on a few lines."""
    pytest.importorskip("rustbpe.rustbpe", reason="the crate is not built")
    from scripts import train_rustbpe_tokenizer

    folder.mkdir(exist_ok=True)
    texts = [f"第{n}天，小明读了{n * 7}页书，{'很高兴' if n % 2 else '有点累'}。It was {n * 3}." for n in range(300)]
    source = write_jsonl(folder / "text.jsonl", [{"text": text} for text in texts])
    words = ["--input", str(source), "--output", str(folder / "tokenizer"), "--vocab_size", "400"]
    assert train_rustbpe_tokenizer.main(words) == 0
    return {"tokenizer": RustBPETokenizer.from_directory(folder / "tokenizer").sha256}


def export_results(folder: Path) -> dict[str, Any]:
    """Hashes of the arrays of each stage."""
    write_records(folder)
    tokenizer, found = bytes_tokenizer(folder / "tokenizer"), {}
    for stage in STAGES:
        output, data = folder / f"{stage}_tokens", STAGE_TABLE[stage].data
        build_tensors(TensorJob(data, folder / f"{stage}.jsonl", output, tokenizer, 64, 1, progress=False))
        found |= {f"{stage} {path.name}": sha256_file(path) for path in sorted(output.glob("*.npy"))}
    return found


RESULTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "mix": mix_results,
    "tokenizer": tokenizer_results,
    "export": export_results,
    **{stage: training_results(stage) for stage in (*STAGES, *OPTIONAL_STAGES)},
}


def changed(kept: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs by more than rounding, a line for each result."""
    lines = []
    for name in kept.keys() | found.keys():
        wanted = kept.get(name)
        if "losses" in name and name in kept:  # the others are counts and hashes, which are exact
            wanted = pytest.approx(wanted, rel=TOLERANCE)
        if wanted != found.get(name):
            lines.append(f"{name}: {kept.get(name)} before, {found.get(name)} now")
    return lines


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_recipe_whose_results_changed_has_a_raised_version(stage: str, tmp_path: Path) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))[stage]
    found = changed(kept["results"], RESULTS[stage](tmp_path / stage))
    constant, version = f'RECIPE_VERSION["{stage}"] in configs/stage_table.py', RECIPE_VERSION[stage]
    how = "python -m tests.test_recipe_version"
    assert not found or version != kept["version"], (
        f"{constant} is still {version}, but the same input gives other results, so that nobody's finished stage would be "
        f"done again. If the change is meant, raise it and run {how}.\n" + "\n".join(sorted(found))
    )
    assert version == kept["version"], f"{constant} is {version}, recorded is {kept['version']}: run {how}"


@pytest.mark.parametrize("stage", (*STAGES, *OPTIONAL_STAGES))
def test_a_loss_that_differs_by_a_thousandth_or_is_missing_is_a_change(stage: str) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))[stage]["results"]
    name = next(name for name in kept if name.startswith("losses"))
    *others, last = kept[name]
    for losses in ([*others, last * 1.001], others):
        assert len(changed(kept, kept | {name: losses})) == 1


def main() -> int:
    """Record the results of today's recipes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        write_json(
            KEPT,
            {
                stage: {"version": RECIPE_VERSION[stage], "results": RESULTS[stage](Path(folder) / stage)}
                for stage in PIPELINE
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

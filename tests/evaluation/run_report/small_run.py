"""The files of a run for tests of its report: written by hand, without a training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from configs.artifacts import sha256_file
from configs.schema import ModelConfig
from dataset.tokenizer import RustBPETokenizer
from evaluation.run_report.facts import RunFolders
from model.manifest import StartFile, TrainedSettings, WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import save_weights

SHAPE = ModelConfig(
    vocab_size=6400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
).resolve()
STEMS = {"pretrain": "pretrain", "sft": "full_sft", "dpo": "rlhf"}


def metric(value: float, half: float = 0.02, n: int = 100, **more: Any) -> dict[str, Any]:
    """A metric as the results file has it."""
    return {"value": value, "n": n, "clusters": n, "ci95": [value - half, value + half], **more}


class SmallRun:
    """The folders of a run that has passed some stages."""

    def __init__(self, folder: Path, tokenizer: RustBPETokenizer) -> None:
        self.folders = RunFolders(data=folder / "data", out=folder / "out", results=folder / "tf")
        self.tokenizer = tokenizer
        self.started_from: dict[str, str] = {}

    def note(self, stage: str, **notes: Any) -> None:
        """The record of run.sh."""
        path = self.folders.out / "stages" / f"{stage}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"status": "done", "run_id": "r1", "seconds": 61, **notes}))

    def mix(self) -> None:
        """The manifest of the mix, and a rejected line."""
        self.folders.data.mkdir(parents=True, exist_ok=True)
        source = {
            "file": "mine.jsonl", "category": "math", "read": 10, "kept": 4, "heldout": 1, "dropped": {"duplicate": 5},
            "repetition": 1.0, "sample": False,
        }  # fmt: skip
        manifest = {
            "fingerprint": "ab" * 32,
            "seed": 1,
            "categories": {"math": {"repetition": 4.0}},
            "sources": [source],
        }
        (self.folders.data / "mix_manifest.json").write_text(json.dumps(manifest))
        (self.folders.data / "rejects.jsonl").write_text(
            json.dumps({"file": "mine.jsonl", "reason": "bad JSON"}) + "\n"
        )

    def metrics(self, stage: str, losses: list[float], validation: list[float], fingerprint: str = "f" * 64) -> None:
        """The metrics of a stage, ten steps a line."""
        path = self.folders.results / "metrics" / f"{stage}_{fingerprint[:8]}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines: list[dict[str, float]] = []
        for place, loss in enumerate(losses, start=1):
            speeds = {"tokens": 512.0 * place, "tokens_per_second": 1000.0 + place, "seconds": 0.5 * place}
            lines.append({"step": 10 * place, "loss": loss, "lr": 0.01, "grad_norm": 0.5, **speeds})
        for place, loss in enumerate(validation, start=1):
            lines.append({"step": 10 * len(losses) * place // len(validation), "validation_loss": loss})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def weights(self, stage: str, start: str = "", fingerprint: str = "f" * 64) -> None:
        """Random weights of a stage."""
        torch.manual_seed(len(stage))
        manifest = WeightsManifest(
            stage=stage,
            profile="cpu",
            fingerprint=fingerprint,
            tokenizer_sha256=self.tokenizer.sha256,
            settings=TrainedSettings(stage=stage, train={"epochs": 3, "grad_clip": 1.0}),
            choices={"device": "cpu", "dtype": "float32", "machine": {"device": "cpu", "gpu": "", "cores": 2}},
            torch="2.15",
        )
        if start:
            manifest = replace(manifest, start=StartFile(path=f"{STEMS[start]}_16.pth", sha256=self.sha256(start)))
        save_weights(self.path(stage), MiniLLM(SHAPE), manifest)

    def path(self, stage: str) -> Path:
        """The weights of a stage."""
        return self.folders.out / f"{STEMS[stage]}_16.pth"

    def sha256(self, stage: str) -> str:
        """The fingerprint of a stage's weights."""
        return sha256_file(self.path(stage))

    def score(self, stage: str, **metrics: Any) -> None:
        """A line of the results file."""
        path = self.folders.results / "eval_results.jsonl"
        line = {
            "run_id": "r1",
            "stage": stage,
            "profile": "cpu",
            "checkpoint_sha256": self.sha256(stage),
            "split": "test",
            "metrics": metrics,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def whole(self) -> "SmallRun":
        """Pretraining, SFT that helps, and DPO that overfits and damages sums."""
        self.mix()
        self.folders.out.mkdir(parents=True, exist_ok=True)
        before = ""
        for stage, checks in (("pretrain", [3.0, 2.5, 2.49]), ("sft", [2.0, 1.0, 0.99]), ("dpo", [0.5, 0.6, 0.7])):
            self.metrics(stage, [4.0 - 0.1 * step for step in range(20)], checks)
            self.weights(stage, before)
            self.note(stage)
            before = stage
        loss = metric(2.49, n=5000)
        self.score("pretrain", loss=loss, perplexity=metric(12.1, n=5000))
        above, level = {"constant": 0.1, "nearest": 0.5}, {"constant": 0.1, "nearest": 0.95}
        self.score("sft", accuracy_math=metric(0.9, baselines=above), accuracy_identity=metric(0.9, baselines=level))
        self.score("dpo", accuracy_math=metric(0.6, baselines=above), accuracy_identity=metric(0.92, baselines=level))
        return self

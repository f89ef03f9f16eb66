"""Both arms of the training benchmarks, ours and a tutorial's loop: flags, text, commands.

Ours is `trainer/train_pretrain.py`, called as a user calls it. The baseline is `baseline.py` beside
this file.
"""

import json
import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import add_page_flags
from benchmarks.training.baseline import qwen3_settings
from benchmarks.training.corpus import IDS, OFFSETS, WINDOW_TOKENS, Corpus, CutDocuments, prepare
from benchmarks.training.products import Step, mean_keys
from configs.artifacts import require_writable
from configs.cli import Parser, add_switch, split_words
from configs.hardware import cpu_instructions, cpu_name
from configs.paths import ROOT, TOKENIZER_DIR, display
from configs.schema import ModelConfig, UserError, preset
from configs.stage_table import weight_file
from configs.train_run import TrainRun, parse_run
from dataset.tensors import open_tensors
from dataset.tokenizer import RustBPETokenizer
from model.device import choose_device
from trainer.autoconfig import DataFacts, fill_in
from trainer.runtime import Runtime

ARMS = ("minillm", "baseline")
ENDLESS = 10**6
"""Epochs that no budget reaches."""
MIN_ROW_TOKENS = 512
"""Length of our rows where the profile's are shorter than the windows scored.

A model learns nothing about positions beyond its rows.
"""
LOOKED_AT_ROWS = 256
"""Rows from which the mean length of documents is taken."""
BASELINE_BATCHES = {"cpu": (4, 16), "cuda": (32, 128)}
BASELINE_RATES = (5e-4, 1e-3, 2e-3, 4e-3)
BASELINE, PLAIN_LOOP = (Path(__file__).with_name(name) for name in ("baseline.py", "plain_loop.py"))


@dataclass(frozen=True)
class Bench:
    """What both arms share."""

    args: Namespace
    device: torch.device
    corpus: Corpus
    tokenizer: RustBPETokenizer
    run: TrainRun
    """Ours, as its flags resolve."""
    shape: ModelConfig
    words: tuple[str, ...]
    """Flags of ours, without folders and seed."""

    @property
    def baseline_dtype(self) -> str:
        """The baseline's arithmetic."""
        return self.args.baseline_dtype or ("float32" if self.device.type == "cpu" else "bfloat16")

    @property
    def batch_sizes(self) -> list[int]:
        """The baseline's batch sizes to choose from."""
        return list(self.args.batch_sizes or BASELINE_BATCHES[self.device.type])

    @property
    def documents(self) -> CutDocuments:
        """The baseline's rows."""
        return CutDocuments(self.corpus.folder, self.tokenizer.end_of_text_id)

    def our_step(self) -> Step:
        """A micro-batch of ours: how large the trainer would choose it, and what its rows hold."""
        facts = self.corpus.tensor_facts()
        document_ids = open_tensors(self.corpus.tensors)["document_ids"][:LOOKED_AT_ROWS].numpy()
        places = facts.rows * facts.max_length
        settings = fill_in(
            self.run.train, "pretrain", self.shape, DataFacts.of(facts), Runtime(self.device, torch.float32), fresh=True
        )
        tokens = settings.batch_size * facts.max_length
        return Step(self.shape, tokens, facts.num_targets / places, mean_keys(document_ids))

    def baseline_step(self, batch_size: int) -> Step:
        """A step of the baseline; its padding is computed too."""
        share = self.documents.targets_per_row / WINDOW_TOKENS
        return Step(self.shape, batch_size * WINDOW_TOKENS, share, (WINDOW_TOKENS + 1) / 2)

    def step_words(self, run_tokens: float) -> list[str]:
        """What our trainer would choose for a run of so many tokens, as flags.

        These are the size of a step, and whether to compile. Our runs have no end of their own,
        from which the trainer could tell.
        """
        facts = self.corpus.tensor_facts()
        rows = max(1, round(run_tokens / facts.max_length))
        asked = replace(self.run.train, epochs=1, max_steps=0)
        runtime = Runtime(self.device, torch.float32)
        found = fill_in(asked, "pretrain", self.shape, replace(DataFacts.of(facts), rows=rows), runtime, fresh=True)
        words = ["--use_compile", str(int(bool(found.use_compile)))]
        if not (asked.batch_size and asked.accumulation_steps):
            words += ["--tokens_per_step", str(found.batch_size * found.accumulation_steps * facts.max_length)]
        return words

    def our_command(self, folder: Path, seed: int, *words: str) -> list[str]:
        """A call of our trainer."""
        where = ["--data_path", str(self.corpus.tensors), "--out_dir", str(folder), "--tf_dir", str(folder)]
        own = ["--seed", str(seed), "--from_resume", "0", "--epochs", str(ENDLESS), *words]
        return [sys.executable, str(ROOT / "trainer" / "train_pretrain.py"), *where, *self.words, *own]

    def our_weights(self, folder: Path) -> Path:
        """Where our trainer leaves its weights."""
        return folder / weight_file("pretrain", self.shape)

    def baseline_command(self, folder: Path, seed: int, rate: float, batch_size: int, *words: str) -> list[str]:
        """A call of the baseline; its weights go to `weights.pt`."""
        given = ["--corpus", str(self.corpus.folder), "--model", self.args.model, "--seed", str(seed)]
        given += ["--learning_rate", str(rate), "--batch_size", str(batch_size)]
        given += ["--device", str(self.device), "--dtype", self.baseline_dtype]
        files = ["--metrics", str(folder / "metrics.jsonl"), "--out", str(folder / "weights.pt")]
        return [sys.executable, str(BASELINE), *given, *files, *words]

    def plain_command(self, rate: float, batch_size: int, seconds: float) -> list[str]:
        """A call of the plain loop."""
        given = {
            "config": qwen3_settings(self.shape),
            "ids": str(self.corpus.folder / IDS),
            "offsets": str(self.corpus.folder / OFFSETS),
            "pad_id": self.tokenizer.end_of_text_id,
            "window": WINDOW_TOKENS,
            "batch_size": batch_size,
            "learning_rate": rate,
            "device": str(self.device),
            "dtype": self.baseline_dtype,
            "seconds": seconds,
        }
        return [sys.executable, str(PLAIN_LOOP), json.dumps(given)]

    def facts(self) -> dict[str, Any]:
        """What every object of the JSON says of the machine and the text."""
        return {
            "model": self.args.model,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name(),
            "instructions": cpu_instructions() if self.device.type == "cpu" else [],
            "threads": self.args.threads or torch.get_num_threads(),
            "torch": str(torch.__version__),
            "corpus": {key: self.corpus.facts[key] for key in ("text", "text_sha256", "documents", "tokens")},
            "seeds": self.args.seeds,
        }


def our_words(args: Namespace, device: torch.device) -> tuple[str, ...]:
    """Flags of our trainer: profile and model, what differs from them, and what the user adds."""
    words = ["--profile", args.profile or ("default" if device.type == "cuda" else "cpu"), "--preset", args.model]
    words += ["--tokenizer_dir", str(TOKENIZER_DIR)]
    if args.device != "auto":
        words += ["--device", args.device]
    if device.type == "cpu":
        words += ["--log_interval", "1"]  # a step takes seconds there
    if parse_run("pretrain", "", words).train.max_seq_len < WINDOW_TOKENS:
        words += ["--max_seq_len", str(MIN_ROW_TOKENS)]
    return (*words, *split_words("--pretrain_args", args.pretrain_args))


def start_bench(args: Namespace) -> Bench | None:
    """Prepare the text; None when that is all that was asked for. Raises: UserError."""
    if args.work_dir is None:
        raise UserError("--work_dir is missing: give a folder for the prepared text and for the runs.")
    least_of = {"minutes": 0.01, "calibrate_minutes": 0.01, "heldout_docs": 1, "max_tokens": 0, "threads": 0}
    for name, least in least_of.items():
        if (value := getattr(args, name, None)) is not None and value < least:
            raise UserError(f"--{name} {value}: must be {least} or more.")
    preset(args.model)  # a misspelt name ends here
    device = choose_device(args.device)
    if device.type not in BASELINE_BATCHES:
        raise UserError(f"--device {args.device}: the benchmark knows {' and '.join(BASELINE_BATCHES)} alone.")
    if args.threads:
        torch.set_num_threads(args.threads)
    words = our_words(args, device)
    run = parse_run("pretrain", "", words)
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    folder = args.work_dir.absolute()
    require_writable(folder)
    corpus = prepare(
        folder / "corpus",
        args.text,
        tokenizer,
        row_tokens=run.train.max_seq_len,
        max_tokens=args.max_tokens,
        num_heldout=args.heldout_docs,
    )
    if args.prepare:
        size = sum(path.stat().st_size for path in corpus.folder.rglob("*") if path.is_file())
        facts = corpus.facts
        print(
            f"{display(corpus.folder)}: {facts['tokens']:,} tokens in {facts['documents']:,} documents, "
            f"{facts['heldout_documents']} held out; {size / 1e6:.0f} MB"
        )
        return None
    shape = replace(run.model, vocab_size=tokenizer.get_vocab_size()).resolve()
    if "baseline" in args.arms:
        qwen3_settings(shape)
    return Bench(args, device, corpus, tokenizer, run, shape, words)


def add_flags(parser: Parser, *, minutes: float, minutes_help: str) -> None:
    """The flags of the training benchmarks."""
    parser.add_argument(
        "--model", default="minillm-26m", metavar="NAME", help="preset, or width x depth: 256x4 模型结构 (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=minutes, metavar="M", help=f"{minutes_help} (%(default)g)")
    add_page_flags(parser)
    data = parser.add_argument_group("text 文本")
    data.add_argument("--work_dir", type=Path, metavar="DIR", help="prepared text, and runs for a while 工作目录")
    data.add_argument("--text", type=Path, metavar="FILE", help="JSONL of records with `text` to prepare it from 文本")
    data.add_argument(
        "--max_tokens", type=int, metavar="N", help="with --text: prepare so many tokens; 0: all 词元上限 (0)"
    )
    data.add_argument(
        "--heldout_docs", type=int, metavar="N", help="with --text: documents to score at most 留出文档数 (300)"
    )
    add_switch(data, "--prepare", default=False, help="prepare the text and stop 只准备数据")
    arms = parser.add_argument_group("arms 对比项")
    arms.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="which to run 要运行的项 (both)")
    arms.add_argument("--profile", metavar="NAME", help="of ours 我们的配置 (default on a GPU, else cpu)")
    arms.add_argument(
        "--pretrain_args",
        default="",
        metavar="TEXT",
        help='more flags of ours: --pretrain_args="--batch_size 4" 更多参数',
    )
    arms.add_argument(
        "--learning_rates",
        type=float,
        nargs="+",
        default=BASELINE_RATES,
        metavar="LR",
        help="of the baseline 基线学习率",
    )
    arms.add_argument(
        "--batch_sizes", type=int, nargs="+", metavar="N", help="of the baseline 基线批大小 (4 16; on a GPU 32 128)"
    )
    arms.add_argument(
        "--baseline_dtype",
        choices=("float32", "bfloat16"),
        help="arithmetic of the baseline 基线精度 (float32; on a GPU bfloat16 autocast)",
    )
    arms.add_argument("--device", default="auto", help="auto, cpu, cuda 设备 (%(default)s)")
    arms.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of both arms; 0: PyTorch's choice 线程数 (%(default)s)"
    )
    arms.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="a run each 随机种子 (0)")

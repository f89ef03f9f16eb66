"""The flags of both arms, and what ours become."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

from benchmarks.training.arms import MIN_ROW_TOKENS, Bench, add_flags, our_words
from configs.cli import Parser
from configs.train_run import parse_run


def flags(*words: str) -> Namespace:
    parser = Parser()
    add_flags(parser, minutes=1.0, minutes_help="")
    return parser.parse_args(words)


def bench_in(folder: Path) -> Bench:
    return cast(Bench, SimpleNamespace(args=flags("--work_dir", str(folder))))


def test_our_rows_are_at_least_as_long_as_the_windows_scored() -> None:
    cpu = torch.device("cpu")
    for extra, length in (("", MIN_ROW_TOKENS), ("--max_seq_len 1024 --batch_size 2", 1024)):
        run = parse_run("pretrain", "", our_words(flags("--model", "64x2", "--pretrain_args", extra), cpu))
        assert (run.train.max_seq_len, run.model.hidden_size, run.profile) == (length, 64, "cpu")
    assert parse_run("pretrain", "", our_words(flags(), torch.device("cuda"))).train.max_seq_len == 2048

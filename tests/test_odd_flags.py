"""Every program, given flags with values of every odd kind: it works, or ends with one line or with
its usage."""

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eval_model
from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from dataset import tokenizer_training
from scripts import build_chinese_mix, evaluate_stage, export_embeddings, serve_openai_api, train_tokenizer
from tests.tiny_run import TRAINERS, TinyRun, kept_signal_handlers

NUMBERS = (
    "nan", "inf", "-inf", "-0", "0", "1", "3", "-1", "1e400", "1e-400", "0.5", "2.5", "64", "4096", "2147483648",
    "9223372036854775807", "18446744073709551616", "1" + "0" * 30, "9" * 5000, "", " ", "٣", "１２", "1_0", "0x10", "[1]",
    "[1,2]", "{}", "None", "true", "--", "-", "+1", "一百", "\udcff",
)  # fmt: skip
WORDS = (
    "", " ", "none", "..", "/", "/dev/null", "/no/such", "x" * 300, "\udcff\udcfe", "你好", "a\nb", "[1]", "*", "cuda:",
    "cuda:-1", "cuda:x", "mps", "meta", "smoke", "<|bos|>", "512x2", "64x9999999999999999999",
)  # fmt: skip
LEFT_OUT = {"help", "cpu_processes", "num_workers", "probe", "answers_file", "results_file", "output", "output_dir"}
LEFT_OUT |= {"out_dir", "tf_dir"}
"""Flags that start processes or ask the network, and places to write to."""


class TrainingBegins(Exception):
    """Stands for all that follows."""


@pytest.fixture(scope="module")
def trained(trained: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A copy: odd flags may make its tensors anew."""
    folder = tmp_path_factory.mktemp("odd_flags")
    for part in (trained.data, trained.out):
        shutil.copytree(part, folder / part.name)
    shutil.copy(folder / trained.data.name / "sft.jsonl", folder / trained.data.name / "lora.jsonl")
    return TinyRun(folder / trained.data.name, folder / trained.out.name)


@pytest.fixture(autouse=True)
def no_training() -> Iterator[None]:
    with mock.patch("trainer.recipe.train", side_effect=TrainingBegins), kept_signal_handlers():
        yield


def flags_of(parser: argparse.ArgumentParser) -> st.SearchStrategy[list[str]]:
    """One or two flags of a parser with a number or a word each."""
    actions = [a for a in parser._actions if a.option_strings and a.nargs != 0 and a.dest not in LEFT_OUT]
    odd = {int: NUMBERS, float: NUMBERS}

    def pair(action: argparse.Action) -> st.SearchStrategy[str]:
        values = st.sampled_from((*odd.get(action.type, WORDS), *NUMBERS[:4], *map(str, action.choices or ())))  # type: ignore[arg-type, call-overload]
        return values.map(lambda value: f"{action.option_strings[0]}={value}")

    return st.lists(st.sampled_from(actions).flatmap(pair), min_size=1, max_size=2)


def ends_well(main: Callable[[Sequence[str]], int], words: list[str]) -> None:
    try:
        assert main(words) in (0, 1)
    except SystemExit as stop:
        assert stop.code in (0, 2)
    except UserError as error:
        assert error.line and "\n" not in error.line
    except (TrainingBegins, OSError, MemoryError, UnicodeEncodeError):
        pass  # the last three are told in one line by configs/cli.py


quick = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("stage", TRAINERS)
@quick
@given(data=st.data())
def test_a_trainer_starts_or_says_why_not(trained: TinyRun, tmp_path: Path, stage: str, data: st.DataObject) -> None:
    from configs.train_run import build_parser

    start = {"pretrain": "none", "sft": str(trained.path("pretrain")), "distill": "none"}.get(
        stage, str(trained.path("sft"))
    )
    out = ["--out_dir", str(tmp_path), "--tf_dir", str(tmp_path), "--from_weight", start]
    out += ["--teacher", str(trained.path("sft"))] if stage == "distill" else []
    out += ["--replay_path", str(trained.data / "sft_sft_tokens")] if stage == "lora" else []
    ends_well(TRAINERS[stage], [*trained.flags(stage, *out), *data.draw(flags_of(build_parser(stage, "")))])


@quick
@given(words=flags_of(eval_model.build_parser()))
def test_a_chat_answers_or_says_why_not(trained: TinyRun, words: list[str]) -> None:
    given = ["--weight", str(trained.path("sft")), "--prompt", "你好", "--tokenizer_dir", str(TOKENIZER_DIR)]
    ends_well(eval_model.main, [*given, "--max_new_tokens", "2", *words])


@quick
@given(words=flags_of(serve_openai_api.build_parser()))
def test_a_server_starts_or_says_why_not(trained: TinyRun, words: list[str]) -> None:
    given = ["--weight", str(trained.path("sft")), "--tokenizer_dir", str(TOKENIZER_DIR)]
    with mock.patch("scripts.serve_openai_api.serve"), mock.patch("scripts.serve_openai_api.require_packages"):
        ends_well(serve_openai_api.main, [*given, *words])


@quick
@given(words=flags_of(evaluate_stage.build_parser()))
def test_an_evaluation_scores_or_says_why_not(trained: TinyRun, tmp_path: Path, words: list[str]) -> None:
    given = ["--stage", "sft", "--profile", "smoke", "--checkpoint", str(trained.path("sft")), "--max_samples", "1"]
    given += ["--data_path", str(trained.data / "sft_heldout.jsonl"), "--results_file", str(tmp_path / "r.jsonl")]
    given += ["--first_minutes", "none", "--danger_prompts", "none", "--tokenizer_dir", str(TOKENIZER_DIR)]
    with mock.patch("evaluation.stage.Evaluation.of_chats", return_value={}):
        ends_well(evaluate_stage.main, [*given, *words])


@quick
@given(words=flags_of(export_embeddings.build_parser()))
def test_an_export_writes_or_says_why_not(trained: TinyRun, tmp_path: Path, words: list[str]) -> None:
    given = ["sft", "--input", str(trained.data / "sft.jsonl"), "--output", str(tmp_path / "t"), "--num-workers", "1"]
    ends_well(export_embeddings.main, [*given, "--tokenizer_dir", str(TOKENIZER_DIR), *words])


@quick
@given(words=flags_of(build_chinese_mix.build_parser()))
def test_a_mix_begins_or_says_why_not(trained: TinyRun, tmp_path: Path, words: list[str]) -> None:
    given = ["--source_dir", str(trained.data), "--output_dir", str(tmp_path), "--profile", "smoke"]
    with mock.patch("scripts.build_chinese_mix.find_sources", side_effect=TrainingBegins):
        ends_well(build_chinese_mix.main, [*given, *words])


@quick
@given(words=flags_of(tokenizer_training.build_parser("")))
def test_a_tokenizer_is_learnt_or_it_is_said_why_not(trained: TinyRun, tmp_path: Path, words: list[str]) -> None:
    given = ["--input", str(trained.data / "pretrain.jsonl"), "--output", str(tmp_path / "t"), "--vocab-size", "300"]
    with mock.patch("scripts.train_tokenizer.learn", side_effect=TrainingBegins):
        ends_well(train_tokenizer.main, [*given, *words])

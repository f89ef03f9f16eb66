"""scripts/evaluate_exams.py: a table and a line a task, baselines beside every score, clear
refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.artifacts import sha256_file
from configs.cli import Parser
from configs.schema import UserError
from dataset.mix.write import MANIFEST_FILE
from evaluation.benchmarks.tasks import TASKS
from scripts.evaluate_exams import build_parser, main
from tests.evaluation.benchmarks.original_files import SUMS, write_benchmarks
from tests.tiny_run import TinyRun

FIELDS = (
    "task form shots chat_template split metrics baselines by_group clean model_sha256 tokenizer_sha256 data_sha256"
)


@pytest.fixture(scope="module")
def folder(trained: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmarks, and a mix in which one question of CMMLU stands word for word."""
    folder = write_benchmarks(tmp_path_factory.mktemp("exams"))
    mix = folder / "mix"
    mix.mkdir()
    text = json.dumps({"text": "计算3加4的结果是677点五大约27"}, ensure_ascii=False) + "\n"
    (mix / "pretrain_chinese.jsonl").write_text(text, encoding="utf-8")
    outputs = {"pretrain_chinese.jsonl": {"records": 1, "sha256": sha256_file(mix / "pretrain_chinese.jsonl")}}
    (mix / MANIFEST_FILE).write_text(json.dumps({"outputs": outputs}), encoding="utf-8")
    return folder


def evaluate(
    folder: Path, trained: TinyRun, results: Path, *flags: str, stage: str = "pretrain"
) -> list[dict[str, Any]]:
    """The lines that a call writes."""
    where = [f"--data_dir={folder}", f"--mix_dir={folder / 'mix'}", f"--results_file={results}", "--device=cpu"]
    assert main([f"--weight={trained.path(stage)}", *where, *flags]) == 0
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def test_every_task_writes_a_line_with_its_baselines(
    folder: Path, trained: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = evaluate(folder, trained, tmp_path / "r.jsonl", "--max_new_tokens=2")
    assert [line["task"] for line in lines] == list(TASKS)
    for line in lines:
        assert set(FIELDS.split()) <= set(line)
        rivals = {"random_weights", "longest", "shortest", "bigram"}
        assert set(line["baselines"]) == (
            {"commonest", "sum", "difference", "keyword"} if line["task"] == "cmath" else rivals
        )
        for name, metric in line["metrics"].items():
            low, high = metric["ci95"]
            assert 0 <= low <= metric["value"] <= high <= 1
            assert metric["baselines"] == {rival: own[name]["value"] for rival, own in line["baselines"].items()}
            assert sum(group[name]["n"] for group in line["by_group"].values()) == metric["n"]
    assert set(lines[0]["metrics"]) == {"acc_letter"}
    assert set(lines[3]["metrics"]) == {"acc_pair_sum", "acc_pair_char"}
    assert set(lines[2]["metrics"]) == {"acc_generated"}
    assert lines[0]["tokens_read"] < lines[0]["tokens_without_sharing"]
    shown = capsys.readouterr().out
    assert "at its baselines" in shown
    scores = [line for line in shown.splitlines() if " | " not in line and not line.startswith("->")]
    assert [line for line in scores if len(line) > 100] == []


def test_a_planted_question_is_left_out_of_the_clean_ones(folder: Path, trained: TinyRun, tmp_path: Path) -> None:
    (line,) = evaluate(folder, trained, tmp_path / "r.jsonl", "--tasks=cmmlu", f"--save_answers={tmp_path / 'a'}")
    clean = line["clean"]
    # 的结果是677点五大约27 alone has 13 characters: all questions with this sum are found.
    found = 2 * sum(a + b == 7 for a, b in SUMS)
    assert (clean["contaminated"], clean["not_checkable"], clean["n"]) == (found, 0, 2 * len(SUMS) - found)
    answers = [json.loads(text) for text in (tmp_path / "a").read_text(encoding="utf-8").splitlines()]
    assert sum(one["contaminated"] for one in answers) == found
    right = sum(one["right"]["acc_letter"] for one in answers) / len(answers)
    assert line["metrics"]["acc_letter"]["value"] == pytest.approx(right)


def test_forms_shots_and_limits_are_recorded(folder: Path, trained: TinyRun, tmp_path: Path) -> None:
    flags = ("--tasks=ceval", "--form=cloze", "--shots=5", "--limit=7")
    (line,) = evaluate(folder, trained, tmp_path / "r.jsonl", *flags)
    assert (line["form"], line["shots"], line["limit"], line["split"]) == ("cloze", 5, 7, "val")
    assert list(line["metrics"]) == ["acc_cloze_sum", "acc_cloze_char", "acc_cloze_byte", "acc_cloze_pmi"]
    assert all(metric["n"] == 7 for metric in line["metrics"].values())


def test_chat_weights_answer_problems_in_their_template(folder: Path, trained: TinyRun, tmp_path: Path) -> None:
    flags = ("--tasks=cmath,cmmlu", "--max_new_tokens=2", "--limit=3")
    lines = evaluate(folder, trained, tmp_path / "a.jsonl", *flags, stage="sft")
    assert [line["chat_template"] for line in lines] == [True, False]
    lines = evaluate(folder, trained, tmp_path / "b.jsonl", *flags)
    assert [line["chat_template"] for line in lines] == [False, False]
    lines = evaluate(folder, trained, tmp_path / "c.jsonl", *flags, "--chat_template=on", stage="sft")
    assert [line["chat_template"] for line in lines] == [True, True]


def test_without_a_mix_there_is_no_bigram_and_nothing_is_called_clean(
    folder: Path, trained: TinyRun, tmp_path: Path
) -> None:
    flags = ("--tasks=xcopa_zh", f"--mix_dir={tmp_path}")
    (line,) = evaluate(folder, trained, tmp_path / "r.jsonl", *flags)
    assert line["clean"] is None
    assert set(line["baselines"]) == {"random_weights", "longest", "shortest"}


def test_two_calls_give_the_same_scores(folder: Path, trained: TinyRun, tmp_path: Path) -> None:
    first, second = (
        evaluate(folder, trained, tmp_path / name, "--tasks=zhoblimp,cmmlu", "--fast") for name in ("a", "b")
    )
    for one, other in zip(first, second, strict=True):
        assert {key: one[key] for key in FIELDS.split()} == {key: other[key] for key in FIELDS.split()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=mmlu"], "unknown. There are cmmlu"),
        (["--tasks=,"], "names none"),
        (["--tasks=zhoblimp", "--shots=5"], "no examples apart from its part test"),
        (["--tasks=cmath", "--shots=1"], "no examples apart from its part dev"),
        (["--tasks=cmmlu", "--shots=5", "--split=dev"], "no examples apart from its part dev"),
        (["--tasks=cmmlu", "--shots=6"], "from 0 to 5"),
        (["--tasks=cmmlu", "--split=val"], "cmmlu has test, dev"),
        (["--tasks=zhoblimp", "--chat_template=on"], "without a question"),
        (["--limit=-1"], "must be 0 or more"),
        (["--data_dir=/no/such", "--tasks=cmmlu"], "Put the original files of haonan-li/CMMLU"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    folder: Path, trained: TinyRun, tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        evaluate(folder, trained, tmp_path / "r.jsonl", *flags)
    assert "\n" not in refused.value.line
    assert not (tmp_path / "r.jsonl").exists()


def test_the_defaults_stand_in_the_help() -> None:
    parser = build_parser()
    assert isinstance(parser, Parser)
    assert "cmmlu,ceval,cmath,xcopa_zh,zhoblimp,agieval,gaokao" in parser.format_help()

"""`run.sh --with`: optional stages after the others, off by default, with fake stages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.stage_table import OPTIONAL_STAGES, STAGE_TABLE, STAGES
from tests.scripts.fake_repository import ROOT, FakeRepository

BASE = ["env", "mix", "tokenizer", "export", *STAGES]
UP_TO_DATE = [f"{stage}: up to date" for stage in BASE]
LORA_ALONE = ["train_lora", "evaluate_stage"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> FakeRepository:
    """A finished run with LoRA, made once."""
    repository = FakeRepository(tmp_path_factory.mktemp("template"))
    result = repository.run("--with", "lora")
    assert result.code == 0, result.errors
    return repository


@pytest.fixture
def done(tmp_path: Path, template: FakeRepository) -> FakeRepository:
    """A copy of it."""
    repository = FakeRepository(tmp_path)
    repository.take_results_of(template)
    return repository


def listed(name: str) -> list[str]:
    """The words of an array in run.sh."""
    text = (ROOT / "scripts" / "run.sh").read_text(encoding="utf-8")
    found = re.search(rf"^{name}=\((.*?)\)", text, flags=re.MULTILINE)
    assert found
    return found[1].split()


def test_the_script_knows_the_stages_of_the_table_in_their_order() -> None:
    assert listed("STAGES") == BASE
    assert [name for name in listed("OPTIONAL_STAGES") if name in STAGE_TABLE] == list(OPTIONAL_STAGES)
    usage = (ROOT / "scripts" / "run.sh").read_text(encoding="utf-8").partition("usage() {")[2]
    assert ",".join(listed("OPTIONAL_STAGES")) in usage
    for stage in OPTIONAL_STAGES:
        assert STAGE_TABLE[stage].arguments == f"{stage.upper()}_ARGS" and f"{stage.upper()}_ARGS" in usage


def test_an_optional_stage_runs_after_the_others_in_the_same_run(template: FakeRepository) -> None:
    calls = template.calls()
    assert [call["name"] for call in calls][-4:] == ["train_dpo", "evaluate_stage", *LORA_ALONE]
    trained, judged = calls[-2]["argv"], calls[-1]["argv"]
    assert trained[trained.index("--data_path") + 1] == "lora_identity"
    assert trained[-2:] == ["--from_weight", str(template.root / "out" / "full_sft_192.pth")]
    assert judged[judged.index("--checkpoint") + 1].endswith("out/lora/lora_identity_192.pth")
    assert judged[judged.index("--data_path") + 1].endswith("data/processed/lora_identity_heldout.jsonl")
    assert [line["stage"] for line in template.results()] == [*STAGES, "lora"]
    assert len({line["run_id"] for line in template.results()}) == 1


def test_it_is_done_once_and_left_alone_without_the_flag(done: FakeRepository) -> None:
    assert done.run("--with=lora").stages() == [*UP_TO_DATE, "lora: up to date"]
    assert done.run().stages() == UP_TO_DATE


def test_what_it_starts_from_and_its_own_flags_redo_it(done: FakeRepository) -> None:
    assert done.run("--with", "lora", LORA_ARGS="--lora_rank 4").started() == ["lora"]
    changed = done.run("--with", "lora", LORA_ARGS="--lora_rank 4", SFT_ARGS="--seed 3")
    assert changed.started() == ["sft", "dpo", "lora"]


def test_a_changed_generator_redoes_the_stage_of_a_bundled_set(done: FakeRepository) -> None:
    done.write("dataset/samples/adapters.py", "rows = 1\n")
    done.write(
        "dataset/samples/files.py",
        "from pathlib import Path\ndef generator_files():\n    return [Path(__file__).with_name('adapters.py')]\n",
    )
    assert done.run("--with", "lora").started() == ["mix", "lora"]
    assert done.run("--with", "lora").started() == []


def test_one_that_failed_resumes_and_until_stage_ends_before_it(done: FakeRepository) -> None:
    failed = done.run("--with", "lora", LORA_ARGS="--seed 5", FAKE_FAIL="train_lora after a save")
    assert failed.code == 1 and "stage lora: failed (exit 1)" in failed.errors
    again = done.run("--with", "lora", LORA_ARGS="--seed 5")
    assert again.started() == ["lora"] and "resumed" in again.output
    assert done.run("--with", "lora", "--until-stage", "sft").stages()[-1] == "sft: up to date"


def test_its_lines_and_the_summary_are_as_the_others(done: FakeRepository) -> None:
    output = done.run("--with", "lora", "--from-stage", "lora").output
    assert "stage lora: start | 开始：低秩适配" in output
    assert re.search(r"stage lora: done in \d+ s \| 完成：低秩适配", output)
    weights, _, talk = output.partition("Weights:")[2].partition("Talk to it:")
    assert "out/lora/lora_identity_192.pth" in weights
    assert "eval_model.py --weight out/full_sft_192.pth --lora_name out/lora/lora_identity_192.pth" in talk


def test_the_cn_pipeline_takes_the_same_flag(done: FakeRepository) -> None:
    done.executable("bin/uv", "#!/bin/sh\n")
    path = f"{done.folder}/bin:{done.environment['PATH']}"
    result = done.run("--with", "lora", script="run_cn_pipeline.sh", PATH=path)
    assert result.stages() == [*UP_TO_DATE, "lora: up to date"], result.errors


@pytest.mark.parametrize(
    ("flags", "variables", "code", "message"),
    [
        (["--with", "lunch"], {}, 2, "--with lunch: must be among lora reason distill reward grpo ppo"),
        (["--with", "lora,dpo"], {}, 2, "--with dpo: must be among"),
        (["--with"], {}, 2, "--with needs a name"),
        (["--with="], {}, 2, "--with needs a name"),
        (["--from-stage", "lora"], {}, 2, "--from-stage lora: an optional stage, add --with lora"),
        (
            ["--from-stage", "lunch", "--with", "lora"],
            {},
            2,
            "must be one of env mix tokenizer export pretrain sft dpo lora",
        ),
        (["--with", "lora"], {"LORA_ARGS": "--lora_rank 0"}, 1, "LORA_ARGS: lora_rank = 0"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    tmp_path: Path, flags: list[str], variables: dict[str, str], code: int, message: str
) -> None:
    fresh = FakeRepository(tmp_path)
    result = fresh.run(*flags, **variables)
    assert (result.code, result.errors.count("error:")) == (code, 1)
    assert message in result.errors and fresh.names() == []


def test_wrong_flags_of_a_stage_that_is_not_asked_for_stop_nothing(done: FakeRepository) -> None:
    assert done.run(LORA_ARGS="--lora_rank 0").stages() == UP_TO_DATE


def test_the_stage_book_refuses_an_unknown_name_too() -> None:
    command = [sys.executable, ROOT / "scripts" / "pipeline" / "ask.py"]
    shown = subprocess.run(
        [*command, "--profile", "smoke", "--with", "lora, lunch", "check"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: --with lunch: must be among lora")
    shown = subprocess.run(
        [*command, "--profile", "smoke", "begin", "lora"], capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stderr) == (
        1,
        "error: stage lora: an optional one. Add --with lora. | 可选阶段，请加 --with lora\n",
    )

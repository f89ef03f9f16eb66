"""A teacher's answers as training data."""

import json
from pathlib import Path

import pytest

from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from evaluation import questions
from inference.engine import Answer
from scripts import teacher_answers
from tests.tiny_run import TinyRun


def words(run: TinyRun, output: Path, *more: str) -> list[str]:
    """Flags: what SFT left answers the questions of SFT."""
    given = ["--teacher", str(run.path("sft")), "--input", str(run.data / "sft.jsonl"), "--output", str(output)]
    return [*given, "--tokenizer_dir", str(TOKENIZER_DIR), "--device=cpu", "--max_new_tokens=6", *more]


def said(prompts: object, *, ended: bool = True) -> list[Answer]:
    """An answer to each prompt: its question again."""
    return [Answer(f" {prompt[-1]['content']}！", ended, 3) for prompt in prompts]  # type: ignore[attr-defined]


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A teacher that repeats the question. Returns: how many it was asked each time."""
    asked: list[int] = []

    def ask(model: object, tokenizer: object, prompts: list[object], **_: object) -> list[Answer]:
        asked.append(len(prompts))
        return said(prompts)

    monkeypatch.setattr(teacher_answers, "ask", ask)
    return asked


def test_the_last_answer_is_the_teachers_and_all_else_stays(
    trained: TinyRun, tmp_path: Path, parrot: list[int]
) -> None:
    output = tmp_path / "answers.jsonl"
    assert teacher_answers.main(words(trained, output)) == 0
    before = [json.loads(line) for line in (trained.data / "sft.jsonl").read_text().splitlines()]
    after = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(after) == len(before) == sum(parrot)
    for old, new in zip(before, after, strict=True):
        question = old["conversations"][0]
        answer = {"role": "assistant", "content": f"{question['content']}！"}
        assert new == old | {"conversations": [question, answer]}
    assert not list(tmp_path.glob(".*unfinished"))


def test_answers_without_an_end_are_left_out_and_counted(
    trained: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(model: object, tokenizer: object, prompts: list[object], **_: object) -> list[Answer]:
        return [*said(prompts[:5]), *said(prompts[5:], ended=False)]

    monkeypatch.setattr(teacher_answers, "ask", ask)
    output = tmp_path / "answers.jsonl"
    assert teacher_answers.main(words(trained, output)) == 0
    assert len(output.read_text().splitlines()) == 5
    assert "55 left out" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_where_it_was(
    trained: TinyRun, tmp_path: Path, parrot: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    monkeypatch.setattr(teacher_answers, "AT_ONCE", 20)
    assert teacher_answers.main(words(trained, whole)) == 0
    answers_of = teacher_answers.answers_of

    def dying(teacher: object, records: list[object], **settings: int) -> object:
        if len(parrot) == 5:
            raise KeyboardInterrupt
        return answers_of(teacher, records, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(teacher_answers, "answers_of", dying)
    with pytest.raises(KeyboardInterrupt):
        teacher_answers.main(words(trained, output))
    assert not output.exists()
    (unfinished,) = tmp_path.glob(".*unfinished")
    unfinished.write_text(unfinished.read_text() + '[{"cut')
    monkeypatch.setattr(teacher_answers, "answers_of", answers_of)
    assert teacher_answers.main(words(trained, output)) == 0
    assert parrot == [20, 20, 20, 20, 20, 20]
    assert output.read_bytes() == whole.read_bytes()


def test_a_real_teacher_answers_and_its_answers_can_be_trained_on(tiny: TinyRun) -> None:
    output = tiny.data / "answers.jsonl"
    try:
        assert teacher_answers.main(words(tiny, output, "--max_samples=20")) == 0
    except UserError as nothing:  # a network of 16 numbers a token may never end
        assert "no whole answer" in nothing.line
        return
    assert tiny.train("sft", "--data_path", str(output)) == 0


def test_records_of_another_shape_are_refused_in_one_line(trained: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record 1 is no conversation") as refused:
        teacher_answers.main(words(trained, tmp_path / "a.jsonl", "--input", str(trained.data / "pretrain.jsonl")))
    assert "\n" not in refused.value.line
    assert questions.ask is teacher_answers.ask

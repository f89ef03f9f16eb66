"""The files of the bundled generators: written once, and again when anything has changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataset.samples import files


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the generators. The list says which of them ran."""
    ran: list[str] = []

    def module(name: str) -> SimpleNamespace:
        def records() -> Iterator[dict[str, Any]]:
            ran.append(name.removeprefix("dataset.samples."))
            yield {"text": "样例"}

        return SimpleNamespace(records=records)

    monkeypatch.setattr("importlib.import_module", module)
    return ran


def test_each_category_has_its_file_and_is_made_once(tmp_path: Path, runs: list[str]) -> None:
    paths = files.write_samples(tmp_path)
    assert {name: path.name for name, path in paths.items()} == {
        name: f"{name}_cn_sample.jsonl" for name in files.SAMPLE_FILES
    }
    assert json.loads(paths["unknown"].read_text(encoding="utf-8")) == {"text": "样例"}
    assert files.write_samples(tmp_path) == paths
    assert sorted(runs) == sorted(name for file in files.SAMPLE_FILES.values() for name in file.generators)


def test_only_what_is_asked_for_is_made(tmp_path: Path, runs: list[str]) -> None:
    assert files.write_samples(tmp_path, {"unknown"}).keys() == {"unknown"}
    assert runs == ["unknown.questions"]


def test_an_edited_file_and_an_edited_generator_are_made_again(
    tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write_samples(tmp_path, {"unknown"})["unknown"]
    path.write_text("cut short")
    files.write_samples(tmp_path, {"unknown"})
    assert path.read_text(encoding="utf-8") == '{"text": "样例"}\n'
    monkeypatch.setattr(files, "_sources_fingerprint", lambda: "another")
    files.write_samples(tmp_path, {"unknown"})
    assert runs == ["unknown.questions"] * 3


def test_the_code_and_the_tables_of_every_room_decide_whether_a_file_is_made_again() -> None:
    found = {path.relative_to(files.SAMPLES).as_posix() for path in files.generator_files()}
    assert {"frames.py", "arithmetic/questions.py", "arithmetic/things.tsv", "prose/food.txt"} <= found
    assert not [name for name in found if name.endswith(".pyc")]

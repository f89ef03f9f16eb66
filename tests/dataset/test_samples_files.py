"""The files made from the bundled generators: written once, kept while nothing changed, renewed when anything did."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataset import samples


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the generators; the list tells which ran."""
    ran: list[str] = []

    def module(name: str) -> SimpleNamespace:
        def records() -> Iterator[dict[str, Any]]:
            ran.append(name.rsplit(".", 1)[1])
            yield {"text": "样例"}

        return SimpleNamespace(records=records)

    monkeypatch.setattr("importlib.import_module", module)
    return ran


def test_each_category_has_its_file_and_is_made_once(tmp_path: Path, runs: list[str]) -> None:
    paths = samples.write_samples(tmp_path)
    assert {name: path.name for name, path in paths.items()} == {
        name: f"{name}_cn_sample.jsonl" for name in samples.SAMPLE_FILES
    }
    assert json.loads(paths["unknown"].read_text(encoding="utf-8")) == {"text": "样例"}
    assert samples.write_samples(tmp_path) == paths
    assert sorted(runs) == sorted(module for file in samples.SAMPLE_FILES.values() for module in file.modules)


def test_only_what_is_asked_for_is_made(tmp_path: Path, runs: list[str]) -> None:
    assert samples.write_samples(tmp_path, {"unknown"}).keys() == {"unknown"}
    assert runs == ["unknown"]


def test_an_edited_file_and_an_edited_generator_are_made_again(
    tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = samples.write_samples(tmp_path, {"unknown"})["unknown"]
    path.write_text("cut short")
    samples.write_samples(tmp_path, {"unknown"})
    assert path.read_text(encoding="utf-8") == '{"text": "样例"}\n'
    monkeypatch.setattr(samples, "_sources_fingerprint", lambda: "another")
    samples.write_samples(tmp_path, {"unknown"})
    assert runs == ["unknown"] * 3

"""A stand-in for the bundled samples."""

from pathlib import Path

import pytest

from dataset.mix import sources
from tests.dataset.mix.small_mix import REFUSALS, chat, pair, write


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A few records instead of the bundled samples."""

    def write_samples(folder: Path, categories: set[str]) -> dict[str, Path]:
        folder.mkdir(exist_ok=True)
        made = {
            "general": [chat(f"聊{n}") for n in range(19)],
            "knowledge": [chat(f"知{n}") for n in range(99)],
            "math": [chat(f"算{n}") for n in range(100)],
            "preference": [pair(f"选{n}") for n in range(100)],
            "corpus": [{"text": f"我叫{{{{name}}}}，第{n}段。"} for n in range(10)],
            **REFUSALS,
        }
        return {name: write(folder / f"{name}_cn_sample.jsonl", made[name]) for name in made if name in categories}

    monkeypatch.setattr(sources, "write_samples", write_samples)
    folder = tmp_path / "sources"
    folder.mkdir()
    return folder

"""scripts/web_demo.py is the API server on the page's port, with the weights of all stages."""

from pathlib import Path

import pytest

from scripts import serve_openai_api, web_demo


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """What the server is started with."""
    calls: list[tuple[list[str], int]] = []
    monkeypatch.setattr(serve_openai_api, "main", lambda words, port: calls.append((words, port)) or 0)
    return calls


def test_it_serves_the_newest_weights_of_each_stage(served: list[tuple[list[str], int]], tmp_path: Path) -> None:
    for name in ("pretrain_64", "full_sft_64", "full_sft_64.previous", "lora_64"):
        (tmp_path / f"{name}.pth").touch()
    assert web_demo.main(["--out_dir", str(tmp_path)]) == 0
    weights = [word for name in ("full_sft_64", "pretrain_64") for word in ("--weight", str(tmp_path / f"{name}.pth"))]
    assert served == [(["--out_dir", str(tmp_path), *weights], 7860)]


def test_weights_that_are_named_are_the_only_ones(served: list[tuple[list[str], int]]) -> None:
    web_demo.main(["--weight", "a.pth", "--port", "1"])
    assert served == [(["--weight", "a.pth", "--port", "1"], 7860)]


def test_without_weights_the_server_says_what_is_missing(served: list[tuple[list[str], int]], tmp_path: Path) -> None:
    web_demo.main(["--out_dir", str(tmp_path)])
    assert served == [(["--out_dir", str(tmp_path)], 7860)]

"""scripts/web_demo.py is the API server on the page's port, with the weights of all stages."""

import os
from pathlib import Path

import pytest
import torch

from model.weights import weights_sha256
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


def adapter_of(weights: Path, name: str, time_ns: int) -> Path:
    """What an adapter's file says of the weights that it was trained for."""
    path = weights.parent / "lora" / name
    path.parent.mkdir(exist_ok=True)
    start = {"path": weights.name, "sha256": weights_sha256(weights)}
    torch.save({"model": {}, "config": {"r": 8}, "manifest": {"start": start}}, path)
    os.utime(path, ns=(time_ns, time_ns))
    return path


def test_weights_of_optional_stages_come_after_the_others(
    served: list[tuple[list[str], int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_demo, "LAST_STAGE_FIRST", ("rlhf", "full_sft", "pretrain", "grpo", "reason"))
    for name in ("reason_64", "grpo_64", "reward_64", "rlhf_64"):
        (tmp_path / f"{name}.pth").touch()
    web_demo.main(["--out_dir", str(tmp_path)])
    assert [Path(word).stem for word in served[0][0][3::2]] == ["rlhf_64", "grpo_64", "reason_64"]


def test_the_newest_adapter_is_served_on_its_base(served: list[tuple[list[str], int]], tmp_path: Path) -> None:
    base, gone = tmp_path / "full_sft_64.pth", tmp_path / "gone_64.pth"
    base.write_text("the base")
    gone.write_text("weights that were trained anew")
    adapter_of(base, "lora_old_64.pth", 1)
    adapter_of(base, "lora_new_64.pth", 2)
    adapter_of(base, "lora_new_64.previous.pth", 3)
    adapter_of(gone, "lora_gone_64.pth", 4)
    (tmp_path / "lora" / "damaged_64.pth").write_text("damaged")
    web_demo.main(["--out_dir", str(tmp_path)])
    assert served[0][0][2:] == ["--weight", str(base), "--lora_name", "lora_new"]
    web_demo.main(["--out_dir", str(tmp_path), "--lora_name", "lora_old"])
    assert served[1][0][2:] == ["--lora_name", "lora_old", "--weight", str(base)]

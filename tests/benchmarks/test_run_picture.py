"""The picture of a run: both curves, the conversation, a message where something is missing."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import run_picture
from configs.schema import UserError

CHAT = "你: 你好\n模型: 你好，有什么可以帮你的？\n你: 1+1=\n模型: 1+1=2。\n"


@pytest.fixture
def tf_dir(tmp_path: Path) -> Path:
    """Metrics of two stages of four minutes each."""
    (tmp_path / "metrics").mkdir()
    for stage, first in (("pretrain", 8.0), ("sft", 2.0)):
        lines = [{"step": n, "loss": first / n, "seconds": 60.0 * n} for n in range(1, 5)]
        lines.insert(2, {"step": 2, "validation_loss": 1.0})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics" / f"{stage}_ab12.jsonl").write_text(text)
    (tmp_path / "chat.txt").write_text(CHAT, encoding="utf-8")
    return tmp_path


def test_it_draws_both_curves_and_the_whole_conversation(tf_dir: Path) -> None:
    words = ["--tf_dir", str(tf_dir), "--chat", str(tf_dir / "chat.txt"), "--output", str(tf_dir / "run.svg")]
    assert run_picture.main(words) == 0
    root = ElementTree.parse(tf_dir / "run.svg").getroot()
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(CHAT.splitlines()) <= set(shown)
    curves = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke-width") == "2"]
    assert [path.attrib["d"].count("L") for path in curves] == [3, 3]  # the validation is no point of the curve


def test_a_run_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no metrics of pretrain"):
        run_picture.loss_curve(tmp_path, "pretrain")

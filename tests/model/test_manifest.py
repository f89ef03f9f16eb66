"""The manifest of weights: what an older file does not say is empty, the rest stays as it was."""

from typing import Any

import pytest
import torch

from model.manifest import CHECKED_PARTS, StartFile, TrainedSettings, TrainingFile, WeightsManifest, wrong_parts
from tests.tiny_run import TinyRun


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_a_manifest_is_written_as_it_was_read(trained: TinyRun, stage: str) -> None:
    content: dict[str, Any] = torch.load(trained.path(stage), weights_only=True)["manifest"]
    written = WeightsManifest.from_plain(content).as_plain()
    assert written == content
    assert list(written) == list(content)


def test_what_an_older_file_does_not_say_is_empty() -> None:
    assert WeightsManifest.from_plain({}) == WeightsManifest()
    older = {"start": {"path": "a.pth"}, "training_data": [{"path": "a"}, 3], "settings": {"train": {"beta": 0.1}}}
    assert WeightsManifest.from_plain(older) == WeightsManifest(
        start=StartFile(path="a.pth"),
        training_data=(TrainingFile(path="a"), TrainingFile()),
        settings=TrainedSettings(train={"beta": 0.1}),
    )


def test_a_part_that_is_there_must_have_its_type() -> None:
    assert wrong_parts({}) == []
    assert wrong_parts(dict.fromkeys(CHECKED_PARTS)) == list(CHECKED_PARTS)

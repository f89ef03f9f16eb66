"""A pipeline in a folder of its own. The trainers' rules are not asked, as that loads torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from configs.stage_table import STAGE_TABLE
from scripts.pipeline import fingerprints
from scripts.pipeline.plan import Pipeline, pipeline_from_environment

Make = Callable[..., Pipeline]


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function: environment variables -> the pipeline in this folder, without its rules."""
    monkeypatch.setattr(fingerprints, "values_by_rule", lambda *_: {})

    def make(profile: str = "smoke", gpus_found: int = 0, optional: Sequence[str] = (), **variables: str) -> Pipeline:
        for name in (*(spec.arguments for spec in STAGE_TABLE.values()), "ENABLE_RUSTBPE", "NUM_GPUS"):
            monkeypatch.delenv(name, raising=False)
        for name in ("DATA_DIR", "OUT_DIR", "TF_DIR"):
            monkeypatch.setenv(name, str(tmp_path / name.lower()))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return pipeline_from_environment(profile, gpus_found, optional)

    return make

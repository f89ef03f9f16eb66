"""A run to report."""

from pathlib import Path

import pytest

from dataset.tokenizer import RustBPETokenizer
from tests.evaluation.run_report.small_run import SmallRun


@pytest.fixture
def small(tmp_path: Path, tokenizer: RustBPETokenizer) -> SmallRun:
    """The folders of a run, still empty."""
    return SmallRun(tmp_path, tokenizer)

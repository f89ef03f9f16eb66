"""Small benchmark files that tests only read."""

from pathlib import Path

import pytest

from tests.evaluation.benchmarks.original_files import write_benchmarks


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with all seven benchmarks."""
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))

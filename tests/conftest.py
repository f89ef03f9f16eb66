"""What tests of several folders share: one thread, a tokenizer, and the records and weights of a
tiny run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dataset.tokenizer import RustBPETokenizer
from tests.tiny_run import TinyRun, shipped_tokenizer, write_records

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_folders_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the pipeline that calls the tests must not reach them."""
    for name in ("DATA_DIR", "OUT_DIR", "TF_DIR", "MINILLM_PARENT_PID", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def determinism_ends_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `--deterministic` sets for the whole process is as before afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def tokenizer() -> RustBPETokenizer:
    """The tokenizer that ships."""
    return shipped_tokenizer()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The three stages trained once. Tests only read it."""
    folder = tmp_path_factory.mktemp("trained")
    write_records(folder / "data")
    run = TinyRun(folder / "data", folder / "out")
    for stage in ("pretrain", "sft", "dpo"):
        assert run.train(stage) == 0
    return run


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of another model. Tests only read it."""
    from tests.foreign_model import write_model, write_tokenizer

    folder = write_tokenizer(tmp_path_factory.mktemp("foreign") / "qwen")
    return write_model(folder)


@pytest.fixture
def tiny(trained: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy of the records, their tensors and the weights, to do with as a test likes."""
    shutil.copytree(trained.data, tmp_path / "data")
    shutil.copytree(trained.out, tmp_path / "out")
    return TinyRun(tmp_path / "data", tmp_path / "out")

"""Encoding in several processes: results come in order, and no process is left running."""

import json
import os
import signal
from pathlib import Path

import pytest

from configs.schema import UserError
from dataset.tokens import workers
from dataset.tokens.encoding import RecordEncoder
from dataset.tokens.workers import encode_records
from tests.dataset.tokens.byte_tokens import encoder, tokenizer


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of many small batches."""
    monkeypatch.setattr(workers, "BATCH_BYTES", 100)
    monkeypatch.setattr(workers, "BYTES_PER_WORKER", 1)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(number)}) + "\n" for number in range(300)), encoding="utf-8")
    return path


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_give_the_records_in_the_order_of_the_file(source: Path, num_workers: int) -> None:
    stream = encode_records(encoder("pretrain", source, bos_token=None), num_workers, progress=False)
    ids = [token for encoded in stream for token in encoded.sequences.ids.tolist()]
    texts = bytes(token if token != tokenizer.end_of_text_id else ord(" ") for token in ids).decode()
    assert texts.split() == [str(number) for number in range(300)]


def test_workers_end_when_nobody_wants_their_answers_any_more(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = workers._Worker.__init__

    def remember(worker: workers._Worker, mine: RecordEncoder) -> None:
        start(worker, mine)
        started.append(worker)

    monkeypatch.setattr(workers._Worker, "__init__", remember)
    stream = encode_records(encoder("pretrain", source), 2, progress=False)
    next(stream)
    stream.close()
    assert len(started) == 2
    assert all(worker.process.returncode is not None for worker in started)


def test_a_worker_that_is_killed_is_one_clear_message(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = workers._Worker.__init__

    def start_and_kill(worker: workers._Worker, mine: RecordEncoder) -> None:
        start(worker, mine)
        os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(workers._Worker, "__init__", start_and_kill)
    with pytest.raises(UserError, match=r"ended \(exit code -9\), often for lack of memory"):
        list(encode_records(encoder("pretrain", source), 2, progress=False))

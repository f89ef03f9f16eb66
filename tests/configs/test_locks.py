"""A lock belongs to one open file: others are told that it is taken."""

import fcntl
from pathlib import Path

import pytest

from configs.locks import Lock, take_lock


def test_a_lock_is_free_again_when_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert take_lock(first.fileno()) is Lock.OURS
        assert take_lock(first.fileno()) is Lock.OURS  # we have it already
        assert take_lock(second.fileno()) is Lock.TAKEN
        first.close()
        assert take_lock(second.fileno(), wait=True) is Lock.OURS


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "lock").open("w") as file:
        assert take_lock(file.fileno()) is Lock.UNKNOWN

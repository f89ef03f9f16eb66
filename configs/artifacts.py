"""Artefacts on disk: written whole or not at all, with fingerprints and manifests."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from configs.schema import UserError

HASH_BLOCK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-like value; the order of its keys does not matter."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut (a no-op where folders can't be opened, as
    on Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder; the file itself is synced
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` and move it there once it is whole and on the disk.

    Text is UTF-8 with `\\n` line ends. After an error `path` is as it was.
    Raises: UserError when the folder can't be written or the disk is full.
    """
    text = "b" not in mode
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        os.fchmod(descriptor, 0o666 & ~_umask())
        with os.fdopen(descriptor, mode, encoding="utf-8" if text else None, newline="\n" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def write_error(path: Path, error: OSError) -> UserError:
    """The one-line message for a file that can't be written."""
    reason = error.strerror or str(error)
    return UserError(
        f"{path}: can't be written ({reason}). Free disk space or check the folder's permissions, rerun.",
        "无法写入：请检查磁盘空间和目录权限，然后重新运行",
    )


def require_writable(folder: Path) -> None:
    """Make a folder, and find out now, not after hours of work, that it can't be written.

    Raises: UserError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(folder, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")


def read_json(path: Path, remedy: str, chinese: str = "") -> Any:
    """Read a JSON file.

    Raises: UserError when it is missing or torn, with `remedy` and the Chinese half.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing. {remedy}", chinese) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}). {remedy}", chinese) from error


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line in a single write, so that no reader and no kill ever sees half a line.

    What a full disk took of a line is removed again.

    Raises: UserError when the file can't be written.
    """
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if (written := os.write(descriptor, line)) < len(line):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(path, error) from error

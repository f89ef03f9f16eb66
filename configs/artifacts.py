"""Artefacts on disk: written completely or not at all; hashes, fingerprints and JSON files."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from configs.schema import UserError

HASH_BLOCK_BYTES = 1 << 20
"""Bytes that are read at once."""

Part = TypeVar("Part")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of a value that JSON can hold. The order of its keys does not matter."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a rename survives a power cut.

    Does nothing on a system that can't open folders, such as Windows.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems can't sync a folder; at least the file itself is synced
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`. At the end, when it is on the disk, it becomes `path`.

    Text is UTF-8 with `\\n` line ends. After an error `path` is unchanged.
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
    """The process's umask. It can only be read by setting it."""
    value = os.umask(0)
    os.umask(value)
    return value


def write_error(path: Path, error: OSError) -> UserError:
    """The error for a file that can't be written."""
    reason = error.strerror or str(error)
    return UserError(
        f"{path}: can't be written ({reason}). Free disk space or check the folder's permissions, rerun.",
        "无法写入：请检查磁盘空间和目录权限，然后重新运行",
    )


def require_writable(folder: Path) -> None:
    """Make a folder and check that it can be written, now and not after hours of work.

    Raises: UserError when it can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(folder, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, completely or not at all. Raises: UserError if it can't."""
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")


def read_json(path: Path, remedy: str, chinese: str = "") -> Any:
    """The value of a JSON file.

    Args: remedy, chinese: end of the error message, and its Chinese half.
    Raises: UserError when the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing. {remedy}", chinese) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}). {remedy}", chinese) from error


def optional_part(content: object, name: str, default: Part) -> Part:
    """A value of an object that was read; the default where it is missing or of another type."""
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, type(default)) else default


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line in a single write, so that no half line is left, even after a kill.

    If a full disk takes only a part of the line, that part is removed again.
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

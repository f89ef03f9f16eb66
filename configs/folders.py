"""A folder of output: made completely beside the old one, then put in its place."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.artifacts import write_error
from configs.locks import Lock, take_lock
from configs.paths import display
from configs.schema import UserError


@contextmanager
def new_folder(output: Path, is_ours: Callable[[str], bool]) -> Iterator[Path]:
    """An empty folder beside `output`. At the end it replaces `output`; an error removes it.

    The folder is locked, and a lock ends with its process. So a locked folder is being filled by
    another process, and one without a lock is left over from a run that was killed.
    Args: is_ours: whether a file of this name in `output` may be replaced.
    Raises: UserError when another process fills it, when `output` holds other things, or when
    writing fails.
    """
    output = output.resolve()
    _check_replaceable(output, is_ours)
    folder = output.with_name(f".{output.name}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, output):
            try:
                for leftover in folder.iterdir():
                    if leftover.is_dir():
                        shutil.rmtree(leftover)
                    else:
                        leftover.unlink()
                yield folder
                _move_folder(folder, output)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        raise write_error(output, error) from error


def _check_replaceable(output: Path, is_ours: Callable[[str], bool]) -> None:
    """Raises: UserError when `output` holds other files: a wrong path must not delete them."""
    if not output.exists():
        return
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else [output.name]
    others = [name for name in names if not (output.is_dir() and is_ours(name))]
    if others:
        raise UserError(
            f"{display(output)}: holds other things ({others[0]}). Name a folder of its own with --output.",
            "该目录里有别的文件：请用 --output 另指定一个目录",
        )


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises: UserError when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock = take_lock(descriptor)
        # Between our open and our lock another process may have finished this folder and renamed
        # it. Then the name is gone, or belongs to a folder with another inode.
        replaced = lock is Lock.OURS and (not folder.exists() or folder.stat().st_ino != os.fstat(descriptor).st_ino)
        if lock is Lock.TAKEN or replaced:
            raise UserError(
                f"{display(output)}: another process is making it. Wait until it ends, then rerun.",
                "另一个进程正在生成：请等它结束后再运行",
            )
        yield
    finally:
        os.close(descriptor)


def _move_folder(folder: Path, output: Path) -> None:
    """Replace an older folder by a finished one; if that fails, the older one stays."""
    # A folder with files can't be renamed over another one, so the old one gets another name first.
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)

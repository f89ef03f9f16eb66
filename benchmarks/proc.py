"""Reads /proc, where Linux describes processes: memory, children, and who is in a session."""

from contextlib import suppress
from pathlib import Path

from configs.schema import UserError


def require(file: str, what_for: str) -> None:
    """Raises: UserError where this system has no such file.

    Call it before anything is measured.
    """
    if not Path(file).exists():
        raise UserError(f"{file}: missing. This benchmark {what_for} there: run it on Linux.")


def memory(file: str, name: str, pid: int | str = "self") -> int:
    """Bytes of a field, such as `VmRSS` in the file `status` of a process; 0 where it is missing.

    Raises: OSError where the process has ended.
    """
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10  # Linux writes kB and means KiB
    return 0


def reset_peak() -> bool:
    """Set this process's peak, `VmHWM`, to what is resident now.

    Returns: False where the kernel doesn't let us.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # it ended meanwhile
                waiting += [int(child) for child in task.read_text().split()]
    return found


def session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name of the program comes before, in brackets, and may hold spaces.
            state, _, _, number, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(number) == leader and state != "Z":  # Z: ended, but its parent has not asked yet
            found.append(int(folder.name))
    return found

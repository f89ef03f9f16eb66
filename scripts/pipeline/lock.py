"""Lock a folder that the shell has opened, waiting while another run holds it.
锁定目录，同一目录同时只运行一个任务。

    exec 9<out && python scripts/pipeline/lock.py 9 out

The lock belongs to the open descriptor, not to this process: it is held until the shell and every
child that inherited the descriptor have ended. So a trainer whose shell was killed keeps the folder
until its state is saved. Runs before anything is installed: standard library only.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.locks import Lock, take_lock


def main(argv: Sequence[str] | None = None) -> int:
    """Take the lock. A file system without locks is said so, and the run begins all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("descriptor", type=int, help="number of the open descriptor 文件描述符")
    parser.add_argument("name", help="what is locked, for messages 被锁定的目录")
    arguments = parser.parse_args(argv)
    try:
        lock(arguments.descriptor, arguments.name)
    except KeyboardInterrupt:
        return 130
    return 0


def lock(descriptor: int, name: str) -> None:
    """Lock the open file behind a descriptor; while it is taken, say so and wait."""
    got = take_lock(descriptor)
    if got is Lock.TAKEN:
        print(
            f"{name}: another run is using it; waiting until it ends (另一个任务正在使用，等待其结束) ...", flush=True
        )
        got = take_lock(descriptor, wait=True)
    if got is Lock.UNKNOWN:
        print(f"{name}: can't be locked here; make sure that no other run uses it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

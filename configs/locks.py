"""The lock of an open file or folder: who holds it, and how to wait for it."""

import fcntl
from enum import Enum


class Lock(Enum):
    """The result of an attempt to take a lock."""

    OURS = "until the descriptor is closed, also by every process that inherited it"
    TAKEN = "another process holds it"
    UNKNOWN = "this file system has no locks: that nobody works beside us is up to the user"


def take_lock(descriptor: int, *, wait: bool = False) -> Lock:
    """Take the lock of the file or folder that a descriptor has open.

    Args: wait: wait until the lock is free.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError:
        return Lock.UNKNOWN
    return Lock.OURS

"""A program at a pseudo-terminal, typed to and read from as a person would."""

import codecs
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from configs.paths import ROOT

PATIENCE_SECONDS = 120.0


def own_terminal() -> None:
    """Make standard input the terminal of this process, so that Ctrl-C reaches it as a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A child process whose three standard streams are a terminal of 80 columns."""

    def __init__(self, words: Sequence[str], *, columns: int = 80, cwd: Path = ROOT) -> None:
        self.ours, theirs = pty.openpty()
        subprocess.run(["stty", "cols", str(columns), "rows", "24"], stdin=theirs, check=True)
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        self.child = subprocess.Popen(
            [sys.executable, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=environment | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=own_terminal,
        )
        os.close(theirs)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.shown = ""
        self.read = 0
        """Characters of `shown` that `wait_for` has passed."""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.ours, keys.encode())

    def wait_for(self, text: str) -> str:
        """Read on until `text` is shown; returns what came up to its end.

        Raises: AssertionError when it never comes.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.shown[self.read :]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown[self.read :]!r}"
            if not self._receive():
                raise AssertionError(f"ended without {text!r}: {self.shown[self.read :]!r}")
        end = self.shown.index(text, self.read) + len(text)
        start, self.read = self.read, end
        return self.shown[start:end]

    def end(self) -> int:
        """Wait for the exit code; what is left to read is in `shown`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._receive():
            assert time.monotonic() < deadline, f"still running: {self.shown[self.read :]!r}"
        os.close(self.ours)
        return self.child.wait(PATIENCE_SECONDS)

    def _receive(self) -> bool:
        """Read what has come; false at the end."""
        if not select.select([self.ours], [], [], 1.0)[0]:
            return True
        try:
            block = os.read(self.ours, 65536)
        except OSError:  # Linux's way to say that nobody holds the other end any more
            return False
        self.shown += self.decoder.decode(block)
        return bool(block)

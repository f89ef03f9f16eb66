"""Progress of long work: a bar on a terminal, a few plain lines in a log."""

import shutil
import sys
import time
from typing import TextIO, TypeAlias

from tqdm import tqdm

SHARES_SHOWN = 5
"""Plain lines for the whole of the work, at most."""
SECONDS_BETWEEN_LINES = 5.0
"""The least time between two plain lines. Work that takes less writes none."""
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
"""Format of the bar. With a loss and a speed it fits 80 columns; tqdm's own format does not."""
WIDE = 110
"""A terminal with at least this many columns has room for more figures."""


def progress_bar(
    total: float,
    *,
    desc: str = "",
    unit: str = "it",
    unit_scale: bool = False,
    initial: int = 0,
    leave: bool = True,
    disable: bool = False,
    file: TextIO | None = None,
) -> "Progress":
    """A bar on a terminal, plain lines elsewhere. Both go to stderr unless `file` is given.

    Args: total: the whole of the work, in `unit`. unit_scale: show 1.2M for 1,200,000. initial: how
    much is done already. leave: keep the bar when it is full; false also means no plain lines.
    disable: show nothing.
    """
    file = file or sys.stderr
    if disable or not file.isatty():
        silent = disable or not leave
        return PlainLines(total, desc=desc, unit=unit, unit_scale=unit_scale, initial=initial, silent=silent, file=file)
    return Bar(
        total=total,
        desc=desc,
        unit=unit,
        unit_scale=unit_scale,
        initial=initial,
        leave=leave,
        file=file,
        bar_format=BAR,
        dynamic_ncols=True,
        mininterval=0.5,
    )


def is_wide() -> bool:
    """Whether the terminal has room for more than the most important figures."""
    return shutil.get_terminal_size().columns >= WIDE


class Bar(tqdm):
    """tqdm's bar, which draws only when it is due, and can print lines above itself."""

    def set_description(self, desc: str | None = None, refresh: bool | None = False) -> None:
        """As in tqdm, but without a colon, and by default it does not draw at once."""
        super().set_description_str(desc, refresh=bool(refresh))

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        """As in tqdm, but by default it does not draw at once."""
        super().set_postfix_str(s, refresh=refresh)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.write(text, file=self.fp)


class PlainLines:
    """A line for each fifth of the work. It is for logs, so it never writes a carriage return."""

    def __init__(
        self, total: float, *, desc: str, unit: str, unit_scale: bool, initial: int, silent: bool, file: TextIO
    ) -> None:
        self.total, self.desc, self.unit, self.unit_scale = total, desc, unit, unit_scale
        self.n: float = initial
        self.initial, self.silent, self.file, self.postfix = initial, silent, file, ""
        self.started = self.written = time.monotonic()
        self.shares_shown = self._share()

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _share(self) -> int:
        """Which part of SHARES_SHOWN parts of the work has been reached."""
        return int(SHARES_SHOWN * self.n / self.total) if self.total else 0

    def update(self, n: float = 1) -> None:
        """Count `n` more as done, and write a line if one is due."""
        self.n += n
        now = time.monotonic()
        if self._share() > self.shares_shown and now - self.written >= SECONDS_BETWEEN_LINES:
            self.shares_shown, self.written = self._share(), now
            self.say(self._line(now))

    def _line(self, now: float) -> str:
        """A plain line: what is done, the time it took, and the time that is left."""
        # The rest is expected to go at the mean speed until now.
        done = self.n - self.initial
        left = (now - self.started) * (self.total - self.n) / done if done > 0 else 0.0
        n, total = (tqdm.format_sizeof(x) if self.unit_scale else f"{x:,.0f}" for x in (self.n, self.total))
        percent = f"{100 * self.n / self.total:.0f}%" if self.total else ""
        times = f"{tqdm.format_interval(now - self.started)}, {tqdm.format_interval(left)} left 剩余"
        return f"{self.desc} {percent} ({n}/{total} {self.unit}) {times}{self.postfix and ', '}{self.postfix}"

    def set_description(self, desc: str) -> None:
        """Set the name of the work for the next lines."""
        self.desc = desc

    def set_postfix_str(self, s: str) -> None:
        """Set the figures for the next lines."""
        self.postfix = s

    def say(self, text: str) -> None:
        """Write a line unless this object is silent."""
        if not self.silent:
            print(text, file=self.file, flush=True)

    def close(self) -> None:
        """Does nothing; tqdm's bar has it."""


Progress: TypeAlias = Bar | PlainLines
"""What `progress_bar` returns."""

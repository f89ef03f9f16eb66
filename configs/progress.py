"""How long work shows how far it is: a bar on a terminal, a few plain lines in a log."""

import shutil
import sys
import time
from typing import TextIO, TypeAlias

from tqdm import tqdm

SHARES_SHOWN = 5
"""Plain lines of a whole piece of work."""
SECONDS_BETWEEN_LINES = 5.0
"""Work that is quicker than this writes no plain line at all."""
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
"""Fits 80 columns with a loss and a speed behind it; tqdm's own bar leaves no room."""
WIDE = 110
"""Columns from which a bar has room for more figures."""


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
    """A bar on a terminal, plain lines elsewhere; both on stderr unless `file` is given.

    Args: total: what there is to do, in `unit`. unit_scale: show 1.2M for 1,200,000. leave: keep
    the bar when it is full (plain lines: write any at all). disable: show nothing.
    """
    file = file or sys.stderr
    if disable or not file.isatty():
        silent = disable or not leave
        return PlainLines(total, desc=desc, unit=unit, unit_scale=unit_scale, initial=initial, silent=silent, file=file)
    return Bar(
        total=total, desc=desc, unit=unit, unit_scale=unit_scale, initial=initial, leave=leave, file=file,
        bar_format=BAR, dynamic_ncols=True, mininterval=0.5,
    )  # fmt: skip


def is_wide() -> bool:
    """Whether the terminal has room for more than the figures that matter most."""
    return shutil.get_terminal_size().columns >= WIDE


class Bar(tqdm):
    """tqdm's bar, in a form that leaves room for figures at 80 columns."""

    def set_description(self, desc: str | None = None, refresh: bool | None = False) -> None:
        """As tqdm's, without the colon and without drawing at once."""
        super().set_description_str(desc, refresh=bool(refresh))

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        """As tqdm's, without drawing at once."""
        super().set_postfix_str(s, refresh=refresh)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.write(text, file=self.fp)


class PlainLines:
    """A line for each fifth of the work, for logs: no carriage returns, nothing drawn."""

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
        return int(SHARES_SHOWN * self.n / self.total) if self.total else 0

    def update(self, n: float = 1) -> None:
        """So much more is done; writes a line where one is due."""
        self.n += n
        now = time.monotonic()
        if self._share() > self.shares_shown and now - self.written >= SECONDS_BETWEEN_LINES:
            self.shares_shown, self.written = self._share(), now
            self.say(self._line(now))

    def _line(self, now: float) -> str:
        done = self.n - self.initial
        left = (now - self.started) * (self.total - self.n) / done if done > 0 else 0.0
        n, total = (tqdm.format_sizeof(x) if self.unit_scale else f"{x:,.0f}" for x in (self.n, self.total))
        percent = f"{100 * self.n / self.total:.0f}%" if self.total else ""
        times = f"{tqdm.format_interval(now - self.started)}, {tqdm.format_interval(left)} left 剩余"
        return f"{self.desc} {percent} ({n}/{total} {self.unit}) {times}{self.postfix and ', '}{self.postfix}"

    def set_description(self, desc: str) -> None:
        """What is being worked on, from the next line on."""
        self.desc = desc

    def set_postfix_str(self, s: str) -> None:
        """Figures for the next line."""
        self.postfix = s

    def say(self, text: str) -> None:
        """Write a line."""
        if not self.silent:
            print(text, file=self.file, flush=True)

    def close(self) -> None:
        """Nothing is open."""


Progress: TypeAlias = Bar | PlainLines
"""What a caller shows its progress with."""

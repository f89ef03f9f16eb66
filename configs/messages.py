"""One line for two readers: English, then a short Chinese half behind ` | `.

The English says what, where and what to do. The Chinese half says what and what to do, and repeats
no path: a person finds that in the same line.
"""

import sys


def both(english: str, chinese: str) -> str:
    """A line of both halves; of the English alone where there is no Chinese."""
    return f"{english} | {chinese}" if chinese else english


def warning(english: str, chinese: str = "") -> str:
    """The line of a warning, for those who print it in a way of their own."""
    return both(f"warning: {english}", chinese)


def warn(english: str, chinese: str = "") -> None:
    """Print a warning on stderr."""
    print(warning(english, chinese), file=sys.stderr, flush=True)


SMOKE_PROFILE = "smoke"
SMOKE_NOTE = both(
    "smoke: shows that everything runs; these scores mean nothing", "冒烟测试只检查流程能否跑通，分数没有意义"
)
"""Stands below the scores of a smoke test."""

"""One line in two languages: English, then a short Chinese half after ` | `.

The English half says what, where and what to do. The Chinese half says what and what to do. It does
not repeat paths, because they are in the same line.
"""

import sys


def both(english: str, chinese: str) -> str:
    """A line of both halves; only the English if `chinese` is empty."""
    return f"{english} | {chinese}" if chinese else english


def warning(english: str, chinese: str = "") -> str:
    """The line of a warning, for callers that print it themselves."""
    return both(f"warning: {english}", chinese)


def warn(english: str, chinese: str = "") -> None:
    """Print a warning on stderr."""
    print(warning(english, chinese), file=sys.stderr, flush=True)


SMOKE_PROFILE = "smoke"
SMOKE_NOTE = both(
    "smoke: shows that everything runs; these scores mean nothing", "冒烟测试只检查流程能否跑通，分数没有意义"
)
"""The line below the scores of a smoke test."""

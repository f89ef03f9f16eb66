"""What every entry point shares: flags as users know them, one line an error, the exit codes of a good command."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from configs.schema import UserError


def parse_switch(text: str) -> bool:
    """A switch's value: 1/0, true/false, yes/no, on/off."""
    value = text.strip().lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a switch: use 1 or 0")


def split_words(name: str, text: str) -> tuple[str, ...]:
    """The words of a flag or variable that holds more flags, quoted as in a shell, but never run by one.

    Raises: UserError where a quote stays open.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{name}: can't be split into words ({error}). Close the quotes.") from None


class Parser(argparse.ArgumentParser):
    """An argument parser in which `--batch-size` and `--batch_size` are one flag, and abbreviations are refused."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Normalise the spelling of flags (never of values), then parse."""
        given = list(sys.argv[1:] if args is None else args)
        parsed: argparse.Namespace = super().parse_args([self._normalise(argument) for argument in given], namespace)
        return parsed

    def _normalise(self, argument: str) -> str:
        if not argument.startswith("--") or argument == "--":
            return argument
        name, equals, value = argument.partition("=")
        known = {option.replace("-", "_"): option for option in self._option_string_actions}
        return known.get(name.replace("-", "_"), name) + equals + value


def add_switch(group: Any, name: str, *, help: str, default: bool | None = None) -> None:
    """Add a switch in its three forms: `--name`, `--name 0|1`, and `--no-name`."""
    dest = name.lstrip("-").replace("-", "_")
    group.add_argument(
        name, dest=dest, nargs="?", const=True, default=default, type=parse_switch, metavar="0|1", help=help
    )
    group.add_argument(f"--no_{dest}", dest=dest, action="store_false", default=default, help=argparse.SUPPRESS)


class _Terminated(BaseException):
    """SIGTERM arrived; carries no message because the sender knows."""


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def run(main: Callable[[], int]) -> NoReturn:
    """Run an entry point's `main` and leave with 0, 1 (one line on stderr), 2 (usage), 130 (Ctrl-C) or 143 (SIGTERM)."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except _Terminated:
        print("stopped by SIGTERM", file=sys.stderr)
        code = 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: nothing to report
        code = 0
    except OSError as error:
        where = error.filename or "input or output"
        print(
            f"error: {where}: {error.strerror or error}. Check the path, its permissions and free space.",
            file=sys.stderr,
        )
        code = 1
    sys.exit(code)

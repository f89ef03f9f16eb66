"""What every entry point shares: how flags are spelt, one line for an error, the exit codes."""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from configs.messages import both
from configs.schema import UserError


def parse_switch(text: str) -> bool:
    """The value of a switch: 1/0, true/false, yes/no, on/off.

    Raises: ArgumentTypeError for others.
    """
    value = text.strip().lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a switch: use 1 or 0")


def split_words(name: str, text: str) -> tuple[str, ...]:
    """The words of a flag or variable that holds more flags, with quotes as in a shell.

    Raises: UserError when a quote is not closed.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(
            f"{name}: can't be split into words ({error}). Close the quotes.", "引号没有成对：请补全引号"
        ) from None


class Parser(argparse.ArgumentParser):
    """An argument parser that takes `--batch-size` for `--batch_size`, and no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse. Before that the spelling of flags is normalised, but never that of values."""
        given = [self._normalise(argument) for argument in (sys.argv[1:] if args is None else args)]
        for name, _, value in (argument.partition("=") for argument in given):
            if value == "--" and name in self._option_string_actions:  # argparse would make it an empty list
                self.error(f"argument {name}: expected a value, not --")
        parsed: argparse.Namespace = super().parse_args(self._with_texts(given), namespace)
        return parsed

    def error(self, message: str) -> NoReturn:
        """As in argparse, with a Chinese half."""
        super().error(both(message, "参数有误，用法见 --help"))

    def _with_texts(self, given: Sequence[str]) -> list[str]:
        """The arguments, with a text that begins with a hyphen joined to its flag.

        Otherwise argparse would take the text of `--prompt "-5+3=?"` for a flag.
        """
        words: list[str] = []
        for argument in given:
            before = self._option_string_actions.get(words[-1]) if words else None
            takes_text = before is not None and before.nargs is None and before.type is None and not before.choices
            if takes_text and argument.startswith("-") and not self._is_flag(argument):
                words[-1] += f"={argument}"
            else:
                words.append(argument)
        return words

    def _is_flag(self, argument: str) -> bool:
        """Whether an argument is a flag of this parser (with or without a value), or `--`."""
        return argument == "--" or argument.partition("=")[0] in self._option_string_actions

    def _normalise(self, argument: str) -> str:
        """A flag in the spelling of this parser. Other arguments stay as they are."""
        if not argument.startswith("--") or argument == "--":
            return argument
        name, equals, value = argument.partition("=")
        known = {option.replace("-", "_"): option for option in self._option_string_actions}
        return known.get(name.replace("-", "_"), name) + equals + value


def add_switch(group: Any, name: str, *, help: str, default: bool | None = None) -> None:
    """Add a switch in its three forms: `--name`, `--name 0|1` and `--no-name`."""
    dest = name.lstrip("-").replace("-", "_")
    group.add_argument(
        name, dest=dest, nargs="?", const=True, default=default, type=parse_switch, metavar="0|1", help=help
    )
    group.add_argument(f"--no_{dest}", dest=dest, action="store_false", default=default, help=argparse.SUPPRESS)


OUT_OF_MEMORY = (
    "out of memory: this machine has not as much as these settings need. Take a smaller model, --batch_size or length, or "
    "end other programs."
)
_NO_MEMORY = re.compile(
    r"(?i)out of memory|not enough memory|(?:can't|cannot|failed to) allocate|Storage size calculation"
)
"""The words of torch when a CPU, a GPU or MPS has too little memory."""


class _Terminated(BaseException):
    """SIGTERM has arrived."""


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    """Turn the signal into an exception, so that files are closed and locks released."""
    raise _Terminated


def run(main: Callable[[], int]) -> NoReturn:
    """Run the `main` of an entry point, then exit.

    Exit codes: 0; 1 with one line on stderr; 2 for wrong usage; 130 for Ctrl-C; 143 for SIGTERM.
    Any other exception is our own mistake and leaves its traceback.
    """
    signal.signal(signal.SIGTERM, _on_sigterm)
    prepare_streams()
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        code = _fail(f"error: {error.line}")
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C | 已按 Ctrl-C 停止")
        code = 130
    except _Terminated:
        _say("stopped by SIGTERM | 收到 SIGTERM，已停止")
        code = 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has ended, as `head` does
        code = 0
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise a RuntimeError
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        code = _fail(f"error: {both(OUT_OF_MEMORY, '内存不足：请减小模型、批大小或长度')}")
    except UnicodeEncodeError as error:  # in names and arguments, bytes that are not UTF-8 become half characters
        text = error.object[max(0, error.start - 40) : error.end + 40]
        what = (
            f"{text!r}: a file's name or an argument holds bytes that are no UTF-8. Rename the file, or type it again."
        )
        code = _fail(f"error: {both(what, '文件名或参数不是 UTF-8：请改名或重新输入')}")
    except OSError as error:
        where = error.filename or "input or output"
        what = f"{where}: {error.strerror or error}. Check the path, its permissions and free space."
        code = _fail(f"error: {both(what, '读写失败：请检查路径、权限和磁盘空间')}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # we are ending: a second one must not interrupt that
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the terminal was closed, and Python would print an error about it at its end
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def prepare_streams() -> None:
    """Prepare the standard streams, so that none of them can end the program with an error.

    A character that the terminal's encoding does not have is shown as `?`. Bytes that are no text
    are read as U+FFFD. A closed stream is replaced by an empty one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def silence_terminal() -> None:
    """After a terminal was closed, send all further output to nowhere."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        for number in (1, 2):
            if stat.S_ISCHR(os.fstat(number).st_mode):  # `isatty` is false for a terminal that was closed
                os.dup2(nowhere.fileno(), number)


def _say(line: str) -> None:
    """Print a line on stderr, unless it is closed."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _fail(line: str) -> int:
    """Print why a program ends. Returns: the exit code, 1.

    Processes that torchrun started mostly fail in the same way. Then only the first one prints the
    line: it creates a file, named after the line, in the folder that holds their error files. Each
    also writes the line to its own error file, so that torchrun shows it at the end of its report.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file is None:
        _say(line)
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to the others when one has failed
    path = Path(error_file)
    try:
        path.write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")
        (path.parents[1] / hashlib.sha256(line.encode("utf-8", "replace")).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return 1
    except OSError:
        pass  # a line that is printed twice is better than none
    _say(line)
    return 1

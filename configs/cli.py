"""What every entry point shares: how flags are spelt, one line an error, the exit codes."""

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
    """A switch's value: 1/0, true/false, yes/no, on/off."""
    value = text.strip().lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a switch: use 1 or 0")


def split_words(name: str, text: str) -> tuple[str, ...]:
    """The words of a flag or variable that holds more flags, quoted as in a shell.

    Raises: UserError where a quote stays open.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(
            f"{name}: can't be split into words ({error}). Close the quotes.", "引号没有成对：请补全引号"
        ) from None


class Parser(argparse.ArgumentParser):
    """An argument parser in which `--batch-size` and `--batch_size` are one flag, and abbreviations
    are refused."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Normalise the spelling of flags (never of values), then parse."""
        given = [self._normalise(argument) for argument in (sys.argv[1:] if args is None else args)]
        for name, _, value in (argument.partition("=") for argument in given):
            if value == "--" and name in self._option_string_actions:  # argparse would make an empty list of it
                self.error(f"argument {name}: expected a value, not --")
        parsed: argparse.Namespace = super().parse_args(self._with_texts(given), namespace)
        return parsed

    def error(self, message: str) -> NoReturn:
        """As argparse's, with a Chinese half."""
        super().error(both(message, "参数有误，用法见 --help"))

    def _with_texts(self, given: Sequence[str]) -> list[str]:
        """The arguments; a flag's text that begins with a hyphen, such as `--prompt "-5+3=?"`, is
        joined to the flag."""
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
        return argument == "--" or argument.partition("=")[0] in self._option_string_actions

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


OUT_OF_MEMORY = (
    "out of memory: this machine has not as much as these settings need. Take a smaller model, --batch_size or length, or "
    "end other programs."
)
_NO_MEMORY = re.compile(
    r"(?i)out of memory|not enough memory|(?:can't|cannot|failed to) allocate|Storage size calculation"
)
"""What torch says on a CPU, a GPU and MPS."""


class _Terminated(BaseException):
    """SIGTERM arrived; carries no message because the sender knows."""


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def run(main: Callable[[], int]) -> NoReturn:
    """Run an entry point's `main` and leave with 0, 1 (one line on stderr), 2 (usage), 130 (Ctrl-C)
    or 143 (SIGTERM)."""
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: nothing to report
        code = 0
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise a RuntimeError
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        code = _fail(f"error: {both(OUT_OF_MEMORY, '内存不足：请减小模型、批大小或长度')}")
    except UnicodeEncodeError as error:  # Python reads such bytes of names and arguments as half characters
        text = error.object[max(0, error.start - 40) : error.end + 40]
        what = (
            f"{text!r}: a file's name or an argument holds bytes that are no UTF-8. Rename the file, or type it again."
        )
        code = _fail(f"error: {both(what, '文件名或参数不是 UTF-8：请改名或重新输入')}")
    except OSError as error:
        where = error.filename or "input or output"
        what = f"{where}: {error.strerror or error}. Check the path, its permissions and free space."
        code = _fail(f"error: {both(what, '读写失败：请检查路径、权限和磁盘空间')}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end is near: a second one would only break it off
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a terminal that was closed: Python would tell of it on its way out
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def prepare_streams() -> None:
    """Let no stream end a program: a character that the terminal's encoding lacks is shown as `?`,
    bytes that are no text are read as U+FFFD, and a stream that is closed is empty."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def silence_terminal() -> None:
    """Let what is still written to a terminal that was closed go nowhere."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        for number in (1, 2):
            if stat.S_ISCHR(os.fstat(number).st_mode):  # of one that was closed nobody says that it is a terminal
                os.dup2(nowhere.fileno(), number)


def _say(line: str) -> None:
    """A line on stderr, if anybody still reads it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _fail(line: str) -> int:
    """Show why a program ends. Of the processes that torchrun started, which mostly fail alike, the
    first one speaks.

    Their error files lie beside each other in a folder of this attempt. The line is written there
    too, so that torchrun shows it at the end of its report.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file is None:
        _say(line)
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others as soon as one has failed
    path = Path(error_file)
    try:
        path.write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")
        (path.parents[1] / hashlib.sha256(line.encode("utf-8", "replace")).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return 1
    except OSError:
        pass  # twice is better than never
    _say(line)
    return 1

"""Errors and warnings speak two languages: English, then a short Chinese half on the same line."""

import ast
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.messages import both, warn, warning
from configs.paths import ROOT
from configs.schema import UserError

SPOKEN = ("configs", "dataset", "evaluation", "inference", "model", "scripts", "trainer", "eval_model.py")
"""Folders and files whose messages a user reads; those of benchmarks/ are for developers, in
English."""
PRINTERS = ("configs/__init__.py", "configs/cli.py", "configs/messages.py")
"""What puts the first word before a message."""
HAN = re.compile("[一-鿿]")
PROGRAM = re.compile(r"(?<![\w/.])(?<!python )(?<!bash )[\w/]+\.(?:py|sh)\b")
"""A program named without what starts it, such as `export_embeddings.py`."""
VAGUE = re.compile(r"\b[Tt]rain (?:that|the) stage|\bstage before\b|\b[Tt]rain it first")
"""Advice that leaves it to the reader which command is meant."""
LONGEST_HALF = 60
"""Characters that stand in the source of a Chinese half."""


def test_both_halves_stand_on_one_line() -> None:
    assert both("x: gone. Run y.", "文件没了：请运行 y") == "x: gone. Run y. | 文件没了：请运行 y"
    assert both("x: gone.", "") == "x: gone."
    assert warning("slow", "较慢") == "warning: slow | 较慢"
    error = UserError("x: gone. Run y.", "文件没了")
    assert (str(error), error.chinese, error.line) == ("x: gone. Run y.", "文件没了", "x: gone. Run y. | 文件没了")
    assert UserError("x").line == "x"


def test_an_error_keeps_both_halves_on_its_way_between_processes() -> None:
    assert pickle.loads(pickle.dumps(UserError("x", "某"))).line == "x | 某"


def test_a_warning_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn("x: slow.", "较慢")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "warning: x: slow. | 较慢\n")


def test_an_entry_point_prints_both_halves_of_an_error() -> None:
    program = (
        "from configs.cli import run\nfrom configs.schema import UserError\n"
        "def main():\n    raise UserError('x: broken. Run y.', '坏了：请运行 y')\nrun(main)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (1, "error: x: broken. Run y. | 坏了：请运行 y\n")


# --- the source -----------------------------------------------------------------------------------


def sources() -> list[Path]:
    """The Python files whose messages a user reads."""
    found = [
        path for name in SPOKEN for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    return sorted(path for path in found if path.relative_to(ROOT).as_posix() not in PRINTERS)


def texts_of(node: ast.AST) -> list[str]:
    """The string constants inside a node, those of f-strings too."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def faults(tree: ast.AST) -> set[tuple[int, str]]:
    """Line and fault of each message without a Chinese half."""
    return set(_faults(tree))


def _faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            texts = texts_of(node)
            if texts and re.match("(warning|error): ", texts[0]):
                yield node.lineno, "goes round configs.messages and UserError"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if name not in {"UserError", "warn", "warning"}:
            continue
        english = "{}".join(texts_of(node.args[0]))
        if name == "UserError" and (PROGRAM.search(english) or VAGUE.search(english)):
            yield node.lineno, "tells to run something without its command"
        halves = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "chinese")]
        if not halves:
            yield node.lineno, f"{name} without a Chinese half"
            continue
        written = "".join(texts_of(halves[0]))
        if written and not HAN.search(written):
            yield node.lineno, f"{name}: its Chinese half has no Chinese"
        if len(written) > LONGEST_HALF:
            yield node.lineno, f"{name}: its Chinese half is too long ({len(written)})"
        if any(" | " in text for text in texts_of(node.args[0])):
            yield node.lineno, f"{name}: a Chinese half inside the English"


def test_every_error_and_warning_has_a_chinese_half() -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in sources()
        for line, fault in sorted(faults(ast.parse(path.read_text(encoding="utf-8"))))
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    "line",
    [
        "raise UserError('x: gone. Run y.')",
        "raise schema.UserError(f'{x}: gone.')",
        "raise UserError('x: gone.', 'gone')",
        "raise UserError('x: gone. | 没了', '没了')",
        "return UserError('x: gone.', chinese='none')",
        "warn('slow')",
        "say(warning(f'{x} is slow'))",
        "raise UserError('x: gone. Rerun export_embeddings.py sft.', '没了')",
        "raise UserError(f'{x}: gone. Train the stage before again.', '没了')",
        "print('warning: slow')",
        "print(f'error: {x}')",
        f"raise UserError('x', '{'很' * (LONGEST_HALF + 1)}')",
    ],
)
def test_the_walk_finds_what_it_looks_for(line: str) -> None:
    assert faults(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "raise UserError('x: gone.', '没了')",
        "raise UserError(f'{where}: {error}', error.chinese)",
        "raise UserError('x: gone. Rerun python scripts/export_embeddings.py sft.', '没了')",
        "raise UserError(f'{x}: gone. Train it: {command}.', '没了')",
        "warn('slow', f'慢了 {n} 秒')",
    ],
)
def test_the_walk_passes_what_has_both_halves(line: str) -> None:
    assert not faults(ast.parse(line))

"""docs/architecture.md shows every file, with the first line that the file says of itself.

Where files or their first lines have changed, write the tree anew:

    python -m tests.test_architecture
"""

import ast
import re
from pathlib import Path

import pytest

from configs.paths import ROOT

PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = (
    "configs", "dataset", "model", "inference", "evaluation", "trainer", "scripts", "rustbpe", "benchmarks", "tests",
)  # fmt: skip
ALONE = ("eval_model.py",)
WITHOUT_LINE = {"target", "fuzz", "__pycache__", "reference"}
"""Folders that the tree leaves out: what is built, and data of tests."""
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- end of the tree -->"


def first_line(path: Path) -> str:
    """What a file says of itself in its first line of prose."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    comment = {".rs": r"//! (.*)", ".sh": r"# (.*)", ".yaml": r"# (.*)"}[path.suffix]
    found = re.search(rf"^{comment}$", text, re.MULTILINE)
    return found[1] if found else ""


def is_shown(path: Path) -> bool:
    """Whether a file has a line in the tree.

    A test of one file has none: it is named after that file.
    """
    below = path.relative_to(ROOT)
    if below.parts[0] == "tests" and below.name.startswith("test_") and len(below.parts) > 2:
        return False
    is_table = path.suffix == ".yaml" and below.parts[0] != "configs"  # beside the program that reads it
    return not (WITHOUT_LINE & set(below.parts) or is_table or path.name == "__init__.py")


def entries(folder: Path, depth: int) -> list[str]:
    """The lines of a folder and all below it."""
    own = folder / "__init__.py"
    lines = [f"{'  ' * depth}{folder.name}/".ljust(30) + (first_line(own) if own.exists() else "")]
    files = [
        path for path in sorted(folder.iterdir()) if path.suffix in {".py", ".rs", ".sh", ".yaml"} and is_shown(path)
    ]
    lines += [f"{'  ' * (depth + 1)}{path.name}".ljust(30) + first_line(path) for path in files]
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in WITHOUT_LINE):
        shown = entries(below, depth + 1)
        lines += shown if len(shown) > 1 or shown[0].strip().count("  ") else []
    return lines


def tree() -> str:
    """The tree, a line a file."""
    lines = [line for folder in FOLDERS for line in entries(ROOT / folder, 0)]
    lines += [name.ljust(30) + first_line(ROOT / name) for name in ALONE]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def test_the_page_shows_every_file_with_its_own_first_line() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page.partition(BEGIN)[2].partition(END)[0]
    assert shown == tree(), "run python -m tests.test_architecture"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_says_what_one_finds_in_it(folder: str) -> None:
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in {".py", ".rs", ".sh"} and is_shown(path):
            assert first_line(path), path


def test_a_test_stands_where_the_file_does_that_it_tests() -> None:
    """tests/dataset/mix/test_scan.py tests dataset/mix/scan.py; so would
    test_scan_of_a_folder.py."""
    for path in (ROOT / "tests").glob("*/**/test_*.py"):
        folder = ROOT / path.relative_to(ROOT / "tests").parent
        names = {file.stem for place in (folder, folder / "src") if place.is_dir() for file in place.iterdir()}
        name = path.stem.removeprefix("test_")
        assert any(f"{name}_".startswith(f"{known}_") for known in names), path


@pytest.mark.parametrize("folder", [*FOLDERS[:-1], "eval_model.py"])
def test_no_file_is_too_long_to_read_at_once(folder: str) -> None:
    start = ROOT / folder
    for path in [start] if start.is_file() else start.rglob("*"):
        if path.suffix in {".py", ".rs"} and not WITHOUT_LINE & set(path.relative_to(ROOT).parts):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + tree() + END + rest.partition(END)[2], encoding="utf-8")

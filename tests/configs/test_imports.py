"""Imports point one way, settings load without torch, and the requirements are stated alike everywhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "configs": set(),
    "dataset": {"configs"},
    "model": {"configs"},
    "trainer": {"configs", "dataset", "model"},
    "scripts": {"configs", "dataset", "model", "trainer"},
}
"""Package -> the others of ours that it may import."""


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        ours = {name.split(".")[0] for name in imports_of(path)} & {*PACKAGES, "eval_model"}
        assert ours - {package} <= PACKAGES[package], path
        recipes = {name for name in imports_of(path) if name.startswith("trainer.train_")}
        assert not recipes, f"{path} imports a recipe"


@pytest.mark.parametrize(
    "module", ["configs.stages", "configs.flags", "scripts.stage", "scripts.doctor", "dataset.mix"]
)
def test_what_the_pipeline_asks_often_imports_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_no_entry_file_bears_the_name_of_a_standard_module() -> None:
    for folder in ("scripts", "trainer"):
        assert not {path.stem for path in (ROOT / folder).glob("*.py")} & sys.stdlib_module_names


def test_pyproject_and_requirements_state_the_same_core() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[[^\n]*\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert block
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert re.findall(r'"(.+?)"', block[1]) == [line for line in lines if line and not line.startswith("#")]

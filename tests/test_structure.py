"""The tree: imports point one way, settings need no torch, and no helper is homeless."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.paths import ROOT

MAY_IMPORT = {
    "configs": set(),
    "dataset": {"configs"},
    "model": {"configs"},
    "inference": {"configs", "dataset", "model"},
    "evaluation": {"configs", "dataset", "model", "inference"},
    "trainer": {"configs", "dataset", "model", "inference", "evaluation"},
    "scripts": {"configs", "dataset", "model", "inference", "evaluation", "trainer"},
    "eval_model.py": {"configs", "dataset", "model", "inference"},
}
"""Folder or file -> what else of ours it may import."""


def files_of(name: str) -> list[Path]:
    """The Python files of a folder, or the file itself."""
    path = ROOT / name
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def modules_imported(path: Path) -> set[str]:
    """All modules that a file imports anywhere, submodules named by `from package import module`
    included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import breaks when the file is run from its folder"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_one_way(name: str) -> None:
    ours = {entry.removesuffix(".py") for entry in MAY_IMPORT}
    assert files_of(name)
    for path in files_of(name):
        others = {module.split(".")[0] for module in modules_imported(path)} & ours - {name.removesuffix(".py")}
        assert others <= MAY_IMPORT[name], path


def module_name(path: Path) -> str:
    """How a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_no_file_imports_itself_through_others(name: str) -> None:
    """Imports for types alone count too."""
    imported = {module_name(path): modules_imported(path) for path in files_of(name)}
    left = {module: others & imported.keys() - {module} for module, others in imported.items()}
    while leaves := [module for module, others in left.items() if not others]:
        left = {module: others - set(leaves) for module, others in left.items() if module not in leaves}
    assert not left, f"a circle among {sorted(left)}"


def test_training_validation_and_evaluation_take_likelihoods_from_one_place() -> None:
    # A divergence compares whole distributions, of two models, so it has a place of its own.
    places = {ROOT / "model" / "likelihood.py", ROOT / "trainer" / "divergence.py"}
    for name in ("inference", "model", "evaluation", "trainer"):
        for path in files_of(name):
            names = set(re.findall(r"log_softmax|cross_entropy|nll_loss", path.read_text(encoding="utf-8")))
            assert not names or path in places, path


def test_nothing_imports_a_recipe_or_a_script() -> None:
    for name in MAY_IMPORT:
        for path in files_of(name):
            for module in modules_imported(path):
                assert not module.startswith("trainer.train_"), path
                assert name == "scripts" or not module.startswith("scripts"), path


def test_the_settings_import_no_torch() -> None:
    for path in files_of("configs"):
        assert not {module.split(".")[0] for module in modules_imported(path)} & {"torch", "numpy"}, path


def test_asking_what_is_done_loads_no_torch() -> None:
    program = "import sys, scripts.pipeline.book; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_no_helper_lives_in_a_file_or_folder_named_utils() -> None:
    for name in MAY_IMPORT:
        for path in files_of(name):
            assert not {"utils", "util", "helpers", "common"} & {path.stem, *path.relative_to(ROOT).parts}, path


@pytest.mark.parametrize("module", ["scripts.pipeline.ask", "scripts.doctor", "dataset.mix.build"])
def test_what_the_pipeline_asks_often_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_no_entry_file_bears_the_name_of_a_standard_module() -> None:
    for folder in ("scripts", "trainer"):
        assert not {path.stem for path in (ROOT / folder).glob("*.py")} & sys.stdlib_module_names


def test_pyproject_and_requirements_state_the_same_core() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[[^\n]*\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert block
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert re.findall(r'"(.+?)"', block[1]) == [line for line in lines if line and not line.startswith("#")]


ROOMS = (*MAY_IMPORT, "benchmarks", "tests")
"""What holds Python files of ours."""


def unformatted_lines(path: Path) -> set[int]:
    """Lines that end in `# fmt: skip`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# fmt: skip")}


def is_table(value: ast.expr | None) -> bool:
    """Whether an expression is data laid out in rows: a literal collection, or several joined."""
    if isinstance(value, ast.BinOp):
        return is_table(value.left) and is_table(value.right)
    if isinstance(value, ast.Call) and len(value.args) == 1 and not value.keywords:  # frozenset([...])
        return is_table(value.args[0])
    return isinstance(value, ast.List | ast.Tuple | ast.Dict | ast.Set)


@pytest.mark.parametrize("name", ROOMS)
def test_only_tables_are_kept_from_the_formatter(name: str) -> None:
    for path in files_of(name):
        tables = {
            node.end_lineno
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.Return) and is_table(node.value)
        }
        assert unformatted_lines(path) <= tables, path


@pytest.mark.parametrize("name", ROOMS)
def test_no_choice_stands_inside_a_choice(name: str) -> None:
    """`a if x else b if y else c` takes a reader three readings."""
    for path in files_of(name):
        choices = [
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.IfExp)
        ]
        for choice in choices:
            inside = [node for part in (choice.test, choice.body, choice.orelse) for node in ast.walk(part)]
            assert not any(isinstance(node, ast.IfExp) for node in inside), f"{path}:{choice.lineno}"

"""`scripts/serve.sh`: the Python of the environment, its flags passed on, one line without one."""

import os
import subprocess
from pathlib import Path

from configs.paths import ROOT

SCRIPT = ROOT / "scripts" / "serve.sh"
SERVER = [str(ROOT / "scripts" / "web_demo.py"), "--port", "8000"]


def served(venv: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The script, run with an environment."""
    environment = {**os.environ, "VENV_DIR": str(venv)}
    return subprocess.run(["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True, check=False)


def fake_python(venv: Path, program: str) -> None:
    """An environment whose Python is this shell program."""
    (venv / "bin").mkdir(parents=True)
    path = venv / "bin" / "python"
    path.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_server_is_started_with_the_flags_that_are_given(tmp_path: Path) -> None:
    fake_python(tmp_path / "venv", '[ "$1" = -c ] || printf "%s\\n" "$@"')
    shown = served(tmp_path / "venv", "--port", "9", "--api_key", "a b").stdout.splitlines()
    assert shown == [*SERVER, "--port", "9", "--api_key", "a b"]  # of two ports the last one counts


def test_packages_that_are_missing_are_installed_first(tmp_path: Path) -> None:
    fake_python(tmp_path / "venv", '[ "$1" = -c ] && exit 1; echo "$@"')
    done = served(tmp_path / "venv")
    assert "-m pip install --quiet fastapi>=0.115 uvicorn>=0.30" in done.stderr and "正在安装" in done.stderr
    assert done.stdout.split() == SERVER


def test_without_an_environment_it_says_what_makes_one(tmp_path: Path) -> None:
    done = served(tmp_path / "none")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "bash scripts/run.sh" in done.stderr and " | " in done.stderr

"""Entry points end with the exit codes that scripts around them rely on."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from configs.cli import Parser

ROOT = Path(__file__).resolve().parents[2]


def end_of(body: str) -> subprocess.CompletedProcess[str]:
    """Run an entry point with this body of `main`."""
    program = "import os, signal\nfrom configs.cli import Parser, run\nfrom configs.schema import UserError\n"
    program += f"def main():\n{textwrap.indent(textwrap.dedent(body), '    ')}\nrun(main)\n"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return 0", 0, ""),
        ("raise UserError('x: broken. Mend it.')", 1, "error: x: broken. Mend it.\n"),
        ("open('/no/such/file')", 1, "error: /no/such/file: No such file or directory"),
        ("Parser().parse_args(['--what'])", 2, "unrecognized arguments: --what"),
        ("os.kill(os.getpid(), signal.SIGINT)\nreturn 0", 130, "stopped by Ctrl-C | 已按 Ctrl-C 停止\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)\nreturn 0", 143, "stopped by SIGTERM | 收到 SIGTERM，已停止\n"),
    ],
)
def test_an_entry_point_ends_with_its_code_and_one_line(body: str, code: int, message: str) -> None:
    result = end_of(body)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = "from configs.cli import run\ndef main():\n    print('x' * 1000000)\n    return 0\nrun(main)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_sigterm_is_told_from_a_kill() -> None:
    assert end_of("os.kill(os.getpid(), signal.SIGKILL)").returncode == -signal.SIGKILL


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "gbk"])
def test_what_a_terminal_can_not_show_is_a_question_mark(encoding: str) -> None:
    program = "import sys\nfrom configs.cli import run\n"
    program += "def main():\n    print('好😀\\ufffd')\n    print('好😀', file=sys.stderr)\n"
    shown = subprocess.run(
        [sys.executable, "-c", program + "    return 0\nrun(main)\n"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    known = "好" if encoding == "gbk" else "?"
    assert shown.returncode == 0
    assert shown.stdout.decode(encoding) == f"{known}??\n"
    assert shown.stderr.decode(encoding) == f"{known}?\n"


def test_bytes_that_are_no_text_are_read_as_replacement_characters() -> None:
    program = "from configs.cli import run\ndef main():\n    print(ascii(input()))\n    return 0\nrun(main)\n"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        input=b"a\xff\n",
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, b"'a\\ufffd'\n", b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_empty(closed: str) -> None:
    program = (
        "import sys; from configs.cli import run; run(lambda: print(sys.stdin.read(), file=sys.stderr) or print() or 0)"
    )
    shown = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        input="",
        check=False,
    )
    assert shown.returncode == 0
    assert shown.stderr.strip() == ""


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    program = "from configs.cli import run\ndef main():\n    print('x' * 10)\n    return 0\nrun(main)\n"
    with Path("/dev/full").open("w") as full:
        shown = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: input or output: No space left")
    assert shown.stderr.count("\n") == 1


def parser() -> Parser:
    """A parser with a text, a number and a switch."""
    made = Parser()
    made.add_argument("--prompt")
    made.add_argument("--max_new_tokens", type=int)
    return made


def test_a_text_may_begin_with_a_hyphen() -> None:
    for words in (["--prompt", "-5+3等于多少？"], ["--prompt=-5+3等于多少？"]):
        assert parser().parse_args(words).prompt == "-5+3等于多少？"
    with pytest.raises(SystemExit):
        parser().parse_args(["--prompt", "--max-new-tokens", "3"])  # a known flag is not taken for the text
    assert parser().parse_args(["--max-new-tokens", "-3"]).max_new_tokens == -3


def test_processes_that_fail_alike_say_it_once_and_torchrun_is_told(tmp_path: Path) -> None:
    said = []
    for rank, message in enumerate(["x: broken.", "x: broken.", "y: broken too."]):
        folder = tmp_path / "attempt_0" / str(rank)
        folder.mkdir(parents=True)
        program = "from configs.cli import run\nfrom configs.schema import UserError\n"
        program += f"def main():\n    raise UserError({message!r})\n"
        shown = subprocess.run(
            [sys.executable, "-c", program + "run(main)\n"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TORCHELASTIC_ERROR_FILE": str(folder / "error.json"), "RANK": str(rank)},
        )
        assert shown.returncode == 1
        assert json.loads((folder / "error.json").read_text())["message"] == f"error: {message}"
        said.append(shown.stderr)
    assert said == ["error: x: broken.\n", "", "error: y: broken too.\n"]


@pytest.mark.parametrize("package", ["torch", "yaml"])
def test_a_python_without_our_packages_names_the_one_that_has_them(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module', name={package!r})\n")
    (tmp_path / "venv" / "bin").mkdir(parents=True)

    def message() -> str:
        shown = subprocess.run(
            [sys.executable, "eval_model.py", "--prompt", "你好 吗"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "VENV_DIR": str(tmp_path / "venv")},
        )
        assert shown.returncode == 1
        return shown.stderr

    made = f"bash {ROOT}/scripts/run.sh --until-stage env"
    half = " | 缺少依赖：请改用给出的命令\n"
    assert message() == f"error: {package}: not installed for {sys.executable}. Make the environment: {made}{half}"
    python = tmp_path / "venv" / "bin" / "python"
    python.touch()
    python.chmod(0o755)
    assert message().endswith(f" Run it with the environment's Python: {python} eval_model.py --prompt '你好 吗'{half}")


def test_another_missing_module_keeps_its_traceback() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import configs, nowhere"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" in shown.stderr


def test_a_second_sigterm_does_not_break_off_the_end_of_a_program() -> None:
    program = (
        "import atexit, os, signal\nfrom configs.cli import run\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "def main():\n    os.kill(os.getpid(), signal.SIGTERM)\n    return 0\nrun(main)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (143, "stopped by SIGTERM | 收到 SIGTERM，已停止\n")


@pytest.mark.parametrize(
    "body",
    [
        "raise MemoryError",
        "raise RuntimeError('[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can\\'t allocate memory: you tried')",
        "raise RuntimeError('Storage size calculation overflowed with sizes=[9223372036854775807, 16]')",
        "raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
    ],
)
def test_too_little_memory_is_one_line(body: str) -> None:
    done = end_of(body)
    assert done.returncode == 1
    assert done.stderr.startswith("error: out of memory") and done.stderr.count("\n") == 1


def test_a_line_end_in_a_name_does_not_split_the_line() -> None:
    done = end_of("raise UserError('a\\nb.jsonl: no such file.')")
    assert done.stderr == "error: a b.jsonl: no such file.\n"


def test_two_hyphens_are_no_value_of_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="x")
    parser.add_argument("--seed", type=int)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--seed=--"])
    assert stop.value.code == 2
    assert "argument --seed: expected a value" in capsys.readouterr().err


def test_bytes_that_are_no_text_in_a_name_are_one_line() -> None:
    done = end_of("open(os.devnull, 'w', encoding='utf-8').write('sft_\\udcd6\\udcd0.jsonl')")
    assert done.returncode == 1
    assert done.stderr.startswith(
        r"error: 'sft_\udcd6\udcd0.jsonl': a file's name or an argument holds bytes that are no UTF-8"
    )

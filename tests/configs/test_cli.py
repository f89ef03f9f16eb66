"""Entry points end with the exit codes that scripts around them rely on."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

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
        ("os.kill(os.getpid(), signal.SIGINT)\nreturn 0", 130, "stopped by Ctrl-C\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)\nreturn 0", 143, "stopped by SIGTERM\n"),
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

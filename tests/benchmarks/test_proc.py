"""What is read from /proc: memory, children, sessions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import proc
from configs.schema import UserError

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")


def test_memory_is_told_in_bytes_and_a_field_that_is_missing_is_nothing() -> None:
    resident, peak = proc.memory("status", "VmRSS"), proc.memory("status", "VmHWM")
    assert 1 << 20 < resident <= peak
    assert proc.memory("smaps_rollup", "Pss", os.getpid()) > 1 << 20
    assert proc.memory("status", "NoSuchField") == 0


def test_a_process_and_its_children_are_found_and_so_is_their_session() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout and process.stdout.readline() == b"1\n"  # the child runs
        assert len(proc.tree(process.pid)) == 2
        assert set(proc.tree(process.pid)) == set(proc.session(process.pid))
        process.communicate(b"\n")
    assert proc.session(process.pid) == []


def test_a_system_without_the_file_is_refused() -> None:
    proc.require("/proc/self/status", "reads a process's memory")
    with pytest.raises(UserError, match=r"/proc/none: missing. This benchmark finds processes there: run it on Linux"):
        proc.require("/proc/none", "finds processes")

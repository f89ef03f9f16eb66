"""A run is a process of its own, in a folder and with compiled code of its own."""

import sys
from pathlib import Path

import pytest

from benchmarks.training.processes import started
from tests.benchmarks.training.test_arms import bench_in


def test_a_program_does_not_outlive_an_error_beside_it(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        started(bench_in(tmp_path), lambda folder: [sys.executable, "-c", "import time; time.sleep(600)"]) as running,
    ):
        raise RuntimeError
    assert running[0].process.returncode == -9
    assert not running[1].exists()


def test_each_run_compiles_afresh(tmp_path: Path) -> None:
    shown = "import os; print(os.environ['TORCHINDUCTOR_CACHE_DIR'], os.environ.get('OMP_WAIT_POLICY'))"
    seen = []
    for own_waiting in (False, True):
        command = [sys.executable, "-c", shown]
        with started(bench_in(tmp_path), lambda folder, c=command: c, own_waiting=own_waiting) as (program, folder):
            program.wait()
            cache, policy = program.log.read_text().split()
            assert Path(cache).parent == folder and not Path(cache).exists()
            seen.append((cache, policy))
    assert seen[0][0] != seen[1][0]
    assert [policy for _, policy in seen] == ["passive", "None"]

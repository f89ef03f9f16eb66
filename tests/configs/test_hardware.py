"""Cores and memory are those of the container, if it has fewer than the machine."""

import os
from pathlib import Path

import pytest

from configs import hardware
from configs.hardware import Memory, memory, num_cores

GB = 1 << 30
MEMINFO = f"MemTotal: {64 * GB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {48 * GB // 1024} kB\n"


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def system(root: Path, groups: str, **files: str) -> Path:
    """A root folder with the process's control groups and their files."""
    names = {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups}
    names |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in names.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpu_max(root: Path, quota: str) -> Path:
    """A container of version 2, which sees its own group as the root of the tree."""
    return system(root, "0::/\n", **{"cpu.max": f"{quota}\n"})


QUOTAS = [
    ("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("140000 100000", 1), ("50000 100000", 1),
    ("1000 100000", 1), ("350000 50000", 7), ("9900000 100000", 8), ("", 8), ("nonsense", 8), ("200000", 8),
    ("200000 0", 8),
]  # fmt: skip
"""Content of `cpu.max` and the cores that it allows, on a machine with 8."""


@pytest.mark.parametrize(("quota", "cores"), QUOTAS)
def test_cores_follow_the_quota_of_a_container_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    assert num_cores(cpu_max(tmp_path, quota)) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("300000", "100000", 3), ("-1", "100000", 8), ("50000", "100000", 1), ("9", "", 8)]
)
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("seen", ["", "docker/1a2b"], ids=["own root", "host's path"])
def test_cores_follow_the_quota_of_a_container_of_version_1(
    tmp_path: Path, quota: str, period: str, cores: int, mount: str, seen: str
) -> None:
    where = f"{mount}/{seen}".rstrip("/")
    files = {f"{where}/cpu.cfs_quota_us": f"{quota}\n", f"{where}/cpu.cfs_period_us": f"{period}\n"}
    root = system(tmp_path, "5:cpuset:/docker/1a2b\n4:cpu,cpuacct:/docker/1a2b\n1:name=systemd:/docker/1a2b\n", **files)
    assert num_cores(root) == cores


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    files = {"user.slice/cpu.max": "300000 100000", "user.slice/run.scope/cpu.max": "max 100000"}
    root = system(tmp_path, "0::/user.slice/run.scope\n", **files)
    assert num_cores(root) == 3
    (root / "sys/fs/cgroup/user.slice/run.scope/cpu.max").write_text("100000 100000")
    assert num_cores(root) == 1
    (root / "sys/fs/cgroup/other").mkdir()
    (root / "sys/fs/cgroup/other/cpu.max").write_text("50000 100000")  # not ours
    (root / "sys/fs/cgroup/user.slice/run.scope/cpu.max").write_text("200000 100000")
    assert num_cores(root) == 2


def test_cores_are_those_that_the_process_may_run_on_where_no_container_limits_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert num_cores(tmp_path) == 8
    assert num_cores(cpu_max(tmp_path, "500000 100000")) == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert num_cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_cores(tmp_path / "nothing") == 1


VERSION_2 = {"memory.max": f"{8 * GB}\n", "memory.current": f"{5 * GB}\n"}


def test_memory_is_that_of_the_machine_without_a_container(tmp_path: Path) -> None:
    assert memory(system(tmp_path, "0::/\n")) == Memory(64 * GB, 48 * GB)
    assert memory(system(tmp_path, "0::/\n", **VERSION_2 | {"memory.max": "max\n"})) == Memory(64 * GB, 48 * GB)


def test_memory_is_that_of_a_container_of_version_2_and_files_kept_from_the_disk_count_as_free(tmp_path: Path) -> None:
    assert memory(system(tmp_path, "0::/\n", **VERSION_2)) == Memory(8 * GB, 3 * GB)
    kept = {"memory.stat": f"anon {GB}\ninactive_file {4 * GB}\nactive_file 7\n"}
    assert memory(system(tmp_path, "0::/\n", **VERSION_2 | kept)) == Memory(8 * GB, 7 * GB)


def test_memory_is_that_of_a_container_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/lxc/memory.limit_in_bytes": f"{6 * GB}\n", "memory/lxc/memory.usage_in_bytes": f"{5 * GB}\n",
        "memory/lxc/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * GB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": f"{50 * GB}\n",
    }  # fmt: skip
    assert memory(system(tmp_path, "7:memory:/lxc\n0::/\n", **files)) == Memory(6 * GB, 3 * GB)


def test_a_container_that_is_full_or_wider_than_the_machine_leaves_no_nonsense(tmp_path: Path) -> None:
    full = {"memory.max": f"{8 * GB}\n", "memory.current": f"{9 * GB}\n"}
    assert memory(system(tmp_path, "0::/\n", **full)) == Memory(8 * GB, 0)
    wide = {"memory.max": f"{900 * GB}\n", "memory.current": f"{9 * GB}\n"}
    assert memory(system(tmp_path, "0::/\n", **wide)) == Memory(64 * GB, 48 * GB)


def test_without_a_figure_of_what_is_free_half_of_the_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * GB // 4096}.__getitem__)
    assert memory(tmp_path) == Memory(4 * GB, 2 * GB)

    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert memory(tmp_path) is None


def test_this_machine_has_cores_and_memory() -> None:
    ours = hardware.memory()
    assert ours is not None
    assert 0 < ours.free <= ours.total
    assert num_cores() >= 1

"""What memory and disk are free: by files as the system has them, in containers and jobs of both kinds."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from jclip.machine import available, memory_limit, process_times, ranks

MIB = 1 << 20
Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A folder that stands for /proc, of a machine with 8,000 MiB free."""
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {8000 * 1024} kB\n")
    monkeypatch.setattr(available, "_PROC", tmp_path)
    monkeypatch.delenv(available.SIDE_PROCESSES, raising=False)
    return tmp_path


def group(system: Path, own: str, root: str, kind: str, options: str, limits: dict[str, dict[str, object]]) -> None:
    """Writes a control group of which `root` is seen at system/groups. limits: file → content, by folder below that."""
    (system / "self/cgroup").write_text(f"3:cpu:/elsewhere\n{own}\n")
    mount = f"31 23 0:28 {root} {system}/groups rw,relatime shared:4 - {kind} {kind} {options}"
    (system / "self/mountinfo").write_text(f"30 23 0:27 / /proc rw - proc proc rw\n{mount}\n")
    for folder, files in limits.items():
        place = system / "groups" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (place / name).write_text(f"{content}\n")


def test_a_machine_without_limits(system):
    assert (available.memory(), available.group_limit()) == (8000 * MIB, float("inf"))
    (system / "meminfo").unlink()
    assert available.memory() == float("inf")


def test_the_narrowest_group_of_version_2(system):
    statistics = f"anon 77\ninactive_file {200 * MIB}\nactive_file {100 * MIB}\nfile 1"
    job = {"memory.max": 2000 * MIB, "memory.current": 1500 * MIB, "memory.stat": statistics}
    group(system, "0::/job/step", "/", "cgroup2", "rw", {"job": job, "job/step": {"memory.max": "max"}})
    assert (available.memory(), available.group_limit()) == (800 * MIB, 2000 * MIB)
    step = {"memory.max": 900 * MIB, "memory.current": 650 * MIB, "memory.stat": "anon 1"}
    group(system, "0::/job/step", "/", "cgroup2", "rw", {"job/step": step})
    assert (available.memory(), available.group_limit()) == (250 * MIB, 900 * MIB)


@pytest.mark.parametrize(("root", "below"), [("/docker/a1", "."), ("/", "docker/a1")])
def test_a_container_of_version_1(system, root, below):
    files = {
        "memory.limit_in_bytes": 700 * MIB,
        "memory.usage_in_bytes": 90 * MIB,
        "memory.stat": f"total_inactive_file {MIB}",
    }
    group(system, "4:hugetlb,memory:/docker/a1", root, "cgroup", "rw,memory", {below: files})
    assert (available.memory(), available.group_limit()) == (611 * MIB, 700 * MIB)
    (system / "groups" / below / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert (available.memory(), available.group_limit()) == (8000 * MIB, float("inf"))


def test_processes_that_share_a_work_share_the_memory(system, monkeypatch):
    monkeypatch.setenv(available.SIDE_PROCESSES, "5")
    assert available.memory() == 1600 * MIB
    monkeypatch.setattr(ranks, "_now", ranks.Ranks(3, 16, 3, 8, "host"))
    assert available.memory() == 1000 * MIB


def test_a_dry_run_names_what_does_not_fit(system, monkeypatch, tmp_path):
    monkeypatch.setattr(process_times, "resident", lambda _: 100.0 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(9, 9, 50 * MIB))
    new, cache = tmp_path / "not/there/yet", tmp_path
    assert available.shortages({1: 4050 * MIB, 2: 8100 * MIB}, {new: 30 * MIB, cache: 20 * MIB}) == []
    assert available.shortages({4: 16200 * MIB, 1: 4050 * MIB, 2: 8101 * MIB}, {new: 30 * MIB, cache: 21 * MIB}) == [
        "won't fit: 2 processes would take 8,101 MiB of memory, 8,100 MiB are free here",
        f"won't fit: 51 MiB of disk are needed, 50 MiB are free where {new} is",
    ]
    group(
        system,
        "0::/",
        "/",
        "cgroup2",
        "rw",
        {".": {"memory.max": 400 * MIB, "memory.current": 130 * MIB, "memory.stat": ""}},
    )
    assert available.shortages({1: 380 * MIB}, {}) == [
        "won't fit: this would take 380 MiB of memory, 370 MiB are free here (the limit of this container or job is 400 MiB)"
    ]


def test_a_step_that_takes_more_than_is_free_is_said_before_it(system, monkeypatch, capsys):
    monkeypatch.setattr(ranks, "_now", ranks.Ranks(0, 2, 0, 2, "host"))
    memory_limit.warn_of_memory(4000 * MIB, "a training step")
    assert capsys.readouterr().err == ""
    memory_limit.warn_of_memory(4001 * MIB, "a training step")
    assert capsys.readouterr().err == (
        "a training step takes about 4,001 MiB of memory by each of 2 ranks, and 8,000 MiB are free here: the system may end "
        "this process\n"
    )

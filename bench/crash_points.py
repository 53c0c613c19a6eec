"""Kills a command at every operation on its files, or fills the disk there, and asks what is left.

    python bench/crash_points.py train --with kill
    python bench/crash_points.py sweep convert challenge --with kill enospc --out docs/crash_points.md

Of each command a first run is left alone and its operations are counted: opening to write, writing, syncing, renaming,
linking, removing, making folders. Then for each operation n a process is killed in front of it (within a write, half
is written), and the same command is run once more: all files must be those of the first run, but for times, and nothing
may be left beside them. With a full disk from operation n on, the command must end in one line that names a file, with
exit code 2, and then as above. `folder` and `sort` do the same for the layer of files alone, without Jittor.

The process is warmed and forked for each point; file_operations.c counts and interrupts, loaded in front of the C library.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from bench.crash_scenarios import SCENARIOS, Ended, Scenario, contents, forked

SOURCE = Path(__file__).with_name("file_operations.c")
WITH = ("kill", "enospc")
KILLED = 137
IN_MEMORY, ENOUGH = "/dev/shm", 1 << 30


@dataclass
class Table:
    """What was found of one command: operations by kind, and for each point that failed why."""

    name: str
    operations: list[str]
    points: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def rows(self) -> list[str]:
        """Lines of a Markdown table."""
        kinds = {kind: self.operations.count(kind) for kind in dict.fromkeys(self.operations)}
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        rows = []
        for way, points in self.points.items():
            right = len(points) - len(self.failures[way])
            rows.append(f"| {self.name} | {way} | {len(self.operations)} | {len(points)} | {right} | {listed} |")
        return rows


HEAD = ["| command | at each operation | operations | tried | right | which |", "|---|---|---|---|---|---|"]


def armed(root: Path, n: int, full: bool, work: Callable[[], int], journal: str = "") -> Callable[[], int]:
    """`work`, interrupted at operation n below `root`."""

    def run() -> int:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.arm(os.fsencode(f"{root}/"), n, int(full), os.fsencode(journal))
        return work()

    return run


def fresh(scenario: Scenario, root: Path) -> None:
    """The folder as it is before the command."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    scenario.prepare(root)


def fault_at(scenario: Scenario, root: Path, n: int, way: str, wanted: dict[str, bytes]) -> str:
    """What is wrong of a command that is interrupted at operation n; empty where all is right."""
    fresh(scenario, root)
    first = forked(armed(root, n, way == "enospc", lambda: scenario.run(root)))
    if way == "kill" and first.code != KILLED:
        return f"was not killed, ended with {first.code}"
    if way == "enospc" and (fault := _fault_of_full(first, root)):
        return fault
    if fault := scenario.after(root):
        return fault
    second = forked(lambda: (scenario.again or scenario.run)(root))
    if second.code:
        return f"run again, it ended with {second.code}: {second.errors[-300:]}"
    got = contents(root)
    differing = sorted(name for name in {*wanted, *got} if wanted.get(name) != got.get(name))
    return f"differs: {differing}" if differing else ""


def _fault_of_full(ended: Ended, root: Path) -> str:
    """One line that names a file, and exit code 2; 0 where only removing was left to do."""
    lines = [line for line in ended.errors.splitlines() if "No space left" in line or "Traceback" in line]
    if ended.code == 0 and not lines:
        return ""
    if ended.code != 2 or len(lines) != 1 or str(root) not in lines[0]:
        return f"a full disk ended with {ended.code}: {ended.errors[-300:]}"
    return ""


def tried(name: str, ways: Sequence[str], most: int = 0, first: int = 1) -> Table:
    """The table of a command: all points from `first` on, or `most` evenly spaced ones."""
    place = Path(os.environ["CRASH_PLACE"])
    scenario, root, journal = SCENARIOS[name](), place / "work", place / "operations.txt"
    fresh(scenario, root)
    assert not scenario.run(root)  # here, so that children find all imported, and operators compiled and loaded
    fresh(scenario, root)
    journal.unlink(missing_ok=True)
    whole = forked(armed(root, 0, False, lambda: scenario.run(root), str(journal)))
    assert whole.code == 0, whole.errors
    wanted, operations = contents(root), journal.read_text().split()
    count = len(operations)
    points = list(range(first, count + 1))
    if 1 < most < len(points):
        points = sorted({first + round(i * (count - first) / (most - 1)) for i in range(most)})
    table = Table(name, operations)
    for way in ways:
        table.points[way], table.failures[way] = points, []
        for n in points:
            if fault := fault_at(scenario, root, n, way, wanted):
                table.failures[way].append(f"{name}, {way} at {n} ({operations[n - 1]}): {fault}")
                print(table.failures[way][-1], file=sys.stderr, flush=True)
    return table


def built(folder: Path) -> Path:
    """The library that interrupts, compiled."""
    library = folder / "file_operations.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def main(argv: list[str]) -> int:
    """Prints a table; exit code 1 where a point failed."""
    p = argparse.ArgumentParser(
        "crash_points", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("commands", nargs="+", choices=SCENARIOS)
    p.add_argument("--with", dest="ways", nargs="+", choices=WITH, default=["kill"])
    p.add_argument("--points", type=int, default=0, metavar="N", help="so many evenly spaced points (default: all)")
    p.add_argument("--from", dest="first", type=int, default=1, metavar="N", help="the first point (default: 1)")
    p.add_argument("--out", metavar="FILE", help="the table as Markdown")
    args = p.parse_args(argv)
    if "CRASH_PLACE" not in os.environ:
        return _started_again(argv)
    begun, tables = time.monotonic(), [tried(name, args.ways, args.points, args.first) for name in args.commands]
    text = "\n".join([*HEAD, *(row for table in tables for row in table.rows())])
    print(text)
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    if args.out:
        Path(args.out).write_text(f"{text}\n", encoding="utf-8")
    return int(any(failures for table in tables for failures in table.failures.values()))


def _started_again(argv: list[str]) -> int:
    """The same with the library in front of the C library, one thread, and a folder of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(prefix="crash-points-", dir=_room()) as place,
    ):
        own = {"CRASH_PLACE": place, "LD_PRELOAD": str(built(Path(folder))), "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.call([sys.executable, __file__, *argv], env={**os.environ, **own, "PYTHONPATH": path})


def _room() -> str | None:
    """Memory that is a file system, if there is enough: what a kill leaves is the same there, and syncing takes no time."""
    enough = os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ENOUGH
    return IN_MEMORY if enough else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

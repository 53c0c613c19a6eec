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
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(__file__).with_name("file_operations.c")
WITH = ("kill", "enospc")
KILLED = 137
TIMES = re.compile(rb'"(seconds|time|checksum)": ("[^"]*"|[0-9.]+)|"peak_mib": \{[^}]*\}')


@dataclass
class Scenario:
    """What is run in a folder, which is made anew and prepared for each point.

    after: what must hold between the kill and the second run, returns what does not. again: the second run, if that is not
    the same. Those are run in processes of their own and return exit codes.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], int]
    again: Callable[[Path], int] | None = None
    after: Callable[[Path], str] = lambda root: ""


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
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        rows = []
        for way, points in self.points.items():
            right = len(points) - len(self.failures[way])
            rows.append(f"| {self.name} | {way} | {len(self.operations)} | {len(points)} | {right} | {told} |")
        return rows


HEAD = ["| command | at each operation | operations | tried | right | which |", "|---|---|---|---|---|---|"]


# Commands


def command(*argv: str) -> int:
    """A command of jclip's, in this process."""
    from jclip.cli import main

    return main(list(argv))


def train_scenario(config: str = "clip_adapter/smoke") -> Scenario:
    """A run with a link to it; states are saved after each epoch."""

    def run(root: Path) -> int:
        from jclip.train import loop

        loop.SAVE_SECONDS = 0.0
        return command("train", config, "--run", str(root / "runs" / "one"), "--link", str(root / "runs" / "last"))

    return Scenario(lambda root: None, run)


def sweep_scenario() -> Scenario:
    """Two recipes."""

    def run(root: Path) -> int:
        places = ["--runs", str(root / "runs"), "--out", str(root / "out")]
        return command("sweep", "zero_shot/smoke", "tip_adapter/smoke", *places)

    return Scenario(lambda root: None, run)


def convert_scenario() -> Scenario:
    """A small model onto a folder that an earlier conversion made: old or new, never half of each."""
    made = Path(tempfile.mkdtemp(prefix="convert-", dir=os.environ["CRASH_PLACE"]))
    _forked(lambda: _small_model(made / "source.safetensors"))
    source = made / "source.safetensors"
    for dtype in ("fp32", "fp16"):
        _forked(lambda dtype=dtype: _convert(source, made / dtype, dtype))
    states = [contents(made / dtype) for dtype in ("fp32", "fp16")]

    def after(root: Path) -> str:
        there = contents(root / "model")
        return "" if there in states else f"neither the old folder nor the new one: {sorted(there)}"

    return Scenario(
        lambda root: shutil.copytree(made / "fp32", root / "model"),
        lambda root: _convert(source, root / "model", "fp16"),
        after=after,
    )


def _convert(source: Path, target: Path, dtype: str) -> int:
    return command("convert", str(source), str(target), "--dtype", dtype)


def _small_model(path: Path) -> int:
    from tests.toys import SMALL_VIT, toy_file

    shutil.copyfile(toy_file(path.parent / "toy", SMALL_VIT), path)
    return 0


def challenge_scenario() -> Scenario:
    """The challenge's folder in small, one backbone, the gate and two members."""
    from tests.recipes.challenge_folder import write_folder

    made = Path(tempfile.mkdtemp(prefix="challenge-", dir=os.environ["CRASH_PLACE"]))
    _forked(lambda: _small_model(made / "vit.safetensors"))
    write_folder(made / "challenge")
    _forked(lambda: command("hold-out", str(made / "challenge"), "--count", "20", "--shots", "2"))
    settings = [
        "tune.optim={lr: 1e-3, epochs: 1, batch: 8}", "tune.every=1", "members.tip_adapter.search_steps=[5, 7]",
        "members.tip_adapter.optim={lr: 1e-2, epochs: 1, batch: 16}",
        "members.cross_modal={every: 2, augment: none, optim: {lr: 1e-3, epochs: 1, batch: 8}}", "fusion.step=0.1",
        "date='0820'", f"data.root={made / 'challenge'}", f"backbones={made / 'vit.safetensors'}",
    ]  # fmt: skip

    def run(root: Path) -> int:
        return command("challenge", *settings, "--runs", str(root / "runs"), f"out={root / 'results'}")

    return Scenario(lambda root: None, run)


# The layer of files, without Jittor


def folder_scenario() -> Scenario:
    """A run whose training is adding up: states, lines, what was learned, its evaluation, the result."""
    import numpy as np

    from jclip.paths import replacing
    from jclip.report.evaluation import write_evaluation
    from jclip.train.run import Run

    def run(root: Path) -> int:
        from jclip.errors import guarded

        return guarded(lambda: body(root), "folder")

    def body(root: Path) -> int:
        with Run(root / "run", {"recipe": "sum", "seed": 1}) as opened:
            if opened.result is not None:
                return 0
            slot, numbers, first = opened.slot("train"), np.zeros(8, np.float32), 0
            if (saved := slot.load()) is not None:
                numbers, first = saved[0]["numbers"], saved[1]["epoch"]
            opened.drop_lines("train", first)
            for epoch in range(first, 2):
                numbers = numbers + epoch
                opened.log(slot="train", epoch=epoch, loss=float(numbers.sum()))
                told = {"epoch": epoch + 1, "step": epoch + 1, "last": {}, "best": {}, "best_epoch": -1}
                slot.save({"numbers": numbers}, told)
            opened.save_learned({"numbers": numbers}, classnames=["a", "b"], width=8)
            with replacing(opened.file("words.csv")) as temporary:
                temporary.write_text("words\n")
            names = "eval.json", "predictions.csv", "result.txt", "per_class.csv", "confusion.csv"
            opened.expect(names)
            scores = np.eye(2, dtype=np.float32)[[0, 1, 1]]
            opened.finish({"top1": 1.0}, lambda _: write_evaluation(root / "run", scores, np.array([0, 1, 1]), classes))
        return 0

    classes = [f"class {i}" for i in range(101)]  # more than are drawn
    return Scenario(lambda root: None, run)


def sort_scenario(how: str = "copy") -> Scenario:
    """Photos into class folders; after a kill `unsort` takes all of it back."""
    import numpy as np

    from jclip.errors import guarded
    from jclip.report.predictions import Predictions
    from jclip.report.sorted_folders import MANIFEST, place, plan

    def prepare(root: Path) -> None:
        for number in range(3):
            photo = root / "photos" / str(number) / "x.jpg"
            photo.parent.mkdir(parents=True)
            photo.write_bytes(bytes([number]) * 3000)
            os.utime(photo, (1, 1))

    def run(root: Path) -> int:
        photos = tuple(str(root / "photos" / str(i) / "x.jpg") for i in range(3))
        predictions = Predictions(photos, ("cat", "dog"), np.eye(2)[[0, 1, 1]] * 9)
        return guarded(lambda: place(plan(predictions, root / "sorted"), root / "sorted", how) and None, "sort")

    def taken_back(root: Path) -> int:
        if (root / "sorted" / MANIFEST).exists():
            return command("unsort", str(root / "sorted" / MANIFEST))
        return 0

    def after(root: Path) -> str:
        if _forked(lambda: taken_back(root)).code:
            return "unsort failed"
        left = {name for name in contents(root) if not name.startswith("photos/")}
        left -= {"sorted/", f"sorted/.{MANIFEST}.part"}  # the latter is removed by the next start
        return f"unsort left {sorted(left)}" if left else ""

    return Scenario(prepare, run, after=after)


def unsort_scenario() -> Scenario:
    """What was sorted is taken back."""
    sort = sort_scenario()

    def prepare(root: Path) -> None:
        sort.prepare(root)
        sort.run(root)

    def run(root: Path) -> int:
        manifest = root / "sorted" / "sorted.json"
        return command("unsort", str(manifest)) if manifest.exists() else 0

    return Scenario(prepare, run)


SCENARIOS = {
    "train": train_scenario, "sweep": sweep_scenario, "convert": convert_scenario, "challenge": challenge_scenario,
    "folder": folder_scenario, "sort": sort_scenario, "link": lambda: sort_scenario("link"), "unsort": unsort_scenario,
}  # fmt: skip


# One point


@dataclass
class Ended:
    """A process: its exit code, and what it wrote to stderr."""

    code: int
    errors: str


def _forked(work: Callable[[], int]) -> Ended:
    """`work` in a child of this process."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(errors.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                code = work() or 0
            except SystemExit as e:
                code = int(e.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), errors.read().decode(errors="replace"))


def armed(root: Path, n: int, full: bool, work: Callable[[], int], journal: str = "") -> Callable[[], int]:
    """`work`, interrupted at operation n below `root`."""

    def run() -> int:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.arm(os.fsencode(f"{root}/"), n, int(full), os.fsencode(journal))
        return work()

    return run


def contents(root: Path) -> dict[str, bytes]:
    """Files below a folder, times left out; links as where they point, empty folders by name."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.fsencode(path.readlink())
        elif path.is_file():
            data = path.read_bytes()
            if path.suffix == ".json":
                data = TIMES.sub(b"", data)
            found[name] = _without_seconds(data) if path.name == "sweep.csv" else data
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def _without_seconds(table: bytes) -> bytes:
    lines = [line.split(b",") for line in table.splitlines()]
    column = lines[0].index(b"seconds")
    return b"\n".join(b",".join(cell for i, cell in enumerate(line) if i != column) for line in lines)


def fresh(scenario: Scenario, root: Path) -> None:
    """The folder as it is before the command."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    scenario.prepare(root)


def fault_at(scenario: Scenario, root: Path, n: int, way: str, wanted: dict[str, bytes]) -> str:
    """What is wrong of a command that is interrupted at operation n; empty where all is right."""
    fresh(scenario, root)
    first = _forked(armed(root, n, way == "enospc", lambda: scenario.run(root)))
    if way == "kill" and first.code != KILLED:
        return f"was not killed, ended with {first.code}"
    if way == "enospc" and (fault := _fault_of_full(first, root)):
        return fault
    if fault := scenario.after(root):
        return fault
    second = _forked(lambda: (scenario.again or scenario.run)(root))
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
    whole = _forked(armed(root, 0, False, lambda: scenario.run(root), str(journal)))
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
    sys.path.insert(0, str(ROOT))
    begun, tables = time.monotonic(), [tried(name, args.ways, args.points, args.first) for name in args.commands]
    text = "\n".join([*HEAD, *(row for table in tables for row in table.rows())])
    print(text)
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    if args.out:
        Path(args.out).write_text(f"{text}\n", encoding="utf-8")
    return int(any(failures for table in tables for failures in table.failures.values()))


def _started_again(argv: list[str]) -> int:
    """The same with the library in front of the C library, one thread, and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="crash-points-") as place:
        own = {"CRASH_PLACE": place, "LD_PRELOAD": str(built(Path(place))), "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.call([sys.executable, __file__, *argv], env={**os.environ, **own, "PYTHONPATH": path})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

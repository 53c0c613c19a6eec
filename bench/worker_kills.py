"""Kills workers of `jclip embed` at random, and asks whether the gallery has the bytes that one process makes.

    python bench/worker_kills.py [processes | scheduler …] [--kills 20] [--photos 320] [--seed 0]

processes: of `--processes 3`. scheduler: of a Dask cluster of two workers, which their nannies start again. While the command
runs, two of its workers are ended by SIGKILL, 0.2 to 4 seconds apart, when it starts as well as when it works; a run that this
ends is given again. Parts have 16 photos, pieces 4. Of each run is asked: every line of a command that ended is one of jclip's;
the gallery's files are those of one process to the byte; no photo was encoded and saved twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MODEL, PROCESSES, OF_A_RUN, MOST_AGAIN, PATIENCE = "shapes-tiny-rn", 3, 2, 20, 300
OWN_LINE = re.compile(r"jclip embed: |the process of share \d+/\d+ was ended by signal 9: it is started again")
SETTINGS = """
import json, os
import jclip.data.gallery_inputs as inputs
import jclip.features.gallery_embedding as embedding
import jclip.features.gallery_parts as parts
inputs.PART = 16
embedding.SAVE_SECONDS = 0.0
keep = parts.Parts.keep_piece
def listing(self, number, end, known):
    keep(self, number, end, known)
    with open(os.environ["KEPT"], "a") as file:
        file.write("".join(json.dumps([number, digest]) + "\\n" for digest in known.hashes))
parts.Parts.keep_piece = listing
"""


@dataclass
class Run:
    """One gallery made: kills on the way, commands that had to be given again, and what is wrong."""

    kills: int = 0
    again: int = 0
    faults: list[str] = field(default_factory=list)


class Place:
    """A folder with photos, the settings of all processes, and what one process makes."""

    def __init__(self, folder: Path, photos: int):
        from jclip.data.shapes import draw_scene

        self.folder, self.kept = folder, folder / "kept.txt"
        (folder / "photos").mkdir()
        for number in range(photos):
            draw_scene((number,), count=(1, 2)).render().save(folder / "photos" / f"{number:04d}.png")
        (folder / "sitecustomize.py").write_text(SETTINGS)
        own = {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), str(ROOT), os.environ.get("PYTHONPATH"))))}
        own |= {"KEPT": str(self.kept), "JCLIP_WORKERS": "1", "JCLIP_BATCH": "4", "OMP_NUM_THREADS": "1"}
        self.env = {**os.environ, **own}
        if (process := self.start("one", [])).wait():
            raise SystemExit(process.stderr.read())
        self.wanted = self.contents("one")

    def start(self, gallery: str, way: list[str]) -> subprocess.Popen:
        """`jclip embed` into a gallery of that name."""
        order = ["embed", "photos", "--out", gallery, "--model", MODEL, *way]
        return subprocess.Popen(
            [sys.executable, "-m", "jclip.cli", *order], cwd=self.folder, env=self.env, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def contents(self, gallery: str) -> dict[str, bytes]:
        """Files of a gallery."""
        return {path.name: path.read_bytes() for path in (self.folder / gallery).iterdir()}

    def made(self, gallery: str, way: list[str], victims, rng: random.Random, most: int) -> Run:
        """A gallery made while at most so many of its workers are killed. victims: pid of the command → pids."""
        run = Run()
        self.kept.unlink(missing_ok=True)
        while self._ended(self.start(gallery, way), run, victims, rng, most):
            run.again += 1
            if run.again > MOST_AGAIN:
                run.faults.append("does not end")
                return run
        got = self.contents(gallery)
        if differing := sorted(n for n in {*got, *self.wanted} if got.get(n) != self.wanted.get(n)):
            run.faults.append(f"differs: {differing}")
        counts = Counter(map(str, map(json.loads, self.kept.read_text().splitlines())))
        if twice := [what for what, count in counts.items() if count > 1]:
            run.faults.append(f"saved twice: {len(twice)} photos")
        return run

    def _ended(self, command: subprocess.Popen, run: Run, victims, rng: random.Random, most: int) -> int:
        begun, due = time.monotonic(), time.monotonic() + rng.uniform(0.2, 4)
        while command.poll() is None:
            time.sleep(0.02)
            if time.monotonic() > begun + PATIENCE:
                command.kill()
                run.faults.append(f"hung for {PATIENCE} s")
            if time.monotonic() > due and run.kills < most and (found := victims(command.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(found), signal.SIGKILL)
                    run.kills += 1
                due = time.monotonic() + rng.uniform(0.2, 4)
        said = command.stderr.read().splitlines()
        command.stderr.close()
        if foreign := [line for line in said if line.strip() and not OWN_LINE.match(line)]:
            run.faults.append(f"said: {foreign[-1]}")
        return command.returncode


def processes_below(root: int, mark: str) -> list[int]:
    """Pids of the processes that descend from `root` and whose command line has a mark."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        with contextlib.suppress(OSError):
            if above == root != pid and mark in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                found.append(pid)
    return sorted(found)


@contextlib.contextmanager
def cluster(place: Place) -> Iterator[tuple[str, list[int]]]:
    """A scheduler and two workers with nannies: its address, and the pids of the nannies."""
    import distributed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [
        "dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-dashboard",
        "--local-directory",
        str(place.folder / "own"),
    ]
    started = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.{name}", *rest], cwd=place.folder, env=place.env,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name, *rest in (scheduler, worker, worker)
    ]  # fmt: skip
    try:
        with distributed.Client(address, timeout="60s", set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
        yield address, [process.pid for process in started[1:]]
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def by_processes(place: Place, kills: int, rng: random.Random) -> list[Run]:
    """Runs of `--processes 3` until so many workers were killed."""
    way = ["--processes", str(PROCESSES)]
    return _runs(place, "processes", way, lambda pid: processes_below(pid, "--worker"), kills, rng)


def by_scheduler(place: Place, kills: int, rng: random.Random) -> list[Run]:
    """Runs of `--scheduler` until so many workers were killed."""
    with cluster(place) as (address, nannies):
        way = ["--scheduler", address]
        return _runs(place, "scheduler", way, lambda _: _dask_workers(nannies), kills, rng)


def _dask_workers(nannies: list[int]) -> list[int]:
    """What a nanny started, by the title that Dask gives it, or what it has before."""
    return [
        pid for nanny in nannies for mark in ("dask worker [", "spawn_main") for pid in processes_below(nanny, mark)
    ]


def _runs(place: Place, name: str, way: list[str], victims, kills: int, rng: random.Random) -> list[Run]:
    runs: list[Run] = []
    while (left := kills - sum(run.kills for run in runs)) > 0 and len(runs) < 3 * kills:
        runs.append(place.made(f"{name}-{len(runs)}", way, victims, rng, min(left, OF_A_RUN)))
        for fault in runs[-1].faults:
            print(f"{name}, run {len(runs)} ({runs[-1].kills} kills): {fault}", file=sys.stderr, flush=True)
    return runs


WAYS = {"processes": by_processes, "scheduler": by_scheduler}


def main() -> int:
    """Prints a table; exit code 1 where a run was not right."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)} (default: all)")
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--photos", type=int, default=320)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    if unknown := [way for way in args.ways if way not in WAYS]:
        sys.exit(f"no such way: {unknown[0]} (known: {', '.join(WAYS)})")
    wrong = 0
    print("| workers of | kills | galleries | right | commands given again |\n|---|---|---|---|---|")
    for way in args.ways or WAYS:
        with tempfile.TemporaryDirectory(prefix="worker-kills-") as folder:
            runs = WAYS[way](Place(Path(folder), args.photos), args.kills, random.Random(args.seed))
        right = sum(not run.faults for run in runs)
        kills, again = sum(run.kills for run in runs), sum(run.again for run in runs)
        wrong += len(runs) - right + (kills < args.kills)
        print(f"| `--{way}` | {kills} | {len(runs)} | {right} | {again} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

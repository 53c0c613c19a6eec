"""Kills ranks of `mpirun -np N jclip train` at random, and asks whether training ends as if nobody had.

    python bench/rank_kills.py [--kills 20] [--seed 0] [--epochs 30]

A small ViT is trained with captions, its state saved after each epoch that a second has passed before. While the command
runs, one of its ranks is ended by SIGKILL, 0.3 to 7 seconds after the start, when ranks join as well as when they work; then
the command is given again, of the trainings named "1, 2, 3" with another number of ranks each time. Of each training is asked:
one line of jclip's names the rank and its machine, all ranks have ended within ten seconds, none is left; each epoch is logged
once; the model has the bytes of a training that nobody killed by as many ranks, or, where their number changed, differs from
that of one process by no more than four times what two and three ranks do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
COUNTS, OF_A_TRAINING, PATIENCE, SOON, ALLOWED = (1, 2, 3), 4, 300, 10.0, 4
SETTINGS = [
    "configs/contrastive/smoke.yaml",
    "model=shapes-tiny-vit",
    "zero_shot=[]",
    "data.scenes=50",
    "data.val_scenes=7",
]
MARK, WATCH = "-m jclip.cli", "rank_watch.py"
SAID = "died without a word"


@dataclass
class Training:
    """A run of `counts` ranks in turn: how it was started, killed, and what is wrong."""

    name: str
    counts: tuple[int, ...]
    kills: int = 0
    starts: int = 0
    slowest: float = 0.0
    difference: float = 0.0
    faults: list[str] = field(default_factory=list)


class Place:
    """A folder of runs, and what trainings that nobody killed end with."""

    def __init__(self, folder: Path, epochs: int):
        self.folder, self.epochs = folder, epochs
        self.wanted = {}
        for count in COUNTS:
            run = folder / f"whole-{count}"
            command = self.start(run, count)
            _, said = command.communicate(timeout=PATIENCE)
            if command.returncode:
                raise SystemExit(said)
            self.wanted[count] = (run / "model.safetensors").read_bytes()
        self.rounding = max(self.difference(folder / f"whole-{count}") for count in COUNTS[1:])

    def start(self, run: Path, count: int) -> subprocess.Popen:
        """The command by so many ranks; by one process without mpirun."""
        from jclip.machine import open_mpi, ranks

        order = [
            sys.executable,
            "-m",
            "jclip.cli",
            "train",
            *SETTINGS,
            f"optim.epochs={self.epochs}",
            "--run",
            str(run),
        ]
        if count > 1:
            mpirun = [str(open_mpi.require_mpi().starter), "-np", str(count), "--bind-to", "none"]
            order = [*mpirun, "--map-by", ":OVERSUBSCRIBE", *order]
        own = {"OMP_NUM_THREADS": "1", "JCLIP_WORKERS": "0", "PYTHONPATH": str(ROOT)}
        given = {**ranks.without(dict(os.environ)), **own, **(open_mpi.AS_ROOT if os.geteuid() == 0 else {})}
        return subprocess.Popen(
            order, cwd=ROOT, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )

    def difference(self, run: Path) -> float:
        """The largest difference of a weight from those of one process; of keys' biases, which no score depends on, none."""
        import numpy as np

        from jclip.readers import read_weights

        one, other = (
            {k: np.array(t.read()) for k, t in read_weights(folder / "model.safetensors").items()}
            for folder in (self.folder / "whole-1", run)
        )
        found = [0.0]
        for name, array in one.items():
            moved = np.abs(array.astype("f8") - other[name].astype("f8"))
            if name.endswith("attn.in_proj_bias"):
                moved[len(moved) // 3 : 2 * len(moved) // 3] = 0
            found.append(float(moved.max(initial=0.0)))
        return max(found)

    def carry_through(self, training: Training, most: int, rng: random.Random) -> None:
        """Starts the command until it ends in order, and kills a rank on the way `most` times."""
        run, number = self.folder / training.name, rng.randrange(len(training.counts))
        while not training.faults:
            count = training.counts[number % len(training.counts)]
            number += 1
            command = self.start(run, count)
            training.starts += 1
            killed = self._killed(command, training, rng) if training.kills < most else 0.0
            try:
                _, said = command.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                command.kill()
                training.faults.append(f"hung for {PATIENCE} s")
                return
            if killed:
                self._look_at_the_end(training, run, count, time.monotonic() - killed, said)
            elif command.returncode:
                training.faults.append(f"exit code {command.returncode}: {said.strip()[-200:]}")
            else:
                self._look_at_the_result(training, run)
                return

    def _killed(self, command: subprocess.Popen, training: Training, rng: random.Random) -> float:
        """When a rank was killed; 0 where the command ended before."""
        from worker_kills import processes_below

        alone, due = command.args[0] == sys.executable, time.monotonic() + rng.uniform(0.3, 7)
        while command.poll() is None:
            time.sleep(0.02)
            if time.monotonic() < due:
                continue
            found = [command.pid] if alone else processes_below(command.pid, MARK)
            found = [pid for pid in found if alone or processes_below(pid, WATCH)]  # else it is Python that starts
            if found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(found), signal.SIGKILL)
                    training.kills += 1
                    return time.monotonic()
        return 0.0

    def _look_at_the_end(self, training: Training, run: Path, count: int, seconds: float, said: str) -> None:
        training.slowest = max(training.slowest, seconds)
        if seconds > SOON:
            training.faults.append(f"others ended {seconds:.1f} s after the kill")
        own = [line for line in said.splitlines() if line.startswith("jclip")]
        if count > 1 and (len(own) != 1 or SAID not in own[0] or f"of {count} on {os.uname().nodename}" not in own[0]):
            training.faults.append(f"said: {own}")
        if left := [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(run) in _text_of(p)]:
            training.faults.append(f"left running: {len(left)} processes")

    def _look_at_the_result(self, training: Training, run: Path) -> None:
        lines = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        if lines != list(range(self.epochs)):
            training.faults.append(f"epochs logged: {lines}")
        if left := sorted(p.name for p in run.glob("*.part")) + sorted(p.name for p in run.glob("train*.safetensors")):
            training.faults.append(f"left behind: {left}")
        training.difference = self.difference(run)
        if len(training.counts) == 1:
            if (run / "model.safetensors").read_bytes() != self.wanted[training.counts[0]]:
                training.faults.append(f"other bytes (weights differ by {training.difference:.1e} from one process's)")
        elif training.difference > ALLOWED * self.rounding:
            training.faults.append(f"weights differ by {training.difference:.1e}, of whole ones {self.rounding:.1e}")


def _text_of(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def table(trainings: Sequence[Training]) -> list[str]:
    """Rows by numbers of ranks."""
    rows = ["| ranks | kills | trainings | right | starts | slowest end after a kill |\n|---|---|---|---|---|---|"]
    for counts in dict.fromkeys(training.counts for training in trainings):
        own = [training for training in trainings if training.counts == counts]
        kills, starts = sum(t.kills for t in own), sum(t.starts for t in own)
        right, slowest = sum(not t.faults for t in own), max(t.slowest for t in own)
        rows.append(f"| {', '.join(map(str, counts))} | {kills} | {len(own)} | {right} | {starts} | {slowest:.1f} s |")
    return rows


def main() -> int:
    """Prints a table; exit code 1 where a training was not right."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, default=30)
    args = p.parse_args()
    rng, trainings = random.Random(args.seed), []
    with tempfile.TemporaryDirectory(prefix="rank-kills-") as folder:
        place = Place(Path(folder), args.epochs)
        plans = [COUNTS, (2,), COUNTS, (3,), COUNTS, (1,)]
        while (left := args.kills - sum(t.kills for t in trainings)) > 0 and len(trainings) < 3 * args.kills:
            number = len(trainings)
            trainings.append(Training(f"run-{number}", plans[number % len(plans)]))
            place.carry_through(trainings[-1], min(left, OF_A_TRAINING), rng)
            for fault in trainings[-1].faults:
                print(f"training {number} by {trainings[-1].counts}: {fault}", file=sys.stderr, flush=True)
    print("\n".join(table(trainings)))
    mixed = max((t.difference for t in trainings if len(t.counts) > 1), default=0.0)
    print(f"weights by changing ranks differ by at most {mixed:.1e} from those of one process, by 2 and 3 ranks that "
          f"nobody killed by {place.rounding:.1e}")  # fmt: skip
    return int(any(t.faults for t in trainings) or sum(t.kills for t in trainings) < args.kills)


if __name__ == "__main__":
    sys.exit(main())

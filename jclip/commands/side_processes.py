"""Other processes of this machine that do shares of a command's work: started, watched, started again where one is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from jclip.errors import DataError, JclipError, notice
from jclip.machine import available

LOST_IN_VAIN = 2  # times that a share may lose its process with nothing done since the time before
_LOOK = 0.2  # seconds
_SHARE_OF_LOOKS = 100  # times as long as it takes to count what is done, it is not counted again
_RUN = "import sys; from jclip.cli import main; sys.exit(main())"
_PATIENCE = 10.0  # seconds that the others are given to end


class ShareFailed(JclipError):
    """A process ended with the line that says why, and its exit code."""

    def __init__(self, line: str, code: int):
        super().__init__(line)
        self.exit_code = code


def _spool() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")  # closed by `_end`


@dataclass
class _Side:
    """The process that does a share, what it printed, and what it lost."""

    share: str
    command: list[str]
    env: dict[str, str]
    errors: IO[str] = field(default_factory=_spool)
    process: subprocess.Popen | None = None
    lost: int = 0
    done_when_lost: int = -1

    def start(self) -> None:
        """Starts the process, from the beginning of its share: what is saved of it is not done again."""
        self.errors.seek(0)
        self.errors.truncate()
        self.process = subprocess.Popen(
            self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def last_line(self) -> str:
        """What it said last on stderr."""
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run(argv: Sequence[str], count: int, watch: tuple[int, Callable[[], int]]) -> list[str]:
    """Runs `jclip ARGV --shard I/N` for every I of N = `count`, and returns the last line that each printed.

    watch: how many photos there are, and what tells how many are done. A process that is killed is started again, and goes
    on with what it had saved. Raises `ShareFailed` with the line of one that refuses to work, `DataError` for a share whose
    process is killed again with nothing done in between; the others are ended then.
    """
    from tqdm import tqdm

    total, done = watch
    sides = [_side(argv, number, count) for number in range(1, count + 1)]
    try:
        for side in sides:
            side.start()
        with tqdm(total=total or None, unit="photo", disable=None, leave=False, initial=done()) as bar:
            due = 0.0
            while sum(_is_running(side, done) for side in sides):  # each is looked at
                begun = time.monotonic()
                if begun >= due:  # of many parts it takes a while to count them
                    bar.update(done() - bar.n)
                    due = begun + _SHARE_OF_LOOKS * (time.monotonic() - begun)
                time.sleep(_LOOK)
        return [_printed(side) for side in sides]
    finally:
        _end(sides)


def _side(argv: Sequence[str], number: int, count: int) -> _Side:
    cores = len(os.sched_getaffinity(0))
    each = str(max(1, cores // count))
    env = {"OMP_NUM_THREADS": each, "JCLIP_WORKERS": each, **os.environ, available.SIDE_PROCESSES: str(count)}
    root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    share = f"{number}/{count}"
    return _Side(share, [sys.executable, "-c", _RUN, *argv, "--shard", share], env)


def _is_running(side: _Side, done: Callable[[], int]) -> bool:
    code = side.process.poll()
    if code is None or code == 0:
        return code is None
    if code > 0 and code < 128:
        why = side.last_line().partition(": ")[2]
        raise ShareFailed(f"share {side.share}: {why}", code)
    so_far = done()
    side.lost = side.lost + 1 if so_far == side.done_when_lost else 1
    side.done_when_lost = so_far
    how = f"signal {-code}" if code < 0 else f"code {code}"
    if side.lost >= LOST_IN_VAIN:
        raise DataError(
            f"the process of share {side.share} was ended by {how} again, with nothing done in between (out of memory?): "
            "use fewer processes; the same command goes on with what is done"
        )
    notice(f"the process of share {side.share} was ended by {how}: it is started again")
    side.start()
    return True


def _printed(side: _Side) -> str:
    lines = side.process.stdout.read().splitlines()
    if not lines:
        raise DataError(f"the process of share {side.share} ended without an answer: {side.last_line()}")
    return lines[-1]


def _end(sides: Sequence[_Side]) -> None:
    """Ends processes that still run, and frees what belongs to them."""
    for side in sides:
        if side.process and side.process.poll() is None:
            side.process.terminate()
    end = time.monotonic() + _PATIENCE
    for side in sides:
        if side.process:
            try:
                side.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                side.process.kill()
                side.process.wait()
            side.process.stdout.close()
        side.errors.close()

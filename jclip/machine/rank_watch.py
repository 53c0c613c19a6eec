"""A small process beside each rank, which says in one line that its rank died without a word.

A process that is killed, or that runs out of memory, says nothing; mpirun, which then ends the others, names neither what
was computed nor what to do. The watching process sees its rank end, and reports unless the rank said before that it is
done, was told to end, or another one of its host has failed before. Run by its path, with the standard library alone.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from types import FrameType

DONE = b"\n"  # what a rank sends before it ends in order; signals that reach it are sent as their numbers
FAILED = "jclip-failed"  # a file of mpirun's own folder for the time of its run: who makes it is the one that reports
ADVICE = "all ranks end; the same command goes on from the state saved last, with any number of ranks"
_TOLD_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SECONDS = 0.2
SECONDS_APART, MOST_APART = 0.3, 10


def watch_over(rank: str, folder: str) -> int:
    """Start the watching process of this one, called `rank` in its line; return where to write `DONE`.

    folder: mpirun's for this host, "" where it has none.
    From now on SIGTERM ends this process at once. To be called from the main thread.
    """
    there, here = os.pipe()
    os.set_blocking(here, False)
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.set_wakeup_fd(
        here, warn_on_full_buffer=False
    )  # from the signal itself: Python may be waiting for the others
    subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, str(os.getpid()), rank, folder],
        stdin=there, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(there)
    return here


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def marker(folder: str) -> str:
    """The file that the first process of a host makes that fails; "" where mpirun has no folder."""
    return f"{folder}/{FAILED}" if folder else ""


def delay(rank: int) -> float:
    """Seconds from the first rank's report of a failure to another one's: what fails on all hosts is reported once."""
    return SECONDS_APART * min(rank, MOST_APART)


def fails_first(folder: str) -> bool:
    """Whether no process of this host has failed before this one."""
    if not (place := marker(folder)):
        return True
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:  # no such folder
        return True
    return True


def _watch(rank_id: int, rank: str, folder: str) -> None:
    """Wait for the end of process `rank_id`, which started this one."""
    starter, end = _parent_of(rank_id), _end_of(rank_id)
    while os.getppid() == rank_id:
        select.select(end, [], [], _SECONDS)
        if _parent_of(rank_id) not in (starter, None) and os.getppid() == rank_id:  # mpirun itself is gone
            os.kill(rank_id, signal.SIGKILL)
            return
    os.set_blocking(0, False)
    try:
        heard = os.read(0, 4096)
    except BlockingIOError:
        heard = b""
    if DONE in heard or any(number in heard for number in _TOLD_TO_END) or not fails_first(folder):
        return
    sys.stderr.write(f"jclip: {rank} died without a word (killed, crashed, or out of memory): {ADVICE}\n")


def _end_of(process: int) -> list[int]:
    """What can be read when a process ends, where Linux has that."""
    try:
        return [os.pidfd_open(process)]
    except (AttributeError, OSError):
        return []


def _parent_of(process: int) -> int | None:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as f:
            return int(f.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2], sys.argv[3])

"""Which of several processes this one is, where Open MPI's mpirun started it; the only one elsewhere. No Jittor.

mpirun tells its processes by environment variables who they are. A program that inherits them takes itself for one of the
processes: a compiler's helper or a decoding process would wait for the others for ever. So they are taken out of the
environment when this module is imported, and put back for Jittor's import alone, which joins the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIXES = ("OMPI_", "PMIX_", "PRTE_", "PMI_")
_RANK, _SIZE = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"
_LOCAL_RANK, _LOCAL_SIZE = "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number from 0 and their count, on all hosts and on its own."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: str = ""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and asks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def share(self, count: int, rank: int | None = None) -> slice:
        """Which of `count` rows are this process's (or `rank`'s): consecutive ones, the first ranks' perhaps one more."""
        rank = self.rank if rank is None else rank
        each, more = divmod(count, self.size)
        return slice(rank * each + min(rank, more), (rank + 1) * each + min(rank + 1, more))

    def share_of_batches(self, count: int, size: int) -> slice:
        """Which of `count` rows are this process's, in the whole batches of `size` that one process would make of them."""
        batches = self.share(-(-count // size))
        return slice(min(count, batches.start * size), min(count, batches.stop * size))

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} on {self.host}"


ALONE = Ranks()


def here() -> Ranks:
    """This process among those that compute together now."""
    return _now


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the block this process computes by itself: what others don't do at the same time."""
    global _now
    before, _now = _now, ALONE
    try:
        yield
    finally:
        _now = before


def variables() -> dict[str, str]:
    """What mpirun set for this process, to be given to Jittor's import; nothing where it computes alone."""
    return dict(_hidden) if _started.several else {}


def folder() -> str:
    """mpirun's own folder on this host, for the time of its run; "" without one."""
    return variables().get("PMIX_SERVER_TMPDIR", "")


def without(environment: dict[str, str]) -> dict[str, str]:
    """`environment` for a process that is none of the ranks."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIXES)}


def cores() -> int:
    """How many cores are this process's: those that it may use, divided by the ranks of this host."""
    own = len(os.sched_getaffinity(0))
    if not _started.several:
        return own
    with contextlib.suppress(OSError):  # of what started it, which is not bound to a part of them
        return min(own, max(1, len(os.sched_getaffinity(os.getppid())) // _started.local_size))
    return max(1, min(own, (os.cpu_count() or 1) // _started.local_size))


def stay_alone() -> None:
    """This process leaves the others for good, for work that one process does."""
    global _now, _started
    _now = _started = ALONE


def _claimed() -> tuple[dict[str, str], Ranks]:
    """The variables, taken out of the environment, and what they say."""
    if not (os.environ.get(_RANK, "").isdecimal() and os.environ.get(_SIZE, "").isdecimal()):
        return {}, ALONE
    taken = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith(PREFIXES)}
    rank, size = int(taken[_RANK]), int(taken[_SIZE])
    local_rank, local_size = int(taken.get(_LOCAL_RANK) or rank), int(taken.get(_LOCAL_SIZE) or size)
    return taken, Ranks(rank, size, local_rank, local_size, os.uname().nodename)


def _divide_machine() -> None:
    """Threads and cards are those of this rank alone, unless the user said which."""
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    _hidden.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")  # who waits for others leaves its core to them
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = named.split(",") if named is not None else [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    if len(cards) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[_started.local_rank % len(cards)]


_hidden, _started = _claimed()
_now = _started
if _started.several:
    _divide_machine()

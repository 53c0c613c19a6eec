"""CPU seconds, memory and end of the processes that this one started, which decode or compile; sizes of folders. No Jittor."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path


def children() -> list[int]:
    """Processes that this one has started and that run now."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{os.getpid()}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_of(process: int) -> float:
    """CPU seconds of a process that runs."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def ended_seconds() -> float:
    """CPU seconds of this process's processes that have ended, which in the middle of work are compilers."""
    import resource  # which Windows lacks

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(process: int) -> float:
    """Bytes of memory of a process that runs."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0.0


def most_resident() -> float:
    """Bytes: the most memory that this process has held, where Linux reports it."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        return int(found.group(1)) * 1024.0 if found else 0.0
    return 0.0


def give_back() -> None:
    """Returns memory that malloc keeps for later to the system."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # other C libraries have none
        ctypes.CDLL(None).malloc_trim(0)


def size_of(folders: Sequence[Path]) -> int:
    """Bytes of all files below some folders."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def end_with_parent() -> None:
    """Asks the system to end this process when the one that started it ends."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

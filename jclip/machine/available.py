"""How much memory and disk are free for new work: of the machine, and of this process's container or job. No Jittor.

Containers and schedulers limit memory by control groups (cgroups, version 1 or 2). The system ends a process that goes beyond
without a word, so what is known before is compared with what there is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from jclip.machine import process_times, ranks

MIB = 1 << 20
SIDE_PROCESSES = "JCLIP_SIDE_PROCESSES"  # set for processes that do shares of one command: how many they are
_FILES = {
    "cgroup2": ("memory.max", "memory.current", ""),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
_UNLIMITED = 1 << 60  # version 1 writes the largest number of pages that it can count
_PROC = Path("/proc")


def memory() -> float:
    """Bytes that this process may take without being ended for them: its share, where several do one command's work here.
    Infinite where the system doesn't say."""
    free = min(_of_machine(), *(limit - used for limit, used in _groups()), float("inf"))
    return max(0.0, free) / _sharing()


def group_limit() -> float:
    """Bytes that the container or job has for all of its processes; infinite without a limit."""
    return min((limit for limit, _ in _groups()), default=float("inf"))


def shortages(memory_needed: Mapping[int, float], disk_needed: Mapping[Path, float]) -> list[str]:
    """Lines of a dry run for what does not fit: by how many processes, and where.

    memory_needed: bytes by number of processes; what this process has now, which it is about to give back, is free for them.
    disk_needed: bytes by the folder that they are written to.
    """
    there, lines = memory() * _sharing() + process_times.resident(os.getpid()), []
    beyond = [count for count, needed in sorted(memory_needed.items()) if needed > there]
    if beyond:
        count = beyond[0]
        who = "this" if count == 1 else f"{count} processes"
        lines.append(f"won't fit: {who} would take {_size(memory_needed[count])} of memory, {there_is(there)}")
    return [*lines, *_full_disks(disk_needed)]


def _full_disks(needed: Mapping[Path, float]) -> Iterator[str]:
    """A line for each disk that does not hold what its folders need together."""
    disks: dict[int, list[Path]] = {}
    for folder in needed:
        with contextlib.suppress(OSError):
            disks.setdefault(_there(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        with contextlib.suppress(OSError):
            count, free = sum(needed[folder] for folder in folders), shutil.disk_usage(_there(folders[0])).free
            if count > free:
                yield f"won't fit: {_size(count)} of disk are needed, {_size(free)} are free where {folders[0]} is"


def _there(folder: Path) -> Path:
    """The folder, or the next one above it that exists."""
    folder = folder.absolute()
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def there_is(free: float) -> str:
    """`1,234 MiB are free here`, with the limit of the container or job where it has one."""
    limit = group_limit()
    of_group = "" if limit == float("inf") else f" (the limit of this container or job is {_size(limit)})"
    return f"{_size(free)} are free here{of_group}"


def _size(count: float) -> str:
    return f"{count / MIB:,.0f} MiB" if count >= 10 * MIB else f"{count / 1024:,.0f} KiB"


def _sharing() -> int:
    """How many processes on this machine do the same work at once, this one among them."""
    given = os.environ.get(SIDE_PROCESSES, "")
    return max(int(given) if given.isdecimal() else 1, ranks.here().local_size, 1)


def _of_machine() -> float:
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = (_PROC / "meminfo").read_text().splitlines()
        return float(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    return float("inf")


def _groups() -> Iterator[tuple[float, float]]:
    """(limit, bytes taken) of each control group with a limit that this process is in; files' pages are not counted as
    taken."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # a system that has other files
        for kind, folder in _folders():
            limit, used, prefix = _FILES[kind]
            with contextlib.suppress(OSError, ValueError):  # "max", or the root, which has no such file
                most = int((folder / limit).read_text())
                if most < _UNLIMITED:
                    taken = int((folder / used).read_text())
                    yield float(most), float(taken - min(taken, _of_files(folder, prefix)))


def _of_files(folder: Path, prefix: str) -> int:
    """Bytes of files' pages, which the system drops when memory is asked for."""
    rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return sum(int(row[1]) for row in rows if row and row[0] in (f"{prefix}active_file", f"{prefix}inactive_file"))


def _folders() -> Iterator[tuple[str, Path]]:
    """(kind, folder) of this process's group and those above it, of each hierarchy that limits memory."""
    own = {}
    for line in (_PROC / "self" / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if not names or "memory" in names.split(","):
            own["cgroup" if names else "cgroup2"] = PurePosixPath(path)
    for line in (_PROC / "self" / "mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind not in own or (kind == "cgroup" and "memory" not in options.split(" ")[-1].split(",")):
            continue
        root, mounted = PurePosixPath(fields.split()[3]), Path(fields.split()[4])
        below = own[kind].relative_to(root) if own[kind].is_relative_to(root) else PurePosixPath()
        folder = mounted / below
        yield kind, folder
        while folder != mounted:
            folder = folder.parent
            yield kind, folder

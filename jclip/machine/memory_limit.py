"""What happens where a process's address space is limited (`ulimit -v`) and is too small. No Jittor.

Jittor and oneDNN end a process by a signal where an allocation fails. So what can be known is asked before, and a program that
is limited runs in a child, whose end by a signal is one line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from jclip.errors import SetupError, fail
from jclip.machine import ranks
from jclip.machine.process_times import end_with_parent

MIB = 1 << 20
RAISE = "raise it (ulimit -v unlimited, or the memory that is asked of the scheduler)"
_SIGNALS = ("SIGSEGV", "SIGABRT", "SIGBUS")  # by which a failed allocation ends a process
_INSIDE = "JCLIP_INSIDE_A_LIMIT"  # set for the child, and what it starts
JITTOR = 260 * MIB  # of address space that Jittor, oneDNN and the first operators take
OF_RANKS = 200 * MIB  # of Open MPI beside that, whose threads wait for ever where one lacks memory
THREAD = 80 * MIB  # of each thread: its stack, and a pool of malloc's
WEIGHTS, BESIDE = 1.5, 100 * MIB  # a model takes so many times its weights, and so much for what passes through it


def limit() -> float:
    """Bytes of address space that this process may take; infinite without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return float("inf")
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return float("inf") if most == resource.RLIM_INFINITY else float(most)


def left() -> float:
    """Bytes of these that are not taken yet."""
    taken = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return max(0.0, limit() - taken)


def require(needed: float, what: str) -> None:
    """Raises `SetupError` where the limit leaves less than `needed` bytes for `what`."""
    if (there := left()) < needed:
        raise SetupError(
            f"{what} needs about {needed / MIB:,.0f} MiB of memory, and the limit of this process leaves {there / MIB:,.0f} "
            f"MiB: {RAISE}, or take fewer threads (OMP_NUM_THREADS=1) or a smaller model"
        )


def require_start() -> None:
    """Raises `SetupError` where Jittor can't be started."""
    beside = OF_RANKS if ranks.here().several else 0
    require(JITTOR + beside + _threads() * THREAD, "starting Jittor")


def require_model(weights: float, name: str) -> None:
    """Raises `SetupError` where there is no room for a model of so many bytes of weights in float32."""
    require(WEIGHTS * weights + BESIDE + _threads() * THREAD, f"loading {name}")


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))


def run_inside(program: Callable[[], int], name: str) -> int:
    """Runs `program`, in a child where there is a limit; returns its exit code, 2 with a line where the child dies of it.

    To be called before threads are started.
    """
    if limit() == float("inf") or _INSIDE in os.environ:
        return program()
    os.environ[_INSIDE] = "1"
    child = os.fork()
    if not child:
        end_with_parent()
        return program()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, _: _pass_on(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0:
        return code
    if (ended := signal.Signals(-code)).name in _SIGNALS:
        return fail(name, f"ended by {ended.name}, as where memory is lacking: the limit of this process is "
                    f"{limit() / MIB:,.0f} MiB: {RAISE}, or take fewer threads (OMP_NUM_THREADS=1), a smaller model or "
                    "batch", 2)  # fmt: skip
    return 128 - code


def _pass_on(child: int, number: int) -> None:
    """Sends a signal on, but for Ctrl-C, which the terminal sends to both."""
    at_terminal = False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        at_terminal = os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    if not (number == signal.SIGINT and at_terminal):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

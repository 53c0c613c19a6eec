"""What happens where a process's address space is limited (`ulimit -v`) and is too small. No Jittor.

Jittor and oneDNN end a process by a signal where an allocation fails, and NumPy's threads wait for ever for memory that never
comes. So what surely fails is refused before, and a program that is limited runs in a child, whose end by a signal is one line.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from jclip.errors import SetupError, fail, notice
from jclip.machine import available, ranks
from jclip.machine.process_times import end_with_parent

MIB = 1 << 20
RAISE = "raise it (ulimit -v unlimited, or the memory that is asked of the scheduler)"
_SIGNALS = ("SIGSEGV", "SIGABRT", "SIGBUS")  # by which a failed allocation ends a process
_INSIDE = "JCLIP_INSIDE_A_LIMIT"  # set for the child, and what it starts
# Of address space, measured: less than what the smallest model works with, so that nothing is refused that would work.
LIBRARIES = 100 * MIB  # NumPy, Pillow and other libraries
BUFFER = 40 * MIB  # each of NumPy's threads: it asks for its buffer again and again where there is no memory
JITTOR = 90 * MIB  # Jittor, oneDNN and the first operators
OF_RANKS = 370 * MIB  # Open MPI beside that, whose threads wait for ever where one lacks memory
POOL = 70 * MIB  # malloc's for each thread, where it isn't kept to one
THREAD = 10 * MIB  # each thread's stack, and more
BESIDE = 50 * MIB  # what passes through a model, beside its weights
NEAR = 16 * MIB  # an exception with less than this left is for want of memory, whatever it says
_NO_THREAD = 127  # the exit code of the C library where a thread's own memory is lacking, after a line of its own


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


def require_libraries() -> None:
    """Where there is a limit, loads NumPy and has it take the memory of its products while there is some. Raises `SetupError`
    where it and what else a command imports can't be loaded."""
    if limit() == float("inf"):
        return
    if "numpy" not in sys.modules:
        require(LIBRARIES + _threads() * BUFFER, "loading NumPy and other libraries")
    import numpy as np

    np.ones((512, 512), np.float32) @ np.ones(512, np.float32)  # smaller ones need none


def warn_of_memory(needed: float, what: str) -> None:
    """A line where so many bytes, of each rank on this machine, are more than is free: the system may end the process then."""
    count = ranks.here().local_size
    if needed > (free := available.memory()):
        each = f" by each of {count} ranks" if count > 1 else ""
        notice(f"{what} takes about {needed / MIB:,.0f} MiB of memory{each}, and {available.there_is(count * free)}: "
               "the system may end this process")  # fmt: skip


def require_start() -> None:
    """Raises `SetupError` where Jittor can't be started."""
    beside = OF_RANKS + _threads() * POOL if ranks.here().several else 0
    require(JITTOR + beside + _threads() * THREAD, "starting Jittor")


def require_model(weights: float, name: str) -> None:
    """Raises `SetupError` where there is no room for a model of so many bytes of weights in float32."""
    require(weights + BESIDE + _threads() * THREAD, f"loading {name}")


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))


def run_inside(program: Callable[[], int], name: str) -> int:
    """Runs `program`, in a child where there is a limit; returns its exit code, 2 with a line where the child dies of it.

    To be called before threads are started.
    """
    if limit() == float("inf") or _INSIDE in os.environ or ranks.here().several:
        return program()
    os.environ[_INSIDE] = "1"
    child = os.fork()
    if not child:
        end_with_parent()
        _keep_one_pool()
        return _ended(program, name)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, _: _pass_on(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0:
        return code if code != _NO_THREAD else 2
    if (ended := signal.Signals(-code)).name in _SIGNALS:
        return fail(name, f"ended by {ended.name}, as where memory is lacking: the limit of this process is "
                    f"{limit() / MIB:,.0f} MiB: {RAISE}, or take fewer threads (OMP_NUM_THREADS=1), a smaller model or "
                    "batch", 2)  # fmt: skip
    return 128 - code


def _ended(program: Callable[[], int], name: str) -> int:
    """The program's exit code. Where it failed the process ends here: what libraries do at the end may wait for threads that
    wait for memory."""
    code = 1
    try:
        code = program()
    except SystemExit as e:  # argparse has printed its help, or what is wrong
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except Exception as e:
        if limit() - _most_taken() > NEAR:
            raise
        code = fail(
            name, f"there is not enough memory ({type(e).__name__} with {limit() / MIB:,.0f} MiB taken): {RAISE}", 2
        )
    if code:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def _keep_one_pool() -> None:
    """malloc reserves 64 MiB of addresses for each thread otherwise, most of them in vain."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX


def _most_taken() -> float:
    """Bytes of address space that this process had at most."""
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak:")))
    return 0.0


def _pass_on(child: int, number: int) -> None:
    """Sends a signal on, but for Ctrl-C, which the terminal sends to both."""
    at_terminal = False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        at_terminal = os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    if not (number == signal.SIGINT and at_terminal):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

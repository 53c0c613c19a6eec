"""Kills a piece of work before its n-th file operation, for each n, and looks at what is left.

A child is forked for each n; Python's audit events say what it is about to do: open for writing, rename, link, remove,
make or remove a folder, change a mode. No file system is emulated: what is looked at is what a kill leaves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

OPERATIONS = ("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
KILLED = 9


def operations(work: Callable[[], object], look: Callable[[int], None], most: int = 500) -> int:
    """How many operations `work` has; `look(n)` is called after it was killed before its n-th, then after its end."""
    for n in range(1, most):
        if (child := os.fork()) == 0:
            _kill_before(n)
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        look(n)
        if os.WEXITSTATUS(status) == 0:
            return n - 1
        if os.WEXITSTATUS(status) != KILLED:
            raise AssertionError(f"the work failed by itself at operation {n}")
    raise AssertionError(f"more than {most} operations")


def _kill_before(n: int) -> None:
    seen = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in OPERATIONS:
            return
        seen += 1
        if seen == n:
            os._exit(KILLED)

    sys.addaudithook(count)

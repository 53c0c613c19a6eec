"""Processes that a test starts and that serve until they are ended: they heed Ctrl-C, and never outlive the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def begin_child(parent: int) -> None:
    """To be called first in a process that `parent` started: ends it when `parent` is killed, and lets it heed Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of `sh … &` is started with it ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before
            os.kill(os.getpid(), signal.SIGKILL)

"""A command as one of several processes that mpirun started: who does it, who prints, and how all end when one fails."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import TextIO

from jclip.errors import failures_reported_by, notice
from jclip.machine import rank_watch, ranks

TOGETHER = ("train",)  # the others are done by rank 0


def run_as_rank(name: str, command: Callable[[], int]) -> int:
    """Run `command` on all ranks if it is one that they do together, else on the first; return its exit code.

    Only rank 0 prints, but for failures. One that fails ends its process without waiting for the others, and mpirun ends
    these.
    """
    here = ranks.here()
    if name not in TOGETHER:
        if not here.first:
            return 0
        notice(f"jclip {name} is done by one process: rank 0 does it, the others rest")
        ranks.stay_alone()
        return command()
    line, streams = rank_watch.watch_over(str(here), ranks.folder()), (sys.stdout, sys.stderr)
    if not here.first:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    code = _code_of(command, streams[1])
    for stream in (*streams, sys.stdout):
        stream.flush()
    os.write(line, rank_watch.DONE)
    if code:
        os._exit(code)  # the others may wait for this one in the middle of a sum: MPI's own end would wait for them
    return code


def _code_of(command: Callable[[], int], errors: TextIO) -> int:
    """The command's exit code; a failure is reported by one rank of each host, and by the first one's before others'."""
    here = ranks.here()

    def report(name: str, message: str) -> None:
        time.sleep(rank_watch.delay(here.rank))
        if rank_watch.fails_first(ranks.folder()):
            print(f"{name}: {here}: {message}", file=errors, flush=True)

    try:
        with failures_reported_by(report):
            return command()
    except SystemExit as e:  # argparse has printed its help
        return e.code if isinstance(e.code, int) else 1
    except BaseException:
        report("jclip", traceback.format_exc())
        return 1

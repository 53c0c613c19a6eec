"""Commands that die by SIGKILL just when a file stands in its place: no polling, and no race with their end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.crash_scenarios import contents

ROOT = Path(__file__).resolve().parents[1]
DYING = """
import fnmatch, os, pathlib, runpy, signal, sys
import jclip.train.loop
jclip.train.loop.SAVE_SECONDS = 0.0  # every epoch is saved, whatever it took
left, replace = [{times}], pathlib.Path.replace
def replace_and_die(self, target):
    replace(self, target)
    left[0] -= fnmatch.fnmatch(str(target), {pattern!r})
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = replace_and_die
"""


def killed_at(pattern: str, *arguments: str, times: int = 1, program: str = "") -> None:
    """Runs `python -m finetune ARGUMENTS`, or the source `program` with them, until a file like `pattern` is written for
    that time. What was printed is lost."""
    start = program or "sys.argv[0] = 'finetune'; runpy.run_module('finetune', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", DYING.format(pattern=pattern, times=times) + start, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, f"it ended before it was killed: {done.stdout}{done.stderr}"


@contextmanager
def made_again(*folders: Path) -> Iterator[None]:
    """Finished folders are out of the way; what is made in their places meanwhile must be the same files, but for times,
    and nothing beside them. Afterwards they stand there again."""
    kept = [folder.rename(folder.with_name(f"{folder.name} as it was")) for folder in folders]
    try:
        yield
        for folder, before in zip(folders, kept, strict=True):
            ours, theirs = contents(folder), contents(before)
            differing = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
            assert theirs and not differing, differing
    finally:
        for folder, before in zip(folders, kept, strict=True):
            shutil.rmtree(folder, ignore_errors=True)
            before.rename(folder)

"""What a run was made with and what it took: versions, commit, machine, threads, memory. No Jittor."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jclip.machine import process_times

PACKAGES = ("jclip", "jittor", "numpy", "pillow")


def threads() -> str:
    """The number of threads that kernels use."""
    return os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))


def provenance() -> dict[str, Any]:
    """Versions, commit, machine, threads."""
    return {
        "versions": {"python": platform.python_version(), **{p: version_of(p) for p in PACKAGES}},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": threads(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


_NAMES = {"weights_sha256": "model file", "data_digest": "training data"}
_PARTS = {"train": "training photos", "val": "validation photos", "test": "test photos"}


def compared(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a run has noted of its weights and data, by names for a message: several ranks must have noted the same."""
    return {_NAMES.get(key) or _PARTS.get(stem := key.removesuffix("_sha256"), stem): v for key, v in facts.items()}


def forget_peak() -> None:
    """The most memory held is counted from now on, so that each run of a sweep reports its own.

    Some containers refuse it: there a run reports the most that its process has held so far.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory() -> dict[str, int]:
    """The most memory that this process held, in MiB: `host` where Linux reports it, `gpu` where one is used.

    Of a GPU it is what Jittor's allocators have taken; they keep it as long as the card isn't full.
    """
    runtime, most = sys.modules.get("jclip.runtime"), process_times.most_resident()
    held = {"host": int(most) // 2**20} if most else {}
    if runtime and runtime.jt.flags.use_cuda:
        held["gpu"] = runtime.jt.get_mem_info().total_cuda_used // 2**20
    return held


@lru_cache
def version_of(package: str) -> str:
    """The installed version of a package, or that there is none."""
    from importlib.metadata import PackageNotFoundError, version  # a fiftieth of a second

    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return "not installed"


@lru_cache  # a sweep asks for each of its runs
def _commit() -> str:
    """The checkout's commit, `-dirty` when files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
    return ""

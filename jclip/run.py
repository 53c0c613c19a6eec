"""A run's folder: resolved config, metrics line by line, checkpoints, the result with all that produced it. No Jittor.

config.yaml       the resolved configuration, which can be fed back
metrics.jsonl     one line per epoch
<slot>.safetensors  where training stands; removed when it has finished
learned.safetensors what was learned, with its metadata
result.json       final metrics and provenance; its presence means that the run has finished
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jclip.config import to_yaml
from jclip.errors import CheckpointError, ConfigError, JclipError
from jclip.paths import replacing
from jclip.readers import read_weights, safetensors

PACKAGES = ("jclip", "jittor", "numpy", "pillow")


class RunBusy(JclipError):
    """Another process works in the run's folder."""


class Run:
    """Opens or continues the run in `folder`. Raises `ConfigError` when the folder holds a run of another config, and
    `RunBusy` when another process works there.

    quiet: epochs are not told on stderr.
    """

    def __init__(self, folder: str | os.PathLike, values: Mapping[str, Any], quiet: bool = False):
        self.folder, self.quiet = Path(folder), quiet
        self.values = json.loads(json.dumps(values))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._claim()
        self._begun = time.time()
        forget_peak()
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def seed(self) -> int:
        """The run's seed, from which all randomness derives together with epoch and step."""
        return int(self.values.get("seed", 0))

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished run's result, or None."""
        path = self.folder / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(values) + "\n")

    def drop_lines(self, slot: str, epoch: int) -> None:
        """Removes the lines that `slot` wrote from `epoch` on: what a killed process had told but not saved."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_later(line, slot, epoch)]
        if kept != lines:
            with replacing(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def note(self, **facts: Any) -> None:
        """Adds to the result's provenance: hashes of weights and data, what was selected how."""
        self.facts.update(facts)

    def slot(self, name: str = "train") -> Slot:
        """The place where training saves its state."""
        return Slot(self.folder / f"{name}.safetensors", self.facts.get("weights_sha256", ""))

    def save_learned(self, arrays: Mapping[str, np.ndarray], **metadata: Any) -> None:
        """Writes what was learned, with recipe, config, and the given metadata as JSON."""
        told = {"config": self.values, **metadata}
        described = {"format": "jclip-learned", **{k: json.dumps(v, ensure_ascii=False) for k, v in told.items()}}
        safetensors.write(self.folder / "learned.safetensors", arrays, described)

    def finish(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Writes result.json and returns it."""
        result = {
            "metrics": {k: _rounded(v) if isinstance(v, float) else v for k, v in metrics.items()},
            "config": self.values,
            "provenance": {**provenance(), **self.facts, **self._spent()},
        }
        with replacing(self.folder / "result.json") as path:
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return result

    def _spent(self) -> dict[str, Any]:
        """What is another from run to run."""
        return {"seconds": round(time.time() - self._begun, 2), "peak_mib": peak_memory()}

    def _take_lock(self):
        lock = open(self.folder / ".lock", "w")  # noqa: SIM115 - held as long as the run
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunBusy(
                f"{self.folder} is in use by another process: wait for it, or choose another with --run"
            ) from None
        return lock

    def _claim(self) -> None:
        path = self.folder / "config.yaml"
        if path.is_file():
            held = yaml.safe_load(path.read_text(encoding="utf-8"))
            differing = sorted(_differing(held, self.values))
            if differing:
                raise ConfigError(
                    f"{self.folder} holds a run of another config (differs in {', '.join(differing)}): "
                    "choose another folder with --run, or start over with --fresh"
                )
        else:
            with replacing(path) as temporary:
                temporary.write_text(to_yaml(self.values), encoding="utf-8")


def _rounded(value: float) -> float:
    """To six decimals, what is small (a learning rate) to six digits."""
    return round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.6g}")


def clear(folder: str | os.PathLike) -> None:
    """Removes a run's own files; others in the folder stay."""
    for pattern in ("config.yaml", "metrics.jsonl", "result.json", "*.safetensors"):
        for path in Path(folder).glob(pattern):
            path.unlink()


def read_result(folder: str | os.PathLike) -> dict[str, Any]:
    """result.json of a finished run. Raises `ConfigError` when there is none."""
    path = Path(folder) / "result.json"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no finished run (no result.json): run `train` to its end first")
    return json.loads(path.read_text(encoding="utf-8"))


def _is_later(line: str, slot: str, epoch: int) -> bool:
    try:
        told = json.loads(line)
    except ValueError:  # cut off in the middle by a kill
        return True
    return told.get("slot") == slot and told.get("epoch", -1) >= epoch


class Slot:
    """Where training stands, in one file: arrays and position. weights: the hash of those it began with, where known."""

    def __init__(self, path: Path, weights: str = ""):
        self._path, self._weights = path, weights

    def save(self, arrays: Mapping[str, np.ndarray], position: Mapping[str, Any]) -> None:
        """Replaces what was saved before; a crash in between leaves the earlier state."""
        told = {"position": json.dumps(position), "threads": threads(), "weights": self._weights}
        safetensors.write(self._path, arrays, told)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and position as saved; None at the start of a run. Raises `CheckpointError` where that began with other
        weights."""
        if not self._path.is_file():
            return None
        saved = read_weights(self._path)
        begun = saved.metadata.get("weights", "")
        if begun and self._weights and begun != self._weights:
            raise CheckpointError(
                f"{self._path} goes on from weights of SHA-256 {begun[:12]}…, and the model's are now "
                f"{self._weights[:12]}…: put those back, or start over with --fresh"
            )
        if saved.metadata["threads"] != threads():
            sys.stderr.write(
                f"resuming at {threads()} threads what ran at {saved.metadata['threads']}: "
                "the last digits may differ (set OMP_NUM_THREADS to repeat them)\n"
            )
        arrays = {k: np.array(t.read()) for k, t in saved.items()}
        return arrays, json.loads(saved.metadata["position"])

    def clear(self) -> None:
        """Forgets the state: training has finished."""
        self._path.unlink(missing_ok=True)


def threads() -> str:
    """The number of threads that kernels use."""
    return os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))


def provenance() -> dict[str, Any]:
    """Versions, commit, machine, threads."""
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": threads(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def forget_peak() -> None:
    """The most memory held is counted from now on, so that each run of a sweep tells its own.

    Some containers refuse it: there a run tells the most that its process has held so far.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory() -> dict[str, int]:
    """The most memory that this process held, in MiB: `host` where Linux tells it, `gpu` where one is used.

    Of a GPU it is what Jittor's allocators have taken; they keep it as long as the card isn't full.
    """
    status, runtime = Path("/proc/self/status"), sys.modules.get("jclip.runtime")
    told = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8")) if status.is_file() else None
    held = {"host": int(told.group(1)) // 1024} if told else {}
    if runtime and runtime.jt.flags.use_cuda:
        held["gpu"] = runtime.jt.get_mem_info().total_cuda_used // 2**20
    return held


@lru_cache
def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # a fiftieth of a second

    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return "not installed"


@lru_cache  # a sweep asks for each of its runs
def _commit() -> str:
    """The checkout's commit, `-dirty` when files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
    return ""


def _differing(a: Any, b: Any, prefix: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = set(a) | set(b)
        return set().union(*(_differing(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else str(k)) for k in keys))
    return set() if a == b else {prefix}

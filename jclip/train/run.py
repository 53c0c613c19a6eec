"""A run's folder: resolved config, metrics line by line, checkpoints, the result with all that produced it. No Jittor.

config.yaml         the resolved configuration, which can be fed back
metrics.jsonl       one line per epoch
<slot>.safetensors  where training stands, <slot>.previous.safetensors where it stood before; removed in the end
learned.safetensors what was learned, with its metadata
result.json         final metrics and provenance, written last: its presence means that the run has finished
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jclip.config import to_json, to_yaml
from jclip.errors import CheckpointError, ConfigError, did_you_mean, notice, printable
from jclip.paths import naming, open_regular, replacing
from jclip.readers import safetensors
from jclip.readers.tensors import LazyTensor
from jclip.train.metric_lines import crc_of, line_of
from jclip.train.run_facts import forget_peak, peak_memory, provenance, threads
from jclip.train.run_folder import (
    CONFIG,
    LEARNED,
    METRICS,
    OWN,
    RESULT,
    SHIPPED_RUNS,
    HeldFolder,
    ReadFolder,
    RunBusy,
    checksum_of,
    existing_run,
    read_config_text,
)
from jclip.train.tensorboard_scalars import FILE as SCALARS
from jclip.train.tensorboard_scalars import Scalars

__all__ = ["Run", "RunBusy", "Slot", "read_result"]


class Run:
    """Opens or continues the run in `folder`. Raises `ConfigError` when the folder holds a run of another config, or files
    and no run, and `RunBusy` when another process works there.

    quiet: epochs are not reported on stderr. fresh: what an earlier run wrote there is removed first. writer: off in all
    but one of several processes that compute one run together. Those read the folder and write nothing there: they take
    no lock, log no line, save no state; what a recipe writes with `file` lands in a folder that goes with the process's run.
    log: "tensorboard" writes what is logged as scalars as well. adjustable: keys of the config that may have changed: the
    run goes on with their new values, from what the folder holds, and its result is made again.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        values: Mapping[str, Any],
        quiet: bool = False,
        fresh: bool = False,
        writer: bool = True,
        log: str = "",
        adjustable: Collection[str] = (),
    ):
        self.folder, self.quiet, self.writer = Path(folder), quiet or not writer, writer
        self.values = json.loads(json.dumps(values))
        self._scalars = Scalars(self.folder / SCALARS) if log == "tensorboard" and writer else None
        self._held = HeldFolder(self.folder) if writer else ReadFolder(self.folder)
        try:
            if fresh:
                self._held.clear()
            self._claim(adjustable)
            if self._scalars:
                self._held.announce(SCALARS)
            if self.result is not None:
                self._held.drop_slots()  # of a process that was killed after its last step
        except BaseException:
            self._held.close()
            raise
        self._begun = time.monotonic()
        self._begun_cpu = time.process_time()
        forget_peak()
        self.facts: dict[str, Any] = {}
        self.handed_over: Any = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def seed(self) -> int:
        """The run's seed, from which all randomness derives together with epoch and step."""
        return int(self.values.get("seed", 0))

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished run's result, or None. Raises `CheckpointError` for a damaged one."""
        return read_result(self.folder) if (self.folder / RESULT).is_file() else None

    def file(self, name: str) -> Path:
        """Where to write a file of the run's own, listed in its index from now on."""
        self._held.announce(name)
        return self._held.place(name)

    def inner(self, name: str) -> Path:
        """The folder of a run inside this one, listed in its index from now on: open it with this run's `writer`."""
        self._held.announce(folder=name)
        return self.folder / name

    def expect(self, names: Iterable[str]) -> None:
        """Lists files that are about to be written in the index."""
        self._held.announce(*names)

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl, with a check sum of its values."""
        if not self.writer:
            return
        path = self.folder / METRICS
        with naming(path), open(path, "a", encoding="utf-8") as f:
            f.write(json.dumps({**values, "crc": crc_of(values)}) + "\n")
        if self._scalars:
            self._scalars.add(values)

    def drop_lines(self, slot: str, epoch: int) -> None:
        """Removes the lines that `slot` wrote from `epoch` on, what a killed process had logged but not saved, and damaged
        ones, which are reported."""
        path = self.folder / METRICS
        if not self.writer:
            return
        kept = self._kept_lines(path, slot, epoch) if path.is_file() else []
        if self._scalars:
            self._scalars.begin(filter(None, map(line_of, kept)))

    @staticmethod
    def _kept_lines(path: Path, slot: str, epoch: int) -> list[str]:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        read = [line_of(line) for line in lines]
        damaged = sum(record is None and line.endswith("\n") for line, record in zip(lines, read, strict=True))
        kept = [
            line
            for line, record in zip(lines, read, strict=True)
            if record is not None and not (record.get("slot") == slot and record.get("epoch", -1) >= epoch)
        ]
        if damaged:
            notice(f"{path}: {damaged} of {len(lines)} lines were damaged, and are left out")
        if kept != lines:
            with replacing(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        return kept

    def note(self, **facts: Any) -> None:
        """Adds to the result's provenance: hashes of weights and data, what was selected how."""
        self.facts.update(facts)

    def slot(self, name: str = "train") -> Slot:
        """The place where training saves its state."""
        self._held.announce(slot=name)
        weights = self.facts.get("weights_sha256", "")
        return Slot(self.folder / f"{name}.safetensors", weights, writer=self.writer)

    def save_learned(self, arrays: Mapping[str, np.ndarray], **metadata: Any) -> None:
        """Writes what was learned, with recipe, config, and the given metadata as JSON."""
        if not self.writer:
            return
        about = {"config": self.values, **metadata}
        described = {"format": "jclip-learned", **{k: to_json(v) for k, v in about.items()}}
        safetensors.write(self.folder / LEARNED, arrays, described)

    def hand_over(self, scored: Any) -> None:
        """Keeps what the finished run scored for whoever writes its tables, so that it need not be measured again.

        scored: what the recipe's task writes from, such as `jclip.train.scored_photos.ScoredPhotos`.
        """
        self.handed_over = scored

    def finish(
        self, metrics: Mapping[str, float], complete: Callable[[dict[str, Any]], object] | None = None
    ) -> dict[str, Any]:
        """Writes result.json, the mark that the run has finished, removes the states of training, and returns the result.

        complete(result) writes what else belongs to a finished run before. A process that is not the writer returns the
        result and writes nothing.
        """
        result = {
            "metrics": {k: _rounded(v) if isinstance(v, float) else v for k, v in metrics.items()},
            "config": self.values,
            "provenance": {**provenance(), **self.facts, **self._spent()},
        }
        if not self.writer:
            return result
        if complete:
            complete(result)
        there = [name for name in sorted(self._held.index.files) if name != RESULT and (self.folder / name).is_file()]
        written = json.loads(json.dumps({**result, "files": there}))
        with replacing(self.folder / RESULT) as path:
            text = to_json({**written, "checksum": checksum_of(written)}, indent=1)
            path.write_text(text + "\n", encoding="utf-8")
        self._held.drop_slots()
        return result

    def _spent(self) -> dict[str, Any]:
        """What is another from run to run."""
        wall, cpu = time.monotonic() - self._begun, time.process_time() - self._begun_cpu
        return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "peak_mib": peak_memory()}

    def _claim(self, adjustable: Collection[str]) -> None:
        path = self.folder / CONFIG
        self._held.announce(*OWN)
        if not path.is_file():
            if not self.writer:
                return
            with replacing(path) as temporary:
                temporary.write_text(to_yaml(self.values), encoding="utf-8")
            return
        if path.read_bytes() == to_yaml(self.values).encode():
            return
        held = read_config_text(self.folder)
        if held is None:
            raise ConfigError(f"{path} is damaged, it is not what a run writes: start over with --fresh")
        differing = sorted(_differing(held, self.values))
        begun = not self.writer or self._held.holds_work  # else it ended at a wrong setting, before its first step
        if differing and self.writer and (not begun or {key.split(".")[0] for key in differing} <= {*adjustable}):
            (self.folder / RESULT).unlink(missing_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(to_yaml(self.values), encoding="utf-8")
            if begun:
                notice(f"{self.folder} goes on with another {', '.join(differing)}")
        elif differing:
            raise ConfigError(
                f"{self.folder} holds a run of another config (differs in {', '.join(differing)}): "
                "choose another folder with --run, or start over with --fresh"
            )


def _rounded(value: float) -> float:
    """To six decimals, what is small (a learning rate) to six digits."""
    return round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.6g}")


def read_result(folder: str | os.PathLike) -> dict[str, Any]:
    """Metrics, config and provenance of a finished run. Raises `ConfigError` when there is none, and `CheckpointError`
    for a damaged one, or one of which files with arrays are missing."""
    folder = existing_run(folder)
    path = folder / RESULT
    if not path.is_file():
        near = "" if folder.exists() else did_you_mean(str(folder), SHIPPED_RUNS)
        raise ConfigError(f"{folder} holds no finished run (no {RESULT}){near or ': run `train` to its end first'}")
    try:
        with open_regular(path) as f:
            values = json.loads(f.read())
        shapes = [isinstance(values.setdefault(kind, {}), dict) for kind in ("metrics", "config", "provenance")]
        shapes += [_is_figure(k, v) for k, v in values["metrics"].items()] if shapes[0] else []
        sealed = "checksum" not in values or values.pop("checksum") == checksum_of(values)
        files = values.pop("files", [])
        plain = isinstance(files, list) and all(isinstance(name, str) for name in files)
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged ({e}): train again with --fresh") from e
    if not all(shapes) or not sealed or not plain:
        raise CheckpointError(f"{path} is damaged, it is not what was written: train again with --fresh")
    missing = [name for name in files if name.endswith(".safetensors") and not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} must hold {missing[0]}, which its run wrote: put it back, or train with --fresh"
        )
    return values


def _is_figure(name: str, value: Any) -> bool:
    """Whether a metric has a value that can be shown: a number, or a text where nobody computes with it."""
    return isinstance(value, int | float) or (
        isinstance(value, str | None) and not name.endswith(("top1", "correct", "count"))
    )


class Slot:
    """Where training stands: arrays and position in one file, and the state saved before in another beside it.

    weights: the hash of those it began with, where known. writer: off where another process saves; then states are read
    alone.
    """

    def __init__(self, path: Path, weights: str = "", writer: bool = True):
        self._path, self._weights, self._writer = path, weights, writer
        self._previous, self._next = (path.with_suffix(f".{kind}.safetensors") for kind in ("previous", "next"))

    def save(self, arrays: Mapping[str, np.ndarray | LazyTensor], position: Mapping[str, Any]) -> None:
        """Makes this the state, and the one that was it the previous one. A crash leaves one of them at least.

        The disk holds two states at any time: the oldest is removed before the newest is written.
        """
        if not self._writer:
            return
        about = {"position": json.dumps(position), "threads": threads(), "weights": self._weights}
        if self._path.is_file():
            self._previous.unlink(missing_ok=True)
        safetensors.write(self._next, arrays, about)
        if self._path.is_file():
            self._path.replace(self._previous)
        self._next.replace(self._path)

    def load(self) -> tuple[dict[str, LazyTensor], dict[str, Any]] | None:
        """Arrays, read one by one, and position as saved; None at the start of a run.

        A damaged state is reported, and the one before it taken. Raises `CheckpointError` where both are damaged, or
        training began with other weights.
        """
        there = [path for path in (self._path, self._previous) if path.is_file()]
        for place, path in enumerate(there):
            try:
                metadata, arrays, position = _read_state(path)
            except CheckpointError as e:
                if place + 1 == len(there):
                    raise CheckpointError(f"{e}; no earlier state is left: start over with --fresh") from e
                notice(f"{e}: going on from the state before it")
                continue
            self._check_weights(path, metadata)
            _report_threads(metadata)
            return arrays, position
        return None

    def clear(self) -> None:
        """Forgets the state: training has finished."""
        if not self._writer:
            return
        for path in (self._path, self._previous, self._next):
            path.unlink(missing_ok=True)

    def _check_weights(self, path: Path, metadata: Mapping[str, str]) -> None:
        begun = metadata.get("weights", "")
        if begun and self._weights and begun != self._weights:
            raise CheckpointError(
                f"{path} goes on from weights of SHA-256 {begun[:12]}…, and the model's are now "
                f"{self._weights[:12]}…: put those back, or start over with --fresh"
            )


def _report_threads(metadata: Mapping[str, str]) -> None:
    if metadata.get("threads") != threads():
        notice(
            f"resuming at {threads()} threads what ran at {printable(metadata.get('threads', '?'), 20)}: "
            "the last digits may differ (set OMP_NUM_THREADS to repeat them)"
        )


def _read_state(path: Path) -> tuple[dict[str, str], dict[str, LazyTensor], dict[str, Any]]:
    """Metadata, arrays and position of a saved state. Raises `CheckpointError` where any of it is damaged."""
    saved = safetensors.read_sealed(path)
    try:
        position = json.loads(saved.metadata["position"])
    except (KeyError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is damaged: it has no position") from e
    if not _is_position(position):
        raise CheckpointError(f"{path} is damaged: its position must have epoch, step and metrics")
    return saved.metadata, dict(saved), position


def _is_position(position: Any) -> bool:
    """Whether a saved position has the fields of `jclip.train.loop`, each of its type."""
    if not isinstance(position, dict):
        return False
    counts = [position.get(key) for key in ("epoch", "step")]
    best, groups = position.get("best_epoch"), [position.get(key) for key in ("last", "best")]
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and type(best) is int
        and best >= -1
        and all(isinstance(group, dict) for group in groups)
        and all(type(value) in (int, float) and math.isfinite(value) for group in groups for value in group.values())
    )


def _differing(a: Any, b: Any, prefix: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = set(a) | set(b)
        return set().union(*(_differing(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else str(k)) for k in keys))
    return set() if a == b else {prefix}

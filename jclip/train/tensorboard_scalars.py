"""What a run logs as TensorBoard's scalars, in one event file beside metrics.jsonl. Needs tensorboardX.

The file says the same as metrics.jsonl: a resumed run rewrites it from there, and appends.
"""

from __future__ import annotations

import importlib
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jclip.errors import ConfigError
from jclip.paths import naming, replacing

FILE = "events.out.tfevents.jclip"  # TensorBoard finds files by "tfevents" in their names
_POSITION = ("epoch", "step", "slot")


class Scalars:
    """The event file of a run at `path`. Raises `ConfigError` where tensorboardX is not installed."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._events = importlib.import_module("tensorboardX.proto.event_pb2")
            self._summaries = importlib.import_module("tensorboardX.proto.summary_pb2")
            self._checksum = importlib.import_module("tensorboardX.record_writer").masked_crc32c
        except ImportError as e:
            raise ConfigError(f"log=tensorboard needs tensorboardX ({e}): pip install 'jclip[tensorboard]'") from None

    def begin(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """The file from its start, with what was logged before."""
        first = self._events.Event(wall_time=time.time(), file_version="brain.Event:2")
        with replacing(self.path) as temporary:
            temporary.write_bytes(self._record(first) + b"".join(map(self._of_line, lines)))

    def add(self, values: Mapping[str, Any]) -> None:
        """Appends the numbers among one line's values, each as `<slot>/<name>` at its step."""
        if not self.path.is_file():
            self.begin(())
        with naming(self.path), open(self.path, "ab") as file:
            file.write(self._of_line(values))

    def _of_line(self, values: Mapping[str, Any]) -> bytes:
        numbers = {k: v for k, v in values.items() if k not in _POSITION and type(v) in (int, float)}
        summary = self._summaries.Summary()
        for name, value in numbers.items():
            summary.value.add(tag=f"{values.get('slot', 'run')}/{name}", simple_value=value)
        step = int(values.get("step", values.get("epoch", 0)))
        return self._record(self._events.Event(wall_time=time.time(), step=step, summary=summary)) if numbers else b""

    def _record(self, event: Any) -> bytes:
        """A TFRecord frame: length and data, each with its check sum."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", self._checksum(part)) for part in (length, data))
        return b"".join((length, next(sums), data, next(sums)))

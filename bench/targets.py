"""What each measured row must reach at least, or at most: the one table of targets, and what falls below it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ONE_THREAD = ("grounding",)  # sections measured by one thread, in CPU time, whatever the others have


@dataclass(frozen=True)
class Target:
    """A figure of a row in a section of a results file, and its limit; with `to`, the figure as a share of another one."""

    section: str
    row: str
    figure: tuple[str, ...]
    limit: float
    at_most: bool = False
    to: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The row and what is measured of it."""
        return f"{self.row}: {WORDS[self.figure]}"

    def value(self, results: dict) -> float | None:
        """The measured figure, if it was measured."""
        own, other = (self._found(results, keys) for keys in (self.figure, self.to))
        return own if not self.to or own is None else own / other if other else None

    def _found(self, results: dict, keys: tuple[str, ...]) -> float | None:
        found = results.get(self.section, {}).get(self.row)
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def missed(self, value: float) -> bool:
        """Whether the figure does not reach the target."""
        return value > self.limit if self.at_most else value < self.limit


RATIO, TO_HALF, OF_HALF_RATE = ("ratio",), ("to_half",), ("of_half_rate",)
SAME_CUT, CPU_SECONDS = ("ratio", "same cut"), ("cpu_seconds",)
SDPA = ("ratios", "sdpa / jclip", "cpu_seconds")  # of bench/grounding_speed.py
MEMORY = ("jclip", "peak_mib")
WORDS = {
    RATIO: "of torch's speed", TO_HALF: "of jclip's speed in bf16", OF_HALF_RATE: "of the bf16 product rate",
    SAME_CUT: "of the speed of torch with the same savings", CPU_SECONDS: "CPU seconds",
    SDPA: "with a key mask: of the speed of torch's sdpa", MEMORY: "of torch's peak memory",
}  # fmt: skip
_RATIOS = {
    "image ViT-B/32 batch 1": 1.0, "image ViT-B/32 batch 32": 1.15, "image ViT-B/16 batch 32": 1.15,
    "image RN50 batch 32": 1.1, "image ViT-B/32 batch 32 bf16": 1.5, "image ViT-B/16 batch 32 bf16": 1.5,
    "text 374 prompts": 5.0, "text 374 prompts, torch cut too": 1.1, "photos ViT-B/32 2000 JPEGs": 1.0,
    "train ViT-B/32 batch 16": 1.15, "train RN50 batch 16": 1.15,
    "train ViT-B/32 batch 16 bf16": 1.25, "train RN50 batch 16 bf16": 1.25,
}  # fmt: skip
_INT8 = ("image ViT-B/32 batch 32 int8", "image ViT-B/16 batch 32 int8")
_TOWERS = ("LoRA step, batch 32", "CoOp epoch")
TARGETS = (
    *(Target("tasks", row, RATIO, limit) for row, limit in _RATIOS.items()),
    *(Target("tasks", f"image {m} batch 32 bf16", OF_HALF_RATE, 0.7) for m in ("ViT-B/32", "ViT-B/16")),
    *(Target("tasks", row, TO_HALF, 1.5) for row in _INT8),
    *(Target("towers", row, SAME_CUT, 1.2) for row in _TOWERS),
    Target("grounding", "attention", SDPA, 1.15),
    Target("starts", "first start", CPU_SECONDS, 120.0, at_most=True),  # a minute on two cores
    Target("starts", "second start", CPU_SECONDS, 2.5, at_most=True),  # with one thread
    *(Target("tasks", row, MEMORY, 1.0, at_most=True, to=("torch", "peak_mib")) for row in (*_RATIOS, *_INT8)),
    *(Target("towers", row, MEMORY, 1.0, at_most=True, to=("same cut", "peak_mib")) for row in _TOWERS),
)


def processor() -> str:
    """This machine's processor: its name, and the family and model that tell processors of one name apart."""
    try:
        said = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text().partition("\n\n")[0], re.M))
    except OSError:
        said = {}
    numbers = f" (family {said['cpu family']}, model {said['model']})" if {"cpu family", "model"} <= set(said) else ""
    return said.get("model name", platform.processor() or "unknown") + numbers


def missed_by(row: str, result: dict) -> list[Target]:
    """The targets that one task's result does not reach."""
    of = [t for t in TARGETS if (t.section, t.row) == ("tasks", row)]
    values = ((t, t.value({"tasks": {row: result}})) for t in of)
    return [t for t, value in values if value is not None and t.missed(value)]


def recorded(cpu: str, threads: int, folder: Path = RESULTS) -> dict:
    """All that the files of a folder hold of this processor and number of threads; of two figures the newer one.

    Sections of `ONE_THREAD` are those of one thread.
    """
    together: dict[str, dict] = {}
    for results in reversed(newest_first(folder)):
        for section, rows in results.items():
            of = (cpu, 1 if section in ONE_THREAD else threads)
            machine = (results["machine"]["cpu"], results["machine"]["threads"])
            if isinstance(rows, dict) and section != "machine" and machine == of:
                together.setdefault(section, {}).update(rows)
    return together


def newest_first(folder: Path = RESULTS) -> list[dict]:
    """Every results file of a folder and those below it, by when it was written."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))]
    return sorted(files, key=lambda results: results["machine"]["time"], reverse=True)


def report(results: dict, targets: Iterable[Target] = TARGETS) -> list[str]:
    """Print each target beside its figure. Returns the names of those that are missed."""
    missed = []
    for target in targets:
        value = target.value(results)
        word = "not measured" if value is None else "below" if target.missed(value) else "reached"
        word = "above" if word == "below" and target.at_most else word
        side, shown = "at most" if target.at_most else "at least", "" if value is None else f"{value:.2f}"
        print(f"{word:12}  {shown:>7}  {side} {target.limit:6.2f}  {target.name}")
        if word in ("below", "above"):
            missed.append(target.name)
    return missed

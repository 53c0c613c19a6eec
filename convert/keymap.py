"""Names of one layout to names of another: a table of rules, applied without reading a tensor, and a report of all keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jclip.readers import LazyTensor


@dataclass(frozen=True)
class Rule:
    """`sources` become `target`; one `{}` in each stands for the layer. An empty target drops the sources.

    transform: "same", "transpose" (of a matrix), "stack" (several sources one below the other).
    """

    sources: tuple[str, ...]
    target: str
    transform: str = "same"


@dataclass
class Report:
    """What became of each key."""

    copied: list[str] = field(default_factory=list)
    transformed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.copied)} copied, {len(self.transformed)} transformed, {len(self.dropped)} dropped"
        return counts + (
            f" ({', '.join(self.dropped[:4])}{', …' if len(self.dropped) > 4 else ''})" if self.dropped else ""
        )


def apply(tensors: Mapping[str, LazyTensor], rules: Iterable[Rule]) -> tuple[dict[str, LazyTensor], Report]:
    """Tensors under their new names, read only when asked for, and the report; keys that no rule names are `unknown`."""
    made: dict[str, LazyTensor] = {}
    report, seen = Report(), set()
    for rule in rules:
        for layer in layers_of(tensors, rule.sources[0]):
            names = [source.replace("{}", layer) for source in rule.sources]
            if not all(name in tensors for name in names):
                continue  # what the target then lacks is told by the comparison with the model
            seen.update(names)
            if not rule.target:
                report.dropped += names
                continue
            made[rule.target.replace("{}", layer)] = TRANSFORMS[rule.transform]([tensors[name] for name in names])
            (report.copied if rule.transform == "same" else report.transformed).extend(names)
    report.unknown = [name for name in tensors if name not in seen]
    return made, report


def layers_of(tensors: Mapping[str, LazyTensor], pattern: str) -> list[str]:
    """What `{}` stands for in the keys that match, in the order of numbers; one empty string where there is no `{}`."""
    if "{}" not in pattern:
        return [""] if pattern in tensors else []
    matcher = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    found = {m.group(1) for m in map(matcher.fullmatch, tensors) if m}
    return sorted(found, key=int)


def transposed(parts: list[LazyTensor]) -> LazyTensor:
    """(a, b) → (b, a)."""
    (only,) = parts
    return LazyTensor(only.shape[::-1], only.dtype, lambda: np.ascontiguousarray(only.read().T))


def stacked(parts: list[LazyTensor]) -> LazyTensor:
    """(a, …), (b, …), … → (a + b + …, …)."""
    shape = (sum(p.shape[0] for p in parts), *parts[0].shape[1:])
    return LazyTensor(shape, parts[0].dtype, lambda: np.concatenate([p.read() for p in parts]))


TRANSFORMS: dict[str, Callable[[list[LazyTensor]], LazyTensor]] = {
    "same": lambda parts: parts[0],
    "transpose": transposed,
    "stack": stacked,
}

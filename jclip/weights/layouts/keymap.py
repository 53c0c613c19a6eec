"""Map names of one layout to another by a table of rules, without reading a tensor, and report all keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jclip.errors import CheckpointError
from jclip.readers import LazyTensor


@dataclass(frozen=True)
class Rule:
    """`sources` become `target`; one `{}` in each stands for the layer. An empty target drops the sources.

    transform: "same", "transpose" (of a matrix), "stack" (several sources along the first axis), "token" ((D,) to (1,
    1, D)), "table" ((N, D) to (1, N, D)); "vector", "rows" and "deep rows" take one, two axes of length one away; "third
    and rest" stacks two sources, of which the first is a third of the whole.
    """

    sources: tuple[str, ...]
    target: str
    transform: str = "same"


def both(source: str, target: str) -> list[Rule]:
    """Return rules for the weight and the bias of one module."""
    return [Rule((f"{source}.{kind}",), f"{target}.{kind}") for kind in ("weight", "bias")]


@dataclass
class Report:
    """Keys by what became of them."""

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
    """Return tensors under their new names, read on demand, and the report; keys without a rule are `unknown`.

    Raises `CheckpointError` for tensors to be stacked that have no common width.
    """
    made: dict[str, LazyTensor] = {}
    report, seen = Report(), set()
    for rule in rules:
        for layer in layers_of(tensors, rule.sources[0]):
            names = [source.replace("{}", layer) for source in rule.sources]
            if not all(name in tensors for name in names):
                continue  # what the target then lacks is reported by the comparison with the model
            seen.update(names)
            if not rule.target:
                report.dropped += names
                continue
            if rule.transform in ("stack", "third and rest"):
                _check_stack({name: tensors[name].shape for name in names})
            made[rule.target.replace("{}", layer)] = TRANSFORMS[rule.transform]([tensors[name] for name in names])
            (report.copied if rule.transform == "same" else report.transformed).extend(names)
    report.unknown = [name for name in tensors if name not in seen]
    return made, report


def _check_stack(shapes: Mapping[str, tuple[int, ...]]) -> None:
    if () in shapes.values() or len({shape[1:] for shape in shapes.values()}) > 1:
        raise CheckpointError(
            f"{', '.join(shapes)} must have shapes that differ in the first axis only, got "
            f"{', '.join(map(str, shapes.values()))}"
        )


def unapply(tensors: Mapping[str, LazyTensor], rules: Iterable[Rule]) -> dict[str, LazyTensor]:
    """Invert `apply`: return tensors under the names of the rules' sources. Every tensor has one."""
    made: dict[str, LazyTensor] = {}
    for rule in rules:
        for layer in layers_of(tensors, rule.target) if rule.target else ():
            parts = INVERSES[rule.transform](tensors[rule.target.replace("{}", layer)], len(rule.sources))
            made |= {name.replace("{}", layer): part for name, part in zip(rule.sources, parts, strict=True)}
    return made


def layers_of(tensors: Mapping[str, LazyTensor], pattern: str) -> list[str]:
    """Return what `{}` stands for in the keys that match, in numeric order; one empty string where there is no `{}`."""
    if "{}" not in pattern:
        return [""] if pattern in tensors else []
    matcher = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d{1,6})"))
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


def unstacked(tensor: LazyTensor, count: int) -> list[LazyTensor]:
    """(count * a, …) → `count` of (a, …)."""
    rows = tensor.shape[0] // count
    shape = (rows, *tensor.shape[1:])
    return [LazyTensor(shape, tensor.dtype, lambda i=i: tensor.read()[i * rows : (i + 1) * rows]) for i in range(count)]


def without(axes: int) -> Callable[[LazyTensor, int], list[LazyTensor]]:
    """Remove that many leading axes of length one."""

    def flattened(tensor: LazyTensor, _: int) -> list[LazyTensor]:
        shape = tensor.shape[axes:]
        return [LazyTensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))]

    return flattened


def under(axes: int) -> Callable[[list[LazyTensor]], LazyTensor]:
    """Add that many leading axes of length one."""

    def deepened(parts: list[LazyTensor]) -> LazyTensor:
        (only,) = parts
        shape = (1,) * axes + only.shape
        return LazyTensor(shape, only.dtype, lambda: only.read().reshape(shape))

    return deepened


def joined(parts: list[LazyTensor]) -> LazyTensor:
    """(a, …), (2a, …) → (3a, …). Raises `CheckpointError` for other lengths."""
    first, rest = parts
    if rest.shape[0] != 2 * first.shape[0]:
        raise CheckpointError(f"keys and values must be twice as long as queries, got {first.shape} and {rest.shape}")
    return stacked(parts)


def parted(tensor: LazyTensor, _: int) -> list[LazyTensor]:
    """(3a, …) → (a, …) and (2a, …)."""
    cut, rest = tensor.shape[0] // 3, tensor.shape[1:]
    return [
        LazyTensor((cut, *rest), tensor.dtype, lambda: tensor.read()[:cut]),
        LazyTensor((2 * cut, *rest), tensor.dtype, lambda: tensor.read()[cut:]),
    ]


def flat(axes: int) -> Callable[[list[LazyTensor]], LazyTensor]:
    """Remove that many leading axes of length one. Raises `CheckpointError` where they are longer."""

    def flattened(parts: list[LazyTensor]) -> LazyTensor:
        (only,) = parts
        if only.shape[:axes] != (1,) * axes:
            raise CheckpointError(f"a tensor of shape {only.shape} must begin with {axes} axes of length one")
        return without(axes)(only, 1)[0]

    return flattened


TRANSFORMS: dict[str, Callable[[list[LazyTensor]], LazyTensor]] = {
    "same": lambda parts: parts[0],
    "transpose": transposed,
    "stack": stacked,
    "token": under(2),
    "table": under(1),
    "vector": flat(2),
    "rows": flat(1),
    "deep rows": flat(2),
    "third and rest": joined,
}
INVERSES: dict[str, Callable[[LazyTensor, int], list[LazyTensor]]] = {
    "same": lambda tensor, _: [tensor],
    "transpose": lambda tensor, _: [transposed([tensor])],
    "stack": unstacked,
    "token": without(2),
    "table": without(1),
    "vector": lambda tensor, _: [under(2)([tensor])],
    "rows": lambda tensor, _: [under(1)([tensor])],
    "deep rows": lambda tensor, _: [under(2)([tensor])],
    "third and rest": parted,
}

"""Rows in parts: features of more rows than a backward pass can hold, with the gradients of all of them together.

Gao et al., 2021, arXiv 2101.06983: features are first computed without gradient, the loss takes all of them, and where its
gradient arrives each part is recomputed. One more forward pass, the memory of one part, and the whole batch's result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from jclip.kernels.function import Function
from jclip.runtime import jt

Part = TypeVar("Part")


def in_parts(encode: Callable[[Part], jt.Var], parts: Sequence[Part], params: Iterable[jt.Var]) -> jt.Var:
    """`encode(part)` (n, E) of every part, joined along the first axis; one part at a time is kept in memory.

    params: what `encode` reads and what gets gradients. What `encode` draws at random must
    be the same in a second call with a part.
    """
    if len(parts) == 1:
        return encode(parts[0])
    wanted = list(params)
    return _InParts.apply(encode, parts, wanted, *wanted)


def slices(count: int, size: int) -> list[slice]:
    """`count` rows in as few parts of at most `size` as there can be, of equal length as nearly as possible."""
    parts = -(-count // size)
    bounds = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


class _InParts(Function):
    def execute(self, encode, parts, params, *_):  # the last are copies, which are no leaves of what `encode` does
        self.encode, self.parts, self.params = encode, parts, params
        with jt.no_grad():
            made = []
            for part in parts:
                made.append(encode(part))
                made[-1].sync()  # frees this part's activations
            self.ends = [len(features) for features in made]
            return jt.concat(made, dim=0)

    def grad(self, gradient):
        total, start = None, 0
        gradient = gradient.detach()  # which hangs on the parameters, too
        for part, count in zip(self.parts, self.ends, strict=True):
            features = self.encode(part)
            part_of_loss = (features * gradient[start : start + count]).sum()
            own = jt.grad(part_of_loss, self.params, retain_graph=False)  # or this part's activations stay to the end
            with jt.no_grad():  # sums that remember no part of themselves
                total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
            jt.sync(total)
            start += count
        return None, None, None, *total

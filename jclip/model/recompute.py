"""Training with little memory: of each transformer block only its input is kept, and the backward pass computes it again.

Chen et al., 2016, arXiv 1604.06174. One more forward pass, the memory of one block instead of all, and the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jclip.kernels.function import Function
from jclip.model.clip import CLIP
from jclip.model.low_rank import Adapters
from jclip.runtime import jt


def recompute_blocks(model: CLIP, params: Mapping[str, jt.Var], adapters: Adapters | None = None) -> None:
    """From now on the blocks of both transformers are computed again where gradients pass; what is no transformer stays.

    params: what is trained, by name, low-rank updates among it. adapters: whose dropout has to draw alike in both passes.
    """
    for name, block in _blocks(model):
        own = [var for key, var in params.items() if key.startswith(f"{name}.")]
        block.execute = _Recomputed(block.execute, own, adapters)


def _blocks(model: CLIP) -> Iterator[tuple[str, Any]]:
    towers = [("transformer", "resblocks", getattr(model, "transformer", None))]
    visual, text = getattr(model, "visual", None), getattr(model, "text", None)
    towers.append(("text.transformer", "resblocks", getattr(text, "transformer", None)))
    towers.append(("visual.transformer", "resblocks", getattr(visual, "transformer", None)))
    towers.append(("visual.trunk", "blocks", getattr(visual, "trunk", None)))
    for tower, listed, module in towers:
        blocks = getattr(module, listed, None)
        for number in range(len(blocks) if blocks is not None else 0):
            yield f"{tower}.{listed}.{number}", blocks[number]


class _Recomputed:
    """Stands for a block's `execute`."""

    def __init__(self, execute: Callable, params: list[jt.Var], adapters: Adapters | None):
        self._execute, self._params, self._adapters = execute, params, adapters

    def __call__(self, x, *rest, **options):
        if jt.flags.no_grad:
            return self._execute(x, *rest, **options)
        return _Again.apply(self._run(rest, options), self._params, x, *self._params)

    def _run(self, rest: tuple, options: dict) -> Callable:
        """input → output, with the same draws at every call."""
        adapters = self._adapters
        begun = adapters.position if adapters else None

        def run(x):
            before = adapters.position if adapters else None
            if adapters:
                adapters.position = begun
            y = self._execute(x, *rest, **options)
            self._go_on(before if before != begun else None)
            return y

        return run

    def _go_on(self, position) -> None:
        """Behind a second pass the draws stand where the first passes left them."""
        if position is not None:
            self._adapters.position = position


class _Again(Function):
    def execute(self, run, params, x, *_):  # the last are copies, which are no leaves of what the block does
        self.run, self.params = run, params
        self.keep(x)
        with jt.no_grad():
            y = run(x)
            y.sync()  # frees what is inside the block
        return y

    def grad(self, gradient):
        (x,) = self.kept()
        x = x.detach()
        x.start_grad()
        y = self.run(x)
        part = (y * gradient.detach()).sum()
        found = jt.grad(part, [x, *self.params], retain_graph=False)
        jt.sync(found)
        with jt.no_grad():
            found = [g.detach() for g in found]
        return None, None, *found

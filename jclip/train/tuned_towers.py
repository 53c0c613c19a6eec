"""What of a model is trained, in one hand: some of its weights or low-rank updates of them, with a bias of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jclip.model.clip import CLIP, put_arrays, training_mode
from jclip.model.low_rank import Adapters
from jclip.model.parameter_groups import LowRank
from jclip.model.trainable import trainable
from jclip.runtime import jt


class TunedTowers:
    """`params` by name: those of `model` that match `patterns`, or its logit scale and the updates of `lora`.

    bias: where SigLIP's bias starts, which is trained as `logit_bias`; None: there is none, or it is the model's own.
    """

    def __init__(
        self,
        model: CLIP,
        patterns: Sequence[str],
        lora: LowRank | None = None,
        bias: float | None = None,
        seed: int = 0,
    ):
        self.model = model
        training_mode(model, () if lora else patterns)
        of_the_loss = ("logit_scale", "logit_bias") if model.config.sigmoid else ("logit_scale",)
        self.params = trainable(model, of_the_loss if lora else {*of_the_loss, *patterns})
        self.adapters = Adapters(model, lora, seed) if lora else None
        if self.adapters:
            self.adapters.attach()
            self.params |= self.adapters.params
        self.bias: dict[str, jt.Var] = {} if bias is None else {"logit_bias": jt.array([float(bias)])}
        self.params |= self.bias

    @property
    def further(self) -> dict[str, jt.Var]:
        """What is trained and no weight of the model, by name."""
        return {**self.bias, **(self.adapters.params if self.adapters else {})}

    def weights(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `arrays` of the parameters and statistics make of the model's weights, by name; the updates merged."""
        own = self.model.state_dict()
        merged = self.adapters.merged(arrays) if self.adapters else {}
        return {**{k: v for k, v in arrays.items() if k in own}, **merged}

    @contextlib.contextmanager
    def merged(self, arrays: Mapping[str, np.ndarray]) -> Iterator[None]:
        """In the block the model has the weights that `arrays` make, and no updates beside them."""
        weights = self.weights(arrays)
        kept = {k: v for k, v in self.model.state_dict().items() if k in weights}
        before = {k: v.numpy() for k, v in kept.items()}
        self.end(weights)
        try:
            yield
        finally:
            put_arrays(self.model, before)
            for name, var in kept.items():  # what is put is trained by default
                var.start_grad() if name in self.params else var.stop_grad()
            if self.adapters:
                self.adapters.attach()

    def end(self, weights: Mapping[str, np.ndarray]) -> None:
        """Training has ended with these weights: the model has them, and no updates."""
        put_arrays(self.model, weights)
        if self.adapters:
            self.adapters.detach()

    def train(self, on: bool) -> None:
        """Whether the updates' dropout is on."""
        if self.adapters:
            self.adapters.train(on)

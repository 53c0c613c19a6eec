"""What is trained, how it moves, and how fast: equal to torch step for step, with all state open for checkpoints.

Jittor's own optimisers compute alike but keep their moments out of `state_dict()`, and its schedules run one step late.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from jclip import kernels
from jclip.config import OptimConfig
from jclip.errors import CheckpointError
from jclip.kernels import collectives
from jclip.machine import ranks
from jclip.readers.tensors import LazyTensor
from jclip.runtime import jt
from jclip.weights import checkpoint


class Optimiser(ABC):
    """Base of `AdamW` and `SGD`: `params` by name, one learning rate, decay switched off where `exclude` says so.

    average: what `TrainState` keeps of them besides. rates: by which factor a parameter's rate differs from `lr`; 1 where
    none is named.
    """

    average = 0.0

    def __init__(
        self,
        params: Mapping[str, jt.Var],
        lr: float,
        weight_decay: float,
        exclude: Callable[[str, jt.Var], bool] | None = None,
    ):
        self.params = dict(params)
        self.lr = lr
        self.rates: Mapping[str, float] = {}
        self.steps = 0
        self._decay = {k: 0.0 if exclude and exclude(k, p) else weight_decay for k, p in self.params.items()}
        self._moments: dict[str, dict[str, jt.Var]] = {}

    def step(self, loss, clip: float = 0.0) -> None:
        """One step down the gradient of `loss`; `clip` > 0 bounds the global L2 norm first, as torch's clip_grad_norm_."""
        gradients = jt.grad(loss, list(self.params.values()))
        self.apply(clip_by_norm(gradients, clip) if clip > 0 else gradients)

    def apply(self, gradients: Iterable[jt.Var]) -> None:
        """One step along given gradients, in the order of `params`. Everything is computed before it returns control."""
        self.steps += 1
        with jt.no_grad():
            for (name, p), g in zip(self.params.items(), gradients, strict=True):
                self._update(name, p, g)
                p.start_grad()  # what is computed without gradient hands that on
        jt.sync([*self.params.values(), *(m for group in self._moments.values() for m in group.values())])

    def tensors(self) -> dict[str, LazyTensor]:
        """All that a resumed run needs besides the parameters, each copied when it is read."""
        steps = np.array([self.steps], np.int64)
        moments = {f"{kind}.{k}": copied(m) for kind, group in self._moments.items() for k, m in group.items()}
        return {"steps": LazyTensor((1,), "int64", lambda: steps), **moments}

    def load_state(self, state: Mapping[str, LazyTensor]) -> None:
        """The inverse of `tensors`. Raises `CheckpointError` when it belongs to other parameters."""
        wanted = {"steps", *(f"{kind}.{k}" for kind, group in self._moments.items() for k in group)}
        if set(state) != wanted:
            raise CheckpointError(f"optimiser state does not fit: {sorted(set(state) ^ wanted)[:4]} …")
        moments = {f"{kind}.{k}": m for kind, group in self._moments.items() for k, m in group.items()}
        misshaped = [name for name, m in moments.items() if state[name].shape != tuple(m.shape)]
        if misshaped or state["steps"].shape != (1,):
            raise CheckpointError(f"optimiser state does not fit: {(misshaped or ['steps'])[0]} has another shape")
        self.steps = int(state["steps"].read()[0])
        for kind, group in self._moments.items():
            for k, m in group.items():
                m.update(jt.array(state[f"{kind}.{k}"].read()).stop_grad())

    def _rate(self, name: str) -> float:
        return self.lr * self.rates.get(name, 1.0)

    @abstractmethod
    def _update(self, name: str, p, g) -> None:
        """Moves parameter `p` of that name, and its moments, one step along gradient `g`."""

    def _zeros(self) -> dict[str, jt.Var]:
        return {k: jt.zeros_like(p).stop_grad() for k, p in self.params.items()}


class AdamW(Optimiser):
    """Loshchilov & Hutter, arXiv 1711.05101, algorithm 2, decay decoupled: torch.optim.AdamW."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, exclude=None):
        super().__init__(params, lr, weight_decay, exclude)
        self.betas, self.eps = betas, eps
        self._moments = {"m": self._zeros(), "v": self._zeros()}

    def _update(self, name: str, p, g) -> None:
        (b1, b2), t = self.betas, self.steps
        m, v = self._moments["m"][name], self._moments["v"][name]
        lr = self._rate(name)
        keep, step, root = 1 - lr * self._decay[name], lr / (1 - b1**t), 1 / math.sqrt(1 - b2**t)
        moved = kernels.adamw(p, m, v, g, self.betas, keep, step, root, self.eps)
        for var, new in zip((p, m, v), moved, strict=True):
            if new is not var:
                var.update(new)


class SGD(Optimiser):
    """Momentum without dampening, decay in the gradient: torch.optim.SGD."""

    def __init__(self, params, lr=1e-2, momentum=0.9, weight_decay=0.0, nesterov=False, exclude=None):
        super().__init__(params, lr, weight_decay, exclude)
        self.momentum, self.nesterov = momentum, nesterov
        self._moments = {"buffer": self._zeros()}

    def _update(self, name: str, p, g) -> None:
        buffer = self._moments["buffer"][name]
        g = g + self._decay[name] * p
        buffer.update(self.momentum * buffer + g)
        p.update(p - self._rate(name) * (g + self.momentum * buffer if self.nesterov else buffer))


def copied(var: jt.Var) -> LazyTensor:
    """A Var whose values are copied to the host when they are read."""
    return LazyTensor(tuple(var.shape), str(var.dtype), var.numpy)


def optimiser(config: OptimConfig, params: Mapping[str, jt.Var], exclude=None) -> Optimiser:
    """The optimiser that `config` names, for `params`."""
    if config.name == "adamw":
        made = AdamW(params, config.lr, config.betas, config.eps, config.weight_decay, exclude)
    else:
        made = SGD(params, config.lr, config.momentum, config.weight_decay, config.nesterov, exclude)
    made.average = config.average
    return made


def step_together(
    optimiser: Optimiser, loss: jt.Var, clip: float = 0.0, once: Callable[[str], bool] = lambda name: False
) -> None:
    """`optimiser.step` by several ranks that have computed the same loss, each with gradients through its own rows.

    once: parameters, by name, whose gradients are whole on each rank: what no rows lie between and the loss.
    """
    if not ranks.here().several:
        optimiser.step(loss, clip)
        return
    gradients = jt.grad(loss, list(optimiser.params.values()))
    _, gradients = collectives.summed_gradients(
        loss, gradients, [once(name) for name in optimiser.params], loss_once=True
    )
    optimiser.apply(clip_by_norm(gradients, clip) if clip > 0 else gradients)


def clip_by_norm(gradients: list, limit: float) -> list:
    """Gradients scaled by min(1, limit / (‖all‖₂ + 1e-6))."""
    total = sum((g * g).sum() for g in gradients)
    scale = jt.minimum(limit / (jt.sqrt(total) + 1e-6), jt.ones((1,)))
    return [g * scale for g in gradients]


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total`, which are those of all `config.epochs`.

    First a warm-up, at `warmup_lr` or linearly up; then constant, half a cosine to 0, down by a factor after every so many
    epochs, or, by epochs, a cosine that counts from 0 after the warm-up and so ends above 0 (as CoOp and TaI-DPT have it).
    """
    if config.schedule == "epoch_cosine":
        return _by_epoch(config, step * config.epochs // total)
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.warmup_lr or config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.gamma ** (step * config.epochs // total // config.step_epochs)
    return cosine(step - warmup, total - warmup, config.lr)


def _by_epoch(config: OptimConfig, epoch: int) -> float:
    """The rate of an epoch from 0; the warm-up is counted in epochs."""
    warmup = warmup_steps(config, config.epochs)
    if epoch < warmup:
        return config.warmup_lr or config.lr * (epoch + 1) / warmup
    return cosine(epoch - warmup, config.epochs, config.lr)


def warmup_steps(config: OptimConfig, total: int) -> int:
    """Steps of warm-up (epochs, where `total` counts these); a value below 1 is a share of `total`."""
    return round(config.warmup * total) if config.warmup < 1 else round(config.warmup)


def cosine(step: int, total: int, high: float, low: float = 0.0) -> float:
    """low + (high - low) (1 + cos(π step / total)) / 2: torch's CosineAnnealingLR in closed form."""
    return low + (high - low) * (1 + math.cos(math.pi * step / max(total, 1))) / 2


class TrainState:
    """What a checkpoint holds besides the position: parameters, the optimiser's state, an average of the parameters.

    The average is exponential, a = d a + (1 - d) p after each step, from the weights before the first one on; `extra`,
    such as running statistics, has none. `optimiser.average` is d, 0 for no average.
    """

    def __init__(self, optimiser: Optimiser, extra: Mapping[str, jt.Var] | None = None):
        self.optimiser = optimiser
        self._vars = {**optimiser.params, **(extra or {})}
        self._decay, averaged = optimiser.average, optimiser.params if optimiser.average else {}
        self.average = {k: p.detach().clone().stop_grad() for k, p in averaged.items()}

    def settle(self) -> None:
        """Moves the average one step towards the parameters, and computes all that an optimiser's step left to be done.

        What several steps leave pending is fused into one kernel, which rounds otherwise than step by step: a resumed
        run would differ in the last bit.
        """
        for k, a in self.average.items():
            a.update(self._decay * a + (1 - self._decay) * self.optimiser.params[k].detach())
        jt.sync([*self._vars.values(), *self.average.values()])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """In the block the parameters are the average, if there is one."""
        raw = {k: self.optimiser.params[k].detach() for k in self.average}
        self.keep_average()
        try:
            yield
        finally:
            self._replace(raw)

    def keep_average(self) -> None:
        """The parameters become the average, if there is one, for good: training has ended."""
        self._replace({k: a.detach() for k, a in self.average.items()})

    def _replace(self, values: Mapping[str, jt.Var]) -> None:
        for k, value in values.items():
            self.optimiser.params[k].update(value)
            self.optimiser.params[k].start_grad()
        jt.sync([self.optimiser.params[k] for k in values])

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of the parameters and of what belongs to them, by name."""
        return {k: v.numpy() for k, v in self._vars.items()}

    def parameters(self) -> dict[str, LazyTensor]:
        """`arrays`, of which each is copied when it is read."""
        return {k: copied(v) for k, v in self._vars.items()}

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        _put(self._vars, arrays.items())

    def tensors(self) -> dict[str, LazyTensor]:
        """Everything as it is now, by name: each is copied when it is read, so that a large model is never there twice."""
        return {
            **{f"param.{k}": v for k, v in self.parameters().items()},
            **{f"optim.{k}": v for k, v in self.optimiser.tensors().items()},
            **{f"average.{k}": copied(v) for k, v in self.average.items()},
        }

    def restore(self, tensors: Mapping[str, LazyTensor]) -> None:
        """The inverse of `tensors`, read one by one. Raises `CheckpointError` when names or shapes differ."""
        own = {f"param.{k}": v for k, v in self._vars.items()} | {f"average.{k}": v for k, v in self.average.items()}
        saved = {k: a for k, a in tensors.items() if not k.startswith("optim.")}
        checkpoint.compare_keys(
            {k: tuple(v.shape) for k, v in own.items()}, {k: a.shape for k, a in saved.items()}, "saved state"
        )
        _put(own, ((k, tensor.read()) for k, tensor in saved.items()))
        self.optimiser.load_state({k.removeprefix("optim."): a for k, a in tensors.items() if k.startswith("optim.")})
        jt.sync_all()


def _put(own: Mapping[str, jt.Var], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Gives Vars the values of their names; what is trained stays so, and what is frozen."""
    for k, array in arrays:
        var = own[k]
        frozen = var.is_stop_grad()
        var.update(jt.array(np.ascontiguousarray(array)))
        var.stop_grad() if frozen else var.start_grad()
    jt.sync(list(own.values()))

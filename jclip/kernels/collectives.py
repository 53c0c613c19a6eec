"""What the processes of one training do together: sums, arrays joined, features gathered with their gradients.

Each of these functions is called by all ranks, in the same order, or they wait for each other without end. In one
process each gives back what it was given. Arrays pass through the host's memory, but for gradients on GPUs that NCCL
connects: `device_sums`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jclip.errors import JclipError
from jclip.kernels import device_sums
from jclip.kernels.function import Function
from jclip.machine import ranks
from jclip.runtime import jt

SHOWN = 40  # characters of a value in which ranks differ
NOTHING = "none"
SMALL = 1 << 16  # numbers of an array that is summed together with others


class RanksDiffer(JclipError):
    """The processes of one training do not hold the same."""


def total(array: np.ndarray) -> np.ndarray:
    """The sum over ranks of `array`, of one shape and type (float32, float64 or int32) everywhere."""
    if not ranks.here().several:
        return array
    with jt.flag_scope(use_cuda=0):
        summed = jt.array(np.ascontiguousarray(array))
        summed.sync()
        jt.compile_extern.mpi.var_all_reduce(summed)
        return summed.numpy().reshape(array.shape)


def wait_for_all() -> None:
    """Return when every rank has come here."""
    total(np.zeros(1, np.float32))


def summed_gradients(
    loss: jt.Var, gradients: list[jt.Var], once: Sequence[bool] = (), loss_once: bool = False
) -> tuple[jt.Var, list[jt.Var]]:
    """The sums over ranks of each rank's part of the loss, and of its gradients. `gradients` is empty afterwards: sums
    take the place of its arrays, one by one.

    once, loss_once: what all ranks have computed alike and as a whole, and so counts once: rank 0's is taken.
    """
    here = ranks.here()
    if not here.several:
        return loss, gradients
    arrays = [*gradients, loss]
    kept = [not of_all or here.first for of_all in (*(once or [False] * len(gradients)), loss_once)]
    gradients.clear()
    small = [i for i, array in enumerate(arrays) if array.numel() <= SMALL]
    sums = dict(zip(small, _summed_at_once([arrays[i] for i in small], [kept[i] for i in small]), strict=True))
    for i, array in enumerate(arrays):
        if i not in sums:
            sums[i] = _summed_copy(array, kept[i])
        arrays[i] = array = None  # its memory is free before the next one's sum is made
    *made, total_loss = (sums[i] for i in range(len(arrays)))
    return total_loss, made


def _summed_at_once(arrays: list[jt.Var], kept: list[bool]) -> list[jt.Var]:
    """Sums of small arrays in one exchange: each costs ranks a wait for each other."""
    jt.sync(arrays)
    if device := device_sums.between(given):
        return device.of_many([_own(a, keep) for a, keep in zip(arrays, kept, strict=True)])
    flat = [
        a.float32().numpy().ravel() if keep else np.zeros(a.numel(), np.float32)
        for a, keep in zip(arrays, kept, strict=True)
    ]
    parts = np.split(total(np.concatenate(flat)), np.cumsum([len(one) for one in flat])[:-1])
    return [jt.array(part.reshape(tuple(a.shape))) for part, a in zip(parts, arrays, strict=True)]


def _summed_copy(array: jt.Var, kept: bool) -> jt.Var:
    """The sum over ranks of those that keep theirs; a copy, since gradients may share their memory."""
    mine = _own(array, kept)
    if device := device_sums.between(given):
        return device.of_one(mine)
    if jt.flags.use_cuda:
        return jt.array(total(mine.numpy()))
    summed = mine.copy()
    summed.sync()
    jt.compile_extern.mpi.var_all_reduce(summed)
    return summed


def _own(array: jt.Var, kept: bool) -> jt.Var:
    """What this rank adds of an array, in float32."""
    array = array.float32()
    return array if kept else jt.zeros_like(array)


def joined(array: np.ndarray) -> np.ndarray:
    """Rows of all ranks, those of rank 0 first: (n, …) → (N, …), of one type; a rank may have none."""
    here = ranks.here()
    if not here.several:
        return array
    counts = np.zeros(here.size, np.int32)
    counts[here.rank] = len(array)
    counts = total(counts)
    start = int(counts[: here.rank].sum())
    return placed(array, np.arange(start, start + len(array)), int(counts.sum()))


def placed(array: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Rows of all ranks, (n, …) at their `places` (n,) of the whole → (count, …)."""
    if not ranks.here().several:
        return array
    raw = np.ascontiguousarray(array)
    kind = {"b": np.int32, "i": np.int32, "u": np.int32}.get(raw.dtype.kind, raw.dtype)
    if raw.dtype.kind in "iu" and raw.dtype.itemsize > 4:
        kind = np.float64  # whole numbers to 2^53
    block = np.zeros((count, *raw.shape[1:]), kind)
    block[places] = raw
    return total(block).astype(raw.dtype)


def gathered(features: Sequence[jt.Var], places: np.ndarray, count: int, shared_loss: bool) -> list[jt.Var]:
    """Features of all ranks, each (n, E) at `places` (n,) of the whole → (count, E), with gradients to each rank's own rows.

    shared_loss: whether each rank computes the same loss of all of them, whose gradient is then that of its own rows;
    else each computes its part of the loss, and the gradients of all parts are summed.
    """
    if not ranks.here().several:
        return list(features)
    return list(_Gathered.apply(places, count, shared_loss, *features))


def shared_rows(encode: Callable[[slice], jt.Var], count: int, width: int) -> jt.Var:
    """`encode(rows)` of `count` rows, of which each rank computes its share → (count, width) on all.

    With gradients through a rank's own rows, where all ranks compute the same loss of them: `step_together`.
    """
    own = ranks.here().share(count)
    if own.start == own.stop:
        return jt.array(placed(np.zeros((0, width), np.float32), np.zeros(0, np.int64), count))
    return gathered([encode(own)], np.arange(own.start, own.stop), count, shared_loss=True)[0]


class _Gathered(Function):
    def execute(self, places, count, shared_loss, *features):
        self.places, self.shared_loss = places, shared_loss
        jt.sync(list(features))
        return tuple(jt.array(placed(x.numpy(), places, count)) for x in features)

    def grad(self, *gradients):
        return None, None, None, *(None if g is None else self._own(g) for g in gradients)  # None: on all ranks

    def _own(self, gradient: jt.Var) -> jt.Var:
        whole = gradient.numpy() if self.shared_loss else total(gradient.numpy())
        return jt.array(np.ascontiguousarray(whole[self.places]))


def require_equal(facts: Mapping[str, Any]) -> None:
    """Raise `RanksDiffer` on every rank where one holds other facts than rank 0, naming it, its host and what differs."""
    here = ranks.here()
    if not here.several:
        return
    mine = {name: _fingerprint(value) for name, value in facts.items()}
    told = given({"host": here.host, "facts": mine})
    for rank, other in enumerate(told):
        first, own = told[0]["facts"], other["facts"]
        differing = next((name for name in (*mine, *own) if own.get(name) != first.get(name)), None)
        if differing:
            raise RanksDiffer(
                f"all ranks must have the same {differing}, got {own.get(differing, NOTHING)} on rank {rank} ({other['host']}) "
                f"and {first.get(differing, NOTHING)} on rank 0 ({told[0]['host']}): start them with the same files and "
                "versions on every host, on processors of one kind"
            )


def _fingerprint(value: Any) -> str:
    """What two values are compared by, and shown by: the value itself where it is short, else a hash."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}…"


def given(value: Any) -> list[Any]:
    """What each rank gives, as JSON has it, in the order of ranks."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int32)
    here, lengths = ranks.here(), np.zeros(ranks.here().size, np.int32)
    lengths[here.rank] = len(text)
    ends = np.cumsum(total(lengths))
    whole = joined(text).astype(np.uint8).tobytes()
    return [json.loads(whole[end - n : end]) for end, n in zip(ends, np.diff(ends, prepend=0), strict=True)]


def digest(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """A hash of arrays with their names, in their order."""
    made = hashlib.sha256()
    for name, array in arrays:
        made.update(name.encode())
        made.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
    return made.hexdigest()


def batch_norm(x: jt.Var, weight: jt.Var, bias: jt.Var, eps: float) -> tuple[jt.Var, jt.Var, jt.Var, int]:
    """`jclip.kernels.batch_norm` by the statistics of all ranks' batches, and how many values of a channel these are of."""
    count = int(total(np.array([x.shape[0] * x.shape[2] * x.shape[3]], np.int32))[0])
    normalised, mean, variance = _Normalised.apply(x, count, eps)
    return normalised * _per_channel(weight) + _per_channel(bias), mean, variance, count


class _Normalised(Function):
    """(B, C, H, W) less its mean, over the root of its variance, both of all ranks."""

    def execute(self, x, count, eps):
        with jt.no_grad():
            mean = _summed(x) / count
            centred = x.float32() - _per_channel(mean)
            variance = _summed(centred * centred) / count
            scale = 1 / jt.sqrt(variance + eps)
            self.count, made = count, centred * _per_channel(scale)
            jt.sync([made, scale])
            self.keep(made, scale)
        return made.cast(x.dtype), mean, variance

    def grad(self, gradient, *_):
        made, scale = self.kept()
        with jt.no_grad():
            mean, along = _summed(gradient) / self.count, _summed(gradient * made) / self.count
            own = _per_channel(scale) * (gradient - _per_channel(mean) - made * _per_channel(along))
        return own, None, None


def _summed(x: jt.Var) -> jt.Var:
    """(B, C, H, W) of each rank → (C,), of all; sums of each map's mean, in float64, since float32 loses digits."""
    means = x.float32().mean(dims=[2, 3]).numpy().astype(np.float64)
    return jt.array((total(means.sum(axis=0)) * (x.shape[2] * x.shape[3])).astype(np.float32))


def _per_channel(v: jt.Var) -> jt.Var:
    return v.reshape((1, -1, 1, 1))

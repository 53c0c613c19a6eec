"""What recipes on frozen features share: data with its zero-shot figures, batches on the device, training, choosing.

Nothing here knows a method: a recipe brings its parameters, its logits and its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from jclip.config import OptimConfig
from jclip.errors import ConfigError, DataError
from jclip.features import FeatureSet
from jclip.functional.losses import cross_entropy
from jclip.functional.metrics import top_k
from jclip.heads import ZeroShotHead
from jclip.loop import Outcome, fit, predict
from jclip.optim import TrainState, cosine, learning_rate, optimiser
from jclip.results import SELECTED_ON_TEST
from jclip.run import Run
from jclip.runtime import jt

Selection = Literal["val", "last", "test"]
Scorer = Callable[[np.ndarray], np.ndarray]
Candidate = TypeVar("Candidate")
ROWS_AT_ONCE = 4096
SCORES_AT_ONCE = 2**25  # of a search


def zero_shot_report(data: FeatureSet) -> dict[str, float]:
    """`zero_shot_val_top1`, … where there are text features, else nothing."""
    return {} if data.text is None else data.report(ZeroShotHead(data.text, data.scale), prefix="zero_shot_")


def need_text(data: FeatureSet) -> np.ndarray:
    """The text features (C, E). Raises `DataError` where none were recorded and no model can make them."""
    if data.text is None:
        raise DataError(
            "these features come without text features: set model= to the model they are of, or data.text_features"
        )
    return data.text


def need_val(data: FeatureSet, selection: Selection, searched: str = "") -> None:
    """Raises `ConfigError` where something is chosen on validation photos and there are none."""
    if (searched or selection == "val") and not len(data.val):
        what = searched or "the epoch"
        raise ConfigError(
            f"{what} is chosen on validation photos, and there are none: set data.val, or switch the choice off"
        )


class Batches:
    """Rows of arrays on the device, shuffled anew in each epoch by (seed, epoch); the last batch is what is left.

    rows: how many of them an epoch uses, all by default.
    """

    def __init__(self, arrays: Iterable[np.ndarray], size: int, seed: int, rows: int = 0):
        arrays = list(arrays)
        self._vars = [jt.array(a.astype(np.int32) if a.dtype.kind == "i" else a).stop_grad() for a in arrays]
        self._count, self._seed = len(arrays[0]), seed
        self._used = min(rows or self._count, self._count)
        self.size = min(size, self._used)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-self._used // self.size)

    def __call__(self, epoch: int) -> Iterator[tuple]:
        order = np.random.default_rng((self._seed, epoch)).permutation(self._count)[: self._used].astype(np.int32)
        for start in range(0, self._used, self.size):
            rows = jt.array(order[start : start + self.size])
            yield tuple(v[rows] for v in self._vars)


@dataclass(frozen=True)
class Trained:
    """The arrays of the chosen epoch, and what the run tells: test accuracy of the last and of the best epoch."""

    arrays: dict[str, np.ndarray]
    told: dict[str, float]


class Watched:
    """The rows of "val" or "test" on the device: accuracy of parameters that are there, without copies of either."""

    def __init__(self, data: FeatureSet, part: str):
        features, self._labels = getattr(data, part), getattr(data, f"{part}_labels")
        chunks = range(0, len(features), ROWS_AT_ONCE)
        self._chunks = [jt.array(features[i : i + ROWS_AT_ONCE]).stop_grad() for i in chunks]

    def top1(self, scores: Callable[[jt.Var], jt.Var]) -> float:
        """Of scores (n, C) of features (n, E), both Vars."""
        return top_k(predict(scores, self._chunks), self._labels)


def watched(data: FeatureSet, selection: Selection) -> Watched | None:
    """What the epoch is chosen on; None where there is nothing to see. Raises `ConfigError` where there must be."""
    part = "test" if selection == "test" else "val"
    if len(getattr(data, part)):
        return Watched(data, part)
    if selection != "last":
        raise ConfigError(f"selection={selection} chooses the epoch on {part} photos, and there are none")
    return None


def train(
    run: Run,
    config: OptimConfig,
    params: Mapping[str, jt.Var],
    scores: Callable[[jt.Var], jt.Var],
    batches: Callable[[int], Iterable[tuple[jt.Var, jt.Var]]],
    steps: int,
    data: FeatureSet,
    selection: Selection = "val",
    *,
    loss: Callable[[jt.Var, jt.Var], jt.Var] = cross_entropy,
    rate: Callable[[int], float] | None = None,
    clip: float = 0.0,
    slot: str = "train",
) -> Trained:
    """`config.epochs` epochs of `steps` steps on `loss(scores(features), labels)`; the epoch is chosen by validation
    accuracy, or is the last.

    scores: features (B, E) → (B, C) with the `params` as they are. rate: learning rate of step number n in place of the
    config's schedule. `selection` "test" is for comparing with papers that did so, and is told in the result.
    """
    total = config.epochs * steps
    optim = optimiser(config, params)

    def step(batch, number: int):
        features, labels = batch
        optim.lr = rate(number) if rate else learning_rate(config, number, total)
        value = loss(scores(features), labels)
        optim.step(value, clip)
        return value

    state, seen = TrainState(optim), watched(data, selection)
    evaluate = seen and (lambda: {"top1": seen.top1(scores)})
    outcome = fit(step, batches, state=state, run=run, epochs=config.epochs, evaluate=evaluate, steps=total, slot=slot)
    return last_and_best(outcome, state, scores, data, selection)


def last_and_best(
    outcome: Outcome, state: TrainState, scores: Callable[[jt.Var], jt.Var], data: FeatureSet, selection: Selection
) -> Trained:
    """The arrays of the last or the best epoch, as chosen, and the test accuracy of both."""
    arrays = {"last": state.arrays()} | ({"best": outcome.best_arrays} if outcome.best_arrays else {})
    told: dict[str, float] = {"best_epoch": outcome.best_epoch + 1} if outcome.best_arrays else {}
    if len(data.test):
        test = Watched(data, "test")
        for name, of_epoch in arrays.items():
            state.put(of_epoch)
            told[f"test_top1_{name}_epoch"] = test.top1(scores)
    told |= {SELECTED_ON_TEST: 1} if selection == "test" else {}
    return Trained(arrays["last" if selection == "last" else "best"], told)


def coop_rate(config: OptimConfig, steps: int) -> Callable[[int], float]:
    """CoOp's schedule: a first epoch of `steps` at 1e-5, then a cosine by epochs that counts from 0 and ends above it."""
    return lambda n: cosine(n // steps - 1, config.epochs, config.lr) if n >= steps else 1e-5


def in_chunks(score: Callable[[jt.Var], jt.Var]) -> Scorer:
    """A function of a Var (n, E) as one of arrays (N, E), a few thousand rows at once, without gradients."""

    def scored(features: np.ndarray) -> np.ndarray:
        chunks = (features[i : i + ROWS_AT_ONCE] for i in range(0, len(features), ROWS_AT_ONCE))
        return predict(lambda f: score(jt.array(f)), chunks)

    return scored


def best_on_val(
    candidates: Iterable[Candidate], data: FeatureSet, scorer_of: Callable[[Candidate], Scorer]
) -> tuple[Candidate, float]:
    """The candidate of the best validation accuracy, the first among equals, and that accuracy."""
    best, found = None, -1.0
    for candidate in candidates:
        accuracy = top_k(scorer_of(candidate)(data.val), data.val_labels)
        if accuracy > found:
            best, found = candidate, accuracy
    if best is None:
        raise ConfigError("there is nothing to choose from: the grid is empty")
    return best, found


def cache_hits(
    data: FeatureSet, seen: np.ndarray, cache: Mapping[str, np.ndarray], alphas: np.ndarray, betas: np.ndarray
) -> np.ndarray:
    """How many validation rows are right by s f T' + α exp(-β (1 - f' K')) V at each β, α and kind of values: (B, A, G).

    cache: keys K (S, Q), values V (S, G, C), text T (C, E); seen: f' (N, Q), the rows as the keys see them. One product
    per β serves every α and every kind.
    """
    values = jt.array(cache["values"].reshape(len(cache["values"]), -1))
    keys, text, factors = (jt.array(a) for a in (cache["keys"], cache["text"], alphas.astype(np.float32)))
    kinds, classes = cache["values"].shape[1:]
    right = np.zeros((len(betas), len(alphas), kinds), np.int64)
    chunk = max(1, SCORES_AT_ONCE // (len(alphas) * kinds * classes))
    for start in range(0, len(data.val), chunk):
        rows = slice(start, start + chunk)
        labels = jt.array(np.repeat(data.val_labels[rows], kinds).astype(np.int32))
        base = jt.array(np.repeat(data.val[rows], kinds, axis=0))
        base = (data.scale * jt.nn.matmul_transpose(base, text)).unsqueeze(0)
        affinity = jt.nn.matmul_transpose(jt.array(seen[rows]), keys)
        for i, beta in enumerate(betas):
            near = jt.matmul(jt.exp(beta * affinity - beta), values).reshape((1, -1, classes))
            scores = base + factors.reshape((-1, 1, 1)) * near
            hits = (scores.argmax(dim=2)[0] == labels.unsqueeze(0)).int32()
            right[i] += hits.numpy().reshape(len(alphas), -1, kinds).sum(axis=1)
    return right


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """(N,) → (N, C) float32."""
    return np.eye(classes, dtype=np.float32)[labels]


def class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(N, E) → (C, E) float64, zero for a class without rows."""
    hot = one_hot(labels, classes).astype(np.float64)
    return hot.T @ features.astype(np.float64) / np.maximum(hot.sum(axis=0), 1)[:, None]

"""What recipes on frozen features share: data with its zero-shot figures, batches on the device, training, choosing.

Nothing here knows a method: a recipe brings its parameters, its logits and its loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np

from jclip.choices import SELECTED_ON_TEST
from jclip.config import OptimConfig, WithGrid, WithViews
from jclip.errors import ConfigError, DataError, notice
from jclip.features.extraction import training_view
from jclip.features.heads import ZeroShotHead
from jclip.features.precomputed import FeatureSet
from jclip.features.source import ModelSource
from jclip.functional.losses import cross_entropy
from jclip.functional.metrics import top_k
from jclip.machine import work_meter
from jclip.runtime import jt
from jclip.train.loop import Outcome, fit, predict
from jclip.train.optim import TrainState, cosine, learning_rate, optimiser, step_together, warmup_steps
from jclip.train.run import Run

Selection = Literal["val", "last", "test"]
Samples = tuple[np.ndarray, np.ndarray]  # features (N, E) and labels (N,)
Scorer = Callable[[np.ndarray], np.ndarray]
Candidate = TypeVar("Candidate")
ROWS_AT_ONCE = 4096
NUMBERS_AT_ONCE = 2**22  # of features in so many rows: wide ones are fewer
SCORES_AT_ONCE = 2**25  # of a search
WARM_RATE = 1e-5  # of the very first step or epoch, in the schedules that warm up so


def zero_shot_report(data: FeatureSet) -> dict[str, float]:
    """`zero_shot_val_top1`, … where there are text features, else nothing."""
    return {} if data.text is None else data.report(ZeroShotHead(data.text, data.scale), prefix="zero_shot_")


def need_text(data: FeatureSet) -> np.ndarray:
    """The text features (C, E). Raises `DataError` where there are none and no model can make them."""
    if data.text is None:
        raise DataError(
            "these features come without text features: set model= to the model that made them, or data.text_features"
        )
    return data.text


def need_val(data: FeatureSet, selection: Selection, searched: str = "") -> None:
    """Raises `ConfigError` where something is chosen on validation photos and there are none."""
    if (searched or selection == "val") and not len(data.val):
        what = searched or "the epoch"
        raise ConfigError(
            f"{what} is chosen on validation photos, and there are none: set data.val, or switch the choice off "
            "(search=false, selection=last)"
        )


class Batches:
    """Rows of arrays on the device, reshuffled in each epoch by (seed, epoch); the last batch is what is left.

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


class Streams:
    """Rows of several kinds of samples on the device, `sizes` of each in a batch, `steps` batches in an epoch.

    Each kind is an endless stream, see `streamed_rows`; an epoch goes on where the one before it ended.
    """

    def __init__(self, kinds: Sequence[Samples], sizes: Sequence[int], seed: int, steps: int):
        features, labels = (np.concatenate(column) for column in zip(*kinds, strict=True))
        self._vars = jt.array(features).stop_grad(), jt.array(labels.astype(np.int32)).stop_grad()
        self._counts, self._sizes = [len(labels) for _, labels in kinds], tuple(sizes)
        self._seed, self.steps = seed, steps

    def __call__(self, epoch: int) -> Iterator[tuple]:
        numbers = range(epoch * self.steps, (epoch + 1) * self.steps)
        for rows in streamed_rows(self._counts, self._sizes, self._seed, numbers):
            at = jt.array(rows)
            yield tuple(v[at] for v in self._vars)


def streamed_rows(
    counts: Sequence[int], sizes: Sequence[int], seed: int, numbers: Iterable[int]
) -> Iterator[np.ndarray]:
    """The rows (B,) int32 of the batches of these numbers, kind after kind, of kinds whose rows are joined.

    counts: rows of each kind; sizes: how many of them a batch has, none where 0. Each kind is reshuffled in each
    pass by (seed, kind, pass), and a pass drops what fills no batch.
    """
    starts = np.cumsum([0, *counts])

    @lru_cache(maxsize=len(counts))  # one pass of each kind at a time
    def shuffled(kind: int, turn: int) -> np.ndarray:
        return starts[kind] + np.random.default_rng((seed, kind, turn)).permutation(counts[kind])

    def part(kind: int, number: int) -> np.ndarray:
        turn, place = divmod(number, counts[kind] // sizes[kind])
        return shuffled(kind, turn)[place * sizes[kind] : (place + 1) * sizes[kind]]

    used = [kind for kind, size in enumerate(sizes) if size]
    for number in numbers:
        yield np.concatenate([part(kind, number) for kind in used]).astype(np.int32)


def photo_samples(cfg: WithViews, data: FeatureSet, source: ModelSource | None) -> Samples:
    """The training photos as they are seen plainly, then `cfg.views` augmented views; precomputed ones have one view."""
    seen = [(data.train, data.train_labels)]
    if not cfg.data.features and cfg.augment != "none":
        seen += [training_view(cfg.data, source, data, cfg.augment, cfg.seed, view) for view in range(cfg.views)]
    features, labels = zip(*seen, strict=True)
    return np.concatenate(features), np.concatenate(labels)


@dataclass(frozen=True)
class Trained:
    """Arrays of the chosen epoch; metrics (test accuracy of the last and the best epoch); arrays of the last epoch."""

    arrays: dict[str, np.ndarray]
    metrics: dict[str, float]
    last: dict[str, np.ndarray] = field(default_factory=dict)


class Watched:
    """The rows of "val" or "test" on the device: accuracy of parameters that are there, without copies of either."""

    def __init__(self, data: FeatureSet, part: str):
        features, self._labels = getattr(data, part), getattr(data, f"{part}_labels")
        self._chunks = [jt.array(chunk).stop_grad() for chunk in chunks_of(features)]

    def top1(self, scores: Callable[[jt.Var], jt.Var]) -> float:
        """Top-1 accuracy of scores (n, C) of features (n, E), both Vars."""
        return top_k(predict(scores, self._chunks), self._labels)


def watched(data: FeatureSet, selection: Selection) -> Watched | None:
    """What the epoch is chosen on; None where there is nothing to see. Raises `ConfigError` where there must be."""
    part = "test" if selection == "test" else "val"
    if len(getattr(data, part)):
        return Watched(data, part)
    if selection != "last":
        raise ConfigError(
            f"selection={selection} chooses the epoch on {part} photos, and there are none: set selection=last"
        )
    return None


@dataclass(frozen=True)
class Learner:
    """What a recipe brings to `train`.

    params: what is learned, by the names of its arrays. scores: features (B, E) → (B, C) with the `params` as they are.
    loss: features (B, E), labels (B,) → a scalar; by default the mean cross-entropy of `scores`. rate: learning rate of
    step number n, in place of the config's schedule. clip: largest norm of the gradient, 0 for any. by_ranks: whether
    several ranks compute a share each of what lies between the params and the loss; else each computes all of it.
    """

    params: Mapping[str, jt.Var]
    scores: Callable[[jt.Var], jt.Var]
    loss: Callable[[jt.Var, jt.Var], jt.Var] | None = None
    rate: Callable[[int], float] | None = None
    clip: float = 0.0
    by_ranks: bool = False

    def loss_of(self, features: jt.Var, labels: jt.Var) -> jt.Var:
        """(B, E), (B,) → a scalar."""
        return self.loss(features, labels) if self.loss else cross_entropy(self.scores(features), labels)


def train(
    run: Run,
    config: OptimConfig,
    learner: Learner,
    batches: Callable[[int], Iterable[tuple[jt.Var, jt.Var]]],
    steps: int,
    data: FeatureSet,
    selection: Selection = "val",
    slot: str = "train",
) -> Trained:
    """`config.trained_epochs` epochs of `steps` steps on the learner's loss; the epoch is chosen by validation accuracy, or
    is the last.

    batches: epoch → its features (B, E) and labels (B,), batch by batch. `selection` "test" is for comparing with papers
    that did so, and is named in the result. slot: where the run keeps the training's state.
    """
    total, epochs = config.epochs * steps, config.trained_epochs
    optim = optimiser(config, learner.params)

    def step(batch, number: int):
        features, labels = batch
        optim.lr = learner.rate(number) if learner.rate else learning_rate(config, number, total)
        value = learner.loss_of(features, labels)
        if learner.by_ranks:
            step_together(optim, value, learner.clip)
        else:
            optim.step(value, learner.clip)
        return value

    state, seen = TrainState(optim), watched(data, selection)
    evaluate = seen and (lambda: {"top1": seen.top1(learner.scores)})
    outcome = fit(
        step, batches, state=state, run=run, epochs=epochs, evaluate=evaluate, steps=epochs * steps, slot=slot
    )
    return last_and_best(outcome, state, learner.scores, data, selection)


def last_and_best(
    outcome: Outcome, state: TrainState, scores: Callable[[jt.Var], jt.Var], data: FeatureSet, selection: Selection
) -> Trained:
    """The arrays of the last or the best epoch, as chosen, and the test accuracy of both."""
    arrays = {"last": state.arrays()} | ({"best": outcome.best_arrays} if outcome.best_arrays else {})
    metrics: dict[str, float] = {"best_epoch": outcome.best_epoch + 1} if outcome.best_arrays else {}
    if len(data.test):
        test = Watched(data, "test")
        for name, of_epoch in arrays.items():
            state.put(of_epoch)
            metrics[f"test_top1_{name}_epoch"] = test.top1(scores)
    metrics |= {SELECTED_ON_TEST: 1} if selection == "test" else {}
    return Trained(arrays["last" if selection == "last" else "best"], metrics, arrays["last"])


def coop_rate(config: OptimConfig, steps: int) -> Callable[[int], float]:
    """CoOp's schedule: a first epoch of `steps` at 1e-5, then a cosine by epochs that counts from 0 and ends above it."""
    if config.epochs == 1:
        notice(f"optim.epochs=1: the only epoch is the warm-up, at {WARM_RATE}; lr begins with the second")
    first = config.warmup_lr or WARM_RATE
    return lambda n: cosine(n // steps - 1, config.epochs, config.lr) if n >= steps else first


def warmed_rate(config: OptimConfig, total: int) -> Callable[[int], float]:
    """Cross-modal adaptation's schedule over `total` steps: 1e-5, then linearly up over the warm-up; the cosine after it
    counts from 0 again, so it ends above 0."""
    warmup = warmup_steps(config, total)

    def rate(step: int) -> float:
        if step < warmup:
            return config.lr * step / warmup if step else WARM_RATE
        return (
            cosine(step - warmup, total, config.lr)
            if config.schedule == "cosine"
            else learning_rate(config, step, total)
        )

    return rate


def grid(cfg: WithGrid, fits: Callable[[int], bool], held: str) -> list[OptimConfig]:
    """`cfg.optim` with each combination of `cfg.grid_lr`, `grid_weight_decay` and `grid_batch`, where given; batch fastest.

    Batches that don't fit are left out. Raises `ConfigError` where none is left; `held` names what they are filled from.
    """
    batches = [batch for batch in cfg.grid_batch or (cfg.optim.batch,) if fits(batch)]
    if not batches:
        raise ConfigError(f"no batch of that size can be filled from {held}: set optim.batch, or grid_batch")
    rates, decays = cfg.grid_lr or (cfg.optim.lr,), cfg.grid_weight_decay or (cfg.optim.weight_decay,)
    combined = itertools.product(rates, decays, batches)
    return [replace(cfg.optim, lr=lr, weight_decay=decay, batch=batch) for lr, decay, batch in combined]


def best_setting(
    settings: Sequence[OptimConfig],
    data: FeatureSet,
    selection: Selection,
    train_with: Callable[[OptimConfig, str], Trained],
    scorer_of: Callable[[dict[str, np.ndarray]], Scorer],
) -> tuple[Trained, dict[str, float]]:
    """What `train_with(setting, slot)` made with the best of them on validation, and the chosen setting as metrics.

    Raises `ConfigError` where something is chosen and there are no validation photos.
    """
    need_val(data, selection, searched="the grid's setting" if len(settings) > 1 else "")
    trained = [train_with(setting, f"train-{i}") for i, setting in enumerate(settings)]
    best = 0
    if len(settings) > 1:
        best, _ = best_on_val(range(len(settings)), data, lambda i: scorer_of(trained[i].arrays))
    chosen = {name: getattr(settings[best], name) for name in ("lr", "weight_decay", "batch")}
    return trained[best], chosen


def in_chunks(score: Callable[[jt.Var], jt.Var]) -> Scorer:
    """A function of a Var (n, E) as one of arrays (N, E), a few thousand rows at once, without gradients."""

    def scored(features: np.ndarray) -> np.ndarray:
        return predict(lambda f: score(jt.array(f)), chunks_of(features))

    return scored


def chunks_of(features: np.ndarray) -> Iterator[np.ndarray]:
    """(N, E) in parts of a few thousand rows, of fewer where they are wide."""
    size = max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // max(1, features.shape[1])))
    return (features[i : i + size] for i in range(0, len(features), size))


def best_on_val(
    candidates: Iterable[Candidate], data: FeatureSet, scorer_of: Callable[[Candidate], Scorer]
) -> tuple[Candidate, float]:
    """The candidate of the best validation accuracy, the first among equals, and that accuracy."""
    best, found = None, -1.0
    for candidate in work_meter.some(candidates, ("candidates", len(data.val))):
        accuracy = top_k(scorer_of(candidate)(data.val), data.val_labels)
        if accuracy > found:
            best, found = candidate, accuracy
    if best is None:
        raise ConfigError("a grid must have at least one candidate, got none")
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
        for i, beta in work_meter.some(enumerate(betas), ("cache", rows.stop - rows.start)):
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
    return hot.T @ np.asarray(features, np.float64) / np.maximum(hot.sum(axis=0), 1)[:, None]

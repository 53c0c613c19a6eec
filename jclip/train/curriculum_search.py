"""Self-paced curriculum: which rows of machine-made labels to learn from (CLIP-VG, Xiao et al., arXiv 2305.08685).

A row's reliability is how well a network that was trained on all rows of a source reproduces its label. SSA searches one
source's threshold, MSA goes through several sources and chooses for each a measurer and a threshold. What a training is,
and what a score, are the caller's two functions: any recipe will do. No Jittor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, Generic, TypeVar

import numpy as np

from jclip.errors import ConfigError, DataError, UnknownName, notice
from jclip.train.curriculum_state import BudgetSpent, CurriculumState, TrainedRun, hash_of

Row = TypeVar("Row")
Train = Callable[[Sequence[Any], str, bool], TrainedRun]  # rows, key, whether at full length
Score = Callable[[TrainedRun, Sequence[Any]], Sequence[float]]  # a measurer, rows → reliabilities in [0, 1]
NOTHING = -np.inf  # the accuracy of no rows at all


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    start, step, low, high: of thresholds h, which keep rows with r > h; min_gain: of accuracy, for a step; proxy: whether
    trainings of the search are short, so that the winner is trained once more at full length; folds: parts that a source's
    own measurers leave out in turn and score, against measurers that memorise (1: none, as published).
    """

    start: float = 0.5
    step: float = 0.1
    low: float = 0.0
    high: float = 0.9
    min_gain: float = 0.0
    proxy: bool = False
    folds: int = 1

    def __post_init__(self) -> None:
        if not (self.step > 0 and 0 <= self.low <= self.start <= self.high < 1):
            raise ConfigError(
                f"thresholds must hold 0 <= low <= start <= high < 1 and step > 0, got low {self.low}, start {self.start}, "
                f"high {self.high}, step {self.step}"
            )
        if self.folds < 1 or self.min_gain < 0:
            raise ConfigError(f"folds must be at least 1 and min_gain at least 0, got {self.folds} and {self.min_gain}")

    def threshold(self, steps: int) -> float:
        """The threshold so many steps from the start; rounded, so that 0.5 - 0.1 - 0.1 is 0.3."""
        return round(self.start + steps * self.step, 9)

    def allows(self, steps: int) -> bool:
        """Whether that threshold lies within the bounds."""
        return self.low <= self.threshold(steps) <= self.high

    @property
    def grid(self) -> int:
        """How many thresholds there are."""
        return sum(self.allows(k) for k in range(-_MOST_STEPS, _MOST_STEPS + 1))


_MOST_STEPS = 1000


@dataclass(frozen=True)
class Stage:
    """What was decided for one source. added: its rows that are kept; tried: threshold → accuracy, by text for JSON;
    measurers: of msa, measurer → accuracy at the start's threshold."""

    source: str
    measurer: str
    threshold: float
    added: int
    accuracy: float
    tried: dict[str, float | None] = field(default_factory=dict)
    used: bool = True
    measurers: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Curriculum(Generic[Row]):
    """The rows to learn from, the training on them, and how they were found. complete: false where the budget ended it;
    baseline: accuracy of learning from all rows of the source (SSA), or of each (MSA)."""

    rows: list[Row]
    kept: dict[str, list[int]]
    trained: TrainedRun
    stages: list[Stage]
    baseline: dict[str, float]
    trainings: int
    complete: bool = True


@dataclass(frozen=True)
class Selection:
    """Places of rows in each source, in the order of the sources."""

    places: dict[str, tuple[int, ...]]

    def with_rows(self, source: str, places: np.ndarray) -> Selection:
        """This and more rows of one source."""
        return Selection({**self.places, source: tuple(map(int, places))})


class Search(Generic[Row]):
    """Trains and scores by what rows are, each once.

    sources: name → rows, simple ones first. identity: what a row is as plain values, by which trainings are known again.
    settings_key: hash of all else that a training is made of. folder: where `curriculum.json` is; announce: gets the names
    of files there before they are written. Raises `ConfigError` for
    the state of other data, `DataError` for a source without rows.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Row]],
        train: Train,
        score: Score,
        settings: SearchSettings | None = None,
        *,
        identity: Callable[[Row], Any] = repr,
        group: Callable[[Row], str] | None = None,
        settings_key: str = "",
        folder: Any = None,
        max_trainings: int | None = None,
        announce: Callable[[Iterable[str]], object] = lambda names: None,
    ):
        self.sources, self._train, self._score = dict(sources), train, score
        self.settings = settings or SearchSettings()
        if empty := [name for name, rows in self.sources.items() if not len(rows)]:
            raise DataError(f"the source {empty[0]} has no rows")
        if not self.sources:
            raise DataError("a curriculum needs at least one source of rows")
        self._hashes = {name: [_row_hash(identity(row)) for row in rows] for name, rows in self.sources.items()}
        self._group = group or repr
        self.state = CurriculumState(folder, hash_of([self._hashes, settings_key]), max_trainings, announce)

    def rows(self, selection: Selection) -> list[Row]:
        """The rows of a selection: source by source, each in its order."""
        return [self.sources[name][i] for name in self.sources for i in selection.places.get(name, ())]

    def trained(self, selection: Selection, full: bool = True) -> TrainedRun:
        """The training on these rows. Raises `BudgetSpent`."""
        key = self.key(selection, full)
        return self.state.trained(key, lambda: self._train(self.rows(selection), key, full))

    def accuracy(self, selection: Selection) -> float:
        """On the validation part, of a training of the search; `NOTHING` for no rows, and for some of a source's rows that
        nothing can be learned from: too few for a batch, a class without any."""
        if not any(selection.places.values()):
            return NOTHING
        try:
            return self.trained(selection, not self.settings.proxy).accuracy
        except DataError as e:
            if all(len(places) == len(self.sources[name]) for name, places in selection.places.items()):
                raise
            notice(f"{len(self.rows(selection))} rows can't be learned from: {e}")
            return NOTHING

    def key(self, selection: Selection, full: bool) -> str:
        """A training's name: the hash of its rows, whatever source they are called after, and of its length."""
        rows = [self._hashes[name][i] for name in self.sources for i in selection.places.get(name, ())]
        return hash_of([rows, full or not self.settings.proxy])

    def whole(self, *names: str) -> Selection:
        """All rows of these sources."""
        return Selection({name: tuple(range(len(self.sources[name]))) for name in names})

    def reliability(self, measurer: str, source: str) -> np.ndarray:
        """(rows,) how well the network of source `measurer` reproduces each row of `source`.

        A source's own rows are scored, with folds, by networks that have not learned from them.
        """
        if measurer == source and self.settings.folds > 1:
            return self._cross_fitted(source)
        return self._scores(self.whole(measurer), source, range(len(self.sources[source])))

    def _cross_fitted(self, source: str) -> np.ndarray:
        rows, folds = self.sources[source], self.settings.folds
        part = np.array([int(_row_hash(self._group(row)), 16) % folds for row in rows])
        found = np.zeros(len(rows))
        for fold in range(folds):
            inside, outside = np.flatnonzero(part == fold), np.flatnonzero(part != fold)
            if not len(outside):
                raise DataError(f"the source {source} has too few photos for {folds} folds")
            if len(inside):
                found[inside] = self._scores(Selection({source: tuple(map(int, outside))}), source, inside)
        return found

    def _scores(self, learned: Selection, source: str, places: Sequence[int] | np.ndarray) -> np.ndarray:
        measurer, rows = self.trained(learned, not self.settings.proxy), [self.sources[source][i] for i in places]
        key = hash_of([self.key(learned, not self.settings.proxy), [self._hashes[source][i] for i in places]])
        return self.state.scored(key, len(rows), lambda: self._score(measurer, rows))


@dataclass
class _Best:
    """The best selection so far, which a spent budget ends with."""

    accuracy: float = NOTHING
    selection: Selection | None = None

    def offer(self, accuracy: float, selection: Selection) -> None:
        if self.selection is None or accuracy > self.accuracy:
            self.accuracy, self.selection = accuracy, selection


def climb(evaluate: Callable[[float], float], settings: SearchSettings, tried: dict[float, float]) -> float:
    """Return the threshold where hill climbing from the start ends; `tried` gets the accuracy of each threshold.

    From c to the better of its neighbours while that gains more than `min_gain`; of equals the smaller threshold, which
    keeps more rows. Thresholds that keep no row count as worse than any, and are left towards smaller ones.
    """

    def at(steps: int) -> float:
        threshold = settings.threshold(steps)
        if threshold not in tried:
            tried[threshold] = evaluate(threshold)
        return tried[threshold]

    here = 0
    at(here)
    while True:
        near = [k for k in (here - 1, here, here + 1) if settings.allows(k)]
        best = max(near, key=lambda k: (at(k), -k))
        lost = at(here) == NOTHING and best < here
        if best == here or not (lost or at(best) - at(here) > settings.min_gain):
            break
        here = best
    return settings.threshold(here)


def ssa(search: Search[Row], source: str = "") -> Curriculum[Row]:
    """Single-source self-paced adapting: train on all, score all, climb to the best threshold; all rows if they are as good.

    source: which one, by default the first. Raises `DataError` where no threshold keeps a row.
    """
    name = source or next(iter(search.sources))
    whole, best, complete = search.whole(name), _Best(), True
    tried: dict[float, float] = {}
    threshold, baseline, reliability = 0.0, NOTHING, np.zeros(0)
    try:
        baseline = search.accuracy(whole)
        best.offer(baseline, whole)
        reliability = search.reliability(name, name)
        evaluate = _evaluator(search, best, Selection({}), name, reliability)
        threshold = climb(evaluate, search.settings, tried)
        _check_kept(tried, name, search.settings)
    except BudgetSpent:
        complete = False
        threshold = max(tried, key=lambda h: (tried[h], -h), default=0.0)
    best = _Best(baseline, whole) if baseline > NOTHING else best
    if tried.get(threshold, NOTHING) > baseline > NOTHING:
        best = _Best(tried[threshold], _above(Selection({}), name, reliability, threshold))
    kept = len(best.selection.places[name]) if best.selection else 0
    stage = Stage(name, name, threshold, kept, best.accuracy, _as_text(tried), best.selection is not whole)
    return _finished(search, best, [stage], {name: baseline}, complete)


def everything(search: Search[Row]) -> Curriculum[Row]:
    """No selection: one training on all rows of all sources, what a curriculum is compared with."""
    names = [*search.sources]
    whole = search.whole(*names)
    try:
        accuracy = search.accuracy(whole)
    except BudgetSpent:
        accuracy = NOTHING
    stage = Stage("+".join(names), "", 0.0, len(search.rows(whole)), accuracy, used=True)
    best = _Best(accuracy, whole if accuracy > NOTHING else None)
    return _finished(search, best, [stage], {}, accuracy > NOTHING)


def measured(search: Search[Row]) -> Curriculum[Row]:
    """Measurers alone: a training on each source, the reliabilities of every source's rows by each; the best one wins."""
    best, baseline, complete = _Best(), {}, True
    try:
        for name in search.sources:
            baseline[name] = search.accuracy(search.whole(name))
            best.offer(baseline[name], search.whole(name))
        for measurer in search.sources:
            for name in search.sources:
                search.reliability(measurer, name)
    except BudgetSpent:
        complete = False
    return _finished(search, best, [], baseline, complete)


def msa(search: Search[Row], order: Sequence[str] = ()) -> Curriculum[Row]:
    """Multi-source self-paced adapting: sources in order, for each the measurer at the start's threshold, then its own
    threshold; a source that does not help is left out, the first never.

    order: of the sources, simple ones first; by default their own. Raises `UnknownName`, `DataError`.
    """
    names = [*search.sources]
    for name in order:
        if name not in names:
            raise UnknownName("source", name, names)
    best, stages, complete = _Best(), [], True
    baseline: dict[str, float] = {}
    try:
        for name in names:
            baseline[name] = search.accuracy(search.whole(name))
            best.offer(baseline[name], search.whole(name))
        held, reached = Selection({}), NOTHING
        for name in order or names:
            stage, selection = _add_source(search, best, held, reached, name)
            stages.append(stage)
            if stage.used:
                held, reached = selection, stage.accuracy
        best = _Best(reached, held)
    except BudgetSpent:
        complete = False
    return _finished(search, best, stages, baseline, complete)


def _add_source(
    search: Search[Row], best: _Best, held: Selection, reached: float, name: str
) -> tuple[Stage, Selection]:
    settings = search.settings
    scores = {measurer: search.reliability(measurer, name) for measurer in search.sources}
    evaluators = {m: _evaluator(search, best, held, name, r) for m, r in scores.items()}
    at_start = {m: evaluate(settings.start) for m, evaluate in evaluators.items()}
    measurer = max(at_start, key=lambda m: (at_start[m], m == name))  # of equals the source's own, then the first
    tried: dict[float, float] = {}
    threshold = climb(evaluators[measurer], settings, tried)
    if not held.places:
        _check_kept(tried, name, settings)
    selection = _above(held, name, scores[measurer], threshold)
    accuracy = tried[threshold]
    used = not held.places or accuracy > reached
    added, every = len(selection.places[name]), _finite(at_start)
    return Stage(name, measurer, threshold, added, accuracy, _as_text(tried), used, every), selection


def _above(held: Selection, name: str, reliability: np.ndarray, threshold: float) -> Selection:
    return held.with_rows(name, np.flatnonzero(reliability > threshold))


def _evaluator(
    search: Search[Row], best: _Best, held: Selection, name: str, reliability: np.ndarray
) -> Callable[[float], float]:
    """Threshold → accuracy of what is held and the rows above it."""

    def evaluate(threshold: float) -> float:
        selection = _above(held, name, reliability, threshold)
        accuracy = search.accuracy(selection)
        if accuracy > NOTHING:
            best.offer(accuracy, selection)
        return accuracy

    return evaluate


def _check_kept(tried: Mapping[float, float], name: str, settings: SearchSettings) -> None:
    if max(tried.values()) == NOTHING:
        low = min(tried)
        raise DataError(f"no row of {name} has a reliability above {low:g}: its measurer reproduces none of its labels")


def _finished(
    search: Search[Row], best: _Best, stages: list[Stage], baseline: dict[str, float], complete: bool
) -> Curriculum[Row]:
    """Train the winner at full length where the search was short, and write the result into the state."""
    if best.selection is None:
        raise ConfigError("the budget must allow at least one training, got max_trainings 0")
    trained = search.trained(best.selection, not search.settings.proxy)
    if search.settings.proxy and complete:
        try:
            trained = search.trained(best.selection)
        except BudgetSpent:
            complete = False
    kept = {name: [*places] for name, places in best.selection.places.items()}
    result = {"complete": complete, "stages": [asdict(s) for s in stages], "baseline": _finite(baseline), "kept": kept}
    search.state.done = {**result, "accuracy": trained.accuracy, "run": trained.run}
    search.state.write()
    count = len(search.state.trainings)
    return Curriculum(search.rows(best.selection), kept, trained, stages, baseline, count, complete)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def _as_text(tried: Mapping[float, float]) -> dict[str, float | None]:
    return _finite({f"{h:g}": accuracy for h, accuracy in sorted(tried.items())})


def _row_hash(identity: Any) -> str:
    return sha256(json.dumps(identity, sort_keys=True, default=repr).encode()).hexdigest()[:16]

"""A search that learns by yes and no: which photos to ask about next, the head refit to the answers, and an audit of it.

Photos are asked about in rounds, half of them the best by what is known, half those that the head is least sure of. An
audit asks about photos that were drawn at random, above the line and below it; its answers say how good the head is, and
teach only once others follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from jclip.errors import DataError
from jclip.functional.audited_shares import Share, Stratum, precision, recall
from jclip.functional.background import background, sample_rows
from jclip.functional.nearest import NotFinite, take, widened
from jclip.functional.taught_head import Head, Spread, ground_of, taught_head, text_head

Answer = Literal["yes", "no", "unsure"]
ANSWERS: tuple[Answer, ...] = ("yes", "no", "unsure")
ROUND, AUDIT = 12, 40  # photos
TOP_SHARE = 0.5  # of a round
ALIKE = 0.98  # cosine above which two photos teach the same
ROWS_AT_ONCE = 1 << 12
NEAR = 4  # times as many photos as there are above the line lie near to it
FEWEST_NEAR = 100
STRATA = 3  # of an audit: above the line, near below it, elsewhere


@dataclass(frozen=True)
class Answered:
    """One answer about a row; audit: whether the photo was drawn at random."""

    row: int
    answer: Answer
    audit: bool = False


@dataclass(frozen=True)
class Audit:
    """What random photos say of the head: shares with 95 % intervals, and how many photos were answered by yes or no."""

    precision: Share
    recall: Share
    asked: int


class Teacher:
    """A gallery's features, a query, and the answers about its photos.

    parts: features (n_i, E) of length one. query: (E,) of length one. Raises `DataError` without a photo, and for features
    that are NaN or infinite.
    """

    def __init__(self, parts: Sequence[np.ndarray], query: np.ndarray, seed: int = 0):
        self.parts, self.seed = parts, seed
        self.rows = sum(map(len, parts))
        if not self.rows:
            raise DataError("there must be photos to ask about, got a gallery without any: embed some")
        self._query = np.asarray(query, np.float32)
        self.log: list[Answered] = []
        self._fitted: tuple[tuple, Head] | None = None
        self._scored: tuple[Head, np.ndarray] | None = None

    def answer(self, row: int, answer: Answer, audit: bool = False) -> None:
        """Notes an answer; of two about a photo the later one counts."""
        if not 0 <= row < self.rows:
            raise DataError(f"row {row} must be in [0, {self.rows - 1}]: there are {self.rows:,} rows")
        self.log.append(Answered(row, answer, audit))

    def undo(self) -> Answered | None:
        """Takes the last answer back."""
        return self.log.pop() if self.log else None

    @property
    def teaching(self) -> dict[int, Answer]:
        """Row → answer of all that teach: but for those of an audit that nothing followed."""
        return {one.row: one.answer for one in self.log[: self._audit_start]}

    @property
    def audited(self) -> dict[int, Answer]:
        """Row → answer of the audit that came last."""
        return {one.row: one.answer for one in self.log[self._audit_start :]}

    @property
    def _audit_start(self) -> int:
        start = len(self.log)
        while start and self.log[start - 1].audit:
            start -= 1
        return start

    def count(self, answer: Answer) -> int:
        """How many photos have that answer, those of an audit not among them."""
        return sum(given == answer for given in self.teaching.values())

    @cached_property
    def _sample(self) -> np.ndarray:
        return take(self.parts, sample_rows(self.rows))

    @cached_property
    def _spread(self) -> Spread:
        return Spread.of(self._sample)

    @cached_property
    def _text(self) -> Head:
        cosines = self._sample @ self._query
        return text_head(self._query, ground_of(cosines, background(cosines, self.rows)))

    @property
    def head(self) -> Head:
        """The head by the answers that teach, the same for the same answers in any order; without any the text's."""
        answers = tuple(sorted((row, given) for row, given in self.teaching.items() if given != "unsure"))
        if self._fitted is None or self._fitted[0] != answers:
            rows = np.array([row for row, _ in answers], np.int64)
            labels = np.array([given == "yes" for _, given in answers], np.float64)
            features = take(self.parts, rows) if len(rows) else self._sample[:0]
            self._fitted = answers, taught_head(self._text, features, labels, self._spread)
        return self._fitted[1]

    def cosines(self) -> np.ndarray:
        """(N,) float32 of all rows to the head's vector. Raises `DataError` for a row that is NaN or infinite."""
        head = self.head
        if self._scored is None or self._scored[0] is not head:
            found = np.empty(self.rows, np.float32)
            at = 0
            for part in self.parts:
                for start in range(0, len(part), ROWS_AT_ONCE):
                    block = widened(part[start : start + ROWS_AT_ONCE])
                    np.dot(block, head.vector, out=found[at : at + len(block)])
                    at += len(block)
            if not np.isfinite(found).all():
                row = int(np.flatnonzero(~np.isfinite(found))[0])
                raise DataError(f"{NotFinite(row)}: its features are damaged, embed the photos again")
            self._scored = head, found
        return self._scored[1]

    def order(self) -> np.ndarray:
        """All rows, best first; of equal ones the lower row first."""
        return np.argsort(-self.cosines(), kind="stable")

    def above(self) -> int:
        """How many photos are above the line."""
        return int((self.cosines() > self.head.threshold).sum())

    def round(self, count: int = ROUND, usable: Callable[[int], bool] = lambda row: True) -> list[int]:
        """The `count` rows whose answers help most, best and unsure ones in turn; fewer where no more are left.

        usable: whether a row's photo can be shown. Photos that are nearly the same stand in a round once.
        """
        cosines, head = self.cosines(), self.head
        free = np.ones(self.rows, bool)
        free[[*self.teaching, *self.audited]] = False
        best = self._first(-cosines, free, round(TOP_SHARE * count), usable, [])
        unsure = self._first(np.abs(cosines - head.threshold), free, count - len(best), usable, best)
        if len(best) + len(unsure) < count:
            best += self._first(-cosines, free, count - len(best) - len(unsure), usable, [*best, *unsure], 1.1)
        return _in_turn(best, unsure)

    def _first(
        self,
        far: np.ndarray,
        free: np.ndarray,
        count: int,
        usable: Callable[[int], bool],
        taken: list[int],
        alike: float = ALIKE,
    ) -> list[int]:
        """The free rows with the least `far`, none too similar to another or to one of `taken`."""
        found: list[int] = []
        for row in _ascending(np.where(free, far, np.inf), int(free.sum()), 4 * count + len(taken)):
            if len(found) == count:
                break
            if row in taken or not self._unlike(row, [*taken, *found], alike) or not usable(row):
                continue
            found.append(row)
        return found

    def _unlike(self, row: int, others: list[int], alike: float) -> bool:
        if not others or alike > 1:
            return True
        features = take(self.parts, np.array([*others, row]))
        return bool((features[:-1] @ features[-1]).max() <= alike)

    def audit_round(self, count: int = AUDIT, usable: Callable[[int], bool] = lambda row: True) -> list[int]:
        """Rows that an audit of this head still asks about, drawn at random; the same ones for the same answers and seed."""
        drawn = [row for rows in self._drawn(count, usable) for row in rows]
        mixed = np.random.default_rng([self.seed, len(self.teaching), 1]).permutation(drawn).tolist()
        return [row for row in mixed if row not in self.audited]

    def _strata(self) -> np.ndarray:
        """(N,) of each row without a teaching answer 0 above the line, 1 near below it, 2 elsewhere; -1 of the others."""
        cosines = self.cosines()
        above = cosines > self.head.threshold
        strata = np.where(above, 0, 2).astype(np.int8)
        strata[[*self.teaching]] = -1
        below = np.flatnonzero(strata == 2)
        near = min(len(below), max(FEWEST_NEAR, NEAR * int(above.sum())))
        strata[below[np.argsort(-cosines[below], kind="stable")[:near]]] = 1
        return strata

    def _drawn(self, count: int, usable: Callable[[int], bool]) -> list[list[int]]:
        """Half from above, a quarter from each stratum below; what one lacks goes to the others."""
        of = self._strata()
        strata = [np.flatnonzero(of == place) for place in range(STRATA)]
        shares = [count - 2 * (count // 4), count // 4, count // 4]
        for _ in strata:
            left = sum(max(0, n - len(rows)) for n, rows in zip(shares, strata, strict=True))
            shares = [min(n, len(rows)) for n, rows in zip(shares, strata, strict=True)]
            for place, rows in enumerate(strata):
                more = min(left, len(rows) - shares[place])
                shares[place], left = shares[place] + more, left - more
        draw = np.random.default_rng([self.seed, len(self.teaching)])
        drawn = []
        for rows, n in zip(strata, shares, strict=True):
            found: list[int] = []
            for row in draw.permutation(rows).tolist():
                if len(found) == n:
                    break
                if usable(row):
                    found.append(row)
            drawn.append(found)
        return drawn

    def audit(self) -> Audit:
        """Precision and recall of the photos above the line, by the answers of the last audit and those that taught."""
        of, taught, threshold = self._strata(), self.teaching, self.head.threshold
        sizes = np.bincount(of[of >= 0], minlength=STRATA).tolist()
        asked, right, known = [0] * STRATA, [0] * STRATA, [[0, 0] for _ in range(STRATA)]
        for row, given in self.audited.items():
            place = int(of[row])
            if place < 0:  # asked about before as well, which only a file by hand can say
                continue
            if given == "unsure":
                sizes[place] -= 1
            else:
                asked[place] += 1
                right[place] += given == "yes"
        for row, given in taught.items():
            if given != "unsure":
                known[0 if self.cosines()[row] > threshold else 1][given == "no"] += 1
        strata = [
            Stratum(place == 0, sizes[place], asked[place], right[place], *known[place]) for place in range(STRATA)
        ]
        return Audit(precision(strata), recall(strata), sum(asked))


def _ascending(values: np.ndarray, most: int, some: int) -> Iterator[int]:
    """Places of the `most` least values, least first, of equal ones the lower first; sorted no further than asked for."""
    given, asked = 0, min(most, max(1, some))
    while given < most:
        if asked < most:
            bound = np.partition(values, asked - 1)[asked - 1]
            chosen = np.flatnonzero(values <= bound)
        else:
            chosen = np.flatnonzero(np.isfinite(values))
        order = chosen[np.argsort(values[chosen], kind="stable")]
        yield from order[given:most].tolist()
        given, asked = len(order), min(most, 8 * asked)


def _in_turn(first: list[int], second: list[int]) -> list[int]:
    """One of each in turn, then what is left of the longer."""
    both = [row for pair in zip(first, second, strict=False) for row in pair]
    shorter = min(len(first), len(second))
    return [*both, *first[shorter:], *second[shorter:]]

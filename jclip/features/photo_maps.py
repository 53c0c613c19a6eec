"""Photos with a feature at each place as rows of features, so that whatever caches, cuts or hands over rows does it with
these; and their scores for several classes at once.

A row is [pooled; place 1; … place P], (1 + P) E numbers, see `jclip.model.dense_map`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from jclip.data.loader import OnError
from jclip.data.preprocess import notice_squashed
from jclip.data.splits import Split
from jclip.features.extraction import PART, batch_size, extract
from jclip.features.source import ModelSource
from jclip.features.stacked_text import BranchScores, StackedText
from jclip.functional import multi_label_scores, similarity
from jclip.functional.caption_bank import pulled
from jclip.functional.cooccurrence import modulated
from jclip.model import dense_map
from jclip.postponed import jt
from jclip.weights.variants import ResNetConfig

NUMBERS_AT_ONCE = 1 << 24  # cosines and features of a step


class MapSource:
    """A `ModelSource` in all but this: its features are rows of maps, not normalised, and depend on how these are made.

    `width` is that of a place, E.
    """

    def __init__(self, source: ModelSource, positions: bool = False, vit: str = "value"):
        self._source, self.positions, self._vit = source, positions, vit
        notice_squashed(source.preprocess, "photos whose places are scored")
        self.preprocess = source.preprocess.fixed()
        vision = source.config.vision
        if isinstance(vision, ResNetConfig):
            self._kind = ["with positions" if positions else "without positions"]
        else:
            self._kind = [vit]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @property
    def identity(self) -> list:
        """What features depend on."""
        return [*self._source.identity, "map", *self._kind]

    @cached_property
    def model(self):
        """What encodes pixels to rows of maps; loaded at first use."""
        return _MapModel(self._source.model, self.positions, self._vit)


class _MapModel:
    """A `CLIP` whose image features are rows of maps."""

    def __init__(self, model, positions: bool, vit: str):
        self._model, self._positions, self._vit = model, positions, vit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_image(self, pixels, penultimate: bool = False):
        """(B, 3, H, W) → (B, (1 + P) E)."""
        pooled, cells = dense_map.dense_map(self._model, pixels, self._positions, self._vit)
        rows = jt.concat([pooled.unsqueeze(1), cells], dim=1)
        return rows.reshape((rows.shape[0], -1))


class Scored(NamedTuple):
    """Scores (N, C) of the photos' pooled features and of their places."""

    whole: np.ndarray
    places: np.ndarray

    def merged(self, share: float) -> np.ndarray:
        """share · whole + (1 - share) · places."""
        return np.float32(share) * self.whole + np.float32(1 - share) * self.places


class WithMapScores(Protocol):
    """How rows of maps become scores: see the recipe `text_as_image`."""

    @property
    def scale(self) -> float: ...
    @property
    def tau_image(self) -> float: ...
    @property
    def winner(self) -> multi_label_scores.Winner: ...
    @property
    def bank(self) -> int: ...
    @property
    def bank_mix(self) -> float: ...
    @property
    def modulation(self) -> float: ...


class MapScorer:
    """Scores of rows of maps by text features of a global, a local and perhaps an evidence prompt.

    learned: `text_global`, `text_local` and perhaps `text_evidence` (C, E), rows of length one; `bank` (Q, E), sentences
    that the pooled feature is pulled towards, and `shares` (C, C), by which scores of places are passed on to classes that
    stand with theirs, where there are such. cfg: a recipe's config with tau_image, scale, winner, bank, bank_mix and
    modulation.
    """

    def __init__(self, learned: Mapping[str, np.ndarray], cfg: WithMapScores):
        self._text, self._cfg = by_set(learned, "text"), cfg
        self._bank, self._shares = learned.get("bank"), learned.get("shares")

    branches = ("global", "local")

    @staticmethod
    def heads(scorers: Sequence[MapScorer]) -> MapHeads:
        """Several of them as one."""
        return MapHeads(scorers)

    @property
    def none_near(self) -> np.ndarray | None:
        """The cosines with nearest sentences where there are no photos."""
        return np.zeros(0, np.float32) if self.bank_key else None

    @cached_property
    def bank_key(self) -> str:
        """What the sentences near to a photo depend on; empty without a bank. Models of one key have them in common."""
        if self._bank is None:
            return ""
        digest = hashlib.sha256(np.ascontiguousarray(self._bank).tobytes()).hexdigest()
        return f"{digest} {self._bank.shape} {self._cfg.bank} {self._cfg.bank_mix}"

    def __call__(self, rows: np.ndarray) -> Scored:
        """(N, (1 + P) E) as `MapSource` makes them, or of length one at every place."""
        width = self._text["global"].shape[1]
        return self.near_captions(similarity.normalise(jt.array(rows.reshape(len(rows), -1, width))))[0]

    def near_captions(self, maps) -> tuple[Scored, np.ndarray | None]:
        """Scores of maps (N, 1 + P, E), each place of length one, and the mean cosine (N,) of each with its nearest
        sentences of the bank, None without a bank."""
        found = self._alone(maps)[0]
        return Scored(*found.branches), found.near

    @cached_property
    def _alone(self) -> MapHeads:
        return MapHeads([self])

    def pulled(self, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features (N, E), drawn towards their nearest sentences of the bank, and the mean cosines (N,) with these."""
        moved, cosines = pulled(pooled, self._bank, self._cfg.bank, self._cfg.bank_mix)
        return moved, cosines.mean(axis=1)

    def local_scores(self, found, evidence):
        """Cosines (N, P, C) of places with the local prompts and perhaps the evidence's → (N, C)."""
        cfg = self._cfg
        return multi_label_scores.local_scores(found, cfg.tau_image, cfg.scale, evidence=evidence, winner=cfg.winner)

    def modulated(self, scores: np.ndarray) -> np.ndarray:
        """Local scores (N, C), a share of them handed on to classes that stand with theirs."""
        return scores if self._shares is None else modulated(scores, self._shares, self._cfg.modulation)

    @property
    def scale(self) -> float:
        """Of the scores."""
        return self._cfg.scale

    @property
    def text(self) -> Mapping[str, np.ndarray]:
        """(C, E) by set of prompts."""
        return self._text


class MapHeads:
    """Scores of the same maps by several `MapScorer`: one product with the prompts of all, and one look into each bank."""

    def __init__(self, scorers: Sequence[MapScorer]):
        self._scorers = [*scorers]
        self._sets = [[name for name in ("local", "evidence") if name in one.text] for one in scorers]
        self._places = StackedText([
            one.text[name] for one, names in zip(scorers, self._sets, strict=True) for name in names
        ])  # fmt: skip
        keys = [one.bank_key for one in scorers]
        self._banks = [[n for n, own in enumerate(keys) if own == key] for key in dict.fromkeys(keys)]
        self._pooled = [StackedText([scorers[n].text["global"] for n in members]) for members in self._banks]

    def __call__(self, maps) -> list[BranchScores]:
        """Maps (N, 1 + P, E), each place of length one → for each scorer global and local scores."""
        step = max(1, NUMBERS_AT_ONCE // (maps.shape[1] * (maps.shape[2] + 2 * len(self._places))))
        parts = [self._of(maps[i : i + step]) for i in range(0, max(1, maps.shape[0]), step)]
        return parts[0] if len(parts) == 1 else [_joined(own) for own in zip(*parts, strict=True)]

    def _of(self, maps) -> list[BranchScores]:
        count = maps.shape[0]
        if not count:
            return [
                BranchScores([np.zeros((0, len(one.text["global"])), np.float32)] * 2, one.none_near)
                for one in self._scorers
            ]
        with jt.no_grad():
            whole, near = self._whole(maps[:, 0])
            cut = iter(self._places.cut(multi_label_scores.cosines(maps[:, 1:], self._places.rows)))
            local = []
            for one, names in zip(self._scorers, self._sets, strict=True):
                own = {name: next(cut) for name in names}
                local.append(one.local_scores(own["local"], own.get("evidence")))
            ends = np.cumsum([x.shape[1] for x in local])[:-1]
            found = np.split((jt.concat(local, dim=1) if len(local) > 1 else local[0]).numpy(), ends, axis=1)
        return [
            BranchScores([whole[n], one.modulated(found[n])], near[n]) for n, one in enumerate(self._scorers)
        ]  # fmt: skip

    def _whole(self, pooled) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray | None]]:
        """Global scores and mean cosines with the bank, by number of the scorer."""
        whole: dict[int, np.ndarray] = {}
        near: dict[int, np.ndarray | None] = {}
        for members, text in zip(self._banks, self._pooled, strict=True):
            first, moved, close = self._scorers[members[0]], pooled, None
            if first.bank_key:
                array, close = first.pulled(pooled.numpy())
                moved = jt.array(array)
            found = similarity.zero_shot_scores(moved, text.rows, 1.0).numpy()
            for n, own in zip(members, text.cut(found), strict=True):
                whole[n], near[n] = np.float32(self._scorers[n].scale) * own, close
        return whole, near


def _joined(parts: Sequence[BranchScores]) -> BranchScores:
    near = [part.near for part in parts if part.near is not None]
    branches = [np.concatenate(column) for column in zip(*(part.branches for part in parts), strict=True)]
    return BranchScores(branches, np.concatenate(near) if near else None)


def score_photos(
    source: MapSource, split: Split, scorer: MapScorer, on_error: OnError = "stop", label: str = ""
) -> tuple[np.ndarray, Scored]:
    """Rows (n,) of `split` that decoded, and their scores. Maps of one part of the photos at a time are in memory."""
    found = [(rows, scorer(maps)) for rows, maps in maps_in_parts(source, split, on_error, label)]
    rows = np.concatenate([at for at, _ in found])
    return rows, Scored(*(np.concatenate(column) for column in zip(*(s for _, s in found), strict=True)))


def maps_in_parts(
    source: ModelSource | MapSource, split: Split, on_error: OnError = "stop", label: str = ""
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of `split` that decoded and their features, for one part of the photos after the other."""
    part = max(PART, batch_size())
    for at in range(0, len(split), part):
        some = range(at, min(at + part, len(split)))
        rows, maps = extract(source, split.take(some), on_error=on_error, label=label)
        yield at + rows, maps


def by_set(learned: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Arrays `<kind>_global`, … of what was learned, by set."""
    names: Sequence[str] = ("global", "local", "evidence")
    return {name: learned[f"{kind}_{name}"] for name in names if f"{kind}_{name}" in learned}

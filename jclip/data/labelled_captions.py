"""Captions with labels in three states, and our file of them: one JSON object a line. Imports no Jittor."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclip.config import to_json
from jclip.data.nouns import Labeller
from jclip.errors import DataError, UnknownName, quoted
from jclip.functional.cooccurrence import Cooccurrence, count_cooccurrence
from jclip.paths import replacing
from jclip.prompts.spelling import name_key
from jclip.readers.text import parse_json, read_text


@dataclass(frozen=True)
class LabelledCaptions:
    """Captions and what they name.

    targets: (N, C) int8, 1 named, 0 not named, -1 unknown; weights: (N,) float32, how often a caption counts; ids, sources
    and meta, where not empty, have N entries.
    """

    classnames: tuple[str, ...]
    texts: tuple[str, ...]
    targets: np.ndarray
    weights: np.ndarray
    ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    meta: tuple[Mapping[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: Sequence[int] | np.ndarray) -> LabelledCaptions:
        """Returns the captions of these rows, in their order."""
        rows = [int(row) for row in rows]
        ids, sources, meta = (
            tuple(own[row] for row in rows) if own else () for own in (self.ids, self.sources, self.meta)
        )
        texts = tuple(self.texts[row] for row in rows)
        return LabelledCaptions(self.classnames, texts, self.targets[rows], self.weights[rows], ids, sources, meta)

    def folded(self) -> LabelledCaptions:
        """Returns each pair of text and labels once, where it stands first, with the sum of its weights."""
        first: dict[tuple[str, bytes], int] = {}
        weights: list[float] = []
        rows: list[int] = []
        for row, text in enumerate(self.texts):
            place = first.setdefault((text, self.targets[row].tobytes()), len(rows))
            if place == len(rows):
                rows.append(row)
                weights.append(0.0)
            weights[place] += float(self.weights[row])
        kept = self.at(rows)
        return LabelledCaptions(
            kept.classnames, kept.texts, kept.targets, np.array(weights, np.float32), kept.ids, kept.sources, kept.meta
        )

    def only(self, labels: Iterable[int]) -> LabelledCaptions:
        """Returns the same captions, classes outside of `labels` unknown where they are not named."""
        targets = self.targets.copy()
        outside = np.ones(len(self.classnames), bool)
        outside[[*labels]] = False
        targets[:, outside] = np.where(targets[:, outside] == 1, 1, -1)
        return LabelledCaptions(self.classnames, self.texts, targets, self.weights, self.ids, self.sources, self.meta)

    def counts(self) -> np.ndarray:
        """Returns (C,) int64: how many captions name each class."""
        return (self.targets == 1).sum(axis=0, dtype=np.int64)


def labelled(
    texts: Sequence[str],
    labeller: Labeller,
    source: str = "text",
    ids: Sequence[str] = (),
    meta: Sequence[Mapping[str, Any]] = (),
) -> LabelledCaptions:
    """Returns texts with the labels that `labeller` finds, in the same order, weights one."""
    return LabelledCaptions(
        labeller.lexicon.classnames,
        tuple(texts),
        labeller.targets(texts),
        np.ones(len(texts), np.float32),
        tuple(ids) or tuple(f"{source}-{number}" for number in range(1, len(texts) + 1)),
        (source,) * len(texts),
        tuple(meta) or ({},) * len(texts),
    )


def joined(parts: Sequence[LabelledCaptions]) -> LabelledCaptions:
    """Returns the captions of several sets with the same classes, one set after the other. Raises `DataError`."""
    if len({part.classnames for part in parts}) != 1:
        raise DataError(f"captions to be joined must have the same classes, got {len(parts)} sets with different ones")
    return LabelledCaptions(
        parts[0].classnames,
        tuple(text for part in parts for text in part.texts),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.weights for part in parts]),
        tuple(own for part in parts for own in part.ids or ("",) * len(part)),
        tuple(own for part in parts for own in part.sources or ("text",) * len(part)),
        tuple(own for part in parts for own in part.meta or ({},) * len(part)),
    )


def balanced_rows(targets: np.ndarray, most: int, seed: int | None = None) -> np.ndarray:
    """Returns the rows, ascending, of a choice with at most `most` captions for each class.

    Captions are walked in order, or in one drawn from `seed`; each goes to its rarest class, the first of equally rare
    ones, and the first `most` of each class stay. targets: (N, C); captions that name no class are left out.
    """
    named = np.asarray(targets) == 1
    counts = named.sum(axis=0)
    rarity = np.argsort(np.argsort(counts, kind="stable"), kind="stable")  # rank of each class, the rarest 0
    order = np.arange(len(named)) if seed is None else np.random.default_rng(seed).permutation(len(named))
    taken: dict[int, int] = defaultdict(int)
    kept = []
    for row in order:
        own = np.flatnonzero(named[row])
        if not len(own):
            continue
        label = int(own[np.argmin(rarity[own])])
        if taken[label] < most:
            taken[label] += 1
            kept.append(int(row))
    return np.array(sorted(kept), np.int64)


def repeats(weights: np.ndarray) -> np.ndarray:
    """Returns (N,) int64: how often each caption stands in an epoch, its weight to the nearest integer, once where not 0."""
    return np.where(weights > 0, np.maximum(np.rint(weights), 1), 0).astype(np.int64)


def counted(captions: LabelledCaptions) -> Cooccurrence:
    """Returns which classes captions name together, each caption as often as it weighs."""
    return count_cooccurrence(np.repeat(captions.targets, repeats(captions.weights), axis=0))


def to_lines(captions: LabelledCaptions) -> str:
    """Returns the text of our file: a line `{"id", "text", "labels", "unknown", "source", "meta"}` for each caption."""
    names, lines = captions.classnames, []
    for row, text in enumerate(captions.texts):
        own = captions.targets[row]
        value: dict[str, Any] = {
            "id": captions.ids[row] if captions.ids else str(row + 1),
            "text": text,
            "labels": [names[label] for label in np.flatnonzero(own == 1)],
            "unknown": [names[label] for label in np.flatnonzero(own == -1)],
            "source": captions.sources[row] if captions.sources else "text",
            "meta": dict(captions.meta[row]) if captions.meta else {},
        }
        if captions.weights[row] != 1:
            value["weight"] = float(captions.weights[row])
        lines.append(to_json(value))
    return "".join(f"{line}\n" for line in lines)


def write_captions(path: str | os.PathLike, captions: LabelledCaptions) -> None:
    """Writes captions as our file, whole or not at all."""
    text = to_lines(captions)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_captions(
    paths: str | os.PathLike | Sequence[str | os.PathLike], classnames: Sequence[str]
) -> LabelledCaptions:
    """Returns the captions of our files, with labels among `classnames`; names are matched without regard to case.

    Raises `DataError` for a file that is absent or empty, and with its line for what is no object with `text`, `labels` and
    `unknown`; `UnknownName` for a label that is none of the classes.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else [*paths]
    if not paths:
        raise DataError("captions must come from at least one file, got none")
    labels = {name_key(name): label for label, name in enumerate(classnames)}
    return joined([_read_file(Path(path), tuple(classnames), labels) for path in paths])


def _read_file(path: Path, classnames: tuple[str, ...], labels: Mapping[str, int]) -> LabelledCaptions:
    rows = [(n, line.strip()) for n, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    values = [_parsed(line, f"{path}, line {number}") for number, line in rows]
    targets = np.zeros((len(values), len(classnames)), np.int8)
    for target, value, (number, _) in zip(targets, values, rows, strict=True):
        place = f"{path}, line {number}"
        target[_labels(value.get("unknown", []), labels, classnames, f"{place}: unknown")] = -1
        target[_labels(value["labels"], labels, classnames, f"{place}: labels")] = 1
    return LabelledCaptions(
        classnames,
        tuple(value["text"] for value in values),
        targets,
        np.array([value.get("weight", 1.0) for value in values], np.float32),
        tuple(str(value.get("id", number)) for value, (number, _) in zip(values, rows, strict=True)),
        tuple(str(value.get("source", "text")) for value in values),
        tuple(value.get("meta") or {} for value in values),
    )


def _parsed(line: str, place: str) -> dict[str, Any]:
    if not line.startswith(("{", "[")):
        raise DataError(_no_caption(line, place))
    value = parse_json(line, place)
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("text"), str)
        or not isinstance(value.get("labels"), list)
    ):
        raise DataError(_no_caption(line, place))
    weight = value.get("weight", 1.0)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < 1e9:
        raise DataError(f"{place}: weight must be a number in [0, 1e9), got {quoted(weight)}")
    return value


def _no_caption(line: str, place: str) -> str:
    return (
        f'{place}: must be a caption such as {{"text": "a dog", "labels": ["dog"]}}, got {line:.80}: '
        "`jclip captions label` makes such a file of other formats"
    )


def _labels(names: Any, labels: Mapping[str, int], classnames: Sequence[str], place: str) -> list[int]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{place} must be a list of class names, got {quoted(names)}")
    found = [labels.get(name_key(name)) for name in names]
    if None in found:
        raise UnknownName(f"class in {place}", names[found.index(None)], classnames)
    return found

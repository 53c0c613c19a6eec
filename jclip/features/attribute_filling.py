"""Missing attributes of photos, filled by zero-shot: of the texts that a row may have, the one nearest to its photo."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jclip.data.attribute_tables import AttributeRow, AttributeTable
from jclip.data.loader import OnError
from jclip.data.splits import Split
from jclip.errors import DataError
from jclip.features import extraction, heads
from jclip.features.part_arrays import Arrays, PhotoParts, array_lines, lines_array
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.metrics import softmax

MOST_TEXTS = 200_000


@dataclass(frozen=True)
class Choice:
    """The values that a row may take, all combinations of its missing attributes, and the text of each."""

    missing: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]


def choice_of(table: AttributeTable, row: AttributeRow) -> Choice:
    """What may be filled into a row; the given values are in every text."""
    missing = table.missing(row)
    values = tuple(itertools.product(*(table.candidates[name] for name in missing)))
    texts = [table.attributes.text({**row.given, **dict(zip(missing, of, strict=True))}) for of in values]
    return Choice(missing, values, tuple(texts))


def fill(
    table: AttributeTable,
    source: ModelSource,
    *,
    min_probability: float = 0.0,
    min_margin: float = 0.0,
    on_error: OnError = "stop",
    photos: PhotosToFill | None = None,
) -> AttributeTable:
    """The table with its missing attributes filled, as far as they are certain enough.

    A row's texts are compared with its photo: p = softmax(scale · cosine) over them. A row takes the text with the highest
    cosine. Of each attribute, probability is the sum of p over the texts with the value taken, margin the highest cosine
    with that value less the highest with another; below `min_probability` or `min_margin` it stays empty, with the numbers
    written. Each photo with something missing is encoded once, however many rows it has, and each distinct text once; both
    come from the cache where they are there. Raises `DataError` for photos that do not decode, unless on_error is "skip".
    """
    choices: dict[tuple, Choice] = {}
    chosen_by: dict[int, Choice] = {}
    for i, row in enumerate(table.rows):
        if table.missing(row):
            key = (table.missing(row), *sorted(row.given.items()))
            choices.setdefault(key, choice_of(table, row))
            chosen_by[i] = choices[key]
    if not chosen_by:
        return table
    texts = list(dict.fromkeys(text for choice in choices.values() for text in choice.texts))
    if len(texts) > MOST_TEXTS:
        raise DataError(
            f"{table.path}: at most {MOST_TEXTS} texts may be compared, got {len(texts)}: fill fewer attributes at once"
        )
    embedded, scale = heads.prompt_embeddings(source, [[text] for text in texts])
    number = {text: i for i, text in enumerate(texts)}
    parts = photos or PhotosToFill(table, source, on_error)
    features = parts.by_path()
    parts.forget()
    rows = list(table.rows)
    for i, choice in chosen_by.items():
        if (photo := features.get(table.photo(rows[i]))) is not None:
            cosines = embedded[[number[text] for text in choice.texts]] @ photo
            filled = decide(cosines.astype(np.float64), choice, scale, min_probability, min_margin)
            rows[i] = replace(rows[i], filled=filled)
    return replace(table, rows=tuple(rows))


class PhotosToFill(PhotoParts):
    """Features of the photos that rows with something missing have, in parts, which several processes may share."""

    def __init__(self, table: AttributeTable, source: ModelSource, on_error: OnError = "stop"):
        self._source, self._on_error = source, on_error
        incomplete = (row for row in table.rows if table.missing(row))
        self.paths = tuple(dict.fromkeys(map(table.photo, incomplete)))
        made_of = ["features to fill by", source.identity, source.preprocess.to_dict(), on_error]
        super().__init__(made_of, self.paths, self._encoded, ("rows", "features"))

    def by_path(self) -> dict[str, np.ndarray]:
        """Path → feature of length one, of each photo that decodes. Raises `DataError` where none does."""
        found, at, lost = {}, 0, []
        for part, size in zip(self.arrays(), self.sizes, strict=True):
            found.update(zip((self.paths[at + i] for i in part["rows"]), unit(part["features"]), strict=True))
            lost += array_lines(part["lost"])
            at += size
        if lost and not found:
            raise DataError(f"none of {len(self.paths)} photos decoded: {lost[0]}")
        return found

    def _encoded(self, paths: Sequence[str]) -> Arrays:
        split, lost = Split(tuple(paths), np.full(len(paths), -1, np.int32)), []
        try:
            kept, features = extraction.extract(self._source, split, on_error=self._on_error, label="photos")
        except DataError as e:
            if self._on_error != "skip":
                raise
            kept, features, lost = np.zeros(0, np.int64), np.zeros((0, self._source.width), np.float32), [str(e)]
        heads.check_directions(features, [paths[i] for i in kept])
        return {"rows": kept, "features": features, "lost": lines_array(lost)}


def decide(
    cosines: np.ndarray, choice: Choice, scale: float, min_probability: float, min_margin: float
) -> dict[str, tuple[str, float, float]]:
    """(n,) cosines of a choice's texts → of each missing attribute its value or "", probability and margin.

    The first of equal texts is taken; the margin of an attribute with one value is infinite.
    """
    probabilities, best = softmax(scale * cosines), int(cosines.argmax())
    found = {}
    for place, name in enumerate(choice.missing):
        value = choice.values[best][place]
        same = np.array([of[place] == value for of in choice.values])
        margin = float(cosines[best] - cosines[~same].max()) if not same.all() else np.inf
        probability = float(probabilities[same].sum())
        kept = probability >= min_probability and margin >= min_margin
        found[name] = (value if kept else "", probability, margin)
    return found


def counts(table: AttributeTable) -> list[Sequence]:
    """Rows of a table, one for each filled attribute: name, rows that lacked it, filled, left empty, mean probability."""
    lines = []
    for name in table.attributes.fill:
        lacking = [row for row in table.rows if name in table.missing(row)]
        found = [row.filled[name] for row in lacking if name in row.filled]
        taken = sum(bool(value) for value, *_ in found)
        mean = f"{np.mean([p for _, p, _ in found]):.3f}" if found else "-"
        lines.append([name, len(lacking), taken, len(lacking) - taken, mean])
    return lines

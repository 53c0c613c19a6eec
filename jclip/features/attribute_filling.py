"""Missing attributes of photos, filled by zero-shot: of the texts that a row may have, the one nearest to its photo."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jclip.data.attribute_tables import AttributeRow, AttributeTable
from jclip.data.loader import OnError
from jclip.data.splits import Split
from jclip.errors import DataError
from jclip.features import extraction, heads
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
    photos = _encode(table, source, chosen_by, on_error)
    rows = list(table.rows)
    for i, choice in chosen_by.items():
        if (photo := photos.get(table.photo(rows[i]))) is not None:
            cosines = embedded[[number[text] for text in choice.texts]] @ photo
            filled = decide(cosines.astype(np.float64), choice, scale, min_probability, min_margin)
            rows[i] = replace(rows[i], filled=filled)
    return replace(table, rows=tuple(rows))


def _encode(
    table: AttributeTable, source: ModelSource, chosen_by: Mapping[int, Choice], on_error: OnError
) -> dict[str, np.ndarray]:
    """Path → feature of length one, of each photo that rows with something missing have."""
    paths = tuple(dict.fromkeys(table.photo(table.rows[i]) for i in chosen_by))
    split = Split(paths, np.full(len(paths), -1, np.int32))
    kept, features = extraction.extract(source, split, on_error=on_error, label="photos")
    heads.check_directions(features, [paths[i] for i in kept])
    return dict(zip((paths[i] for i in kept), unit(features), strict=True))


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

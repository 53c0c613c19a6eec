"""Several sets of learned prompts for the same class names, read by the text tower in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jclip.errors import DataError
from jclip.model.clip import CLIP
from jclip.model.learned_prompts import Frame, Layout, Position, first_vectors
from jclip.runtime import jt


class PromptSets:
    """Named sets of prompts, each with vectors of its own around the same class names.

    vectors: by set, (K, D), or (C K, D) of the sets in `per_class`. They start from the tokens of `words`, whose number K
    then is, in every set alike, or at random by `seed`, in each set otherwise. Raises `DataError` for names that do not fit.
    """

    def __init__(
        self,
        model: CLIP,
        classnames: Sequence[str],
        sets: Sequence[str],
        length: int = 16,
        words: str = "",
        position: Position = "end",
        per_class: Sequence[str] = (),
        seed: int = 0,
    ):
        starts = _starts(model, len(sets), length, words, seed)
        made = {}
        for name, start in zip(sets, starts, strict=True):
            made[name] = np.tile(start, (len(classnames), 1)) if name in per_class else start
        self.vectors = {name: jt.array(array) for name, array in made.items()}
        self._frame = frame_of(model, classnames, made, position, per_class)

    def features(self, vectors: Mapping[str, jt.Var] | None = None) -> dict[str, jt.Var]:
        """(C, E) text features of length one of each set, of the vectors as they are, or of others of their shapes."""
        return features_of(self._frame, self.vectors if vectors is None else vectors)


def frame_of(
    model: CLIP,
    classnames: Sequence[str],
    vectors: Mapping[str, np.ndarray],
    position: Position = "end",
    per_class: Sequence[str] = (),
) -> Frame:
    """The prompts of all sets as the rows of one frame, set after set; `vectors` (M, D) by set say how many each has.

    per_class: sets of which each class has vectors of its own, (C·M, D).
    """
    layouts, counts = [], []
    for name, array in vectors.items():
        count = len(array) // len(classnames) if name in per_class else len(array)
        layout = Layout.of(model, classnames, count, position)
        layouts.append(layout.of_each_class(count) if name in per_class else layout)
        counts.append(len(array))
    return Frame(model, layouts[0].joined(layouts[1:], counts))


def features_of(frame: Frame, vectors: Mapping[str, jt.Var]) -> dict[str, jt.Var]:
    """(C, E) text features of length one of each set of a frame that `frame_of` made."""
    text = frame.features(jt.concat([*vectors.values()], dim=0))
    each = text.shape[0] // len(vectors)
    return {name: text[i * each : (i + 1) * each] for i, name in enumerate(vectors)}


def texts_with(
    model: CLIP, classnames: Sequence[str], vectors: Mapping[str, np.ndarray], position: Position
) -> dict[str, np.ndarray]:
    """`text_<set>` (C, E) of length one: the names' prompts with each set's learned vectors (M, D), without gradients.

    Raises `DataError` for names that don't fit.
    """
    frame = frame_of(model, classnames, vectors, position)
    with jt.no_grad():
        made = features_of(frame, {name: jt.array(v) for name, v in vectors.items()})
    return {f"text_{name}": text.numpy() for name, text in made.items()}


def _starts(model: CLIP, sets: int, length: int, words: str, seed: int) -> list[np.ndarray]:
    if words:
        return [first_vectors(model, length, words, seed)] * sets
    return np.split(first_vectors(model, length * sets, "", seed), sets)


def check_shapes(vectors: Mapping[str, jt.Var], given: Mapping[str, np.ndarray], place: str) -> None:
    """Raises `DataError` unless the arrays `given` have the sets and shapes of `vectors`."""
    for name, own in vectors.items():
        if name not in given:
            raise DataError(f"{place} must hold the prompts {name!r}, got {', '.join(sorted(given)) or 'none'}")
        if tuple(own.shape) != given[name].shape:
            raise DataError(
                f"{place}: the prompts {name!r} must have the shape {tuple(own.shape)}, got {given[name].shape}: set "
                "context, per_class and the class names as they were there"
            )

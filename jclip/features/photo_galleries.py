"""Plain photos as a gallery: embedded once into the cache, and brought up to date whenever they are searched again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from jclip import paths
from jclip.config import Dtype
from jclip.data.gallery_inputs import Inputs, read_inputs
from jclip.data.gallery_store import is_gallery, made_by
from jclip.data.unfinished_gallery import what_is_missing
from jclip.errors import DataError, notice
from jclip.features.cached import key_of
from jclip.features.gallery import Gallery
from jclip.features.gallery_embedding import DamagedGallery, Outcome, Seen, embed
from jclip.features.source import ModelSource

FIRST = 64  # photos that are embedded before any can be searched


def gallery_of_photos(
    place: str | os.PathLike,
    model: str,
    family: str | None = None,
    dtype: Dtype = "fp32",
    texts: Sequence[str] = (),
) -> Gallery:
    """The gallery of a folder, list or tar of photos, in the cache. New and changed photos alone are encoded, and counted
    on stderr, as are those that do not decode.

    model: a model's name or file, looked for once the photos are there. texts: that will be asked. Raises `DataError` where
    there is no photo, or a text is too long.
    """
    inputs = _inputs_of(place)
    source = ModelSource(model, family, dtype)
    if texts and source.config.text is not None:
        source.tokenize(texts)
    kept = _folder_for(place, source)
    outcome = _embedded(inputs, source, kept, model)
    _report(outcome)
    return Gallery.open(kept, source=source)


def growing_gallery(
    place: str | os.PathLike, model: str, family: str | None = None, seen: Seen | None = None
) -> Iterator[Gallery]:
    """As `gallery_of_photos`, by steps, so that what is there can be searched: the gallery as it was left the last time,
    then that of the first photos, of four times as many, and so on, at last of all.

    Rows of a step are the first rows of the next one. seen: called after each batch with the photos that are done and all
    of them; what it raises ends the work, and what is encoded by then is kept.
    """
    inputs = _inputs_of(place)
    source = ModelSource(model, family)
    kept = _folder_for(place, source)
    least = 0
    with contextlib.suppress(DataError):  # damaged: all are encoded again
        if is_gallery(kept):
            there = Gallery.open(kept, source=source)
            least = inputs.covering(there.path_of(row) for row in range(len(there)))
            yield there
    total = inputs.files
    for count in [FIRST * 4**step for step in range(15) if least < FIRST * 4**step < total]:
        with contextlib.suppress(DataError):  # none of the first photos decodes
            _embedded(inputs.first(count), source, kept, model, (lambda done, _: seen(done, total)) if seen else None)
            yield Gallery.open(kept, source=source)
    _report(_embedded(inputs, source, kept, model, seen))
    yield Gallery.open(kept, source=source)


def _inputs_of(place: str | os.PathLike) -> Inputs:
    if missing := what_is_missing(Path(place)):
        raise DataError(missing)
    return read_inputs([place])


def _embedded(inputs: Inputs, source: ModelSource, kept: Path, model: str, seen: Seen | None = None) -> Outcome:
    try:
        return embed(inputs, source, kept, update=True, model=model, seen=seen)
    except DamagedGallery as e:
        notice(f"{e.__cause__}; the photos are encoded again")
        shutil.rmtree(kept)
        return embed(inputs, source, kept, update=True, model=model, seen=seen)


def _report(outcome: Outcome) -> None:
    """Says on stderr what was encoded, and what can't be read."""
    if outcome.encoded or outcome.dropped:
        gone = f", dropped: {outcome.dropped}" if outcome.dropped else ""
        notice(f"photos encoded: {outcome.encoded}{gone}; in all, kept in the cache: {outcome.rows}")
    if outcome.skipped:
        path, reason = outcome.skipped[0]
        total = outcome.rows + len(outcome.skipped)
        notice(f"photos that can't be read: {len(outcome.skipped)} of {total}, left out (first: {path}: {reason})")


def _folder_for(place: str | os.PathLike, source: ModelSource) -> Path:
    made_of = [os.path.realpath(place), made_by(source.identity, source.preprocess.to_dict())]
    return paths.cache_dir("galleries") / key_of(made_of)[:32]

"""Plain photos as a gallery: embedded once into the cache, and brought up to date whenever they are searched again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from jclip import paths
from jclip.config import Dtype
from jclip.data.gallery_inputs import read_inputs
from jclip.data.gallery_store import made_by
from jclip.errors import DataError, notice
from jclip.features.gallery import Gallery
from jclip.features.gallery_embedding import DamagedGallery, embed
from jclip.features.source import ModelSource

UNFINISHED = "unfinished-*"  # what `jclip embed` leaves when it is stopped


def gallery_of_photos(
    place: str | os.PathLike, model: str, family: str | None = None, dtype: Dtype = "fp32"
) -> Gallery:
    """The gallery of a folder, list or tar of photos, in the cache. New and changed photos alone are encoded, and counted
    on stderr, as are those that do not decode.

    model: a model's name or file, looked for once the photos are there. Raises `DataError` where there is no photo.
    """
    folder = Path(place)
    if folder.is_dir() and any(folder.glob(UNFINISHED)):
        raise DataError(f"{place} is a gallery that is not finished: give `jclip embed` the same command again")
    inputs = read_inputs([place])
    source = ModelSource(model, family, dtype)
    kept = _folder_for(place, source)
    try:
        outcome = embed(inputs, source, kept, update=True, model=model)
    except DamagedGallery as e:
        notice(f"{e.__cause__}; the photos are encoded again")
        shutil.rmtree(kept)
        outcome = embed(inputs, source, kept, update=True, model=model)
    if outcome.encoded or outcome.dropped:
        gone = f", dropped: {outcome.dropped}" if outcome.dropped else ""
        notice(f"photos encoded: {outcome.encoded}{gone}; in all, kept in the cache: {outcome.rows}")
    if outcome.skipped:
        path, reason = outcome.skipped[0]
        total = outcome.rows + len(outcome.skipped)
        notice(f"photos that can't be read: {len(outcome.skipped)} of {total}, left out (first: {path}: {reason})")
    return Gallery.open(kept, source=source)


def _folder_for(place: str | os.PathLike, source: ModelSource) -> Path:
    made_of = [os.path.realpath(place), made_by(source.identity, source.preprocess.to_dict())]
    return paths.cache_dir("galleries") / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]

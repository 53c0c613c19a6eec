"""Photos that end the process that decodes them (a decoder's fault, memory): found after such an end, and refused from then on.

Few photos are decoded by threads of the process that computes, since others take a third of a second to start. A mark on disk
says that it is at it; where the next process finds one, the one before has died, and other processes decode the photos first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jclip.data import loader, photo_file, workers
from jclip.data.augment import OfPhotos, Views
from jclip.data.preprocess import Preprocess
from jclip.errors import DataError

_SMALL = Views(Preprocess(size=(8, 8), resize="squash"))
_AHEAD, _OF_EACH = 16, 64  # photos in preparation; for which another process is worth its start


@contextlib.contextmanager
def decoding(mark: Path, photos: Callable[[], Sequence[str]], views: OfPhotos = _SMALL) -> Iterator[None]:
    """In the block this process decodes photos, with the file `mark` in place. Where it is there already, those of them that
    end a process are searched for, and do not decode in the block.

    views: how the photos are seen. Raises `SetupError` where processes end with several photos one after the other.
    """
    found = {}
    if mark.exists():
        found = _deadly(photos(), views)
    else:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    photo_file.DEADLY.update(found)
    try:
        yield
    finally:
        for photo in found:
            photo_file.DEADLY.pop(photo, None)
        mark.unlink(missing_ok=True)


def _deadly(photos: Sequence[str], views: OfPhotos) -> dict[str, str]:
    """Photo → what it does to the process that decodes it."""
    count = max(1, min(loader.workers(), len(photos) // _OF_EACH))
    results = workers.decoded(photos, range(len(photos)), views, _AHEAD, count) if photos else ()
    return {
        photos[place]: str(got).partition(photo_file.FAILED)[2]
        for place, got in results
        if isinstance(got, DataError) and workers.ENDED in str(got)
    }

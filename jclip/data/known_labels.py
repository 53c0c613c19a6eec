"""Which labels of training photos are known, as a mask that is drawn once and kept in a file.

Each label of a photo and a class, present or absent, is kept with the same probability p, as the papers on partial labels
say. (DualCoOp's loader of COCO draws for small, middle and large objects apart and takes the greatest: it keeps
1 - (1 - p)^3 of the labels, and a present class whose size is hidden becomes absent. That is not done here.)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclip.data.checks import preview
from jclip.data.label_files import PhotoLabels, texts_of
from jclip.errors import DataError, notice
from jclip.paths import replacing
from jclip.readers.npz import read_npz


def draw_mask(photos: int, classes: int, share: float, seed: int) -> np.ndarray:
    """(N, C) bool, each True with probability `share`; of equal shape and seed a larger share keeps what a smaller one does."""
    return np.random.default_rng((seed, 0x3A5C)).random((photos, classes)) < share


def write_mask(path: str | Path, known: np.ndarray, labels: PhotoLabels) -> None:
    """An .npz of `known` (N, C), `classes` and `images`, the photos' file names; equal masks give equal bytes."""
    packed = io.BytesIO()
    np.savez(packed, known=known, classes=np.array(labels.classnames), images=np.array(_files(labels.photos)))
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(packed.getvalue())


def read_mask(path: str | Path, labels: PhotoLabels) -> np.ndarray:
    """The mask (N, C) of these photos and classes. Raises `DataError` for one of others."""
    arrays = read_npz(Path(path))
    if "known" not in arrays:
        raise DataError(f"{path}: must hold an array 'known', got {preview([*arrays], 9)}")
    known = arrays["known"].read()
    if known.shape != labels.targets.shape or not np.isin(known, (0, 1)).all():
        raise DataError(
            f"{path}, known: must be 0 or 1 for {len(labels)} photos and {len(labels.classnames)} classes, "
            f"got {known.dtype} {known.shape}"
        )
    for name, own in (("classes", labels.classnames), ("images", _files(labels.photos))):
        given = texts_of(arrays, name, path)
        if given != own:
            other = next((pair for pair in zip(given, own, strict=False) if pair[0] != pair[1]), ("nothing", own[0]))
            raise DataError(f"{path}, {name}: must be the data's, in their order, got {other[0]!r} for {other[1]!r}")
    return known.astype(bool)


def _files(photos: Sequence[str]) -> tuple[str, ...]:
    return tuple(Path(photo).name for photo in photos)


def masked(targets: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Labels (N, C) int8 in which what is not known is -1."""
    return np.where(known, targets, -1).astype(np.int8)


def check_known(targets: np.ndarray, classnames: Sequence[str], taught: np.ndarray) -> None:
    """Raises `DataError` for labels that teach nothing; reports on stderr classes without a known photo.

    taught: (C,) bool, the classes that are meant to be learned.
    """
    if not len(targets) or not (targets == 1).any() or not (targets == 0).any():
        raise DataError(
            "training photos must have known labels, present ones and absent ones: raise known, or look at the labels"
        )
    lacking = [n for n, c, use in zip(classnames, (targets == 1).sum(axis=0), taught, strict=True) if use and not c]
    if lacking:
        notice(f"{len(lacking)} of {int(taught.sum())} classes have no photo known to show them: {preview(lacking)}")

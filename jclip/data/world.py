"""Photo folders of the embedded world, rendered into the cache at first use. No Jittor.

A class per shape and colour, all one hundred of them, one thing to a photo. `shapes:sketch` and the other styles have
train, val and test; `shapes:seen_pairs` and `shapes:unseen_pairs` are test photos in the styles seen in training, of the
85 classes that the shipped models were trained on, and of the 15 that were kept from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jclip.data import shapes
from jclip.errors import UnknownName
from jclip.paths import cache_dir

SIZE = 64
COUNTS = {"train": 16, "val": 4, "test": 10}  # photos per class and part of a style
PER_PAIR = {"seen_pairs": 10, "unseen_pairs": 40}
_SEEDS = {name: 10_000 + i for i, name in enumerate((*shapes.STYLES, *PER_PAIR))}


def rendered_folder(name: str) -> Path:
    """The folder of that name with `train`, `val` and `test` as far as it has them. Raises `UnknownName`."""
    if name not in _SEEDS:
        raise UnknownName("set of rendered photos", name, _SEEDS)
    folder = cache_dir("shapes") / f"{name}-{_version()}"
    if not folder.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            for number, (part, pair, scene) in enumerate(_scenes(name)):
                place = unfinished / part / "_".join(pair)
                place.mkdir(parents=True, exist_ok=True)
                if scene is not None:
                    scene.render(SIZE).save(place / f"image_{number:04}.png")
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(unfinished, folder)  # noqa: PTH104
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _scenes(name: str) -> Iterator[tuple[str, tuple[str, str], shapes.Scene | None]]:
    """Part, pair and scene; None for a class without photos, which is a class nonetheless."""
    if name in shapes.STYLES:
        counts = COUNTS
        styles, pairs = (name,), shapes.PAIRS
    else:
        counts = {"test": PER_PAIR[name]}
        styles = shapes.SEEN_STYLES
        pairs = shapes.SEEN_PAIRS if name == "seen_pairs" else shapes.UNSEEN_PAIRS
    for number, (part, count) in enumerate(counts.items()):
        for label, pair in enumerate(shapes.PAIRS):
            if pair not in pairs:
                yield part, pair, None
            for i in range(count if pair in pairs else 0):
                seed = (_SEEDS[name], number, label, i)
                yield part, pair, shapes.draw_scene(seed, pairs=(pair,), styles=styles, count=(1, 1))


def _version() -> str:
    """Another renderer, other photos."""
    sources = (Path(shapes.__file__).read_bytes(), Path(__file__).read_bytes())
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]

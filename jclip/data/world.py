"""Photo folders of the embedded world, rendered into the cache at first use. No Jittor.

A class per shape and colour, all one hundred of them, one thing to a photo. `shapes:sketch` and the other styles have
train, val and test; `shapes:seen_pairs` and `shapes:unseen_pairs` are test photos in the styles seen in training, of the
85 classes that the shipped models were trained on, and of the 15 that were kept from them. `shapes:scenes` are photos of
two to four things each, with lists of their classes, in the styles seen in training; `shapes:unseen_scenes` in the others.
Their things lie one in each quarter; those of `shapes:free_scenes`, in the styles seen in training, anywhere.
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
SCENES = {"scenes": shapes.SEEN_STYLES, "unseen_scenes": shapes.UNSEEN_STYLES, "free_scenes": shapes.SEEN_STYLES}
FREE = ("free_scenes",)  # whose things do not keep to the quarters
SCENE_COUNTS = {"val": 200, "test": 800, "train": 800}  # in the order of their seeds
THINGS = (2, 4)  # of a scene
_SEEDS = {name: 10_000 + i for i, name in enumerate((*shapes.STYLES, *PER_PAIR, *SCENES))}


def rendered_folder(name: str) -> Path:
    """The folder of that name with `train`, `val` and `test` as far as it has them. Raises `UnknownName`.

    Of scenes it has classes.txt and a list for each part besides, train.txt, val.txt and test.txt, as
    `jclip.data.multi_label` reads them.
    """
    if name not in _SEEDS:
        raise UnknownName("set of rendered photos", name, _SEEDS)
    folder = cache_dir("shapes") / f"{name}-{_version()}"
    if not folder.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            _write_scenes(unfinished, name) if name in SCENES else _write_classes(unfinished, name)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(unfinished, folder)  # noqa: PTH104
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_classes(folder: Path, name: str) -> None:
    """A folder per part and class."""
    for number, (part, pair, scene) in enumerate(_scenes(name)):
        place = folder / part / "_".join(pair)
        place.mkdir(parents=True, exist_ok=True)
        if scene is not None:
            scene.render(SIZE).save(place / f"image_{number:04}.png")


def _write_scenes(folder: Path, name: str) -> None:
    """A folder and a list per part, all photos with all their classes."""
    label = {classname: k for k, classname in enumerate(shapes.CLASSNAMES)}
    (folder / "classes.txt").write_text("".join(f"{c} {k}\n" for c, k in label.items()), encoding="utf-8")
    for number, (part, count) in enumerate(SCENE_COUNTS.items()):
        (folder / part).mkdir()
        lines = []
        for i in range(count):
            drawn = {"styles": SCENES[name], "count": THINGS, "quarters": name not in FREE}
            scene = shapes.draw_scene((_SEEDS[name], number, i), **drawn)
            scene.render(SIZE).save(folder / part / f"scene_{i:04}.png")
            lines.append(" ".join([f"{part}/scene_{i:04}.png", *(str(label[c]) for c in scene.labels)]) + "\n")
        (folder / f"{part}.txt").write_text("".join(lines), encoding="utf-8")


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

"""Phrases with their boxes as grounding learns them and is measured on, and scenes of the embedded world as such. No Jittor."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jclip.config import WORLD, BoxDataConfig
from jclip.data import shapes
from jclip.data.photo_file import open_photo
from jclip.errors import ConfigError, DataError

PARTS = {"train": 0, "val": 1, "test": 2, "unseen": 3}  # the last: of pairs that neither tower nor network learned from
SEED = 20_000
THINGS = (2, 4)  # of a scene
FEW = (3, 5)  # pairs that a scene with likely twins is drawn from


@dataclass(frozen=True)
class BoxSamples:
    """n phrases of I photos, one box each.

    photos: scenes, pictures or paths. sizes: (I, 2) width and height in pixels; a scene is rendered at its own. of: (n,) the
    photo of each phrase. boxes: (n, 4) corners in pixels of the photo as it is stored. labels: (n,) which file or source a
    phrase is from, where that is known.
    """

    photos: tuple[shapes.Scene | Image.Image | Path, ...]
    sizes: np.ndarray
    of: np.ndarray
    phrases: tuple[str, ...]
    boxes: np.ndarray
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.phrases)

    def counts(self) -> dict[str, Any]:
        """How many photos and phrases there are, and of each label how many phrases."""
        return {
            "photos": len(self.photos),
            "phrases": len(self),
            **({"of": dict(Counter(self.labels))} if self.labels else {}),
        }

    def photo(self, number: int) -> Image.Image:
        """The RGB photo of that number, without an EXIF rotation, which boxes do not know."""
        photo = self.photos[number]
        if isinstance(photo, shapes.Scene):
            return photo.render(int(self.sizes[number, 0]))
        return (photo if isinstance(photo, Image.Image) else open_photo(photo, upright=False)).convert("RGB")

    def name(self, number: int) -> str:
        """A photo's path, or of pictures without one the number."""
        photo = self.photos[number]
        return (
            str(photo)
            if isinstance(photo, Path)
            else f"scene {number}"
            if isinstance(photo, shapes.Scene)
            else str(number)
        )

    def of_rows(self, rows: Sequence[int]) -> BoxSamples:
        """The samples of those numbers, in that order, with their photos alone."""
        photos = sorted({self.of[row] for row in rows})
        numbers = {photo: number for number, photo in enumerate(photos)}
        return BoxSamples(
            tuple(self.photos[photo] for photo in photos), self.sizes[photos],
            np.array([numbers[self.of[row]] for row in rows], int), tuple(self.phrases[row] for row in rows),
            self.boxes[list(rows)], tuple(self.labels[row] for row in rows) if self.labels else (),
        )  # fmt: skip

    def of_photos(self, photos: Sequence[int]) -> BoxSamples:
        """The samples of the photos of those numbers alone."""
        return self.of_rows(np.flatnonzero(np.isin(self.of, photos)).tolist())

    @cached_property
    def true(self) -> tuple[frozenset[str], ...]:
        """For each photo the phrases that something in it fits, as far as that is known."""
        own: list[set[str]] = [set() for _ in self.photos]
        for photo, phrase in zip(self.of.tolist(), self.phrases, strict=True):
            own[photo].add(phrase)
        return tuple(
            frozenset(said | (_fitting(photo) if isinstance(photo, shapes.Scene) else set()))
            for said, photo in zip(own, self.photos, strict=True)
        )

    def absent_phrases(self, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
        """For each of the rows a phrase of another photo that nothing in this row's photo is known to fit."""
        found = []
        for row in rows:
            known = self.true[self.of[row]]
            drawn = (self.phrases[i] for i in rng.integers(len(self), size=1000))
            phrase = next((phrase for phrase in drawn if phrase not in known), None)
            if phrase is None:
                raise DataError(
                    "phrases for absent things must come from other photos, got none that differs: set present=false"
                )
            found.append(phrase)
        return found

    def digest(self) -> str:
        """What features of the photos depend on."""
        key = hashlib.sha256(f"{self.sizes.tolist()}".encode())
        if any(isinstance(photo, shapes.Scene) for photo in self.photos):
            key.update(_renderer())
        for number in range(len(self.photos)):
            key.update(self._content(number))
        return key.hexdigest()

    def photo_digest(self, number: int) -> bytes:
        """What features of that photo depend on, 32 bytes."""
        key = hashlib.sha256(f"{self.sizes[number].tolist()}".encode())
        if isinstance(self.photos[number], shapes.Scene):
            key.update(_renderer())
        key.update(self._content(number))
        return key.digest()

    def _content(self, number: int) -> bytes:
        photo = self.photos[number]
        if isinstance(photo, Path):
            return photo.read_bytes()
        return repr(photo).encode() if isinstance(photo, shapes.Scene) else photo.tobytes()


@cache
def _renderer() -> bytes:
    """What draws scenes."""
    return Path(shapes.__file__).read_bytes()


def _fitting(scene: shapes.Scene) -> set[str]:
    """All phrases about shapes, colours and both that something in a scene fits, whether it is the only one or not."""
    names = {f"the {t.shape}" for t in scene.things} | {f"the {t.colour} one" for t in scene.things}
    full = {f"the {t.name}" for t in scene.things}
    sides = ("on the left", "on the right", "at the top", "at the bottom")
    return names | full | {f"{name} {side}" for name in full for side in sides}


def samples_of_scenes(scenes: Iterable[shapes.Scene], side: int) -> BoxSamples:
    """Each thing of each scene with its phrase; scenes rendered at `side` pixels."""
    scenes = tuple(scenes)
    of = np.repeat(np.arange(len(scenes)), [len(scene.things) for scene in scenes])
    phrases = tuple(phrase for scene in scenes for phrase in scene.phrases())
    sizes = np.full((len(scenes), 2), side)
    return BoxSamples(scenes, sizes, of, phrases, np.concatenate([scene.boxes(side) for scene in scenes]))


def world_samples(data: BoxDataConfig, part: str, side: int) -> BoxSamples | None:
    """Scenes of the embedded world for that part; None where the part has none.

    A share `twins` of the scenes (in training `train_twins`) is drawn from a few pairs each, so that two things may be
    alike and phrases name sides.
    Raises `ConfigError` for a part that is not of the embedded world.
    """
    named = data.named(part)
    count = {"train": data.scenes, "val": data.val_scenes, "test": data.test_scenes, "unseen": data.unseen_scenes}[part]
    if not named or not count:
        return None
    if named != (WORLD,):
        raise ConfigError(f"data.{part} must be {WORLD} (the embedded world) or empty, got {', '.join(named)}")
    twins = data.twins if part != "train" or data.train_twins is None else data.train_twins
    pairs = shapes.UNSEEN_PAIRS if part == "unseen" else shapes.SEEN_PAIRS
    return samples_of_scenes((drawn_scene((SEED, PARTS[part], i), pairs, twins) for i in range(count)), side)


def drawn_scene(seed: Sequence[int], pairs: Sequence[tuple[str, str]], twins: float) -> shapes.Scene:
    """A scene of two to four things in a style seen in training, with probability `twins` of three to five pairs alone."""
    rng = np.random.default_rng((*seed, 5))
    if rng.random() < twins:
        few = rng.choice(len(pairs), int(rng.integers(FEW[0], FEW[1] + 1)), replace=False)
        pairs = [pairs[i] for i in few]
    return shapes.draw_scene(seed, pairs=pairs, styles=shapes.SEEN_STYLES, count=THINGS)

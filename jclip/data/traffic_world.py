"""The embedded world as traffic: coloured shapes seen by a surveillance camera, with the lists of the retrieval challenge.

No model of this project has seen the style: wide frames in a dim, tinted light, blurred, noisy, with the line that such
cameras write into them. One thing stands for a car, whose colour or shape its caption may leave out; two things for what
is said in a whole sentence. The gallery has photos besides that nobody asks for. No Jittor.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from jclip.data import shapes
from jclip.errors import UnknownName
from jclip.paths import cache_dir

SIDE, FRAME = 80, (112, 80)  # pixels of a scene, width and height of a photo
PARTS = ("train", "val", "test")
LISTS = ("train_label.txt", "val_label.txt", "test_text.txt", "test_truth.txt")
LACKING = (0.15, 0.85)  # shares of training captions without the colour, without the shape: as the challenge's cars
_SEED = 30_000
_TINT = np.array([1.0, 0.92, 0.74], np.float32)  # of a street lamp
_OPENINGS = ("A", "This is a")


@dataclass(frozen=True)
class Counts:
    """How many photos there are: with one thing and with two, of each part, and in the galleries those that nobody asks for."""

    train: tuple[int, int] = (900, 300)
    val: tuple[int, int] = (240, 80)
    test: tuple[int, int] = (420, 140)
    asked: int = 60  # of the hundred classes, those that test queries ask for; validation asks for others


SMALL = Counts((60, 20), (24, 8), (30, 10), 50)


def traffic_folder(seed: int = 1, counts: Counts = Counts()) -> Path:
    """The folder of that seed, rendered into the cache at first use: `train`, `val`, `test` with photos, and `LISTS`.

    train_label.txt, val_label.txt: `image$attributes$caption`. test_text.txt: a query a line. test_truth.txt: of each
    query, in the same order, `text$image$image…`.
    """
    folder = cache_dir("shapes") / f"traffic-{seed}-{_version(counts)}"
    if not folder.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix=".traffic-", dir=folder.parent))
        try:
            write_traffic(unfinished, seed, counts)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(unfinished, folder)  # noqa: PTH104
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def named_folder(name: str) -> Path:
    """`traffic`, `traffic-2` and so on by seed, `small-traffic` with few photos. Raises `UnknownName`."""
    small = name.startswith("small-")
    kind, dash, seed = name.removeprefix("small-").partition("-")
    if kind != "traffic" or (dash and not (seed.isdecimal() and len(seed) < 7)):
        raise UnknownName("set of rendered traffic", name, ("traffic", "traffic-2", "small-traffic"))
    return traffic_folder(int(seed or 1), SMALL if small else Counts())


def write_traffic(folder: Path, seed: int, counts: Counts = Counts()) -> None:
    """Photos and lists into a folder that is there."""
    rng = np.random.default_rng((_SEED, seed))
    asked = {shapes.PAIRS[i] for i in rng.permutation(len(shapes.PAIRS))[: counts.asked]}
    for part, sizes in (("train", counts.train), ("val", counts.val), ("test", counts.test)):
        (folder / part).mkdir()
        lines, truth = [], {}
        for number, (scene, said) in enumerate(_scenes(rng, seed, part, sizes)):
            name = f"{'vehicle' if len(scene.things) == 1 else '0'}_{number:04}.png"
            watched(scene).save(folder / part / name)
            lines.append("$".join([name, *said]))
            truth.setdefault(said[1].removeprefix("This is a ").removeprefix("A "), []).append((name, said[1]))
        if part == "test":
            wanted = [found for meaning, found in truth.items() if _asks(meaning, asked)]
            _write(folder / "test_text.txt", [found[0][1] for found in wanted])
            _write(folder / "test_truth.txt", ["$".join([f[0][1], *(name for name, _ in f)]) for f in wanted])
        else:
            _write(folder / f"{part}_label.txt", lines)


def _scenes(
    rng: np.random.Generator, seed: int, part: str, sizes: tuple[int, int]
) -> Iterator[tuple[shapes.Scene, tuple[str, str]]]:
    """Scenes with attributes and caption, in the manner of the challenge; those of a part have seeds of their own."""
    for row in range(sum(sizes)):
        single = row < sizes[0]
        scene = scene_of(seed, part, row, single)
        if single:
            thing, lacks = scene.things[0], _lacking(rng) if part == "train" else ""
            words = " ".join(w for w, kind in ((thing.colour, "colour"), (thing.shape, "shape")) if kind != lacks)
            noun = f"{words} one" if lacks == "shape" else words
            yield scene, (words, f"{_OPENINGS[int(rng.integers(2))]} {noun}.")
        else:
            a, b = scene.things
            caption = f"A {a.name} {shapes.relation(a, b)} a {b.name}."
            yield scene, (f"{a.colour},{a.shape},{b.colour},{b.shape}", caption)


def scene_of(seed: int, part: str, row: int, single: bool) -> shapes.Scene:
    """What photo `row` of a part shows: one thing, or two."""
    own = (_SEED, seed, PARTS.index(part), row)
    return shapes.draw_scene(own, styles=("filled",), count=(1, 1) if single else (2, 2), radius=(0.2, 0.36))


def _lacking(rng: np.random.Generator) -> str:
    drawn = rng.random()
    return "colour" if drawn < LACKING[0] else "shape" if drawn < sum(LACKING) else ""


def _asks(text: str, asked: set[tuple[str, str]]) -> bool:
    """Whether all classes that a text names are asked for."""
    named = [(c, s) for c, s in shapes.PAIRS if f"{c} {s}" in text]
    return all(pair in asked for pair in named)


def watched(scene: shapes.Scene) -> Image.Image:
    """The scene as a surveillance camera has it: RGB, `FRAME` pixels, the scene somewhere from left to right."""
    rng = np.random.default_rng((*scene.seed, 9))
    square = scene.render(SIDE)
    width = FRAME[0]
    x = int(rng.integers(0, width - SIDE + 1))
    frame = Image.new("RGB", FRAME, square.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
    frame.paste(square, (x, 0))
    frame = frame.filter(ImageFilter.GaussianBlur(0.8))
    light = np.asarray(frame, np.float32)
    grey = light.mean(axis=2, keepdims=True)
    light = (grey + 0.75 * (light - grey)) * _TINT * np.float32(rng.uniform(0.6, 0.9))
    light += rng.normal(0, 7, (*light.shape[:2], 1)).astype(np.float32)
    light[::2] *= 0.92  # interlaced
    light[:7] = np.where(rng.random((1, width, 1)) < 0.4, 215, 15)  # the line that cameras write
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8), "RGB")


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _version(counts: Counts) -> str:
    """Another renderer or other counts, other photos."""
    sources = (Path(shapes.__file__).read_bytes(), Path(__file__).read_bytes(), repr(counts).encode())
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]

"""The embedded world: scenes of coloured shapes, drawn from a seed with all that is true of them. No Jittor.

Ten shapes times ten colours, one to four of them on a muted, noisy gradient, in six drawing styles. A scene knows its
caption, class, label set, and a box and an unambiguous referring phrase for each thing in it. Lengths are shares of the
canvas (0 to 1), so the same scene renders at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

STYLES = ("filled", "outline", "hatched", "dotted", "sketch", "inverted")
SEEN_STYLES, UNSEEN_STYLES = STYLES[:4], STYLES[4:]  # what the shipped models were trained on, and what not
COLOURS = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 40),
    "green": (20, 150, 40),
    "cyan": (50, 220, 220),
    "blue": (30, 50, 220),
    "purple": (120, 30, 150),
    "pink": (255, 130, 190),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
TEMPLATES = (
    "{}", "a {}.", "a photo of a {}.", "an image of a {}.", "a picture of a {}.", "a drawing of a {}.",
    "there is a {}.", "this is a {}.", "a {} on a plain background.", "a scene with a {}.",
)  # fmt: skip
SMALL, LARGE = 0.13, 0.25  # radii below and above which a caption may say so
RADII_APART = (0.11, 0.24)  # of things that share a canvas and lie anywhere
_TRIES = 20  # places for each thing, before all of a canvas are drawn anew
OVERSAMPLING = 3
NOISE_SIDE = 512


def _regular(corners: int, radius: float = 1.0, inner: float = 0.0) -> np.ndarray:
    """A regular polygon standing on its side's opposite corner, or a star with `inner` radius."""
    n = 2 * corners if inner else corners
    turn = 2 * np.pi * np.arange(n) / n - np.pi / 2
    r = np.where(np.arange(n) % 2, inner, radius) if inner else np.full(n, radius)
    return np.stack([r * np.cos(turn), r * np.sin(turn)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16


def _moon() -> np.ndarray:
    outer = np.linspace(0.22 * np.pi, 1.78 * np.pi, 20)
    edge = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inner = np.linspace(1.62 * np.pi, 0.38 * np.pi, 16)
    hollow = np.stack([0.42 + 0.69 * np.cos(inner), 0.69 * np.sin(inner)], axis=1)
    return np.concatenate([edge, hollow]) + np.array([0.1, 0.0])


SHAPES = {
    "circle": _regular(28, 0.95),
    "square": np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": _regular(3),
    "diamond": np.array([(0, -1), (0.55, 0), (0, 1), (-0.55, 0)]),
    "star": _regular(5, 1.0, 0.42),
    "cross": np.array(
        [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
         (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)]
    ) * 0.93,
    "heart": _heart(),
    "moon": _moon(),
    "arrow": np.array([(-1, -0.26), (0.1, -0.26), (0.1, -0.72), (1, 0), (0.1, 0.72), (0.1, 0.26), (-1, 0.26)]) * 0.97,
    "bolt": np.array([(0.3, -1), (-0.62, 0.18), (-0.06, 0.18), (-0.3, 1), (0.62, -0.26), (0.06, -0.26), (0.5, -1)]) * 0.97,
}  # fmt: skip
PAIRS = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
CLASSNAMES = tuple(f"{colour} {shape}" for colour, shape in PAIRS)
_COLUMNS, _ROWS = tuple(COLOURS), tuple(SHAPES)
UNSEEN_PAIRS = tuple(  # each shape and each colour loses one or two of its ten
    (_COLUMNS[(3 * i + offset) % 10], _ROWS[i]) for offset, rows in ((1, range(10)), (6, range(0, 10, 2))) for i in rows
)
SEEN_PAIRS = tuple(p for p in PAIRS if p not in UNSEEN_PAIRS)


@dataclass(frozen=True)
class Thing:
    """One shape. Centre, radius and box are shares of the canvas; the angle is in radians, clockwise."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float = 0.0

    @property
    def name(self) -> str:
        """Its class, such as `red circle`."""
        return f"{self.colour} {self.shape}"

    @property
    def size_word(self) -> str:
        """`small`, `large`, or nothing for what lies between."""
        return "small" if self.radius < SMALL else "large" if self.radius > LARGE else ""

    def outline(self) -> np.ndarray:
        """(n, 2) corners x, y."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return SHAPES[self.shape] @ np.array([[c, s], [-s, c]]) * self.radius + (self.x, self.y)

    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1."""
        corners = self.outline()
        return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


@dataclass(frozen=True)
class Scene:
    """Things in one drawing style. `seed` draws background, noise and wobble, so rendering twice gives the same pixels."""

    things: tuple[Thing, ...]
    style: str
    seed: tuple[int, ...]
    caption: str
    meaning: str  # the caption without its phrasing: equal where two captions say the same

    @property
    def label(self) -> str:
        """The class: that of the largest thing."""
        return max(self.things, key=lambda t: t.radius).name

    @property
    def labels(self) -> tuple[str, ...]:
        """All classes in it, each once, sorted."""
        return tuple(sorted({t.name for t in self.things}))

    def boxes(self, size: int = 64) -> np.ndarray:
        """float32 (n, 4): x0, y0, x1, y1 of each thing, in pixels."""
        return np.array([t.box() for t in self.things], np.float32) * size

    def phrases(self) -> tuple[str, ...]:
        """For each thing a phrase that fits it alone."""
        rng = np.random.default_rng((*self.seed, 2))
        return tuple(str(rng.choice(fitting(t, self.things))) for t in self.things)

    def render(self, size: int = 64) -> Image.Image:
        """RGB, `size` x `size` pixels."""
        rng = np.random.default_rng((*self.seed, 1))
        image = _background(size, rng)
        for thing in self.things:
            _draw(image, thing, self.style, rng)
        return image


def draw_scene(
    seed: Sequence[int],
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    styles: Sequence[str] = STYLES,
    count: tuple[int, int] = (1, 4),
    radius: tuple[float, float] = (0.16, 0.36),
    quarters: bool = True,
) -> Scene:
    """The scene of `seed`: from `count` things of `pairs`, no pair more than twice. `radius` bounds a thing that is alone.

    quarters: several things lie one in each of the four fields between two cuts; otherwise anywhere, without overlap.
    """
    rng = np.random.default_rng(tuple(seed))
    n = int(rng.integers(count[0], count[1] + 1))
    chosen: list[tuple[str, str]] = []
    while len(chosen) < n:
        pair = pairs[int(rng.integers(len(pairs)))]
        if chosen.count(pair) < 2:
            chosen.append(pair)
    together = _in_quarters if quarters else _apart
    places = [_anywhere(rng, radius)] if n == 1 else together(rng, n)
    angles = rng.uniform(-0.35, 0.35, n)
    things = tuple(Thing(s, c, *place, float(a)) for (c, s), place, a in zip(chosen, places, angles, strict=True))
    caption, meaning = _caption(things, rng)
    return Scene(things, styles[int(rng.integers(len(styles)))], tuple(seed), caption, meaning)


def _anywhere(rng: np.random.Generator, radius: tuple[float, float]) -> tuple[float, float, float]:
    r = rng.uniform(*radius)
    margin = 1.1 * r
    x, y = rng.uniform(margin, 1 - margin, 2)
    return float(x), float(y), float(r)


def _in_quarters(rng: np.random.Generator, n: int) -> list[tuple[float, float, float]]:
    """Centres and radii in `n` of the four fields between two uneven cuts: nothing overlaps, sides are never in doubt."""
    cut = rng.uniform(0.4, 0.6, 2)
    places = []
    for field in rng.permutation(4)[:n]:
        low = np.where([field % 2, field // 2], cut, 0.0)
        high = np.where([field % 2, field // 2], 1.0, cut)
        r = rng.uniform(0.27, 0.45) * (high - low).min()
        x, y = rng.uniform(low + 1.1 * r, high - 1.1 * r)
        places.append((float(x), float(y), float(r)))
    return places


def _apart(rng: np.random.Generator, n: int) -> list[tuple[float, float, float]]:
    """Centres and radii of `n` things as large as those in quarters, anywhere on the canvas; no two circles meet."""
    while True:
        places: list[tuple[float, float, float]] = []
        for _ in range(_TRIES * n):
            x, y, r = _anywhere(rng, RADII_APART)
            if all(np.hypot(x - a, y - b) > r + c for a, b, c in places):
                places.append((x, y, r))
            if len(places) == n:
                return places


def _caption(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str]:
    """Caption and meaning: all things named, in the order of a random walk, sometimes with size or relation."""
    names = [f"{t.size_word} {t.name}" if t.size_word and rng.random() < 0.25 else t.name for t in things]
    if len(things) == 2 and rng.random() < 0.6:
        said = f"{names[0]} {relation(*things)} {_article(names[1])}"
    else:
        rest = [_article(name) for name in names[1:]]
        said = " and ".join(filter(None, [", ".join([names[0], *rest[:-1]]), *rest[-1:]]))
    text = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(said)
    return text.replace("a orange", "an orange"), said


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def relation(a: Thing, b: Thing) -> str:
    """Where `a` is, seen from `b`, along the axis on which they are further apart."""
    if abs(a.x - b.x) > abs(a.y - b.y):
        return "left of" if a.x < b.x else "right of"
    return "above" if a.y < b.y else "below"


def fitting(thing: Thing, things: Sequence[Thing]) -> list[str]:
    """Phrases that fit `thing` and no other of `things`; never empty while no pair occurs more than twice."""
    others = [t for t in things if t is not thing]
    found = []
    if all(t.shape != thing.shape for t in others):
        found.append(f"the {thing.shape}")
    if all(t.colour != thing.colour for t in others):
        found.append(f"the {thing.colour} one")
    twins = [t for t in others if t.name == thing.name]
    if not twins:
        return [*found, f"the {thing.name}"]
    apart = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}
    return [f"the {thing.name} {apart[relation(thing, twins[0])]}"]


@lru_cache(maxsize=8)
def _ramp(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.linspace(-0.5, 0.5, size, dtype=np.float32), np.linspace(-0.5, 0.5, size, dtype=np.float32))


@lru_cache(maxsize=4)
def _noise(size: int) -> np.ndarray:
    """(3, H, W): a sheet of noise, from which each scene takes a piece of `size`; it repeats beyond its edge."""
    sheet = np.random.default_rng(0).normal(0, 6, (NOISE_SIDE, NOISE_SIDE, 3)).astype(np.float32)
    return np.pad(sheet.transpose(2, 0, 1), ((0, 0), (0, size), (0, size)), mode="wrap")


def _background(size: int, rng: np.random.Generator) -> Image.Image:
    x, y = _ramp(size)
    grey, turn = rng.uniform(95, 165), rng.uniform(0, 2 * np.pi)
    colour = grey + rng.uniform(-14, 14, 3)
    slope = rng.uniform(-40, 40) + rng.uniform(-12, 12, 3)
    along = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y
    planes = along * slope.astype(np.float32)[:, None, None] + colour.astype(np.float32)[:, None, None]
    top, left = rng.integers(0, NOISE_SIDE, 2)
    planes += _noise(size)[:, top : top + size, left : left + size]
    return Image.fromarray(np.ascontiguousarray(planes.astype(np.uint8).transpose(1, 2, 0)), "RGB")


def _draw(image: Image.Image, thing: Thing, style: str, rng: np.random.Generator) -> None:
    """Draws the thing's mask in a window around it, finer than the canvas, and pours its colour through."""
    size = image.width
    reach = 1.2 * thing.radius * size
    left, top = int(thing.x * size - reach), int(thing.y * size - reach)
    side = int(2 * reach) + 2
    corners = (thing.outline() * size - (left, top)) * OVERSAMPLING
    mask = MASKS[style](corners, thing.radius * size * OVERSAMPLING, side * OVERSAMPLING, rng)
    colour = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3), 0, 255)
    image.paste(tuple(colour.tolist()), (left, top), mask.reduce(OVERSAMPLING))


def _blank(side: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    mask = Image.new("L", (side, side))
    return mask, ImageDraw.Draw(mask)


def _path(corners: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(c) for c in corners.tolist()]


def _filled(corners, radius, side, rng) -> Image.Image:
    mask, pen = _blank(side)
    pen.polygon(_path(corners), fill=255)
    return mask


def _stroke(pen: ImageDraw.ImageDraw, corners: np.ndarray, width: float) -> None:
    path = _path(corners)
    pen.line([*path, *path[:2]], fill=255, width=max(OVERSAMPLING, round(width)), joint="curve")


def _outline(corners, radius, side, rng) -> Image.Image:
    mask, pen = _blank(side)
    _stroke(pen, corners, 0.2 * radius)
    return mask


def _hatched(corners, radius, side, rng) -> Image.Image:
    stripes, pen = _blank(side)
    gap = max(3 * OVERSAMPLING, round(0.3 * radius))
    for start in range(-side + int(rng.integers(gap)), side, gap):
        pen.line([(start, 0), (start + side, side)], fill=255, width=gap // 2)
    mask = ImageChops.multiply(_filled(corners, radius, side, rng), stripes)
    _stroke(ImageDraw.Draw(mask), corners, 0.06 * radius)
    return mask


def _dotted(corners, radius, side, rng) -> Image.Image:
    """Dots along the edge."""
    mask, pen = _blank(side)
    closed = np.concatenate([corners, corners[:1]])
    lengths = np.hypot(*np.diff(closed, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    spacing, dot = max(3.2 * OVERSAMPLING, 0.27 * radius), max(1.1 * OVERSAMPLING, 0.1 * radius)
    stops = np.arange(0, at[-1], at[-1] / max(6, round(at[-1] / spacing)))
    for x, y in zip(np.interp(stops, at, closed[:, 0]), np.interp(stops, at, closed[:, 1]), strict=True):
        pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=255)
    return mask


def _sketch(corners, radius, side, rng) -> Image.Image:
    """Three wavering strokes around the shape."""
    mask, pen = _blank(side)
    for _ in range(3):
        _stroke(pen, corners + rng.normal(0, 0.07 * radius, corners.shape), 0.05 * radius)
    return mask


def _inverted(corners, radius, side, rng) -> Image.Image:
    """A coloured tile with the shape cut out of it."""
    mask, pen = _blank(side)
    edge = 0.06 * side
    pen.rectangle((edge, edge, side - edge, side - edge), fill=255)
    pen.polygon(_path(corners), fill=0)
    return mask


MASKS = {
    "filled": _filled,
    "outline": _outline,
    "hatched": _hatched,
    "dotted": _dotted,
    "sketch": _sketch,
    "inverted": _inverted,
}

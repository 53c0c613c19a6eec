"""Scenes of the embedded world as photos to try the tabs with: nothing has to be downloaded for them."""

from __future__ import annotations

from pathlib import Path

from jclip.data import shapes

MODEL, RUN = "shapes-tiny-rn", "shapes-tiny-ground"  # that ship, and know these scenes
TEMPLATES = "simple"
PAIRS = (("red", "circle"), ("blue", "star"), ("green", "moon"), ("white", "cross"))
NAMES = tuple(" ".join(pair) for pair in PAIRS)
SIDE = 256  # pixels
COUNT = 8


def scenes(folder: Path) -> list[str]:
    """Paths of a few scenes of one to three things, drawn into a folder."""
    return [_drawn(folder, number, 1 + number % 3) for number in range(COUNT)]


def scene(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The path of a scene of three things, and for each a phrase that fits it alone."""
    made = _scene(2, 3)
    return _drawn(folder, 2, 3), made.phrases()


def _scene(number: int, things: int) -> shapes.Scene:
    return shapes.draw_scene((23, number), pairs=PAIRS, styles=shapes.SEEN_STYLES[:1], count=(things, things))


def _drawn(folder: Path, number: int, things: int) -> str:
    path = folder / f"scene-{number + 1}.png"
    if not path.is_file():
        _scene(number, things).render(SIDE).save(path)
    return str(path)

"""Boxes from a model's weights alone, without a detector: rough ones, from maps of its image tower.

    m_f = (x_p · t - x_p · b) over the places p of the photo enlarged f times        t the thing's text, b "a photo"
    map = Σ_f (m_f - mean) / deviation, brought to one grid;  boxes around its parts above 0.7 of its range

Which part is meant the rules of `jclip.features.box_proposals` decide. The factors, b and the share were chosen on
validation scenes of the embedded world with shapes-tiny-rn; towers that are no ResNet have theirs unmeasured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from jclip.features.box_proposals import PROMPT, BoxScorer, ProposalRules, ScoredBoxes, check_towers
from jclip.features.heads import check_directions
from jclip.features.source import ModelSource
from jclip.functional import boxes as box_forms
from jclip.functional.directions import unit
from jclip.functional.local_to_global import connected_parts
from jclip.functional.positions import resize_bilinearly
from jclip.model import dense_map
from jclip.postponed import jt
from jclip.prompts.place_words import read_places

FACTORS = {"resnet": (1, 4, 5), "vit": (1, 2), "siglip": (1, 2)}  # of the model's own side, by kind of tower; others: 1
BACKGROUND = "a photo"
SHARE = 0.7  # of the map's range, above which a place belongs to the thing
GRID = 64  # cells of the map's long side
LEAST = 9  # cells of a part
MOST_PARTS = 8
MOST_ASPECT = 2.0  # beyond which a photo is squeezed


class RoughScorer:
    """A model that finds phrases in a photo without boxes. Raises `ConfigError` for weights without both towers."""

    def __init__(self, source: ModelSource, rules: ProposalRules | None = None):
        check_towers(source)
        self.source, self.rules = source, rules or ProposalRules()
        self._scorer = BoxScorer([source], self.rules)

    def __call__(
        self, photo: Image.Image, phrases: Sequence[str], truncate: bool = False
    ) -> list[tuple[np.ndarray, ScoredBoxes]]:
        """An RGB photo → for each phrase boxes (N, 4), corners in its pixels, and their scores. The maps are made
        once, and each text is encoded once for all photos."""
        maps = [self._map(photo, factor) for factor in FACTORS.get(self.source.config.vision.kind, (1,))]
        texts, blurred, found = self._scorer.texts[0], self._scorer.blurred(photo), []
        for phrase in phrases:
            read = read_places(phrase, self.rules.published) if self.rules.places else None
            text = (read and read.text) or phrase.lower()
            wanted = texts(PROMPT.replace("{phrase}", text), truncate) - texts(BACKGROUND)
            boxes = boxes_of_map(joint_map([one @ wanted for one in maps], photo.size), photo.size)
            found.append((boxes, self._scorer(photo, boxes, [phrase], truncate, blurred)[0]))
        return found

    def _map(self, photo: Image.Image, factor: int) -> np.ndarray:
        """(rows, columns, E), of length one: the places of the photo made `factor` times as large as the model's own."""
        vision = self.source.config.vision
        height, width = size = map_size(photo.size, vision, factor)
        look = replace(self.source.preprocess, size=size, resize="squash")
        with jt.no_grad():
            cells = dense_map.dense_map(self.source.model, look(photo)[None])[1].float32().numpy()[0]
        check_directions(cells, ["the photo"] * len(cells))
        step = vision_step(vision)
        return unit(cells).reshape(height // step, width // step, -1)


def vision_step(vision) -> int:
    """Pixels of a side of a map's place."""
    return dense_map.STRIDE if vision.kind == "resnet" else vision.patch_size


def map_size(size: tuple[int, int], vision, factor: int) -> tuple[int, int]:
    """Height and width, multiples of the tower's step, that a photo of (W, H) pixels gets: the short side the model's own
    times `factor`, the long one twice that at most."""
    if vision.kind not in FACTORS:
        return vision.image_size
    step, short = vision_step(vision), factor * min(vision.image_size)
    ratios = [min(side / min(size), MOST_ASPECT) for side in (size[1], size[0])]
    return tuple(max(step, round(short * ratio / step) * step) for ratio in ratios)


def joint_map(maps: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Maps (h, w) of several sizes for a photo of (W, H) → their sum, each of mean 0 and deviation 1, with 64 cells along
    the long side."""
    cells = tuple(max(1, round(GRID * side / max(size))) for side in (size[1], size[0]))
    large = [resize_bilinearly(one[None].astype(np.float32), cells)[0] for one in maps]
    return np.sum([(one - one.mean()) / (one.std() + 1e-6) for one in large], axis=0)


def boxes_of_map(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) → corners (N, 4) in a photo of (W, H): boxes around the connected parts above 0.7 of the range, the part with
    the highest place first; a map that is the same everywhere gives the whole photo."""
    low, high = scores.min(), scores.max()
    marked = scores >= low + SHARE * (high - low)
    parts = connected_parts(marked[None])[0]
    sizes = np.bincount(parts.ravel())
    own = [
        part for part in np.flatnonzero(sizes) if part and (sizes[part] >= LEAST or part == parts.flat[scores.argmax()])
    ]
    own.sort(key=lambda part: -scores[parts == part].max())
    corners = []
    for part in own[:MOST_PARTS]:
        rows, columns = np.nonzero(parts == part)
        corners.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    ratio = np.array([size[0] / scores.shape[1], size[1] / scores.shape[0]] * 2)
    return box_forms.clipped(np.array(corners, float) * ratio, *size)

"""Photos scored by several models at once, each photo whole and in windows: one encoder pass for all models of one tower.

A photo is decoded once. Its windows are cut, resized and put into batches with those of other photos; of their scores
only what the fusion needs is kept, for the published forms the highest and lowest of each class. `dense` windows come
from a map of the whole photo, enlarged as many times as it is divided, in place of a pass each.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jclip.choices import WINDOW_FITS, WINDOW_MODES, WindowFit, WindowMode
from jclip.data.loader import workers
from jclip.data.photo_file import open_photo
from jclip.data.preprocess import Preprocess
from jclip.errors import ConfigError, DataError, UnknownName, advice_when_full, notice
from jclip.features.extraction import batch_size
from jclip.features.heads import check_directions
from jclip.features.pair_maps import PairHeads, PairScorer, PairSource
from jclip.features.photo_maps import MapHeads, MapScorer, MapSource
from jclip.features.photo_windows import in_parts, photo_windows, window_of
from jclip.features.stacked_text import BranchScores
from jclip.functional import similarity
from jclip.functional.cooccurrence import modulated
from jclip.functional.window_fusion import FusionRule, WindowFusion
from jclip.functional.windows import SCALES, Shapes, check_windows, map_windows
from jclip.model import dense_map
from jclip.postponed import jt
from jclip.weights.variants import ResNetConfig

_RESIZE = {"squash": "squash", "center_crop": "shortest", "pad": "longest-pad"}
PUBLISHED = FusionRule()


def part_names(branches: Sequence[str], windows: bool) -> tuple[str, ...]:
    """Names of a model's scores: `whole_global`, …, and with windows `windows_global`, …"""
    kinds = ("whole", "windows") if windows else ("whole",)
    return tuple(f"{kind}_{branch}" for kind in kinds for branch in branches)


PARTS = part_names(("global", "local"), True)  # of models with both branches


@dataclass(frozen=True)
class WindowPlan:
    """Which windows a photo is cut into, and how they are brought to the model's size.

    mode: none; even or seed, see `jclip.functional.windows`; dense, windows of one map (ResNets). resize: of even and
    seed windows: squash, the published center_crop, or pad. batch: windows in one encoder pass, 0 for JCLIP_BATCH's.
    Raises `ConfigError`.
    """

    mode: WindowMode = "even"
    scales: tuple[int, ...] = SCALES
    shapes: Shapes = "all"
    resize: WindowFit = "squash"
    batch: int = 0

    def __post_init__(self):
        if self.mode not in WINDOW_MODES:
            raise UnknownName("mode of windows", str(self.mode), WINDOW_MODES)
        if self.resize not in WINDOW_FITS:
            raise UnknownName("resize of windows", str(self.resize), WINDOW_FITS)
        if self.batch < 0:
            raise ConfigError(f"batch of windows must be at least 0, got {self.batch}")
        check_windows("seed" if self.mode == "seed" else "even", self.scales, self.shapes)


@dataclass(frozen=True)
class WindowModel:
    """A model by name: its tower, its prompts as a scorer, how its windows are fused. columns: the order of its classes.

    shares: (C, C) P̄ in that order, by which `modulation` of local scores is handed on to other classes, beside what the
    scorer does.
    """

    name: str
    source: MapSource | PairSource
    scorer: MapScorer | PairScorer
    classes: int
    rule: FusionRule = PUBLISHED
    columns: np.ndarray | None = None
    shares: np.ndarray | None = None
    modulation: float = 0.0

    def ordered(self, branch: str, scores: np.ndarray) -> np.ndarray:
        """Scores (N, own classes) of a branch in the order of the classes that are asked for, and modulated."""
        scores = scores if self.columns is None else scores[:, self.columns]
        return (
            modulated(scores, self.shares, self.modulation) if branch == "local" and self.shares is not None else scores
        )


@dataclass
class _Tower:
    """Models that share encoder passes, and all their prompts."""

    source: MapSource | PairSource
    models: list[WindowModel]

    @cached_property
    def heads(self) -> MapHeads | PairHeads:
        """All models' scores of the same maps."""
        scorers: Any = [model.scorer for model in self.models]
        return type(scorers[0]).heads(scorers)


class _Job(NamedTuple):
    """A photo, or a window of it with its box, to be brought to the model's size."""

    place: int
    image: Image.Image
    pixels: np.ndarray | None = None
    box: tuple[int, ...] | None = None


class _Found:
    """Scores of the photos of one part by one model, as they come."""

    def __init__(self, model: WindowModel, photos: int, windows: bool):
        self.model, self._windows, self._branches = model, windows, model.scorer.branches
        self._whole = [np.full((photos, model.classes), np.nan) for _ in self._branches]
        self._fused = [WindowFusion(photos, model.classes, model.rule) for _ in self._branches if windows]

    def add(self, found: BranchScores, places: np.ndarray, whole: np.ndarray, paths: Sequence[str]) -> None:
        """Scores of maps (n,) of the photos `places` (n,), of whole ones where `whole` (n,) says so."""
        for number, branch in enumerate(self._branches):
            scores = self.model.ordered(branch, found.branches[number])
            if len(lost := np.flatnonzero(~np.isfinite(scores).all(axis=1))):
                raise DataError(
                    f"scores must be finite, got NaN or infinite numbers of {paths[places[lost[0]]]} by {self.model.name}"
                )
            self._whole[number][places[whole]] = scores[whole]
            if self._windows:
                captions = None if found.near is None else found.near[~whole]
                self._fused[number].update(places[~whole], scores[~whole], captions)

    def arrays(self) -> dict[str, np.ndarray]:
        """By `part_names`, float64; windows' scores are NaN of a photo without windows."""
        names = part_names(self._branches, self._windows)
        return dict(zip(names, [*self._whole, *(fused.values() for fused in self._fused)], strict=True))


class WindowScorer:
    """Scores photos by several models at once, see the module. Raises `ConfigError` for models without such windows."""

    def __init__(self, models: Sequence[WindowModel], plan: WindowPlan):
        self.models, self.plan = tuple(models), plan
        towers: dict[str, _Tower] = {}
        for model in models:
            key = json.dumps([model.source.identity, model.source.preprocess.to_dict()], sort_keys=True)
            towers.setdefault(key, _Tower(model.source, [])).models.append(model)
            if plan.mode == "dense":
                check_dense(model.name, model.source)
        self._towers = [*towers.values()]
        self.passes = 0  # photos and windows that an encoder has seen

    def scores(self, photos: Sequence[str]) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, list[int]]]:
        """Model → scores (N, C) by name; and photo → scales that it is too small for.

        Raises `DataError` with the path of a photo that does not decode."""
        windows = self.plan.mode != "none"
        found = {model.name: _Found(model, len(photos), windows) for model in self.models}
        skipped: dict[str, list[int]] = {}
        with ThreadPoolExecutor(max(1, workers()), thread_name_prefix="windows") as pool, jt.no_grad():
            jobs = self._jobs(_decoded(pool, photos, self._upright), photos, skipped)
            for batch in in_parts(jobs, self.plan.batch or batch_size()):
                self._add(pool, batch, found, photos)
            if self.plan.mode == "dense":
                self._add_dense(pool, found, photos)
        return {name: of.arrays() for name, of in found.items()}, skipped

    @property
    def _upright(self) -> bool:
        return self._towers[0].source.preprocess.upright

    def _jobs(self, images: Iterator, photos: Sequence[str], skipped: dict[str, list[int]]) -> Iterator[_Job]:
        """Each photo, then its windows."""
        for place, image in enumerate(images):
            yield _Job(place, image)
            if self.plan.mode in ("even", "seed"):
                mode = "seed" if self.plan.mode == "seed" else "even"
                pixels, windows = photo_windows(image, mode, self.plan.scales, self.plan.shapes)
                if windows.skipped:
                    skipped[photos[place]] = [*windows.skipped]
                for box in windows.boxes.tolist():
                    yield _Job(place, image, pixels, tuple(box))

    def _add(
        self, pool: ThreadPoolExecutor, batch: Sequence[_Job], found: Mapping[str, _Found], photos: Sequence[str]
    ) -> None:
        places = np.array([job.place for job in batch])
        whole = np.array([job.box is None for job in batch])
        for tower in self._towers:
            prepare = partial(_prepared, tower.source.preprocess, window_preprocess(tower.source, self.plan), photos)
            rows = self._encoded(tower.source, np.stack([*pool.map(prepare, batch)]))
            maps = _normalised(rows, tower.source.width, [photos[i] for i in places])
            _add_scores(tower, maps, places, whole, found, photos)

    def _encoded(self, source: MapSource | PairSource, pixels: np.ndarray):
        self.passes += len(pixels)
        with advice_when_full(
            f"make fewer windows at once with --window-batch (now {self.plan.batch or batch_size()})"
        ):
            return source.model.encode_image(pixels)

    def _add_dense(self, pool: ThreadPoolExecutor, found: Mapping[str, _Found], photos: Sequence[str]) -> None:
        """Windows of the maps of photos at scale times the model's side."""
        for tower in self._towers:
            height, width = tower.source.preprocess.size
            for scale in self.plan.scales:
                size = (scale * height, scale * width)
                enlarged = replace(tower.source.preprocess, size=size, resize="squash")
                at_once = max(1, (self.plan.batch or batch_size()) // scale**2)
                jobs = (_Job(place, image) for place, image in enumerate(_decoded(pool, photos, self._upright)))
                for batch in in_parts(jobs, at_once):
                    prepare = partial(_prepared, enlarged, enlarged, photos)
                    self.passes += len(batch)
                    maps = dense_map.WindowsOfMap(tower.source.model, np.stack([*pool.map(prepare, batch)]))
                    self._add_windows_of(maps, scale, batch, tower, found, photos)

    def _add_windows_of(self, maps, scale: int, batch: Sequence[_Job], tower: _Tower, found, photos) -> None:
        boxes = map_windows(maps.rows, maps.columns, scale, self.plan.shapes).boxes
        shapes = np.stack([boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
        for shape in np.unique(shapes, axis=0):
            own = boxes[(shapes == shape).all(axis=1)]
            for number, job in enumerate(batch):
                rows = maps.of(number, own)
                places = np.full(len(own), job.place)
                normal = _normalised(rows, tower.source.width, [photos[job.place]] * len(own))
                _add_scores(tower, normal, places, np.zeros(len(own), bool), found, photos)


def _add_scores(
    tower: _Tower, maps, places: np.ndarray, whole: np.ndarray, found: Mapping[str, _Found], photos
) -> None:
    """Scores the maps by all models of the tower at once."""
    for model, scores in zip(tower.models, tower.heads(maps), strict=True):
        found[model.name].add(scores, places, whole, photos)


def check_dense(name: str, source: MapSource | PairSource) -> None:
    """Raises `ConfigError` where the model of that name has no dense windows."""
    if not isinstance(source, MapSource):
        raise ConfigError(
            f"dense windows are of photos' pooled features and cells, got {name}, which scores places alone: use even windows"
        )
    if not isinstance(source.config.vision, ResNetConfig):
        raise ConfigError(f"dense windows are of a ResNet's map, got another tower of {name}: use even windows")
    if source.positions:
        raise ConfigError(f"dense windows are pooled without positions, got positions=true of {name}: use even ones")


def window_preprocess(source: MapSource | PairSource, plan: WindowPlan) -> Preprocess:
    """How a window is brought to the model's size; padding has the grey of the model's mean."""
    grey = round(255 * sum(source.preprocess.mean) / 3)
    fill = grey if plan.resize == "pad" else source.preprocess.fill
    return replace(source.preprocess, resize=_RESIZE[plan.resize], fill=fill)


def _prepared(whole: Preprocess, window: Preprocess, photos: Sequence[str], job: _Job) -> np.ndarray:
    """(3, H, W) of a photo or of a window. Raises `DataError` with the photo's path."""
    try:
        if job.pixels is None or job.box is None:
            return whole(job.image)
        return window(window_of(job.pixels, job.box))
    except (DataError, MemoryError, ValueError, OSError) as e:
        raise DataError(f"{photos[job.place]} can't be resized: {e or type(e).__name__}") from e


def _normalised(rows, width: int, photos: Sequence[str]):
    """(n, (1 + P) E) or (n, 1 + P, E) → (n, 1 + P, E) of length one. Raises `DataError` for what has no direction."""
    maps = rows.float32().reshape((rows.shape[0], -1, width))
    check_directions(maps[:, 0].numpy(), photos)
    return similarity.normalise(maps)


def _decoded(pool: ThreadPoolExecutor, photos: Sequence[str], upright: bool) -> Iterator[Image.Image]:
    """The photos in order, a few decoded ahead."""
    waiting: deque[Future] = deque()
    read: Callable[[str], Image.Image] = partial(open_photo, upright=upright)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [future.cancel() for future in waiting])
        for place in range(len(photos)):
            while len(waiting) < 2 * max(1, workers()) and place + len(waiting) < len(photos):
                waiting.append(pool.submit(read, photos[place + len(waiting)]))
            yield waiting.popleft().result()


def count_windows(photo: str, plan: WindowPlan) -> int:
    """How many windows of a plan `even` or `seed` a photo has."""
    mode = "seed" if plan.mode == "seed" else "even"
    return len(photo_windows(open_photo(photo), mode, plan.scales, plan.shapes)[1].boxes)


def warn_skipped(skipped: Mapping[str, Sequence[int]]) -> None:
    """One line on stderr for photos that are smaller than windows."""
    if skipped:
        first = next(iter(skipped))
        scales = ", ".join(map(str, sorted({b for own in skipped.values() for b in own})))
        notice(
            f"{len(skipped)} photos are too small for windows of scale {scales}, which are left out of them (first: {first})"
        )

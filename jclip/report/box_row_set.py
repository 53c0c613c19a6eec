"""Phrases with boxes as rows of a curriculum: a row's reliability is the IoU that a run of grounding reaches on it.

Photos and phrases of all rows are encoded once, by the towers that all trainings share; a training gets its rows of these.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jclip.config import WORLD, BoxDataConfig
from jclip.data import box_files, box_parts, box_samples, named_things
from jclip.data.box_rows import BoxRow
from jclip.errors import ConfigError, DataError
from jclip.features import box_features
from jclip.features import source as sources_of
from jclip.functional import boxes
from jclip.report.finished_run import FinishedRun
from jclip.report.row_numbers import numbered
from jclip.train import box_training

OTHERS = ("val", "test", "unseen")  # parts that are measured, the same for all trainings


class BoxRowSet:
    """Rows of phrases with boxes of several sources; see `jclip.report.row_sets.RowSet`.

    photos: source → the folder of its photos. truncate: boxes as CLIP-VG cuts them.
    Raises `DataError` for a row whose thing is absent: it has no box to find.
    """

    ending = ".jsonl"

    def __init__(self, rows: Mapping[str, Sequence[BoxRow]], photos: Mapping[str, Path], truncate: bool = False):
        self.rows = [row for own in rows.values() for row in own]
        self.sources, self._truncate = numbered(rows), truncate
        self._folders = [photos[name] for name, own in rows.items() for _ in own]
        if absent := next((row for row in self.rows if row.box is None), None):
            raise DataError(
                f"each row must have a box, got {absent.place or f'row {absent.id}'} ({absent.phrase!r}) without: leave "
                "such rows out (jclip boxes FILE --present --out FILE)"
            )
        self.faults = frozenset(i for i, row in enumerate(self.rows) if "corrupted" in row.extra)
        self._keep = True
        self._encoded: dict[Any, box_features.BoxFeatures] = {}
        self._measured: dict[Any, dict[str, box_features.BoxFeatures]] = {}
        self._towers: dict[Any, sources_of.ModelSource] = {}

    @classmethod
    def of_files(cls, files: Mapping[str, str], cfg: Any, photos: str = "") -> BoxRowSet:
        """The rows of files in any form that `jclip boxes` reads. photos: their folder; by default `images` beside the
        first file, its own folder, or what the recipe's `data.images` names. Raises `DataError`."""
        data = cfg.data if cfg else BoxDataConfig()
        folder = Path(photos or data.images or box_parts.photos_beside(next(iter(files.values()))))
        how = {"dataset": data.dataset, "box_format": data.box_format, "max_bad": float(data.on_error == "skip")}
        found = {
            name: box_files.read_box_file(file, data.form, photos=folder, **how).rows for name, file in files.items()
        }
        return cls(found, dict.fromkeys(files, folder), data.truncate)

    @staticmethod
    def identities(files: Sequence[Path], cfg: Any) -> list[Any]:
        """What the rows of these files are, whether their photos are there or not."""
        rows = (row for file in files for row in box_files.read_box_file(file).rows)
        return [_identity(row) for row in rows if row.box is not None]

    def __len__(self) -> int:
        return len(self.rows)

    def identity(self, number: int) -> Any:
        """Photo, box and phrase."""
        return _identity(self.rows[number])

    def group(self, number: int) -> str:
        """The photo."""
        return self.rows[number].image

    def photos(self) -> Sequence[str]:
        """Paths of all rows' photos, none twice."""
        return [str(photo) for photo in self.samples(range(len(self))).photos]

    def complexity(self, source: str) -> float:
        """Mean number of things that a phrase names."""
        return float(np.mean([named_things.count_things(self.rows[i].phrase) for i in self.sources[source]]))

    def learning(self, cfg: Any, train: str, held: str) -> Any:
        """The recipe's config with these files in `data`."""
        data, folder = cfg.data, self._folders[0].resolve()
        named = {part: data.named(part) for part in ("val", "test")}
        for name in (name for names in named.values() for name in names if name != WORLD):
            beside = data.images or box_parts.photos_beside(box_parts.file_and_split(name)[0])
            if Path(beside).resolve() != folder:
                raise ConfigError(
                    f"photos of all files must be below one folder, got {folder} for the sources and {beside} for {name}: "
                    "name one that holds both, data.photos and learn.data.images"
                )
        named |= {"val": (held,)} if held else {}
        return replace(cfg, data=replace(data, train=(train,), images=str(folder), form="", **named))

    def write(
        self, path: str | os.PathLike, numbers: Sequence[int], scores: Mapping[str, Mapping[int, float]] | None = None
    ) -> None:
        """JSON lines, or CLIP-VG's `.pth`, by the ending."""
        rows = []
        for number in numbers:
            row = self.rows[number]
            own = {name: round(of[number], 6) for name, of in (scores or {}).items() if number in of}
            rows.append(replace(row, reliability={**row.reliability, **own}) if own else row)
        box_files.write_box_file(path, rows)

    def learn(self, module: Any, cfg: Any, run: Any, numbers: Sequence[int], held: Sequence[int]) -> dict[str, float]:
        """As `module.run`, with tokens that are computed once for all trainings where the towers are frozen."""
        if not hasattr(module, "run_on") or cfg.trains_tower or cfg.sees_anew:
            return module.run(cfg, run)
        tower = self._tower(cfg)
        run.note(weights_sha256=tower.weights_sha256)
        whole = self._features(tower, cfg.reading)
        parts = {**self._other_parts(module, cfg, tower, bool(held)), "train": subset(whole, numbers)}
        if held:
            parts["val"] = subset(whole, held)
        return module.run_on(cfg, run, tower, parts)

    def reliability(self, done: FinishedRun, numbers: Sequence[int]) -> np.ndarray:
        """(n,) IoU of the box that the run finds, cut at the padded square, and the row's, in the square (7.2 of the
        published scorer)."""
        network = done.network  # which gives the towers what was trained of them, before they see photos
        cfg = done.config
        if cfg.trains_tower or done.model != cfg.model:
            features = box_features.box_features(done.source, self.samples(numbers), cfg.reading, keep=False)
        else:
            features = subset(self._features(self._tower(cfg), cfg.reading), numbers)
        return overlaps(network, features)

    def only(self, numbers: Sequence[int]) -> BoxRowSet:
        """A set of these rows alone, numbered anew, whose features are not kept on disk."""
        part = copy.copy(self)
        part.rows, part._folders = [self.rows[i] for i in numbers], [self._folders[i] for i in numbers]
        part.sources, part._keep, part._encoded = numbered({"": part.rows}), False, {}
        return part

    def samples(self, numbers: Sequence[int]) -> box_samples.BoxSamples:
        """These rows with their photos."""
        places: dict[Path, int] = {}
        of = [places.setdefault(self._folders[i] / self.rows[i].image, len(places)) for i in numbers]
        sizes = {path: self.rows[i].size for i in numbers for path in [self._folders[i] / self.rows[i].image]}
        return box_samples.BoxSamples(
            tuple(places),
            np.array([sizes[path] for path in places]),
            np.array(of, int),
            tuple(self.rows[i].phrase for i in numbers),
            np.array([self._box(i) for i in numbers], float),
        )

    def _box(self, number: int) -> Sequence[float]:
        return self.rows[number].truncated() if self._truncate else self.rows[number].box

    def _tower(self, cfg: Any) -> sources_of.ModelSource:
        key = (cfg.model, cfg.family)
        if key not in self._towers:
            self._towers[key] = sources_of.source_of(cfg)
        return self._towers[key]

    def _features(self, tower: sources_of.ModelSource, reading: box_features.Reading) -> box_features.BoxFeatures:
        key = repr((tower.identity, reading))
        if key not in self._encoded:
            samples = self.samples(range(len(self)))
            self._encoded[key] = box_features.box_features(tower, samples, reading, keep=self._keep)
        return self._encoded[key]

    def _other_parts(self, module: Any, cfg: Any, tower: Any, without_val: bool) -> dict[str, box_features.BoxFeatures]:
        others = replace(cfg, data=replace(cfg.data, train=(), **({"val": ()} if without_val else {})))
        key = repr((others.data, others.reading, others.model, others.family))
        if key not in self._measured:
            self._measured[key] = {part: v for part, v in module.read_parts(others, tower).items() if part in OTHERS}
        return self._measured[key]


def _identity(row: BoxRow) -> list[Any]:
    return [row.image, [*row.box], row.phrase]


def subset(features: box_features.BoxFeatures, numbers: Sequence[int]) -> box_features.BoxFeatures:
    """The same photos with some of their phrases, in that order."""
    places, samples = np.asarray(numbers, int), features.samples
    own = replace(
        samples, of=samples.of[places], phrases=tuple(samples.phrases[i] for i in places), boxes=samples.boxes[places]
    )
    return replace(features, samples=own, targets=features.targets[places])


def overlaps(network: Any, features: box_features.BoxFeatures) -> np.ndarray:
    """(n,) IoU in [0, 1] of the network's boxes and the samples'."""
    return np.clip(boxes.iou(*box_training.found_in(network, features).square), 0.0, 1.0)

"""Photos with classes as rows of a curriculum: a row's reliability is the probability that a run gives to its class.

So wrong labels are found, of people as of machines. Rows are precomputed features (`.npz`) or photos of a list.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data import photo_hashes, splits
from jclip.errors import ConfigError, DataError
from jclip.features import precomputed
from jclip.functional import metrics
from jclip.paths import replacing
from jclip.readers.npz import read_npz
from jclip.readers.spreadsheet import write_csv_rows
from jclip.report.finished_run import FinishedRun
from jclip.report.row_numbers import numbered

FEATURES = ".npz"
ROW_NAMES = "train_rows_0"  # what the rows of a file that was written here are


class LabelRowSet:
    """Photos with one class each, of several sources; see `jclip.report.row_sets.RowSet`.

    whole: what the recipe's own data have besides, val and test among them; None where rows are photos.
    """

    faults: frozenset[int] = frozenset()

    def __init__(self, rows: Mapping[str, FeatureRows | splits.Split], whole: precomputed.FeatureSet | None = None):
        self.sources, self._whole = numbered(rows), whole
        own = [*rows.values()]
        self._labels = np.concatenate([np.asarray(part.labels, np.int64) for part in own])
        if whole is None:
            self._photos = tuple(path for part in own for path in part.paths)
            self._names = tuple(photo_hashes.photo_hashes(self._photos))
            self.ending = ".txt"
        else:
            self._features = np.concatenate([part.features for part in own])
            self._names = tuple(hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in self._features)
            self.ending = FEATURES

    @classmethod
    def of_files(cls, files: Mapping[str, str], cfg: Any, photos: str = "") -> LabelRowSet:
        """The rows of `.npz` files of precomputed features, or of list files of photos below `photos`, by default the
        recipe's `data.root`. Raises `ConfigError`, `DataError`."""
        endings = {Path(file).suffix.lower() == FEATURES for file in files.values()}
        if len(endings) > 1:
            raise ConfigError("sources must be all precomputed features (.npz) or all lists of photos, got both")
        if endings == {True}:
            read = {name: _recorded(file, cfg) for name, file in files.items()}
            base = _recorded(cfg.data.features, cfg) if cfg and cfg.data.features else next(iter(read.values()))
            _check_alike(files, read, base)
            rows = {name: FeatureRows(found.train, found.train_labels) for name, found in read.items()}
            return cls(rows, base)
        root = photos or (cfg.data.root if cfg else "")
        return cls({name: _listed(file, root) for name, file in files.items()})

    @classmethod
    def identities(cls, files: Sequence[Path], cfg: Any) -> list[Any]:
        """What the rows of these files are."""
        own = cls.of_files({str(i): str(file) for i, file in enumerate(files)}, cfg)
        named = [name for file in files if file.suffix.lower() == FEATURES for name in _names_in(file)]
        if len(named) == len(own):  # written here: features that are normalised once more differ in their last bits
            own._names = tuple(named)
        return [own.identity(number) for number in range(len(own))]

    def __len__(self) -> int:
        return len(self._labels)

    def identity(self, number: int) -> Any:
        """What the photo is, and its class."""
        return [self._names[number], int(self._labels[number])]

    def group(self, number: int) -> str:
        """The photo."""
        return self._names[number]

    def photos(self) -> Sequence[str]:
        """Paths of all rows' photos, none twice; none where rows are features."""
        return [*dict.fromkeys(self._photos)] if self._whole is None else []

    def complexity(self, source: str) -> float:
        """All labels are as simple: one class."""
        return 1.0

    def learning(self, cfg: Any, train: str, held: str) -> Any:
        """The recipe's config with these files in `data`, all of their rows."""
        if self._whole is not None:
            named = {"features": train, "pool": 0}
        else:
            named = {"train": train, "split_file": "", **({"val": held} if held else {})}
        return replace(cfg, data=replace(cfg.data, shots=0, val_shots=0, **named))

    def write(
        self, path: str | os.PathLike, numbers: Sequence[int], scores: Mapping[str, Mapping[int, float]] | None = None
    ) -> None:
        """A list of "path class" lines, or features as `.npz`; a `.csv` with reliabilities."""
        if Path(path).suffix == ".csv":
            self._write_table(path, numbers, scores or {})
        elif self._whole is None:
            lines = "".join(f"{self._photos[i]} {self._labels[i]}\n" for i in numbers)
            with replacing(path) as temporary:
                temporary.write_text(lines, encoding="utf-8")
        else:
            self._write_features(path, numbers)

    def learn(self, module: Any, cfg: Any, run: Any, numbers: Sequence[int], held: Sequence[int]) -> dict[str, float]:
        """`module.run` on the file that its config names."""
        if held and self._whole is not None:
            self._write_features(cfg.data.features, numbers, held)
        return module.run(cfg, run)

    def reliability(self, done: FinishedRun, numbers: Sequence[int]) -> np.ndarray:
        """(n,) the probability of each row's class. Raises `ConfigError` for a run of fewer classes."""
        places = np.asarray(numbers, int)
        labels = self._labels[places]
        if self._whole is None:
            some = splits.Split(tuple(self._photos[i] for i in numbers), labels)
            scores = done.scores_of(some)[1]
        else:
            done.check_width(self._features.shape[1], "the file of rows")
            scores = done.scorer()(self._features[places])
        if labels.max(initial=0) >= scores.shape[1]:
            raise ConfigError(
                f"{done.folder} must know the rows' classes, it has {scores.shape[1]}, got class {labels.max()}"
            )
        return metrics.softmax(scores)[np.arange(len(places)), labels]

    def only(self, numbers: Sequence[int]) -> LabelRowSet:
        """A set of these rows alone, numbered anew."""
        part, places = copy.copy(self), np.asarray(numbers, int)
        part._labels, part._names = self._labels[places], tuple(self._names[i] for i in numbers)
        if self._whole is None:
            part._photos = tuple(self._photos[i] for i in numbers)
        else:
            part._features = self._features[places]
        part.sources = numbered({"": part._names})
        return part

    def _write_features(self, path: str | os.PathLike, numbers: Sequence[int], held: Sequence[int] = ()) -> None:
        whole, some, val = self._whole, np.asarray(numbers, int), np.asarray(held, int)
        arrays = {
            "train_features_0": self._features[some], "train_labels_0": self._labels[some],
            ROW_NAMES: np.array([self._names[i] for i in some]),
            "val_features": self._features[val] if len(val) else whole.val,
            "val_labels": self._labels[val] if len(val) else whole.val_labels,
            "test_features": whole.test, "test_labels": whole.test_labels, "logit_scale": np.float32(whole.scale),
        }  # fmt: skip
        arrays |= {"classnames": np.array(whole.classnames)} if whole.classnames else {}
        arrays |= {} if whole.text is None else {"text_features": whole.text}
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    def _write_table(
        self, path: str | os.PathLike, numbers: Sequence[int], scores: Mapping[str, Mapping[int, float]]
    ) -> None:
        photos = self._photos if self._whole is None else [f"row {i}" for i in range(len(self))]
        rows = [[photos[i], int(self._labels[i]), *(f"{of[i]:.6f}" for of in scores.values())] for i in numbers]
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            write_csv_rows(file, ["photo", "class", *scores], rows)


@dataclass(frozen=True)
class FeatureRows:
    """Normalised features (N, E) with labels (N,)."""

    features: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def _recorded(file: str, cfg: Any) -> precomputed.FeatureSet:
    data = cfg.data if cfg else None
    shots = (data.pool or data.shots) if data else 0
    return precomputed.read_precomputed(file, shots, data.text_features if data else "")


def _names_in(file: Path) -> list[str]:
    """What a file's rows are, where it says so."""
    arrays = read_npz(file)
    return list(map(str, arrays[ROW_NAMES].read())) if ROW_NAMES in arrays else []


def _listed(file: str, root: str) -> splits.Split:
    """The photos of a list with their labels, in order. Raises `DataError` where it has none."""
    found = splits.read_list(Path(file), Path(root or Path(file).parent))
    if not len(found):
        raise DataError(f"{file} lists no photo")
    return found


def _check_alike(
    files: Mapping[str, str], read: Mapping[str, precomputed.FeatureSet], base: precomputed.FeatureSet
) -> None:
    """Raises `DataError` for sources whose features or classes are not those of the recipe's data."""
    for name, found in read.items():
        if found.train.shape[1:] != base.train.shape[1:] or found.classes != base.classes:
            raise DataError(
                f"{files[name]}: sources must be {base.train.shape[1]}-dimensional features of {base.classes} classes, got "
                f"{found.train.shape[1]} and {found.classes}"
            )

"""Score files of photos with several labels: written whole, read strictly, and put into one order of photos and classes.

Forms: `.npz` with arrays (N, C) (`scores`, or `global`, `local`), `classes`, `images`; JSON `{"classes", "images",
"scores"}`; the contest's bare list of N lists of C numbers; and TagCLIP's lines `photo label label …`, which are decisions
and no scores.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from jclip.data.checks import preview
from jclip.data.label_files import ClassFinder, read_label_list, refuse_twice, texts_of
from jclip.data.photo_lists import is_photo
from jclip.errors import ConfigError, DataError, notice
from jclip.functional.multi_label_metrics import check_scores
from jclip.functional.window_fusion import merged_scores
from jclip.paths import exists, replacing
from jclip.prompts.spelling import name_key, nearest
from jclip.readers.npz import RowsInParts, npz_bytes, read_npz, write_npz
from jclip.readers.text import read_json, read_lines

Form = Literal["npz", "json", "seed"]
PARTS = ("scores", "global", "local", "merged")


@dataclass(frozen=True)
class Scores:
    """Scores (N, C) of photos for classes, of one model: `scores`, or `global` and `local`.

    classnames, photos: empty where a file has none. decided: they are decisions, 0 or 1. uses_label_statistics: labels of
    photos went into them, so that they are no result of learning from text alone. comparable: whether scores of different
    classes may be compared; not those of an ensemble by columns, for which top-k and one threshold mean nothing.
    """

    name: str
    parts: Mapping[str, np.ndarray]
    classnames: tuple[str, ...] = ()
    photos: tuple[str, ...] = ()
    decided: bool = False
    uses_label_statistics: bool = False
    comparable: bool = True

    def __post_init__(self):
        shapes = {part.shape for part in self.parts.values()}
        if len(shapes) != 1:
            raise DataError(f"{self.name}: all scores must have one shape, got {sorted(shapes)}")
        rows, columns = self.shape
        for kind, names, count in (("photos", self.photos, rows), ("classes", self.classnames, columns)):
            if names and len(names) != count:
                raise DataError(f"{self.name}: scores must be of {len(names)} {kind}, got {count}")
        for part, matrix in self.parts.items():
            check_scores(matrix, self.photos, self.classnames, f"{self.name}, {part}")

    @property
    def shape(self) -> tuple[int, int]:
        """Photos and classes."""
        return next(iter(self.parts.values())).shape

    def with_merged(self, r: float) -> Scores:
        """The scores, also with `merged`, r · global + (1 - r) · local, where both are there."""
        if not {"global", "local"} <= {*self.parts}:
            return self
        return replace(
            self, parts={**self.parts, "merged": merged_scores(self.parts["global"], self.parts["local"], r)}
        )

    @property
    def main(self) -> np.ndarray:
        """What stands for the model: `scores`, else `merged`, else the one part that it has. Raises `ConfigError`."""
        for part in ("scores", "merged"):
            if part in self.parts:
                return self.parts[part]
        if len(self.parts) > 1:
            raise ConfigError(
                f"{self.name} has {' and '.join(self.parts)} scores: merge them first, as --merge 0.5 does"
            )
        return next(iter(self.parts.values()))

    def take(
        self, rows: Sequence[int] | np.ndarray | None = None, columns: Sequence[int] | np.ndarray | None = None
    ) -> Scores:
        """Those photos and classes, in that order."""
        parts, photos, names = dict(self.parts), self.photos, self.classnames
        if rows is not None:
            parts = {key: matrix[np.asarray(rows)] for key, matrix in parts.items()}
            photos = tuple(photos[n] for n in rows) if photos else ()
        if columns is not None:
            parts = {key: matrix[:, np.asarray(columns)] for key, matrix in parts.items()}
            names = tuple(names[c] for c in columns) if names else ()
        return replace(self, parts=parts, photos=photos, classnames=names)


def write_scores(path: str | Path, scores: Scores, form: Form = "npz") -> None:
    """Writes a score file: `npz` with every part; of `json` and of `seed`, the contest's bare list, `main` alone.

    Equal scores give equal bytes. Raises `DataError` where photos or classes have no names, but for `seed`.
    """
    if form != "seed" and not (scores.photos and scores.classnames):
        raise DataError(f"{scores.name}: a score file names its photos and classes, got none")
    data = _npz_bytes(scores) if form == "npz" else _json_bytes(scores, form)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_scores_in_parts(
    path: str | Path,
    parts: Mapping[str, Callable[[], Iterable[np.ndarray]]],
    classnames: Sequence[str],
    photos: Sequence[str],
    uses_label_statistics: bool = False,
    comparable: bool = True,
) -> None:
    """Writes an .npz of scores that come as float64 matrices (n, C) one after the other: at no time all are in memory.

    parts: as of `Scores`, each a function that gives its matrices. Raises `DataError` for scores that are not finite.
    """
    name, shape = Path(path).name, (len(photos), len(classnames))

    def checked(part: str, matrices: Callable[[], Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
        start = 0
        for matrix in matrices():
            check_scores(matrix, photos[start : start + len(matrix)], classnames, f"{name}, {part}")
            start += len(matrix)
            yield matrix

    rows = {
        part: RowsInParts(shape, np.dtype(np.float64), partial(checked, part, matrices))
        for part, matrices in parts.items()
    }
    with replacing(path) as temporary:
        write_npz(temporary, {**rows, **_names_and_flags(classnames, photos, uses_label_statistics, comparable)})


def write_list_in_parts(path: str | Path, parts: Callable[[], Iterable[np.ndarray]]) -> None:
    """Writes the contest's bare list of scores that come as `write_scores_in_parts` takes them: the bytes of the form
    `seed`."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        before = "["
        for matrix in parts():
            for row in matrix.tolist():
                file.write(before + json.dumps(row, allow_nan=False))
                before = ", "
        file.write("]")


def _npz_bytes(scores: Scores) -> bytes:
    flags = scores.uses_label_statistics, scores.comparable
    return npz_bytes({**scores.parts, **_names_and_flags(scores.classnames, scores.photos, *flags)})


def _names_and_flags(
    classnames: Sequence[str], photos: Sequence[str], uses_label_statistics: bool, comparable: bool
) -> dict[str, np.ndarray]:
    arrays = {"classes": np.array(classnames), "images": np.array(photos)}
    if uses_label_statistics:
        arrays["uses_label_statistics"] = np.array([1], np.int8)
    if not comparable:
        arrays["comparable"] = np.array([0], np.int8)
    return arrays


def _json_bytes(scores: Scores, form: Form) -> bytes:
    rows: Any = scores.main.astype(np.float64).tolist()
    if form == "json":
        rows = {"classes": [*scores.classnames], "images": [*scores.photos], "scores": rows}
        if scores.uses_label_statistics:
            rows["uses_label_statistics"] = True
        if not scores.comparable:
            rows["comparable"] = False
    return json.dumps(rows, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def read_scores(named: str, classnames: Sequence[str] | None = None, images: Sequence[str] | None = None) -> Scores:
    """Reads a score file in any form: `FILE`, or of an .npz `FILE:ARRAY` or `FILE:PREFIX` for PREFIX_global, PREFIX_local.

    classnames, images: names for a file that has none. Raises `DataError` and, for what is no such .npz, `CheckpointError`.
    """
    head, colon, key = named.rpartition(":")
    path, key = (Path(head), key) if colon and not exists(named) else (Path(named), "")
    if path.suffix.lower() == ".npz":
        return _of_npz(path, key, classnames, images)
    if key:
        raise DataError(f"{path} holds one matrix, got {key!r} after its name: give the file alone")
    if path.suffix.lower() == ".json":
        return _of_json(path, classnames, images)
    if not classnames:
        raise ConfigError(f"{path} has labels by number: name the classes with --classes")
    found = read_label_list(path, classnames)
    return Scores(path.name, {"scores": found.targets}, found.classnames, found.photos, decided=True)


def _of_npz(path: Path, key: str, classnames: Sequence[str] | None, images: Sequence[str] | None) -> Scores:
    arrays = read_npz(path)
    chosen = {part: name for part in PARTS if (name := f"{key}_{part}" if key else part) in arrays}
    if key in arrays:
        chosen = {"scores": key}
    if not chosen:
        near = nearest(key, [*arrays]) if key else []
        meant = f", did you mean {near[0]!r}?" if near else ""
        wanted = repr(key) if key else " or ".join(PARTS[:3])
        raise DataError(f"{path}: must hold scores as {wanted}{meant} (it has {preview([*arrays], 9)})")
    parts = {part: _matrix(arrays[name].read(), f"{path}, {name}") for part, name in chosen.items()}
    own, photos = (texts_of(arrays, name, path) for name in ("classes", "images"))
    flag = "uses_label_statistics" in arrays and bool(arrays["uses_label_statistics"].read().any())
    comparable = "comparable" not in arrays or bool(arrays["comparable"].read().all())
    name = f"{path.name}:{key}" if key else path.name
    return Scores(
        name, parts, own or tuple(classnames or ()), photos or tuple(images or ()),
        uses_label_statistics=flag, comparable=comparable,
    )  # fmt: skip


def _matrix(array: np.ndarray, place: str) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise DataError(f"{place}: must be numbers (photos, classes), got {array.dtype} {array.shape}")
    return array.astype(np.float64) if array.dtype.kind != "f" else array


def _of_json(path: Path, classnames: Sequence[str] | None, images: Sequence[str] | None) -> Scores:
    values = read_json(path)
    if isinstance(values, list):
        return Scores(path.name, {"scores": _rows(values, path)}, tuple(classnames or ()), tuple(images or ()))
    flags = ("uses_label_statistics", "comparable")
    known = {"classes", "images", "scores", *flags}
    if not isinstance(values, dict) or not known - {*flags} <= {*values}:
        raise DataError(f'{path}: must be a list of rows, or an object with "classes", "images" and "scores"')
    if strange := {*values} - known:
        raise DataError(f"{path}: must hold nothing but {', '.join(sorted(known))}, got {min(strange)!r:.60}")
    names = [values[key] for key in ("classes", "images")]
    if not all(isinstance(n, list) and all(isinstance(text, str) for text in n) for n in names):
        raise DataError(f'{path}: "classes" and "images" must be lists of texts')
    said = {key: values[key] for key in flags if key in values}
    if odd := [key for key, value in said.items() if not isinstance(value, bool)]:
        raise DataError(f'{path}: "{odd[0]}" must be true or false, got {said[odd[0]]!r:.40}')
    return Scores(path.name, {"scores": _rows(values["scores"], path)}, *map(tuple, names), **said)


def _rows(values: Any, path: Path) -> np.ndarray:
    if not isinstance(values, list) or not values:
        raise DataError(f"{path}: scores must be a list of rows, at least one")
    width = len(values[0]) if isinstance(values[0], list) else 0
    for number, row in enumerate(values):
        if not isinstance(row, list) or len(row) != width or not width:
            raise DataError(f"{path}, row {number}: must be a list of {width or 'numbers'}, got {row!r:.60}")
        if not all(type(value) in (int, float) for value in row):
            odd = next(value for value in row if type(value) not in (int, float))
            raise DataError(f"{path}, row {number}: scores must be numbers, got {odd!r:.40}")
    return np.array(values, np.float64)


def read_image_names(path: Path) -> tuple[str, ...]:
    """Names of photos, one a line, in order; what stands after a blank is a label and left out. Raises `DataError`."""
    names = []
    for line in filter(None, read_lines(path)):
        first = line.partition(" ")[0]
        names.append(first if is_photo(first) and not is_photo(line) else line)
    refuse_twice(names, str(path))
    return tuple(names)


def photo_places(have: Sequence[str], wanted: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, places): `have[rows]` are the photos `wanted[places]`, in the order of `wanted`.

    By whole names, else by file names without folder, else also without ending, as lists of ids have them; the first of
    these by which any photo is found and no two are one.
    """
    for key in (str, _file_name, _stem):
        ours, theirs = [[key(name) for name in names] for names in (have, wanted)]
        place = {name: n for n, name in enumerate(ours)}
        if len(place) < len(ours) or len({*theirs}) < len(theirs):
            continue
        pairs = [(place[name], n) for n, name in enumerate(theirs) if name in place]
        if pairs:
            rows, places = np.array(pairs, np.int64).T
            return rows, places
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _file_name(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _stem(name: str) -> str:
    return PurePosixPath(_file_name(name)).stem if is_photo(name) else _file_name(name)


def ordered_classes(scores: Scores, classnames: Sequence[str]) -> Scores:
    """The file with its columns in the order of `classnames`. Raises `DataError` unless both name the same classes."""
    if not scores.classnames:
        if scores.shape[1] != len(classnames):
            raise DataError(
                f"{scores.name}: must have a column for each of {len(classnames)} classes, got {scores.shape[1]}"
            )
        return replace(scores, classnames=tuple(classnames))
    finder = ClassFinder(scores.classnames)
    own, wanted = [Counter(map(name_key, names)) for names in (scores.classnames, classnames)]
    if len(scores.classnames) != len(classnames) or own != wanted:
        strange = [name for name in scores.classnames if name_key(name) not in wanted]
        lacking = [name for name in classnames if name_key(name) not in own]
        raise DataError(
            f"{scores.name}: classes must be the {len(classnames)} of the other file, got {len(scores.classnames)} "
            f"(not there: {preview(strange, 3) or 'none'}; missing: {preview(lacking, 3) or 'none'})"
        )
    if [*map(name_key, scores.classnames)] == [*map(name_key, classnames)]:
        return replace(scores, classnames=tuple(classnames))
    notice(f"{scores.name}: classes stand in another order, columns are taken by name")
    columns = [finder.find(name, scores.name) for name in classnames]
    return replace(scores.take(columns=columns), classnames=tuple(classnames))


def same_photos(scores: Scores, photos: Sequence[str]) -> Scores:
    """The file with its rows in the order of `photos`. Raises `DataError` unless both are the same photos."""
    rows, places = photo_places(scores.photos, photos)
    if len(rows) != len(photos) or len(rows) != len(scores.photos):
        there = {*places.tolist()}
        lacking = [photo for n, photo in enumerate(photos) if n not in there]
        raise DataError(
            f"{scores.name}: photos must be those of the other file, got {len(scores.photos)} of which {len(rows)} are "
            f"among its {len(photos)} (missing: {preview(lacking, 3) or 'none'})"
        )
    return replace(scores.take(rows), photos=tuple(photos))


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of one model that were made in parts, as one: photos one after the other.

    Raises `DataError` for parts of other kinds or classes, and for a photo that stands in two of them.
    """
    first, *others = parts
    for scores in others:
        if {*scores.parts} != {*first.parts} or scores.classnames != first.classnames:
            raise DataError(
                f"{scores.name}: parts must have {', '.join(first.parts)} of the same classes as {first.name}, got "
                f"{', '.join(scores.parts)} of {len(scores.classnames)} classes"
            )
        if bool(scores.photos) != bool(first.photos):
            raise DataError(f"{scores.name}: parts must all name their photos, or none")
    photos = tuple(photo for scores in parts for photo in scores.photos)
    if photos:
        refuse_twice(photos, first.name)
    matrices = {part: np.concatenate([scores.parts[part] for scores in parts]) for part in first.parts}
    flagged = any(scores.uses_label_statistics for scores in parts)
    comparable = all(scores.comparable for scores in parts)
    return replace(first, parts=matrices, photos=photos, uses_label_statistics=flagged, comparable=comparable)


def aligned(files: Sequence[Scores]) -> list[Scores]:
    """Score files in the order of photos and classes of the first; what has no names is taken as it stands.

    Raises `DataError` where photos or classes are not the same.
    """
    first, *others = files
    result = [first]
    for scores in others:
        if first.classnames:
            scores = ordered_classes(scores, first.classnames)
        if first.photos and scores.photos:
            scores = same_photos(scores, first.photos)
        if scores.shape != first.shape:
            raise DataError(
                f"{scores.name}: scores must have the shape {first.shape} of {first.name}, got {scores.shape}"
            )
        result.append(scores)
    return result

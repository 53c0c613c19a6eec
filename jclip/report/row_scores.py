"""Reliabilities of a file's rows by finished runs, part by part into a folder: what was killed goes on where it was.

reliability.json   what was scored by whom, each measurer's figures; `complete` once all is written
rows               the rows with a reliability for each measurer: .jsonl of phrases with boxes, .csv of photos with classes
histograms         .json and .png, 1,000 equal bins on (0, 1], zeros apart
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data import deadly_photos
from jclip.data.shares import WHOLE, Share
from jclip.errors import ConfigError, DataError, JclipError, notice
from jclip.paths import file_sha256, is_file, replacing
from jclip.readers.text import read_json
from jclip.report import curriculum_files, row_sets
from jclip.report.finished_run import FinishedRun
from jclip.report.row_sets import RowSet
from jclip.train.curriculum_state import hash_of, stored_scores
from jclip.train.run_folder import LEARNED

ABOUT = "reliability.json"
PARTS, SCORES = ".parts", ".scores"
PART = 2000  # rows that are kept together: a break loses those of one part
DIGITS = 6


class Reliabilities:
    """Reliabilities of all rows by each measurer, in parts below `out`.

    Raises `ConfigError` where `out` holds the reliabilities of other rows or by other runs.
    """

    def __init__(self, rows: RowSet, measurers: Mapping[str, FinishedRun], out: Path):
        self._rows, self._measurers, self.folder = rows, measurers, out
        self.key = hash_of([
            [rows.identity(n) for n in range(len(rows))],
            {name: [str(done.folder.resolve()), file_sha256(done.folder / LEARNED)] for name, done in measurers.items()},
        ])  # fmt: skip
        self.known = _known(out, self.key)
        self._all, self._parts = out / f"{SCORES}-{self.key}.npy", out / f"{PARTS}-{self.key}"
        self._order = sorted(range(len(rows)), key=rows.group)  # rows of one photo are scored together

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each part."""
        return [len(self._numbers(at)) for at in range(-(-len(self._order) // PART))]

    def done(self) -> int:
        """Rows of the parts that are there."""
        return sum(size for number, size in enumerate(self.sizes) if is_file(self._place(number)))

    def missing(self) -> Sequence[int]:
        """Numbers of the parts that are not there."""
        if self._stored_whole() is not None:
            return []
        return [number for number in range(len(self.sizes)) if self._stored_part(number) is None]

    def finish(self, own: Share) -> int:
        """Scores the rows of a share's parts that are not there, and returns how many these are."""
        from tqdm import tqdm

        if self._stored_whole() is not None:
            return 0
        if self.known is None:
            _write(self.folder, {"made_of": self.key, "rows": len(self._rows), "complete": False, "measurers": {}})
        done, numbers = 0, own.of_numbers(len(self.sizes))
        for number in tqdm(numbers, desc="rows", unit="part", disable=None, leave=False):
            if self._stored_part(number) is None:
                some = self._rows.only(self._numbers(number))
                each = range(len(some))
                with deadly_photos.decoding(self._place(number).with_suffix(".begun"), some.photos):
                    values = np.stack([some.reliability(run, each) for run in self._measurers.values()])
                if not ((values >= 0) & (values <= 1)).all():
                    raise DataError("a run gave reliabilities that are no numbers in [0, 1]: train it again")
                _keep(self._place(number), values)
                done += len(some)
        return done

    def values(self) -> np.ndarray:
        """(M, N), which are kept for other thresholds; what is missing is scored."""
        found = self._stored_whole()
        if found is None:
            self.finish(WHOLE)
            found = np.zeros((len(self._measurers), len(self._rows)))
            for number in range(len(self.sizes)):
                found[:, self._numbers(number)] = self._stored_part(number)
            _keep(self._all, found)
        shutil.rmtree(self._parts, ignore_errors=True)
        return found

    def _numbers(self, part: int) -> list[int]:
        return self._order[part * PART : (part + 1) * PART]

    def _place(self, part: int) -> Path:
        return self._parts / f"{part}.npy"

    def _stored_whole(self) -> np.ndarray | None:
        return stored_scores(self._all, (len(self._measurers), len(self._rows)))

    def _stored_part(self, part: int) -> np.ndarray | None:
        return stored_scores(self._place(part), (len(self._measurers), len(self._numbers(part))))


def write_reliabilities(
    of: Reliabilities, rows: RowSet, measurers: Mapping[str, FinishedRun], above: Sequence[float], stem: str
) -> dict[str, Any]:
    """Scores what of the rows is not scored yet, writes all files and returns reliability.json's values.

    above: thresholds; rows with a reliability above by the first measurer go into `<stem>_0_5` for 0.5.
    """
    if of.known is not None and of.known["complete"] and of.known.get("above") == [*above]:
        return of.known
    begun = {"made_of": of.key, "rows": len(rows), "complete": False, "above": [*above], "measurers": {}}
    _write(of.folder, begun)
    scores = dict(zip(measurers, of.values(), strict=True))
    found = {name: _figures(rows, done, scores[name]) for name, done in measurers.items()}
    _write_files(rows, scores, of.folder, above, stem)
    _write(of.folder, {**begun, "measurers": found, "complete": True})
    return {**begun, "measurers": found, "complete": True}


def names_of(out: Path, rows: RowSet, above: Sequence[float], stem: str) -> list[Path]:
    """The files that `write_reliabilities` writes."""
    ending = curriculum_files.table_ending(rows)
    names = [ABOUT, f"rows{ending}", curriculum_files.HISTOGRAMS, curriculum_files.PICTURE]
    return [out / name for name in [*names, *(f"{stem}_{curriculum_files.spelt(h)}{rows.ending}" for h in above)]]


def _keep(place: Path, values: np.ndarray) -> None:
    with replacing(place) as temporary, open(temporary, "wb") as file:
        np.save(file, values, allow_pickle=False)


def _figures(rows: RowSet, done: FinishedRun, values: np.ndarray) -> dict[str, Any]:
    """A measurer's mean, its shares, and how many of the rows it has learned from; None where its config names no file."""
    return {
        "run": str(done.folder),
        "mean": round(float(values.mean()), DIGITS),
        "zeros": int((values == 0).sum()),
        "above_0.5": int((values > 0.5).sum()),
        "learned": learned_of(rows, done),
    }


def learned_of(rows: RowSet, done: FinishedRun) -> int | None:
    """How many of the rows are among those that a run learned from; None where they are not known any more."""
    files = row_sets.files_learned_from(done)
    if not files:
        return None
    try:
        known = {json.dumps(one) for one in row_sets.kind_of(done.module).identities(files, done.config)}
    except JclipError as e:
        notice(f"what {done.folder} learned from can't be read: {e}")
        return None
    return sum(json.dumps(rows.identity(n)) in known for n in range(len(rows)))


def _write_files(rows: RowSet, scores: Mapping[str, np.ndarray], out: Path, above: Sequence[float], stem: str) -> None:
    table, numbers = out / f"rows{curriculum_files.table_ending(rows)}", range(len(rows))
    rows.write(table, numbers, {name: dict(enumerate(map(float, own))) for name, own in scores.items()})
    curriculum_files.write_histograms(out, {name: {stem: own} for name, own in scores.items()})
    first = next(iter(scores.values()))
    for h in above:
        kept = np.flatnonzero(first > h).tolist()
        if not kept:
            raise DataError(
                f"no row has a reliability above {h:g}, the highest is {first.max():.4f}: give a lower --above"
            )
        rows.write(out / f"{stem}_{curriculum_files.spelt(h)}{rows.ending}", kept)


def _write(out: Path, values: Mapping[str, Any]) -> None:
    with replacing(out / ABOUT) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _known(out: Path, key: str) -> dict[str, Any] | None:
    """What stands in the folder already. Raises `ConfigError` for reliabilities of something else, and other files."""
    if not is_file(out / ABOUT):
        if out.is_dir() and any(not place.name.startswith(".") for place in out.iterdir()):
            raise ConfigError(f"{out} must be a new folder, or one that this command wrote: choose another with --out")
        return None
    values = read_json(out / ABOUT)
    if not isinstance(values, dict) or values.get("made_of") != key or type(values.get("complete")) is not bool:
        raise ConfigError(
            f"{out} holds reliabilities of other rows or by other runs: choose another folder with --out, or remove it"
        )
    return values

"""Scores of many photos by several runs, in parts from which an interrupted run resumes, and as score files at the end.

Below the folder: `manifest.json`, what the scores are made of; `parts/part_00012.npz`, those of 256 photos, each with a
key of the manifest and of its photos; and for each run `NAME.npz`, fused, and with windows `NAME-whole.npz`, of the whole
photos alone. Memory does not grow with the number of photos but for the scores that are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jclip.config import to_json
from jclip.data.multi_label_sets import read_labels
from jclip.data.splits import Split
from jclip.errors import CheckpointError, ConfigError, DataError, UnknownName, notice
from jclip.features import photo_maps, window_scores
from jclip.functional.cooccurrence import count_cooccurrence
from jclip.functional.window_fusion import FusionRule, branch_scores, merged_scores, model_scores
from jclip.paths import file_sha256, replacing
from jclip.prompts.spelling import name_key
from jclip.readers.npz import npz_bytes, read_npz
from jclip.readers.text import read_json
from jclip.report.finished_run import unlabelled
from jclip.report.score_files import Scores, write_scores
from jclip.report.scoring_run import columns_of
from jclip.report.tagging_run import TaggingRun
from jclip.train.configs import resolved
from jclip.train.keyed_runs import key_of
from jclip.train.run_folder import LEARNED

PHOTOS_OF_PART = 256
WHAT = {"runs": "other runs", "plan": "other windows", "photos": "other photos", "statistics": "other label statistics"}


@dataclass(frozen=True)
class Weighing:
    """How windows and branches of a run become one score.

    local_weight: global + local_weight · local (1 and 1.5 in the published entry); None: r global + (1 - r) local with
    the run's own r.
    """

    rule: FusionRule = field(default_factory=FusionRule)
    local_weight: float | None = None


@dataclass(frozen=True)
class ScoredRun:
    """A finished run of several labels under the name of its files."""

    name: str
    run: TaggingRun
    weighing: Weighing = Weighing()

    def __post_init__(self):
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ConfigError(f"the name of a run's score file must be plain, got {self.name!r}")

    @property
    def share(self) -> float:
        """The share of the global scores, the run's own."""
        return float(self.run.learned["merge"][0])

    def together(self, whole: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Scores (N, C) of both branches as one."""
        weight = self.weighing.local_weight
        return merged_scores(whole, places, self.share) if weight is None else model_scores(whole, places, weight)


class WindowFiles:
    """Scores of `photos` by `runs`, below `folder`.

    statistics: a source of labels (as of `jclip measure --labels`) whose co-occurrence takes the place of the captions' in
    modulation; then every file says `uses_label_statistics`. Raises `ConfigError` and `DataError` for runs of different
    classes, repeated names, and photos that are none.
    """

    def __init__(
        self,
        folder: Path,
        runs: Sequence[ScoredRun],
        photos: Sequence[str],
        plan: window_scores.WindowPlan,
        statistics: str = "",
        modulation: float = 0.5,
    ):
        if not runs:
            raise ConfigError("photos are scored by at least one run, got none")
        if twice := sorted({one.name for one in runs if [r.name for r in runs].count(one.name) > 1}):
            raise ConfigError(f"runs need different names for their files, got {twice[0]!r} twice: give NAME=FOLDER")
        if not photos:
            raise DataError("there must be at least one photo to score, got none")
        self.folder, self.runs, self.photos, self.plan = folder, tuple(runs), tuple(photos), plan
        self.classnames = runs[0].run.classnames
        self._columns = [_columns_of(one, runs[0]) for one in runs]
        self._shares = _label_shares(statistics, self.classnames) if statistics else None
        self._modulation, self.uses_label_statistics = modulation, bool(statistics)
        self._split: Split = unlabelled([*photos])

    def manifest(self) -> dict[str, Any]:
        """What the scores are made of, as plain values."""
        runs = {}
        for one in self.runs:
            rule = asdict(one.weighing.rule)
            del rule["kappa"]  # which is applied to what the parts hold
            made_of = [resolved(one.run.module, one.run.config), file_sha256(one.run.folder / LEARNED)]
            runs[one.name] = {"made_of": key_of([*made_of, one.run.source().weights_sha256]), "fusion": rule}
        statistics = None if self._shares is None else key_of([self._shares.tolist(), self._modulation])
        return {
            "runs": runs,
            "plan": asdict(self.plan),
            "photos": {"count": len(self.photos), "sha256": self._split.digest(), "names": key_of([*self.photos])},
            "classes": [*self.classnames],
            "statistics": statistics,
        }

    def score(self) -> dict[str, Path]:
        """Scores what no part has yet, and writes the files; run → its score file. Raises `ConfigError` where the folder
        has scores of something else."""
        made_of = self.manifest()
        self._claim(made_of)
        scorer = None
        for number in range(self._count):
            if self._read(number, made_of) is None:
                scorer = scorer or window_scores.WindowScorer(self._models(), self.plan)
                self._compute(scorer, number, made_of)
        return self._write(made_of)

    @property
    def _count(self) -> int:
        return -(-len(self.photos) // PHOTOS_OF_PART)

    def _claim(self, made_of: Mapping[str, Any]) -> None:
        file = self.folder / "manifest.json"
        if file.is_file():
            before = read_json(file)
            for key, value in made_of.items():
                if not isinstance(before, dict) or before.get(key) != _plain(value):
                    raise ConfigError(
                        f"{self.folder} holds scores of {WHAT.get(key, f'other {key}')}: choose another --out, or remove it"
                    )
        elif self.folder.is_dir() and any(p for p in self.folder.iterdir() if not p.name.startswith(".")):
            raise ConfigError(f"{self.folder} must be empty or hold scores of this command: choose another --out")
        else:
            with replacing(file) as temporary:
                temporary.write_text(to_json(made_of, indent=1) + "\n", encoding="utf-8")

    def _models(self) -> list[window_scores.WindowModel]:
        models = []
        for one, columns in zip(self.runs, self._columns, strict=True):
            learned, cfg = one.run.learned, one.run.config
            if self._shares is not None:
                own = np.arange(len(self.classnames)) if columns is None else np.argsort(columns)
                learned = {**learned, "shares": self._shares[np.ix_(own, own)].astype(np.float32)}
                cfg = replace(cfg, modulation=self._modulation)
            models.append(
                window_scores.WindowModel(
                    one.name,
                    one.run.source(),
                    photo_maps.MapScorer(learned, cfg),
                    len(self.classnames),
                    one.weighing.rule,
                    columns,
                )
            )
        return models

    def _part(self, number: int) -> tuple[Path, tuple[str, ...]]:
        start = number * PHOTOS_OF_PART
        return self.folder / "parts" / f"part_{number:05d}.npz", self.photos[start : start + PHOTOS_OF_PART]

    def _read(self, number: int, made_of: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """What a part holds; None where it is not there, damaged (which is reported), or of something else."""
        file, photos = self._part(number)
        if not file.is_file():
            return None
        try:
            arrays = {name: tensor.read() for name, tensor in read_npz(file).items()}
        except (CheckpointError, OSError) as e:
            notice(f"{e}; it is scored again")
            return None
        known = {f"{one.name}/{part}" for one in self.runs for part in self._kinds}
        whole = {*arrays} == {"key", *known} and all(len(arrays[name]) == len(photos) for name in known)
        return arrays if whole and str(arrays["key"][0]) == key_of([made_of, number]) else None

    @property
    def _kinds(self) -> tuple[str, ...]:
        return window_scores.PARTS if self.plan.mode != "none" else window_scores.PARTS[:2]

    def _compute(self, scorer: window_scores.WindowScorer, number: int, made_of: Mapping[str, Any]) -> None:
        file, photos = self._part(number)
        notice(f"part {number + 1} of {self._count}: {len(photos)} photos")
        found, skipped = scorer.scores(photos)
        window_scores.warn_skipped(skipped)
        arrays = {f"{name}/{part}": matrix for name, parts in found.items() for part, matrix in parts.items()}
        with replacing(file) as temporary:
            temporary.write_bytes(npz_bytes({"key": np.array([key_of([made_of, number])]), **arrays}))

    def _write(self, made_of: Mapping[str, Any]) -> dict[str, Path]:
        written = {}
        for one in self.runs:  # one after the other: of all photos only one run's scores are in memory
            rows: dict[str, list[np.ndarray]] = {kind: [] for kind in self._kinds}
            for number in range(self._count):
                arrays = self._read(number, made_of)
                if arrays is None:
                    raise DataError(f"{self._part(number)[0]} was changed while it was read: start again")
                for kind in rows:
                    rows[kind].append(arrays[f"{one.name}/{kind}"])
            whole = [np.concatenate(rows[kind]) for kind in self._kinds[:2]]
            written[one.name] = self._write_file(one, one.name, whole)
            if len(self._kinds) > 2:
                self._write_file(one, f"{one.name}-whole", whole)
                kappa = one.weighing.rule.kappa
                windows = [np.concatenate(rows[kind]) for kind in self._kinds[2:]]
                both = [branch_scores(w, v, kappa) for w, v in zip(whole, windows, strict=True)]
                self._write_file(one, one.name, both)
        return written

    def _write_file(self, one: ScoredRun, name: str, both: Sequence[np.ndarray]) -> Path:
        parts = {"global": both[0], "local": both[1], "scores": one.together(*both)}
        path = self.folder / f"{name}.npz"
        flagged = self.uses_label_statistics
        write_scores(path, Scores(name, parts, self.classnames, self.photos, uses_label_statistics=flagged))
        return path


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _columns_of(one: ScoredRun, first: ScoredRun) -> np.ndarray | None:
    """Where the first run's classes stand among those of this one. Raises `DataError` for other classes."""
    own, wanted = one.run.classnames, first.run.classnames
    columns = columns_of(wanted, own)
    if columns is None or len(own) != len(wanted):
        odd = next((name for name in own if name_key(name) not in {*map(name_key, wanted)}), "one less, or one twice")
        raise DataError(
            f"runs must have the same classes, got {len(own)} of {one.name} and {len(wanted)} of {first.name} "
            f"(first other: {odd!r})"
        )
    if (columns == np.arange(len(own))).all():
        return None
    notice(f"{one.name}: classes stand in another order than in {first.name}, columns are taken by name")
    return columns


def _label_shares(source: str, classnames: Sequence[str]) -> np.ndarray:
    """(C, C) P̄ of the labels of a source."""
    return count_cooccurrence(read_labels(source, classnames).targets, "labels").shares


def read_run(given: str, weighing: Weighing) -> ScoredRun:
    """`FOLDER` or `NAME=FOLDER`. Raises `ConfigError` for a run of another task."""
    name, equals, folder = given.partition("=")
    if not equals or "/" in name:
        name, folder = Path(given).name, given
    run = TaggingRun.load(folder)
    if not hasattr(run.config, "tau_image") or "merge" not in run.learned:
        raise UnknownName("recipe for windows", run.recipe, ["text_as_image"])
    return ScoredRun(name, run, weighing)

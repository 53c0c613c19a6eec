"""Scores of many photos by several runs, in parts from which an interrupted run resumes, and as score files at the end.

Below the folder: `manifest.json`, what the scores are made of; `parts/part_00012.npz`, those of 256 photos, each with a
key of the manifest and of its photos; and for each run `NAME.npz`, fused, and with windows `NAME-whole.npz`, of the whole
photos alone. Files are written part after part: memory grows neither with the number of photos, but for their names, nor
with that of runs but for the scores of one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from jclip.config import to_json
from jclip.data import deadly_photos
from jclip.data.labelled_captions import counted, read_captions
from jclip.data.multi_label_sets import read_labels
from jclip.data.shares import WHOLE, Share
from jclip.data.splits import Split
from jclip.errors import CheckpointError, ConfigError, DataError, UnknownName, notice
from jclip.features import window_scores
from jclip.functional.cooccurrence import count_cooccurrence
from jclip.functional.window_fusion import FusionRule, branch_scores, merged_scores, model_scores
from jclip.paths import file_sha256, replacing
from jclip.prompts.spelling import name_key
from jclip.readers.npz import npz_bytes, read_npz
from jclip.readers.tensors import LazyTensor
from jclip.readers.text import read_json
from jclip.report.finished_run import unlabelled
from jclip.report.score_files import write_scores_in_parts
from jclip.report.scoring_run import columns_of
from jclip.report.tagging_run import TaggingRun
from jclip.train.configs import resolved
from jclip.train.keyed_runs import key_of
from jclip.train.run_folder import LEARNED

PHOTOS_OF_PART = 256
WHAT = {"runs": "other runs", "plan": "other windows", "photos": "other photos", "statistics": "other statistics"}


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
    def branches(self) -> tuple[str, ...]:
        """What it scores: "global" and "local", or "local" alone."""
        return self.run.module.window_scorer(self.run.learned, self.run.config).branches

    @property
    def learns_from_labels(self) -> bool:
        """Whether its recipe is taught by labels of photos."""
        return getattr(self.run.module, "LEARNS_FROM_LABELS", False)

    def together(self, branches: Mapping[str, np.ndarray]) -> np.ndarray:
        """Scores (N, C) of its branches as one."""
        if len(branches) == 1:
            return next(iter(branches.values()))
        both, weight = (branches["global"], branches["local"]), self.weighing.local_weight
        if weight is None:
            return merged_scores(*both, float(self.run.learned["merge"][0]))
        return model_scores(*both, weight)


@dataclass(frozen=True)
class Statistics:
    """Which classes occur together, by which local scores are modulated, in the place of the captions that a run learned.

    captions: files of labelled captions; labels: a source of labels of photos (as of `jclip measure --labels`), then every
    file says `uses_label_statistics`. modulation: the share of a class's scores that goes to others. Raises `ConfigError`.
    """

    captions: tuple[str, ...] = ()
    labels: str = ""
    modulation: float = 0.5

    def __post_init__(self):
        if self.captions and self.labels:
            raise ConfigError(
                "classes must be counted in captions or in labels of photos, got both: leave one of the two out"
            )

    def shares(self, classnames: Sequence[str]) -> np.ndarray | None:
        """(C, C) P̄, None without a source. Raises `DataError` for a source in which no two classes come together."""
        if not (self.captions or self.labels):
            return None
        if self.captions:
            found = counted(read_captions(self.captions, classnames))
        else:
            found = count_cooccurrence(read_labels(self.labels, classnames).targets, "labels")
        if not found.adj.any():
            raise DataError(
                f"{', '.join(self.captions) or self.labels}: some rows must have two of the {len(classnames)} classes, got "
                "none: there is nothing to modulate scores by"
            )
        return found.shares


class WindowFiles:
    """Scores of `photos` by `runs`, below `folder`. Raises `ConfigError` and `DataError` for runs of different classes,
    repeated names, and photos that are none."""

    def __init__(
        self,
        folder: Path,
        runs: Sequence[ScoredRun],
        photos: Sequence[str],
        plan: window_scores.WindowPlan,
        statistics: Statistics = Statistics(),
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
        self._shares, self._statistics = statistics.shares(self.classnames), statistics
        self.uses_label_statistics = bool(statistics.labels) or any(one.learns_from_labels for one in runs)
        self._split: Split = unlabelled([*photos])

    def manifest(self) -> dict[str, Any]:
        """What the scores are made of, as plain values."""
        runs = {}
        for one in self.runs:
            rule = asdict(one.weighing.rule)
            del rule["kappa"]  # which is applied to what the parts hold
            made_of = [resolved(one.run.module, one.run.config), file_sha256(one.run.folder / LEARNED)]
            runs[one.name] = {"made_of": key_of([*made_of, one.run.source().weights_sha256]), "fusion": rule}
        statistics = None if self._shares is None else key_of([self._shares.tolist(), self._statistics.modulation])
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
        self.finish(WHOLE)
        return self._write(self._made_of)

    def finish(self, own: Share) -> int:
        """Scores what no part of a share has yet, and returns how many photos these were. Raises as `score` does."""
        made_of, scorer, done = self._made_of, None, 0
        self._claim(made_of)
        for number in own.of_numbers(self._count):
            if not self._is_whole(number, made_of):
                scorer = scorer or window_scores.WindowScorer(self._models(), self.plan)
                self._compute(scorer, number, made_of)
                done += len(self._part(number)[1])
        return done

    @property
    def key(self) -> str:
        """What the parts are made of."""
        return key_of(self._made_of)

    @property
    def sizes(self) -> Sequence[int]:
        """Photos of each part."""
        return [len(self._part(number)[1]) for number in range(self._count)]

    def done(self) -> int:
        """Photos of the parts that are there."""
        return sum(size for number, size in enumerate(self.sizes) if self._part(number)[0].is_file())

    def missing(self) -> Sequence[int]:
        """Numbers of the parts that are not there, or of something else."""
        return [number for number in range(self._count) if not self._is_whole(number, self._made_of)]

    def of_runs(self) -> dict[str, Callable[[], Iterator[np.ndarray]]]:
        """Run → what gives its fused scores (n, C), float64, part after part; of photos that `score` has scored."""
        return {one.name: partial(self._merged, one, self._made_of, self.plan.mode != "none") for one in self.runs}

    @cached_property
    def _made_of(self) -> dict[str, Any]:
        return self.manifest()

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
            learned = dict(one.run.learned)
            if self._shares is not None:
                learned.pop("shares", None)  # of the captions that it learned
            scorer = one.run.module.window_scorer(learned, one.run.config)
            models.append(
                window_scores.WindowModel(
                    one.name, one.run.source(), scorer, len(self.classnames), one.weighing.rule, columns, self._shares,
                    self._statistics.modulation,
                )
            )  # fmt: skip
        return models

    def _part(self, number: int) -> tuple[Path, tuple[str, ...]]:
        start = number * PHOTOS_OF_PART
        return self.folder / "parts" / f"part_{number:05d}.npz", self.photos[start : start + PHOTOS_OF_PART]

    def _read(self, number: int, made_of: Mapping[str, Any]) -> Mapping[str, LazyTensor] | None:
        """What a part holds, read on demand; None where it is not there, damaged (which is reported), or of something else."""
        file, photos = self._part(number)
        if not file.is_file():
            return None
        try:
            arrays = read_npz(file)
            known = {f"{one.name}/{part}" for one in self.runs for part in self._kinds(one)}
            whole = {*arrays} == {"key", *known} and all(arrays[name].shape[0] == len(photos) for name in known)
            return arrays if whole and str(arrays["key"].read()[0]) == key_of([made_of, number]) else None
        except (CheckpointError, OSError) as e:
            notice(f"{e}; it is scored again")
            return None

    def _is_whole(self, number: int, made_of: Mapping[str, Any]) -> bool:
        """Whether a part is there with all its values undamaged; else see `_read`."""
        arrays = self._read(number, made_of)
        try:
            return arrays is not None and all(tensor.read() is not None for tensor in arrays.values())
        except (CheckpointError, OSError) as e:
            notice(f"{e}; it is scored again")
            return False

    def _kinds(self, one: ScoredRun) -> tuple[str, ...]:
        return window_scores.part_names(one.branches, self.plan.mode != "none")

    def _compute(self, scorer: window_scores.WindowScorer, number: int, made_of: Mapping[str, Any]) -> None:
        file, photos = self._part(number)
        notice(f"part {number + 1} of {self._count}: {len(photos)} photos")
        with deadly_photos.decoding(file.with_suffix(".begun"), lambda: photos):
            found, skipped = scorer.scores(photos)
        window_scores.warn_skipped(skipped)
        arrays = {f"{name}/{part}": matrix for name, parts in found.items() for part, matrix in parts.items()}
        with replacing(file) as temporary:
            temporary.write_bytes(npz_bytes({"key": np.array([key_of([made_of, number])]), **arrays}))

    def _write(self, made_of: Mapping[str, Any]) -> dict[str, Path]:
        written = {}
        for one in self.runs:
            written[one.name] = self._write_file(one, one.name, made_of, self.plan.mode != "none")
            if self.plan.mode != "none":
                self._write_file(one, f"{one.name}-whole", made_of, windows=False)
        return written

    def _write_file(self, one: ScoredRun, name: str, made_of: Mapping[str, Any], windows: bool) -> Path:
        """A score file of one run, part after part: of all photos no scores are in memory."""
        own = (
            {b: partial(self._of_branch, one, b, made_of, windows) for b in one.branches}
            if len(one.branches) > 1
            else {}
        )
        parts = {**own, "scores": partial(self._merged, one, made_of, windows)}
        path = self.folder / f"{name}.npz"
        flagged = bool(self._statistics.labels) or one.learns_from_labels
        write_scores_in_parts(path, parts, self.classnames, self.photos, flagged)
        return path

    def _of_branch(
        self, one: ScoredRun, branch: str, made_of: Mapping[str, Any], windows: bool
    ) -> Iterator[np.ndarray]:
        for number in range(self._count):
            yield self._branch(self._whole_part(number, made_of), one, branch, windows)

    def _merged(self, one: ScoredRun, made_of: Mapping[str, Any], windows: bool) -> Iterator[np.ndarray]:
        for number in range(self._count):
            arrays = self._whole_part(number, made_of)
            yield one.together({branch: self._branch(arrays, one, branch, windows) for branch in one.branches})

    @staticmethod
    def _branch(arrays: Mapping[str, LazyTensor], one: ScoredRun, branch: str, windows: bool) -> np.ndarray:
        whole = arrays[f"{one.name}/whole_{branch}"].read()
        if not windows:
            return whole
        return branch_scores(whole, arrays[f"{one.name}/windows_{branch}"].read(), one.weighing.rule.kappa)

    def _whole_part(self, number: int, made_of: Mapping[str, Any]) -> Mapping[str, LazyTensor]:
        arrays = self._read(number, made_of)
        if arrays is None:
            raise DataError(f"{self._part(number)[0]} was changed while it was read: start again")
        return arrays


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


def read_run(given: str, weighing: Weighing) -> ScoredRun:
    """`FOLDER` or `NAME=FOLDER`. Raises `ConfigError` for a run of another task."""
    name, equals, folder = given.partition("=")
    if not equals or "/" in name:
        name, folder = Path(given).name, given
    run = TaggingRun.load(folder)
    if not hasattr(run.module, "window_scorer"):
        raise UnknownName("recipe for windows", run.recipe, ["text_as_image", "dual_prompt"])
    return ScoredRun(name, run, weighing)

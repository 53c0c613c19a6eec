"""Scores behind `bench/multi_label_table.py`, kept in files named after all that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from multi_label_rows import BANK, FORMS, MODULATION, SETS, WITHOUT_TRAINING

from jclip.config import DataConfig
from jclip.data.label_files import PhotoLabels
from jclip.data.labelled_photos import read_labelled_photos
from jclip.errors import notice
from jclip.features import sentence_features, window_scores
from jclip.features.photo_maps import MapScorer
from jclip.features.source import ModelSource
from jclip.features.tagging import Tagger
from jclip.functional.window_fusion import FusionRule
from jclip.paths import replacing
from jclip.readers.npz import npz_bytes, read_npz
from jclip.report.tagging_run import TaggingRun
from jclip.train import caption_training
from jclip.train.keyed_runs import key_of

Parts = dict[str, np.ndarray]
QUICK = 24  # photos of a set and part, to try the command
CHOICES = ("scenes", "free_scenes")  # sets whose validation photos choose


class PhotoSets:
    """Photos by (set, part), the validation photos of sets that choose and the test photos of all."""

    def __init__(self, quick: bool = False):
        wanted = [(name, "val") for name in CHOICES] + [(name, "test") for name in SETS]
        self.photos = {key: _read(*key, quick) for key in wanted}

    def __iter__(self):
        return iter(self.photos.items())

    def targets(self, key: tuple[str, str]) -> np.ndarray:
        """Labels (N, C)."""
        return self.photos[key].targets


def _read(name: str, part: str, quick: bool) -> PhotoLabels:
    labels = read_labelled_photos(DataConfig(root=f"shapes:{name}"), part)
    return labels.take(range(QUICK)) if quick else labels


class ScoreFiles:
    """Scores by what they are made of, computed once. folder: where their files lie."""

    def __init__(self, folder: Path, sets: PhotoSets):
        self._folder, self._sets = folder, sets
        self._digests = {key: labels.split.digest() for key, labels in sets}

    def of_run(self, run: TaggingRun, kind: str = "") -> dict[tuple[str, str], Parts]:
        """(set, part) → scores by part: "global", "local", "merged". kind: "modulation" or "bank", which nothing is
        trained for."""
        shown = varied(run, kind) if kind else run
        made = {}
        for key, labels in self._sets:
            made[key] = self._kept(
                [run.folder.name, kind, self._digests[key]], lambda of=labels: shown.parts_of(of.split)[1]
            )
        return made

    def without_training(self, name: str) -> dict[tuple[str, str], Parts]:
        """The same of a row of `WITHOUT_TRAINING`: "merged" alone."""
        model, method, size, windows = WITHOUT_TRAINING[name]
        made = {}
        for key, labels in self._sets:
            if key[1] == "test":
                tagger = Tagger(
                    ModelSource(model), labels.classnames, "simple", method=method, size=size, windows=windows
                )
                made[key] = self._kept(
                    ["tagger", model, method, size, windows, self._digests[key]],
                    lambda tagger=tagger, of=labels: {"merged": tagger.scores(of.paths)},
                )
        return made

    def windows(self, runs: Sequence[TaggingRun]) -> dict[tuple[str, str], dict[tuple[str, str], Parts]]:
        """(run's folder, form of fusion) → (set, part) → `jclip.features.window_scores.PARTS`; of all runs in one pass."""
        plan = window_scores.WindowPlan("even", (2,), "unit")
        models = {
            (run.folder.name, form): _window_model(run, form) for run in runs for form in FORMS
        }  # one encoder pass for all of them
        made: dict[tuple[str, str], dict[tuple[str, str], Parts]] = {name: {} for name in models}
        for key, labels in self._sets:
            made_of = {name: ["windows", *name, self._digests[key]] for name in models}
            missing = [models[name] for name in models if not self._file(made_of[name]).is_file()]
            scored = window_scores.WindowScorer(missing, plan).scores(labels.paths)[0] if missing else {}
            for name, model in models.items():
                made[name][key] = self._kept(made_of[name], lambda of=model.name, scored=scored: scored[of])
        return made

    def _file(self, made_of: Sequence) -> Path:
        return self._folder / f"{key_of(made_of)}.npz"

    def _kept(self, made_of: Sequence, compute: Callable[[], Mapping[str, np.ndarray]]) -> Parts:
        file = self._file(made_of)
        if file.is_file():
            return {name: tensor.read() for name, tensor in read_npz(file).items()}
        notice(f"scores: {', '.join(map(str, made_of[:-1]))}")
        found = {name: np.asarray(scores, np.float32) for name, scores in compute().items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_bytes(npz_bytes(found))
        return found


def _window_model(run: TaggingRun, form: str) -> window_scores.WindowModel:
    name = f"{run.folder.name}, {form}"
    scorer = MapScorer(run.learned, run.config)
    return window_scores.WindowModel(name, run.source(), scorer, len(run.classnames), FusionRule(form))


def varied(run: TaggingRun, kind: str) -> TaggingRun:
    """A run that hands scores on by the captions' co-occurrence ("modulation"), or pulls photos to captions ("bank")."""
    setting = {"modulation": MODULATION} if kind == "modulation" else {"bank": BANK}
    cfg = replace(run.config, **setting)
    captions = caption_training.read_captions(cfg, run.classnames, None)
    features = sentence_features.sentence_features(run.source(), captions.texts, cfg.stored) if cfg.bank else None
    extras = caption_training.extras_of(cfg, captions.targets, features)
    return replace(run, config=cfg, learned={**run.learned, **extras})

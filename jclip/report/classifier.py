"""A finished run as a classifier: photos in, classes out; what the task `classify` does with its runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jclip.config import DataConfig
from jclip.errors import CheckpointError, ConfigError, notice
from jclip.prompts.spelling import name_key
from jclip.report.finished_run import MODEL, FinishedRun, unlabelled
from jclip.report.run_table import accuracies_of_runs, report
from jclip.train import recipe_finder
from jclip.train.configs import resolved

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

    from jclip.data.loader import OnError
    from jclip.data.splits import PhotoData, Split
    from jclip.features.heads import ZeroShotHead
    from jclip.features.precomputed import FeatureSet
    from jclip.features.source import ModelSource
    from jclip.readers import WeightFile
    from jclip.report.predictions import Predictions
    from jclip.train.scored_photos import ScoredPhotos

NO_MODEL = "this run learned from recorded features: name the model that they are of with --model"


@dataclass(frozen=True)
class Classifier(FinishedRun):
    """A finished run of the task `classify`: what it learned, and what its features looked like."""

    task: ClassVar[str] = "classify"

    learned: dict[str, np.ndarray] = field(default_factory=dict)
    classnames: tuple[str, ...] = ()
    width: int = 0
    templates: str | None = None  # what it learned with; the config may say others now
    columns: np.ndarray | None = None  # of its scores, where it tells apart some of its classes, or in another order

    @classmethod
    def read(cls, folder: Path, result: Mapping[str, Any], overrides: Sequence[str], model: str) -> Classifier:
        """As `load`, of a run whose `result` has been read."""
        import numpy as np

        if "recipe" in result["config"]:
            cls.check_task(folder, recipe_finder.load(result["config"]["recipe"]))
        saved, about = _read_learned(folder)
        module, config = cls.settings(folder, about["config"], overrides, model)
        own = folder / MODEL
        return cls(
            folder=folder,
            module=module,
            config=config,
            model=str(own) if own.is_file() and not model else config.model or _members(config),
            result=result,
            learned={k: np.array(t.read()) for k, t in saved.items()},
            classnames=tuple(about["classnames"]),
            width=about["width"],
            templates=about["config"].get("templates"),  # before they were overridden
        )

    @property
    def normalised(self) -> bool:
        """Whether the recipe takes features of length one, and not as long as the tower makes them."""
        return getattr(self.module, "NORMALISED", True)

    def scorer(self) -> Callable[[np.ndarray], np.ndarray]:
        """Features (N, width), normalised where the recipe takes them so → scores (N, C)."""
        score = self.module.scorer(self.learned, self.config)
        return score if self.columns is None else lambda features: score(features)[:, self.columns]

    def telling_apart(self, classnames: Sequence[str], source: ModelSource | ZeroShotHead | None) -> Classifier:
        """The same for other class names: a choice among its own, or what the recipe makes of new ones with `source`.

        Raises `ConfigError` where the recipe learned a head of its own classes, and these are others.
        """
        retold = getattr(self.config, "templates", None) != self.templates
        names, own = [[name.replace("_", " ") for name in of] for of in (classnames, self.classnames)]
        if names == own and not retold:
            return self
        columns = None if retold else columns_of(names, own)
        if columns is not None:
            return replace(self, classnames=tuple(classnames), columns=columns)
        recipe = self.module.__name__.rsplit(".", 1)[-1]
        if not hasattr(self.module, "for_classes"):
            raise ConfigError(f"{recipe} learned its own {len(own)} classes: {_news(names, own)}")
        if source is None:
            raise ConfigError("new classes are named to the model's text tower: name the model with model=")
        learned = self.module.for_classes(self.learned, self.config, tuple(classnames), source)
        return replace(self, learned=learned, classnames=tuple(classnames), columns=None)

    def predict(self, places: Iterable[str | os.PathLike], on_error: OnError = "stop", top: int = 5) -> Predictions:
        """Scores of photos, and of those in folders. Raises `DataError` for a photo that does not decode, unless "skip"."""
        from jclip.data.splits import find_photos

        return self.label(unlabelled(find_photos([str(p) for p in places])), on_error, top)[0]

    def source(self) -> ModelSource | None:
        """The model whose features it scores; of recorded features there may be none. Raises `CheckpointError`."""
        from jclip.features.source import source_of

        source = source_of(self.config, self.model)
        if source and not getattr(self.config.data, "features", ""):
            self.check_width(source.width, self.model)
        prompted = getattr(self.module, "prompted_source", None)  # image towers that are in no weights
        return prompted(self.learned, self.config, source) if source and prompted else source

    def label(self, split: Split, on_error: OnError = "stop", top: int = 5) -> tuple[Predictions, np.ndarray]:
        """Scores of the photos of `split` that decode, and their rows."""
        from jclip.features.extraction import extract
        from jclip.functional.directions import unit
        from jclip.report.predictions import Predictions

        rows, features = extract(self._source(), split, on_error=on_error, label="photos")
        scores = self.scorer()(unit(features) if self.normalised else features)
        photos, unknown = tuple(split.paths[i] for i in rows), getattr(self.config, "unknown", 0.0)
        return Predictions(photos, self.classnames, scores, top, unknown), rows

    def _source(self) -> ModelSource:
        self.check_predict(sheet=False, sort=False)
        source = self.source()
        self.check_width(source.width, self.model)
        return source

    def measure(self, out: Path) -> dict[str, float]:
        """Scores the test data of the run's config, photos or precomputed features, and writes what `write_evaluation` does.

        Raises `ConfigError` where it can't tell the classes apart or there is no test data, `CheckpointError` for features
        of another width.
        """
        from jclip.paths import refuse_overwriting
        from jclip.report.evaluation import FILES, write_evaluation

        photos = test_photos(self)
        refuse_overwriting([out / name for name in FILES], photos.test.paths if photos else ())
        data, scores, names = scored(self, self.source(), photos)
        return write_evaluation(out, scores, data.test_labels, names, data.test_photos, self.marks())

    def check_predict(self, sheet: bool, sort: bool) -> None:
        """Raises `ConfigError` for a run of precomputed features whose model nobody named."""
        if not self.model:
            raise ConfigError(NO_MODEL)

    def own_split(self) -> tuple[Classifier, Split]:
        """The test photos of the config's data, and the run as it tells their classes apart. Raises `ConfigError`."""
        own = self.own_photos()
        return self.telling_apart(own.classnames, self.source()), own.test

    @staticmethod
    def files() -> tuple[str, ...]:
        """Metrics, tables and pictures of the classes, predictions, the challenge's file."""
        from jclip.report.evaluation import FILES

        return FILES

    @staticmethod
    def write_predictions(predictions: Predictions, path: str) -> None:
        """Writes them in the format of the ending."""
        from jclip.report.predictions import write_predictions

        write_predictions(predictions, path)

    @staticmethod
    def show(predictions: Predictions) -> str:
        """A table of photos and their best classes."""
        from jclip.report.predictions import show

        return show(predictions)

    @staticmethod
    def rightness(predictions: Predictions, split: Split, rows: np.ndarray) -> str:
        """The accuracy, where all classes are known."""
        from jclip.functional.metrics import top_k

        if not (split.labels >= 0).all():
            return ""
        return f"top-1 {top_k(predictions.scores, split.labels[rows]):.4f} of these photos"

    @staticmethod
    def write_scored(folder: Path, scored: ScoredPhotos, marks: Mapping[str, float]) -> dict[str, float]:
        """What `write_evaluation` writes. Raises `ConfigError` where a file would take the place of a photo."""
        from jclip.paths import refuse_overwriting
        from jclip.report.evaluation import FILES, write_evaluation

        refuse_overwriting([folder / name for name in FILES], scored.photos)
        return write_evaluation(folder, scored.scores, scored.targets, scored.classnames, scored.photos, marks)

    @staticmethod
    def run_table(metrics: Mapping[str, float]) -> str:
        """Accuracies, zero-shot beside adapted, then the other figures."""
        return report(metrics)

    @staticmethod
    def eval_table(metrics: Mapping[str, float]) -> str:
        """The accuracy, and five other figures."""
        from jclip.choices import SELECTED_ON_TEST

        others = ", ".join(f"{k} {metrics[k]:.4f}" for k in ("top5", "mean_per_class", "macro_f1", "ece", "nll"))
        return f"{report({k if k == SELECTED_ON_TEST else f'test_{k}': v for k, v in metrics.items()})}\n{others}"

    @staticmethod
    def comparison(results: Mapping[str, Mapping[str, float]]) -> str:
        """Zero-shot of the first, then each run, on validation and test photos. Raises `ConfigError`."""
        return accuracies_of_runs(results)

    def check_width(self, width: int, place: str) -> None:
        """Raises `CheckpointError` for features of another width than the run learned on; place: what gives them."""
        if width != self.width:
            raise CheckpointError(
                f"{place} gives features of {width} numbers, the run learned on {self.width}: name what it learned from"
            )

    def check_photos(self) -> None:
        """Pass: a classifier's data are photos with classes, or features of them."""

    def photos(self) -> PhotoData | None:
        """The photos of the config as the run saw them, those that have changed since noted; None of recorded features."""
        from jclip.features.run_data import run_photos

        photos = run_photos(self.config, getattr(self.module, "MEASURES_ALL", False))
        if photos is not None:
            self._note_changed(photos)
        return photos

    def own_photos(self) -> PhotoData:
        """The test photos of the config's data, with their labels. Raises `ConfigError` where it has none."""
        if not isinstance(self.config.data, DataConfig) or self.config.data.features:
            raise ConfigError("name the photos to label: this run has none of its own")
        photos = self.photos()
        if not len(photos.test):
            raise ConfigError("name the photos to label, or set data.test: the run's data has no test photos")
        return photos

    def _note_changed(self, photos: PhotoData) -> None:
        """Writes a line on stderr for each part whose photos are others than those that the run finished with."""
        told, file = self.result, self.folder / "result.json"
        values = resolved(self.module, self.config)
        same = all(values.get(key) == told["config"].get(key) for key in ("data", "classes", "multi_label"))
        comparable = told["provenance"].get("photos_by") == "contents" and not values.get("multi_label")
        if not (same and comparable):  # other data is named, or digests are of another kind
            return
        finished = file.stat().st_mtime
        for name, digest in photos.digests().items():
            before = told["provenance"].get(name, digest)
            if before != digest:
                part = name.removesuffix("_sha256")
                notice(_changed(part, getattr(photos, part), before, digest, finished))


def _changed(part: str, split: Split, before: str, now: str, finished: float) -> str:
    """The line on a part's photos that changed since a run; finished: when that was, in seconds of the epoch."""
    later = [path for path in split.paths if os.stat(path).st_mtime > finished]  # noqa: PTH116
    first = f", {len(later)} of them later than result.json (first: {later[0]})" if later else ""
    return (
        f"the run's {part} photos have changed since it finished: now {len(split)}{first}; SHA-256 of contents and "
        f"labels was {before[:12]}…, is {now[:12]}…"
    )


def _read_learned(folder: Path) -> tuple[WeightFile, dict[str, Any]]:
    """What a run learned, and what the file says of it: config, class names and width. Raises `CheckpointError`."""
    from jclip.readers import read_weights, safetensors
    from jclip.train.run_folder import LEARNED, read_index

    path = folder / LEARNED
    older = read_index(folder) is None  # of the time before files had seals
    try:
        saved = read_weights(path) if older else safetensors.read_sealed(path)
        told = {key: json.loads(saved.metadata[key]) for key in ("config", "classnames", "width")}
    except OSError as e:
        raise CheckpointError(f"can't read {path}: {e.strerror}") from e
    except (KeyError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} must say config, class names and width: it is not what a run learned") from e
    names = told["classnames"]
    whole = isinstance(told["config"], dict) and isinstance(names, list) and all(isinstance(n, str) for n in names)
    if not whole or type(told["width"]) is not int or told["width"] < 1:
        raise CheckpointError(f"{path} must say config, class names and width, each of its type")
    return saved, told


def _members(cfg: Any) -> str:
    """The models of a run that has several."""
    return " + ".join(member.weights for member in getattr(cfg, "models", ()))


def columns_of(names: Sequence[str], own: Sequence[str]) -> np.ndarray | None:
    """Where each of `names` stands among `own` ones, as it is spelled or, if need be, as `name_key` compares; None where
    one does not, or stands twice."""
    exact = _columns(names, own)
    return exact if exact is not None else _columns([*map(name_key, names)], [*map(name_key, own)])


def _columns(names: Sequence[str], own: Sequence[str]) -> np.ndarray | None:
    import numpy as np

    place = {name: i for i, name in enumerate(own)}
    found = all(name in place for name in names) and len({*names}) == sum(own.count(name) for name in {*names})
    return np.array([place[name] for name in names]) if found else None


def _news(names: Sequence[str], own: Sequence[str]) -> str:
    """Why `columns_of` found no way, and what to do."""
    known = {*map(name_key, own)}
    new = [name for name in names if name_key(name) not in known]
    if new:
        return f"{len(new)} of the data's {len(names)} are others (first: {new[0]!r}); zero_shot and prompts take any"
    twice = [name for name in names if own.count(name) > 1]
    return f"{twice[0]!r} stands there twice: rename one" if twice else "its templates can't be changed afterwards"


def test_photos(done: Classifier, whole: bool = False) -> PhotoData | None:
    """The test photos of the run's config, or with `whole` all photos of a set that has no test part; None of recorded
    features.

    Raises `ConfigError` where there is nothing to measure on.
    """
    from jclip.data.splits import Split
    from jclip.features.run_data import run_photos

    if whole:  # nothing is learned: a set's photos stay whole
        data = replace(done.config.data, shots=0, val_shots=0, pool=0)
        photos = run_photos(replace(done.config, data=data))
    else:
        photos = done.photos()
    if photos is None:
        return None
    test = photos.train if whole and not len(photos.test) else photos.test
    if not len(test):
        raise ConfigError("there is no test data to measure on: set data.test")
    return replace(photos, train=Split(), val=Split(), test=test)


def test_features(
    done: Classifier, source: ModelSource | None, photos: PhotoData | None, normalise: bool
) -> FeatureSet:
    """Test features of the config's data with the text of its classes. Raises `ConfigError` where there are none."""
    from jclip.features.run_data import run_features

    data = run_features(done.config, source, photos, training=None, normalise=normalise)
    if not len(data.test):
        raise ConfigError("there is no test data to measure on: set data.test")
    return data


def scored(
    done: Classifier, source: ModelSource | None, photos: PhotoData | None
) -> tuple[FeatureSet, np.ndarray, tuple[str, ...]]:
    """Test features of the config's data, their scores (N, C), and the names of the C classes.

    Raises `ConfigError` for classes that the run can't tell apart, `CheckpointError` for features of another width.
    """
    from jclip.features.heads import ZeroShotHead

    data = test_features(done, source, photos, done.normalised)
    done.check_width(data.test.shape[1], done.config.data.features or done.model)
    recorded = None if data.text is None else ZeroShotHead(data.text, data.scale)
    there = done.telling_apart(data.classnames, source or recorded)
    scores = there.scorer()(data.test)
    if data.classes > scores.shape[1]:
        raise ConfigError(f"the data has {data.classes} classes, the run tells {scores.shape[1]} apart")
    return data, scores, there.classnames or tuple(str(i) for i in range(scores.shape[1]))

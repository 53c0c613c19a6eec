"""A finished run as a classifier: photos in, classes out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclip.config import DataConfig, apply_overrides
from jclip.errors import CheckpointError, ConfigError, notice
from jclip.prompts.spelling import name_key
from jclip.train.configs import build_config, default_folder, read_config, resolved

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

    from jclip.data.loader import OnError
    from jclip.data.splits import PhotoData, Split
    from jclip.features.heads import ZeroShotHead
    from jclip.features.precomputed import FeatureSet
    from jclip.features.source import ModelSource
    from jclip.readers import WeightFile
    from jclip.report.predictions import Predictions
    from jclip.train.run import Run


@dataclass(frozen=True)
class Classifier:
    """A finished run: its recipe, config, what it learned, and what its features looked like."""

    folder: Path
    module: Any
    config: Any
    learned: dict[str, np.ndarray]
    classnames: tuple[str, ...]
    width: int
    model: str = ""  # the weights that its features are of; runs of recorded features have none
    templates: str | None = None  # what it learned with; the config may say others now
    columns: np.ndarray | None = None  # of its scores, where it tells apart some of its classes, or in another order
    result: Mapping[str, Any] = field(default_factory=dict)  # metrics and provenance, as result.json has them

    @staticmethod
    def load(
        place: str | os.PathLike,
        overrides: Sequence[str] = (),
        model: str = "",
        result: Mapping[str, Any] | None = None,
    ) -> Classifier:
        """The run in folder `place` with settings changed, or the one that training the config `place` with them made.

        model: the base weights, where the run was made from recorded features or the file has moved. result: of a run that
        is about to finish, before it is written. Raises `ConfigError` when there is no such run, and `CheckpointError` where
        a file of it is damaged.
        """
        import numpy as np

        from jclip.train.run import read_result

        folder = Path(place)
        if folder.is_file() or folder.suffix == ".yaml":
            folder, overrides = default_folder(*read_config(str(place), overrides)), ()
        result = result or read_result(folder)
        saved, told = _read_learned(folder)
        templates = told["config"].get("templates")  # before they are overridden
        values = apply_overrides(told["config"], overrides)
        module, cfg = build_config(values, f"{folder}/config.yaml")
        cfg = replace(cfg, model=model) if model else cfg
        own = folder / "model.safetensors"  # of a run that trained the towers
        return Classifier(
            folder=folder,
            module=module,
            config=cfg,
            learned={k: np.array(t.read()) for k, t in saved.items()},
            classnames=tuple(told["classnames"]),
            width=told["width"],
            model=str(own) if own.is_file() and not model else cfg.model or _members(cfg),
            templates=templates,
            result=result,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """What the run measured."""
        return self.result["metrics"]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run was made of and with, and what its last start took: `seconds`, `peak_mib`."""
        return self.result["provenance"]

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
        if not self.model:
            raise ConfigError("this run learned from recorded features: name the model that they are of with --model")
        source = self.source()
        self.check_width(source.width, self.model)
        return source

    def check_width(self, width: int, place: str) -> None:
        """Raises `CheckpointError` for features of another width than the run learned on; place: what gives them."""
        if width != self.width:
            raise CheckpointError(
                f"{place} gives features of {width} numbers, the run learned on {self.width}: name what it learned from"
            )

    def check_photos(self) -> None:
        """Raises `ConfigError` for a run that learned from captions."""
        if not isinstance(self.config.data, DataConfig):
            raise ConfigError(
                f"{self.folder} learned from captions: measure its model.safetensors with the recipe zero_shot"
            )

    def marks(self) -> dict[str, float]:
        """What a reader of its figures must know: whether they were chosen on test."""
        from jclip.choices import SELECTED_ON_TEST

        return {k: v for k, v in self.metrics.items() if k == SELECTED_ON_TEST}

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
        """Write a line on stderr for each part whose photos are others than those that the run finished with, or that it
        read where it is about to finish."""
        told, file = self.result, self.folder / "result.json"
        if not told:
            return
        values = resolved(self.module, self.config)
        same = all(values.get(key) == told["config"].get(key) for key in ("data", "classes", "multi_label"))
        comparable = told["provenance"].get("photos_by") == "contents" and not values.get("multi_label")
        if not (same and comparable):  # other data is named, or digests are of another kind
            return
        finished = file.stat().st_mtime if file.is_file() else None
        for name, digest in photos.digests().items():
            before = told["provenance"].get(name, digest)
            if before != digest:
                part = name.removesuffix("_sha256")
                notice(_changed(part, getattr(photos, part), before, digest, finished))


def _changed(part: str, split: Split, before: str, now: str, finished: float | None) -> str:
    """The line on a part's photos that changed; finished: when the run did, in seconds of the epoch, if it has."""
    later = [path for path in split.paths if finished and os.stat(path).st_mtime > finished]  # noqa: PTH116
    first = f", {len(later)} of them later than result.json (first: {later[0]})" if later else ""
    return (
        f"the run's {part} photos have changed {'since it finished' if finished else 'while it ran'}: now {len(split)}"
        f"{first}; SHA-256 of contents and labels was {before[:12]}…, is {now[:12]}…"
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


def unlabelled(photos: Sequence[str]) -> Split:
    """Photos of which nobody knows the class."""
    import numpy as np

    from jclip.data.splits import Split

    return Split(tuple(photos), np.full(len(photos), -1, np.int32))


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


def measure(done: Classifier, out: Path) -> dict[str, float]:
    """Scores the test data of the run's config, photos or recorded features, and writes what `write_evaluation` does.

    Raises `ConfigError` for a run that learned from captions, of classes that it can't tell apart, or without test data,
    `CheckpointError` for features of another width.
    """
    from jclip.paths import refuse_overwriting
    from jclip.report.evaluation import FILES, write_evaluation

    done.check_photos()
    photos = test_photos(done)
    refuse_overwriting([out / name for name in FILES], photos.test.paths if photos else ())
    data, scores, names = scored(done, done.source(), photos)
    return write_evaluation(out, scores, data.test_labels, names, data.test_photos, done.marks())


def measure_if_cheap(run: Run, result: Mapping[str, Any]) -> list[str]:
    """The same for a run that is about to finish with `result`, into its own folder, where its features are frozen and
    known: the names of the files. Runs that trained a tower, whose scores take passes through one, or that have no test
    data, are left to `eval`."""
    from jclip.report.evaluation import FILES

    folder = run.folder
    learned, own = folder / "learned.safetensors", folder / "model.safetensors"
    if own.is_file() or not learned.is_file() or "test_top1" not in result["metrics"]:
        return []
    done = Classifier.load(folder, result=result)
    if not getattr(done.module, "CHEAP", True):
        return []
    run.expect(FILES)
    measure(done, folder)
    return [name for name in FILES if (folder / name).is_file()]

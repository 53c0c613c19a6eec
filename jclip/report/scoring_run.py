"""A finished run that scores photos: what it learned, its features, its class names; whatever is made of the scores."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclip.config import DataConfig, protocols
from jclip.data import loader, splits
from jclip.errors import CheckpointError, ConfigError, notice
from jclip.features import extraction, heads, run_data
from jclip.features import source as sources
from jclip.functional import directions
from jclip.prompts.spelling import name_key
from jclip.readers import any_format, safetensors, tensors
from jclip.report.finished_run import MODEL, FinishedRun, unlabelled
from jclip.train import recipe_finder
from jclip.train.configs import resolved
from jclip.train.run_folder import LEARNED, read_index

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

NO_MODEL = "this run learned from precomputed features: name the model that made them with --model"


@dataclass(frozen=True)
class ScoringRun(FinishedRun):
    """A finished run whose recipe has a `scorer`: features (N, E) of photos → scores (N, C), C classes that have names."""

    learned: dict[str, np.ndarray] = field(default_factory=dict)
    classnames: tuple[str, ...] = ()
    width: int = 0
    templates: str | None = None  # what it learned with; the config may say others now
    columns: np.ndarray | None = None  # of its scores, where it has but some of its classes, or in another order
    opened: sources.ModelSource | None = field(default=None, repr=False, compare=False)  # kept for the next photos

    @classmethod
    def read(cls, folder: Path, result: Mapping[str, Any], overrides: Sequence[str], model: str) -> ScoringRun:
        """The run as of `load`, its `result` already read."""
        import numpy as np

        recipe = result["config"].get("recipe")
        if recipe in recipe_finder.names():  # runs of other tasks have no such arrays
            cls.check_task(folder, recipe_finder.load(recipe))
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

    def telling_apart(
        self, classnames: Sequence[str], source: sources.ModelSource | heads.ZeroShotHead | None
    ) -> ScoringRun:
        """The run for other class names: a choice among its own, or what the recipe makes of new ones with `source`.

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
            raise ConfigError("new classes need the model's text tower: set model=")
        learned = self.module.for_classes(self.learned, self.config, tuple(classnames), source)
        return replace(self, learned=learned, classnames=tuple(classnames), columns=None)

    def predict(self, places: Iterable[str | os.PathLike], on_error: loader.OnError = "stop", top: int = 5) -> Any:
        """The task's predictions for photos, and those in folders. Raises `DataError` for a photo that does not decode,
        unless "skip"."""
        return self.label(unlabelled(splits.find_photos([str(p) for p in places])), on_error, top)[0]

    def source(self) -> sources.ModelSource | None:
        """The model whose features it scores; for precomputed features there may be none. Raises `CheckpointError`."""
        if self.opened is not None:
            return self.opened
        source = sources.source_of(self.config, self.model)
        if source and not getattr(self.config.data, "features", ""):
            self.check_width(source.width, self.model)
        prompted = getattr(self.module, "prompted_source", None)  # image towers that are in no weights
        return prompted(self.learned, self.config, source) if source and prompted else source

    def keeping_model(self) -> ScoringRun:
        """The same run, whose model stays loaded from one call to the next. Raises as `label` does."""
        return replace(self, opened=self._source())

    def scores_of(self, split: splits.Split, on_error: loader.OnError = "stop") -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) of the photos of `split` that decode, and their scores (n, C)."""
        rows, features = extraction.extract(self._source(), split, on_error=on_error, label="photos")
        return rows, self.scorer()(directions.unit(features) if self.normalised else features)

    def _source(self) -> sources.ModelSource:
        self.check_predict(sheet=False, sort=False)
        source = self.source()
        self.check_width(source.width, self.model)
        return source

    def check_predict(self, sheet: bool, sort: bool) -> None:
        """Raises `ConfigError` for a run of precomputed features whose model nobody named."""
        if not self.model:
            raise ConfigError(NO_MODEL)

    def own_split(self) -> tuple[ScoringRun, splits.Split]:
        """The test photos of the config's data, and the run restricted to their classes. Raises `ConfigError`."""
        own = self.own_photos()
        return self.telling_apart(own.classnames, self.source()), own.test

    def check_width(self, width: int, place: str) -> None:
        """Raises `CheckpointError` for features of another width than the run learned on; place: what gives them."""
        if width != self.width:
            raise CheckpointError(
                f"{place} gives {width}-dimensional features, the run learned on {self.width}: name the model it learned from"
            )

    def check_photos(self) -> None:
        """Pass: the data are photos with classes, or features of them."""

    def photos(self) -> splits.PhotoData | None:
        """The photos of the config as the run saw them, those that have changed since noted; None of precomputed features."""
        photos = run_data.run_photos(self.config, getattr(self.module, "MEASURES_ALL", False))
        if photos is not None:
            self._note_changed(photos)
        return photos

    def own_photos(self) -> splits.PhotoData:
        """The test photos of the config's data, with their labels. Raises `ConfigError` where it has none."""
        if not isinstance(self.config.data, DataConfig) or self.config.data.features:
            raise ConfigError("name the photos to label: this run has none of its own")
        photos = self.photos()
        if not len(photos.test):
            raise ConfigError("name the photos to label, or set data.test: the run's data has no test photos")
        return photos

    def _note_changed(self, photos: splits.PhotoData) -> None:
        """Writes a line on stderr for each part whose photos are others than those that the run finished with."""
        result, file = self.result, self.folder / "result.json"
        values = resolved(self.module, self.config)
        same = all(values.get(key) == result["config"].get(key) for key in ("data", "classes", "multi_label"))
        comparable = result["provenance"].get("photos_by") == "contents" and not values.get("multi_label")
        if not (same and comparable):  # other data is named, or digests are of another kind
            return
        finished = file.stat().st_mtime
        for name, digest in photos.digests().items():
            before = result["provenance"].get(name, digest)
            if before != digest:
                part = name.removesuffix("_sha256")
                notice(_changed(part, getattr(photos, part), before, digest, finished))


def _changed(part: str, split: splits.Split, before: str, now: str, finished: float) -> str:
    """The line on a part's photos that changed since a run; finished: when that was, in seconds of the epoch."""
    later = [path for path in split.paths if os.stat(path).st_mtime > finished]  # noqa: PTH116
    first = f", {len(later)} of them later than result.json (first: {later[0]})" if later else ""
    return (
        f"the run's {part} photos have changed since it finished: now {len(split)}{first}; SHA-256 of contents and "
        f"labels was {before[:12]}…, is {now[:12]}…"
    )


def _read_learned(folder: Path) -> tuple[tensors.WeightFile, dict[str, Any]]:
    """What a run learned, and what the file says of it: config, class names and width. Raises `CheckpointError`."""
    path = folder / LEARNED
    older = read_index(folder) is None  # of the time before files had seals
    try:
        saved = any_format.read_weights(path) if older else safetensors.read_sealed(path)
        about = {key: json.loads(saved.metadata[key]) for key in ("config", "classnames", "width")}
    except OSError as e:
        raise CheckpointError(f"can't read {path}: {e.strerror}") from e
    except (KeyError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} must say config, class names and width: it is not what a run learned") from e
    names = about["classnames"]
    whole = isinstance(about["config"], dict) and isinstance(names, list) and all(isinstance(n, str) for n in names)
    if not whole or type(about["width"]) is not int or about["width"] < 1:
        raise CheckpointError(f"{path} must say config, class names and width, each of its type")
    return saved, about


def _members(cfg: protocols.Dataclass) -> str:
    """The models of a run that has several."""
    return " + ".join(member.weights for member in getattr(cfg, "models", ()))


def columns_of(names: Sequence[str], own: Sequence[str]) -> np.ndarray | None:
    """Where each of `names` stands among `own` ones, as it is spelled or, if need be, as `name_key` compares; None where
    one does not, or does twice."""
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

"""A finished run as a classifier: photos in, classes out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune._configs import build_config, default_folder, read_config
from jclip.config import DataConfig, apply_overrides
from jclip.errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

    from jclip.data.loader import OnError
    from jclip.data.splits import Split
    from jclip.results import Predictions
    from jclip.source import ModelSource


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

    @staticmethod
    def load(place: str | os.PathLike, overrides: Sequence[str] = (), model: str = "") -> Classifier:
        """The run in folder `place` with settings changed, or the one that training the config `place` with them made.

        model: the base weights, where the run was made from recorded features or the file has moved. Raises
        `ConfigError` when there is no such run.
        """
        import numpy as np

        from jclip.readers import read_weights
        from jclip.run import read_result

        folder = Path(place)
        if folder.is_file() or folder.suffix == ".yaml":
            folder, overrides = default_folder(*read_config(str(place), overrides)), ()
        read_result(folder)
        saved = read_weights(folder / "learned.safetensors")
        values = apply_overrides(json.loads(saved.metadata["config"]), overrides)
        module, cfg = build_config(values, f"{folder}/config.yaml")
        own = folder / "model.safetensors"  # of a run that trained the towers
        return Classifier(
            folder=folder,
            module=module,
            config=cfg,
            learned={k: np.array(t.read()) for k, t in saved.items()},
            classnames=tuple(json.loads(saved.metadata["classnames"])),
            width=int(saved.metadata["width"]),
            model=model or (str(own) if own.is_file() else cfg.model),
        )

    @property
    def metrics(self) -> dict[str, float]:
        """What the run measured."""
        from jclip.run import read_result

        return read_result(self.folder)["metrics"]

    @property
    def normalised(self) -> bool:
        """Whether the recipe takes features of length one, and not as long as the tower makes them."""
        return getattr(self.module, "NORMALISED", True)

    def scorer(self) -> Callable[[np.ndarray], np.ndarray]:
        """Features (N, width), normalised where the recipe takes them so → scores (N, C)."""
        return self.module.scorer(self.learned, self.config)

    def predict(self, places: Iterable[str | os.PathLike], on_error: OnError = "stop", top: int = 5) -> Predictions:
        """Scores of photos, and of those in folders. Raises `DataError` for a photo that does not decode, unless "skip"."""
        from jclip.data.splits import find_photos

        return self.label(unlabelled(find_photos([str(p) for p in places])), on_error, top)[0]

    def label(self, split: Split, on_error: OnError = "stop", top: int = 5) -> tuple[Predictions, np.ndarray]:
        """Scores of the photos of `split` that decode, and their rows."""
        from jclip.features import extract
        from jclip.heads import unit
        from jclip.results import Predictions

        rows, features = extract(self._source(), split, on_error=on_error, label="photos")
        scores = self.scorer()(unit(features) if self.normalised else features)
        return Predictions(tuple(split.paths[i] for i in rows), self.classnames, scores, top), rows

    def _source(self) -> ModelSource:
        from jclip.source import source_of

        if not self.model:
            raise ConfigError("this run learned from recorded features: name the model that they are of with --model")
        source = source_of(self.config, self.model)
        self.check_width(source.width, self.model)
        return source

    def check_width(self, width: int, place: str) -> None:
        """Raises `CheckpointError` for features of another width than the run learned on; place: what gives them."""
        if width != self.width:
            raise CheckpointError(
                f"{place} gives features of {width} numbers, the run learned on {self.width}: name what it learned from"
            )

    def own_photos(self) -> Split:
        """The test photos of the run's data, with their labels. Raises `ConfigError` where it has none."""
        from jclip.data.splits import read_photos

        if not isinstance(self.config.data, DataConfig) or self.config.data.features:
            raise ConfigError("name the photos to label: this run has none of its own")
        split = read_photos(self.config.data).test
        if not len(split):
            raise ConfigError("name the photos to label, or set data.test: the run's data has no test photos")
        return split


def unlabelled(photos: Sequence[str]) -> Split:
    """Photos of which nobody knows the class."""
    import numpy as np

    from jclip.data.splits import Split

    return Split(tuple(photos), np.full(len(photos), -1, np.int32))


def measure(done: Classifier, out: Path) -> dict[str, float]:
    """Scores the test data of the run's config, photos or recorded features, and writes what `write_evaluation` does.

    Raises `ConfigError` for a run that learned from captions, of other classes than the data, or without test data,
    `CheckpointError` for features of another width.
    """
    from jclip.evaluation import write_evaluation
    from jclip.features import few_shot_features
    from jclip.results import SELECTED_ON_TEST
    from jclip.run import read_result
    from jclip.source import source_of

    cfg = done.config
    if not isinstance(cfg.data, DataConfig):
        raise ConfigError(
            f"{done.folder} learned from captions: measure its model.safetensors with the recipe zero_shot"
        )
    templates = getattr(cfg, "templates", "openai7")
    source = source_of(cfg, done.model)
    if source and not cfg.data.features:
        done.check_width(source.width, done.model)
    data = few_shot_features(cfg.data, source, templates, train=False, normalise=done.normalised)
    if data.classnames != done.classnames:
        raise ConfigError(f"the data has other classes than the run: {len(data.classnames)} and {len(done.classnames)}")
    if not len(data.test):
        raise ConfigError("there is no test data to measure on: set data.test")
    done.check_width(data.test.shape[1], cfg.data.features or done.model)
    scores = done.scorer()(data.test)
    if data.classes > scores.shape[1]:
        raise ConfigError(f"the data has {data.classes} classes, the run tells {scores.shape[1]} apart")
    names = done.classnames or tuple(str(i) for i in range(scores.shape[1]))
    marks = {k: v for k, v in read_result(done.folder)["metrics"].items() if k == SELECTED_ON_TEST}
    return write_evaluation(out, scores, data.test_labels, names, data.test_photos, marks)


def measure_if_cheap(folder: Path) -> list[str]:
    """The same for a run that has just finished, into its own folder, where its features are frozen and known: the
    names of the files. Runs that trained a tower, or have no test data, are left to `eval`."""
    from jclip.evaluation import FILES

    metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    learned, own = folder / "learned.safetensors", folder / "model.safetensors"
    if own.is_file() or not learned.is_file() or "test_top1" not in metrics:
        return []
    measure(Classifier.load(folder), folder)
    return [name for name in FILES if (folder / name).is_file()]

"""Models and runs that tabs look at photos with, each opened once: to be used on the desk's thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jclip.app.desk import Desk
from jclip.data.gallery_store import made_by
from jclip.errors import ConfigError
from jclip.features import concepts
from jclip.features import source as sources
from jclip.paths import is_file
from jclip.report import phrase_finder, predictor
from jclip.report.finished_run import FinishedRun
from jclip.train.run_folder import RESULT, existing_run, is_shipped
from jclip.weights.download import find_weights

MOST = 2  # of a kind that stay open


class OpenedModels:
    """What `desk` has open, and what was opened beside it."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._open: dict[tuple[Any, ...], Any] = {}
        self._names: dict[Path, str] = {}

    def plain(self, name: str = "") -> tuple[sources.ModelSource, str]:
        """A model as commands have it without further options, and its name for them; the desk's own unless named."""
        source, own = self._desk.source(), not name
        if own and (source.dtype, source.preprocess) == ("fp32", source.checkpoint.preprocess):
            return source, self._name_of(source)
        named = name or self._name_of(source)
        return self._kept("model", named, 0, lambda: sources.ModelSource(named, self._desk.family)), named

    def of_concept(self, concept: concepts.Concept) -> sources.ModelSource:
        """The model that a concept was taught with; the desk's own where it is the same."""
        own = self._desk.source()
        if made_by(own.identity, own.preprocess.to_dict()) == concept.made_by:
            return own
        return self._kept("taught", concept.made_by, 0, concept.source)

    def _name_of(self, source: sources.ModelSource) -> str:
        """What commands find these weights by."""
        path = source.checkpoint.path
        if path not in self._names:
            self._names[path] = self._desk.model if find_weights(self._desk.model) == path else str(path)
        return self._names[path]

    def run(self, place: str) -> FinishedRun:
        """A finished run that labels photos, its model loaded at first use and kept. Raises `ConfigError` for one of
        another task."""
        return self._kept("run", place, _changed(place), lambda: _labelling_run(place))

    def finder(self, place: str) -> phrase_finder.RunFinder:
        """A finished run of grounding. Raises `ConfigError` for one of another task."""
        return self._kept("finder", place, _changed(place), lambda: phrase_finder.RunFinder.load(place, attention=True))

    def _kept(self, kind: str, name: str, changed: float, make: Callable[[], Any]) -> Any:
        key = kind, name, changed
        if key not in self._open:
            made = make()
            of_kind = [other for other in self._open if other[0] == kind]
            for old in of_kind[: max(0, len(of_kind) - MOST + 1)]:
                del self._open[old]
            self._open[key] = made
        return self._open[key]


def run_names(desk: Desk) -> list[str]:
    """The runs that are open, as commands name them."""
    return [run.name if is_shipped(run) else str(run) for run in desk.runs]


def _changed(place: str) -> float:
    """When the run finished, so that one that is trained again is read again."""
    result = existing_run(place) / RESULT
    return result.stat().st_mtime if is_file(result) else 0.0


def _labelling_run(place: str) -> FinishedRun:
    done = predictor.Predictor.load(place)
    done.check_predict(sheet=False, sort=False)
    if done.task not in ("classify", "multi_label"):
        raise ConfigError(f"{Path(place)} must be a run that labels photos, got one of the task {done.task}")
    return done.keeping_model()

"""The settings of `jclip challenge` for photos of several things each, and what of them goes together.

A model's settings are those of a shipped config (`config: text_as_image/seed_best`), over them `common`, over these its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jclip.choices import FusionForm, WindowFit, WindowMode
from jclip.config import DataConfig, load_values, project_of, require
from jclip.errors import ConfigError, UnknownName, quoted
from jclip.paths import exists, is_file
from jclip.train.configs import find_config

UNTRAINED = "names alone"  # the row of the model as it is
PARTS = ("captions", "single", "hard", "pairs", "whole_sets", "subsets", "all")  # of captions, that models learn from
OWN = ("config", "learns", "fusion")  # keys of a model that its recipe has not
CHOICES = ("windows", "merge", "ensemble")
Kind = Literal["best", "mean", "weighted", "rank", "columns"]


@dataclass(frozen=True)
class Windows:
    """Which windows of a photo are scored beside the whole, see `jclip.features.window_scores.WindowPlan`."""

    mode: WindowMode = "even"
    scales: tuple[int, ...] = (2, 3, 4)
    shapes: Literal["all", "unit"] = "all"
    resize: WindowFit = "squash"
    batch: int = 0


@dataclass(frozen=True)
class Fusion:
    """How windows join the whole photo's score: whole + kappa · windows, for the global and the local branch; and these
    each other: global + local_weight · local, by default as the model's `merge` says."""

    form: FusionForm = "sim_var"
    theta: float = 0.2
    kappa: float = 1.5
    local_weight: float | None = None


@dataclass(frozen=True)
class Ensemble:
    """How models become one: `best`, the first or the one that is best on validation photos; `columns`, the first with
    `columns` (model: [class, …]) taken from others; `weighted` by `weights` (model: number) or alike."""

    kind: Kind = "mean"
    columns: dict = field(default_factory=dict)
    column_norm: Literal["none", "zscore", "rank"] = "none"
    weights: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    model: str  # a name or weight file, for all models
    classes: str  # a set's name, a file, or a,b,c
    data: DataConfig = field(default_factory=DataConfig)  # val and test: lists or sets of labelled photos; root
    photos: str = ""  # to score: a folder or a list, without labels; by default data.test
    family: str | None = None  # for weights that don't say their activation
    lexicon: str = "extended"  # words for each class in captions: extended, compat, or a YAML
    captions: tuple[str, ...] = ()  # files of captions, labelled anew; none: generated; shapes: the embedded world's
    scenes: int = 4000  # captions of the embedded world
    generate: dict = field(default_factory=dict)  # settings of `jclip captions generate`, its classes left out
    models: dict = field(default_factory=dict)  # name → config, learns, fusion, and settings of the recipe
    common: dict = field(default_factory=dict)  # settings of every model
    score: tuple[str, ...] = ()  # the models that score photos; by default all
    windows: Windows = field(default_factory=Windows)
    fusion: Fusion = field(default_factory=Fusion)
    ensemble: Ensemble = field(default_factory=Ensemble)
    choose: tuple[Literal["windows", "merge", "ensemble"], ...] = CHOICES  # on labelled validation photos, if there are
    first: int = 0  # only so many photos of each part, to try it out; 0: all
    out: str = "results/multi_label"
    seed: int = 1

    def __post_init__(self):
        require(self.first >= 0, "challenge", "first", "at least 0", self.first)
        require(self.scenes >= 1, "challenge", "scenes", "at least 1", self.scenes)
        if not self.models:
            raise ConfigError("models must hold at least one model, such as main: {config: text_as_image/names}")
        for name, own in self.models.items():
            _check_model(name, own)
        for name in (*self.score, *self.ensemble.columns, *self.ensemble.weights):
            if name not in self.models:
                raise UnknownName("model", str(name), self.models)
        _check_ensemble(self.ensemble, self.scored)
        self.order  # noqa: B018 - raises for a circle

    @property
    def scored(self) -> tuple[str, ...]:
        """The models that score photos, in order."""
        return self.score or tuple(self.models)

    def parent(self, name: str) -> str:
        """The model of this challenge that `name` starts from, or empty."""
        start = self.models[name].get("init_from", "")
        return start if start in self.models else ""

    @property
    def order(self) -> tuple[str, ...]:
        """All models that are needed, each behind the one that it starts from. Raises `ConfigError` for a circle."""
        done: list[str] = []

        def add(name: str, below: tuple[str, ...]) -> None:
            if name in below:
                raise ConfigError(f"models must start from earlier ones, got a circle: {' → '.join((*below, name))}")
            if parent := self.parent(name):
                add(parent, (*below, name))
            if name not in done:
                done.append(name)

        for name in self.scored:
            add(name, ())
        return tuple(done)


def _check_model(name: Any, own: Any) -> None:
    """Raises `ConfigError` for a name that files can't have, or settings that are none."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,39}", name) or name.endswith("-whole"):
        raise ConfigError(f"a model's name must be letters, digits, '_' and '-', at most 40, got {quoted(name)}")
    if not isinstance(own, Mapping):
        raise ConfigError(f"models.{name} must be a group of settings, got {quoted(own)}")
    learns = own.get("learns", ["captions"])
    for part in learns if isinstance(learns, list | tuple) else [learns]:
        if part not in PARTS:
            raise UnknownName(f"part of the captions in models.{name}.learns", str(part), PARTS)
    if "captions" in own:
        raise ConfigError(f"models.{name}.captions: models learn from the challenge's captions: name parts in `learns`")
    if not isinstance(own.get("init_from", ""), str):
        raise ConfigError(
            f"models.{name}.init_from must name a model or a run's folder, got {quoted(own['init_from'])}"
        )


def _check_ensemble(own: Ensemble, scored: Sequence[str]) -> None:
    """Raises `ConfigError` for lists of classes and weights that fit no ensemble of these models."""
    for name, classes in own.columns.items():
        if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise ConfigError(f"ensemble.columns.{name} must be a list of class names, got {quoted(classes)}")
    if own.kind == "columns" and not own.columns:
        raise ConfigError("ensemble.kind is columns: name the classes that models decide in ensemble.columns")
    for name, weight in own.weights.items():
        if type(weight) not in (int, float) or not 0 <= weight < 1e6:
            raise ConfigError(f"ensemble.weights.{name} must be a number, at least 0, got {quoted(weight)}")
    if own.weights and not any(own.weights.get(name, 0) for name in scored):
        raise ConfigError("ensemble.weights must not all be 0")
    for name in (*own.columns, *own.weights):
        if name not in scored:
            raise ConfigError(f"ensemble names {name}, which scores no photos: add it to score")


def with_places(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Settings with files relative to their YAML's project found there."""
    base = project_of(Path(place))
    _find(values, ("lexicon", "photos"), base)
    if isinstance(values.get("generate"), dict):
        _find(values["generate"], ("sets",), base)
    models = values.get("models")
    for own in models.values() if isinstance(models, dict) else ():
        if isinstance(own, dict) and str(own.get("init_from")) not in models:
            _find(own, ("init_from",), base)
    return values


def _find(values: dict[str, Any], keys: Sequence[str], base: Path) -> None:
    for key in keys:
        named = values.get(key)
        if isinstance(named, str) and named and not exists(named) and exists(str(base / named)):
            values[key] = str(base / named)


def model_settings(cfg: Config, name: str) -> dict[str, Any]:
    """A model's settings as nested values, `recipe` among them; captions, classes and init_from are left to the steps."""
    own = {key: value for key, value in cfg.models[name].items() if key not in OWN}
    shipped: dict[str, Any] = {"recipe": "text_as_image"}
    if config := cfg.models[name].get("config"):
        shipped = _shipped(str(config), f"models.{name}.config")
    given = {"model": cfg.model, "family": cfg.family} | ({} if "seed" in shipped else {"seed": cfg.seed})
    for key in ("search", "selection", "classes"):
        if key in own or key in cfg.common:
            raise ConfigError(
                f"models.{name}: {key} must be left out: the challenge chooses on scored photos (`choose`)"
            )
    asked = merged(cfg.common, own)
    data = asked.get("data", {})
    if not isinstance(data, Mapping) or {*data} - {"upright"}:
        raise ConfigError(
            f"models.{name}: data may have `upright` alone, got {quoted(data)}: photos are the challenge's"
        )
    values = merged(merged(shipped, given), asked)
    if values["recipe"] != "text_as_image":
        raise ConfigError(
            f"models.{name}: recipe must be text_as_image, which learns from captions, got {values['recipe']}"
        )
    upright = values.get("data", {}).get("upright", True) if isinstance(values.get("data"), dict) else True
    return {**values, "data": {"upright": upright}, "search": False, "selection": "last"}


def _shipped(named: str, place: str) -> dict[str, Any]:
    path = find_config(named)
    if not is_file(str(path)):
        raise ConfigError(f"{place}: no such config: {quoted(named)}")
    values = load_values(path)
    values.pop("log", None)
    values.pop("captions", None)
    values.pop("classes", None)
    values.pop("init_from", None)  # of a run that the challenge makes itself
    return values


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others put over them, groups key by key."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result

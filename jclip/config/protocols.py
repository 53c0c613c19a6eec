"""What functions of the library ask of a recipe's config: any dataclass that has these settings serves.

Settings that only some recipes have stand in protocols of their own, asked for by `isinstance`: a config without them
means the default that the function names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from jclip.config.groups import BoxDataConfig, CaptionConfig, DataConfig, Dtype, OptimConfig


class Dataclass(Protocol):
    """Any config."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class OfRun(Dataclass, Protocol):
    """The config of a finished run, whichever recipe made it."""

    @property
    def data(self) -> DataConfig | CaptionConfig | BoxDataConfig: ...


class WithPosition(Dataclass, Protocol):
    """Where in a prompt the class name stands: "end", "middle" or "front"."""

    @property
    def position(self) -> str: ...


class WithPhotos(Protocol):
    """Photos, or features of photos."""

    @property
    def data(self) -> DataConfig: ...


class WithModel(Protocol):
    """The model, `model` empty where precomputed features need none, and what its photos are."""

    @property
    def data(self) -> DataConfig | CaptionConfig | BoxDataConfig: ...
    @property
    def model(self) -> str: ...
    @property
    def family(self) -> str | None: ...


class WithAugmentation(WithPhotos, Protocol):
    """How photos to learn from are seen: an augmentation by name, drawn by seed."""

    @property
    def augment(self) -> str: ...
    @property
    def seed(self) -> int: ...


class WithViews(WithAugmentation, Protocol):
    """The same, with a number of views."""

    @property
    def views(self) -> int: ...


class WithOptimiser(Protocol):
    """An optimiser and its schedule."""

    @property
    def optim(self) -> OptimConfig: ...


class WithSelection(WithOptimiser, Protocol):
    """Training whose epoch is chosen: "val", "last" or "test"."""

    @property
    def selection(self) -> str: ...


class WithGrid(WithOptimiser, Protocol):
    """Values to search by, empty where the optimiser's own is the only one."""

    @property
    def grid_lr(self) -> Sequence[float]: ...
    @property
    def grid_weight_decay(self) -> Sequence[float]: ...
    @property
    def grid_batch(self) -> Sequence[int]: ...


@runtime_checkable
class WithTemplates(Protocol):
    """The prompts of the classes, a set by name."""

    @property
    def templates(self) -> str: ...


@runtime_checkable
class WithClasses(Protocol):
    """Classes in place of the data's own; empty: the data's."""

    @property
    def classes(self) -> str: ...


@runtime_checkable
class WithSearch(Protocol):
    """Whether something is chosen by validation photos."""

    @property
    def search(self) -> bool: ...


@runtime_checkable
class WithDtype(Protocol):
    """What the model computes its products in."""

    @property
    def dtype(self) -> Dtype: ...


@runtime_checkable
class WithFeatureLayer(Protocol):
    """Which features: "projected" or "penultimate"."""

    @property
    def features(self) -> str: ...

"""The one reader of a run's data: what a recipe learned from and measured on, every later command sees as it did.

A config names its data, the classes that it has in place of the data's own (`classes`), and the templates. No Jittor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jclip.config import WithClasses, WithPhotos, WithSearch, WithTemplates
from jclip.data.class_names import read_class_names
from jclip.data.splits import PhotoData, Split, drawn_photos, noted, read_all_photos, renamed, subset_of
from jclip.errors import ConfigError
from jclip.features.extraction import few_shot_features
from jclip.features.heads import text_for
from jclip.features.precomputed import FeatureSet, read_text
from jclip.features.precomputed import renamed as renamed_features
from jclip.features.source import ModelSource


def run_photos(cfg: WithPhotos, measures_all: bool = False) -> PhotoData | None:
    """`read_run_photos`, with a note on stderr of what a user may not expect; None of precomputed features."""
    return None if cfg.data.features else noted(read_run_photos(cfg, measures_all))


def read_run_photos(cfg: WithPhotos, measures_all: bool = False) -> PhotoData:
    """The photos of a recipe's config, shots drawn and classes named as it says.

    measures_all: of data that has neither a test nor a validation part all photos are measured, but for those that
    `search` chooses by. Raises `DataError` or `ConfigError`.
    """
    whole = read_all_photos(cfg.data)
    photos = drawn_photos(whole, cfg.data)
    if measures_all and not len(whole.val) + len(whole.test):
        photos = _measured_whole(
            photos, subset_of(whole, cfg.data.subset).train, isinstance(cfg, WithSearch) and cfg.search
        )
    if not (isinstance(cfg, WithClasses) and cfg.classes):
        return photos
    names = read_class_names(cfg.classes)
    return renamed(photos, names.names, names.places(photos.classnames))


def _measured_whole(photos: PhotoData, every: Split, keep_val: bool) -> PhotoData:
    """Every photo is a test photo, but for the drawn validation photos where these are kept."""
    val = photos.val if keep_val else Split()
    held = {*val.paths}
    return replace(photos, val=val, test=every.take([row for row, path in enumerate(every.paths) if path not in held]))


def run_features(cfg: WithPhotos, source: ModelSource | None, photos: PhotoData | None, **options: Any) -> FeatureSet:
    """Features of `run_photos`, or precomputed ones among the classes that the config names, with text of these.

    options: those of `few_shot_features`. Raises `DataError` or `ConfigError`.
    """
    classes = cfg.classes if isinstance(cfg, WithClasses) else ""
    templates = cfg.templates if isinstance(cfg, WithTemplates) else "openai7"
    data = replace(cfg.data, text_features="") if classes else cfg.data  # text is of other classes
    found = few_shot_features(data, source, templates, photos=photos, **options)
    return found if photos or not classes else _among_classes(cfg, classes, templates, found, source)


def _among_classes(
    cfg: WithPhotos, classes: str, templates: str, found: FeatureSet, source: ModelSource | None
) -> FeatureSet:
    """Precomputed features among the config's classes, with `data.text_features` or the model's text of these."""
    names = read_class_names(classes)
    places, count = names.places(found.classnames, found.classes), len(names.names)
    if cfg.data.text_features:
        return renamed_features(
            found, names.names, places, read_text(cfg.data.text_features, count, found.test.shape[1])
        )
    if source is None:
        raise ConfigError("classes need text features of their own: set model, or data.text_features to an .npy (C, E)")
    text = text_for(source, names.names, templates)
    return replace(renamed_features(found, names.names, places, text["text"]), scale=float(text["scale"][0]))

"""Photos classified into classes that are named, without training, by one model or several."""

from __future__ import annotations

from collections.abc import Sequence

from jclip.data import loader, splits
from jclip.features import extraction, several_models
from jclip.features import source as sources
from jclip.features.member import Member
from jclip.prompts import scripts
from jclip.report import predictions


def classify(
    members: Sequence[Member],
    photos: Sequence[str],
    classnames: Sequence[str],
    *,
    mix: str = "prob",
    drop_below: float = 0.0,
    drop_below_uniform: float = 0.0,
    unknown: float = 0.0,
    explain: bool = False,
    top: int = 5,
    on_error: loader.OnError = "stop",
    source: sources.ModelSource | None = None,
) -> predictions.Predictions:
    """Scores of each photo and class, by one model or several.

    How is written in `jclip.features.several_models` and `jclip.functional.prompt_scores`. Probabilities are shares of the
    classes; of one model that was trained with the sigmoid loss, each class's own, which sum to nothing in particular.

    unknown: below this probability a photo is of none of the classes. explain: also which prompt decided, and its cosine.
    source: of one member, the model that it names, which is open already and stays so. Raises `ConfigError` for members
    that can't be mixed so, `DataError` for a photo that does not decode, unless on_error is "skip".
    """
    import numpy as np

    together = sources.SideBySide([source], [members[0].views]) if source else sources.SideBySide.of(members)
    several_models.check_alone(together.sources, members)
    for opened, member in zip(together.sources, members, strict=True):
        scripts.warn_unread(classnames, opened.vocabulary_kind)
        scripts.warn_mixed(classnames[0], member.class_prompts(classnames[:1])[0][0], opened.vocabulary_kind)
    split = splits.Split(tuple(photos), np.full(len(photos), -1, np.int32))
    mixture = several_models.build_mixture(
        together, members, classnames, {"photos": split}, mix=mix, drop_below=drop_below,
        drop_below_uniform=drop_below_uniform, on_error=on_error, whole=explain, release=source is None,
    )  # fmt: skip
    rows, features = extraction.extract(together, split, on_error=on_error, label="photos")
    scores, sigmoid = mixture(features), several_models.belongs_by_sigmoid(together.sources, members)
    if sigmoid:
        scores += np.float32(together.sources[0].logit_bias)
    best, seen = scores.argmax(axis=1), tuple(photos[i] for i in rows)
    prompts, cosines = several_models.deciding(mixture, members, classnames, features, best) if explain else ((), ())
    return predictions.Predictions(seen, tuple(classnames), scores, top, unknown, prompts, sigmoid, cosines)

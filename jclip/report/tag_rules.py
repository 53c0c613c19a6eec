"""What makes tags of scores: a threshold, halfway between a photo's scores, or what was fitted on labelled photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jclip.data import class_names
from jclip.errors import ConfigError, notice
from jclip.features import source as sources
from jclip.features import tagging
from jclip.functional import calibration, local_to_global
from jclip.paths import file_sha256, is_file
from jclip.prompts import scripts
from jclip.prompts import templates as template_sets
from jclip.report import calibration_file, tagging_run
from jclip.report import tags as tagss
from jclip.train import keyed_runs
from jclip.train.configs import resolved
from jclip.train.run_folder import LEARNED

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np

CALIBRATION = "calibration.json"  # in the run's folder


@dataclass(frozen=True)
class TagRules:
    """threshold: what a score must exceed, None: halfway between a photo's least and greatest. top: tags of a photo at most.
    none: photos may have no tag, as they always may with one class. per_class_norm: scores are normalised within each photo,
    then each class's over all photos."""

    threshold: float | None = None
    top: int | None = None
    none: bool = False
    per_class_norm: bool = False


def tagger_of(
    source: sources.ModelSource, names: Sequence[str], templates: str = "", background: str = "coco", **how: Any
) -> tagging.Tagger:
    """What scores photos for `names` without training; notes scripts that the model never read.

    templates: empty for those that tagging has. background: a set's name, a file, or names. how: as `tagging.Tagger` has it.
    Raises `ConfigError`.
    """
    beside, chosen = class_names.read_background(background), templates or tagging.TEMPLATES
    scripts.warn_unread(names, source.vocabulary_kind)
    prompts = template_sets.class_prompts(names[:1], template_sets.load_templates(chosen))
    scripts.warn_mixed(names[0], prompts[0][0], source.vocabulary_kind)
    return tagging.Tagger(source, names, chosen, beside, **how)


def tags_of(
    classnames: Sequence[str],
    found: tagging.PhotoScores,
    rules: TagRules,
    fitted: calibration.Calibration | None = None,
) -> tagss.Tags:
    """The scores with what makes a tag of them, or `fitted` thresholds and probabilities. Raises `ConfigError`."""
    import numpy as np

    scores, background, own = found.scores, found.background, len(classnames)
    if rules.per_class_norm:
        if len(scores) < 2 or own + background.shape[1] < 2:
            raise ConfigError(f"--per-class-norm needs two photos and two names, got {len(scores)} and {own}")
        both = local_to_global.normalised_both_ways(np.concatenate([scores, background], axis=1))
        scores, background = both[:, :own], both[:, own:]
    options: dict[str, Any] = {"threshold": rules.threshold, "top": rules.top, "none": rules.none or own == 1}
    options["logits"] = found.logits and not rules.per_class_norm
    if found.sigmoid and not (fitted or rules.per_class_norm):
        options |= {"kind": "probability", "logits": False, "written": scores}
        scores, background = (calibration.sigmoid(x).astype(np.float32) for x in (scores, background))
    if fitted:
        scores, passing = calibrated(scores, fitted)
        options |= {"none": True, "kind": "probability", "passing": passing if rules.threshold is None else None}
        options["limits"] = fitted.probabilities(fitted.thresholds)
    return tagss.Tags(found.photos, tuple(classnames), scores, background, **options)


def tags_of_run(
    classnames: Sequence[str],
    photos: Sequence[str],
    scores: np.ndarray,
    fitted: calibration.Calibration | None = None,
    threshold: float | None = None,
    top: int | None = None,
) -> tagss.Tags:
    """Scores (N, C) of a run of several labels: names above a number, above what was fitted for each, or halfway between a
    photo's least and greatest."""
    options: dict[str, Any] = {"threshold": threshold, "top": top, "none": bool(fitted) or threshold is not None}
    if fitted:
        scores, passing = calibrated(scores, fitted)
        options |= {"kind": "probability", "passing": passing if threshold is None else None}
        options["limits"] = fitted.probabilities(fitted.thresholds)
    return tagss.Tags(tuple(photos), tuple(classnames), scores, **options)


def calibrated(scores: np.ndarray, fitted: calibration.Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, C) and what exceeds the fitted thresholds; classes without a probability, which are reported, are
    none of a photo's tags."""
    import numpy as np

    probabilities, passing = fitted.probabilities(scores), fitted.predicted(scores)
    if len(lost := np.flatnonzero(np.isnan(fitted.a))):
        first = fitted.classnames[lost[0]]
        notice(f"classes without a probability in the calibration, left out: {len(lost)} (first: {first})")
        probabilities[:, lost], passing[:, lost] = 0, False
    return probabilities, passing


def kept_calibration(done: tagging_run.TaggingRun) -> calibration.Calibration | None:
    """What was kept beside the run; None without any, and of other scores, which is reported."""
    file = done.folder / CALIBRATION
    if not is_file(file):
        return None
    kept = calibration_file.read_calibration(file)
    if kept.made_of != made_of(done):
        notice(
            f"{file} is of other settings or another training, and is not used: fit it again with --calibrate-on LIST"
        )
        return None
    if kept.classnames != tuple(done.classnames):
        notice(f"{file} is of other classes, and is not used: fit it again with --calibrate-on LIST")
        return None
    return kept


def made_of(done: tagging_run.TaggingRun) -> str:
    """A key of what the run's scores depend on but the photos."""
    values = resolved(done.module, done.config)
    settings = {key: value for key, value in values.items() if key not in ("data", "model")}
    upright = getattr(done.config.data, "upright", True)
    return keyed_runs.key_of([settings, file_sha256(done.folder / LEARNED), done.source().weights_sha256, upright])

"""Tags of photos by concepts, and by names beside them: each concept has a line of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jclip.errors import ConfigError
from jclip.features.concept_tagging import ConceptTagger, concept_probabilities
from jclip.features.tagging import PhotoScores
from jclip.report.tag_rules import TagRules, tags_of
from jclip.report.tags import Tags


def concept_tags(scorer: ConceptTagger, found: PhotoScores, rules: TagRules) -> Tags:
    """Scores (N, C) as `scorer` gives them, with what makes a tag of them: names as without concepts; a concept is a tag of
    what is above its line, or, of concepts alone, of what has a probability above the threshold of `rules`.

    Raises `ConfigError` as `tags_of` does, and for normalised scores.
    """
    if rules.per_class_norm:
        raise ConfigError("--per-class-norm compares scores of names, and concepts have probabilities: leave it out")
    columns, scores = scorer.columns, np.array(found.scores)
    probabilities, above = concept_probabilities(scores[:, columns])
    if rules.threshold is not None and columns.all():
        above = probabilities > rules.threshold
    has, limits = np.zeros(scores.shape, bool), np.full(len(columns), np.nan)
    limits[columns] = 0.5 if rules.threshold is None or not columns.all() else rules.threshold
    scores[:, columns], has[:, columns] = probabilities, above
    kind = "probability"
    if not columns.all():
        own = replace(found, scores=found.scores[:, ~columns])
        names = tuple(name for name, concept in zip(scorer.classnames, columns.tolist(), strict=True) if not concept)
        tags = tags_of(names, own, replace(rules, top=None))
        limits[~columns] = np.nan if rules.threshold is None else rules.threshold
        scores[:, ~columns], has[:, ~columns], kind = tags.scores, tags.has, tags.kind
    return Tags(
        found.photos, scorer.classnames, scores, None, top=rules.top, none=True, kind=kind, passing=has, limits=limits
    )

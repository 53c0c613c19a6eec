"""Captions made offline: the same bytes each time, labels that the words say, every class often enough. Needs no Jittor."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from jclip.data import shapes
from jclip.data.labelled_captions import to_lines
from jclip.data.lexicons import load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.scene_captions import Draws, template_captions, world_captions
from jclip.errors import ConfigError, DataError
from jclip.prompts.class_sets import class_set

OWN = ("forklift", "pallet", "person")
DIGESTS = {  # SHA-256 of 400 captions from seed 0, so that another machine's bytes are the same
    "coco": "c546f19513f3ebc5",
    "voc2007": "c48196577aeaec2f",
    "nuswide": "c4fe7f88ad267b3b",
    "own": "6aa5386ef5ca795f",
}


def names_of(name: str) -> tuple[str, ...]:
    return OWN if name == "own" else class_set(name)


@pytest.mark.parametrize("name", DIGESTS)
def test_bytes_depend_on_classes_and_seed_alone(name):
    text = to_lines(template_captions(names_of(name), 0, 400))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]
    assert to_lines(template_captions(names_of(name), 1, 400)) != text


@pytest.mark.parametrize("name", DIGESTS)
def test_labels_are_what_the_words_say(name):
    captions = template_captions(names_of(name), 2, 1500)
    assert np.array_equal(Labeller(load_lexicon(names_of(name))).targets(captions.texts), captions.targets)
    assert (captions.targets == 1).any(axis=1).all() and len(captions) == 1500


@pytest.mark.parametrize(("name", "least"), [("coco", 20), ("voc2007", 60), ("nuswide", 20), ("own", 100)])
def test_every_class_is_named_often_and_none_too_often(name, least):
    names = names_of(name)
    captions = template_captions(names, 5, min_per_class=least)
    counts, sizes = captions.counts(), (captions.targets == 1).sum(axis=1)
    assert len(captions) == least * len(names) and counts.min() >= least
    if len(names) > 16:
        assert counts.max() <= 0.26 * len(captions)
    else:
        assert sizes.max() == 2, "a class at least is absent from each"
    assert 0.1 < (sizes == 1).mean() < 0.4 and (sizes > 1).mean() > 0.5


def test_few_captions_for_many_classes():
    captions = template_captions(class_set("coco"), 0, 160)
    assert captions.counts().min() >= 2 and len(captions) == 160
    assert len(template_captions(class_set("coco"), 0, 5)) == 5


@pytest.mark.parametrize(
    "names",
    [
        ("photo", "picture", "dog"),  # words of the sentences themselves
        ("hot dog", "dog", "dog house"),
        ("Boeing_747", "a380", "X-ray", "Café"),
        ("red", "bird", "red bird"),  # adjectives
        ("one", "two"),
        shapes.CLASSNAMES,
        class_set("cifar100"),
    ],
)
def test_any_names_do(names):
    captions = template_captions(names, 1, min_per_class=10)
    assert captions.counts().min() >= 10 and captions.classnames == tuple(names)
    assert np.array_equal(Labeller(load_lexicon(names)).targets(captions.texts) == 1, captions.targets == 1)


def test_names_that_nothing_distinguishes():
    with pytest.raises(ConfigError, match="must name one class"):
        template_captions(("dog", "dogs"), 0, 10)
    with pytest.raises(ConfigError, match="must have a word"):
        template_captions(("dog", "!"), 0, 10)
    with pytest.raises(DataError, match="sentences must separate the class names, got none for: dog"):
        template_captions(("a", "dog"), 0, 10)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_words_of_the_embedded_world_give_its_labels(seed):
    """100 classes such as "red circle", 500 scenes."""
    world = world_captions(seed, 500)
    assert np.array_equal(Labeller(load_lexicon(shapes.CLASSNAMES)).targets(world.texts), world.targets)
    scene = shapes.draw_scene((seed, 499))
    assert world.texts[499] == scene.caption
    assert {shapes.CLASSNAMES[k] for k in np.flatnonzero(world.targets[499] == 1)} == {*scene.labels}
    assert (world.targets == 1).sum(axis=1).min() >= 1 and (world.targets == 1).sum(axis=1).max() == 4
    seen = world_captions(seed, 60, shapes.SEEN_PAIRS, things=(2, 4))
    unseen = [shapes.CLASSNAMES.index(" ".join(pair)) for pair in shapes.UNSEEN_PAIRS]
    assert not seen.targets[:, unseen].any() and seen.counts().sum() > 120


def test_draws():
    draws = Draws(4)
    drawn = [draws.weighted([0, 1, 3]) for _ in range(4000)]
    assert 0 not in drawn and 0.7 < np.mean(np.array(drawn) == 2) < 0.8
    assert sorted(draws.sample("abcd", 4)) == [*"abcd"] and len({*draws.sample(range(9), 3)}) == 3
    assert {draws.below(3) for _ in range(100)} == {0, 1, 2}
    assert [Draws(7).below(1000) for _ in range(2)] == [Draws(7).below(1000)] * 2

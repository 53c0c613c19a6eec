"""Sentences of class names by templates: how many of each, and true labels for all of them. Needs no Jittor."""

from __future__ import annotations

from collections import Counter
from math import comb

import numpy as np
import pytest

from jclip.data.lexicons import load_lexicon
from jclip.data.training_sentences import (
    hard_sentences,
    pair_sentences,
    read_sets,
    set_sentences,
    single_sentences,
    subset_sentences,
)
from jclip.errors import DataError, UnknownName

COCO = load_lexicon("coco")
NUMBER = {name: label for label, name in enumerate(COCO.classnames)}
PERSON, DOG, CAT, TOASTER, BENCH = (NUMBER[name] for name in ("person", "dog", "cat", "toaster", "bench"))


def named(captions, row) -> set[str]:
    return {captions.classnames[label] for label in np.flatnonzero(captions.targets[row] == 1)}


def test_single_sentences():
    made = single_sentences(COCO)
    assert len(made) == 89 * 80 and made.counts().min() >= 89
    own = made.texts[89 * DOG : 89 * (DOG + 1)]
    assert own[:9] == ("a photo of a dog.",) * 9 and len({*own}) == 80 and "itap of my dog." in own
    assert made.texts[89 * NUMBER["airplane"]] == "a photo of a aeroplane." and named(made, 89 * 4) == {"airplane"}
    assert all(made.targets[row, row // 89] == 1 for row in range(len(made)))
    orange = NUMBER["orange"]
    assert (made.targets[89 * orange : 89 * (orange + 1), orange] == 1).all(), (
        "guards are for sentences of unknown origin"
    )


def test_a_templates_own_words_are_labels_too():
    nus = load_lexicon("nuswide")
    made = single_sentences(nus, [nus.classnames.index("dog")])
    assert named(made, made.texts.index("a tattoo of a dog.")) == {"dog", "tattoo"}
    assert named(made, made.texts.index("a toy dog.")) == {"dog", "toy"}
    assert named(made, 0) == {"dog"}


def test_pairs():
    made = pair_sentences(COCO)
    assert len(made) == 9 * comb(80, 2) == 28440
    assert Counter(made.texts)["a photo of a person and a dog."] == 9
    assert named(made, made.texts.index("a photo of a tie and a hot dog.")) == {"tie", "hot dog"}
    assert (made.targets.sum(axis=1) == 2).all() and (made.counts() == 9 * 79).all()


def test_whole_sets_keep_repeats():
    made = set_sentences(COCO, [(DOG, CAT), (PERSON,), (DOG, CAT), ()])
    assert made.texts == ("a photo of a dog and a cat.", "a photo of a person.", "a photo of a dog and a cat.")
    assert named(made, 0) == {"dog", "cat"} and named(made, 1) == {"person"}


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_of_sets(seed):
    large = (PERSON, DOG, CAT, BENCH, TOASTER)
    sets = [large, (DOG, CAT), (CAT, DOG), (PERSON,), (PERSON, DOG, BENCH), large[::-1]]
    made = subset_sentences(COCO, sets, seed)
    assert len(made) == 5 + 1 + 1, "five draws, and sets of two and three once, each distinct set once"
    sizes = (made.targets == 1).sum(axis=1).tolist()
    assert sizes[5:] == [2, 3] and all(3 <= size <= 5 for size in sizes[:5])
    for row, text in enumerate(made.texts):
        assert named(made, row) == {*text.removeprefix("a photo of a ").removesuffix(".").split(" and a ")}
    assert made.texts == subset_sentences(COCO, sets, seed).texts != subset_sentences(COCO, sets, seed + 2).texts


def test_sizes_of_parts_reach_the_whole_set():
    sets = [(a, b, c, d) for a in range(4) for b in range(4, 8) for c in range(8, 12) for d in range(12, 16)]
    sizes = Counter((subset_sentences(COCO, sets, 0).targets == 1).sum(axis=1).tolist())
    assert {*sizes} == {3, 4} and 0.4 < sizes[3] / sizes.total() < 0.6


def test_hard_sentences():
    hard, sets = [TOASTER, BENCH, PERSON], [(DOG, BENCH, TOASTER), (DOG, CAT), (BENCH, PERSON)]
    made = hard_sentences(COCO, hard, sets, PERSON)
    assert len(made) == 3 * 89 + 2 * 89 + 2
    assert made.texts[-2:] == ("a photo of a bench and a toaster.", "a photo of a bench and a person.")
    pairs = range(3 * 89, 5 * 89)
    assert (
        made.texts[pairs[0]] == "a photo of a person and a toaster." and Counter(made.texts)[made.texts[pairs[0]]] == 10
    )
    assert all(named(made, row) == {"person", "toaster" if row < 4 * 89 else "bench"} for row in pairs)
    outside = [label for label in range(80) if label not in hard]
    assert (made.targets[:, outside] == -1).all() and (made.targets[:, hard] >= 0).all()
    assert len(hard_sentences(COCO, [TOASTER])) == 89 and {*made.sources} == {"hard"}


def test_sets_of_a_file(tmp_path):
    path = tmp_path / "sets.txt"
    path.write_text('dog, puppy, Bench\n\n{"names": ["cat"]}\ndog,bench\n', encoding="utf-8")
    assert read_sets(path, COCO) == [(DOG, BENCH), (CAT,), (DOG, BENCH)]
    path.write_text("dog\nunicorn, dog\n", encoding="utf-8")
    with pytest.raises(UnknownName, match="line 2 'unicorn'"):
        read_sets(path, COCO)
    path.write_text('{"names": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1: must be a set such as"):
        read_sets(path, COCO)

"""Shots drawn by seed from recorded pools, views as rows of their own, features as long as the tower makes them."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.config import DataConfig
from jclip.errors import ConfigError
from jclip.features.extraction import TrainingRows, few_shot_features
from jclip.features.precomputed import FeatureSet, drawn
from jclip.features.source import ModelSource


def pool(per_class: tuple[int, ...]) -> FeatureSet:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(per_class)), per_class))
    x = rng.standard_normal((len(labels), 5)).astype(np.float32)
    nothing, none = np.zeros((0, 5), np.float32), np.zeros(0, np.int64)
    return FeatureSet(tuple("abcd"), x, labels, nothing, none, nothing, none, None, 100.0)


@pytest.mark.parametrize("shots", [1, 3, 4])
def test_so_many_of_each_class_in_the_rows_order(shots):
    whole = pool((4, 6, 5, 4))
    chosen = drawn(whole, shots, 0, seed=1)
    assert np.bincount(chosen.train_labels).tolist() == [shots] * 4
    rows = [int(np.flatnonzero((whole.train == x).all(axis=1))[0]) for x in chosen.train]
    assert rows == sorted(rows) and np.array_equal(whole.train_labels[rows], chosen.train_labels)


def test_seeds_draw_other_rows_and_the_same_again():
    whole = pool((9, 9, 9, 9))
    first, again, other = (drawn(whole, 2, 0, seed).train for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_class_with_fewer_keeps_all_it_has():
    assert np.bincount(drawn(pool((2, 6, 5, 4)), 4, 0, 1).train_labels).tolist() == [2, 4, 4, 4]


def test_every_row_is_drawn_now_and_then():
    whole = pool((6, 6, 6, 6))
    counts = np.zeros(24)
    for seed in range(60):
        counts += np.isin(whole.train[:, 0], drawn(whole, 2, 0, seed).train[:, 0])
    assert counts.min() > 5 and counts.max() < 40


def test_validation_is_drawn_too_when_asked():
    whole = pool((6, 6, 6, 6))
    whole = FeatureSet(
        whole.classnames, whole.train, whole.train_labels, whole.train, whole.train_labels, whole.test, whole.test_labels,
        None, 100.0,
    )  # fmt: skip
    assert np.bincount(drawn(whole, 2, 3, 1).val_labels).tolist() == [3] * 4
    assert len(drawn(whole, 2, 0, 1).val) == 24


def test_a_pool_smaller_than_the_shots_is_reported():
    with pytest.raises(ConfigError, match=r"data.shots must be in \[1, 4\], as many as data.pool has, got 8"):
        DataConfig(features="x", shots=8, pool=4)


def test_views_are_rows_or_a_mean(small_models, photo_folder, close):
    source = ModelSource(small_models["vit"])
    data = DataConfig(root=str(photo_folder), shots=2, val_shots=1)
    views = {"views": 3, "augment": "tip_adapter", "seed": 1}
    mean = few_shot_features(data, source, "simple", TrainingRows(**views), normalise=False)
    each = few_shot_features(data, source, "simple", TrainingRows(**views, each_view=True), normalise=False)
    assert len(each.train) == 3 * len(mean.train)
    assert np.array_equal(each.train_labels, np.tile(mean.train_labels, 3))
    stacked = each.train.reshape(3, *mean.train.shape)
    close(stacked.mean(axis=0), mean.train, "kernel", relative=True)
    assert not np.array_equal(stacked[0], stacked[1])
    unit = few_shot_features(data, source, "simple")
    raw = few_shot_features(data, source, "simple", normalise=False)
    lengths = np.linalg.norm(raw.test, axis=1, keepdims=True)
    close(raw.test / lengths, unit.test, "kernel")
    assert (lengths > 1.1).any() or (lengths < 0.9).any()

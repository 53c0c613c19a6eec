"""Groups of features: known groups are found, whatever their order; the plane is that of the singular vectors."""

from __future__ import annotations

import numpy as np

from jclip.functional.clusters import far_apart, plane_of, spherical_means
from tests.tolerances import TOLERANCES

NEAR = TOLERANCES["features_normalised"]


def grouped(sizes, width=11, seed=0):
    rng = np.random.default_rng(seed)
    middles = np.linalg.qr(rng.normal(size=(width, len(sizes))))[0].T
    of = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = middles[of] + 0.1 * rng.normal(size=(len(of), width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), of


def test_known_groups_come_largest_first():
    features, true = grouped((7, 31, 16))
    centres, of = spherical_means(features, 3)
    assert np.bincount(of).tolist() == [31, 16, 7]
    assert [{*true[of == k].tolist()} for k in range(3)] == [{1}, {2}, {0}]
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=NEAR)
    for k in range(3):
        mean = features[of == k].mean(axis=0)
        np.testing.assert_allclose(centres[k], mean / np.linalg.norm(mean), atol=NEAR)


def test_copies_are_one_group():
    features = np.repeat(np.eye(4, dtype=np.float32)[:2], [3, 5], axis=0)
    assert far_apart(features, 6) == [3, 0]
    centres, of = spherical_means(features, 6)
    assert len(centres) == 2 and of.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert len(spherical_means(features[:1], 6)[0]) == 1


def test_the_plane_is_that_of_the_largest_variance():
    features, _ = grouped((9, 12, 5), seed=2)
    places = plane_of(features)
    _, sizes, directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    for axis in range(2):
        largest = np.abs(directions[axis]).argmax()
        wanted = (features - features.mean(axis=0)) @ (directions[axis] * np.sign(directions[axis, largest]))
        assert abs(places[:, axis] - wanted).max() < NEAR
        assert abs(np.linalg.norm(places[:, axis]) - sizes[axis]) < NEAR
    assert plane_of(features[:2]).tolist() == [[0, 0], [0, 0]]

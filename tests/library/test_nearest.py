"""Exact search against the whole product in float64: any number of queries, blocks, both types, filters, equal scores."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from jclip.functional import nearest as module
from jclip.functional import products
from jclip.functional.nearest import NotFinite, nearest, widened
from jclip.runtime import jt
from tests.made_galleries import unit_rows


def sorted_product(features, queries, k, rows=None):
    """Rows and scores by sorting everything, the lower row first among equals."""
    rows = np.arange(len(features)) if rows is None else rows
    scores = np.asarray(queries, "f8") @ np.asarray(features, "f8")[rows].T
    order = np.lexsort((np.broadcast_to(rows, scores.shape), -scores), axis=1)[:, :k]
    return rows[order], np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, 31])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
@pytest.mark.parametrize("few_at_once", [False, True])
def test_it_is_the_sorted_product(count, dtype, few_at_once, monkeypatch, close):
    if few_at_once:
        monkeypatch.setattr(module, "SCORES_AT_ONCE", 300 * count)
        monkeypatch.setattr(products, "TILE", 50 * 23)
    features, queries = unit_rows(1501, 1).astype(dtype), unit_rows(count, 2)
    parts = np.split(features, [17, 900])
    only = np.flatnonzero(np.random.default_rng(3).random(1501) < 0.4)
    for rows in (None, only):
        wanted, scores = sorted_product(features, queries, 10, rows)
        got, found = nearest(parts, queries, 10, rows)
        np.testing.assert_array_equal(got, wanted)
        close(found, scores, "kernel", "cosines of exact search")


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("library", [True, False])
def test_products_lie_where_they_are_asked_for(count, library, monkeypatch):
    """Also by NumPy, and of rows that do not lie one behind the other."""
    if not library:
        monkeypatch.setattr(products, "_sgemm", lambda: None)
    left, right = np.eye(count, 7, dtype="f4"), np.arange(91, dtype="f4").reshape(7, 13)
    for rows in (right.T, right.T.copy()):
        room = np.full((count, 13), np.nan, "f4")
        products.times_rows(left, rows, room)
        np.testing.assert_array_equal(room, [*right[:count], *np.zeros((max(0, count - 7), 13))])


@pytest.mark.parametrize("count", [1, 4, 9])
def test_of_equal_photos_the_lower_row_comes_first(count):
    features = np.repeat(unit_rows(6, 4), 40, axis=0)[np.random.default_rng(5).permutation(240)]
    got, scores = nearest([features], features[:count], 12)
    same = [np.flatnonzero((features == features[q]).all(axis=1))[:12] for q in range(count)]
    np.testing.assert_array_equal(got, same)
    assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_no_number_is_named(count, value):
    features = unit_rows(700, 6)
    features[555, 3] = value
    with pytest.raises(NotFinite, match="row 555 "):
        nearest([features[:400], features[400:]], unit_rows(count, 7), 5)


@pytest.mark.parametrize("where", ["plain", "in a thread that takes subnormal numbers for zero"])
def test_half_precision_is_widened_exactly(where):
    if where != "plain":
        jt.array(np.ones(1, np.float32)).sync()
        assert np.float32(1e-40) * np.float32(1) == 0
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for some in (finite, every):
        exact = np.array([struct.unpack("<e", number.tobytes())[0] for number in some])
        np.testing.assert_array_equal(widened(some), exact)
    assert np.signbit(widened(np.array([-0.0], np.float16)))[0]

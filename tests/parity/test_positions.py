"""Resampled position tables against torch's interpolation, both dialects."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from jclip.functional.positions import bicubic_matrix, resample_positions  # noqa: E402

GRIDS = [(7, 12), (16, 24), (16, 27), (24, 16), (14, 9), (7, 7), (2, 5), (5, 1)]


@pytest.mark.parametrize("size, new", GRIDS)
@pytest.mark.parametrize("antialias", [True, False])
def test_equals_torch(size, new, antialias, close):
    table = np.random.default_rng(size * new).standard_normal((1 + size * (size + 1), 6)).astype(np.float32)
    ours = resample_positions(table, (size, size + 1), (new, new + 2), antialias)
    cells = torch.tensor(table[1:]).reshape(1, size, size + 1, 6).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(cells, (new, new + 2), mode="bicubic", antialias=antialias)
    wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 6)
    assert ours.dtype == np.float32 and np.array_equal(ours[0], table[0])
    close(ours[1:], wanted, "resampling", f"positions, antialias {antialias}")


def test_the_same_grid_is_left_alone():
    table = np.random.default_rng(0).standard_normal((1 + 12, 3)).astype(np.float32)
    assert resample_positions(table, (3, 4), (3, 4)) is table


def test_rows_of_the_matrix_sum_to_one(close):
    for size, new in GRIDS:
        for antialias in (True, False):
            close(bicubic_matrix(size, new, antialias).sum(axis=1), np.ones(new), "closed_form")


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="10 rows does not belong to a grid of 3 x 4"):
        resample_positions(np.zeros((10, 3), np.float32), (3, 4), (5, 5))

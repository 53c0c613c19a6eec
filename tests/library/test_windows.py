"""Windows: the published arithmetic against padding and slicing, even ones by their rule, and fusion in one piece or parts."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.errors import ConfigError, DataError
from jclip.functional import window_fusion
from jclip.functional.window_fusion import (
    FORMS,
    FusionRule,
    WindowFusion,
    branch_scores,
    fused_windows,
    merged_scores,
    model_scores,
    weighted_windows,
)
from jclip.functional.windows import cut, map_windows, reflected, sliding_windows

SIZES = [(375, 500), (480, 640), (333, 500), (427, 640), (500, 375), (600, 400), (224, 224)]
TABLE = [(1, 1), (1, 2), (2, 1), (1, 1.5), (1.5, 1), (2, 3), (3, 2)]


@pytest.mark.parametrize("size", SIZES)
def test_the_published_windows_number_304(size):
    assert len(sliding_windows(*size, "seed")) == 304
    assert len(sliding_windows(*size, "seed", shapes="unit")) == 116
    assert len(sliding_windows(*size, "seed", scales=(2, 3, 4, 5))) == 570


def published(image: np.ndarray, b: int, tall: float, wide: float) -> list[np.ndarray]:
    """The windows of one shape, cut out of the padded or the plain image, written from the formulas."""
    H, W = image.shape[:2]
    side = {1: lambda n: n // b, 1.5: lambda n: 3 * n // (2 * b), 2: lambda n: 2 * n // b, 3: lambda n: 3 * n // b}
    counts = {(1, 1): (2 * b, 2 * b), (1, 2): (2 * b, b), (2, 1): (b, 2 * b), (1, 1.5): (2 * b, 4 * b // 3),
              (1.5, 1): (4 * b // 3, 2 * b), (2, 3): (b, 2 * b // 3), (3, 2): (2 * b // 3, b)}  # fmt: skip
    rows, columns = counts[tall, wide]
    bh, bw = side[tall](H), side[wide](W)
    sh, sw = (b - 1) * bh // (rows - 1) + 1, (b - 1) * bw // (columns - 1) + 1
    if (tall, wide) == (1, 1):
        down, right = (s * (n - 1) - (b - 1) * block - whole % b for s, n, block, whole in
                       ((sh, rows, bh, H), (sw, columns, bw, W)))  # fmt: skip
        image = np.pad(image, ((0, max(down, 0)), (0, max(right, 0))), mode="reflect")
        image = image[: H + down, : W + right]
    cuts = [image[i * sh : i * sh + bh, j * sw : j * sw + bw] for i in range(rows) for j in range(columns)]
    return [piece for piece in cuts if piece.size]


@pytest.mark.parametrize("size", [(97, 131), (120, 96), (143, 64)])
def test_published_windows_hold_the_published_pixels(size):
    image = np.arange(size[0] * size[1]).reshape(size)
    wanted = [
        piece
        for b in (2, 3, 4)
        for tall, wide in TABLE[: 5 if b < 3 else 7]
        for piece in published(image, b, tall, wide)
    ]
    found = sliding_windows(*size, "seed", least=1)
    assert len(found) == len(wanted)
    for box, piece in zip(found.boxes, wanted, strict=True):
        assert np.array_equal(cut(image, box), piece)


def test_published_padding_can_crop():
    """Of some heights the last window ends before the last row, of others beyond it."""
    ends = {h: sliding_windows(h, 240, "seed", (3,), "unit").boxes[:, 3].max() - h for h in range(200, 320)}
    assert min(ends.values()) < 0 < max(ends.values())


def test_reflection_does_not_repeat_the_border():
    assert reflected(2, 9, 4).tolist() == [2, 3, 2, 1, 0, 1, 2] and reflected(0, 3, 1).tolist() == [0, 0, 0]
    found = cut(np.arange(12).reshape(3, 4), (2, 1, 6, 5))
    assert found.tolist() == [[6, 7, 6, 5], [10, 11, 10, 9], [6, 7, 6, 5], [2, 3, 2, 1]]


@pytest.mark.parametrize("size", [*SIZES, (97, 131), (33, 40)])
def test_even_windows_lie_inside_once_and_reach_all_borders(size):
    found = sliding_windows(*size)
    left, top, right, bottom = found.boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= size[1]).all() and (bottom <= size[0]).all()
    assert len({*map(tuple, found.boxes.tolist())}) == len(found)
    for b in sorted({*found.scales.tolist()}):
        own = found.boxes[found.scales == b]
        assert own[:, :2].min(axis=0).tolist() == [0, 0] and own[:, 2:].max(axis=0).tolist() == [size[1], size[0]]
    assert (np.minimum(right - left, bottom - top) >= 8).all()


def test_even_starts_by_hand():
    """Side 64 at scale 2: four starts round(32 k / 3); 128 pixels: round(64 k / 3)."""
    assert sorted({*sliding_windows(64, 64, scales=(2,), shapes="unit").boxes[:, 0].tolist()}) == [0, 11, 21, 32]
    found = sliding_windows(128, 128, scales=(2,), shapes="unit")
    assert len(found) == 16 and sorted({*found.boxes[:, 1].tolist()}) == [0, 21, 43, 64]
    wide = sliding_windows(60, 90, scales=(3,)).boxes
    wide = wide[(wide[:, 2] - wide[:, 0] == 60) & (wide[:, 3] - wide[:, 1] == 20)]  # 1 x 2: ceil(30 / 30) + 1 starts
    assert sorted({*wide[:, 0].tolist()}) == [0, 30] and sorted({*wide[:, 1].tolist()}) == [0, 8, 16, 24, 32, 40]


def test_small_photos():
    """Scales that a photo is too small for are recorded, others kept; a tiny photo has no window."""
    assert sliding_windows(24, 500).skipped == (4,) and {*sliding_windows(24, 500).scales.tolist()} == {2, 3}
    for mode in ("even", "seed"):
        none = sliding_windows(15, 15, mode)
        assert len(none) == 0 and none.boxes.shape == (0, 4) and none.skipped == (2, 3, 4)
    with pytest.raises(ConfigError, match="must have pixels, got 0 x 9"):
        sliding_windows(0, 9)


def test_windows_of_a_map():
    """A map of 14 x 21 cells, twice that of one crop: unit windows of 7 cells by rows, half the width by columns."""
    found = map_windows(14, 21, 2, "unit")
    assert {(b - t, r - left) for left, t, r, b in found.boxes.tolist()} == {(7, 10)}
    assert sorted({*found.boxes[:, 1].tolist()}) == [0, 2, 5, 7] and len(found) == 16
    assert len(map_windows(14, 14, 2)) > 16 and (map_windows(2, 2, 2, "unit").boxes[:, 2:] <= 2).all()


@pytest.mark.parametrize("given, message", [
    ({"mode": "dense"}, "one of even, seed, got 'dense'"), ({"scales": ()}, r"got \[\]"), ({"scales": (2, 2)}, r"\[2, 2\]"),
    ({"scales": (1,)}, "integers in"), ({"shapes": "some"}, "one of all, unit, got 'some'"),
])  # fmt: skip
def test_settings_that_make_no_windows(given, message):
    with pytest.raises(ConfigError, match=message):
        sliding_windows(224, 224, **given)


BSC, A = np.array([[0.1, 0.5, 0.2], [0.9, 0.3, 0.15]]), np.array([0.3, 0.2])


def test_fusion_by_hand(close):
    close(fused_windows(BSC, A, FusionRule("sim_var")), [1.324944, 0.697602, 0.279041], "loss")
    close(fused_windows(BSC, A, FusionRule("var_sim_var")), [1.533623, 0.727831, 0.291132], "loss")
    assert fused_windows(BSC, A, FusionRule("plain")).tolist() == [0.9, 0.5, 0.15]  # .2 does not exceed theta
    assert fused_windows(BSC, A, FusionRule("plain", theta=0.5)).tolist() == [0.9, 0.3, 0.15]


def whole_array(scores, captions, rule: FusionRule) -> np.ndarray:
    """The same of all windows at once, another way: `statistics` and loops."""
    from statistics import variance

    D = np.array([[(1 + a) * s for s in row] for row, a in zip(scores.tolist(), captions.tolist(), strict=True)])
    D = np.array([row * (1 + variance(row.tolist())) for row in D])
    if rule.form == "var_sim_var":
        D = np.array([row * (1 + variance(own)) for row, own in zip(D, scores.tolist(), strict=True)])
    if rule.form not in ("sim_var", "var_sim_var"):
        D = scores
    columns = D.T.tolist()
    return np.array([
        {"mean": lambda x: np.mean(x), "max": max, "logsumexp": lambda x: np.log(np.mean(np.exp(x))),
         "topk_mean": lambda x: np.mean(sorted(x)[-rule.k :])}.get(
            rule.form, lambda x: max(x) if max(x) > rule.theta else min(x))(x) for x in columns
    ])  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_parts_equal_the_whole(form, seed, close):
    """Windows of five photos, mixed and in parts; one photo has none, one fewer than k."""
    rng = np.random.default_rng(seed)
    photo = np.r_[0, 0, rng.choice([1, 3, 4], 38)]
    scores, captions = rng.normal(0.2, 0.3, (40, 7)), rng.uniform(0, 0.5, 40)
    rule = FusionRule(form, theta=0.9, k=3)
    fusion = WindowFusion(5, 7, rule)
    order = rng.permutation(40)
    for part in np.split(order, [1, 6, 6, 29]):
        fusion.update(photo[part], scores[part], captions[part])
    values = fusion.values()
    assert np.isnan(values[2]).all() and fusion.counts.tolist() == np.bincount(photo, minlength=5).tolist()
    for n in (0, 1, 3, 4):
        close(values[n], whole_array(scores[photo == n], captions[photo == n], rule), "closed_form")
        close(values[n], fused_windows(scores[photo == n], captions[photo == n], rule), "closed_form")


def test_float32_scores_and_one_class(close):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9, 5)).astype(np.float32)
    close(fused_windows(scores, None, FusionRule("mean")), scores.astype(np.float64).mean(axis=0), "closed_form")
    assert weighted_windows(np.ones((2, 1)), None, "sim_var").tolist() == [[1.0], [1.0]]


def test_branches_by_hand():
    whole, windows = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [np.nan, np.nan]])
    assert branch_scores(whole, windows).tolist() == [[4.0, 2.0], [7.5, 10.0]]
    assert model_scores(whole, whole, 1.5).tolist() == [[2.5, 5.0], [7.5, 10.0]]
    assert merged_scores(whole, 2 * whole, 0.25).tolist() == [[1.75, 3.5], [5.25, 7.0]]


def test_fusion_refuses(capsys, monkeypatch):
    with pytest.raises(ConfigError, match="one of plain, .*got 'median'"):
        FusionRule("median")
    with pytest.raises(ConfigError, match="at least one window, got k 0"):
        FusionRule("topk_mean", k=0)
    with pytest.raises(DataError, match="must be finite, got 1 that are not"):
        fused_windows(np.array([[1.0, np.nan]]), None, FusionRule("max"))
    monkeypatch.setattr(window_fusion, "_reported", set())
    fused_windows(BSC), fused_windows(BSC)
    assert capsys.readouterr().err.count("without captions") == 1

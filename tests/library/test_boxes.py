"""Boxes against torchvision's operators and torch's gradients, their metrics against hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest

from jclip.errors import DataError
from jclip.functional import box_metrics, boxes


def drawn(count, seed, side=1.0):
    rng = np.random.default_rng(seed)
    centres, sizes = rng.random((count, 2)), 0.05 + 0.5 * rng.random((count, 2))
    return np.concatenate([centres, sizes], axis=1) * side


@pytest.mark.parametrize("seed", [0, 1])
def test_forms_lead_back_and_equal_torchvisions(seed, close):
    ops = pytest.importorskip("torchvision.ops")
    import torch

    centres = drawn(37, seed, 100)
    corners = boxes.centres_to_corners(centres)
    close(corners, ops.box_convert(torch.tensor(centres), "cxcywh", "xyxy").numpy(), "closed_form", "corners")
    xywh = boxes.corners_to_xywh(corners)
    close(xywh, ops.box_convert(torch.tensor(corners), "xyxy", "xywh").numpy(), "closed_form", "xywh")
    close(boxes.corners_to_centres(corners), centres, "closed_form", "centres")
    close(boxes.xywh_to_corners(xywh), corners, "closed_form", "corners of xywh")


@pytest.mark.parametrize("seed", [0, 1])
def test_overlaps_equal_torchvisions(seed, close):
    ops = pytest.importorskip("torchvision.ops")
    import torch

    a, b = (boxes.centres_to_corners(drawn(n, seed + n)) for n in (23, 31))
    table = ops.box_iou(torch.tensor(a), torch.tensor(b)).numpy()
    close(boxes.iou_table(a, b), table, "closed_form", "table of IoU")
    close(boxes.iou(a, b[:23]), table[np.arange(23), np.arange(23)], "closed_form", "paired IoU")
    wanted = torch.diagonal(ops.generalized_box_iou(torch.tensor(a), torch.tensor(b[:23]))).numpy()
    close(boxes.giou(a, b[:23]), wanted, "closed_form", "paired GIoU")


def test_boxes_without_area_overlap_nothing():
    point = np.array([[3.0, 3, 3, 3]])
    assert boxes.iou(point, point) == 0 and boxes.giou(point, point) == 0
    assert boxes.iou(point, [[0.0, 0, 9, 9]]) == 0


GOLDEN = [((0.5, 0.5, 0.4, 0.4), (0.6, 0.5, 0.4, 0.4), 0.5), ((0.2, 0.2, 0.2, 0.2), (0.8, 0.8, 0.2, 0.2), 3.075)]


@pytest.mark.parametrize(("predicted", "wanted", "loss"), GOLDEN)
def test_the_loss_of_worked_boxes(predicted, wanted, loss, close):
    from jclip.runtime import jt

    arrays = [jt.array(np.array([box], np.float32)) for box in (predicted, wanted)]
    close(boxes.box_loss(*arrays).numpy(), [loss], "loss", "box loss")


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_and_its_gradient_equal_torch(seed, close):
    ops = pytest.importorskip("torchvision.ops")
    import torch

    from jclip.runtime import jt

    p, t = (drawn(19, seed + n).astype(np.float32) for n in (5, 6))
    ours, theirs = jt.array(p), torch.tensor(p, requires_grad=True)
    got = boxes.box_loss(ours, jt.array(t))
    corners = [ops.box_convert(x, "cxcywh", "xyxy") for x in (theirs, torch.tensor(t))]
    wanted = (theirs - torch.tensor(t)).abs().sum(1) + 1 - torch.diagonal(ops.generalized_box_iou(*corners))
    wanted.mean().backward()
    close(got.numpy(), [wanted.mean().item()], "loss", "box loss against torch")
    close(jt.grad(got, ours).numpy(), theirs.grad, "loss", "box loss: gradient")


def test_an_overlap_of_exactly_the_threshold_is_found():
    report = box_metrics.box_report(np.array([[0.0, 0, 2, 1]]), np.array([[0.0, 0, 1, 1]]))
    assert (report["acc@0.5"], report["acc@0.75"], report["acc@0.25"]) == (1, 0, 1)


def test_means_of_worked_boxes(close):
    wanted = np.array([[0.0, 0, 10, 10], [0, 0, 2, 2]])
    predicted = np.array([[0.0, 0, 10, 5], [1, 0, 3, 2]])  # IoU 50/100 and 2/6; GIoU 1/2 and 1/3 of the same hulls
    report = box_metrics.box_report(predicted, wanted)
    close(report["mean_iou"], (1 / 2 + 1 / 3) / 2, "closed_form", "mean IoU")
    close(report["cumulative_iou"], 52 / 106, "closed_form", "cumulative IoU")
    apart = box_metrics.box_report(np.array([[0.0, 0, 1, 1]]), np.array([[0.0, 0, 1, 2.5]]), "giou", (0.4, 0.41))
    assert (apart["acc@0.4"], apart["acc@0.41"]) == (1, 0)


def test_a_wide_hull_counts_against_a_box_by_giou_alone():
    predicted, wanted = np.array([[0.0, 0, 4, 4]]), np.array([[1.0, 1, 5, 3.5]])
    assert boxes.iou(predicted, wanted) > 0.4 > boxes.giou(predicted, wanted)
    pair = [box_metrics.box_report(predicted, wanted, kind, (0.4,))["acc@0.4"] for kind in ("iou", "giou")]
    assert pair == [1, 0]


def test_the_interval_is_wilsons(close):
    close(box_metrics.wilson_interval(8, 10), (0.490162, 0.943318), "rounding", "Wilson interval")
    low, high = box_metrics.wilson_interval(0, 5)
    close((low, high), (0, 0.434482), "rounding", "Wilson interval of none")


def test_groups_by_length_direction_and_area():
    phrases = ["the dog", "man on the left", "a red circle, above the big blue square"]
    wanted = np.array([[0.0, 0, 10, 10], [0, 0, 50, 50], [0, 0, 90, 90]])
    groups = box_metrics.phrase_groups(phrases, wanted, np.full((3, 2), 100))
    members = {name: np.nonzero(mask)[0].tolist() for name, mask in groups.items()}
    assert members == {
        "1-3 words": [0],
        "4-6 words": [1],
        "7 words or more": [2],
        "with a direction word": [1, 2],
        "without": [0],
        "small box": [0],
        "medium box": [],
        "large box": [1, 2],
    }
    rows = box_metrics.group_report(wanted, wanted, groups)
    assert rows["without"]["acc"] == 1 and rows["large box"]["count"] == 2 and "medium box" not in rows


@pytest.mark.parametrize("change", [lambda b: b[:0], lambda b: b[:, :3], lambda b: np.where(b == b.max(), np.nan, b)])
def test_bad_boxes_are_named(change):
    wanted = np.array([[0.0, 0, 1, 1], [0, 0, 2, 2]])
    with pytest.raises(DataError, match="boxes must be"):
        box_metrics.box_report(change(wanted.copy()), wanted)

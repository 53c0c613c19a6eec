"""Boxes in pictures: their forms, overlaps, and the loss of a predicted box. NumPy, but for the loss in Jittor.

Three forms are about, all float arrays (..., 4): corners x1, y1, x2, y2; xywh, the corner x1, y1 with width and height
(COCO, RefCOCO); centres cx, cy, w, h (what networks predict). A box is as wide as x2 - x1.
"""

from __future__ import annotations

import numpy as np

from jclip.postponed import jt

TINY = 1e-7  # keeps quotients of empty boxes finite


def xywh_to_corners(boxes: np.ndarray) -> np.ndarray:
    """(…, 4) x1, y1, width, height → (…, 4) x1, y1, x2, y2, in the unit of the input."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def corners_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """(…, 4) x1, y1, x2, y2 → (…, 4) x1, y1, width, height."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def centres_to_corners(boxes: np.ndarray) -> np.ndarray:
    """(…, 4) cx, cy, w, h → (…, 4) x1, y1, x2, y2."""
    boxes = np.asarray(boxes)
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def corners_to_centres(boxes: np.ndarray) -> np.ndarray:
    """(…, 4) x1, y1, x2, y2 → (…, 4) cx, cy, w, h."""
    boxes = np.asarray(boxes)
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Corners (..., 4) → (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlaps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas of intersection and union of corners that are paired or broadcast: (..., 4), (..., 4) → (...), (...)."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    return shared, areas(a) + areas(b) - shared


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of paired corners, (..., 4), (..., 4) → (...); of boxes without area it is 0."""
    shared, union = overlaps(np.asarray(a, float), np.asarray(b, float))
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Generalised IoU (…) of paired corners (…, 4): IoU - (hull - union) / hull, from -1 to 1.

    Rezatofighi et al., CVPR 2019, arXiv 1902.09630.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    _, union = overlaps(a, b)
    sides = np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])
    hull = sides.prod(axis=-1)
    return iou(a, b) - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def iou_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of each with each: corners (A, 4), (B, 4) → (A, B)."""
    return iou(np.asarray(a, float)[:, None], np.asarray(b, float)[None])


def clipped(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Corners (…, 4) in pixels, cut at the edges of a picture of that size."""
    return np.clip(boxes, 0, [width, height, width, height])


def box_loss(predicted, wanted):
    """(B, 4), (B, 4) centres as Jittor arrays → mean over the batch of Σ|p - t| + 1 - GIoU(p, t), as DETR weighs them 1 : 1.

    Denominators gain 1e-7, so that boxes without area have a finite gradient.
    """
    return (jt.abs(predicted - wanted).sum(dim=1) + 1.0 - _giou_of_centres(predicted, wanted)).mean()


def _giou_of_centres(p, t):
    """(B, 4), (B, 4) → (B,); one coordinate at a time, which Jittor fuses into one loop."""
    (px1, px2), (tx1, tx2) = _ends(p, 0), _ends(t, 0)
    (py1, py2), (ty1, ty2) = _ends(p, 1), _ends(t, 1)
    wide = _positive(jt.minimum(px2, tx2) - jt.maximum(px1, tx1))
    high = _positive(jt.minimum(py2, ty2) - jt.maximum(py1, ty1))
    shared = wide * high
    union = p[:, 2] * p[:, 3] + t[:, 2] * t[:, 3] - shared
    hull = (jt.maximum(px2, tx2) - jt.minimum(px1, tx1)) * (jt.maximum(py2, ty2) - jt.minimum(py1, ty1))
    return shared / (union + TINY) - (hull - union) / (hull + TINY)


def _ends(boxes, axis: int):
    half = boxes[:, 2 + axis] * 0.5
    return boxes[:, axis] - half, boxes[:, axis] + half


def _positive(x):
    return jt.maximum(x, jt.zeros_like(x))

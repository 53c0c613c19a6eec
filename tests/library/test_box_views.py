"""Views of photos with boxes: worked numbers, a reference of torchvision's parts, and boxes found again in the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jclip.data import box_views
from jclip.data.preprocess import NORMALISATIONS
from jclip.errors import ConfigError
from jclip.functional import boxes

IMAGENET = box_views.Normalisation(*NORMALISATIONS["imagenet"])


def photo(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_the_worked_photo_and_its_box(close):
    place = box_views.centred((640, 427), 224)
    assert (place.width, place.height, place.top, place.left) == (224, 149, 37, 0)
    target = place.into(np.array([100, 50, 300, 170]))
    close(target, [0.3125, 75.5 / 224, 0.3125, 0.1875], "closed_form", "a box in the square")
    masked = place.masked_patches(16)
    assert masked.sum() == 56 and np.nonzero(masked.any(axis=1))[0].tolist() == [0, 1, 12, 13]


@pytest.mark.parametrize("patch", [14, 16, 32])
@pytest.mark.parametrize("seed", range(6))
def test_masked_patches_are_those_of_the_reference(patch, seed):
    rng = np.random.default_rng(seed)
    long_side = int(rng.integers(32, 225))
    ratio, width, height = box_views.fitted(tuple(rng.integers(20, 700, 2)), 224, long_side)
    left, top = (int(rng.integers(0, 224 - n + 1)) for n in (width, height))
    mask = np.ones((224, 224))
    mask[top : top + height, left : left + width] = 0
    middle = np.arange(224 // patch) * patch + patch // 2
    mean = sum(mask[np.ix_(middle - a, middle - b)] for a in (0, 1) for b in (0, 1)) / 4
    place = box_views.Placement(224, ratio, width, height, left, top)
    assert np.array_equal(place.masked_patches(patch), mean > 0.5)


def test_boxes_come_back_from_the_square(close):
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = tuple(int(n) for n in rng.integers(10, 2000, 2))
        ends = np.sort(rng.random((2, 2)), axis=0) * size
        place = box_views.centred(size, 224)
        close(place.back(place.into(ends.reshape(4)), size), ends.reshape(4), "closed_form", "box there and back")


@pytest.mark.parametrize("size", [(640, 427), (91, 333), (224, 224), (50, 20)])
def test_the_evaluation_equals_torchvision(size, close):
    F = pytest.importorskip("torchvision.transforms.functional")
    import torch

    ours, _ = box_views.evaluated(photo(*size), 224, IMAGENET)
    ratio = 224 / max(size)
    width, height = round(size[0] * ratio), round(size[1] * ratio)
    tensor = F.normalize(F.to_tensor(F.resize(photo(*size), (height, width))), *NORMALISATIONS["imagenet"])
    top, left = round((224 - height) / 2 - 0.1), round((224 - width) / 2 - 0.1)
    wanted = torch.zeros(3, 224, 224)
    wanted[:, top : top + height, left : left + width] = tensor
    close(ours, wanted, "rounding", "evaluation view against torchvision")


def reference_view(image, box, phrase, side, rng, check):
    """CLIP-VG's order of steps, of torchvision's functions and torch boxes, with draws from a NumPy generator."""
    F = pytest.importorskip("torchvision.transforms.functional")
    import torch
    from PIL import ImageEnhance

    box = torch.tensor(box, dtype=torch.float64)
    if not any(w in phrase for w in ("left", "right", "top", "bottom", "middle")) and rng.random() < 0.5:
        ratio = (400, 500, 600)[rng.integers(3)] / min(image.size)
        image = F.resize(image, (round(image.height * ratio), round(image.width * ratio)))
        box = box * ratio
        for _ in range(20):
            w, h = (int(rng.integers(384, min(n, 600) + 1)) for n in image.size)
            i, j = int(rng.integers(0, image.height - h + 1)), int(rng.integers(0, image.width - w + 1))
            cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            cut = box - torch.tensor([j, i, j, i])
            cut = torch.min(cut.reshape(2, 2), torch.tensor([w, h])).clamp(min=0).reshape(-1)
            if check == "reference":
                good = cx > i and cy > j
            else:
                good = j < cx < j + w and i < cy < i + h and cut[2] - cut[0] >= 1 and cut[3] - cut[1] >= 1
            if good:
                image, box = F.crop(image, i, j, h, w), cut
                break
    ratio = (224, 192, 160, 128, 96, 64, 32)[rng.integers(7)] / max(image.size)
    image = F.resize(image, (round(image.height * ratio), round(image.width * ratio)))
    box = box * ratio
    if rng.random() < 0.8:
        for kind in rng.permutation(3):
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
            image = enhancer(image).enhance(rng.uniform(0.6, 1.4))
    rng.random()  # blur: never
    top = int(rng.integers(0, side - image.height + 1))
    left = int(rng.integers(0, side - image.width + 1))
    square = torch.zeros(3, side, side)
    tensor = F.normalize(F.to_tensor(image), *NORMALISATIONS["imagenet"])
    square[:, top : top + image.height, left : left + image.width] = tensor
    box = box + torch.tensor([left, top, left, top])
    return square, torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]) / side


@pytest.mark.parametrize("check", ["reference", "strict"])
@pytest.mark.parametrize("seed", range(8))
def test_the_training_view_equals_the_reference(check, seed, close):
    image, box = photo(240, 180, seed), np.array([30.0, 40, 120, 160])
    phrase = "the dog on the left" if seed == 7 else "the dog"
    augment = box_views.BoxAugment(crop_check=check)
    pixels, target, _ = augment(image, box, phrase, 224, IMAGENET, np.random.default_rng(seed))
    wanted, box_of_it = reference_view(image, box, phrase, 224, np.random.default_rng(seed), check)
    close(pixels, wanted, "rounding", "training view against torchvision's parts")
    close(target, box_of_it, "rounding", "its box")


@pytest.mark.parametrize("seed", range(12))
def test_a_painted_box_is_found_again(seed):
    image, corners = Image.new("RGB", (320, 240), (0, 0, 90)), (60, 50, 180, 170)
    image.paste((250, 10, 10), corners)
    augment = box_views.BoxAugment(jitter_share=0, scale_count=3)
    plain = box_views.Normalisation((0, 0, 0), (1, 1, 1))
    pixels, target, _ = augment(image, np.array(corners), "red", 224, plain, np.random.default_rng(seed))
    rows, columns = np.nonzero(pixels[0] > 0.5)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert boxes.iou(found, boxes.centres_to_corners(target) * 224) > 0.9


def test_a_strict_crop_keeps_the_thing_and_the_reference_may_lose_it():
    corners = np.array([5.0, 200, 25, 238])
    kept = {}
    for check in ("strict", "reference"):
        augment = box_views.BoxAugment(crop=1, crop_check=check)
        sides = [
            augment(photo(320, 240), corners, "it", 224, IMAGENET, np.random.default_rng(s))[1][2:] for s in range(60)
        ]
        kept[check] = all((side > 0).all() for side in sides)
    assert kept == {"strict": True, "reference": False}


def test_crops_larger_than_the_photo_are_refused_in_the_config():
    with pytest.raises(ConfigError, match="short_sides must be in .384, 4096."):
        box_views.BoxAugment(short_sides=(300,))

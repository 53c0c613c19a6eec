"""Pixels, bit for bit: torchvision's and open_clip's results as goldens, and the real pipeline's recorded tensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.errors import UnknownName
from jclip.preprocess import (
    AUGMENTS,
    Augment,
    Preprocess,
    Views,
    augment,
    random_crop_box,
    random_erase_box,
    resized_crop,
)
from tests.golden.inputs import CROP_BOXES, PHOTO_SIZES, SHARPNESS, TARGETS, photo

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "preprocess.json").read_text())


def digest(image) -> str:
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def square(n: int, **changes) -> Preprocess:
    return Preprocess(size=(n, n), **changes)


RESIZED = [key.split(" ", 2) for key in GOLDEN if key.split()[0] in ("shortest", "squash", "longest-pad")]


@pytest.mark.parametrize("resize, mode, rest", RESIZED, ids=[" ".join(r) for r in RESIZED])
def test_resize_modes_equal_the_originals(resize, mode, rest):
    size, n = rest.rsplit(" ", 1)
    width, height = map(int, size.strip("()").split(", "))
    pixels = square(int(n), resize=resize).pixels(photo(width, height, mode))
    assert digest(pixels) == GOLDEN[f"{resize} {mode} {rest}"]


@pytest.mark.parametrize("size", PHOTO_SIZES, ids=str)
def test_crops_sharpness_and_normalisation_equal_torchvision(size):
    image = photo(*size, "RGB")
    for box in CROP_BOXES:
        assert digest(resized_crop(image, box, square(24))) == GOLDEN[f"crop {size} {box}"]
    for factor in SHARPNESS:
        same_size = Preprocess(size=(size[1], size[0]), resize="squash", sharpness=factor)
        assert digest(same_size.pixels(image)) == GOLDEN[f"sharpness {size} {factor}"]
    assert digest(Preprocess().normalise(image)) == GOLDEN[f"normalise {size}"]


def test_a_target_that_is_no_square():
    assert (
        digest(Preprocess(size=(20, 28), resize="squash").pixels(photo(*PHOTO_SIZES[0], "RGB"))) == GOLDEN["rectangle"]
    )
    for size in PHOTO_SIZES:
        assert Preprocess(size=(20, 28)).pixels(photo(*size, "RGB")).size == (28, 20)


def test_recorded_tensors_of_the_real_pipeline(shared):
    golden = np.load(shared / "clip_golden" / "clip_retrieval_golden.npz")
    for name, pixels in zip(golden["names"], golden["pixels"], strict=True):
        ours = Preprocess()(Image.open(shared / "clip_golden" / "images" / f"{name}.jpg"))
        assert ours.dtype == np.float32 and np.abs(ours - pixels).max() == 0.0


def test_square_pad_is_even_and_then_shortest():
    white = Image.new("RGB", (101, 50), "white")
    pixels = np.asarray(square(50, resize="square-pad").pixels(white))
    assert pixels.shape == (50, 50, 3)
    assert (pixels[0] == 0).all() and (pixels[-1] == 0).all() and (pixels[25] > 250).all()
    border = 25 * 50 // 100  # (101 - 50) // 2 rows above, scaled by 50 / 100
    assert (pixels[: border - 2] == 0).all() and (pixels[border + 2] > 250).all()


def test_palette_photos_are_resized_before_conversion_unless_told():
    image = photo(61, 40, "P")
    openai, rgb_first = square(24).pixels(image), square(24, rgb_first=True).pixels(image)
    assert digest(openai) == GOLDEN["shortest P (61, 40) 24"]
    assert digest(rgb_first) == digest(square(24).pixels(image.convert("RGB"))) != digest(openai)


def test_exif_rotation_is_off_unless_told(tmp_path):
    image, exif = photo(61, 40, "RGB"), Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    stored = Image.open(tmp_path / "turned.png")
    assert digest(square(24).pixels(stored)) == digest(square(24).pixels(image))
    turned = square(24, exif_rotate=True).pixels(stored)
    assert digest(turned) == digest(square(24).pixels(image.transpose(Image.Transpose.ROTATE_270)))


def test_a_description_survives_json():
    p = Preprocess(size=(20, 28), resize="longest-pad", sharpness=2.3, fill=7)
    assert Preprocess.from_dict(json.loads(json.dumps(p.to_dict()))) == p


def test_unknown_modes_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"resize mode 'shortes', did you mean 'shortest'"):
        Preprocess(resize="shortes")
    with pytest.raises(UnknownName, match="augmentation 'copo', did you mean 'coop'"):
        augment("copo")


# The random part: its distribution, its limits, its seed.


def test_crop_boxes_keep_to_area_and_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(300, 400, (0.25, 0.5), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    area, ratio = height * width / 120_000, width / height
    assert area.min() > 0.245 and area.max() < 0.505 and abs(area.mean() - 0.375) < 0.01
    assert ratio.min() > 0.74 and ratio.max() < 1.35 and abs(np.log(ratio).mean()) < 0.02
    assert abs((top / (300 - height + 1)).mean() - 0.5) < 0.03


def test_a_photo_too_narrow_for_any_crop_gives_its_centre():
    rng = np.random.default_rng(0)
    assert random_crop_box(1000, 10, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (493, 0, 13, 10)
    assert random_crop_box(10, 1000, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (0, 493, 10, 13)


def test_erased_boxes_are_small_and_inside():
    rng = np.random.default_rng(0)
    for _ in range(500):
        top, left, height, width = random_erase_box(64, 48, (0.002, 0.01), (0.3, 3.3), rng)
        assert 0 <= top <= top + height <= 64 and 0 <= left <= left + width <= 48
        assert height * width <= 0.02 * 64 * 48
    assert random_erase_box(4, 4, (1.0, 1.0), (1.0, 1.0), rng) == (0, 0, 0, 0)


def test_views_depend_on_the_seed_alone():
    image, p = photo(61, 50, "RGB"), square(24)
    for name, pipeline in AUGMENTS.items():
        if pipeline is not None and not pipeline.plain:
            views = [pipeline(image, p, np.random.default_rng(seed)) for seed in (0, 0, 1)]
            assert np.array_equal(views[0], views[1]), name
            assert not np.array_equal(views[0], views[2]), name


def test_the_whole_photo_without_flip_is_a_plain_squash():
    image, p = photo(33, 33, "RGB"), square(24)
    whole = Augment(area=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    assert np.array_equal(whole(image, p, np.random.default_rng(0)), replace(p, resize="squash")(image))
    mirrored = replace(whole, flip=1.0)(image, p, np.random.default_rng(0))
    assert np.array_equal(mirrored, replace(p, resize="squash")(image)[:, :, ::-1])


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest-pad", "square-pad"])
@pytest.mark.parametrize("width, height", [(61, 40), (40, 61), (25, 24)])
def test_mirror_is_the_evaluations_pixels_mirrored(resize, width, height):
    for mode, settings in (("RGB", {}), ("P", {}), ("RGB", {"sharpness": 2.3})):
        image, p = photo(width, height, mode), square(24, resize=resize, **settings)
        plain = p(image)
        for seed in (0, 1):
            seen = augment("mirror")(image, p, np.random.default_rng(seed))
            assert seen.dtype == np.float32 and np.array_equal(seen, plain[:, :, ::-1])
        assert not np.array_equal(plain, plain[:, :, ::-1])


def test_mirror_turns_photos_as_the_evaluation_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(61, 40, "RGB").save(tmp_path / "turned.png", exif=exif)
    stored = Image.open(tmp_path / "turned.png")
    upright, lying = (
        augment("mirror")(stored, square(24, exif_rotate=turn), np.random.default_rng(0)) for turn in (True, False)
    )
    assert np.array_equal(upright, square(24, exif_rotate=True)(stored)[:, :, ::-1])
    assert not np.array_equal(upright, lying)


def test_a_mirroring_view_survives_json():
    views = Views(square(24), augment("mirror"), seed=3, numbers=(0, 2))
    assert Views.from_dict(json.loads(json.dumps(views.to_dict()))) == views


def test_presets_are_those_of_the_papers():
    areas = {name: pipeline.area for name, pipeline in AUGMENTS.items() if pipeline and not pipeline.plain}
    assert areas == {
        "coop": (0.08, 1.0),
        "tip_adapter": (0.5, 1.0),
        "fd_align": (0.08, 1.0),
        "wise_ft": (0.9, 1.0),
        "jittor_challenge": (0.08, 1.0),
    }
    assert {name for name, pipeline in AUGMENTS.items() if pipeline and pipeline.flip == 0} == {
        "fd_align",
        "wise_ft",
        "jittor_challenge",
    }


@pytest.mark.parametrize("n", TARGETS)
def test_short_side_that_fits_is_left_alone(n):
    image = photo(n, n, "RGB")
    assert digest(square(n).pixels(image)) == digest(image)

"""How photos are seen: the random part by its distribution, limits and seed, the fixed views by torchvision's, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jclip.config import DataConfig
from jclip.data.augment import (
    AUGMENTS,
    TEST_VIEWS,
    Augment,
    Views,
    augment,
    pipeline_of,
    random_crop_box,
    random_erase_box,
)
from jclip.data.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from jclip.data.splits import Split
from jclip.errors import ConfigError, UnknownName
from jclip.features.cached import key_of
from jclip.features.extraction import TrainingRows, feature_key, few_shot_features, training_view
from tests.golden.inputs import photo


def square(n: int, **changes) -> Preprocess:
    return Preprocess(size=(n, n), **changes)


# At random, to train on


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
        if pipeline is not None and not getattr(pipeline, "plain", False):
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
        augment("mirror")(stored, square(24, upright=turn), np.random.default_rng(0)) for turn in (True, False)
    )
    assert np.array_equal(upright, square(24)(stored)[:, :, ::-1])
    assert not np.array_equal(upright, lying)


def test_a_mirroring_view_survives_json():
    views = Views(square(24), augment("mirror"), seed=3, numbers=(0, 2))
    assert Views.from_dict(json.loads(json.dumps(views.to_dict()))) == views


def test_presets_are_those_of_the_papers():
    areas = {
        name: pipeline.area
        for name, pipeline in AUGMENTS.items()
        if isinstance(pipeline, Augment) and not pipeline.plain
    }
    assert areas == {
        "coop": (0.08, 1.0),
        "tip_adapter": (0.5, 1.0),
        "fd_align": (0.08, 1.0),
        "wise_ft": (0.9, 1.0),
        "jittor_challenge": (0.08, 1.0),
    }
    assert {name for name, pipeline in AUGMENTS.items() if isinstance(pipeline, Augment) and pipeline.flip == 0} == {
        "fd_align",
        "wise_ft",
        "jittor_challenge",
    }


# Fixed, to test by

SIZES = [(61, 40), (40, 61), (33, 33), (12, 9), (23, 57), (101, 16), (16, 101), (256, 256), (300, 257), (263, 512)]
LARGER = {224: 256, 20: 23}


def torchvision_crops(transforms, n: int, flipped: bool, sharpness: float = 1.0, interpolation: str = "bicubic"):
    """PIL photo → (V, 3, n, n), as torchvision's documentation composes it."""
    tensor = transforms.Compose([
        transforms.RandomAdjustSharpness(sharpness, p=1), transforms.ToTensor(),
        transforms.Normalize(OPENAI_MEAN, OPENAI_STD),
    ])  # fmt: skip
    return transforms.Compose([
        transforms.Resize(LARGER[n], transforms.InterpolationMode(interpolation)),
        transforms.TenCrop(n) if flipped else transforms.FiveCrop(n),
        lambda crops: np.stack([tensor(crop.convert("RGB")).numpy() for crop in crops]),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def transforms():
    return pytest.importorskip("torchvision.transforms", reason="torchvision is not installed: pip install '.[dev]'")


def seen(image: Image.Image, name: str, p: Preprocess) -> np.ndarray:
    return Views(p, pipeline_of(name))(image, 0)


@pytest.mark.parametrize("n", LARGER)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crops_equal_torchvisions(transforms, size, n):
    image = photo(*size, "RGB")
    ten = torchvision_crops(transforms, n, flipped=True)(image)
    assert ten.shape == (10, 3, n, n) and ten.dtype == np.float32
    assert np.array_equal(seen(image, "ten-crops", square(n)), ten)
    assert np.array_equal(seen(image, "five-crops", square(n, resize="squash")), ten[:5])
    assert len({crop.tobytes() for crop in ten}) == 10


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_crops_of_other_modes_and_settings_equal_torchvisions(transforms, mode):
    image = photo(61, 40, mode)
    five = torchvision_crops(transforms, 20, flipped=False)
    assert np.array_equal(seen(image, "five-crops", square(20)), five(image))
    assert np.array_equal(seen(image, "five-crops", square(20, rgb_first=True)), five(image.convert("RGB")))
    sharp = torchvision_crops(transforms, 20, flipped=True, sharpness=2.3, interpolation="bilinear")(image)
    assert np.array_equal(seen(image, "ten-crops", square(20, sharpness=2.3, interpolation="bilinear")), sharp)


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest-pad", "square-pad"])
def test_flip_is_the_evaluation_and_its_mirror(resize):
    for mode, settings in (("RGB", {}), ("P", {}), ("RGB", {"sharpness": 2.3})):
        image, p = photo(61, 40, mode), square(24, resize=resize, **settings)
        assert np.array_equal(seen(image, "flip", p), np.stack([p(image), p(image)[:, :, ::-1]]))
        assert np.array_equal(seen(image, "none", p), p(image)[None])


def test_views_turn_photos_as_the_evaluation_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(61, 40, "RGB").save(tmp_path / "turned.png", exif=exif)
    stored, upright = Image.open(tmp_path / "turned.png"), photo(61, 40, "RGB").transpose(Image.Transpose.ROTATE_270)
    for name in TEST_VIEWS:
        assert np.array_equal(seen(stored, name, square(20)), seen(upright, name, square(20)))
        assert not np.array_equal(seen(stored, name, square(20, upright=False)), seen(upright, name, square(20)))


def test_crops_for_a_size_that_is_no_square():
    x, y = np.meshgrid(
        np.arange(64), np.arange(40)
    )  # scaled to 37 x 23, which is 32 x 20 by 8/7, with nothing to spare
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8) * 3)
    p = Preprocess((20, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    corners = seen(image, "five-crops", p)
    assert corners.shape == (5, 3, 20, 32)
    left, top = corners[:, 0, 0, 0], corners[:, 1, 0, 0]
    assert left[0] == left[2] < left[4] < left[1] == left[3] and top[0] == top[1] < top[4] < top[2] == top[3]


@pytest.mark.parametrize("name", TEST_VIEWS)
def test_a_photo_is_resized_once(name, monkeypatch):
    calls, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *args, **named: calls.append(args) or resize(*args, **named))
    seen(photo(61, 40, "RGB"), name, square(20))
    assert len(calls) == 1


@pytest.mark.parametrize("name", AUGMENTS | TEST_VIEWS)
def test_views_survive_json_and_know_their_shape(name):
    views = Views(square(24, sharpness=2.3), pipeline_of(name), seed=3, numbers=(4,))
    again = Views.from_dict(json.loads(json.dumps(views.to_dict())))
    image = photo(61, 40, "RGB")
    assert again == views and again.shape == views(image, 2).shape == again(image, 2).shape
    assert np.array_equal(again(image, 2), views(image, 2))


def test_how_many_views_have_a_name():
    counts = {name: view.count for name, view in TEST_VIEWS.items()}
    assert counts == {"none": 1, "flip": 2, "five-crops": 5, "ten-crops": 10}
    with pytest.raises(UnknownName, match=r"augmentation 'five-crop', did you mean 'five-crops'"):
        pipeline_of("five-crop")


@pytest.mark.parametrize("name", ["flip", "five-crops", "ten-crops"])
def test_training_refuses_views_to_test_by(name):
    from finetune import cross_modal

    data = DataConfig(root="photos")
    refused = pytest.raises(ConfigError, match=f"augment={name} names fixed test-time views.*name one of none, coop,")
    with refused:
        augment(name)
    with refused:
        rows = TrainingRows(augment=name)
        few_shot_features(data, SimpleNamespace(), "simple", rows, photos=SimpleNamespace(train=[0]))
    with refused:
        training_view(data, None, None, name, 0, 0)
    with refused:
        cross_modal.views(cross_modal.Config(data, augment=name))


def test_fixed_views_are_kept_by_their_name_alone_and_others_as_before():
    source = SimpleNamespace(identity=["a"], preprocess=square(24), penultimate=False)

    def key(name: str, views: int = 1, seed: int = 0) -> str:
        return feature_key(source, Split(), range(views), name, seed)

    made_of = [["a"], square(24).to_dict(), Split().digest()]
    for name, random in (("none", []), ("coop", ["coop", [0, 1], 5]), ("mirror", ["mirror", [0, 1], 5])):
        assert key(name, 2, 5) == key_of([*made_of, *random])
    assert len({key(name) for name in AUGMENTS | TEST_VIEWS}) == len(AUGMENTS) + 3
    assert all(key(name) == key(name, 2, 5) for name in TEST_VIEWS)

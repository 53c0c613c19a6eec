"""Pixels, bit for bit: torchvision's and open_clip's results as goldens, and the real pipeline's recorded tensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from jclip.choices import PreprocessChoice
from jclip.config import build, to_values
from jclip.data.augment import resized_crop
from jclip.data.preprocess import Preprocess, with_choice
from jclip.errors import ConfigError, DataError, UnknownName
from tests.golden.inputs import CROP_BOXES, PHOTO_SIZES, SHARPNESS, TARGETS, photo

GOLDENS = Path(__file__).parent.parent / "golden"
GOLDEN = json.loads((GOLDENS / "preprocess.json").read_text())
if int(PIL.__version__.partition(".")[0]) < 13:  # which rounds some boxes of its resampling otherwise
    GOLDEN |= json.loads((GOLDENS / "preprocess_pillow_12.json").read_text())


def digest(image) -> str:
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def square(n: int, **changes) -> Preprocess:
    return Preprocess(size=(n, n), **changes)


RESIZED = [  # but for 16-bit grey, which the originals see as white
    key.split(" ", 2)
    for key in GOLDEN
    if key.split()[0] in ("shortest", "squash", "longest-pad") and key.split()[1] != "I;16"
]


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


def test_palette_photos_are_resized_before_conversion_unless_asked_otherwise():
    image = photo(61, 40, "P")
    openai, rgb_first = square(24).pixels(image), square(24, rgb_first=True).pixels(image)
    assert digest(openai) == GOLDEN["shortest P (61, 40) 24"]
    assert digest(rgb_first) == digest(square(24).pixels(image.convert("RGB"))) != digest(openai)


def test_photos_are_turned_upright_unless_asked_otherwise(tmp_path):
    image, exif = photo(61, 40, "RGB"), Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    stored = Image.open(tmp_path / "turned.png")
    assert digest(square(24, upright=False).pixels(stored)) == digest(square(24).pixels(image))
    assert digest(square(24).pixels(stored)) == digest(square(24).pixels(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest-pad", "square-pad"])
def test_16_bit_grey_is_seen_as_its_8_bits(resize):
    grey = photo(61, 40, "L")
    wide = np.asarray(grey).astype(np.uint16) * 257 + np.random.default_rng(0).integers(-127, 128, (40, 61))
    wide = Image.fromarray(np.clip(wide, 0, 65535).astype(np.uint16))
    assert wide.mode == "I;16"
    assert digest(square(24, resize=resize).pixels(wide)) == digest(square(24, resize=resize).pixels(grey))


def test_a_photo_is_never_resized_by_way_of_more_pixels_than_a_photo_may_have():
    with pytest.raises(DataError, match="a photo of 1 x 100000 is resized by way of 64 x 6400000 pixels, more than"):
        square(64).pixels(Image.new("L", (1, 100_000)))


def test_a_description_survives_json():
    p = Preprocess(size=(20, 28), resize="longest-pad", sharpness=2.3, fill=7)
    assert Preprocess.from_dict(json.loads(json.dumps(p.to_dict()))) == p


def test_unknown_modes_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"resize mode 'shortes', did you mean 'shortest'"):
        Preprocess(resize="shortes")


@pytest.mark.parametrize("n", TARGETS)
def test_short_side_that_fits_is_left_alone(n):
    image = photo(n, n, "RGB")
    assert digest(square(n).pixels(image)) == digest(image)


# What a user sets otherwise than the weights say


@pytest.fixture(scope="module")
def transforms():
    return pytest.importorskip("torchvision.transforms", reason="torchvision is not installed: pip install '.[dev]'")


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 2.3])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_the_ajou_entrys_photos_equal_torchvisions(transforms, mode, sharpness):
    size, bicubic = (224, 224), transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose([
        transforms.Resize(size, bicubic), transforms.CenterCrop(size), lambda image: image.convert("RGB"),
        transforms.RandomAdjustSharpness(sharpness, p=1), transforms.ToTensor(),
        transforms.Normalize(Preprocess().mean, Preprocess().std),
    ])  # fmt: skip
    ours = with_choice(Preprocess(), PreprocessChoice(resize="squash", sharpness=sharpness))
    for width, height in ((150, 150), (61, 40), (224, 224), (301, 97), (480, 641)):
        image = photo(width, height, mode)
        assert np.array_equal(ours(image), theirs(image).numpy()), (width, height)
        assert np.array_equal(ours(image), Preprocess(resize="squash")(image)) == (sharpness == 1.0)


@dataclass(frozen=True)
class Config:
    preprocess: PreprocessChoice = field(default_factory=PreprocessChoice)


def test_what_is_left_out_stays_as_the_weights_say():
    weights = Preprocess((20, 28), "longest-pad", "bilinear", (0.5,) * 3, (0.4,) * 3, 7, 1.5, True, True, True)
    assert with_choice(weights, PreprocessChoice()) == weights
    assert with_choice(weights, build(Config, {}, "x.yaml").preprocess) == weights
    chosen = {"size": 24, "resize": "squash", "interpolation": "bicubic", "sharpness": 0, "rgb_first": False}
    cfg = build(Config, {"preprocess": {**chosen, "exif_rotate": False, "draft": False}}, "x.yaml")
    assert build(Config, to_values(cfg), "x.yaml") == cfg and type(cfg.preprocess.sharpness) is float
    wanted = Preprocess((24, 24), "squash", "bicubic", (0.5,) * 3, (0.4,) * 3, 7, 0.0, False, False, False)
    assert with_choice(weights, cfg.preprocess) == wanted
    one = build(Config, {"preprocess": {"sharpness": 2.3, "resize": None}}, "x.yaml").preprocess
    assert one == PreprocessChoice(sharpness=2.3)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"size": 0}, r"x.yaml: preprocess.size must be in \[1, 4096\] pixels, got 0"),
        ({"size": True}, "x.yaml: preprocess.size must be an integer, got True"),
        ({"sharpness": -0.5}, r"x.yaml: preprocess.sharpness must be in \[0, 1000\] .*, got -0.5"),
        ({"sharpness": float("nan")}, "preprocess.sharpness must be a finite number, got nan"),
        ({"resize": "squish"}, "preprocess.resize must be one of .*, got 'squish', did you mean 'squash'"),
        ({"interpolation": "nearest"}, "preprocess.interpolation must be one of bicubic, bilinear, got 'nearest'"),
        ({"rgb_first": 1}, "preprocess.rgb_first must be true or false, got 1"),
        ({"mean": [0.5, 0.5, 0.5]}, "unknown key preprocess.mean"),
    ],
    ids=str,
)
def test_a_wrong_choice_is_reported(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Config, {"preprocess": values}, "x.yaml")

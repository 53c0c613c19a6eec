"""Photos as models see them: upright by default, 16 bits scaled to 8, every other mode as Pillow gives it."""

from __future__ import annotations

import io
import sys

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from jclip.choices import PreprocessChoice
from jclip.config import CaptionConfig, DataConfig, build
from jclip.data import loader
from jclip.data.augment import TEST_VIEWS, Views, pipeline_of
from jclip.data.loader import batches
from jclip.data.photo_file import ORIENTATIONS, PHOTO_ENDINGS, as_seen, open_photo, orientation
from jclip.data.preprocess import Preprocess
from jclip.errors import DataError, guarded
from tests.golden.inputs import photo


def tagged(path, turn: int | None, image: Image.Image | None = None, **how) -> Image.Image:
    """Writes `image` with that EXIF orientation, and gives what is stored."""
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    (photo(61, 40, "RGB") if image is None else image).save(path, exif=exif, **how)
    with Image.open(path) as stored:
        stored.load()
        return stored


KINDS = {
    "jpg": {}, "png": {}, "webp": {"lossless": True}, "mpo": {"save_all": True, "append_images": [photo(61, 40, "RGB")]},
}  # fmt: skip


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation_is_applied_or_left(tmp_path, kind, turn):
    path = tmp_path / f"photo.{kind}"
    stored = tagged(path, turn, format="MPO" if kind == "mpo" else None, **KINDS[kind])
    upright = open_photo(path)
    assert np.array_equal(upright, ImageOps.exif_transpose(stored)) and orientation(upright) == 1
    assert np.array_equal(open_photo(path, upright=False), stored)
    assert as_seen(upright) is upright


@pytest.mark.parametrize("turn", (3, 6))
@pytest.mark.parametrize("kind", ("tif", "avif"))
def test_formats_that_pillow_turns_itself_are_upright_once(tmp_path, kind, turn):
    path = tmp_path / f"photo.{kind}"
    if kind == "avif" and "AVIF" not in Image.OPEN:
        pytest.skip("Pillow reads AVIF from 11.3")
    stored = tagged(path, turn)
    assert open_photo(path).size == ((40, 61) if turn == 6 else (61, 40))
    assert np.array_equal(open_photo(path), ImageOps.exif_transpose(stored))


ONE_TAG = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0"  # orientation 9, and no end


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0" + b"\xff" * 40, ONE_TAG, b"\0" * 20])
def test_a_damaged_tag_leaves_the_photo_as_it_is(tmp_path, exif):
    photo(61, 40, "RGB").save(tmp_path / "a.jpg", exif=exif)
    photo(61, 40, "RGB").save(tmp_path / "b.jpg")
    assert np.array_equal(open_photo(tmp_path / "a.jpg"), Image.open(tmp_path / "b.jpg"))


def reads(path):
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_photos_of_other_modes_without_a_tag_keep_every_bit(tmp_path, mode):
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 does not read the YCbCr that it writes")
    image = photo(61, 40, mode) if mode != "PA" else photo(61, 40, "P").convert("PA")
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "PA") else "a.png")
    image.save(path)
    if mode == "P":
        image.save(path, transparency=3)
    stored = Image.open(path)
    if mode == "YCbCr" and not reads(path):
        pytest.skip("this Pillow does not read the YCbCr TIFF that it wrote")
    seen = open_photo(path)
    assert seen.mode == stored.mode == mode and np.array_equal(seen, stored)
    openai = Preprocess(size=(24, 24), upright=False)
    assert np.array_equal(Preprocess(size=(24, 24))(seen), openai(stored))


def test_16_bit_grey_is_scaled_to_8_bits_and_rounded(tmp_path):
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = np.round(wide / 257)
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "a.tif")
    big_endian = b"MM\0*" + rest_of_tiff(wide)
    (tmp_path / "b.tif").write_bytes(big_endian)
    (tmp_path / "a.pgm").write_bytes(b"P5 256 256 65535\n" + wide.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "b.tif", "a.pgm"):
        assert np.array_equal(open_photo(tmp_path / name), wanted), name
    lying = tagged(tmp_path / "lying.png", 6, Image.fromarray(wide))
    assert lying.mode.startswith("I")
    assert np.array_equal(open_photo(tmp_path / "lying.png"), np.rot90(wanted, -1))


def rest_of_tiff(wide: np.ndarray) -> bytes:
    """The rest of a big-endian grey TIFF of 16 bits, after its mark."""
    height, width = wide.shape
    entries = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: wide.nbytes}
    table = b"".join(
        tag.to_bytes(2, "big") + b"\0\4\0\0\0\1" + value.to_bytes(4, "big") for tag, value in entries.items()
    )
    start = (8 + wide.nbytes).to_bytes(4, "big")
    return start + wide.astype(">u2").tobytes() + len(entries).to_bytes(2, "big") + table + bytes(4)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_without_a_range_are_refused_by_name(tmp_path, mode):
    Image.new(mode, (9, 9)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif does not decode: a photo of mode {mode} has no defined range"):
        open_photo(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"mode {mode}"):
        Preprocess()(Image.new(mode, (9, 9)))


def test_drafts_of_lying_photos_are_large_enough_on_both_sides(tmp_path):
    image = Image.effect_noise((640, 320), 30).convert("RGB")
    for turn in (1, 6):
        tagged(tmp_path / f"{turn}.jpg", turn, image)
    upright = (160, 320)  # width, height: what the model wants, twice
    assert open_photo(tmp_path / "6.jpg", upright).size == upright
    assert open_photo(tmp_path / "6.jpg", upright, upright=False).size == (640, 320)
    assert open_photo(tmp_path / "1.jpg", upright).size == (640, 320)


def test_views_of_lying_photos_are_those_of_upright_ones_in_threads_and_processes(tmp_path, monkeypatch):
    paths = []
    for turn in (None, 3, 6, 8):
        tagged(tmp_path / f"{turn}.png", turn)
        paths.append(str(tmp_path / f"{turn}.png"))
    upright = [ImageOps.exif_transpose(Image.open(p)) for p in paths]
    monkeypatch.setenv("JCLIP_WORKERS", "2")
    for worth in (10**6, 1):
        monkeypatch.setattr(loader, "_WORTH_PROCESSES", worth)
        for name in (*TEST_VIEWS, "mirror", "coop"):
            views = Views(Preprocess(size=(20, 24)), pipeline_of(name), seed=1)
            ((_, seen),) = batches(paths, views, 9)
            assert np.array_equal(seen, np.stack([views(image, i) for i, image in enumerate(upright)])), name


@pytest.mark.parametrize("worth", (10**6, 1))
def test_turned_photos_are_counted_once_per_command(tmp_path, monkeypatch, capsys, worth):
    monkeypatch.setattr(loader, "_WORTH_PROCESSES", worth)
    monkeypatch.setenv("JCLIP_WORKERS", "2")
    paths = [str(tmp_path / f"{turn}.png") for turn in (1, 3, 6)]
    for turn, path in zip((1, 3, 6), paths, strict=True):
        tagged(path, turn)

    def command(upright: bool) -> None:
        for part in (paths, paths[:2]):
            list(batches(part, Views(Preprocess(size=(8, 8), upright=upright)), 2))

    ORIENTATIONS.emit()
    capsys.readouterr()
    guarded(lambda: command(True), "x")
    said = "2 of 3 photos carry an EXIF orientation and are turned upright (upright: false leaves them as stored)\n"
    assert capsys.readouterr().err == said
    guarded(lambda: command(False), "x")
    assert not capsys.readouterr().err


def test_exif_rotate_is_still_read_and_obeyed():
    assert DataConfig().upright and CaptionConfig().upright and PreprocessChoice().upright is None
    for schema in (DataConfig, CaptionConfig, PreprocessChoice):
        assert [build(schema, {"exif_rotate": message}, "x.yaml").upright for message in (True, False)] == [True, False]
    old = {**Preprocess().to_dict(), "exif_rotate": False}  # as every checkpoint of before says
    assert Preprocess.from_dict({k: v for k, v in old.items() if k != "upright"}).upright


def test_heic_is_read_with_pillow_heif_and_named_without(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: pip install '.[heic]'")
    heif.register_heif_opener()
    try:
        photo(64, 40, "RGB").save(file := io.BytesIO(), format="HEIF")
    except (KeyError, OSError, ValueError, RuntimeError):
        pytest.skip("this pillow-heif has no encoder")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    assert open_photo(tmp_path / "a.jpg").size == (64, 40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        DataError, match=r"a\.jpg does not decode: HEIC photos need pillow-heif: pip install 'jclip\[hei"
    ):
        open_photo(tmp_path / "a.jpg")


def test_endings_are_those_of_the_formats_that_are_read():
    Image.init()
    known = {
        ending for ending, name in Image.EXTENSION.items() if name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    }
    assert known - {".apng"} <= PHOTO_ENDINGS
    assert all(ending.startswith(".") and ending.islower() for ending in PHOTO_ENDINGS)

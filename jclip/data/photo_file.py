"""The one place that opens photos: which formats, how large, which way up, and what a refusal says. Imports no Jittor.

Pillow tries only the formats of `FORMATS`, none of which runs a program, by the bytes and not by the file's ending.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from jclip.data.photo_parts import check_parts, check_tags
from jclip.data.stored_photos import open_any_photo, spoken_path
from jclip.errors import DataError, at_end, notice, printable

# Endings of files that count as photos, in lower case; the format is decided by the bytes, not by the ending.
PHOTO_ENDINGS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".tga",
    ".jp2", ".j2k", ".avif", ".mpo", ".heic", ".heif",
})  # fmt: skip
_PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    GifImagePlugin,
    BmpImagePlugin,
    TiffImagePlugin,
    PpmImagePlugin,
    Jpeg2KImagePlugin,
    TgaImagePlugin,
)  # fmt: skip - imported here, so that Pillow need not register all that it knows
try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    pass
else:
    _PLUGINS += (AvifImagePlugin,)
# MPO, the phones' JPEG with a second frame, opens as JPEG does. TGA comes last: it has no mark to be known by.
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
    if name in Image.OPEN
)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

MOST_PIXELS = 178_956_970  # of a photo, 0.5 GB as RGB: where Pillow refuses, too, unless its own limit is set lower
MOST_ASPECT = 200  # the long side by the short one
MOST_BYTES = 2**27  # of a file that decoders may read whole before they know its size
MOST_PLAIN_BYTES = 2**30  # of a file that is little else than its pixels
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_PLAIN_STARTS = (b"BM", *_TIFF_STARTS, b"P5", b"P6")  # BMP, TIFF, PGM, PPM

ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TELL_FIRST = ("JPEG", "MPO", "TIFF")  # the tag is known before the pixels: asking a PNG for it decodes the PNG
_LYING = range(5, 9)  # orientations that swap width and height
_TAGGED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where Pillow keeps a tag
FAILED = " does not decode: "  # between a photo and the reason
DEADLY: dict[str, str] = {}  # photo, as it is asked for → why it isn't opened: see `jclip.data.deadly_photos`
_CONVERTIBLE = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of `MOST_PIXELS`, which is what counts here


def open_photo(path: str | os.PathLike, draft: tuple[int, int] | None = None, upright: bool = True) -> Image.Image:
    """The decoded photo, of several frames the first, as `as_seen` gives it.

    draft: of a JPEG, the smallest fraction that is at least this width and height. Raises `DataError` with the path for
    what does not decode or is refused: another format, more than `MOST_PIXELS`, an aspect beyond `MOST_ASPECT`, 32-bit
    pixels, a file that is larger than its kind may be, or no regular file.
    """
    _refuse_deadly(path)
    try:
        with open_any_photo(path) as file:
            image, turned = _decoded(file, draft, upright)
    except Exception as e:  # whatever a damaged file leads a decoder to: RuntimeError, MemoryError, OverflowError, …
        raise DataError(f"{printable(spoken_path(path))}{FAILED}{_reason(e)}") from e
    ORIENTATIONS.saw(spoken_path(path), turned)
    return image


def header(path: str | os.PathLike) -> tuple[str, str, int, int, int]:
    """Format, Pillow's mode, width and height as stored, and EXIF orientation of a photo, of which only the header is read.

    Raises `DataError` as `open_photo` does.
    """
    _refuse_deadly(path)
    try:
        with open_any_photo(path) as file:
            image = _opened(file)
            return image.format or "", image.mode, *image.size, orientation(image)
    except Exception as e:  # as above
        raise DataError(f"{printable(spoken_path(path))}{FAILED}{_reason(e)}") from e


def _refuse_deadly(path: str | os.PathLike) -> None:
    if why := DEADLY.get(os.fspath(path)):
        raise DataError(f"{printable(spoken_path(path))}{FAILED}{why}")


def _opened(file: BinaryIO) -> Image.Image:
    """The photo before its pixels are decoded. Raises `DataError` for what is too large, of any format."""
    start = file.read(16)
    _check_bytes(file, start)
    file.seek(0)
    image = Image.open(file, formats=_formats_for(start))
    check_size(image.size)
    return image


def _decoded(file: BinaryIO, draft: tuple[int, int] | None, upright: bool) -> tuple[Image.Image, bool]:
    """The photo, and whether it was turned."""
    image = _opened(file)
    turn = orientation(image) if image.format in _TELL_FIRST else 1
    if draft:
        image.draft(None, draft[::-1] if upright and turn in _LYING else draft)
    image.load()
    turn = max(turn, orientation(image))  # a TIFF was turned by Pillow now
    return as_seen(image, upright), upright and turn in _TURNS


def _check_bytes(file: BinaryIO, start: bytes) -> None:
    """Raises `DataError` for a file that is too large for its kind, or made of too many parts."""
    size = file.seek(0, os.SEEK_END)
    most = MOST_PLAIN_BYTES if start.startswith(_PLAIN_STARTS) else MOST_BYTES
    if size > most:
        raise DataError(f"the file must have at most {most:,} bytes, got {size:,}")

    def read_at(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    check_parts(lambda: read_at(0, size), start)
    if start.startswith(_TIFF_STARTS):
        check_tags(read_at, start)


def _formats_for(start: bytes) -> tuple[str, ...]:
    """The formats to try for a file that begins so."""
    if start[4:8] != b"ftyp" or start[8:12] not in _HEIF_BRANDS:
        return FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        if "AVIF" in FORMATS and start[8:12] in (b"mif1", b"msf1"):  # AVIF files call themselves so, too
            return FORMATS
        raise DataError("HEIC photos need pillow-heif: pip install 'jclip[heic]'") from None
    register_heif_opener()
    return ("AVIF", "HEIF") if "AVIF" in FORMATS else ("HEIF",)


def check_size(size: tuple[int, int]) -> None:
    """Raises `DataError` for a width and height that would take too much memory, or that is no photo's."""
    short, long = sorted(size)
    if short < 1:
        raise DataError(f"a photo must have at least one pixel, got {size[0]} x {size[1]}")
    if short * long > MOST_PIXELS:
        raise DataError(f"a photo must have at most {MOST_PIXELS:,} pixels, got {size[0]} x {size[1]}")
    if long > MOST_ASPECT * short:
        raise DataError(
            f"the long side of a photo must be at most {MOST_ASPECT} times the short one, got {size[0]} x {size[1]}"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"its bytes are of none of the formats {', '.join(FORMATS)}, HEIC"
    if isinstance(error, Image.DecompressionBombError):  # before the size is known here
        return f"a photo must have at most {MOST_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split())
    return printable(said, 300) if said else type(error).__name__


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that a photo still carries, 1 to 8; 1 without a tag, or with one that can't be read.

    Of formats but JPEG and TIFF the photo must be decoded before: what asking decodes, and fails, would pass for whole.
    """
    try:
        tags = getattr(image, "tag_v2", None)
        value = image.getexif().get(ORIENTATION, 1) if tags is None else tags.get(ORIENTATION, 1)
    except Exception:  # the photo counts, not what a camera wrote beside it
        return 1
    return value if type(value) is int and value in _TURNS else 1


def as_seen(image: Image.Image, upright: bool = True) -> Image.Image:
    """A photo as models see it: upright, and with 8 bits per channel; one that is so already is returned itself.

    16-bit grey becomes round(x / 257), which is never half way between two integers. Raises `DataError` for other modes
    that have no RGB: integers of 32 bits, floats, LAB.
    """
    image.load()
    turn = _TURNS.get(orientation(image)) if upright else None
    image = _eight_bits(image)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {k: v for k, v in turned.info.items() if k not in _TAGGED}  # or it would be turned again
    return turned


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in _CONVERTIBLE:
        return image
    # of PNG and PGM, `I` is how Pillow opens 16 bits, always or before its version 12
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise DataError(f"a photo of mode {image.mode} has no defined range: save it with 8 or 16 bits per channel")
    grey = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


class Orientations:
    """Which photos of this command were read, and which of them carry an EXIF orientation and were turned."""

    def __init__(self):
        self._read: set[str] = set()
        self._turned: set[str] = set()

    def saw(self, path: str, turned: bool) -> None:
        """One photo was read, here or in another process."""
        if not self._read:
            at_end(self)
        self._read.add(path)
        (self._turned.add if turned else self._turned.discard)(path)

    def turned_among(self, paths: Iterable[str]) -> list[int]:
        """Places in `paths` of photos that were turned."""
        return [i for i, path in enumerate(paths) if path in self._turned]

    def clear(self) -> None:
        """Reset."""
        self._read.clear()
        self._turned.clear()

    def emit(self) -> None:
        """One line on stderr, where any photo was turned; then reset."""
        read, turned = len(self._read), len(self._turned)
        self.clear()
        if turned:
            notice(
                f"{turned} of {read} photos carry an EXIF orientation and are turned upright "
                "(upright: false leaves them as stored)"
            )


ORIENTATIONS = Orientations()

"""Files that are no photos, or hurt who opens them: each is refused in one line, with little memory, and starts nothing."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from jclip.data.augment import Views
from jclip.data.loader import batches
from jclip.data.photo_file import MOST_BYTES, MOST_PLAIN_BYTES, header, open_photo
from jclip.data.photo_parts import MOST_BLOCKS, check_parts
from jclip.data.preprocess import Preprocess
from jclip.errors import DataError
from tests.hostile.photo_mutants import count, seeds

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%BeginProlog\n%%EndProlog\nshowpage\n%%EOF\n"


def test_mutants_end_in_a_refusal_or_in_pixels():
    outcomes, findings, _ = count(0, 300)
    assert not findings and outcomes["seen"] and outcomes["refused"]


def test_no_photo_starts_a_program(tmp_path, monkeypatch):
    program, started = tmp_path / "bin" / "gs", tmp_path / "started"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{started}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("photo.jpg", "photo.eps", "photo.png"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(DataError, match=f"{name} does not decode: its bytes are of none of the formats JPEG, PNG"):
            open_photo(tmp_path / name)
    assert not started.exists()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], pixels: int = 100) -> bytes:
    """A grey PNG that says it is so large and holds so many bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(pixels))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def tiff_of_tags(count: int, length: int) -> bytes:
    """A TIFF whose tags all claim the same large piece of the file."""
    tags = b"".join(struct.pack("<HHII", 40_000 + i, 1, length, 8) for i in range(count))
    return b"II*\0" + struct.pack("<I", 8 + length) + bytes(length) + struct.pack("<H", count) + tags + bytes(4)


def scans(count: int) -> bytes:
    """A progressive JPEG of 12,000 x 12,000 pixels that says again and again that nothing changes."""
    Image.new("L", (16, 16)).save(file := io.BytesIO(), "JPEG", progressive=True)
    data = bytearray(file.getvalue())
    size = data.index(b"\xff\xc2") + 5
    data[size : size + 4] = struct.pack(">HH", 12_000, 12_000)
    last = data.rindex(b"\xff\xda")
    return bytes(data[:last] + data[last:-2] * count + data[-2:])


def claiming(kind: str, width: int, height: int, **how) -> bytes:
    """A small whole photo whose header claims another size; of JPEG 2000, `box` or `codestream` does."""
    photo, data = seeds()[kind], bytearray(seeds()[kind])
    if kind == "webp animated":
        at = photo.index(b"VP8X") + 12
        data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == "webp lossless":
        at = photo.index(b"VP8L") + 9
        kept = int.from_bytes(photo[at : at + 4], "little") >> 28 << 28
        data[at : at + 4] = (kept | (height - 1) << 14 | (width - 1)).to_bytes(4, "little")
    elif kind == "webp":
        struct.pack_into("<HH", data, photo.index(b"\x9d\x01\x2a") + 3, width, height)
        if b"VP8X" in photo:
            return b"RIFF" + bytes(4) + b"WEBP" + bytes(data[photo.index(b"VP8 ") :])
    elif kind == "avif":
        struct.pack_into(">II", data, photo.index(b"ispe") + 8, width, height)
    elif how["where"] == "box":
        struct.pack_into(">II", data, photo.index(b"ihdr") + 4, height, width)
    else:
        at = photo.index(b"\xff\x4f\xff\x51")
        struct.pack_into(">II", data, at + 8, width, height)
        struct.pack_into(">II", data, at + 24, width, height)  # in one tile
    return bytes(data)


def refused() -> dict[str, bytes]:
    """Some hundred MiB, made when they are needed."""
    zeros = zlib.compress(bytes(300 * 2**20), 9)
    return {
        "one pixel high": png(1_000_000, 1, pixels=1_000_001),
        "one pixel wide": png(1, 1_000_000, pixels=2_000_000),
        "a vast PNG": png(2**31 - 1, 2**31 - 1),
        "a PNG of too many pixels": png(20_000, 9_000),
        "a vast GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "a vast PPM": b"P6 40000 40000 255\n" + bytes(100),
        "a PPM without pixels": b"P6 0 0 255\n",
        "a vast BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 99, 1, 1, 0, 0),
        "a vast TGA": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0),
        "text that inflates": png(9, 9, (b"zTXt", b"comment\0\0" + zeros)),
        "a profile that inflates": png(9, 9, (b"iCCP", b"icc\0\0" + zeros)),
        "pixels of a photo that ends": png(13_000, 13_000),
        "a TIFF of endless tags": tiff_of_tags(2_000, 2**20),
        "a JPEG of padding": b"\xff\xd8" + b"\xff" * 2**26,
        "a JPEG of comments": b"\xff\xd8" + b"\xff\xfe\0\2" * 2**22,
        "a JPEG of many tags": b"\xff\xd8" + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 1500,
        "a JPEG of scans": scans(2**16),
        "a PNG of chunks": png(9, 9, *[(b"teSt", b"")] * 2**18),
        "a GIF of comments": b"GIF89a"
        + struct.pack("<HHBBB", 9, 9, 0, 0, 0)
        + b"!\xfe"
        + (b"\xff" + b"c" * 255) * 2**17,
        "a GIF of nothing": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\1" * 2**24,
        "a JPEG 2000 without end": b"\xff\x4f\xff\x51" + bytes(2**26),
        "a JPEG 2000 of boxes": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 2**20,
        "a vast WEBP": claiming("webp", 16383, 16383),
        "a vast lossless WEBP": claiming("webp lossless", 16383, 16383),
        "a vast animated WEBP": claiming("webp animated", 65_000, 65_000),
        "a long WEBP": claiming("webp animated", 2**20, 9),
        "a vast JPEG 2000": claiming("jpeg 2000", 2**31 - 1, 2**31 - 1, where="box"),
        "a JPEG 2000 of a vast tile": claiming("jpeg 2000", 60_000, 60_000, where="codestream"),
        "text": "照片".encode(),
        "nothing": b"",
    }


@pytest.mark.parametrize("bits", [0, 4, 7])
def test_blocks_of_a_gif_are_counted_from_behind_its_palette(bits):
    """A palette of the bytes that begin a frame, 2 to 256 colours: a look at one of them would end the count."""
    palette = b"," * 3 * 2 ** (bits + 1)
    head = b"GIF89a" + struct.pack("<HHBBB", 9, 9, 128 + bits, 0, 0) + palette
    for blocks, fine in ((MOST_BLOCKS, True), (MOST_BLOCKS + 1, False)):
        data = head + b"!\xfe\0" * blocks + b",;"
        with nullcontext() if fine else pytest.raises(DataError, match="blocks before its first frame"):
            check_parts(lambda data=data: data, data[:16])


def test_a_refusal_takes_little_memory(tmp_path):
    """Each in one child that has 200 MiB more than it began with."""
    for name, data in refused().items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    for name, size, start in (("a long file", MOST_BYTES, b"\xff\xd8"), ("a long plain file", MOST_PLAIN_BYTES, b"BM")):
        with open(tmp_path / f"{name}.jpg", "wb") as f:
            f.write(start)
            f.truncate(size + 1)
    files = sorted(map(str, tmp_path.iterdir()))
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom tests.hostile.photo_mutants import limit, outcome\n"
        "limit(200 * 2**20, 60)\nprint(json.dumps({Path(f).stem: outcome(Path(f)) for f in sys.argv[1:]}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == dict.fromkeys([Path(f).stem for f in files], "refused"), done.stderr


CLAIMS = [
    ("webp", {}, "at most 178,956,970 pixels|could not create decoder object", (16_000, 16_000)),  # the latter: Pillow 12
    ("webp lossless", {}, "at most 178,956,970 pixels", (16_000, 16_000)),
    ("webp lossless", {}, "at most 200 times the short one, got 9 x 9000", (9, 9_000)),
    ("webp animated", {}, "at most 178,956,970 pixels", (20_000, 20_000)),
    ("webp animated", {}, "at most 200 times the short one, got 9000 x 23", (9_000, 23)),
    ("jpeg 2000", {"where": "box"}, "at most 178,956,970 pixels", (2**31 - 1, 2**31 - 1)),
    ("jpeg 2000", {"where": "box"}, "at most 200 times the short one, got 9 x 9000", (9, 9_000)),
    ("jpeg 2000", {"where": "codestream"}, "broken data stream", (60_000, 60_000)),
    ("avif", {}, "at most 178,956,970 pixels", (16_000, 16_000)),
    ("avif", {}, "at most 200 times the short one, got 9000 x 9", (9_000, 9)),
    ("avif", {}, "of none of the formats", (60_000, 60_000)),
]  # fmt: skip


@pytest.mark.parametrize("kind, how, said, size", CLAIMS)
def test_sizes_in_headers_are_compared_before_pixels_are_made(tmp_path, monkeypatch, kind, how, said, size):
    if kind not in seeds():
        pytest.skip(f"this Pillow writes no {kind}")
    path = tmp_path / "photo.jpg"
    path.write_bytes(claiming(kind, *size, **how))
    if how.get("where") != "codestream":  # which only the decoder reads, and compares with the box
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("pixels were made"))
        with pytest.raises(DataError, match=said):
            header(path)
    with pytest.raises(DataError, match=said):
        open_photo(path)


def test_the_size_of_a_file_is_compared_before_its_header_is_read(tmp_path):
    with open(tmp_path / "photo.webp", "wb") as f:
        f.write(seeds()["webp"])
        f.truncate(MOST_BYTES + 1)
    for read in (header, open_photo):
        with pytest.raises(DataError, match="the file must have at most 134,217,728 bytes, got 134,217,729"):
            read(tmp_path / "photo.webp")


@pytest.mark.parametrize("size, said", [
    ((1, 201), "the long side of a photo must be at most 200 times the short one, got 1 x 201"),
    ((20_000, 9_000), "a photo must have at most 178,956,970 pixels"),
])  # fmt: skip
def test_extreme_sizes_are_refused_by_name_and_skippable(tmp_path, size, said):
    (tmp_path / "odd.png").write_bytes(png(*size))
    Image.new("RGB", (200, 1)).save(tmp_path / "long.png")
    paths, failed = [str(tmp_path / name) for name in ("odd.png", "long.png")], []
    parts = list(batches(paths, Views(Preprocess(size=(8, 8))), 4, "skip", failed))
    assert [rows.tolist() for rows, _ in parts] == [[1]] and failed == [f"{paths[0]} does not decode: {said}"]


def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    place = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)
    place.bind("socket.jpg")  # its whole path may be longer than a socket's may be
    place.close()
    said = {"fifo": "FIFO", "device": "FIFO, socket or device", "folder": "got a folder", "circle": "symbolic links"}
    for name, reason in {**said, "socket": "", "absent": "No such file", "a\0b": "null byte"}.items():
        with pytest.raises(DataError, match=rf"\.jpg does not decode: .*{reason}"):
            open_photo(f"{tmp_path}/{name}.jpg")


ERRORS = [RuntimeError, NotImplementedError, OverflowError, MemoryError, SyntaxError, struct.error, EOFError, KeyError,
          ZeroDivisionError, IndexError, TypeError, RecursionError, AttributeError]  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_whatever_a_decoder_raises_is_a_refusal_of_that_photo(tmp_path, monkeypatch, kind):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")

    def load(self):
        raise kind("of the\ndecoder\x1b[2J")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(DataError, match=r"a\.png does not decode: [^\n\x1b]*of the") as refused:
        open_photo(tmp_path / "a.png")
    assert "\x1b" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "tga", "jp2"])
def test_truncated_photos_are_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.effect_noise((40, 30), 60).convert("RGB").save(path)
    whole = path.read_bytes()
    for share in (0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=f"{ending} does not decode"):
            open_photo(path)
        try:
            image = Image.open(path)
        except OSError:
            continue
        with pytest.raises((OSError, ValueError)):
            Preprocess(size=(8, 8))(image)


def test_a_broken_stream_does_not_pass_for_whole(tmp_path):
    Image.effect_noise((40, 30), 60).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 0x10
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match="broken data stream"):
        open_photo(tmp_path / "a.png")
    with pytest.raises(OSError, match="broken data stream"):
        Preprocess(size=(8, 8))(Image.open(tmp_path / "a.png"))


@pytest.mark.parametrize("ending, how", [("tif", {}), ("gif", {}), ("webp", {"lossless": True})])
def test_of_many_pages_the_first_is_read(tmp_path, ending, how):
    pages = [Image.new("RGB", (9, 8), (i, 255 - i, 0)) for i in range(120)]
    pages[0].save(tmp_path / f"many.{ending}", save_all=True, append_images=pages[1:], **how)
    pages[0].save(tmp_path / f"one.{ending}", **how)
    seen = [open_photo(tmp_path / f"{name}.{ending}").convert("RGB") for name in ("many", "one")]
    assert np.array_equal(*map(np.asarray, seen))

"""Damaged photos by the thousand: `python -m tests.hostile.photo_mutants 20000` counts how reading them ends.

Every mutant derives from its number, so a finding is repeated by `python -m tests.hostile.photo_mutants 1 NUMBER`. The
child process has limits on memory and time; one that dies of a signal is counted, and the next goes on after it.
"""

from __future__ import annotations

import collections
import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

MEMORY = 2**30  # bytes of address space beyond what the child has when it begins
PER_CHILD, SECONDS = 1000, 300  # mutants that one child reads, and the CPU time it has for them
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds() -> dict[str, bytes]:
    """Small photos, whole, in every format that is read and in several of its kinds."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (23, 37, 3), dtype=np.uint8))
    grey = Image.fromarray(rng.integers(0, 65535, (23, 37), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 200, zip=True)
    made = {
        "jpeg": (rgb, {"format": "JPEG", "exif": exif}),
        "jpeg progressive": (rgb, {"format": "JPEG", "progressive": True, "icc_profile": b"i" * 70}),
        "jpeg cmyk": (rgb.convert("CMYK"), {"format": "JPEG"}),
        "png": (rgb, {"format": "PNG", "pnginfo": text, "exif": exif}),
        "png 16": (grey, {"format": "PNG"}),
        "png palette": (rgb.quantize(9), {"format": "PNG", "transparency": 3}),
        "png grey alpha": (rgb.convert("LA"), {"format": "PNG"}),
        "webp": (rgb, {"format": "WEBP", "exif": exif}),
        "webp lossless": (rgb.convert("RGBA"), {"format": "WEBP", "lossless": True}),
        "webp animated": (rgb, {"format": "WEBP", "save_all": True, "append_images": [rgb.rotate(180)]}),
        "gif": (rgb.quantize(16), {"format": "GIF", "save_all": True, "append_images": [rgb.rotate(180).quantize(16)]}),
        "bmp": (rgb, {"format": "BMP"}),
        "bmp palette": (rgb.quantize(16), {"format": "BMP"}),
        "tiff": (rgb, {"format": "TIFF", "exif": exif}),
        "tiff lzw": (rgb, {"format": "TIFF", "compression": "tiff_lzw"}),
        "tiff pages": (rgb, {"format": "TIFF", "save_all": True, "append_images": [rgb] * 3, "compression": "jpeg"}),
        "tiff 16": (grey, {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
        "ppm": (rgb, {"format": "PPM"}),
        "pgm 16": (grey.convert("I"), {"format": "PPM"}),
        "tga": (rgb, {"format": "TGA", "compression": "tga_rle"}),
        "jpeg 2000": (rgb, {"format": "JPEG2000"}),
        "avif": (rgb, {"format": "AVIF", "exif": exif}),
        "mpo": (rgb, {"format": "MPO", "save_all": True, "append_images": [rgb], "exif": exif}),
    }
    found = {}
    for name, (image, how) in made.items():
        if how["format"] not in Image.SAVE:
            Image.init()
        if how["format"] in Image.SAVE:  # AVIF from Pillow 11.3
            image.save(file := io.BytesIO(), **how)
            found[name] = file.getvalue()
    return found


def mutant(number: int, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of the seed, and its bytes after one to six changes, of which most are near the beginning."""
    rng = np.random.default_rng(number)
    names = sorted(whole)
    name = names[number % len(names)]
    data = bytearray(whole[name])
    for _ in range(rng.integers(1, 7)):
        at = int(len(data) * rng.random() ** 3) if data else 0
        kind = rng.integers(0, 8)
        if kind < 3 and data:
            data[at] ^= 1 << rng.integers(0, 8)
        elif kind < 5 and data:
            width, value = int(rng.choice([1, 2, 4])), int(rng.choice(EXTREMES))
            order = ">" if rng.random() < 0.5 else "<"
            packed = struct.pack(f"{order}I", value)
            data[at : at + width] = packed[-width:] if order == ">" else packed[:width]
        elif kind == 5:
            length = int(rng.integers(1, 33))
            data[at:at] = data[at : at + length]
        elif kind == 6:
            del data[at : at + int(rng.integers(1, 17))]
        else:
            other = whole[names[int(rng.integers(0, len(names)))]]
            data[at:] = other[at:] if rng.random() < 0.5 else b""
    return name, bytes(data)


def outcome(path: Path) -> str:
    """`seen`, `refused`, or what else came of it: that is a finding."""
    try:
        from jclip.data.photo_file import open_photo
    except ImportError:  # as it was before photos were opened in one place
        from jclip.data.loader import open_photo
    from jclip.data.preprocess import Preprocess
    from jclip.errors import DataError

    try:
        pixels = Preprocess()(open_photo(str(path)))
    except DataError as e:
        return "refused" if "\n" not in str(e) else "a refusal of several lines"
    except BaseException as e:
        return f"traceback: {type(e).__name__}"
    return "seen" if pixels.shape == (3, 224, 224) and np.isfinite(pixels).all() else "seen wrongly"


def limit(memory: int, seconds: int) -> None:
    """From now on this process may take so much more address space and CPU time; all that is imported is there."""
    outcome(Path(__file__))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_them(start: int, stop: int) -> None:
    """The child's part: a line of JSON before each mutant and after it."""
    whole = seeds()
    limit(MEMORY, SECONDS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photo.jpg")
        for number in range(start, stop):
            name, data = mutant(number, whole)
            path.write_bytes(data)
            print(json.dumps([number, name]), flush=True)
            said = outcome(path)
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps([said, (now - peak) // 1024]), flush=True)


def count(start: int, stop: int) -> tuple[collections.Counter, dict[str, list[int]], int]:
    """Outcomes of the mutants, the numbers of those that are findings by what they are, and the MiB they took at most."""
    counts, findings, most = collections.Counter(), collections.defaultdict(list), 0
    while start < stop:
        end = min(stop, start + PER_CHILD)
        code = f"from tests.hostile.photo_mutants import _read_them; _read_them({start}, {end})"
        child = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        if not lines:
            raise RuntimeError(f"the child ended with {child.returncode} before it began")
        for (number, name), (said, mib) in zip(lines[::2], lines[1::2], strict=False):
            counts[said] += 1
            most = max(most, mib)
            if said not in ("seen", "refused"):
                findings[f"{name}: {said}"].append(number)
        start = lines[-2 if len(lines) % 2 == 0 else -1][0] + 1
        if len(lines) % 2:  # it died while it read this one
            number, name = lines[-1]
            counts[f"died of {child.returncode}"] += 1
            findings[f"{name}: died of {child.returncode}"].append(number)
    return counts, dict(findings), most


if __name__ == "__main__":
    total, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes, found, mib = count(first, first + total)
    print(*(f"{n:6} {what}" for what, n in outcomes.most_common()), f"{mib} MiB at most", sep="\n")
    for what, numbers in sorted(found.items()):
        print(f"{what}: {len(numbers)}, such as {numbers[:5]}")

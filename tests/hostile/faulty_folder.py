"""A folder of photos with every fault that people's folders have at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def photo(path: Path, seed: int, size: tuple[int, int] = (96, 80), **options) -> Path:
    """A photo of noise that only this seed has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def faulty_folder(root: Path) -> Path:
    """`root`/{Training,valid,test}/{0, 1, …, 11, and a name in GB18030}: see the lines for what is wrong with each."""
    seeds = iter(range(1000))
    for part, count in (("Training", 3), ("valid", 2), ("test", 2)):
        for label in range(12):
            for i in range(count):
                photo(root / part / f"class {label}" / f"{i}.jpg", next(seeds))
    train, test = root / "Training", root / "test"
    first = train / "class 0"
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db"):
        (first / name).write_bytes(b"x")
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".Trash-1000", "$RECYCLE.BIN"):
        photo(train / name / "0.jpg", next(seeds))
    photo(first / "more" / "deep" / "7.jpg", next(seeds))  # in folders within the class's
    shutil.copyfile(first / "1.jpg", first / "8.JFIF")  # another ending, and a copy
    (first / "notes.txt").write_text("x")
    (first / "movie.mp4").write_bytes(b"x")
    (first / "gone.jpg").symlink_to(root / "nowhere.jpg")
    os.mkfifo(first / "pipe.jpg")
    (first / "circle").symlink_to(train, target_is_directory=True)
    elsewhere = root.parent / "elsewhere"
    photo(elsewhere / "9.png", next(seeds))
    (train / "class 1" / "linked").symlink_to(elsewhere, target_is_directory=True)
    photo(root / "unlabeled" / "a" / "0.jpg", next(seeds))  # beside the parts
    photo(test / "stray.jpg", next(seeds))  # outside of a class
    shutil.copyfile(first / "0.jpg", test / "class 0" / "copy.jpg")  # of a training photo
    shutil.copyfile(first / "2.jpg", test / "class 5" / "copy.jpg")  # in another class
    cut = photo(train / "class 2" / "cut.jpg", next(seeds))
    cut.write_bytes(cut.read_bytes()[:900])
    (train / "class 2" / "empty.jpg").write_bytes(b"")
    photo(train / "class 3" / "turned.jpg", next(seeds), exif=turned())
    photo(train / "class 3" / "wide.jpg", next(seeds), (400, 70))
    photo(train / "class 3" / "tiny.png", next(seeds), (20, 20))
    grey = np.arange(96 * 80, dtype=np.uint16).reshape(80, 96) * 8
    Image.fromarray(grey).save(train / "class 4" / "deep.png")
    Image.new("CMYK", (96, 80), (3, 90, 20, 5)).save(train / "class 4" / "print.jpg")
    Image.fromarray(np.ones((80, 96), np.float32)).save(train / "class 4" / "float.tif")
    for part in (train, test):
        chinese = os.fsdecode("苹果".encode("gb18030"))
        photo(part / "image" / "0.jpg", next(seeds))
        os.rename(part / "image", part / chinese)  # noqa: PTH104
    return root


def turned() -> Image.Exif:
    """EXIF that says a photo lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif

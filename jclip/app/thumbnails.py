"""Small pictures of photos for the browser, made once, in the app's own folder under names that are hashes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from jclip.data.photo_file import open_photo
from jclip.errors import DataError

SIDE, LARGE = 320, 1280  # pixels of the long side
MOST_FILES = 4000  # of one kind; the longest unused go first
ABSENT = (150, 152, 158)  # colour of a photo that is not there any more
BACKGROUND = (255, 255, 255)  # behind what is transparent


class Thumbnails:
    """Pictures of photos in `folder`, which is the app's own; `upright`: turned as EXIF says."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: OrderedDict[tuple[str, int, bool], Path] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(4, "thumbnails")

    def of(self, address: str, side: int = SIDE, upright: bool = True) -> Path:
        """The picture of one photo, by its path or address; a grey square where it is gone or does not decode."""
        key = address, side, upright
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        try:
            picture = open_photo(address, (side, side), upright)
        except DataError:
            picture = Image.new("RGB", (side, side), ABSENT)
        made = self.save(picture, side)
        with self._lock:
            self._made[key] = made
            while len(self._made) > MOST_FILES:
                _, old = self._made.popitem(last=False)
                if old not in self._made.values():
                    old.unlink(missing_ok=True)
        return made

    def of_all(self, addresses: Sequence[str], side: int = SIDE, upright: bool = True) -> list[Path]:
        """The pictures of several photos, made side by side."""
        return list(self._pool.map(lambda one: self.of(one, side, upright), addresses))

    def save(self, picture: Image.Image, side: int = LARGE) -> Path:
        """A picture as a file, its long side at most `side` pixels, named by its pixels."""
        small = _on_white(picture)
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        name = hashlib.sha256(repr(small.size).encode() + small.tobytes()).hexdigest()[:32]
        path = self._folder / f"{name}.webp"
        if not path.is_file():
            unfinished = self._folder / f".{name}.{threading.get_ident()}"
            small.save(unfinished, "WEBP", quality=82, method=2)
            unfinished.replace(path)
        return path

    def close(self) -> None:
        """Ends its threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _on_white(picture: Image.Image) -> Image.Image:
    """A copy in colours, what is transparent on white."""
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, (*BACKGROUND, 255)), clear).convert("RGB")
    return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()

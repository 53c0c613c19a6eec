"""The page's speed in a real browser: until it is ready, and from Enter until the last thumbnail is drawn.

    python bench/app_speed.py [--rows 200000] [--width 512] [--searches 9]

A gallery of seeded random features in float16 whose rows are 48 photos again and again, random ViT-B/32 weights, what Jittor
compiles there already. A search is measured inside the page: the Enter key, then the first frame in which every picture of
the new answer is decoded. `new` texts were never asked before, and go through the text tower; `again` were.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.data.gallery_store import DTYPES, Manifest, write_features, write_manifest, write_rows, write_skipped
from jclip.features.source import ModelSource
from tests.browser import Page, Served, start_chromium, why_no_browser

PHOTOS, PART = 48, 1 << 16
NOUNS = (
    "dog",
    "harbour",
    "lamp",
    "market",
    "forklift",
    "meadow",
    "kitchen",
    "tram",
    "parrot",
    "stairs",
    "tent",
    "violin",
)
MEASURE = """
const done = arguments[0];
const field = document.querySelector('#sentence textarea, #sentence input');
document.querySelectorAll('#found .grid').forEach(e => e.dataset.old = 1);
field.addEventListener('keydown', event => {
  if (event.key !== 'Enter') { return; }
  const begun = performance.now();
  const look = () => {
    const made = document.querySelector('#found .grid:not([data-old])');
    const pictures = made ? [...made.querySelectorAll('img')] : [];
    if (pictures.length && pictures.every(e => e.complete && e.naturalWidth)) { window.taken = performance.now() - begun; }
    else { requestAnimationFrame(look); }
  };
  window.taken = null;
  requestAnimationFrame(look);
}, {once: true, capture: true});
done();
"""


def main() -> int:
    """Prints both times."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=200_000)
    p.add_argument("--model", type=Path, help="weights of ViT-B/32's shape (default: random ones)")
    p.add_argument("--searches", type=int, default=9, help="of each kind")
    args = p.parse_args()
    if reason := why_no_browser():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args)
    return 0


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Makes the gallery, starts the page, and searches."""
    gallery = made_gallery(folder, args.rows, args.model or random_weights(folder))
    ready = []
    for _ in range(2):  # the first start fills the caches of the machine
        begun = time.monotonic()
        served = Served(folder / "cache", str(gallery))
        ready.append(time.monotonic() - begun)
        browser = start_chromium()
        try:
            begun = time.monotonic()
            page = Page(browser, served.address).open()
            shown = time.monotonic() - begun
            times = {kind: [searched(page, text) for text in texts] for kind, texts in asked(args.searches).items()}
        finally:
            browser.quit()
            served.end()
    print(f"{args.rows:,} rows of {ModelSource(args.model or folder / 'random.safetensors').width} (float16)")
    print(f"ready after {ready[-1]:.1f} s, drawn by the browser after {shown:.1f} s more")
    for kind, taken in times.items():
        print(f"Enter to thumbnails, {kind:<6} median {statistics.median(taken):.0f} ms, longest {max(taken):.0f} ms")


def asked(count: int) -> dict[str, list[str]]:
    """Texts that are new in this process, and the same ones again."""
    stamp = time.time_ns() % 10**9
    new = [f"a {NOUNS[i % len(NOUNS)]} number {stamp + i}" for i in range(count + 2)]
    return {"first": new[:2], "new": new[2:], "again": new[2:]}


def searched(page: Page, text: str) -> float:
    """Milliseconds from Enter to the pictures."""
    page.type("#sentence textarea, #sentence input", text)
    page.browser.execute_async_script(MEASURE)
    page.type_more("#sentence textarea, #sentence input", "\ue007")
    return page.wait(lambda: page.browser.execute_script("return window.taken"))


def random_weights(folder: Path) -> Path:
    """ViT-B/32 with seeded random weights."""
    from jclip.cli import main as jclip

    path = folder / "random.safetensors"
    jclip(["models", "--random", "ViT-B/32", "--out", str(path)])
    return path


def made_gallery(folder: Path, count: int, model: Path) -> Path:
    """A gallery of random features, each row one of a few photos."""
    source = ModelSource(model)
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(PHOTOS):
        small = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(photos / f"{i:03}.jpg", quality=88)
    gallery = folder / "gallery"
    gallery.mkdir()
    parts, dtype = [], DTYPES["fp16"]
    for start in range(0, count, PART):
        rows = rng.standard_normal((min(PART, count - start), source.width), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        parts.append(write_features(gallery, [rows], dtype, source.width, len(rows)))
    facts = ({"path": f"{i % PHOTOS:03}.jpg", "size": i, "mtime": 0, "sha256": f"{i:064x}"} for i in range(count))
    table = {**write_rows(gallery, facts), **write_skipped(gallery, [])}
    seen = source.preprocess.to_dict()
    about = [str(model), list(source.identity), seen, "fp16", source.width, str(photos), count, parts, table, []]
    write_manifest(gallery, Manifest(*about))
    return gallery


if __name__ == "__main__":
    sys.exit(main())

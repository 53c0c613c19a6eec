"""The two screenshots of the page in the README: 1280 pixels wide in English, 390 in Chinese, of drawn pictures.

python bench/app_pictures.py [--out docs/pictures]
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jclip.data import shape_sources
from tests.browser import Page, Served, start_chromium, why_no_browser

SENTENCE = "a red heart"
COLOURS, MOST_BYTES = 160, 200_000
SHOTS = {"app_search.png": (1280, 800, "en-US"), "app_search_phone.png": (390, 844, "zh-CN")}


def main() -> int:
    """Writes both."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    args = p.parse_args()
    if reason := why_no_browser():
        raise SystemExit(reason)
    args.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(shape_sources.kept_photos().parent, Path(folder) / "shapes")
        served = Served(Path(folder) / "cache", "shapes/photos.csv", "--model", "shapes-tiny-vit", cwd=Path(folder))
        browser = start_chromium("--hide-scrollbars")
        try:
            for name, (width, height, language) in SHOTS.items():
                write(shot(Page(browser, served.address), width, height, language), args.out / name)
        finally:
            browser.quit()
            served.end()
    return 0


def shot(page: Page, width: int, height: int, language: str) -> bytes:
    """The page with an answer."""
    page.open(width, height, language)
    page.wait(lambda: "300" in page.text("#about") and not page.all(".bar"))
    page.type("#sentence textarea, #sentence input", SENTENCE, enter=True)
    page.wait(lambda: len(page.all("#found img")) == 24)
    loaded = "return [...document.querySelectorAll('#found img')].every(e => e.complete && e.naturalWidth)"
    page.wait(lambda: page.browser.execute_script(loaded))
    page.click("#found .tile:nth-of-type(1) .tick")
    page.browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    return page.browser.get_screenshot_as_png()


def write(png: bytes, path: Path) -> None:
    """In few colours, so that it is small."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=0)
    picture.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name}: {picture.width} x {picture.height}, {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{path} must have at most {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    sys.exit(main())

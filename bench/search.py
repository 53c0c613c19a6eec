"""Searching: how long a first answer takes, and where the line of a query's background falls on real features.

    python bench/search.py [--photos FOLDER] [--features ../shared/data/clip_vitb32_features]

Times: `jclip search` as a process of its own, median of five, with random ViT-B/32 weights and what is compiled and encoded
there already; a prompt's answers in one process. The line: 35 texts against 8,519 photos (see bench/rerank.py); precision
and recall of what is above it, means over the texts, by deviations above each text's own background, and by one cosine for
all. 35 texts of one model are few, and no setting was held out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.rerank import real_search
from jclip.functional.background import background, sample_rows
from jclip.functional.directions import unit

TIMES = 5
LINES = (None, 3.0, 4.0, 4.5, 5.0)
FLAT = (0.24, 0.25, 0.26, 0.28)
JCLIP = [sys.executable, "-m", "jclip.cli"]


def main() -> int:
    """Prints both tables, as far as their data is there."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photos", type=Path, help="a folder of photos, some hundreds; without it nothing is timed")
    p.add_argument("--features", type=Path, default=ROOT.parent / "shared" / "data" / "clip_vitb32_features")
    args = p.parse_args()
    if args.features.is_dir():
        print_lines(args.features)
    if args.photos:
        print_times(args.photos)
    return 0


def print_lines(folder: Path) -> None:
    """Precision and recall above the line."""
    texts, photos, wanted = real_search(folder)
    scores = unit(np.asarray(texts, np.float64)) @ photos.features.T
    sample = sample_rows(scores.shape[1])
    grounds = [background(own[sample], len(own)) for own in scores]
    print(f"{len(texts)} texts, {scores.shape[1]} photos{'':<18}{'precision':>10}{'recall':>8}")
    for line in LINES:
        own = [background(s[sample], len(s), line) for s in scores]
        named = f"z ≥ {grounds[0].line:.2f}, the default" if line is None else f"z ≥ {line}"
        print_row(named, np.stack([ground.above(s) for ground, s in zip(own, scores, strict=True)]), wanted)
    for least in FLAT:
        print_row(f"cosine ≥ {least}", scores >= least, wanted)


def print_row(name: str, above: np.ndarray, wanted: np.ndarray) -> None:
    """One line; a text with nothing above counts as precision 1, recall 0."""
    right = (above & wanted).sum(axis=1)
    precision = np.where(above.any(axis=1), right / np.maximum(above.sum(axis=1), 1), 1.0)
    print(f"{name:<40}{precision.mean():>10.3f}{(right / wanted.sum(axis=1)).mean():>8.3f}")


def print_times(photos: Path) -> None:
    """Seconds to a first answer, and to those behind it."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.safetensors"
        subprocess.run(
            [*JCLIP, "models", "--random", "ViT-B/32", "--out", weights],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        given = ["search", str(photos), "--model", str(weights), "--top", "1", "--filepath-only"]
        asked(given, "a first text")  # embeds and compiles
        for name, texts in (
            ("a stored row", ["row:0"] * TIMES),
            ("a text that was asked before", ["a first text"] * TIMES),
            ("a new text", [f"text number {i}" for i in range(TIMES)]),
        ):
            print(f"{name:<40}{statistics.median(asked(given, text) for text in texts):>10.2f} s")
        lines = "".join(f"line number {i}\n" for i in range(40))
        begun = time.perf_counter()
        answered(given, lines[: len("line number 0\n")])
        middle = time.perf_counter()
        answered(given, lines.replace("line", "row"))
        each = (time.perf_counter() - middle - (middle - begun)) / 39
        print(f"{'each further line of a prompt':<40}{each:>10.3f} s")


def asked(given: list[str], text: str) -> float:
    """Seconds of one process."""
    begun = time.perf_counter()
    subprocess.run([*JCLIP, *given, text], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - begun


def answered(given: list[str], lines: str) -> None:
    """One process that reads queries from a pipe."""
    subprocess.run(
        [*JCLIP, *given], check=True, input=lines, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=ROOT, env=os.environ,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

"""How long `jclip check-data` takes for many photos: `python bench/check_data.py [--photos 10000]`.

640 x 480 JPEGs of quality 90 with the detail of photos (about 80 kB), in ten classes, made in a temporary folder.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
DIFFERENT = 100  # pictures that are drawn; files differ by a comment


def picture(seed: int) -> bytes:
    """A JPEG of patches at several scales, coarse ones strong and fine ones weak, as in photos."""
    rng = np.random.default_rng(seed)
    total = np.zeros((480, 640, 3))
    for side, strength in ((4, 90), (16, 40), (60, 20), (240, 12)):
        small = Image.fromarray(rng.integers(0, 255, (side * 3 // 4, side, 3), np.uint8))
        total += strength / 128 * (np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC), float) - 128)
    file = io.BytesIO()
    Image.fromarray((128 + total).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> int:
    """Makes the photos, runs the command, prints its wall time."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--photos", type=int, default=10_000)
    p.add_argument("--folder", help="where photos are made (default: a temporary folder, removed afterwards)")
    args = p.parse_args()
    pictures = [picture(seed) for seed in range(DIFFERENT)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for number in range(args.photos):
            path = Path(folder, "photos", f"class_{number % 10}", f"{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            data, note = pictures[number % DIFFERENT], b"%08d" % number
            path.write_bytes(data[:2] + b"\xff\xfe\x00\x0a" + note + data[2:])
        command = [sys.executable, "-m", "jclip.cli", "check-data", f"{folder}/photos"]
        begun = time.monotonic()
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        seconds = time.monotonic() - begun
    size = sum(map(len, pictures)) / len(pictures) / 1000
    print(done.stdout + done.stderr)
    print(
        f"{args.photos:,} JPEGs of 640 x 480, {size:.0f} kB each, on {len(os.sched_getaffinity(0))} cores: {seconds:.1f} s"
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

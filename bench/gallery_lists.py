"""What a gallery's lists take by their length, and the comparison of all pairs: `bench/gallery.py lists`."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gallery_sharing import WIDTH, _merged, _write_parts

FILES, ROWS, PAIRED = 20_000, 100_000, 20_000


def lists(args) -> None:
    """Memory of the list of photos' paths and of what `--update` knows of each row, and CPU seconds to read them; CPU
    seconds of `jclip duplicates`. Of synthetic files and rows."""
    from jclip.data.gallery_inputs import read_inputs
    from jclip.data.gallery_store import open_store
    from jclip.features.gallery_embedding import _stored
    from jclip.functional.near_pairs import near_pairs

    with tempfile.TemporaryDirectory(prefix="gallery-lists-", dir=args.folder) as name:
        photos = Path(name, "photos")
        for number in range(FILES):
            path = photos / f"{number // 10_000:05d}" / f"{number:09d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        held, _ = _taken(lambda: read_inputs([photos]))
        print(f"paths, {FILES:,} files with paths like {path}: {held / FILES * 1e6 / 2**20:.0f} MiB a million")

        gallery = Path(name, "gallery")
        _write_parts(gallery, ROWS)
        _merged(gallery, ROWS)
        held, seconds = _taken(lambda: _stored(open_store(gallery)))
        print(f"--update, {ROWS:,} rows: {held / ROWS:.0f} bytes and {seconds / ROWS * 1e6:.1f} CPU µs a row")

    rows = np.random.default_rng(0).normal(size=(PAIRED, WIDTH)).astype(np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    print(f"duplicates of {PAIRED:,} rows: {_taken(lambda: [*near_pairs((rows,), 0.98)], traced=False)[1]:.1f} CPU s")


def _taken(make: Callable, traced: bool = True) -> tuple[int, float]:
    """Bytes that the result of `make` holds, and the CPU seconds it took, each by a call of its own."""
    begun = time.process_time()
    make()
    seconds, held = time.process_time() - begun, 0
    if traced:
        tracemalloc.start()
        made = make()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del made
    return held, seconds

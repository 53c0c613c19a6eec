"""What an index of `jclip index` takes, by kind: bytes a row, CPU seconds to build, milliseconds of a query, recall.

python bench/index_sizes.py [--rows 100000] [--kinds exact,hnsw,ivf,pq] [--width 512] [--folder /tmp]      (needs faiss)

Rows are synthetic: of length one, around 1 centre for each 100 of them, as photos have likes; fp16, as a gallery keeps them.
Exact search of 10^5 rows and each kind take minutes; of 10^6 rows `--kinds exact,pq` takes ten.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
QUERIES, K, BLOCK = 100, 10, 1 << 16


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rows", type=int, default=100_000)
    p.add_argument("--kinds", default="exact,hnsw,ivf,pq")
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--folder")
    args = p.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy loads
        os.environ.setdefault(name, "1")
    import numpy as np

    from jclip.choices import INDEX_KINDS
    from jclip.errors import UnknownName
    from jclip.features import gallery_index
    from jclip.functional.nearest import nearest

    for kind in args.kinds.split(","):
        if kind not in INDEX_KINDS:
            raise UnknownName("kind", kind, INDEX_KINDS)
    print(f"{'rows':>9} {'kind':<6} {'bytes a row':>11} {'build, CPU s':>12} {'a query, CPU ms':>15} {'recall@10':>9} "
          f"{'peak memory':>11}")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="index-sizes-", dir=args.folder) as name:
        store = gallery(Path(name), args.rows, args.width)
        queries = np.concatenate([*rows(QUERIES, args.width, 7)]).astype(np.float32)
        for kind in args.kinds.split(","):
            begun = time.process_time()
            built = gallery_index.build_index(store, kind)
            took = time.process_time() - begun
            opened = gallery_index.open_index(store)
            begun = time.process_time()
            for query in queries[:20]:
                opened.nearest(query[None], K) if opened else nearest(store.parts, query[None], K)
            each = (time.process_time() - begun) / 20
            recall = "" if built.recall is None else f"{built.recall:.4f}"
            size = built.bytes / args.rows if built.bytes else 2 * args.width
            print(f"{args.rows:>9,} {kind:<6} {size:>11,.0f} {took:>12.1f} {1000 * each:>15.2f} {recall:>9} "
                  f"{peak():>7,.0f} MiB", flush=True)  # fmt: skip


def gallery(folder: Path, count: int, width: int):
    """An opened gallery of so many rows."""
    import numpy as np

    from jclip.data import gallery_store

    size, parts = gallery_store.PART_ROWS, []
    made = rows(count, width, 1)
    rest: list = []

    def blocks(wanted: int) -> Iterator:
        while wanted:
            block = rest.pop() if rest else next(made)
            if len(block) > wanted:
                rest.append(block[wanted:])
            yield block[:wanted]
            wanted -= min(wanted, len(block))

    for at in range(0, count, size):
        some = min(size, count - at)
        parts.append(gallery_store.write_features(folder, blocks(some), np.dtype("<f2"), width, some))
    table = gallery_store.write_rows(folder, ({"path": f"{i}.jpg", "sha256": f"{i:064x}"} for i in range(count)))
    table |= gallery_store.write_skipped(folder, [])
    gallery_store.write_manifest(
        folder, gallery_store.Manifest("none", [], {}, "fp16", width, "/", count, parts, table)
    )
    return gallery_store.open_store(folder)


def rows(count: int, width: int, seed: int) -> Iterator:
    """Blocks (n, width) of rows near to common centres."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for at in range(0, count, BLOCK):
        some = min(BLOCK, count - at)
        centres = np.random.default_rng(0).standard_normal((max(1, some // 100), width), np.float32)
        block = centres[rng.integers(0, len(centres), some)]
        block += 0.7 * rng.standard_normal(block.shape, np.float32)
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def peak() -> float:
    """MiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    from jclip.errors import guarded

    sys.exit(guarded(main, "bench/index_sizes.py"))

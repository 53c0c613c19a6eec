"""Galleries: exact search beside faiss, two million rows from disk, photos embedded beside torch, cost by size.

    python bench/gallery.py [search | disk | index | embed | sizes | merge | processes | lists …]
                            [--threads 1] [--rounds 5] [--cpu] [--photos FOLDER] [--folder FOLDER]

search: 200,000 x 512 float32, the ten nearest of 1,000 queries in one batch and of one query, beside faiss.IndexFlatIP and
NumPy's argpartition, alternating, medians, equal threads; the rows must be equal. disk: 2 million x 512 in float16, and how
much anonymous memory a search takes. index: recall of faiss's kinds beside exact search, and what a query takes, on 8,519
photos' real features (ViT-B/32). embed: photos per second of `jclip embed`'s loop beside torch with a DataLoader, random
ViT-B/32 weights. sizes: seconds and memory by number of rows. merge: seconds and peak memory of joining finished parts of
100,000 and of 1,000,000 rows. processes: photos per second of `jclip embed` by one process, on one core as
well, by two of one thread each, and by two workers of a Dask cluster. lists: memory of the lists of paths and of rows, and
the comparison of all pairs. faiss and Dask are not installed with the project.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
WIDTH, ROWS, QUERIES, K = 512, 200_000, 1000, 10


def main() -> int:
    """Runs the parts that are named, all by default."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument(
        "--cpu", action="store_true", help="seconds of this process's threads: others use the machine as well"
    )
    p.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "data" / "coco" / "images")
    p.add_argument("--count", type=int, default=2000, help="photos that processes embeds (default: 2000)")
    p.add_argument("--folder", type=Path, help="where merge writes 3 GB for a while (default: the system's)")
    p.add_argument("--features", type=Path, default=ROOT.parent / "shared" / "data" / "clip_vitb32_features")
    args = p.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        sys.exit(f"no such part: {unknown[0]} (known: {', '.join(PARTS)})")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy loads
        os.environ[name] = str(args.threads)
    for part in args.parts or PARTS:
        PARTS[part](args)
    return 0


def unit_rows(count: int, seed: int, dtype: str = "float32"):
    """(count, WIDTH) rows of length one, a block at a time."""
    import numpy as np

    rng, made = np.random.default_rng(seed), np.empty((count, WIDTH), dtype)
    for at in range(0, count, 1 << 15):
        block = rng.standard_normal((min(1 << 15, count - at), WIDTH), dtype=np.float32)
        made[at : at + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return made


def alternating(ways: dict[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each way, taken in turn; a first round does not count."""
    clock = time.process_time if args.cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            begun = clock()
            way()
            if number:
                times[name].append(clock() - begun)
    return {name: statistics.median(found) for name, found in times.items()}


def show(title: str, times: dict[str, float], ours: str = "jclip") -> None:
    """Each way's seconds, and how many times ours they are."""
    print(title)
    for name, seconds in times.items():
        print(f"  {name:<22}{1000 * seconds:>12.2f} ms   {seconds / times[ours]:.2f} x")


def search(args: argparse.Namespace) -> None:
    """A batch of queries and a single one, beside faiss and NumPy."""
    import numpy as np

    from jclip.functional.nearest import nearest

    rows, queries = unit_rows(ROWS, 0), unit_rows(QUERIES, 1)
    ways: dict[str, Callable] = {"jclip": lambda q: nearest((rows,), q, K)}
    try:
        import faiss

        faiss.omp_set_num_threads(args.threads)
        index = faiss.IndexFlatIP(WIDTH)
        index.add(rows)
        ways["faiss.IndexFlatIP"] = lambda q: index.search(q, K)
    except ImportError:
        print("faiss is not installed: pip install faiss-cpu")
    ways["NumPy, argpartition"] = lambda q: _by_argpartition(rows, q)
    found, scores = nearest((rows,), queries, K)
    if "faiss.IndexFlatIP" in ways:
        _, wanted = ways["faiss.IndexFlatIP"](queries)
        differ = np.argwhere(found != wanted)
        close = all(abs(float(scores[q, k] - rows[wanted[q, k]] @ queries[q])) < 1e-6 for q, k in differ)
        print(f"equal rows: {(found == wanted).mean():.6f}; where they differ, cosines are equal to 1e-6: {close}")
    for title, asked in (("1,000 queries in one batch", queries), ("one query", queries[:1])):
        some = {name: (lambda way=way, asked=asked: way(asked)) for name, way in ways.items()}
        show(f"{ROWS:,} x {WIDTH} float32, {title}, {args.threads} threads", alternating(some, args))


def _by_argpartition(rows, queries):
    import numpy as np

    scores = queries @ rows.T
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


def disk(args: argparse.Namespace, count: int = 2_000_000) -> None:
    """Two million rows of float16 from disk: seconds of a query, of 100, and anonymous memory."""
    import numpy as np

    from jclip.functional.nearest import nearest

    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for number, at in enumerate(range(0, count, 1 << 18)):
            path = Path(folder) / f"{number}.npy"
            np.save(path, unit_rows(min(1 << 18, count - at), number, "float16"))
            parts.append(np.load(path, mmap_mode="r"))
        before = _anonymous()
        for asked in (1, 100):
            queries = unit_rows(asked, 99)
            begun, most = time.perf_counter(), before
            nearest(parts, queries, K)
            most = max(most, _anonymous())
            print(
                f"{count:,} x {WIDTH} float16 from disk, {asked} queries: {time.perf_counter() - begun:.2f} s, "
                f"anonymous memory {most:.0f} MiB (peak of the process {_peak_anonymous():.0f} MiB)"
            )


def index(args: argparse.Namespace) -> None:
    """Each kind of index over a gallery of real features: bytes, recall@10 of 1,000 rows, of 35 texts, time of a text."""
    import numpy as np

    from bench.rerank import real_search
    from jclip.data import gallery_store
    from jclip.features import gallery_index
    from jclip.functional.directions import unit
    from jclip.functional.nearest import nearest

    texts, photos, _ = real_search(args.features)
    features, texts = np.asarray(unit(photos.features), "f4"), np.asarray(unit(np.asarray(texts, "f8")), "f4")
    with tempfile.TemporaryDirectory() as name:
        folder, count, width = Path(name), *features.shape
        part = gallery_store.write_features(folder, [features], np.dtype("<f2"), width, count)
        table = gallery_store.write_rows(folder, ({"path": f"{i}.jpg", "sha256": f"{i:064x}"} for i in range(count)))
        table |= gallery_store.write_skipped(folder, [])
        made = gallery_store.Manifest("none", [], {}, "fp16", width, "/", count, [part], table)
        gallery_store.write_manifest(folder, made)
        store = gallery_store.open_store(folder)
        exact, _ = nearest(store.parts, texts, K)
        ways: dict[str, Callable] = {"exact": lambda: nearest(store.parts, texts[:1], K)}
        print(f"{count:,} x {width}, real features      MiB   recall@10: rows   texts")
        for kind in ("hnsw", "ivf", "pq"):
            built = gallery_index.build_index(store, kind)
            opened = gallery_index.open_index(store)
            found, _ = opened.nearest(texts, K)
            of_texts = np.mean([len({*a} & {*b}) / K for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
            print(f"  {kind:<22}{built.bytes / 2**20:>12.1f}{built.recall:>18.4f}{of_texts:>8.4f}")
            ways[kind] = lambda opened=opened: opened.nearest(texts[:1], K)
        show("one text", alternating(ways, args), "exact")


def merge(args: argparse.Namespace) -> None:
    """Finished parts of a gallery joined."""
    import gallery_sharing

    gallery_sharing.merge(args)


def processes(args: argparse.Namespace) -> None:
    """Photos embedded by one process, by two, by a cluster."""
    import gallery_sharing

    gallery_sharing.processes(args)


def lists(args: argparse.Namespace) -> None:
    """Memory of lists by their length, and the comparison of all pairs."""
    import gallery_lists

    gallery_lists.lists(args)


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def _anonymous() -> float:
    return _status("RssAnon")


def _peak_anonymous() -> float:
    return _status("VmHWM") - _status("RssFile")


def sizes(args: argparse.Namespace) -> None:
    """Seconds of a query and of a batch of 100 at 10^4, 10^5 and 10^6 rows of float16."""
    from jclip.functional.nearest import nearest

    print("rows        features   one query     100 queries")
    for count in (10**4, 10**5, 10**6):
        rows = unit_rows(count, 0, "float16")
        ways = {str(n): partial(nearest, (rows,), unit_rows(n, 7), K) for n in (1, 100)}
        times = alternating(ways, args)
        print(
            f"{count:<12,}{rows.nbytes / 2**20:>7,.0f} MiB{1000 * times['1']:>10.1f} ms{1000 * times['100']:>13.1f} ms"
        )


def embed(args: argparse.Namespace) -> None:
    """Photos per second of the loop below `jclip embed` and of torch with a DataLoader, the same weights and photos."""
    import torch
    from gallery_embedding import ours, theirs

    torch.set_num_threads(args.threads)
    photos = sorted(map(str, args.photos.glob("*.jpg")))
    with tempfile.TemporaryDirectory() as folder:
        ways = {"jclip": ours(Path(folder), photos), "torch, DataLoader": theirs(Path(folder), photos, args.threads)}
        times = alternating(ways, args)
    show(f"{len(photos)} photos, random ViT-B/32, {args.threads} threads", times)
    for name, seconds in times.items():
        print(f"  {name:<22}{len(photos) / seconds:>10.1f} photos a second")


PARTS = {
    "search": search,
    "disk": disk,
    "index": index,
    "embed": embed,
    "sizes": sizes,
    "merge": merge,
    "processes": processes,
    "lists": lists,
}

if __name__ == "__main__":
    sys.exit(main())

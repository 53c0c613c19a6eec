"""What sharing a gallery's photos among processes costs: `bench/gallery.py merge` and `bench/gallery.py processes`.

python bench/gallery_sharing.py merge FOLDER ROWS      one merge of parts that lie in FOLDER, by a process of its own
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
WIDTH, COPIES = 512, 100  # every hundredth photo has the bytes of the one before


def merge(args) -> None:
    """Seconds and peak memory of joining finished parts of 4,096 rows x 512 in float16 into a gallery."""
    print(f"{'rows':>9}  {'parts':>5}  {'seconds':>7}  {'rows/s':>7}  peak memory   before   what the merge takes")
    for count in (100_000, 1_000_000):
        with tempfile.TemporaryDirectory(prefix="gallery-merge-", dir=args.folder) as name:
            parts = _write_parts(Path(name), count)
            child = [sys.executable, __file__, "merge", name, str(count)]
            found = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
        before, peak = found["before"], found["peak"]
        print(f"{count:>9,}  {parts:>5}  {found['seconds']:>7.1f}  {count / found['seconds']:>7,.0f}  {peak:>7.0f} MiB  "
              f"{before:>4.0f} MiB   {peak - before:.0f} MiB")  # fmt: skip


def _merged(folder: Path, count: int) -> dict[str, float]:
    """Merges, and compares the gallery with what its parts had."""
    from jclip.data import gallery_store
    from jclip.data.preprocess import Preprocess
    from jclip.features.gallery_merge import write_gallery

    made_with = SimpleNamespace(embed_dim=WIDTH), ["none", "none", "fp32"], Preprocess()
    source = SimpleNamespace(**dict(zip(("config", "identity", "preprocess"), made_with, strict=True)), family="openai")
    before, begun = _peak(), time.perf_counter()
    change = write_gallery(folder, "/photos", _parts_of(folder, count), source, "fp16", "none", None)
    found = {"seconds": time.perf_counter() - begun, "before": before, "peak": _peak()}
    store = gallery_store.open_store(folder)
    gallery_store.verify(store)
    assert len(store) == change.rows == change.added == count and change.duplicates == count // COPIES
    for row in (0, 4096, count - 1):
        assert store.rows[row] == _row(row), row
        at, part = row % gallery_store.PART_ROWS, store.parts[row // gallery_store.PART_ROWS]
        assert (part[at] == _features(row // 4096, min(4096, count - row // 4096 * 4096))[row % 4096]).all()
    return found


def _parts_of(folder: Path, count: int):
    from jclip.features.gallery_parts import Parts

    return Parts(folder, "0" * 64, SimpleNamespace(digest="1" * 64, parts=-(-count // 4096)))


def _write_parts(folder: Path, count: int) -> int:
    from jclip.features.gallery_parts import Whole

    parts = _parts_of(folder, count)
    for number in range(parts.count):
        rows = [_row(n) for n in range(number * 4096, min(count, (number + 1) * 4096))]
        parts.keep_whole(number, Whole(rows, _features(number, len(rows)), [], [], len(rows)))
    return parts.count


def _row(number: int) -> dict:
    same = number - (number % COPIES == COPIES - 1)
    digest = hashlib.sha256(str(same).encode()).hexdigest()
    known = {"path": f"{number // 10_000:05d}/{number:09d}.jpg", "member": None, "size": 100_000 + same % 7919}
    return {**known, "mtime": 1_700_000_000_000_000_000 + number, "sha256": digest, "caption": None, "columns": {}}


def _features(part: int, count: int):
    import numpy as np

    made = np.random.default_rng(part).standard_normal((4096, WIDTH), dtype=np.float32)
    return np.ascontiguousarray(made / np.linalg.norm(made, axis=1, keepdims=True), "<f2")[:count]


def processes(args) -> None:
    """Photos a second of `jclip embed` by one process, which decodes on another core, or has one core alone; by two processes;
    by two workers of a Dask cluster. A thread each."""
    from worker_kills import cluster

    with tempfile.TemporaryDirectory(prefix="gallery-processes-", dir=args.folder) as name:
        place = _Place(Path(name), args.count)
        print(f"{args.count:,} photos, random ViT-B/32, a thread each     whole command   CPU   photos/s, model loaded")
        some = f"{place.some} of them"
        one = place.measured(f"one process, {some}", [], some=True)
        bound = place.measured(f"on one core, {some}", [], some=True, cores=1)
        two = place.measured("--processes 2", ["--processes", "2"])
        print(f"efficiency of two processes: {two.rate / (2 * bound.rate):.2f} beside one core (aim 0.9), "
              f"{two.rate / (2 * one.rate):.2f} beside a process whose photos another core decodes")  # fmt: skip
        try:
            import distributed  # noqa: F401
        except ImportError:
            sys.exit("Dask is not installed: pip install 'jclip[cluster]'")
        with cluster(place) as (address, _):
            dask = place.measured("--scheduler", ["--scheduler", address])
        overhead = dask.seconds / two.seconds - 1, two.rate / dask.rate - 1
        print(f"overhead of Dask beside --processes: {100 * overhead[0]:+.1f} % of the whole command, "
              f"{100 * overhead[1]:+.1f} % once models are loaded (aim: at most 5 %)")  # fmt: skip
        print(f"galleries of the same bytes: {place.same()}")


LISTING = """
import os, time
import jclip.features.gallery_embedding as embedding
import jclip.features.gallery_parts as parts
embedding.SAVE_SECONDS = 0.0
keep = parts.Parts.keep_piece
def listing(self, number, end, known):
    keep(self, number, end, known)
    with open(os.environ["KEPT"], "a") as file:
        file.write(f"{os.getpid()} {time.time()} {len(known.hashes)}\\n")
parts.Parts.keep_piece = listing
"""


@dataclass(frozen=True)
class _Measured:
    seconds: float
    rate: float


class _Place:
    """Photos, weights, and the settings of all processes."""

    def __init__(self, folder: Path, count: int):
        from gallery_embedding import _weights

        from jclip.data.shapes import draw_scene

        self.folder, self.kept = folder, folder / "kept.txt"
        (folder / "photos").mkdir()
        for number in range(count):
            draw_scene((number,), count=(1, 3)).render(320).save(folder / "photos" / f"{number:05d}.jpg", quality=90)
        named = [f"photos/{number:05d}.jpg" for number in range(0, count, 4)]
        self.some = len(named)
        (folder / "some.txt").write_text("\n".join(named))
        self._weights = str(_weights(folder))
        (folder / "sitecustomize.py").write_text(LISTING)
        paths = os.pathsep.join(filter(None, (str(folder), str(ROOT), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": paths, "KEPT": str(self.kept), "OMP_NUM_THREADS": "1", "JCLIP_WORKERS": "1"}
        self.env = {**os.environ, **own}
        self._galleries: list[Path] = []

    def measured(self, name: str, way: list[str], some: bool = False, cores: int = 0) -> _Measured:
        """One gallery made that way, into a new folder; prints how long it took. cores: how many it may use, 0 for all."""
        self.kept.write_text("")
        out = self.folder / f"gallery-{name.split()[0]}"
        photos = "some.txt" if some else "photos"
        order = ["embed", photos, "--out", str(out), "--model", self._weights, "--family", "openai", *way]
        bound = ["taskset", "-c", f"0-{cores - 1}"] if cores else []
        begun, spent = time.perf_counter(), _of_children()
        done = subprocess.run([*bound, sys.executable, "-m", "jclip.cli", *order], cwd=self.folder, env=self.env,
                              capture_output=True, text=True)  # fmt: skip
        seconds, spent = time.perf_counter() - begun, _of_children() - spent
        if done.returncode:
            sys.exit(done.stderr)
        self._galleries += [] if some else [out]
        found = _Measured(seconds, _rate(self.kept.read_text().splitlines()))
        print(f"  {name:<52}{found.seconds:>9.1f} s{spent:>6.0f} s{found.rate:>15.1f}", flush=True)
        return found

    def same(self) -> bool:
        """Whether the galleries have the same files."""
        first, *others = [{p.name: p.read_bytes() for p in gallery.iterdir()} for gallery in self._galleries]
        return all(other == first for other in others)


def _of_children() -> float:
    """CPU seconds of the commands that have ended; a cluster's workers go on."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def _rate(lines: list[str]) -> float:
    """Photos a second of all processes together, while all of them worked: after the first batch of each."""
    spent: dict[str, list[tuple[float, int]]] = {}
    for line in lines:
        process, at, count = line.split()
        spent.setdefault(process, []).append((float(at), int(count)))
    begin, end = max(found[0][0] for found in spent.values()), min(found[-1][0] for found in spent.values())
    return sum(sum(n for at, n in found if begin < at <= end) for found in spent.values()) / max(end - begin, 1e-9)


def _peak() -> float:
    """The most memory that this process had, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Prints what one merge took, as JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("merge",))
    p.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where the parts lie that `bench/gallery.py merge` wrote"
    )
    p.add_argument("rows", type=int, metavar="ROWS", help="of all parts together")
    args = p.parse_args()
    print(json.dumps(_merged(args.folder, args.rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

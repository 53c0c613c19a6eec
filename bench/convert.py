"""Seconds and peak memory of `python convert` on files of real sizes with random weights.

`python bench/convert.py [ARCHITECTURE …] [--format safetensors|zip] [--folder DIR]`; by default ViT-L-14 and ViT-bigG-14,
in both formats. The largest needs 21 GB of disk for a moment.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jclip.readers import safetensors, torch_writer
from jclip.report.predictions import table
from jclip.weights.checkpoint import LazyTensor
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import ARCHITECTURES, VARIANTS

CONFIGS = {**{name.replace("/", "-"): config for name, config in VARIANTS.items()}, **ARCHITECTURES}
FORMATS = {"safetensors": "x.safetensors", "zip": "x.pt"}
MEASURED = """
import sys, time
from pathlib import Path
from convert.cli import main
begun = time.perf_counter()
code = main(sys.argv[1:])
seconds = time.perf_counter() - begun
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print("MEASURED", seconds, int(peak) * 1024)
sys.exit(code)
"""


def main() -> None:
    """Writes, converts, measures, removes; one row after the other."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("architectures", nargs="*", default=["ViT-L-14", "ViT-bigG-14"], metavar="ARCHITECTURE")
    p.add_argument("--format", choices=FORMATS, help="of the file that is read (default: both)")
    p.add_argument("--folder", help="where the files are for the time being")
    args = p.parse_args()
    rows = [
        measured(name, kind, args.folder)
        for name in args.architectures
        for kind in FORMATS
        if args.format in (None, kind)
    ]
    print(
        table(
            ["architecture", "from", "million parameters", "read, GB", "written, GB", "seconds", "peak RSS, MB"], rows
        )
    )


def measured(name: str, kind: str, folder: str | None) -> list[str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        source, out = Path(made) / FORMATS[kind], Path(made) / "out"
        count = write_random(source, name)
        command = [sys.executable, "-c", MEASURED, str(source), str(out), "--family", "openclip"]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        _, seconds, peak = done.stdout.splitlines()[-1].split()
        sizes = [f"{path.stat().st_size / 1e9:.2f}" for path in (source, out / "model.safetensors")]
        shutil.rmtree(out)
    return [name, kind, f"{count / 1e6:,.0f}", *sizes, f"{float(seconds):.1f}", f"{float(peak) / 1e6:,.0f}"]


def write_random(path: Path, name: str) -> int:
    """A float32 checkpoint under OpenAI's names, never in memory as a whole. The number of parameters."""
    shapes = parameter_shapes(CONFIGS[name])
    pool = np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32)

    def tensor(shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(shape, "float32", lambda: np.resize(pool, math.prod(shape)).reshape(shape))

    tensors, dtypes = {k: tensor(s) for k, s in shapes.items()}, dict.fromkeys(shapes, "float32")
    if path.suffix == ".pt":
        torch_writer.write(path, tensors, dtypes)
    else:
        safetensors.write_tensors(path, tensors, dtypes, {})
    return sum(map(math.prod, shapes.values()))


if __name__ == "__main__":
    begun = time.perf_counter()
    main()
    print(f"{time.perf_counter() - begun:.0f} seconds in all, writing the random files included")

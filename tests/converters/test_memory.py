"""Tensors pass one after the other: a file is never in memory as a whole, whichever format it has."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from jclip.readers import LazyTensor, safetensors, torch_writer
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import VARIANTS
from tests.converters.test_convert import ROOT

MEASURE = """
import sys
from pathlib import Path
from convert.cli import main
assert main(sys.argv[1:]) == 0
status = Path("/proc/self/status").read_text().splitlines()
print("peak", next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_file_of_600_mb_takes_less_than_half_of_that(name, tmp_path):
    """ViT-B/32's size; the largest tensor, the token embedding, takes 101 MB."""
    shapes, pool = parameter_shapes(VARIANTS["ViT-B/32"]), np.ones(1000, np.float32)
    tensors = {
        k: LazyTensor(s, "float32", lambda s=s: np.resize(pool, math.prod(s)).reshape(s)) for k, s in shapes.items()
    }
    source, dtypes = tmp_path / name, dict.fromkeys(shapes, "float32")
    if name.endswith(".pt"):
        torch_writer.write(source, tensors, dtypes)
    else:
        safetensors.write_tensors(source, tensors, dtypes, {})
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "out.safetensors"), "--family", "openai"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = 1024 * int(done.stdout.splitlines()[-1].split()[1])
    size = source.stat().st_size
    source.unlink()
    assert size > 600e6 and peak < size / 2, (peak, size)

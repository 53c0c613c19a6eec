"""What `pip install .` brings: three packages with their data and configs, and nothing heavy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy of the tracked files: a build writes into its source."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, so no wheel can be built without a network")
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        folder / "source",
    ]
    subprocess.run(command, check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_data_and_configs(wheel):
    names = set(wheel.namelist())
    for room in ("jclip", "finetune"):
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in names, path
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"finetune/{path.relative_to(ROOT)}" in names
    assert not [n for n in names if n.startswith(("tests/", "bench/", "docs/"))]
    assert sum(i.file_size for i in wheel.infolist()) < 20 * 2**20


def test_what_it_requires_is_lean(wheel):
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode()
    required = [
        line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]
    always = {
        line.split(";")[0].split("=")[0].split("<")[0].split(">")[0].strip()
        for line in required
        if "extra ==" not in line
    }
    assert always == {
        "jittor",
        "matplotlib",
        "numpy",
        "pillow",
        "safetensors",
        "scikit-learn",
        "pyyaml",
        "ftfy",
        "inflect",
        "regex",
        "tqdm",
        "onednn-cpu-gomp",
        "onednn-devel-cpu-gomp",
    }
    assert 'torch==2.13.0; extra == "parity"' in required
    assert (
        "jclip = jclip.cli:main"
        in wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode()
    )

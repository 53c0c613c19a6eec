"""Photos that several tests of the library read, and open_clip's lists of names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

CLASSES = ["Polar Bear", "猫", "zebra"]


@pytest.fixture
def photos(tmp_path):
    """root/{train,test}/<class>/<i>.png: 6 and 2 of each class, every one of another colour."""
    root = tmp_path / "my 照片"
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(1, count + 1):
                Image.new("RGB", (9, 7), (40 * label, 20 * i, 99)).save(root / part / name / f"{i * 5}.png")
    return root


@pytest.fixture
def open_clip_lists() -> ModuleType:
    """open_clip's templates and class names; of its files this one alone is read: the package would bring torch."""
    if (found := importlib.util.find_spec("open_clip")) is None:
        pytest.skip("open_clip is not installed: its lists are compared with a digest alone")
    place = Path(found.origin).with_name("zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", place)
    lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lists)
    return lists


@pytest.fixture(scope="session")
def published(shared):
    """TaI-DPT's and DualCoOp's own scores on VOC2007 test; labels 1, 0 = difficult, -1 = absent."""
    if not (path := shared / "tai_voc2007" / "scores.npz").is_file():
        pytest.skip(f"published scores not found at {path}")
    with np.load(path) as f:
        return {name: f[name] for name in f}

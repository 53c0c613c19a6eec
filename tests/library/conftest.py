"""Photos that several tests of the library read."""

from __future__ import annotations

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

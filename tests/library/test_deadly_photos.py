"""Photos that end the process that decodes them: found where such a process died, and left out."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image

from jclip.data import deadly_photos, workers
from jclip.data.gallery_inputs import read_inputs
from jclip.data.photo_file import header, open_photo
from jclip.data.shapes import draw_scene
from jclip.data.shares import WHOLE
from jclip.errors import DataError
from jclip.features import gallery_embedding, part_arrays
from jclip.features.source import ModelSource

DEADLY = """
import os
from PIL import ImageFile
load = ImageFile.ImageFile.load
ImageFile.ImageFile.load = lambda self: os._exit(7) if self.size == (21, 22) else load(self)
"""
WHY = "it ended the process that decodes it, twice (code 7)"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Four, of which the second ends other processes than this one."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    monkeypatch.setenv("JCLIP_WORKERS", "1")
    monkeypatch.setattr(workers, "_idle", {})
    folder = tmp_path / "photos, some"
    folder.mkdir()
    for number in range(4):
        draw_scene((number,), count=(1, 1)).render(24).save(folder / f"{number}.png")
    Image.new("RGB", (21, 22)).save(folder / "1.png")
    yield folder
    for some in workers._idle.values():
        for worker in some:
            worker.communicate()
            assert worker.returncode == 0  # the one that came last found the memory that it was given


def test_a_gallery_and_parts_leave_out_what_ended_the_process_before(photos, tmp_path):
    inputs, source = read_inputs([photos]), ModelSource("shapes-tiny-rn")
    mark = gallery_embedding.parts_of(inputs, source, tmp_path / "g", "").mark(0)
    mark.parent.mkdir()
    mark.touch()
    outcome = gallery_embedding.embed(inputs, source, tmp_path / "g")
    assert (outcome.rows, outcome.skipped) == (3, [("1.png", WHY)])
    assert not mark.exists() and open_photo(photos / "1.png").size == (21, 22)  # nothing is refused beyond the part

    def opened(paths):
        found = np.zeros(len(paths), bool)
        for place, path in enumerate(paths):
            with contextlib.suppress(DataError):
                found[place] = open_photo(path) is not None
        return {"opened": found}

    parts = part_arrays.PhotoParts("photos that open", sorted(map(str, photos.iterdir())), opened, ["opened"])
    died = parts.folder / "000000.begun"
    died.parent.mkdir(parents=True)
    died.touch()
    assert parts.finish(WHOLE) == 4 and not died.exists()
    assert next(parts.arrays())["opened"].tolist() == [True, False, True, True]
    parts.forget()


def test_the_reason_is_said_for_pixels_and_headers_and_no_longer_than_the_block(photos, tmp_path):
    mark, own = tmp_path / "mark", str(photos / "1.png")
    with deadly_photos.decoding(mark, lambda: pytest.fail("nobody died")):
        assert mark.exists() and open_photo(own)
    mark.touch()
    with pytest.raises(DataError, match="stop"), deadly_photos.decoding(mark, lambda: [own]):
        for ask in (open_photo, header):
            with pytest.raises(DataError) as e:
                ask(own)
            assert str(e.value) == f"{own} does not decode: {WHY}"
        raise DataError("stop")
    assert header(own)[2:4] == (21, 22) and not mark.exists()

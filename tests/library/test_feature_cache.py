"""What is kept of photos and prompts: by their bytes, wherever they lie, and never when it is damaged or no number."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jclip.features.extraction
from jclip.data.splits import Split
from jclip.errors import DataError, guarded
from jclip.features import cached
from jclip.features.extraction import extract
from jclip.features.heads import head_of, prompt_embeddings, text_means, zero_shot_head
from jclip.features.precomputed import read_precomputed
from jclip.features.source import ModelSource
from jclip.readers import read_weights
from jclip.weights.checkpoint import save_checkpoint

PROMPTS = [["a cat."], ["a dog."]]


@pytest.fixture
def source(small_models):
    return ModelSource(small_models["vit"])


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(4):
        Image.effect_noise((30 + i, 40), 60).convert("RGB").save(place / f"{i}.png")
    return place


def split_of(folder: Path) -> Split:
    paths = tuple(str(p) for p in sorted(folder.iterdir()))
    return Split(paths, np.arange(len(paths), dtype=np.int32))


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many photos went through the model, call by call."""
    counts, real = [], jclip.features.extraction._compute
    monkeypatch.setattr(
        jclip.features.extraction,
        "_compute",
        lambda model, split, *rest: counts.append(len(split)) or real(model, split, *rest),
    )
    return counts


def test_a_copied_moved_or_restored_folder_computes_nothing_again(source, folder, tmp_path, passes):
    _, features = extract(source, split_of(folder))
    shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copy)
    folder.rename(tmp_path / "moved")
    (tmp_path / "linked").symlink_to(tmp_path / "moved")
    shutil.copytree(tmp_path / "copied", folder)  # restored
    for place in ("copied", "moved", "linked", "photos"):
        assert np.array_equal(extract(source, split_of(tmp_path / place))[1], features)
    assert passes == [4]


def test_another_builds_features_are_not_taken(source, folder, passes, monkeypatch):
    before, photos = extract(source, split_of(folder))[1], split_of(folder)
    monkeypatch.setattr(cached, "build_digest", lambda: "another")
    assert np.array_equal(extract(source, photos)[1], before) and passes == [4, 4]
    monkeypatch.undo()
    cached.build_digest.cache_clear()
    whole, versions = cached.build_digest(), [cached._version(name) for name in cached.LIBRARIES[:3]]
    assert all(versions) and all((cached.ASSETS.parent / name).exists() for name in cached.COMPUTES)
    monkeypatch.setattr(cached, "COMPUTES", cached.COMPUTES[1:])
    cached.build_digest.cache_clear()
    assert cached.build_digest() != whole
    cached.build_digest.cache_clear()


def test_an_edited_photo_of_equal_size_and_time_is_computed_again(source, folder, passes):
    before = extract(source, split_of(folder))[1]
    path = folder / "2.png"
    was, data = path.stat(), bytearray(path.read_bytes())
    other = Image.new("RGB", (32, 40), "red")
    other.save(path)
    path.write_bytes(path.read_bytes().ljust(len(data), b"\0"))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    after = extract(source, split_of(folder))[1]
    assert passes == [4, 4] and [np.array_equal(*rows) for rows in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        True,
    ]


def test_photos_that_change_while_they_are_read_are_not_kept(source, folder, monkeypatch, capfd):
    real = jclip.features.extraction._compute

    def compute(*args):
        Image.new("RGB", (32, 40), "red").save(folder / "2.png")
        return real(*args)

    monkeypatch.setattr(jclip.features.extraction, "_compute", compute)
    extract(source, split_of(folder))
    assert "photos changed while they were read: their features are not kept" in capfd.readouterr().err
    monkeypatch.undo()


def zero_a_sector(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-40:-8] = bytes(32)
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [zero_a_sector, lambda f: f.write_bytes(f.read_bytes()[:-9]), lambda f: f.write_bytes(b"")]
)
def test_damaged_features_and_classifiers_are_computed_again_and_replaced(source, folder, own_cache, capfd, damage):
    makers = {
        "features": lambda: extract(source, split_of(folder))[1],
        "classifiers": lambda: zero_shot_head(source, PROMPTS).weights,
    }
    for kind, make in makers.items():
        whole = make()
        (file,) = (own_cache / kind).iterdir()
        damage(file)
        capfd.readouterr()
        assert np.array_equal(make(), whole)
        (line,) = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
        assert str(file) in line and line.endswith("; it is computed again")
        assert np.array_equal(make(), whole) and "damaged" not in capfd.readouterr().err


def test_turned_photos_are_reported_from_the_cache_too(source, folder, capfd):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "1.png").save(folder / "1.png", exif=exif)
    for _ in range(2):
        capfd.readouterr()
        guarded(lambda: extract(source, split_of(folder)) and None, "x")
        assert "1 of 4 photos carry an EXIF orientation and are turned upright" in capfd.readouterr().err
    stored = ModelSource(source.checkpoint.path, upright=False)
    assert not np.array_equal(extract(stored, split_of(folder))[1][1], extract(source, split_of(folder))[1][1])


def test_what_a_checkpoint_says_of_orientations_does_not_count(source, tmp_path):
    from dataclasses import replace

    save_checkpoint(
        tmp_path / "x.safetensors",
        dict(source.checkpoint.arrays()),
        source.config,
        replace(source.preprocess, upright=False),
    )
    again = ModelSource(tmp_path / "x.safetensors")
    assert again.preprocess.upright and "upright" not in read_weights(tmp_path / "x.safetensors").metadata["preprocess"]


# Numbers that are none


def broken(source, tmp_path, name: str, value: float) -> ModelSource:
    """Weights that became so after they were loaded: a file's are refused before."""
    from jclip.runtime import jt

    found = ModelSource(source.checkpoint.path)
    weight = found.model.state_dict()[name]
    weight.update(jt.array(np.full(tuple(weight.shape), value, np.float32)))
    return found


@pytest.mark.parametrize("value, said", [(np.nan, "holds NaN or infinite"), (np.inf, "holds NaN"), (0.0, "is zero")])
def test_features_that_are_no_directions_are_refused_with_their_photo(source, folder, tmp_path, own_cache, value, said):
    there = broken(source, tmp_path, "visual.proj", value)
    with pytest.raises(DataError, match=rf"the model's feature of '.*0\.png' {said}.*, as do 4 of 4"):
        extract(there, split_of(folder))
    assert not (own_cache / "features").exists() or not any((own_cache / "features").iterdir())


@pytest.mark.parametrize("make", [zero_shot_head, prompt_embeddings, text_means, lambda s, p: head_of(s.model, p)])
def test_texts_and_scales_that_are_no_numbers_are_refused(source, tmp_path, own_cache, make):
    with pytest.raises(DataError, match=r"the model's feature of 'a cat\.' holds NaN or infinite values, as do 2 of 2"):
        make(broken(source, tmp_path, "text_projection", np.nan), PROMPTS)
    for value in (np.nan, np.inf, 100.0):
        with pytest.raises(
            DataError, match=r"logit_scale must be a number whose exponential is finite and above 0, got"
        ):
            make(broken(source, tmp_path, "logit_scale", value), PROMPTS)
    assert not (own_cache / "classifiers").exists() or not any((own_cache / "classifiers").iterdir())


def test_a_recorded_scale_beyond_float32_is_refused(tmp_path):
    arrays = {f"keys_1{end}": x for end, x in (("", np.eye(2)), ("_l", np.arange(2)))}
    arrays |= {f"{part}_{end}": x for part in ("val", "test") for end, x in (("f", np.eye(2)), ("l", np.arange(2)))}
    np.savez(tmp_path / "f.npz", logit_scale=1e39, **arrays)
    with pytest.raises(DataError, match=r"logit_scale must be one number above 0 in float32, such as 100, got 1e\+39"):
        read_precomputed(str(tmp_path / "f.npz"), 1)

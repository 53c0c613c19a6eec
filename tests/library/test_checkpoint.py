"""What a weight file is stated to be, strict loading, and files that say all about themselves."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest

from jclip.data.preprocess import Preprocess
from jclip.errors import CheckpointError, LayoutError, MisfitError, UnknownName
from jclip.paths import file_sha256
from jclip.readers import jittor_pickle, safetensors
from jclip.weights.checkpoint import (
    SCALARS,
    load_strict,
    open_checkpoint,
    random_arrays,
    save_checkpoint,
)
from jclip.weights.families import Stated
from jclip.weights.parameter_shapes import config_from_shapes
from jclip.weights.variants import VARIANTS, CLIPConfig, canonical_name, file_stem, slug
from tests.toys import TOY_RESNET, TOY_VIT, TOYS, shapes_of, toy_batch, toy_file


@pytest.fixture(scope="module")
def openai_like():
    """Arrays of a small model in OpenAI's proportions (text heads of 64), so that shapes alone identify it."""
    text = replace(
        VARIANTS["ViT-B/32"].text, width=128, heads=2, layers=2, mlp_width=512, vocab_size=97, context_length=11
    )
    vision = replace(VARIANTS["ViT-B/32"].vision, layers=2, width=384, heads=6, mlp_width=100, image_size=(96, 96))
    config = CLIPConfig(24, vision, text)
    return config, random_arrays(shapes_of(config), seed=0)


@pytest.mark.parametrize("name", TOYS)
def test_a_file_of_ours_needs_nothing_else(name, tmp_path):
    path = toy_file(tmp_path, TOYS[name])
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == TOYS[name]
    assert checkpoint.preprocess == Preprocess(size=TOYS[name].vision.image_size)
    wanted = random_arrays(shapes_of(TOYS[name]), 0)
    for key, value in checkpoint.arrays():
        assert np.array_equal(value, wanted[key].reshape(value.shape)), key
    assert math.isclose(float(checkpoint.metadata["logit_scale_raw"]), math.log(100), rel_tol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_report_each_of_openais_models(name):
    assert config_from_shapes(shapes_of(VARIANTS[name]), Stated("openai")) == VARIANTS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_counts_are_the_published_ones(name):
    millions = {
        "RN50": 102.01, "RN101": 119.69, "RN50x4": 178.30, "RN50x16": 290.98, "RN50x64": 623.26,
        "ViT-B/32": 151.28, "ViT-B/16": 149.62, "ViT-L/14": 427.62, "ViT-L/14@336px": 427.94,
    }  # fmt: skip
    count = sum(math.prod(s) for k, s in shapes_of(VARIANTS[name]).items() if "running_" not in k)
    assert round(count / 1e6, 2) == millions[name]


def test_openais_marks_report_the_family(openai_like, tmp_path):
    config, arrays = openai_like
    marked = {**arrays, **{s: np.array(96.0, np.float32) for s in SCALARS}}
    jittor_pickle.write(tmp_path / "ViT-B-32.pkl", marked)
    checkpoint = open_checkpoint(tmp_path / "ViT-B-32.pkl")
    assert checkpoint.config == config and checkpoint.preprocess == Preprocess(size=(96, 96))
    with pytest.raises(CheckpointError, match="the marks of openai, family 'openclip' contradicts"):
        open_checkpoint(tmp_path / "ViT-B-32.pkl", family="openclip")


def test_without_a_mark_the_family_must_be_named(openai_like, tmp_path):
    config, arrays = openai_like
    safetensors.write(tmp_path / "x.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"does not say which activation.*pass family=.*openai .*metaclip "):
        open_checkpoint(tmp_path / "x.safetensors")
    assert open_checkpoint(tmp_path / "x.safetensors", family="openai").config == config
    assert open_checkpoint(tmp_path / "x.safetensors", family="openclip").config == replace(config, activation="gelu")
    with pytest.raises(UnknownName, match="family 'opneai', did you mean 'openai'"):
        open_checkpoint(tmp_path / "x.safetensors", family="opneai")


def test_wrappers_and_prefixes_are_taken_off(openai_like, tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    config, arrays = openai_like
    state = {f"module.{k}": torch.tensor(v) for k, v in arrays.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 1.0}}, tmp_path / "epoch_3.pt")
    assert open_checkpoint(tmp_path / "epoch_3.pt", family="openai").config == config


def test_an_unknown_vision_width_asks_for_its_head_width(openai_like):
    _, arrays = openai_like
    shapes = {k: v.shape for k, v in arrays.items()} | {"visual.conv1.weight": (360, 3, 32, 32)}
    with pytest.raises(CheckpointError, match="width 360 does not give its head width"):
        config_from_shapes(shapes, Stated("openclip"))
    assert config_from_shapes(shapes, Stated("openclip", head_width=60)).vision.heads == 6


def test_what_is_no_clip_in_openais_layout_is_reported_with_its_keys(tmp_path):
    safetensors.write(tmp_path / "x.safetensors", {"fc.weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(LayoutError, match=r"must be a CLIP model in OpenAI's layout, got fc.weight …"):
        open_checkpoint(tmp_path / "x.safetensors", family="openai")


def test_family_contradicting_the_metadata_is_refused(tmp_path):
    path = toy_file(tmp_path, TOY_VIT)
    assert open_checkpoint(path, family="openai").config == TOY_VIT
    with pytest.raises(CheckpointError, match="says activation quickgelu, family 'openclip' contradicts"):
        open_checkpoint(path, family="openclip")


def test_damaged_metadata_is_reported(tmp_path):
    safetensors.write(tmp_path / "x.safetensors", {"a": np.zeros(2, np.float32)}, {"format": "jclip", "config": "{"})
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_strict_loading_lists_every_kind_of_misfit_and_changes_nothing(tmp_path):
    from jclip.model.clip import CLIP

    model = CLIP(TOY_VIT)
    before = {k: v.numpy() for k, v in model.state_dict().items()}
    arrays = random_arrays(shapes_of(TOY_VIT), 0)
    del arrays["visual.proj"]
    arrays["extra.weight"] = np.zeros(3, np.float32)
    arrays["ln_final.weight"] = np.zeros(5, np.float32)
    with pytest.raises(MisfitError) as error:
        load_strict(model, arrays, "x.safetensors")
    assert str(error.value) == (
        "x.safetensors does not fit the model: 1 missing (visual.proj); 1 unexpected (extra.weight); "
        "1 misshaped (ln_final.weight (5,) instead of (20,))"
    )
    assert error.value.exit_code == 2
    assert all(np.array_equal(before[k], v.numpy()) for k, v in model.state_dict().items())


def test_masks_and_tables_are_no_parameters():
    from jclip.model.clip import CLIP

    for config in (TOY_VIT, TOY_RESNET):
        model = CLIP(config)
        model.encode_text(toy_batch(config)[1])
        named = set(model.state_dict())
        assert not [k for k in named if "mask" in k or k.split(".")[-1][0] == "_"]
        assert len({id(p) for p in model.parameters()}) == len(named)


def test_random_weights_are_the_same_everywhere():
    one, two = (random_arrays({"visual.proj": (24, 14), "ln_final.weight": (20,)}, seed) for seed in (0, 0))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert float(one["visual.proj"].sum()) == pytest.approx(float(np.float32(one["visual.proj"]).sum()))
    assert not np.array_equal(random_arrays({"visual.proj": (24, 14)}, 1)["visual.proj"], one["visual.proj"])


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = toy_file(tmp_path, TOY_VIT)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_checkpoint(path, random_arrays(shapes_of(TOY_VIT), 1), TOY_VIT, Preprocess())
    assert error.value.filename == str(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_hashes_are_remembered_until_the_file_changes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = file_sha256(path)
    assert first == file_sha256(path) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    path.write_bytes(b"three")
    assert file_sha256(path) != first


def test_names_and_their_spellings():
    for name in VARIANTS:
        assert {canonical_name(n) for n in (name, name.lower(), slug(name), file_stem(name))} == {name}
    assert slug("ViT-L/14@336px") == "vit_l14_336" and file_stem("ViT-L/14@336px") == "ViT-L-14-336px"
    with pytest.raises(UnknownName, match=r"model 'ViT-B/31', did you mean 'ViT-B/32'\?"):
        canonical_name("ViT-B/31")


def test_a_damaged_note_of_a_hash_is_not_believed(tmp_path, monkeypatch):
    notes = tmp_path / "hashes"
    notes.mkdir()
    monkeypatch.setattr("jclip.paths.file_hashes.cache_dir", lambda *_: notes)
    path = tmp_path / "x"
    path.write_bytes(b"one")
    right = file_sha256(path)
    (note,) = notes.iterdir()
    note.write_text(note.read_text().replace(right[:4], "0000", 1))
    assert file_sha256(path) == right


def test_a_file_restored_with_its_old_time_is_hashed_again(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    before, first = path.stat(), file_sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_sha256(path) != first


@pytest.mark.parametrize("at", ["header", "metadata", "data"])
def test_a_sealed_file_notices_one_changed_byte(tmp_path, at):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"a": np.arange(5.0), "b": np.zeros((0, 3))}, {"note": "0" * 64})
    whole = bytearray(path.read_bytes())
    assert np.array_equal(safetensors.read_sealed(path)["a"].read(), np.arange(5.0))
    assert safetensors.read_sealed(path).metadata == {"note": "0" * 64}
    place = {"header": whole.index(b'"a"') + 1, "metadata": whole.index(b'"note"') + 2, "data": len(whole) - 3}[at]
    whole[place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(safetensors.DamagedFile, match="damaged"):
        safetensors.read_sealed(path)

"""Photos of any proportions against transformers: SigLIP 2's NaFlex towers and processor, FG-CLIP 2's numbers of patches."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
transformers = pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")

import safetensors.torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers.models.siglip2 import image_processing_pil_siglip2 as reference  # noqa: E402

from convert.cli import inspect, main  # noqa: E402
from jclip.data import workers  # noqa: E402
from jclip.data.augment import AUGMENTS, TEST_VIEWS, Views  # noqa: E402
from jclip.data.loader import batches  # noqa: E402
from jclip.data.patch_counts import FG_CLIP_STEPS, grid_within, size_in_patches  # noqa: E402
from jclip.data.splits import Split  # noqa: E402
from jclip.features.extraction import extract  # noqa: E402
from jclip.features.source import ModelSource  # noqa: E402
from jclip.functional.positions import resample_positions, triangle_matrix  # noqa: E402
from jclip.functional.similarity import normalise  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.trainable import trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.identify import identify  # noqa: E402
from tests.converters.writers import torch_model  # noqa: E402
from tests.parity.test_fg_clip import fg_clip_folder  # noqa: E402
from tests.toys import letter_words  # noqa: E402

SHAPES = [(64, 36), (29, 97), (20, 20), (17, 16), (130, 7), (64, 36), (1, 1), (51, 96)]  # width, height
PATCH, GRID, MOST = 4, 3, 14


def photos(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in shapes]


def naflex_folder(folder, seed, most=MOST):
    """The reference's folder, with its model."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision = {**sizes, "intermediate_size": 42, "patch_size": PATCH, "num_patches": GRID * GRID}
    text = {**sizes, "intermediate_size": 33, "vocab_size": 97, "max_position_embeddings": 11, "projection_size": 24}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    model = torch_model(
        transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=vision)), seed
    )
    model.save_pretrained(folder)
    transformers.Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=most).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(letter_words(97).data)
    return model


def authors_patches(size, patch):
    """How many patches FG-CLIP 2's examples allow for a photo of (width, height)."""
    count = (size[0] // patch) * (size[1] // patch)
    return next((most for most, above in ((1024, 784), (784, 576), (576, 256), (256, 128)) if count > above), 128)


def patches_of(pixels, patch):
    rows, columns = (side // patch for side in pixels.shape[1:])
    return pixels.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)


def test_sizes_equal_the_references():
    rng = np.random.default_rng(0)
    sides = [*rng.integers(1, 900, (300, 2)).tolist(), [1, 5000], [5000, 1], [1, 1], [256, 256], [480, 640], [16, 4096]]
    for number, (height, width) in enumerate(sides):
        for patch, most in ((16, FG_CLIP_STEPS[number % 5]), (14, 256), (5, 7)):
            wanted = reference.get_image_size_for_max_num_patches(height, width, patch, most)
            assert grid_within(height, width, patch, most) == wanted, (height, width, patch, most)
        wanted = reference.get_image_size_for_max_num_patches(height, width, 16, authors_patches((width, height), 16))
        assert size_in_patches(height, width, 16, FG_CLIP_STEPS) == wanted, (height, width)
    assert size_in_patches(480, 640, 16, FG_CLIP_STEPS) == (27 * 16, 36 * 16)


def test_weights_of_positions_equal_torchs(close):
    table = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)
    for new in [(3, 4), (5, 9), (2, 1), (1, 13), (7, 4)]:
        wanted = torch.nn.functional.interpolate(
            torch.tensor(table).reshape(1, 3, 4, 5).permute(0, 3, 1, 2).double(), new, mode="bilinear", antialias=True
        )
        got = resample_positions(table, (3, 4), new, linear=True)
        close(got, wanted[0].permute(1, 2, 0).reshape(-1, 5), "features_normalised")
    assert np.array_equal(triangle_matrix(4, 4), np.eye(4))


@pytest.mark.parametrize("seed", [0, 1])
def test_naflex_photos_of_any_proportions(seed, tmp_path, close, capsys):
    """All photos through the source, in batches by shape, against one padded batch with its mask."""
    theirs, given = naflex_folder(tmp_path / "in", seed), photos(seed)
    paths = [tmp_path / f"{number}.png" for number in range(len(given))]
    for path, photo in zip(paths, given, strict=True):
        photo.save(path)
    source = ModelSource(tmp_path / "in")
    assert source.preprocess.patch_counts == (MOST,) and source.config.vision.any_shape
    padded = transformers.Siglip2ImageProcessorPil.from_pretrained(tmp_path / "in")(given, return_tensors="pt")
    for photo, wanted, mask in zip(given, padded["pixel_values"], padded["pixel_attention_mask"], strict=True):
        patches = patches_of(source.preprocess(photo), PATCH)
        assert np.array_equal(patches, wanted.numpy()[: len(patches)]) and int(mask.sum()) == len(patches)
    with torch.no_grad():
        wanted = theirs.get_image_features(**padded).pooler_output
    split = Split(tuple(map(str, paths)), np.zeros(len(paths), np.int64))
    capsys.readouterr()
    rows, got = extract(source, split)
    assert rows.tolist() == [*range(len(paths))]
    close(got, wanted, "features", "SigLIP 2 NaFlex: photos of 7 shapes")
    units = got / np.linalg.norm(got, axis=1, keepdims=True)
    close(units, torch.nn.functional.normalize(wanted), "features_normalised", "SigLIP 2 NaFlex: normalised")
    ids = np.random.default_rng(seed).integers(0, 97, (5, 11)).astype(np.int32)
    with torch.no_grad(), jt.no_grad():
        text = theirs.get_text_features(torch.tensor(ids).long()).pooler_output
        close(source.model.encode_text(ids).numpy(), text, "features", "SigLIP 2 NaFlex: text")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("seed", [0, 1])
def test_fg_clip_photos_of_any_proportions(seed, tmp_path, close):
    """Each photo with as many patches as the authors' examples give it; padding and its mask change nothing."""
    theirs, _ = fg_clip_folder(tmp_path / "fg", seed)
    found = identify(tmp_path / "fg").checkpoint
    assert found.preprocess.patch_counts == FG_CLIP_STEPS
    model, grids = build(found), set()
    for photo in photos(seed, [(60, 40), (33, 141), (37 + 16 * seed, 37 + 16 * seed), (90, 5), (171, 100)]):
        processor = transformers.Siglip2ImageProcessorPil(patch_size=5)
        given = processor(photo, max_num_patches=authors_patches(photo.size, 5), return_tensors="pt")
        pixels = found.preprocess(photo)
        patches = patches_of(pixels, 5)
        assert np.array_equal(patches, given["pixel_values"][0].numpy()[: len(patches)])
        grids.add(pixels.shape)
        with torch.no_grad(), jt.no_grad():
            wanted = theirs.vision_model(**given).pooler_output
            got = model.encode_image(pixels[None])
        close(got.numpy(), wanted, "features", "FG-CLIP 2: photos of any proportions")
        close(normalise(got).numpy(), torch.nn.functional.normalize(wanted), "features_normalised",
              "FG-CLIP 2: any proportions, normalised")  # fmt: skip
    assert len(grids) == 5


def test_gradients_and_dense_features_of_another_grid(tmp_path, close):
    """Positions get theirs through the resampling."""
    theirs = naflex_folder(tmp_path / "in", 2)
    model = build(identify(tmp_path / "in").checkpoint)
    pixels = np.random.default_rng(2).standard_normal((2, 3, 2 * PATCH, 5 * PATCH)).astype(np.float32)
    patches = torch.tensor(np.stack([patches_of(one, PATCH) for one in pixels]))
    shapes = {"spatial_shapes": torch.tensor([[2, 5]] * 2), "pixel_attention_mask": torch.ones(2, 10, dtype=torch.long)}
    theirs.get_image_features(pixel_values=patches, **shapes).pooler_output.square().sum().backward()
    wanted = theirs.vision_model.embeddings.position_embedding.weight.grad
    table = trainable(model)["visual.trunk.pos_embed"]
    (got,) = jt.grad(model.encode_image(pixels).sqr().sum(), [table])
    close(got.numpy()[0], wanted, "gradient_relative", "NaFlex positions: gradients, relative", relative=True)
    with jt.no_grad():
        pooled, cells = model.encode_image(pixels, dense="token")
        with torch.no_grad():
            wanted = theirs.vision_model(pixel_values=patches, **shapes)
    close(cells.numpy(), wanted.last_hidden_state, "features", "SigLIP 2 NaFlex: per patch")
    close(pooled.numpy(), wanted.pooler_output, "features")
    with pytest.raises(ValueError, match="do not fit a model of input"):
        model.encode_image(np.zeros((1, 3, PATCH, PATCH + 1), np.float32))


def test_naflex_in_and_out_changes_no_bit(tmp_path, capsys):
    theirs = naflex_folder(tmp_path / "in", 3)
    assert inspect([str(tmp_path / "in")]) == 0
    assert "layout       Hugging Face Siglip2Model folder\n" in capsys.readouterr().out
    assert main([str(tmp_path / "in"), str(tmp_path / "a.safetensors"), "--check"]) == 0
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "out"), "--to", "huggingface"]) == 0
    back = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    state = theirs.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    said, was = (json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("out", "in"))
    assert all(said[key] == was[key] for key in ("patch_size", "max_num_patches", "resample", "image_mean"))
    transformers.Siglip2Model.from_pretrained(tmp_path / "out")
    found = identify(tmp_path / "a.safetensors").checkpoint
    assert found.preprocess == identify(tmp_path / "in").checkpoint.preprocess and found.config.vision.any_shape


def test_one_size_where_one_is_asked_for(tmp_path, capsys, close):
    """Squares for crops in training and for another image size, whose positions are the reference's of that grid."""
    theirs = naflex_folder(tmp_path / "in", 4)
    capsys.readouterr()
    source = ModelSource(tmp_path / "in", image_size=5 * PATCH)
    assert source.preprocess.resize == "squash" and not source.config.vision.any_shape
    (photo,) = photos(4, [(64, 36)])
    pixels = source.preprocess(photo)
    with torch.no_grad(), jt.no_grad():
        shapes = {"spatial_shapes": torch.tensor([[5, 5]]), "pixel_attention_mask": torch.ones(1, 25, dtype=torch.long)}
        wanted = theirs.get_image_features(pixel_values=torch.tensor(patches_of(pixels, PATCH))[None], **shapes)
        close(source.model.encode_image(pixels[None]).numpy(), wanted.pooler_output, "features")
    assert not capsys.readouterr().err
    own = ModelSource(tmp_path / "in")
    assert Views(own.preprocess, TEST_VIEWS["flip"])(photo, 0).shape == (2, 3, 3 * PATCH, 4 * PATCH)
    assert Views(own.preprocess, AUGMENTS["coop"])(photo, 0).shape == (1, 3, 3 * PATCH, 3 * PATCH)
    assert own.squared().preprocess.resize == "squash"
    (crops, training) = capsys.readouterr().err.splitlines()
    assert crops.startswith("crops of photos must be of one size: they are squashed to 12 x 12 pixels")
    assert training.startswith("training photos must be of one size")


def test_processes_and_threads_prepare_the_same(tmp_path, monkeypatch):
    naflex_folder(tmp_path / "in", 5)
    paths = [str(tmp_path / f"{number}.png") for number in range(len(SHAPES))]
    for path, photo in zip(paths, photos(5), strict=True):
        Image.Image.save(photo, path)
    views = Views(ModelSource(tmp_path / "in").preprocess)
    here = dict(workers.decoded(paths, range(len(paths)), views, 4, 1))
    for at, pixels in batches(paths, views, 5):
        for number, own in zip(at.tolist(), pixels, strict=True):
            assert np.array_equal(here.pop(number), own)
    assert not here

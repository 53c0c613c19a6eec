"""Weights that take photos of any proportions, in features, pairs, galleries, tags and training; needs no reference."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip.choices import PreprocessChoice
from jclip.cli import main
from jclip.data import preprocess
from jclip.data.augment import Views
from jclip.data.captions import Pairs
from jclip.data.loader import batches
from jclip.data.preprocess import Preprocess, with_choice
from jclip.data.splits import Split
from jclip.errors import ConfigError
from jclip.features.box_proposals import BoxScorer
from jclip.features.caption_features import encode_pairs
from jclip.features.extraction import encode_photos, extract
from jclip.features.gallery import Gallery
from jclip.features.source import ModelSource
from jclip.features.tagging import Tagger
from jclip.functional.directions import unit
from jclip.functional.nearest import take
from jclip.weights.checkpoint import open_checkpoint, random_arrays, save_checkpoint
from tests.toys import SMALL_SIGLIP, shapes_of, words_of

SHAPES = [(64, 36), (29, 97), (20, 20), (64, 36), (130, 7), (51, 96)]  # width, height
LOOK = Preprocess((32, 32), "proportional", "bilinear", (0.5,) * 3, (0.5,) * 3, patch=8, patch_counts=(9, 20))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="not installed: pip install '.[tokenizers]'")
    path = tmp_path_factory.mktemp("any shape") / "model.safetensors"
    config = replace(SMALL_SIGLIP, vision=replace(SMALL_SIGLIP.vision, any_shape=True))
    save_checkpoint(path, random_arrays(shapes_of(config), 0), config, LOOK, vocabulary=words_of(config))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes, its photos of many shapes."""
    root, rng = tmp_path_factory.mktemp("photos, 各种"), np.random.default_rng(0)
    for part in ("train", "test"):
        for name, colour in (("red", 200), ("dark", 20)):
            (root / part / name).mkdir(parents=True)
            for number, (width, height) in enumerate(SHAPES):
                pixels = rng.integers(0, 50, (height, width, 3)) + np.array([colour, 10, 10])
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root


def of_one(source, path):
    """The features of a photo alone, from its pixels."""
    with Image.open(path) as photo:
        return source.model.encode_image(source.preprocess(photo)[None]).numpy()[0]


def test_features_stand_in_the_order_of_photos(weights, photos, close, capsys):
    source = ModelSource(weights)
    assert open_checkpoint(weights).preprocess == LOOK
    paths = sorted(map(str, (photos / "test").rglob("*.png")))
    wanted = np.stack([of_one(source, path) for path in paths])
    split = Split(tuple(paths), np.zeros(len(paths), np.int64))
    for rows, got in (extract(source, split), encode_photos(source.model, source.preprocess, split)):
        assert rows.tolist() == [*range(len(paths))]
        close(got, wanted, "features")
    pairs = Pairs(len(paths), lambda row, _: (f"photo {row}",) * 2, tuple(reversed(paths)))
    close(encode_pairs(source.model, pairs, source.preprocess).photos, wanted[::-1], "features")
    tags = Tagger(source, ["red", "dark"], "simple").scores(paths)
    close(unit(wanted) @ unit(source.model.encode_text(source.tokenize(["a photo of a red.", "a photo of a dark."])).numpy()).T
          * float(source.model.logit_scale.exp().item()) + source.logit_bias, tags, "scores")  # fmt: skip
    assert not capsys.readouterr().err


def test_no_batch_is_larger_than_one_of_squares(weights, photos):
    source = ModelSource(weights)
    views, path = Views(source.preprocess), str(photos / "test" / "red" / "5.png")  # 51 x 96, many patches
    sizes = [(len(at), pixels.size) for at, pixels in batches([path] * 6, views, 3)]
    assert sum(count for count, _ in sizes) == 6 and max(size for _, size in sizes) <= 3 * 3 * 32 * 32
    assert [count for count, _ in sizes] == [2, 1, 2, 1]


def test_a_gallery_and_a_model_trained_on_squares(weights, photos, tmp_path, close, capsys):
    assert (
        main(["embed", str(photos / "test"), "--model", str(weights), "--out", str(tmp_path / "g"), "--store", "fp32"])
        == 0
    )
    gallery, source = Gallery.open(tmp_path / "g"), ModelSource(weights)
    rows = [json.loads(line) for line in next((tmp_path / "g").glob("rows-*.jsonl")).read_text().splitlines()]
    wanted = np.stack([of_one(source, photos / "test" / row["path"]) for row in rows])
    close(take(gallery.store.parts, np.arange(len(rows))), unit(wanted), "features_normalised")
    capsys.readouterr()
    config = tmp_path / "full.yaml"
    config.write_text(json.dumps({
        "recipe": "full", "model": str(weights), "loss": "sigmoid", "optim": {"epochs": 1, "batch": 4},
        "data": {"root": str(photos), "shots": 3, "val_shots": 1}, "templates": "simple", "augment": "none",
    }))  # fmt: skip
    assert main(["train", str(config), "--run", str(tmp_path / "r")]) == 0
    assert "training photos must be of one size: they are squashed to 32 x 32 pixels" in capsys.readouterr().err
    assert open_checkpoint(tmp_path / "r" / "model.safetensors").preprocess.resize == "squash"


def test_boxes_are_seen_as_squares(weights, capsys):
    preprocess._say_squashed.cache_clear()
    BoxScorer([ModelSource(weights)])
    assert capsys.readouterr().err.startswith(
        "pictures of boxes must be of one size: they are squashed to 32 x 32 pixels"
    )


def test_what_weights_without_it_say(tmp_path):
    with pytest.raises(ConfigError, match="resize proportional must be of weights that take photos of any proportions"):
        with_choice(Preprocess(), PreprocessChoice(resize="proportional"))
    assert with_choice(LOOK, PreprocessChoice(resize="squash")) == LOOK.fixed() and not LOOK.fixed().varies
    assert "patch" not in Preprocess().to_dict() and Preprocess.from_dict(LOOK.to_dict()) == LOOK
    assert Views.from_dict(json.loads(json.dumps(Views(LOOK).to_dict()))) == Views(LOOK)
    for values, message in (
        ({"patch_counts": [0]}, "patch_counts must be a list of at most 16, each an integer from 1 to 65536, got"),
        ({"patch_counts": 9}, "patch_counts must be a list of at most 16"), ({"patch": -1}, "patch must be an integer from 0"),
        ({"patch": 0}, "resize proportional must be of weights that take photos of any proportions"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Preprocess.from_dict({**LOOK.to_dict(), **values})

"""Every family of image tower under the network that finds boxes: levels, token counts, a training that goes down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jclip.data import shapes
from jclip.data.box_samples import BoxSamples, drawn_scene, samples_of_scenes
from jclip.errors import ConfigError
from jclip.features import box_features
from jclip.features.source import ModelSource
from jclip.model.clip import inference
from jclip.model.grounding import GroundingNetwork
from jclip.model.tower_levels import block_levels, fusion_shape, image_parts, spread, stage_grid
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.train.box_training import batch_loss
from jclip.train.optim import AdamW
from jclip.weights.variants import ARCHITECTURES, SHIPPED, VARIANTS, CLIPConfig, ResNetConfig
from tests.toys import SMALL_RESNET, SMALL_TEXT, SMALL_VIT, TOY_EVAS, toy_file

SQUARE = {name: replace(c.vision, image_size=(40, 40), patch_size=10) for name, c in TOY_EVAS.items()}
FAMILIES = {
    "vit": SMALL_VIT,
    "layer scale": CLIPConfig(24, replace(SMALL_VIT.vision, layer_scale=True), SMALL_TEXT, "gelu"),
    "resnet": SMALL_RESNET,
    **{f"eva {name}": CLIPConfig(24, vision, SMALL_TEXT, "gelu") for name, vision in SQUARE.items()},
}
TOKENS = {"vit": 17, "layer scale": 17, "resnet": 64, "shapes-tiny-vit": 65, "shapes-tiny-rn": 64}  # EVA's: 17
WIDTHS = {
    "resnet": 4 * 6 * 15,
    "shapes-tiny-vit": 4 * 128,
    "shapes-tiny-rn": 4 * 16 * 15,
}  # the others: two blocks of 48


@pytest.mark.parametrize("name", {**VARIANTS, **ARCHITECTURES, **SHIPPED})
def test_every_architecture_has_sizes(name):
    config = {**VARIANTS, **ARCHITECTURES, **SHIPPED}[name]
    levels, last = fusion_shape(config), fusion_shape(config, "last")
    vision, cells = config.vision, config.vision.grid[0] * config.vision.grid[1]
    assert last.image_width == last.text_width == levels.text_width == config.embed_dim
    assert last.image_tokens == 1 + cells and levels.hidden == config.text.width
    if isinstance(vision, ResNetConfig):
        rows, columns = stage_grid(vision)
        assert levels.image_tokens == rows * columns and min(rows, columns) >= 8
        assert levels.image_width == 4 * vision.width * 15 and vision.image_size[0] % rows == 0
    else:
        assert levels.image_tokens == vision.class_tokens + cells and levels.image_width == 4 * vision.width
        assert len(block_levels(vision.layers)) == 4


def source_of(name: str, folder) -> ModelSource:
    return ModelSource(name) if name in SHIPPED else ModelSource(toy_file(folder, FAMILIES[name], seed=2))


@pytest.mark.parametrize("layers", ["levels", "last"])
@pytest.mark.parametrize("name", [*FAMILIES, *SHIPPED])
def test_training_goes_down_on_every_family(name, layers, tmp_path, close):
    source = source_of(name, tmp_path)
    side = source.config.vision.image_size[0]
    samples = samples_of_scenes([drawn_scene((5, i), shapes.SEEN_PAIRS, 0.0) for i in range(4)], side)
    reading = box_features.Reading(layers, stored="fp32")
    features = box_features.box_features(source, samples, reading, keep=False)
    network = GroundingNetwork(
        fusion_shape(source.config, layers, hidden=24, layers=2, heads=3, ffn=20, dropout=0.0, project_norm=True),
        seed=3,
    )
    batch = features.batch(np.arange(len(samples)))
    cells = source.config.vision.grid[0] * source.config.vision.grid[1]
    assert batch.images.shape[1] == (TOKENS.get(name, 17) if layers == "levels" else 1 + cells) == batch.seen.shape[1]
    assert batch.images.shape[2] == (WIDTHS.get(name, 96) if layers == "levels" else source.config.embed_dim)
    optim = AdamW(trainable(network), lr=1e-2)
    losses = []
    for step in range(12):
        loss = batch_loss(network, batch, step)
        losses.append(float(loss.numpy()[0]))
        optim.step(loss)
    assert np.isfinite(losses).all() and losses[0] > losses[1] > losses[2] > 0 and losses[-1] < 0.95 * losses[0], losses
    jt.gc()


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_outputs_of_blocks(name, tmp_path, close):
    source = source_of(name, tmp_path)
    config = source.config
    pixels = np.random.default_rng(1).standard_normal((2, 3, *config.vision.image_size), dtype=np.float32)
    with inference(source.model):
        taps: dict = {}
        source.model.encode_image(pixels, taps=taps)
        got = spread([part.numpy() for part in image_parts(source.model, pixels)], config)
        if name == "resnet":
            first = taps["visual.layer1"].numpy()  # of 16 x 16 cells, averaged to 8 x 8
            wanted = first.reshape(2, first.shape[1], 8, 2, 8, 2).mean((3, 5)).transpose(0, 2, 3, 1).reshape(2, 64, -1)
        else:
            wanted = taps["visual.block0"].numpy()
            close(got[:, :, -48:], taps["visual.block1"].numpy(), "features_normalised")
    close(got[:, :, : wanted.shape[2]], wanted, "features_normalised")


def test_towers_that_see_no_squares_are_refused(tmp_path):
    config = CLIPConfig(24, TOY_EVAS["eva02"].vision, SMALL_TEXT, "gelu")
    source = ModelSource(toy_file(tmp_path, config))
    samples = BoxSamples((), np.zeros((0, 2)), np.zeros(0, int), (), np.zeros((0, 4)))
    with pytest.raises(ConfigError, match="grounding needs a model that sees squares, got 20 x 15 pixels"):
        box_features.box_features(source, samples, box_features.Reading())
    alone = CLIPConfig(24, SMALL_VIT.vision, None)
    with pytest.raises(ConfigError, match="grounding needs weights with both towers"):
        fusion_shape(alone)


def test_a_tower_whose_blocks_stay_on_disk_gives_the_same_levels(tmp_path, close):
    path = toy_file(tmp_path, FAMILIES["eva 8b"], seed=2)
    pixels = np.random.default_rng(2).standard_normal((2, 3, 40, 40), dtype=np.float32)
    found = []
    for stream in (False, True):
        model = ModelSource(path, stream=stream).model
        with inference(model):
            found.append(image_parts(model, pixels)[0].numpy())
    close(found[1], found[0], "features_normalised")

"""What SigLIP's weights are not asked for: CLIP's softmax, heads that nobody can know, prompts that are too long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jclip.cli import main
from jclip.errors import CheckpointError
from jclip.readers import read_weights, safetensors
from jclip.weights.checkpoint import random_arrays
from jclip.weights.families import Stated
from jclip.weights.identify import identify
from jclip.weights.layouts import from_chinese_clip, from_fg_clip, from_huggingface, from_siglip
from jclip.weights.parameter_shapes import config_from_shapes
from tests.toys import SMALL_SIGLIP, TOY_SIGLIP, letter_words, shapes_of, toy_file

NAMES = "red thing,green thing,blue thing,a boat"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights that read photos and texts."""
    pytest.importorskip("tokenizers", reason="not installed: pip install '.[tokenizers]'")
    folder = tmp_path_factory.mktemp("siglip refusals")
    file = read_weights(toy_file(folder, SMALL_SIGLIP))
    arrays = {k: t.read() for k, t in file.items()} | {"logit_scale": np.array(2.0, np.float32)}
    safetensors.write(folder / "own.safetensors", arrays, file.metadata)
    return folder / "own.safetensors"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "prob-prompts"], "mode must be one of embed, embed-raw, max for"),
        (["--mode", "prob-templates"], "got prob-templates: it shares probabilities out by CLIP's softmax"),
        (["--scale", "50"], "got 50: the weights' own scale and bias belong together"),
    ],
)
def test_softmax_settings_are_one_line(options, message, weights, photo_folder, capsys):
    assert main(["zero-shot", str(photo_folder / "test"), "--model", str(weights), "--classes", NAMES, *options]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "sigmoid loss" in said and len(said.splitlines()) == 1


def test_shapes_alone_do_not_give_heads_of_widths_that_no_siglip_has(tmp_path):
    square = replace(TOY_SIGLIP, vision=replace(TOY_SIGLIP.vision, image_size=(20, 20)))
    path = tmp_path / "bare.safetensors"
    safetensors.write(path, random_arrays(shapes_of(square), 0), {})
    (tmp_path / "tokenizer.json").write_bytes(letter_words(square.text.vocab_size).data)
    with pytest.raises(CheckpointError, match="an image tower of width 24 does not give its head width"):
        identify(path, Stated(family="siglip"))
    with pytest.raises(CheckpointError, match="heads of width 7 do not divide an image tower of width 24"):
        identify(path, Stated(family="siglip", head_width=7))
    with pytest.raises(CheckpointError, match="heads of width 6 do not divide a text tower of width 20"):
        identify(path, Stated(family="siglip", head_width=6))
    config = identify(path, Stated(family="siglip", head_width=4)).checkpoint.config
    assert (config.vision.heads, config.text.heads) == (6, 5)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1152, 16), (1536, 16)])
def test_shapes_give_the_heads_of_published_widths(width, heads):
    vision, text = replace(TOY_SIGLIP.vision, width=width, heads=heads, image_size=(20, 20)), TOY_SIGLIP.text
    shapes = shapes_of(
        replace(TOY_SIGLIP, embed_dim=width, vision=vision, text=replace(text, width=width, heads=heads))
    )
    image = config_from_shapes(shapes, Stated(family="siglip"))
    assert (image.vision.heads, image.text.heads) == (heads, heads)


def test_a_text_that_is_too_long_is_no_fault_of_the_photos(weights, photo_folder, capsys):
    command = ["tag", str(photo_folder / "test"), "--model", str(weights), "--classes", "blue thing," + "x" * 99]
    command += ["--templates", "simple"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "is too long for context length" in said and "photos can be scored" not in said
    assert main([*command, "--truncate"]) == 0


def test_the_models_that_are_listed_are_those_that_are_read():
    beside = (from_chinese_clip.MODEL_TYPE, from_siglip.KINDS[0], from_siglip.KINDS[3], from_fg_clip.KIND)
    assert ("clip", from_huggingface.WORLDWIDE, *beside) == from_huggingface.READ

"""Both towers against torch, through the shipping loader: outputs, every block, gradients, statistics."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from jclip.functional.similarity import normalise  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.trainable import trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.checkpoint import open_checkpoint  # noqa: E402
from tests.parity import torch_clip  # noqa: E402
from tests.toys import TOYS, shapes_of, toy_batch, toy_file  # noqa: E402


@pytest.fixture(params=[(name, seed) for name in TOYS for seed in (0, 1)], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request, tmp_path):
    name, seed = request.param
    checkpoint = open_checkpoint(toy_file(tmp_path, TOYS[name], seed))
    model = build(checkpoint)
    return name, seed, model, dict(checkpoint.arrays())


def test_features_and_every_block(case, close):
    name, seed, model, arrays = case
    pixels, tokens = toy_batch(model.config, seed)
    ours, theirs = {}, {}
    with jt.no_grad():
        image, text = model.encode_image(pixels, taps=ours).numpy(), model.encode_text(tokens, taps=ours).numpy()
    p = torch_clip.parameters(arrays)
    close(
        image, torch_clip.encode_image(p, model.config, torch.tensor(pixels), theirs), "features", f"toy {name}: image"
    )
    close(
        text,
        torch_clip.encode_text(p, model.config, torch.tensor(tokens).long(), theirs),
        "features",
        f"toy {name}: text",
    )
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        wanted = theirs[key].numpy()
        wanted = wanted[:, : value.shape[1]] if key.startswith("text.") else wanted
        close(value.numpy(), wanted, "tokens", f"toy {name}: {key}")


def test_logits_both_ways(case, close):
    name, seed, model, arrays = case
    pixels, tokens = toy_batch(model.config, seed)
    with jt.no_grad():
        per_image, per_text = model(pixels, tokens)
    p = torch_clip.parameters(arrays)
    image = torch.nn.functional.normalize(torch_clip.encode_image(p, model.config, torch.tensor(pixels)), dim=-1)
    text = torch.nn.functional.normalize(torch_clip.encode_text(p, model.config, torch.tensor(tokens).long()), dim=-1)
    wanted = p["logit_scale"].exp() * image @ text.T
    close(per_image.numpy(), wanted, "scores", f"toy {name}: logits")
    assert np.array_equal(per_text.numpy(), per_image.numpy().T)


def test_gradients_of_all_parameters(case, close):
    name, seed, model, arrays = case
    pixels, tokens = toy_batch(model.config, seed)
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((n, model.config.embed_dim)).astype(np.float32) for n in (len(pixels), len(tokens))]

    named = trainable(model)
    image, text = normalise(model.encode_image(pixels)), normalise(model.encode_text(tokens))
    loss = (image * weights[0]).sum() + (text * weights[1]).sum() * model.logit_scale.exp()
    ours = dict(zip(named, jt.grad(loss, list(named.values())), strict=True))

    p = torch_clip.parameters(arrays, requires_grad=True)
    image = torch.nn.functional.normalize(torch_clip.encode_image(p, model.config, torch.tensor(pixels)), dim=-1)
    text = torch.nn.functional.normalize(torch_clip.encode_text(p, model.config, torch.tensor(tokens).long()), dim=-1)
    (
        (image * torch.tensor(weights[0])).sum() + (text * torch.tensor(weights[1])).sum() * p["logit_scale"].exp()
    ).backward()
    for key, value in named.items():
        wanted = p[key].grad.reshape(tuple(value.shape))
        close(ours[key].numpy(), wanted, "gradient_relative", f"toy {name}: gradients, relative", relative=True)


def test_batch_norm_statistics_after_a_training_step(tmp_path, close):
    checkpoint = open_checkpoint(toy_file(tmp_path, TOYS["resnet"]))
    model = build(checkpoint)
    pixels, _ = toy_batch(model.config)
    p = torch_clip.parameters(dict(checkpoint.arrays()))
    wanted = torch_clip.encode_image(p, model.config, torch.tensor(pixels), training=True)
    model.train()
    close(model.encode_image(pixels).numpy(), wanted, "features", "toy resnet: image in training mode")
    running = {k: v for k, v in model.state_dict().items() if "running_" in k}
    assert len(running) == 2 * sum(k.endswith("running_mean") for k in running)
    for key, value in running.items():
        close(value.numpy(), p[key], "statistics", "toy resnet: batch norm statistics after a step")


@pytest.mark.parametrize("name", ["vit", "vit_gelu"])
def test_against_transformers(name, tmp_path, close):
    pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")
    from tests.parity.hugging_face import hugging_face_model

    for seed in (0, 1):
        checkpoint = open_checkpoint(toy_file(tmp_path, TOYS[name], seed))
        model = build(checkpoint)
        compare_with_transformers(
            model, checkpoint, hugging_face_model, seed, close, f"toy {name} against transformers"
        )


def compare_with_transformers(model, checkpoint, make, seed, close, label):
    reference = make(model.config, dict(checkpoint.arrays()))
    pixels, tokens = toy_batch(model.config, seed)
    with torch.no_grad():
        image = reference.get_image_features(pixel_values=torch.tensor(pixels)).pooler_output
        text = reference.get_text_features(input_ids=torch.tensor(tokens).long()).pooler_output
    with jt.no_grad():
        ours = model.encode_image(pixels), model.encode_text(tokens)
    for kind, got, wanted in zip(("image", "text"), ours, (image, text), strict=True):
        close(got.numpy(), wanted, "features", f"{label}: {kind}")
        unit = torch.nn.functional.normalize(wanted, dim=-1)
        close(normalise(got).numpy(), unit, "features_normalised", f"{label}: {kind}, normalised")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_real_sizes(name, tmp_path, close):
    from jclip.data.preprocess import Preprocess
    from jclip.weights.checkpoint import random_arrays, save_checkpoint
    from jclip.weights.variants import VARIANTS
    from tests.parity.hugging_face import hugging_face_model

    config = VARIANTS[name]
    path = tmp_path / "real.safetensors"
    save_checkpoint(path, random_arrays(shapes_of(config), seed=0), config, Preprocess(size=config.vision.image_size))
    checkpoint = open_checkpoint(path)
    model = build(checkpoint)
    if config.vision.kind == "vit":
        compare_with_transformers(model, checkpoint, hugging_face_model, 0, close, f"{name} against transformers")
        return
    pixels, tokens = toy_batch(config)
    p = torch_clip.parameters(dict(checkpoint.arrays()))
    with torch.no_grad(), jt.no_grad():
        wanted = torch_clip.encode_image(p, config, torch.tensor(pixels))
        got = model.encode_image(pixels)
        close(got.numpy(), wanted, "features", f"{name} against torch: image")
        unit = torch.nn.functional.normalize(wanted, dim=-1)
        close(normalise(got).numpy(), unit, "features_normalised", f"{name} against torch: image, normalised")
        text = torch_clip.encode_text(p, config, torch.tensor(tokens).long())
        close(model.encode_text(tokens).numpy(), text, "features", f"{name} against torch: text")

"""PE-Core, MobileCLIP B and L, MetaCLIP 2 worldwide against open_clip, timm and transformers, in and out again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from convert.cli import main
from jclip.data.preprocess import Preprocess
from jclip.functional.similarity import normalise
from jclip.model.clip import build
from jclip.readers import read_weights
from jclip.runtime import jt
from jclip.weights import variants
from jclip.weights.checkpoint import in_memory, open_checkpoint, random_arrays, save_checkpoint
from jclip.weights.identify import identify
from jclip.weights.layouts import from_open_clip, from_timm
from jclip.weights.parameter_shapes import parameter_shapes
from tests import toys_2025
from tests.toys import toy_batch
from tests.toys_2025 import TIMM_NAMES, TOYS_2025, open_clip_folder, toy_texts

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
pytest.importorskip("open_clip", reason="open_clip is not installed")
NAMES = pytest.mark.parametrize("name", TOYS_2025)
SEEDS = pytest.mark.parametrize("seed", [0, 1])


@pytest.fixture(autouse=True)
def toy_names(monkeypatch):
    """The toy towers under their names in timm."""
    for name, timm in TIMM_NAMES.items():
        monkeypatch.setitem(from_open_clip.TIMM, timm, f"toy-{name}")
        monkeypatch.setitem(variants.ARCHITECTURES, f"toy-{name}", TOYS_2025[name])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """open_clip's model and its folder, by name and seed."""
    folder = tmp_path_factory.mktemp("open_clip")
    return {
        (n, s): (open_clip_folder(folder / f"{n}-{s}", n, s), folder / f"{n}-{s}") for n in TOYS_2025 for s in (0, 1)
    }


def encoded(model, pixels, ids):
    with torch.no_grad():
        return model.encode_image(torch.tensor(pixels)), model.encode_text(torch.tensor(ids).long())


@SEEDS
@NAMES
def test_features_of_open_clips_folder(name, seed, folders, close):
    theirs, folder = folders[name, seed]
    config = TOYS_2025[name]
    source = identify(folder)
    source.check()
    assert source.checkpoint.config == config and source.checkpoint.preprocess.resize == "squash"
    model, (pixels, _), ids = build(source.checkpoint), toy_batch(config, seed), toy_texts(config, seed)
    with jt.no_grad():
        ours = model.encode_image(pixels), model.encode_text(ids)
    for kind, got, wanted in zip(("image", "text"), ours, encoded(theirs, pixels, ids), strict=True):
        close(got.numpy(), wanted, "features", f"toy {name} against open_clip: {kind}")
        unit = torch.nn.functional.normalize(wanted, dim=-1)
        close(normalise(got).numpy(), unit, "features_normalised", f"toy {name} against open_clip: {kind}, normalised")


@NAMES
def test_every_blocks_tokens(name, folders, close):
    theirs, folder = folders[name, 0]
    config, taps = TOYS_2025[name], {}
    model, (pixels, _), ids = build(identify(folder).checkpoint), toy_batch(config), toy_texts(config)
    with jt.no_grad(), torch.no_grad():
        model.encode_image(pixels, taps=taps)
        _, every = model.encode_text(ids, dense=True, taps=taps)
        text = theirs.text if hasattr(theirs, "text") else theirs
        x = text.token_embedding(torch.tensor(ids).long()) + text.positional_embedding
        for i, block in enumerate(text.transformer.resblocks):
            x = block(x, attn_mask=text.attn_mask)
            close(taps[f"text.block{i}"].numpy(), x[:, : every.shape[1]], "tokens", f"toy {name}: text tokens")
        close(every.numpy(), (text.ln_final(x) @ text.text_projection)[:, : every.shape[1]], "tokens")
        for i, block in enumerate(_image_blocks(theirs, torch.tensor(pixels))):
            close(taps[f"visual.block{i}"].numpy(), block, "tokens", f"toy {name}: image tokens")


def _image_blocks(model, pixels):
    trunk = getattr(model.visual, "trunk", None)
    if trunk is None:
        found, hooks = [], []
        for block in model.visual.transformer.resblocks:
            hooks.append(block.register_forward_hook(lambda _, __, y: found.append(y)))
        model.encode_image(pixels)
        [hook.remove() for hook in hooks]
        return found
    first = trunk.num_prefix_tokens
    made = trunk.forward_intermediates(
        pixels, output_fmt="NLC", return_prefix_tokens=first > 0, intermediates_only=True
    )
    return [torch.cat([y[1], y[0]], dim=1) for y in made] if first else made


@NAMES
def test_gradients(name, folders, close):
    theirs, folder = folders[name, 0]
    config, model = TOYS_2025[name], build(identify(folder).checkpoint)
    for parameter in model.parameters():
        parameter.start_grad()
    (pixels, _), ids = toy_batch(config), toy_texts(config)
    theirs.zero_grad()
    loss = (theirs.encode_image(torch.tensor(pixels)) ** 2).sum()
    (loss + (theirs.encode_text(torch.tensor(ids).long()) ** 2).sum()).backward()
    given = {k: p.grad.numpy() for k, p in theirs.named_parameters() if p.grad is not None}
    tensors = {k: in_memory(np.ascontiguousarray(g)) for k, g in given.items()}
    wanted = (from_timm.canonical if name in TIMM_NAMES else from_open_clip.canonical)(tensors)[0]
    params = {k: v for k, v in model.named_parameters() if k in wanted}
    assert set(params) == set(wanted)
    loss = (model.encode_image(pixels) ** 2).sum() + (model.encode_text(ids) ** 2).sum()
    for key, gradient in zip(params, jt.grad(loss, list(params.values())), strict=True):
        label = f"toy {name}: gradients, relative"
        close(gradient.numpy(), wanted[key].read(), "gradient_relative", label, relative=True)


@NAMES
def test_out_and_in_again_changes_no_bit(name, folders, tmp_path):
    """open_clip's folder → jclip's file → open_clip's folder: the same tensors and description of the towers."""
    _, folder = folders[name, 0]
    ours, out = tmp_path / "ours.safetensors", tmp_path / "out"
    assert main([str(folder), str(ours)]) == 0
    assert open_checkpoint(ours).config == TOYS_2025[name]
    assert main([str(ours), str(out), "--to", "open_clip"]) == 0
    wanted, got = (read_weights(place / "open_clip_model.safetensors") for place in (folder, out))
    assert set(wanted) == set(got)
    for key, tensor in wanted.items():
        assert np.array_equal(tensor.read(), got[key].read()), key
    said = json.loads((out / "open_clip_config.json").read_text())
    assert identify(out).checkpoint.config == TOYS_2025[name]
    assert said["preprocess_cfg"]["interpolation"] == "bilinear"


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_open_clip_loads_what_we_write(name, tmp_path, close):
    import open_clip

    toys_2025.register_timm()
    config = TOYS_2025[name]
    source, out = tmp_path / "ours.safetensors", tmp_path / "out"
    shown = Preprocess(size=config.vision.image_size, interpolation="bilinear")
    save_checkpoint(source, random_arrays(parameter_shapes(config), 3), config, shown)
    assert main([str(source), str(out), "--to", "open_clip"]) == 0
    theirs = open_clip.create_model(f"local-dir:{out}").eval()
    (pixels, _), ids = toy_batch(config), toy_texts(config)
    with jt.no_grad():
        model = build(open_checkpoint(source))
        ours = model.encode_image(pixels), model.encode_text(ids)
    for got, wanted in zip(ours, encoded(theirs, pixels, ids), strict=True):
        close(got.numpy(), wanted, "features", f"toy {name}: open_clip reads ours")

"""EVA towers of all kinds against timm and against float64 NumPy; no package has 8B and 18B, whose parts timm can be given."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jclip.model.clip import CLIP, load_strict
from jclip.runtime import jt
from jclip.weights.checkpoint import random_arrays
from jclip.weights.variants import EVAConfig
from tests.parity import numpy_eva
from tests.toys import TOY_EVAS, shapes_of, toy_batch

CASES = [pytest.param(config, id=name) for name, config in TOY_EVAS.items()]


def model_of(config, seed):
    arrays = random_arrays(shapes_of(config), seed)
    model = CLIP(config)
    load_strict(model, arrays)
    model.eval()
    return model, arrays


def timm_tower(v: EVAConfig, embed: int, arrays: dict[str, np.ndarray]):
    """The same tower of timm's parts, strictly loaded."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.layers import RmsNorm
    from timm.models.eva import Eva

    norm = partial(RmsNorm if v.rms_norm else torch.nn.LayerNorm, eps=v.norm_eps)
    tower = Eva(
        img_size=v.image_size, patch_size=v.patch_size, embed_dim=v.width, depth=v.layers, num_heads=v.heads,
        mlp_ratio=v.mlp_width / v.width, swiglu_mlp=v.swiglu, scale_mlp=v.sub_norm, scale_attn_inner=v.sub_norm,
        qkv_fused=not v.sub_norm, qkv_bias=v.bias, use_rot_pos_emb=v.rope, ref_feat_shape=(16, 16),
        use_post_norm=v.post_norm, norm_layer=norm, global_pool="token", num_classes=embed,
    )  # fmt: skip
    trunk = {k.removeprefix("visual.trunk."): torch.tensor(a) for k, a in arrays.items() if k.startswith("visual.")}
    if not v.bias:
        trunk["head.bias"] = torch.zeros(embed)
    tower.load_state_dict(trunk)
    return torch, tower.eval()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("config", CASES)
def test_features_and_tokens_equal_timms(config, seed, close, request):
    model, arrays = model_of(config, seed)
    torch, theirs = timm_tower(config.vision, config.embed_dim, arrays)
    pixels, _ = toy_batch(config, seed)
    taps, label = {}, f"EVA against timm, {request.node.callspec.id.split('-')[0]}"
    with torch.no_grad(), jt.no_grad():
        close(model.encode_image(pixels, taps=taps).numpy(), theirs(torch.tensor(pixels)), "features", label)
        _, per_block = theirs.forward_intermediates(torch.tensor(pixels), output_fmt="NLC", return_prefix_tokens=True)
    for i, (patches, first) in enumerate(per_block):
        close(taps[f"visual.block{i}"].numpy(), torch.cat([first, patches], dim=1), "tokens", f"{label}, tokens")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("config", CASES)
def test_features_equal_the_formulas_in_float64(config, seed, close, request):
    model, arrays = model_of(config, seed)
    pixels, _ = toy_batch(config, seed)
    wanted = numpy_eva.encode_image(arrays, pixels, config.vision.heads, config.vision.post_norm)
    with jt.no_grad():
        close(
            model.encode_image(pixels).numpy(), wanted, "features", f"EVA against float64, {request.node.callspec.id}"
        )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("config", CASES)
def test_penultimate_features_equal_the_formulas_in_float64(config, seed, close):
    model, arrays = model_of(config, seed)
    pixels, _ = toy_batch(config, seed)
    without = {k: a for k, a in arrays.items() if not k.startswith("visual.trunk.head.")}
    width = {"visual.trunk.head.weight": np.eye(config.vision.width)}
    wanted = numpy_eva.encode_image(without | width, pixels, config.vision.heads, config.vision.post_norm)
    with jt.no_grad():
        close(model.encode_image(pixels, penultimate=True).numpy(), wanted, "features", "EVA, penultimate features")


@pytest.mark.parametrize("config", CASES)
def test_gradients_equal_timms(config, close):
    model, arrays = model_of(config, 0)
    torch, theirs = timm_tower(config.vision, config.embed_dim, arrays)
    for parameter in model.parameters():
        parameter.start_grad()
    pixels, _ = toy_batch(config)
    (theirs(torch.tensor(pixels)) ** 2).sum().backward()
    wanted = {f"visual.trunk.{k}": p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    params = {k: v for k, v in model.named_parameters() if k in wanted}
    got = jt.grad((model.encode_image(pixels) ** 2).sum(), list(params.values()))
    for (name, _), gradient in zip(params.items(), got, strict=True):
        close(gradient.numpy(), wanted[name], "gradient_relative", "EVA: gradients, relative", relative=True)


@pytest.mark.parametrize("config", CASES)
def test_dense_tokens_and_prompts(config, close):
    """Ordinary tokens are the head of the last norm; tokens put in place by what they were change nothing."""
    model, _ = model_of(config, 0)
    pixels, _ = toy_batch(config)
    taps = {}
    with jt.no_grad():
        pooled, tokens = model.encode_image(pixels, dense="token", taps=taps)
        last = model.visual.trunk
        patches = taps[f"visual.block{config.vision.layers - 1}"][:, 1:]
        close(tokens.numpy(), last.head(last.norm(patches)).numpy(), "kernel")
        again = model.encode_image(pixels, insert={1: (2, taps["visual.block0"][:, 2:4])})
        close(again.numpy(), pooled.numpy(), "kernel")
        values = model.encode_image(pixels, dense="value")[1]
    cells = config.vision.grid[0] * config.vision.grid[1]
    assert tuple(values.shape) == (len(pixels), cells, config.embed_dim)


def test_a_prompt_behind_the_patches_is_not_rotated(close):
    config = TOY_EVAS["eva02"]
    model, _ = model_of(config, 0)
    rotation = model.visual.trunk._rope
    x = jt.array(np.random.default_rng(0).standard_normal((2, 16, 3 * config.vision.width)).astype(np.float32))
    turned = rotation(x).numpy()
    cells = config.vision.grid[0] * config.vision.grid[1]
    assert np.array_equal(turned[:, 0], x.numpy()[:, 0]) and np.array_equal(
        turned[:, 1 + cells :], x.numpy()[:, 1 + cells :]
    )
    assert np.array_equal(turned[..., 2 * config.vision.width :], x.numpy()[..., 2 * config.vision.width :])
    assert not np.allclose(turned[:, 2], x.numpy()[:, 2])


def test_other_sizes_recompute_the_rotation(tmp_path, close):
    """Positions resampled without antialias as EVA does it, and the rotary angles scaled to the same 16 steps."""
    from jclip.model.clip import build
    from jclip.weights.checkpoint import open_checkpoint
    from tests.toys import toy_file

    config = TOY_EVAS["eva02"]
    larger = replace(config, vision=replace(config.vision, image_size=(25, 30)))
    found = open_checkpoint(toy_file(tmp_path, config)).resized((25, 30))
    assert found.config == larger and "antialias false" in found.metadata["image_positions"]
    arrays = dict(found.arrays())
    pixels, _ = toy_batch(larger)
    wanted = numpy_eva.encode_image(arrays, pixels, config.vision.heads, post_norm=False)
    with jt.no_grad():
        close(build(found).encode_image(pixels).numpy(), wanted, "features", "EVA02 at another size against float64")


@pytest.mark.parametrize("config", CASES)
def test_bfloat16_products(config, close):
    """Half precision on the CPU rounds what is multiplied, gives the weights back, and stays near float32."""
    from jclip import kernels

    if reason := kernels.why_no_half("bf16"):
        pytest.skip(reason)
    model, _ = model_of(config, 0)
    pixels, _ = toy_batch(config)
    with jt.no_grad():
        wanted = model.encode_image(pixels).numpy()
        got = model.to("bf16").encode_image(pixels).numpy()
    assert not np.array_equal(got, wanted)
    close(got, wanted, "half_tower_relative", "EVA in bf16, relative", relative=True)
    assert {k: tuple(v.shape) for k, v in model.full_weights().items()} == shapes_of(config)

"""What the library makes of PE-Core's and MobileCLIP's towers beside their features: half precision, other sizes, maps, the
last block alone, streaming, locks, prompts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import pytest

from jclip import kernels
from jclip.data.preprocess import Preprocess
from jclip.errors import CheckpointError, ConfigError
from jclip.model import streaming
from jclip.model.clip import CLIP, build
from jclip.model.dense_map import dense_map
from jclip.model.last_block import LastBlock
from jclip.model.low_rank import Adapters
from jclip.model.parameter_groups import LowRank, image_groups, text_groups
from jclip.model.patch_dropout import check_patch_dropout, encode_kept_patches
from jclip.prompts.vocabularies import VocabularyFile
from jclip.readers import LazyTensor
from jclip.runtime import jt
from jclip.weights.checkpoint import load_strict, open_checkpoint, random_arrays, save_checkpoint
from jclip.weights.identify import layout_of, words_beside
from jclip.weights.layouts import from_open_clip, from_timm
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.perception_configs import PerceptionConfig
from jclip.weights.stored_vocabulary import tokenizer_of
from jclip.weights.variants import ARCHITECTURES, CLIPConfig
from tests.tolerances import tolerance
from tests.toys import toy_batch
from tests.toys_2025 import MOBILE_B, MOBILE_L, PE, PE_G, TOYS_2025, WORLDWIDE, described, worldwide_words

TOWERS = pytest.mark.parametrize("name", ["pe", "pe_g", "mobile_b", "mobile_l"])


def toy(name, seed=0) -> CLIP:
    model = CLIP(TOYS_2025[name])
    load_strict(model, random_arrays(parameter_shapes(TOYS_2025[name]), seed))
    model.eval()
    return model


def toy_checkpoint(folder, name):
    config, path = TOYS_2025[name], folder / f"{name}.safetensors"
    save_checkpoint(path, random_arrays(parameter_shapes(config), 0), config, Preprocess(size=config.vision.image_size))
    return open_checkpoint(path)


@TOWERS
def test_bfloat16_products_stay_near_float32(name, close):
    if reason := kernels.why_no_half("bf16"):
        pytest.skip(reason)
    model, (pixels, _) = toy(name), toy_batch(TOYS_2025[name])
    with jt.no_grad():
        wanted = model.encode_image(pixels).numpy()
        got = model.to("bf16").encode_image(pixels).numpy()
    assert not np.array_equal(got, wanted)
    close(got, wanted, "half_tower_relative", f"toy {name} in bf16, relative", relative=True)
    assert {k: tuple(v.shape) for k, v in model.full_weights().items()} == parameter_shapes(TOYS_2025[name])


@TOWERS
def test_eight_bits_stay_near_float32(name, close):
    model, (pixels, _) = toy(name), toy_batch(TOYS_2025[name])
    with jt.no_grad():
        wanted = model.encode_image(pixels).numpy()
        got = model.to("int8").encode_image(pixels).numpy()
    cosine = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    close(cosine, np.ones_like(cosine), "int8_toy_cosine", f"toy {name} in 8 bits")
    assert not np.array_equal(got, wanted)


@pytest.mark.parametrize("config", [PE, PE_G], ids=["class token", "none"])
def test_other_sizes_are_timms(config, tmp_path, close):
    """Learned positions resampled with antialias, rotary ones scaled to the grid of pre-training, as timm does both."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.layers import LayerNorm
    from timm.models.eva import Eva

    path = tmp_path / "toy.safetensors"
    save_checkpoint(path, random_arrays(parameter_shapes(config), 0), config, Preprocess(size=config.vision.image_size))
    found, v = open_checkpoint(path), config.vision
    theirs = Eva(
        img_size=v.image_size, patch_size=v.patch_size, embed_dim=v.width, depth=v.layers, num_heads=v.heads,
        mlp_ratio=v.mlp_width / v.width, attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True,
        class_token=v.class_token, ref_feat_shape=v.rope_grid, rope_grid_offset=float(v.class_token),
        rope_grid_indexing="xy", attn_pool_num_heads=v.pool_heads, attn_pool_mlp_ratio=4.0, global_pool="map",
        norm_layer=partial(LayerNorm, eps=1e-5), num_classes=config.embed_dim,
    )  # fmt: skip
    trunk = from_timm.as_trunk(found.tensors, config)
    theirs.load_state_dict({
        k.removeprefix("visual.trunk."): torch.tensor(t.read()) for k, t in trunk.items() if k.startswith("visual.")
    })  # fmt: skip
    theirs.eval().set_input_size((30, 25))
    larger = found.resized((30, 25))
    assert larger.config.vision.rope_grid == v.rope_grid and larger.config.vision.grid == (6, 5)
    pixels, _ = toy_batch(larger.config)
    with torch.no_grad(), jt.no_grad():
        close(
            build(larger).encode_image(pixels).numpy(), theirs(torch.tensor(pixels)), "features", "PE at another size"
        )


@pytest.mark.parametrize("name", ["pe", "pe_g"])
def test_a_patch_of_the_map_is_what_the_pool_makes_of_it_alone(name, close):
    model, (pixels, _), taps = toy(name), toy_batch(TOYS_2025[name]), {}
    with jt.no_grad():
        pooled, cells = model.encode_image(pixels, dense=True, taps=taps)
        tower, last = model.visual, f"visual.block{TOYS_2025[name].vision.layers - 1}"
        patches = tower.ln_post(taps[last])[:, TOYS_2025[name].vision.class_tokens :]
        alone = tower.project(tower.attn_pool(patches.reshape((-1, 1, patches.shape[2]))))
        close(cells.numpy().reshape(alone.shape), alone.numpy(), "kernel")
        close(pooled.numpy(), model.encode_image(pixels).numpy(), "kernel")
        width = model.encode_image(pixels, penultimate=True)
        close(tower.project(width).numpy(), pooled.numpy(), "kernel")


@TOWERS
def test_the_end_of_the_tower_from_what_enters_it(name, close):
    model, (pixels, _) = toy(name), toy_batch(TOYS_2025[name])
    end = LastBlock(model)
    with jt.no_grad():
        close(end.leaving(end.entering(pixels)).numpy(), model.encode_image(pixels).numpy(), "kernel")
    names = set(end.fresh())
    assert "visual.proj" in names and "visual.transformer.resblocks.1.mlp.c_fc.weight" in names
    assert ("visual.attn_pool.probe" in names) == name.startswith("pe") and "visual.positional_embedding" not in names


@TOWERS
def test_every_parameter_is_of_one_group(name):
    config = TOYS_2025[name]
    groups = [*image_groups(config), *text_groups(config)]
    for key in parameter_shapes(config):
        found = [g for g in groups if any(fnmatchcase(key, pattern) for pattern in g)]
        assert len(found) == (0 if key == "logit_scale" else 1), key
    for pattern in (pattern for group in groups for pattern in group):
        assert any(fnmatchcase(key, pattern) for key in parameter_shapes(config)), pattern


@TOWERS
def test_streamed_blocks_compute_the_same(name, tmp_path):
    found, (pixels, _) = toy_checkpoint(tmp_path, name), toy_batch(TOYS_2025[name])
    with jt.no_grad():
        wanted = build(found).encode_image(pixels).numpy()
        assert np.array_equal(streaming.build_streamed(found).encode_image(pixels).numpy(), wanted)


@TOWERS
def test_prompts_and_low_rank_updates(name, close):
    """Vectors beside the patches reach the features; tokens put in place by what they were change nothing; an update of
    zero changes nothing, another one does."""
    config = TOYS_2025[name]
    model, (pixels, _), taps = toy(name), toy_batch(config), {}
    with jt.no_grad():
        wanted = model.encode_image(pixels, taps=taps).numpy()
        again = model.encode_image(pixels, insert={1: (2, taps["visual.block0"][:, 2:4])})
        close(again.numpy(), wanted, "kernel")
        tokens = model.visual.embed(jt.array(pixels))
        beside = jt.concat([tokens, tokens[:, :2]], dim=1)
        assert np.abs(model.visual.encode(beside).numpy() - wanted).max() > 10 * tolerance("features")
        adapters = Adapters(model, LowRank(towers="image"), 0)
        adapters.attach()
        close(model.encode_image(pixels).numpy(), wanted, "kernel")
        up = next(v for k, v in adapters.params.items() if k.endswith(".B"))
        up.update(up + 1)
        assert np.abs(model.encode_image(pixels).numpy() - wanted).max() > 10 * tolerance("features")
        adapters.detach()


def test_patch_dropout_that_keeps_all_is_none(close):
    config, model = MOBILE_B, toy("mobile_b")
    pixels, _ = toy_batch(config)
    check_patch_dropout(model)
    every = np.tile(np.arange(9, dtype=np.int32), (len(pixels), 1))
    with jt.no_grad():
        close(encode_kept_patches(model, pixels, every).numpy(), model.encode_image(pixels).numpy(), "kernel")
    with pytest.raises(ConfigError, match="patch_dropout must be 0"):
        check_patch_dropout(toy("pe"))


def test_mobileclips_map_at_another_size(close):
    """Positions of the patches alone are resampled; at the tower's own size nothing is."""
    model, config = toy("mobile_b"), MOBILE_B
    larger = replace(config, vision=replace(config.vision, image_size=(64, 48)))
    pixels, _ = toy_batch(larger)
    with jt.no_grad():
        pooled, cells = dense_map(model, pixels, vit="token")
    assert tuple(cells.shape) == (len(pixels), 12, config.embed_dim) and tuple(pooled.shape) == (len(pixels), 14)
    with pytest.raises(ConfigError, match="this image tower takes photos of 20 x 20, got 25 x 20"):
        dense_map(toy("pe"), np.zeros((1, 3, 25, 20), np.float32))


# What can't be taken


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 8}, "multiple of 4, got heads of width 6"),
        ({"pool_heads": 7}, "vision.pool.heads must divide width 48, got 7"),
        ({"image_size": (3, 20)}, "patch_size must fit image_size"),
    ],
)
def test_sizes_that_pe_can_not_take(change, message):
    with pytest.raises(ConfigError, match=message):
        PerceptionConfig(**{**vars(PE.vision), **change})


def test_sizes_that_mobileclip_can_not_take():
    with pytest.raises(ConfigError, match="patch_size 16.*got 8 and 24"):
        replace(MOBILE_B.vision, patch_size=8)
    with pytest.raises(ConfigError, match="multiple of 4, got 16 and 30"):
        replace(MOBILE_B.vision, width=30)
    with pytest.raises(CheckpointError, match="S0 to S4"):
        layout_of({"visual.trunk.stem.0.conv.weight", "visual.trunk.stages.0.blocks.0.x"}, "x.pt")
    with pytest.raises(CheckpointError, match="S0 to S4"):
        layout_of({"image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"}, "x.pt")


@pytest.mark.parametrize(
    "timm, message",
    [
        ("fastvit_mci2", "FastViT, sizes S0 to S4.*fastvit_mci2"),
        ("vit_pe_lang_large_patch14_448", "PE-Lang or PE-Spatial.*PE-Core has both"),
        ("vit_pe_core_tomorrow_patch8_512", "a tower of another library .vit_pe_core_tomorrow_patch8_512"),
    ],
)
def test_towers_that_are_not_read(timm, message):
    said = described("pe")["model_cfg"]
    said["vision_cfg"]["timm_model_name"] = timm
    with pytest.raises(CheckpointError, match=message):
        from_open_clip.config_from(said, "open_clip_config.json")


def test_a_bare_pe_tower_is_named():
    names = {"conv1.weight", "ln_pre.weight", "positional_embedding", "transformer.resblocks.0.ln_1.weight"}
    with pytest.raises(CheckpointError, match="PE-Lang or PE-Spatial image tower"):
        layout_of(names, "PE-Spatial-L14-448.pt")


def test_queries_and_keys_of_another_pools_sizes():
    tensors = {
        "visual.trunk.attn_pool.q.weight": LazyTensor((4, 4), "float32", None),
        "visual.trunk.attn_pool.kv.weight": LazyTensor((4, 4), "float32", None),
    }
    with pytest.raises(CheckpointError, match="twice as long as queries"):
        from_timm.canonical(tensors)


def test_metaclip_2_without_its_tokenizer_or_with_anothers(tmp_path):
    text = WORLDWIDE.text
    with pytest.raises(CheckpointError, match="put tokenizer.json .*metaclip-2-worldwide"):
        words_beside(tmp_path, text, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="a vocabulary of 97 must come with their vocabulary"):
        tokenizer_of(text, None)
    pytest.importorskip("tokenizers")
    words = VocabularyFile("tokenizer.json", worldwide_words(97), {})
    assert tokenizer_of(text, words).end == 2
    with pytest.raises(ConfigError, match="must end texts with token 1, where the tower reads them, got 2"):
        tokenizer_of(replace(text, end=1), words)
    with pytest.raises(CheckpointError, match="97"):
        tokenizer_of(replace(text, vocab_size=40), words)


def test_configurations_survive_json():
    for config in (
        *TOYS_2025.values(),
        *(c for n, c in ARCHITECTURES.items() if n.startswith(("PE", "Mobile", "ViT-H"))),
    ):
        assert CLIPConfig.from_dict(config.to_dict()) == config
    assert "causal" not in WORLDWIDE.to_dict()["text"] and MOBILE_L.to_dict()["text"]["causal"] is False

"""Every family that is read: written by its own library or under its authors' names, converted, and computed the same."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

from convert.cli import main
from jclip.errors import ConfigError
from jclip.features.loading import load
from jclip.readers import safetensors
from jclip.runtime import jt
from jclip.weights.checkpoint import open_checkpoint, random_arrays
from tests.converters import writers
from tests.parity import numpy_eva
from tests.toys import SMALL_VIT, TOY_EVAS, shapes_of, toy_batch

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

TEXT = {"context_length": 11, "vocab_size": 97, "width": 64, "heads": 1, "layers": 2}
SQUASH = {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}


def vit(width: int, head_width: int = 64, **more) -> dict:
    return {"image_size": 20, "patch_size": 5, "layers": 2, "width": width, "head_width": head_width, **more}


OPEN_CLIP = {  # the traits in which open_clip's families differ, at toy depth
    "ViT-S, GELU": {"embed_dim": 14, "vision_cfg": vit(128), "text_cfg": TEXT},
    "ViT-B as MetaCLIP and DFN2B, QuickGELU": {
        "embed_dim": 14, "vision_cfg": vit(128), "text_cfg": TEXT, "quick_gelu": True,
    },
    "ViT-H, heads of 80": {"embed_dim": 14, "vision_cfg": vit(160, 80), "text_cfg": TEXT},
    "ViT-g, heads of 88": {"embed_dim": 14, "vision_cfg": vit(176, 88, mlp_ratio=4.3637), "text_cfg": TEXT},
    "ViT-bigG, heads of 104": {
        "embed_dim": 14, "vision_cfg": vit(208, 104, mlp_ratio=4.9231), "text_cfg": TEXT, "quick_gelu": True,
    },
    "ViT-e, heads of 112": {"embed_dim": 14, "vision_cfg": vit(224, 112, mlp_ratio=8.5715), "text_cfg": TEXT},
    "ViT-M-alt, layer scale": {"embed_dim": 14, "vision_cfg": vit(128, ls_init_value=1e-4), "text_cfg": TEXT},
    "layer scale in both towers, text apart": {
        "embed_dim": 14, "vision_cfg": vit(128, ls_init_value=1e-4), "text_cfg": {**TEXT, "ls_init_value": 0.1},
        "custom_text": True,
    },
    "ResNet": {
        "embed_dim": 14, "vision_cfg": {"image_size": 96, "layers": [1, 2, 1, 1], "width": 6, "head_width": 64},
        "text_cfg": TEXT, "quick_gelu": True,
    },
}  # fmt: skip


def features_agree(ours, theirs, config, seed, close, label):
    pixels, tokens = toy_batch(config, seed)
    with torch.no_grad(), jt.no_grad():
        wanted = theirs.encode_image(torch.tensor(pixels)), theirs.encode_text(torch.tensor(tokens).long())
        for kind, got, other in zip(
            ("image", "text"), (ours.encode_image(pixels), ours.encode_text(tokens)), wanted, strict=True
        ):
            close(got.numpy(), other, "features", f"{label}: {kind}")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clips_own_models(name, seed, tmp_path, close):
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    theirs = writers.open_clip_folder(tmp_path / "in", OPEN_CLIP[name], seed, SQUASH if "DFN" in name else None)
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    ours, preprocess = load(tmp_path / "out")
    shown = preprocess.preprocess
    assert (shown.resize, shown.mean[0]) == (("squash", 0.5) if "DFN" in name else ("shortest", 0.48145466))
    features_agree(ours, theirs, ours.config, seed, close, f"open_clip, {name}")


def test_jclip_loads_foreign_folders_as_they_lie(tmp_path, close):
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    theirs = writers.open_clip_folder(tmp_path / "in", OPEN_CLIP["ViT-H, heads of 80"], 0)
    ours, _ = load(tmp_path / "in")
    features_agree(ours, theirs, ours.config, 0, close, "open_clip, loaded without converting")


def test_metaclips_training_checkpoint(tmp_path, close, capsys):
    """A state dict under `module.` among settings and objects of classes that nobody has: these are skipped, not made."""
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    cfg = OPEN_CLIP["ViT-B as MetaCLIP and DFN2B, QuickGELU"]
    theirs = writers.open_clip_model(cfg, 0)
    state = {f"module.{k}": v for k, v in theirs.state_dict().items()}
    saved = {"epoch": 400, "name": "l14", "args": argparse.Namespace(lr=5e-4, config=Settings()), "state_dict": state}
    torch.save(saved | {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, tmp_path / "l14_fullcc2.5b.pt")
    options = ["--family", "metaclip", "--vision-head-width", "64"]
    assert main([str(tmp_path / "l14_fullcc2.5b.pt"), str(tmp_path / "out"), *options]) == 0
    assert "family       metaclip" in capsys.readouterr().out
    ours, _ = load(tmp_path / "out")
    features_agree(ours, theirs, ours.config, 0, close, "MetaCLIP's training checkpoint")


class Settings:
    """A class of a training script."""

    def __init__(self):
        self.where = object()


# EVA


def eva_toy(name):
    """As far as a file shows it: text heads of 64."""
    config = TOY_EVAS[name]
    return replace(config, text=replace(config.text, width=64, heads=1))


def eva_options(config) -> list[str]:
    height, width = config.vision.image_size
    options = [
        "--vision-head-width",
        str(config.vision.width // config.vision.heads),
        "--image-size",
        str(height),
        str(width),
    ]
    return [
        *options,
        *(["--post-norm", "yes" if config.vision.post_norm else "no"] if not config.vision.sub_norm else []),
    ]


def eva_agrees(path, config, arrays, seed, close, label):
    ours, _ = load(path)
    assert ours.config == config
    pixels, _ = toy_batch(config, seed)
    wanted = numpy_eva.encode_image(arrays, pixels, config.vision.heads, config.vision.post_norm)
    with jt.no_grad():
        close(ours.encode_image(pixels).numpy(), wanted, "features", label)


@pytest.mark.parametrize("wrapper", ["", "module"])
@pytest.mark.parametrize("name", TOY_EVAS)
def test_evas_original_files(name, wrapper, tmp_path, close, capsys):
    config = eva_toy(name)
    arrays = random_arrays(shapes_of(config), 0)
    state = {k: torch.tensor(a) for k, a in writers.eva_original(arrays).items()}
    torch.save({"module": state} if wrapper else state, tmp_path / "eva.pt")
    assert main([str(tmp_path / "eva.pt"), str(tmp_path / "out"), *eva_options(config)]) == 0
    printed = capsys.readouterr().out
    assert "EVA-CLIP original" in printed and "family       eva" in printed and "gelu" in printed
    eva_agrees(tmp_path / "out", config, arrays, 0, close, f"EVA original, {name}")


@pytest.mark.parametrize("name", ["eva02", "enormous"])
def test_timm_reads_the_original_names_as_we_do(name, tmp_path, close):
    """timm's own filter for EVA's files, and our rules, put the same numbers in the same places."""
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.models.eva import checkpoint_filter_fn

    from tests.parity.test_eva import timm_tower

    config = eva_toy(name)
    arrays = random_arrays(shapes_of(config), 1)
    _, tower = timm_tower(config.vision, config.embed_dim, arrays)
    image = {k: torch.tensor(a) for k, a in writers.eva_original(arrays).items() if k.startswith("visual.")}
    filtered = checkpoint_filter_fn(image, tower)
    for key, value in tower.state_dict().items():
        assert torch.equal(filtered[key], value), key


@pytest.mark.parametrize("name", ["eva02", "enormous"])
def test_timm_towers_of_open_clip(name, tmp_path, close):
    config = eva_toy(name)
    arrays = random_arrays(shapes_of(config), 0)
    own = ("visual.", "logit_scale")
    named = {k if k.startswith(own) else f"text.{k}": a for k, a in arrays.items()}
    safetensors.write(tmp_path / "open_clip_model.safetensors", named)
    assert main([str(tmp_path / "open_clip_model.safetensors"), str(tmp_path / "out"), *eva_options(config)]) == 0
    eva_agrees(tmp_path / "out", config, arrays, 0, close, f"EVA as open_clip has it, {name}")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["8b", "18b"])
def test_evas_hub_folders(name, seed, tmp_path, close):
    config = replace(eva_toy(name), vision=replace(eva_toy(name).vision, image_size=(20, 20)))
    arrays = random_arrays(shapes_of(config), seed)
    writers.eva_hub_folder(tmp_path / "EVA-CLIP", config, arrays)
    assert main([str(tmp_path / "EVA-CLIP"), str(tmp_path / "out")]) == 0
    eva_agrees(tmp_path / "out", config, arrays, seed, close, f"EVA-CLIP of the hub, {name}")


# Towers alone


def one_tower_folder(folder, kind: str):
    """An export of one tower, by transformers itself."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    if kind == "image":
        config = CLIPVisionConfig(
            hidden_size=48, intermediate_size=60, projection_dim=24, num_hidden_layers=2, num_attention_heads=3,
            image_size=32, patch_size=8,
        )  # fmt: skip
        model = CLIPVisionModelWithProjection(config)
    else:
        config = CLIPTextConfig(
            vocab_size=97, hidden_size=20, intermediate_size=33, projection_dim=14, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=11, eos_token_id=96,
        )  # fmt: skip
        model = CLIPTextModelWithProjection(config)
    writers.torch_model(model, 0).save_pretrained(folder)
    return model


def test_an_image_tower_alone(tmp_path, close, capsys):
    theirs = one_tower_folder(tmp_path / "in", "image")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "holds the image tower alone: pass --tower image" in capsys.readouterr().err
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--tower", "image"]) == 0
    ours, preprocess = load(tmp_path / "out")
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with torch.no_grad(), jt.no_grad():
        close(
            ours.encode_image(pixels).numpy(),
            theirs(torch.tensor(pixels)).image_embeds,
            "features",
            "image tower alone",
        )
    assert preprocess.preprocess.size == (32, 32)
    with pytest.raises(ConfigError, match="an image tower alone: they embed no texts"):
        ours.encode_text(np.zeros((1, 3), np.int32))


def test_a_text_tower_alone(tmp_path, close):
    theirs = one_tower_folder(tmp_path / "in", "text")
    assert main([str(tmp_path / "in"), str(tmp_path / "out.safetensors"), "--tower", "text"]) == 0
    ours, _ = load(tmp_path / "out.safetensors")
    tokens = np.array([[1, 7, 96, 0], [3, 96, 0, 0]], np.int32)
    with torch.no_grad(), jt.no_grad():
        close(
            ours.encode_text(tokens).numpy(),
            theirs(torch.tensor(tokens).long()).text_embeds,
            "features",
            "text tower alone",
        )
    with pytest.raises(ConfigError, match="a text tower alone: they embed no images"):
        ours.encode_image(np.zeros((1, 3, 32, 32), np.float32))


def test_one_tower_of_two_is_kept(tmp_path):
    from tests.toys import toy_file

    path = toy_file(tmp_path, SMALL_VIT)
    assert main([str(path), str(tmp_path / "image.safetensors"), "--tower", "image"]) == 0
    kept = open_checkpoint(tmp_path / "image.safetensors")
    assert kept.config == replace(SMALL_VIT, text=None) and all(k.startswith("visual.") for k in kept.tensors)


# What is recognised and not read


def keys(*names: str) -> dict[str, np.ndarray]:
    return {name: np.zeros((2, 3), np.float32) for name in names}


CONV = ("visual.conv1.weight", "visual.proj", "visual.class_embedding")


@pytest.mark.parametrize(
    "names, message",
    [
        (("visual.trunk.attn_pool.latent", "visual.trunk.norm_pre.weight"), "a timm tower of attn_pool, norm_pre"),
        ((*CONV, "bert.encoder.layer.0.attention.self.query.weight"), "the marks of chinese-clip, family 'openclip'"),
        ((*CONV, "text_decoder.ln_final.weight", "visual.attn_pool.query"), "CoCa"),
        ((*CONV, "text.token_embedding.weight"), "CLIPA"),
        (("visual.trunk.stem.0.weight", "visual.trunk.stages.0.blocks.0.gamma"), "MobileCLIP of a FastViT"),
        (("visual.trunk.cls_token", "visual.trunk.blocks.0.attn.qkv.bias"), "a timm tower of blocks, cls_token"),
        ((*CONV, "visual.ln_pre.weight", "text.transformer.embeddings.word_embeddings.weight"), "its text tower"),
        (("fc.weight", "conv1.weight"), "no CLIP family that is known (it holds conv1.weight, fc.weight"),
    ],
)  # fmt: skip
def test_keys_of_other_families_are_refused_by_name(names, message, tmp_path, capsys):
    safetensors.write(tmp_path / "x.safetensors", keys(*names))
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "out"), "--family", "openclip"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


EVA01 = {"timm_model_name": "eva_giant_patch14_clip_224", "image_size": 224}


@pytest.mark.parametrize(
    "model_cfg, message",
    [
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_999"}, "text_cfg": {}}, "patch16_siglip_999"),
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}, "text_cfg": {}}, "no_causal_mask must be"),
        ({"vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {}}, "CoCa"),
        (
            {"vision_cfg": {"no_ln_pre": True, "pool_type": "avg"}, "text_cfg": {"hf_tokenizer_name": "bert-base"}},
            "CLIPA",
        ),
        ({"vision_cfg": EVA01, "text_cfg": {}}, "EVA01-CLIP"),
        ({"vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": "some/words"}}, "another library (some/words)"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}, "text_cfg": {}}, "convnext_base"),
        ({"vision_cfg": {"qk_norm": True}, "text_cfg": {}}, "sets qk_norm, which jclip does not read"),
        ({"text_cfg": {}}, "lacks vision_cfg"),
    ],
)
def test_descriptions_of_other_families_are_refused_by_name(model_cfg, message, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    safetensors.write(folder / "open_clip_model.safetensors", keys("x"))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 8, **model_cfg}}))
    assert main([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_eva01_is_reported_by_its_shapes(tmp_path, capsys):
    from jclip.weights.parameter_shapes import parameter_shapes
    from jclip.weights.variants import ARCHITECTURES

    config = ARCHITECTURES["EVA02-E-14"]
    tower = replace(config.vision, width=1408, heads=16, layers=1, mlp_width=64, image_size=(28, 28))
    shapes = parameter_shapes(replace(config, vision=tower, text=replace(config.text, layers=1, vocab_size=9)))
    safetensors.write(tmp_path / "x.safetensors", {k: np.zeros(s, np.float32) for k, s in shapes.items()})
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "out"), "--post-norm", "no"]) == 2
    assert "EVA01-CLIP" in capsys.readouterr().err


def test_an_eva_of_unknown_width_asks_for_the_order_of_norms(tmp_path, capsys):
    arrays = random_arrays(shapes_of(eva_toy("18b")), 0)
    safetensors.write(tmp_path / "x.safetensors", arrays)
    options = ["--vision-head-width", "16", "--image-size", "20", "15"]
    assert main([str(tmp_path / "x.safetensors"), str(tmp_path / "out"), *options]) == 2
    assert "does not give the order of its norms: pass --post-norm yes" in capsys.readouterr().err

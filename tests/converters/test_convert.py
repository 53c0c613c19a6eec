"""Weights written by the families' own libraries come in, compute the same, and what does not fit changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.cli import DTYPES, main
from jclip.cli import main as jclip
from jclip.features.loading import load
from jclip.model.clip import CLIP, build
from jclip.readers import read_weights, safetensors
from jclip.runtime import jt
from jclip.weights.checkpoint import open_checkpoint, random_arrays
from jclip.weights.parameter_shapes import parameter_shapes
from jclip.weights.variants import SHIPPED, VARIANTS
from tests.toys import TOY_RESNET, TOY_VIT, TOY_VIT_GELU, TOYS, shapes_of, toy_batch, toy_file

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
ROOT = Path(__file__).parents[2]
VITS = [pytest.param(TOY_VIT, id="quickgelu"), pytest.param(TOY_VIT_GELU, id="gelu")]


def weights_of(config, seed=0):
    return random_arrays(shapes_of(config), seed)


def hugging_face_folder(folder, config, seed=0, **options):
    from tests.parity.hugging_face import hugging_face_model

    model = hugging_face_model(config, weights_of(config, seed))
    model.save_pretrained(folder, **options)
    return model


def same_numbers(path, wanted):
    tensors = read_weights(path)
    assert set(tensors) == set(wanted)
    for name, array in wanted.items():
        assert np.array_equal(tensors[name].read().reshape(array.shape), array), name


@pytest.mark.parametrize("name", [*SHIPPED, *VARIANTS, *TOYS])
def test_shapes_are_reported_without_making_the_model(name):
    config = {**SHIPPED, **VARIANTS, **TOYS}[name]
    if name in ("RN50x16", "RN50x64", "ViT-L/14", "ViT-L/14@336px", "RN50x4"):
        pytest.skip("large, and of the same rules")
    assert parameter_shapes(config) == {k: tuple(v.shape) for k, v in CLIP(config).state_dict().items()}


@pytest.mark.parametrize("config", VITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_hugging_face_folders_compute_the_same(config, seed, tmp_path, close, capsys):
    theirs = hugging_face_folder(tmp_path / "hf", config, seed)
    assert main([str(tmp_path / "hf"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"activation   {config.activation}" in printed and "Hugging Face CLIPModel folder" in printed
    same_numbers(tmp_path / "out" / "model.safetensors", weights_of(config, seed))
    ours, _ = load(tmp_path / "out")
    pixels, tokens = toy_batch(config, seed)
    with torch.no_grad(), jt.no_grad():
        wanted = theirs.get_image_features(torch.tensor(pixels)), theirs.get_text_features(torch.tensor(tokens).long())
        got = ours.encode_image(pixels), ours.encode_text(tokens)
    for a, b in zip(got, wanted, strict=True):
        b = getattr(b, "pooler_output", b)
        close(a.numpy(), b, "features", f"converted from Hugging Face, {config.activation}")


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"safe_serialization": False}], ids=["shards", "bin"])
def test_shards_and_torch_files_are_read_as_well(options, tmp_path):
    try:
        hugging_face_folder(tmp_path / "hf", TOY_VIT, **options)
    except TypeError as e:
        pytest.skip(f"this transformers writes no such files: {e}")
    assert main([str(tmp_path / "hf"), str(tmp_path / "out.safetensors")]) == 0
    same_numbers(tmp_path / "out.safetensors", weights_of(TOY_VIT))


def test_a_missing_shard_is_named(tmp_path, capsys):
    hugging_face_folder(tmp_path / "hf", TOY_VIT, max_shard_size="20KB")
    shard = sorted((tmp_path / "hf").glob("model-*.safetensors"))[1]
    shard.unlink()
    assert main([str(tmp_path / "hf"), str(tmp_path / "out")]) == 2
    assert f"{shard.name} is missing, which model.safetensors.index.json names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [*VITS, pytest.param(TOY_RESNET, id="resnet")])
@pytest.mark.parametrize("custom_text", [False, True])
def test_open_clip_folders_go_round(config, custom_text, tmp_path):
    """What jclip writes is a folder of open_clip; with the text tower under `text.` as its newer models have it."""
    assert main([str(toy_file(tmp_path, config)), str(tmp_path / "first")]) == 0
    if custom_text:
        tensors = read_weights(tmp_path / "first" / "model.safetensors")
        names = {k: k if k.startswith("visual.") or k == "logit_scale" else f"text.{k}" for k in tensors}
        arrays = {names[k]: t.read() for k, t in tensors.items()}
        arrays["text.attn_mask"] = np.zeros((3, 3), np.float32)
        safetensors.write(tmp_path / "first" / "model.safetensors", arrays)
    assert main([str(tmp_path / "first"), str(tmp_path / "second.safetensors")]) == 0
    back = open_checkpoint(tmp_path / "second.safetensors")
    assert back.config == config
    same_numbers(tmp_path / "second.safetensors", weights_of(config))


def test_open_clip_itself_loads_what_is_written(tmp_path, close):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    main([str(toy_file(tmp_path, TOY_VIT)), str(tmp_path / "out")])
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    pixels, tokens = toy_batch(TOY_VIT)
    ours = build(open_checkpoint(tmp_path / "out" / "model.safetensors"))
    with torch.no_grad(), jt.no_grad():
        close(ours.encode_image(pixels).numpy(), theirs.eval().encode_image(torch.tensor(pixels)), "features")
        close(ours.encode_text(tokens).numpy(), theirs.encode_text(torch.tensor(tokens).long()), "features")


@pytest.mark.parametrize("dtype, limit", [("fp32", 0.0), ("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_dtypes_round_to_the_nearest_and_keep_the_logit_scale(dtype, limit, tmp_path):
    source = toy_file(tmp_path, TOY_RESNET)
    assert main([str(source), str(tmp_path / "out.safetensors"), "--dtype", dtype]) == 0
    wanted, got = read_weights(source), read_weights(tmp_path / "out.safetensors")
    assert {t.dtype for k, t in got.items() if k != "logit_scale"} == {DTYPES[dtype]}
    assert got["logit_scale"].dtype == "float32" and got["logit_scale"].shape == ()
    for name, tensor in wanted.items():
        a, b = tensor.read(), got[name].read().astype(np.float32)
        assert np.all(np.abs(a - b) <= limit * np.abs(a) + (2.0**-25 if dtype == "fp16" else 0.0)), name
        if dtype == "bf16" and name != "logit_scale":
            assert np.array_equal(b, torch.tensor(a).bfloat16().float().numpy()), name


def test_jittors_pickle_goes_out_and_in(tmp_path, capsys):
    assert main([str(toy_file(tmp_path, TOY_VIT)), str(tmp_path / "old.pkl")]) == 0
    assert main([str(tmp_path / "old.pkl"), str(tmp_path / "new.safetensors")]) == 2
    assert "does not say which activation" in capsys.readouterr().err
    options = ["--family", "openai", "--vision-head-width", str(TOY_VIT.vision.width // TOY_VIT.vision.heads)]
    assert main([str(tmp_path / "old.pkl"), str(tmp_path / "new.safetensors"), *options]) == 0
    same_numbers(tmp_path / "new.safetensors", weights_of(TOY_VIT))
    capsys.readouterr()
    assert main([str(tmp_path / "old.pkl"), str(tmp_path / "b.pkl"), *options, "--dtype", "bf16"]) == 2
    assert "which lack bf16" in capsys.readouterr().err


def test_torch_checkpoints_of_training_scripts(tmp_path):
    arrays = weights_of(TOY_RESNET)
    state = {f"module.{k}": torch.tensor(v) for k, v in arrays.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 1e-3}}, tmp_path / "epoch_3.pt")
    assert main([str(tmp_path / "epoch_3.pt"), str(tmp_path / "out.safetensors"), "--family", "openai"]) == 0
    same_numbers(tmp_path / "out.safetensors", arrays)


def test_it_runs_as_people_type_it_from_any_folder(tmp_path):
    source = toy_file(tmp_path, TOY_VIT)
    command = [sys.executable, str(ROOT / "convert"), source.name, "里 out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "written: 里 out (jclip, fp32)" in done.stdout, done.stderr
    assert sorted(p.name for p in (tmp_path / "里 out").iterdir()) == ["model.safetensors", "open_clip_config.json"]


def test_inspect_reports_without_reading_tensors(tmp_path, capsys, monkeypatch):
    source = toy_file(tmp_path, TOY_RESNET)
    monkeypatch.setattr(safetensors, "decode", None)
    assert jclip(["inspect", str(source)]) == 0
    printed = capsys.readouterr().out
    assert "ResNet" in printed and "activation   quickgelu" in printed and "sha256" in printed


def test_inspect_reports_what_a_bare_file_does_not_say(tmp_path, capsys):
    arrays = weights_of(TOY_RESNET)
    torch.save({k: torch.tensor(a) for k, a in arrays.items()}, tmp_path / "bare.pt")
    assert jclip(["inspect", str(tmp_path / "bare.pt")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not stated by the weights: set it with --family") == 3 and "ResNet, width 6" in printed
    assert jclip(["inspect", str(tmp_path / "bare.pt"), "--family", "dfn5b"]) == 0
    assert "photos       squash, bicubic" in capsys.readouterr().out


def test_published_weights_are_listed(capsys):
    assert jclip(["models", "--published"]) == 0
    printed = capsys.readouterr().out
    assert (
        "| ViT-B-16/openai | 150 | 0.6 | 224 | English | MIT | hf-hub:timm/vit_base_patch16_clip_224.openai |"
        in printed
    )
    assert (
        "| Chinese-CLIP-ViT-B-16/zh | 188 | 0.8 | 224 | Chinese | Apache-2.0 | hf-hub:OFA-Sys/chinese-clip-vit-base-"
        in printed
    )
    assert "ms:damo/multi-modal_clip-vit-base-patch16_zh |" in printed
    assert jclip(["models", "--files"]) == 0
    printed = capsys.readouterr().out
    assert "ViT-bigG-14/metaclip_2_5b" in printed and "BAAI/EVA-CLIP-18B" in printed

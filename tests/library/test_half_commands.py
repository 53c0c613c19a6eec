"""Half precision, drafts, batch sizes and CUDA out of memory as commands and recipes know them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import jclip.features.extraction
from jclip import kernels
from jclip.cli import main
from jclip.config import DataConfig
from jclip.data.splits import read_photos
from jclip.errors import JITTOR_OUT_OF_MEMORY, ConfigError, SetupError, advice_when_full
from jclip.features.extraction import batch_size, encode_photos, extract, feature_key
from jclip.features.source import ModelSource
from jclip.readers import read_weights
from tests.conftest import ROOT

needs_half = pytest.mark.skipif(bool(kernels.why_no_half("bf16")), reason="no half precision on this processor")


@needs_half
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_bf16_features_are_their_own_and_near(kind, small_models, photo_folder, close):
    photos = read_photos(DataConfig(root=str(photo_folder), shots=0)).test
    wide, half = (extract(ModelSource(small_models[kind], dtype=dtype), photos)[1] for dtype in ("fp32", "bf16"))
    assert not np.array_equal(wide, half)
    close(half, wide, "half_tower_relative", "small models on photos in bf16, relative", relative=True)


@needs_half
def test_recipes_take_the_dtype_and_their_results_know_it(small_models, photo_folder, tmp_path, capsys):
    config = tmp_path / "bf16.yaml"
    config.write_text(
        f"recipe: zero_shot\nmodel: {small_models['vit']}\ndtype: bf16\ndata: {{root: {photo_folder}, shots: 0}}\n"
    )
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["config"]["dtype"] == "bf16"
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main(["train", str(config), "--run", str(tmp_path / "other"), "dtype=fp8"]) == 2
    assert "dtype" in capsys.readouterr().err


@needs_half
@pytest.mark.parametrize("config", ["full/smoke.yaml", "contrastive/smoke.yaml"])
def test_towers_train_in_bf16(config, photo_folder, tmp_path, capsys, close):
    """Other numbers than in float32, near them, the same at each run, and weights that stay float32."""
    short = {
        "full/smoke.yaml": [f"data.root={photo_folder}", "data.shots=8", "optim.batch=12"],
        "contrastive/smoke.yaml": ["data.scenes=48", "data.val_scenes=8", "zero_shot=[]"],
    }[config]
    losses = {}
    for dtype, name in (("fp32", "a"), ("bf16", "b"), ("bf16", "c")):
        assert (
            main(["train", str(ROOT / "configs" / config), f"dtype={dtype}", *short, "--run", str(tmp_path / name)])
            == 0
        )
        losses[name] = [
            json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
    assert losses["b"] == losses["c"] != losses["a"]
    close(losses["b"], losses["a"], "half_training_relative", f"{config}: losses in bf16, relative", relative=True)
    assert all(t.dtype == "float32" for t in read_weights(tmp_path / "b" / "model.safetensors").values())
    assert main(["train", str(ROOT / "configs" / config), "dtype=fp16", "--run", str(tmp_path / "d")]) == 2
    assert "training with dtype fp16: no operator here computes it" in capsys.readouterr().err


def test_drafts_have_features_of_their_own(small_models, photo_folder):
    photos = read_photos(DataConfig(root=str(photo_folder), shots=0)).test
    keys = {feature_key(ModelSource(small_models["vit"], draft=d), photos, range(1), "none", 0) for d in (False, True)}
    assert len(keys) == 2
    assert ModelSource(small_models["vit"], draft=True).preprocess.draft


def test_the_batch_is_set_by_the_environment(small_models, photo_folder, monkeypatch, close):
    photos = read_photos(DataConfig(root=str(photo_folder), shots=0)).test
    source, seen = ModelSource(small_models["vit"]), []
    encode = source.model.encode_image
    monkeypatch.setattr(source.model, "encode_image", lambda x, **options: seen.append(len(x)) or encode(x, **options))
    whole = encode_photos(source.model, source.preprocess, photos)[1]
    monkeypatch.setenv("JCLIP_BATCH", "5")
    parts = encode_photos(source.model, source.preprocess, photos)[1]
    assert seen == [18, 5, 5, 5, 3]
    close(parts, whole, "features", "photos, another batch size")
    for wrong in ("0", "many", "-3"):
        monkeypatch.setenv("JCLIP_BATCH", wrong)
        with pytest.raises(ConfigError, match=f"JCLIP_BATCH must be a number of photos, got {wrong}"):
            batch_size()


def test_an_exhausted_gpu_is_reported_with_the_batch_to_try(small_models, photo_folder, monkeypatch):
    photos = read_photos(DataConfig(root=str(photo_folder), shots=0)).test
    source = ModelSource(small_models["vit"])

    def full(x, **_):
        raise RuntimeError(f"[f 1121 cuda_device_allocator.cc:38] {JITTOR_OUT_OF_MEMORY} for size 77\n" + "=" * 200)

    monkeypatch.setattr(source.model, "encode_image", full)
    with pytest.raises(SetupError, match=r"^CUDA out of memory: set JCLIP_BATCH=32 \(now 64\)$"):
        jclip.features.extraction.encode_photos(source.model, source.preprocess, photos)
    with pytest.raises(RuntimeError, match="another"), advice_when_full("lower it"):
        raise RuntimeError("another")

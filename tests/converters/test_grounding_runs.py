"""Checkpoints as CLIP-VG's code writes them become runs that find the boxes that its formulas say."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.cli import main
from jclip.data import box_views
from jclip.data.preprocess import NORMALISATIONS
from jclip.model.clip import CLIP, inference, put_arrays
from jclip.model.grounding import FusionShape, initial_arrays
from jclip.model.tower_levels import image_parts, spread
from jclip.report.predictor import Predictor
from jclip.runtime import jt
from jclip.weights.checkpoint import random_arrays
from jclip.weights.variants import CLIPConfig, TextConfig, ViTConfig
from tests.recipes import toys
from tests.toys import shapes_of

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.library.test_grounding_network import torch_network  # noqa: E402

CONFIG = CLIPConfig(
    32, ViTConfig((32, 32), 8, width=64, layers=4, heads=1, mlp_width=256), TextConfig(64, 1, 2, mlp_width=256)
)
D, TOKENS = 64, 17
SEED = 3
OPTIONS = ["--grounding", "--vision-head-width", "64"]


def theirs(last: bool) -> dict[str, np.ndarray]:
    """`model` of a checkpoint: matrices of the towers in fp16, the network in fp32, and what is not read."""
    arrays = random_arrays(shapes_of(CONFIG), SEED)
    halves = {k: a.astype(np.float16 if a.ndim > 1 and "embedding" not in k else np.float32) for k, a in arrays.items()}
    clip = {f"clip.{k}": a.reshape(()) if k == "logit_scale" else a for k, a in halves.items()}
    again = {
        f"image_encoder_clip_vg.{k.removeprefix('visual.')}": a for k, a in halves.items() if k.startswith("visual.")
    }
    shapes = {"reg_token.weight": (1, D), "vl_pos_embed.weight": (1 + 77 + TOKENS, D), "visu_proj.weight": (D, 32)}
    shapes |= {} if last else {"ml_visu_proj.weight": (D, 3 * 64), "ml_visu_proj.bias": (D,)}
    shapes |= {"visu_proj.bias": (D,), "text_proj.weight": (D, 32), "text_proj.bias": (D,)}
    for i in range(2):
        layer = f"vl_transformer.encoder.layers.{i}"
        shapes |= {f"{layer}.self_attn.in_proj_weight": (3 * D, D), f"{layer}.self_attn.in_proj_bias": (3 * D,)}
        for name, shape in (("self_attn.out_proj", (D, D)), ("linear1", (40, D)), ("linear2", (D, 40))):
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{layer}.{name}.weight": (D,), f"{layer}.{name}.bias": (D,)}
    for i, outputs in enumerate((D, D, 4)):
        shapes |= {f"bbox_embed.layers.{i}.weight": (outputs, D), f"bbox_embed.layers.{i}.bias": (outputs,)}
    rng = np.random.default_rng(SEED)
    network = initial_arrays(shapes, SEED)
    network = {
        k: a + (0.2 * rng.standard_normal(a.shape)).astype(np.float32) * (a.ndim == 1) for k, a in network.items()
    }
    return {**clip, **again, **network}


def write(path: Path, model: dict[str, np.ndarray]) -> Path:
    """As the reference's training saves it."""
    tensors = collections.OrderedDict((k, torch.tensor(a)) for k, a in model.items())
    moments = {"state": {0: {"exp_avg": torch.ones(1, D)}}, "param_groups": [{"lr": 1e-4}]}
    args = argparse.Namespace(lr=2.5e-4, model="ViT-B/16", dataset="unc")
    torch.save(
        {"model": tensors, "optimizer": moments, "lr_scheduler": {}, "epoch": 90, "args": args, "val_accu": 0.84}, path
    )
    return path


@pytest.mark.parametrize("last", [False, True], ids=["levels", "last"])
def test_a_checkpoint_becomes_a_run_that_finds_the_same_boxes(last, tmp_path, capsys, close):
    model = theirs(last)
    run = tmp_path / "a run, of unc"
    assert main([str(write(tmp_path / "best_checkpoint.pth", model)), str(run), *OPTIONS]) == 0
    assert "2 layers of width 64" in capsys.readouterr().out
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    phrases = ["the Dog on the left", "a red one"]
    found = Predictor.load(run).predict(photo, phrases)

    towers = CLIP(CONFIG)
    put_arrays(towers, {k[5:]: a.astype(np.float32).reshape(-1 if k.endswith("logit_scale") else a.shape)
                        for k, a in model.items() if k.startswith("clip.")})  # fmt: skip
    towers.eval()
    pixels, place = box_views.evaluated(photo, 32, box_views.Normalisation(*NORMALISATIONS["imagenet"]))
    ids = towers.tokenize([phrase.lower() for phrase in phrases])
    with inference(towers):
        images = spread([p.numpy() for p in image_parts(towers, pixels[None], "last" if last else "levels")], CONFIG)
        every = towers.encode_text(ids, dense=True)[1].numpy()
    texts = np.zeros((2, 77, 32))
    texts[:, : every.shape[1]] = every
    said = torch.tensor((ids > 0).astype(np.float64))
    seen = torch.ones(2, TOKENS)
    seen[:, 1:] = torch.tensor(~place.masked_patches(8).ravel()).float()
    assert 0 < int((seen == 0).sum()) < TOKENS
    shape = FusionShape(32 if last else 192, 32, TOKENS, hidden=D, layers=2, heads=8, ffn=40, last=last)
    p = {k: torch.tensor(a).double() for k, a in model.items()}
    boxes, _ = torch_network(shape, p, torch.tensor(images).double().repeat(2, 1, 1), torch.tensor(texts), said, seen)
    wanted = place.back(boxes.numpy(), photo.size)
    close(np.array([thing.box for thing in found]) / 90, wanted / 90, "features")
    jt.gc()


def test_what_does_not_fit_is_named(tmp_path, capsys):
    model = theirs(False)
    table, broken = np.zeros((275, D), np.float32), np.full((1, D), np.nan, np.float32)
    fusion = {k: a for k, a in model.items() if not k.startswith("clip.")}
    cases = {
        "other towers": ({**model, "vl_pos_embed.weight": table}, "vl_pos_embed.weight must have shape [95, 64]"),
        "no towers": (fusion, "must be a checkpoint of CLIP-VG, with clip.…"),
        "a stranger": ({**model, "prompt.weight": table}, "got prompt.weight besides"),
        "broken": ({**model, "reg_token.weight": broken}, "reg_token.weight must be finite"),
    }
    for name, (arrays, said) in cases.items():
        path = write(tmp_path / f"{name}.pth", arrays)
        assert main([str(path), str(tmp_path / f"run {name}"), *OPTIONS]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / f"run {name}").exists()

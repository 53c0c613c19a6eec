"""Runs of grounding as checkpoints of CLIP-VG: an imported one is again what it was, one trained here loads into its model."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune  # noqa: F401 - recipes are found by name
from convert.cli import main
from jclip.data import box_views
from jclip.data.preprocess import NORMALISATIONS, Preprocess
from jclip.model.clip import CLIP
from jclip.model.grounding import GroundingNetwork
from jclip.model.tower_levels import block_levels, fusion_shape
from jclip.report.predictor import Predictor
from jclip.runtime import jt
from jclip.train.configs import build_config, resolved
from jclip.train.run import Run
from jclip.weights.checkpoint import random_arrays, save_checkpoint
from jclip.weights.variants import CLIPConfig, TextConfig, ViTConfig
from tests.recipes import toys
from tests.toys import shapes_of

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)
nn = torch.nn

TOWERS = {  # patches, levels and widths in the proportions of the published ones
    "b16": CLIPConfig(
        40, ViTConfig((32, 32), 8, width=64, layers=12, heads=1, mlp_width=256), TextConfig(40, 1, 2, 160)
    ),
    "b32": CLIPConfig(
        40, ViTConfig((48, 48), 16, width=64, layers=12, heads=1, mlp_width=256), TextConfig(40, 1, 2, 160)
    ),
    "l14": CLIPConfig(
        56, ViTConfig((28, 28), 7, width=72, layers=24, heads=1, mlp_width=288), TextConfig(56, 1, 2, 224)
    ),
}
HEADS, LAYERS, FFN = 4, 2, 36
EXACT = ["stored=fp32"]  # else tokens of photos are rounded to halves
PHRASES = ["the Dog on the left", "a red one"]


class Block(nn.Module):
    def __init__(self, width: int, mlp: int, heads: int, causal: bool):
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            collections.OrderedDict(c_fc=nn.Linear(width, mlp), gelu=nn.Identity(), c_proj=nn.Linear(mlp, width))
        )
        self.ln_2, self.causal = nn.LayerNorm(width), causal

    def forward(self, x):  # N, B, D
        y, n = self.ln_1(x), len(x)
        mask = torch.full((n, n), -torch.inf, dtype=x.dtype).triu(1) if self.causal else None
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        inner = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(inner * torch.sigmoid(1.702 * inner))


def blocks(width: int, mlp: int, heads: int, layers: int, causal: bool = False) -> nn.Module:
    made = nn.Module()
    made.resblocks = nn.Sequential(*(Block(width, mlp, heads, causal) for _ in range(layers)))
    return made


class Towers(nn.Module):
    """`clip` of the published model."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        v, t, E = config.vision, config.text, config.embed_dim
        self.visual = visual = nn.Module()
        visual.conv1 = nn.Conv2d(3, v.width, v.patch_size, v.patch_size, bias=False)
        visual.class_embedding = nn.Parameter(torch.randn(v.width))
        visual.positional_embedding = nn.Parameter(torch.randn(1 + v.grid[0] * v.grid[1], v.width))
        visual.ln_pre = nn.LayerNorm(v.width)
        visual.transformer = blocks(v.width, v.mlp_width, v.heads, v.layers)
        visual.ln_post, visual.proj = nn.LayerNorm(v.width), nn.Parameter(torch.randn(v.width, E))
        self.transformer = blocks(t.width, t.mlp_width, t.heads, t.layers, causal=True)
        self.token_embedding = nn.Embedding(t.vocab_size, t.width)
        self.positional_embedding = nn.Parameter(torch.randn(t.context_length, t.width))
        self.ln_final, self.text_projection = nn.LayerNorm(t.width), nn.Parameter(torch.randn(t.width, E))
        self.logit_scale = nn.Parameter(torch.zeros([]))


class FusionLayer(nn.Module):
    def __init__(self, D: int, heads: int, ffn: int):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(D, heads)
        self.linear1, self.linear2 = nn.Linear(D, ffn), nn.Linear(ffn, D)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x, positions, ignored):
        q = x + positions
        x = self.norm1(x + self.self_attn(q, q, x, key_padding_mask=ignored, need_weights=False)[0])
        return self.norm2(x + self.linear2(torch.relu(self.linear1(x))))


class Published(nn.Module):
    """The model whose `state_dict` a checkpoint is, from the description of its parameters; `last`: that of the last layer."""

    def __init__(self, config: CLIPConfig, last: bool, heads: int = HEADS):
        super().__init__()
        v, D, E = config.vision, config.text.width, config.embed_dim
        self.config, self.last, self.clip = config, last, Towers(config)
        self.visu_proj, self.text_proj = nn.Linear(E if last else 512, D), nn.Linear(E, D)
        self.reg_token, self.vl_pos_embed = nn.Embedding(1, D), nn.Embedding(79 + v.grid[0] * v.grid[1], D)
        self.vl_transformer = nn.Module()
        self.vl_transformer.encoder = nn.Module()
        self.vl_transformer.encoder.layers = nn.ModuleList(FusionLayer(D, heads, FFN) for _ in range(LAYERS))
        if not last:
            photos, phrases = nn.Module(), nn.Module()
            for name in (
                "class_embedding",
                "positional_embedding",
                "proj",
                "conv1",
                "ln_pre",
                "transformer",
                "ln_post",
            ):
                setattr(photos, name, getattr(self.clip.visual, name))
            for name in ("transformer", "positional_embedding", "ln_final", "text_projection", "token_embedding"):
                setattr(phrases, name, getattr(self.clip, name))
            self.image_encoder_clip_vg, self.text_encoder_clip_vg = photos, phrases
        self.bbox_embed = nn.Module()
        self.bbox_embed.layers = nn.ModuleList(nn.Linear(D, outputs) for outputs in (D, D, 4))
        if not last:
            self.ml_visu_proj = nn.Linear(len(block_levels(v.layers)) * v.width, D)

    def forward(self, pixels, ids, masked):
        """(B, 3, S, S), (B, 77), (B, N) True at patches of padding → (B, 4)."""
        visual, B = self.clip.visual, len(ids)
        x = visual.conv1(pixels).flatten(2).permute(2, 0, 1)
        x = torch.cat([visual.class_embedding.expand(1, B, -1), x]) + visual.positional_embedding[:, None]
        x, levels = visual.ln_pre(x), []
        for block in visual.transformer.resblocks:
            x = block(x)
            levels.append(x)
        own = block_levels(self.config.vision.layers)
        images = (
            self.visu_proj(visual.ln_post(x) @ visual.proj)
            if self.last
            else self.ml_visu_proj(torch.cat([levels[i] for i in own], dim=2))
        )
        t = (self.clip.token_embedding(ids) + self.clip.positional_embedding).transpose(0, 1)
        for block in self.clip.transformer.resblocks:
            t = block(t)
        texts = self.text_proj(self.clip.ln_final(t) @ self.clip.text_projection)
        x = torch.cat([self.reg_token.weight[:, None].expand(1, B, -1), texts, images])
        ignored = torch.cat([torch.zeros(B, 1).bool(), ids == 0, torch.zeros(B, 1).bool(), masked], dim=1)
        for layer in self.vl_transformer.encoder.layers:
            x = layer(x, self.vl_pos_embed.weight[:, None], ignored)
        a, b, c = self.bbox_embed.layers
        return torch.sigmoid(c(torch.relu(b(torch.relu(a(x[0]))))))


def published(config: CLIPConfig, last: bool, seed: int) -> Published:
    """With drawn numbers, matrices of the towers in halves as on a GPU."""
    torch.manual_seed(seed)
    model = Published(config, last)
    state = model.state_dict()
    drawn = random_arrays(shapes_of(config), seed)
    for name, value in state.items():
        if name.startswith("clip."):
            value.copy_(torch.tensor(drawn[name.removeprefix("clip.")].reshape(value.shape)))
        elif value.ndim == 1 and "clip" not in name:
            value += 0.2 * torch.randn(value.shape)
    for name, parameter in model.clip.named_parameters():
        if parameter.ndim > 1 and "embedding" not in name:
            parameter.data = parameter.data.half()
    return model


def write(path: Path, model: Published) -> Path:
    """As the published training saves it."""
    args = argparse.Namespace(lr=2.5e-4, model="ViT-B/16", dataset="unc", vl_nheads=HEADS, imsize=224)
    moments = {"state": {0: {"exp_avg": torch.ones(1, 3)}}, "param_groups": [{"lr": 1e-4}]}
    whole = {"model": model.state_dict(), "optimizer": moments, "lr_scheduler": {"last_epoch": 7}, "epoch": 7}
    torch.save({**whole, "args": args, "val_accu": 0.8429}, path)
    return path


def found_by_torch(model: Published, photo: Image.Image, look: str | box_views.Normalisation) -> np.ndarray:
    """Boxes of PHRASES in pixels of the photo."""
    side, patch = model.config.vision.image_size[0], model.config.vision.patch_size
    look = box_views.Normalisation(*NORMALISATIONS[look]) if isinstance(look, str) else look
    pixels, place = box_views.evaluated(photo, side, look)
    ids = torch.tensor(CLIP(model.config).tokenize([phrase.lower() for phrase in PHRASES]).astype(np.int64))
    masked = torch.tensor(place.masked_patches(patch).ravel()).expand(2, -1)
    assert 0 < int(masked[0].sum()) < masked.shape[1]
    with torch.no_grad():
        boxes = model.double()(torch.tensor(pixels).double().expand(2, -1, -1, -1), ids, masked)
    return place.back(boxes.numpy(), photo.size)


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("last", [False, True], ids=["levels", "last"])
@pytest.mark.parametrize("towers", TOWERS)
def test_a_checkpoint_comes_back_bit_for_bit(towers, last, tmp_path, capsys, close):
    config, seed = TOWERS[towers], 4
    model = published(config, last, seed)
    run, back = tmp_path / "a run, of unc", tmp_path / "back again.pth"
    options = ["--grounding", "--vision-head-width", str(config.vision.width)]
    assert main([str(write(tmp_path / "best_checkpoint.pth", model)), str(run), *options]) == 0
    found = [thing.box for thing in Predictor.load(run, EXACT).predict(photo(0), PHRASES)]
    assert main([str(run), str(back), "--grounding"]) == 0
    wanted, got = (torch.load(path, weights_only=False) for path in (tmp_path / "best_checkpoint.pth", back))
    assert [*got["model"]] == [*wanted["model"]]
    for name, tensor in wanted["model"].items():
        other = got["model"][name]
        assert other.dtype == tensor.dtype and other.shape == tensor.shape, name
        assert other.numpy().tobytes() == tensor.numpy().tobytes(), name
    assert (got["epoch"], got["val_accu"]) == (7, 0.8429)
    assert (
        back.stat().st_size < 1.1 * (tmp_path / "best_checkpoint.pth").stat().st_size
    )  # what is shared is stored once
    fresh = Published(config, last)
    fresh.load_state_dict(got["model"], strict=True)
    close(np.array(found) / 90, found_by_torch(fresh, photo(0), "imagenet") / 90, "features")
    jt.gc()


def trained(folder: Path, config: CLIPConfig, last: bool, seed: int, **more) -> Path:
    """A run as training here leaves it: towers in a file of their own, trained positions among what was learned."""
    weights = folder / f"towers {seed}.safetensors"
    save_checkpoint(weights, random_arrays(shapes_of(config), seed), config, Preprocess(size=config.vision.image_size))
    sizes = {"hidden": config.text.width, "layers": LAYERS, "heads": HEADS, "ffn": FFN, **more}
    network = GroundingNetwork(fusion_shape(config, "last" if last else "levels", **sizes), seed)
    rng = np.random.default_rng(seed)
    learned = {
        k: v.numpy() + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for k, v in network.state_dict().items()
    }
    positions = rng.standard_normal((1 + config.vision.grid[0] * config.vision.grid[1], config.vision.width))
    learned["visual.positional_embedding"] = positions.astype(np.float32)
    values = {"recipe": "grounding", "model": str(weights), "visual_layers": "last" if last else "levels",
              "visual_positions": "trained", "data": {"train": "", "val": "", "test": ""}, **sizes}  # fmt: skip
    module, cfg = build_config(values, "test")
    with Run(folder / f"run {seed}", resolved(module, cfg)) as run:
        run.save_learned(learned, shape=network.shape.to_dict())
        run.finish({"val_acc@0.5": 0.5})
    return folder / f"run {seed}"


@pytest.mark.parametrize("seed, last", [(5, False), (6, True)])
def test_a_run_trained_here_loads_into_the_published_model(seed, last, tmp_path, capsys, close):
    config = TOWERS["b16" if last else "l14"]
    run, out = trained(tmp_path, config, last, seed), tmp_path / "theirs.pth"
    assert main([str(run), str(out), "--grounding"]) == 0
    printed = capsys.readouterr()
    assert "--vl_nheads 4" in printed.err and "ViT-B/32, ViT-B/16, ViT-L/14" in printed.err and str(out) in printed.out
    saved = torch.load(out, weights_only=True)
    model = Published(config, last)
    assert [*saved["model"]] == [*model.state_dict()]
    model.load_state_dict(saved["model"], strict=True)
    assert saved["args"]["vl_nheads"] == HEADS and saved["epoch"] == 19
    done = Predictor.load(run, EXACT)
    look = box_views.Normalisation(done.source.preprocess.mean, done.source.preprocess.std)
    wanted = found_by_torch(model, photo(seed), look)
    close(np.array([thing.box for thing in done.predict(photo(seed), PHRASES)]) / 90, wanted / 90, "features")
    back = tmp_path / "back"
    assert main([str(out), str(back), "--grounding", "--vision-head-width", str(config.vision.width)]) == 0
    again = Predictor.load(back, [*EXACT, "normalise=model"])
    close(np.array([thing.box for thing in again.predict(photo(seed), PHRASES)]) / 90, wanted / 90, "features")
    jt.gc()


def test_runs_that_the_published_code_lacks_are_refused(tmp_path, capsys):
    config = TOWERS["b32"]
    cases = {
        "present": (trained(tmp_path, config, False, 7, present=True), "an output for presence (present)"),
        "norms": (trained(tmp_path, config, False, 8, project_norm=True), "norms after the projections (project_norm)"),
        "width": (trained(tmp_path, config, False, 9, hidden=44), "must be as wide as the text tower, 40, got 44"),
    }
    for name, (run, said) in cases.items():
        assert main([str(run), str(tmp_path / f"{name}.pth"), "--grounding"]) == 2
        printed = capsys.readouterr().err
        assert said in printed and printed.count("\n") == 1 and not (tmp_path / f"{name}.pth").exists()
    run = cases["width"][0]
    for arguments, said in (
        ([str(run), str(tmp_path / "x.bin")], "DST must end in .pth where SRC is a run"),
        ([str(run), str(run / "x.pth")], "DST must not be in the run's folder"),
        ([str(run), "x.pth", "--dtype", "fp16"], "keeps numbers as they are stored: leave out --dtype"),
        ([str(run), "x.pth", "--image-size", "64"], "--image-size is for importing"),
        ([str(tmp_path), "x.pth"], "holds no finished run"),
    ):
        assert main([*arguments, "--grounding"]) == 2
        printed = capsys.readouterr().err
        assert said in printed and printed.count("\n") == 1, printed


def test_another_side_resamples_both_tables_of_positions(tmp_path, capsys):
    config = TOWERS["b16"]
    path = write(tmp_path / "theirs.pth", published(config, False, 3))
    options = ["--grounding", "--vision-head-width", "64"]
    assert main([str(path), str(tmp_path / "own"), *options]) == 0
    assert capsys.readouterr().err == ""
    assert main([str(path), str(tmp_path / "larger"), *options, "--image-size", "48"]) == 0
    printed = capsys.readouterr()
    assert "from 4 x 4 to 6 x 6 patches: boxes of 48 pixels are not those that were published" in printed.err
    done = {name: Predictor.load(tmp_path / name) for name in ("own", "larger")}
    assert done["larger"].shape["image_tokens"] == 37
    tables = {name: run.learned["vl_pos_embed.weight"] for name, run in done.items()}
    assert np.array_equal(tables["own"][:79], tables["larger"][:79])  # [REG], text, class token
    cells = torch.tensor(tables["own"][79:]).T.reshape(1, -1, 4, 4)
    wanted = nn.functional.interpolate(cells, (6, 6), mode="bicubic", antialias=True)[0].flatten(1).T
    assert np.abs(tables["larger"][79:] - wanted.numpy()).max() < 1e-5
    assert len(done["larger"].predict(photo(1), PHRASES)) == 2
    for sides, said in (
        (["30"], "image size must be a multiple of 8"),
        (["48", "40"], "must be one number for grounding"),
    ):
        assert main([str(path), str(tmp_path / "no"), *options, "--image-size", *sides]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "no").exists()
    jt.gc()

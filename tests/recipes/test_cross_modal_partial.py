"""Cross-modal adaptation with the tower's last block, against torch that trains it from pixels; what is kept and merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import cross_modal
from jclip.config import DataConfig, OptimConfig
from jclip.data.splits import read_photos
from jclip.errors import ConfigError
from jclip.features.extraction import few_shot_features
from jclip.features.source import ModelSource
from jclip.functional.similarity import normalise
from jclip.model.clip import build
from jclip.model.last_block import LastBlock
from jclip.runtime import jt
from jclip.train.run import Run
from jclip.weights.checkpoint import open_checkpoint
from tests.recipes import toys
from tests.toys import TOY_EVAS, TOY_LAYER_SCALE, TOY_RESNET, toy_batch, toy_file

CONFIG = Path(__file__).parents[2] / "configs" / "cross_modal" / "smoke.yaml"
LAST = {
    "vit": ("visual.transformer.resblocks.1.", "visual.ln_post.", "visual.proj"),
    "resnet": ("visual.attnpool.",),
}


def arrays_of(file) -> dict[str, np.ndarray]:
    return dict(open_checkpoint(file).arrays())


@pytest.mark.parametrize("toy", [TOY_LAYER_SCALE, TOY_RESNET, TOY_EVAS["eva02"]], ids=["vit", "resnet", "eva"])
def test_both_parts_together_are_the_tower(toy, tmp_path, close):
    """Features, and gradients of the last block, as those of the whole tower."""
    model, (pixels, _) = build(open_checkpoint(toy_file(tmp_path, toy))), toy_batch(toy)
    block, pull = LastBlock(model), jt.array(np.random.default_rng(3).standard_normal((3, 14)).astype(np.float32))
    params = block.fresh()
    rows = block.entering(pixels)
    cut, whole = block.leaving(rows.detach()), model.encode_image(pixels)
    close(cut.numpy(), whole.numpy(), "features", "cut towers: features")
    assert rows.shape[1] > 100 and not [k for k in params if "running_" in k or not k.startswith("visual.")]
    ours, wanted = (jt.grad((f * pull).sum(), list(params.values())) for f in (cut, whole))
    for name, a, b in zip(params, ours, wanted, strict=True):
        if not name.endswith("k_proj.bias"):  # zero by symmetry
            close(a.numpy(), b.numpy(), "gradient_relative", "cut towers: gradients, relative", relative=True)
            assert np.abs(b.numpy()).max() > 0, name


# Training


def config(photo_folder, **settings) -> cross_modal.Config:
    data = DataConfig(root=str(photo_folder), shots=2, val_shots=2)
    optim = OptimConfig(lr=1e-3, weight_decay=0.1, warmup=3, epochs=3, batch=5)
    defaults = {"head": "partial", "model": "x", "every": 4, "templates": "openai7", "optim": optim, "views": 1}
    return cross_modal.Config(data=data, **{**defaults, **settings})


def prepared(cfg, source):
    """Everything that `train_block` takes after the run."""
    photos = read_photos(cfg.data)
    data = few_shot_features(cfg.data, source, cfg.templates, training=None, photos=photos)
    texts = cross_modal.text_samples(cfg, data, source)
    zero_shot = cross_modal.zero_shot_weights(texts, data.classes)
    entering = cross_modal.entering_features(cfg, data, source, photos)
    return photos, (LastBlock(source.model), zero_shot, entering, texts, cfg.optim)


def pixels_of(source, photos) -> np.ndarray:
    """Plain, then mirrored: the samples in their order."""
    plain = np.stack([source.preprocess(Image.open(path)) for path in photos.train.paths])
    return np.concatenate([plain, plain[..., ::-1]])


def torch_training(cfg, source, photos, zero_shot, texts, last):
    """Written in torch from the paper: the whole tower on pixels, gradients for its end and the head."""
    torch = pytest.importorskip("torch", reason=toys.NO_TORCH)
    from tests.parity import torch_clip
    from tests.parity.test_contrastive import doubled

    p = doubled(torch_clip.parameters(arrays_of(source.checkpoint.path)))
    trained = {k: v.requires_grad_() for k, v in p.items() if k.startswith(last)}
    trained["head"] = torch.tensor(zero_shot.astype(np.float64), requires_grad=True)
    samples = (pixels_of(source, photos), np.tile(photos.train.labels, 2).astype(np.int64)), texts
    sizes = cfg.optim.batch - cfg.optim.batch // 2, cfg.optim.batch // 2
    loaders = [toys.torch_loader((cfg.seed, kind), *samples[kind], sizes[kind]) for kind in (0, 1)]
    optimiser = torch.optim.AdamW(trained.values(), lr=cfg.optim.lr, weight_decay=cfg.optim.weight_decay)
    idle, losses = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim.lr), []
    for rate in toys.torch_rates(idle, cfg.optim, cfg.optim.epochs * cfg.every):
        optimiser.param_groups[0]["lr"] = rate
        (images, of_images), (text, of_text) = (next(loader) for loader in loaders)
        features = torch_clip.encode_image(p, source.config, images.double())
        x = torch.nn.functional.normalize(torch.cat([features, text.double()]))
        loss = torch.nn.functional.cross_entropy(np.exp(4.0) * x @ trained["head"].T, torch.cat([of_images, of_text]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return {k: v.detach().numpy() for k, v in trained.items()}, losses


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_equals_torchs_from_pixels(kind, seed, small_models, photo_folder, tmp_path, close):
    pytest.importorskip("torch", reason=toys.NO_TORCH)
    from tests.trajectories import without_key_bias

    source, cfg = ModelSource(small_models[kind]), config(photo_folder, seed=seed, selection="last")
    photos, (block, zero_shot, entering, texts, optim) = prepared(cfg, source)
    assert entering.train.shape[0] == 2 * len(photos.train) == 12 and not len(entering.test)
    with Run(tmp_path, {"recipe": "cross_modal"}) as run:
        trained = cross_modal.train_block(cfg, run, block, zero_shot, entering, texts, optim)
    wanted, losses = torch_training(cfg, source, photos, zero_shot, texts, LAST[kind])
    assert set(wanted) == set(trained.arrays)
    lines = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line]
    got = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    close(
        got, np.mean(np.reshape(losses, (3, 4)), axis=1), "trajectory_loss", "cross-modal, partial: losses of 12 steps"
    )
    start, moved = {**arrays_of(small_models[kind]), "head": zero_shot}, {}
    for k, v in wanted.items():
        pair = (without_key_bias(k, a.reshape(v.shape)) for a in (trained.arrays[k], v))
        close(*pair, "trajectory", "cross-modal, partial: weights after 12 steps")
        moved[k] = np.abs(v - start[k].reshape(v.shape)).max()
    assert max(moved.values()) > 5e-3 and min(moved.values()) > 0
    frozen = {k: v for k, v in start.items() if k not in wanted}
    state = source.model.state_dict()
    assert frozen and all(np.array_equal(state[k].numpy(), v.reshape(state[k].shape)) for k, v in frozen.items())


def test_the_first_scores_are_zero_shot_at_e_to_the_4(small_models, photo_folder, close):
    source, cfg = ModelSource(small_models["vit"]), config(photo_folder)
    _, (block, zero_shot, entering, texts, _) = prepared(cfg, source)
    got = cross_modal.block_scores(cfg, block, zero_shot)(jt.array(entering.val), texts[0]).numpy()
    photos = read_photos(cfg.data).val
    pixels = np.stack([source.preprocess(Image.open(path)) for path in photos.paths])
    features = np.concatenate([normalise(source.model.encode_image(pixels)).numpy(), texts[0]])
    close(got, np.exp(4.0) * features.astype(np.float64) @ zero_shot.T, "scores", "cross-modal, partial: start")
    assert [config(photo_folder, head=h).c for h in ("partial", "linear", "adapter")] == [4.0, 4.60517, 4.60517]
    assert config(photo_folder, logit_scale=1.5).c == 1.5


# Whole runs


def train(folder, *overrides) -> dict[str, float]:
    return toys.train(CONFIG, folder, "data.features=", "head=partial", "logit_scale=null", *overrides)


@pytest.fixture
def settings(small_models, photo_folder) -> list[str]:
    own = [f"model={small_models['vit']}", f"data.root={photo_folder}", "data.shots=2", "data.val_shots=2"]
    return [*own, "optim.batch=6", "optim.epochs=2", "grid_lr=[1e-6,3e-3]"]


def test_from_photos_to_a_merged_model(settings, small_models, tmp_path, monkeypatch, capsys):
    from jclip.cli import main

    metrics = train(tmp_path / "grid", *settings)
    assert {"zero_shot_test_top1", "test_top1", "wise_test_top1", "test_top1_last_epoch", "best_epoch"} <= set(metrics)
    before, after = (arrays_of(f) for f in (small_models["vit"], tmp_path / "grid" / "model.safetensors"))
    moved = {k for k in before if not np.array_equal(before[k], after[k])}
    assert moved == {k for k in before if k.startswith(LAST["vit"])}
    assert main(["eval", str(tmp_path / "grid")]) == 0  # from photos, with the merged tower and the head
    assert f"({metrics['test_correct']} of 18)" in capsys.readouterr().out

    assert not list((tmp_path / "grid").glob("train-*"))

    monkeypatch.setattr(LastBlock, "entering", lambda *_: pytest.fail("the lower part ran again"))
    alone = train(tmp_path / "alone", *settings, "grid_lr=[]", f"optim.lr={metrics['lr']}")
    assert alone == metrics  # of a grid each setting begins where the tower was
    one = arrays_of(tmp_path / "alone" / "model.safetensors")
    assert all(np.array_equal(one[k], v) for k, v in after.items())


def test_what_can_not_work_is_reported(settings, tmp_path):
    with pytest.raises(ConfigError, match="head=partial needs photos, not precomputed features: set data.root"):
        toys.train(CONFIG, tmp_path / "a", "head=partial")
    for wrong in ("dtype=bf16", "selection=test"):
        with pytest.raises(ConfigError, match="head=partial needs dtype=fp32 and selection=val or last"):
            train(tmp_path / "b", *settings, wrong)
    with pytest.raises(ConfigError, match="the epoch is chosen on validation photos, and there are none"):
        train(tmp_path / "c", *settings, "data.val_shots=0", "grid_lr=[]")
    with pytest.raises(ConfigError, match="no batch of that size can be filled from 12 photos and 3 texts"):
        train(tmp_path / "g", *settings, "optim.batch=26")
    with pytest.raises(ConfigError, match="photos need a model: set model="):
        train(tmp_path / "d", *settings, "model=")
    assert "val_top1" not in train(tmp_path / "e", *settings, "data.val_shots=0", "grid_lr=[]", "selection=last")

"""CLIP-LoRA against torch on merged weights: loss, gradients, ten steps; merging, dropout, what stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune import lora
from jclip.config import DataConfig, OptimConfig
from jclip.errors import ConfigError
from jclip.features.source import ModelSource
from jclip.model.low_rank import Adapters
from jclip.model.parameter_groups import LowRank, block_numbers
from jclip.runtime import jt
from jclip.weights.checkpoint import open_checkpoint
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.parity import torch_clip  # noqa: E402
from tests.parity.test_contrastive import doubled  # noqa: E402
from tests.trajectories import in_both_precisions  # noqa: E402

CONFIG = Path(__file__).parents[2] / "configs" / "lora" / "smoke.yaml"
PROMPTS = [["a photo of a cat."], ["a photo of a great white shark."], ["a photo of a b."]]


@pytest.fixture
def source(small_models) -> ModelSource:
    return ModelSource(small_models["vit"])


def config(**settings) -> lora.Config:
    return lora.Config(DataConfig(root="x"), model="x", **settings)


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((seed, 5))
    return rng.standard_normal((5, 3, 32, 32), dtype=np.float32), rng.integers(0, 3, 5)


def random_start(adapters: Adapters, seed: int) -> dict[str, np.ndarray]:
    """B as training may leave it: at zero, A would have no gradient."""
    rng = np.random.default_rng((seed, 7))
    arrays = {k: (rng.standard_normal(v.shape) / 5).astype(np.float32) for k, v in adapters.params.items()}
    for k, v in adapters.params.items():
        v.update(jt.array(arrays[k]))
        v.start_grad()
    return arrays


class Reference:
    """The model in torch, float64, with the updates added to its weights."""

    def __init__(self, file, low: LowRank, arrays):
        checkpoint = open_checkpoint(file)
        self.config, self.low = checkpoint.config, low
        self.weights = doubled(torch_clip.parameters(dict(checkpoint.arrays())))
        self.params = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in arrays.items()}

    def merged(self):
        p = dict(self.weights)
        for name in {k.rsplit(".", 2)[0] for k in self.params}:
            parts = []
            for part, weight in zip("qkv", p[f"{name}.in_proj_weight"].chunk(3), strict=True):
                if f"{name}.{part}.A" in self.params:
                    product = self.params[f"{name}.{part}.B"] @ self.params[f"{name}.{part}.A"]
                    weight = weight + self.low.alpha / self.low.rank**0.5 * product
                parts.append(weight)
            p[f"{name}.in_proj_weight"] = torch.cat(parts)
        return p

    def loss(self, model, pixels, labels):
        p, tokens = self.merged(), torch.tensor(model.tokenize([of[0] for of in PROMPTS]).astype(np.int64))
        images = torch_clip.encode_image(p, self.config, torch.tensor(pixels.astype(np.float64)))
        texts = torch_clip.encode_text(p, self.config, tokens)
        scores = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
        return torch.nn.functional.cross_entropy(p["logit_scale"].exp() * scores, torch.tensor(labels))


@pytest.mark.parametrize(("seed", "accumulate"), [(0, 1), (1, 2)])
@pytest.mark.parametrize(
    "low",
    [
        LowRank(dropout=0),
        LowRank(3, 2.0, 0.0, "image", "top", ("v", "q")),
        LowRank(1, 0.5, 0.0, "text", "bottom", ("k",)),
    ],
    ids=["both", "image", "text"],
)
def test_loss_and_gradients_equal_torchs(low, seed, accumulate, source, small_models, close):
    """Of the whole batch, at once or in parts."""
    adapters = Adapters(source.model, low, seed)
    reference = Reference(small_models["vit"], low, random_start(adapters, seed))
    adapters.attach()
    loss_of = lora.batch_loss(config(lora=low, accumulate=accumulate), source.model, PROMPTS, adapters)
    loss = loss_of(*batch(seed), 0)
    wanted = reference.loss(source.model, *batch(seed))
    close([loss.item()], [wanted.item()], "loss", "LoRA: loss")
    wanted.backward()
    names = list(adapters.params)
    for k, g in zip(names, jt.grad(loss, [adapters.params[k] for k in names]), strict=True):
        close(g.numpy(), reference.params[k].grad, "gradient_relative", "LoRA: gradients, relative", relative=True)


def test_ten_steps_equal_torchs(source, small_models, close):
    from jclip.train.optim import optimiser

    low, optim = LowRank(dropout=0), OptimConfig(lr=1e-3, weight_decay=1e-2)
    adapters = Adapters(source.model, low, 3)
    start = random_start(adapters, 3)
    frozen = {k: v.numpy() for k, v in source.model.state_dict().items()}

    def in_torch():
        reference, losses = Reference(small_models["vit"], low, start), []
        theirs = torch.optim.AdamW(reference.params.values(), 1e-3, weight_decay=1e-2)
        for number in range(10):
            theirs.zero_grad()
            expected = reference.loss(source.model, *batch(number))
            expected.backward()
            theirs.step()
            losses.append(expected.item())
        return {k: v.detach() for k, v in reference.params.items()} | {"losses": np.array(losses)}

    ours = optimiser(optim, adapters.params)
    adapters.attach()
    loss_of, losses = lora.batch_loss(config(lora=low), source.model, PROMPTS, adapters), []
    for number in range(10):
        loss = loss_of(*batch(number), number)
        ours.step(loss)
        losses.append(loss.item())
    wanted, drift = in_both_precisions(in_torch)
    close(losses, wanted["losses"], "trajectory_loss", "LoRA: losses of ten steps", drift=drift["losses"])
    for k, v in adapters.params.items():
        close(v.numpy(), wanted[k], "trajectory", "LoRA: updates after ten steps", drift=drift[k])
    adapters.detach()
    assert all(np.array_equal(v.numpy(), frozen[k]) for k, v in source.model.state_dict().items())


def test_merged_weights_do_what_the_updates_do(source, close):
    from jclip.model.clip import put_arrays

    adapters, (pixels, _) = Adapters(source.model, LowRank(), 0), batch(0)
    arrays = random_start(adapters, 0)
    plain = source.model.encode_image(pixels).numpy()
    adapters.attach()
    beside = source.model.encode_image(pixels).numpy()
    adapters.detach()
    assert np.array_equal(source.model.encode_image(pixels).numpy(), plain) and np.abs(beside - plain).max() > 1e-2
    put_arrays(source.model, adapters.merged(arrays))
    close(source.model.encode_image(pixels).numpy(), beside, "features", "LoRA: merged")


def test_at_the_start_nothing_is_changed(source):
    adapters, (pixels, _) = Adapters(source.model, LowRank(), 0), batch(0)
    plain = source.model.encode_image(pixels).numpy()
    adapters.attach()
    assert np.array_equal(source.model.encode_image(pixels).numpy(), plain)
    assert all(
        np.abs(v.numpy()).max() <= 1 / np.sqrt(v.shape[1]) for k, v in adapters.params.items() if k.endswith("A")
    )


def test_dropout_is_on_while_training_and_the_same_for_one_seed(source):
    adapters, (pixels, _) = Adapters(source.model, LowRank(dropout=0.5), 0), batch(0)
    random_start(adapters, 0)
    adapters.attach()
    still = source.model.encode_image(pixels).numpy()
    adapters.train(True)
    drawn = []
    for seed in (1, 1, 2):
        adapters.draw(seed)
        drawn.append(source.model.encode_image(pixels).numpy())
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    adapters.train(False)
    assert np.array_equal(source.model.encode_image(pixels).numpy(), still) and not np.array_equal(drawn[0], still)


def test_parts_are_computed_again_with_the_same_dropout(source, close, monkeypatch):
    """Against one graph of all parts: other masks in the second pass would give other gradients."""
    from jclip.train import on_photos as tuning

    adapters = Adapters(source.model, LowRank(dropout=0.5), 0)
    random_start(adapters, 0)
    adapters.attach()
    adapters.train(True)
    monkeypatch.setattr(tuning, "TEXTS_AT_ONCE", 1)
    loss_of, params = (
        lora.batch_loss(config(accumulate=3), source.model, PROMPTS, adapters),
        list(adapters.params.values()),
    )

    def both():
        loss = loss_of(*batch(0), 4)
        return [loss.numpy(), *(g.numpy() for g in jt.grad(loss, params))]

    got = both()
    monkeypatch.setattr(tuning, "in_parts", lambda encode, parts, _: jt.concat([encode(p) for p in parts], dim=0))
    for mine, whole in zip(got, both(), strict=True):
        close(mine, whole, "gradient_relative", "LoRA: in parts with dropout, relative", relative=True)


def test_blocks_by_name():
    assert [list(block_numbers(12, b)) for b in ("bottom", "middle", "top")] == [
        [*range(4)],
        [*range(4, 8)],
        [*range(8, 12)],
    ]
    assert list(block_numbers(12, "upper half")) == [*range(6, 12)] and list(block_numbers(12, "top 3")) == [9, 10, 11]
    assert list(block_numbers(3, "all")) == [0, 1, 2] and list(block_numbers(2, "top 3")) == [0, 1]
    with pytest.raises(ConfigError, match="lora.blocks=middle has none of the 1 blocks"):
        block_numbers(1, "middle")


def test_what_does_not_fit_is_reported(source, small_models):
    with pytest.raises(ConfigError, match="rank must be at most 32, the width of"):
        Adapters(source.model, LowRank(rank=33, towers="text"), 0)
    with pytest.raises(ConfigError, match="of a ViT's attention: set lora.towers=text"):
        Adapters(ModelSource(small_models["resnet"]).model, LowRank(), 0)
    for settings, message in (
        ({"rank": 0}, "rank must be at least 1.*got 0, 1.0"),
        ({"dropout": 1.0}, "got 2, 1.0, 1.0"),
        ({"parts": ()}, "parts must be some of q, k, v"),
    ):
        with pytest.raises(ConfigError, match=message):
            LowRank(**settings)
    with pytest.raises(ConfigError, match="tunes towers on photos"):
        lora.Config(DataConfig(features="x.npz"), model="x")
    with pytest.raises(ConfigError, match="steps must be set where data.shots=0 takes all photos"):
        lora.total_steps(lora.Config(DataConfig(shots=0), model="x"))


def test_from_photos_to_a_merged_model(small_models, photo_folder, tmp_path, monkeypatch):
    settings = [
        f"model={small_models['vit']}",
        f"data.root={photo_folder}",
        "data.split_file=",
        "data.shots=2",
        "steps=5",
        "optim.batch=4",
    ]
    whole = toys.train(CONFIG, tmp_path / "whole", *settings)
    assert {"zero_shot_test_top1", "test_top1", "test_top1_last_epoch", "best_epoch"} <= set(whole)
    assert whole["test_top1"] == whole["test_top1_last_epoch"] and whole["parameters"] == 2 * 2 * 3 * (48 + 32) * 2
    merged = dict(open_checkpoint(tmp_path / "whole" / "model.safetensors").arrays())
    before = dict(open_checkpoint(small_models["vit"]).arrays())
    moved = {k for k in before if not np.array_equal(before[k], merged[k])}
    assert moved == {k for k in before if k.endswith("attn.in_proj_weight")}

    with toys.broken_off(lora, monkeypatch, step=4):
        toys.train(CONFIG, tmp_path / "killed", *settings)
    assert toys.train(CONFIG, tmp_path / "killed", *settings) == whole

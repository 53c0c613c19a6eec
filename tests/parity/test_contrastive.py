"""The contrastive loss, its gradients with and without accumulation, and twenty steps of the recipe, against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from jclip.config import OptimConfig  # noqa: E402
from jclip.functional.losses import contrastive_loss, positive_targets  # noqa: E402
from jclip.model.clip import build, clamp_logit_scale, training_mode  # noqa: E402
from jclip.model.trainable import no_weight_decay, trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.train.on_captions import Objective, caption_gradients  # noqa: E402
from jclip.train.optim import learning_rate, optimiser  # noqa: E402
from jclip.weights.checkpoint import load_strict, open_checkpoint  # noqa: E402
from tests.parity import torch_clip  # noqa: E402
from tests.toys import TOYS, toy_batch, toy_file  # noqa: E402
from tests.trajectories import in_both_precisions, steps_from_equal_weights, without_key_bias  # noqa: E402

F = torch.nn.functional


RATES = {"vit": 1e-3, "resnet": 1e-4}
SCALES = {"vit": math.log(100.0) - 2e-3, "resnet": math.log(1 / 0.07)}


def contrastive_gradients(model, parts, names, positives):
    return caption_gradients(model, parts, names, Objective(positives=positives))


def doubled(p):
    return {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in p.items()}


def torch_loss(images, texts, scale, targets=None):
    per_image = scale * images @ texts.T
    own = torch.arange(len(images)) if targets is None else torch.tensor(targets)
    return (F.cross_entropy(per_image, own) + F.cross_entropy(per_image.T, own)) / 2


def unit_rows(rng, shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("grouped", [False, True])
def test_loss_and_gradients(seed, grouped, close):
    rng = np.random.default_rng(seed)
    arrays = [unit_rows(rng, (7, 5)), unit_rows(rng, (7, 5)), np.array([23.0], np.float32)]
    targets = positive_targets(np.array([0, 1, 0, 2, 3, 1, 0])) if grouped else None
    ours, theirs = [jt.array(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    loss, wanted = contrastive_loss(*ours, targets), torch_loss(*theirs, targets)
    close(loss.numpy().ravel(), [wanted.item()], "loss", "contrastive loss")
    wanted.backward()
    for g, t in zip(jt.grad(loss, ours), theirs, strict=True):
        close(g.numpy(), t.grad, "gradient_relative", "contrastive loss: gradients, relative", relative=True)


def test_targets_by_hand():
    wanted = [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]
    assert positive_targets(np.array([4, 1, 4, 0])).tolist() == wanted
    assert np.array_equal(positive_targets(np.arange(3)), np.eye(3))


def parts_of(config, sizes, seed):
    made, start = [], 0
    for i, size in enumerate(sizes):
        pixels, tokens = toy_batch(config, seed=10 * seed + i, images=size, texts=size)
        made.append((pixels, tokens, np.arange(start, start + size) % 5))
        start += size
    return made


@pytest.mark.parametrize("name", ["vit", "resnet"])
@pytest.mark.parametrize("positives", ["own", "same"])
def test_gradients_of_the_whole_model(name, positives, tmp_path, close):
    checkpoint = open_checkpoint(toy_file(tmp_path, TOYS[name], seed=1))
    model = build(checkpoint)
    params = trainable(model)
    parts = parts_of(model.config, [6], seed=0)
    loss, gradients = contrastive_gradients(model, parts, list(params), positives)
    p = torch_clip.parameters(dict(checkpoint.arrays()), requires_grad=True)
    wanted = whole_loss(p, model.config, parts, positives)
    close(loss.numpy().ravel(), [wanted.item()], "trajectory_loss", f"toy {name}: contrastive loss")
    wanted.backward()
    for key, g in zip(params, gradients, strict=True):
        compared = without_key_bias(key, g.numpy().reshape(p[key].shape)), without_key_bias(key, p[key].grad.numpy())
        close(*compared, "contrastive_gradient_relative", f"toy {name}: contrastive gradients, relative", relative=True)


def whole_loss(p, config, parts, positives, training=False):
    pixels, tokens = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    groups = np.concatenate([part[2] for part in parts])
    pixels = torch.tensor(pixels).to(p["logit_scale"].dtype)
    images = F.normalize(torch_clip.encode_image(p, config, pixels, training=training), dim=-1)
    texts = F.normalize(torch_clip.encode_text(p, config, torch.tensor(tokens).long()), dim=-1)
    return torch_loss(images, texts, p["logit_scale"].exp(), positive_targets(groups) if positives == "same" else None)


@pytest.mark.parametrize("positives", ["own", "same"])
def test_accumulated_gradients_are_those_of_the_large_batch(positives, tmp_path, close):
    """The logit scale's as well, which is in every part's loss; against torch on the whole batch at once."""
    checkpoint = open_checkpoint(toy_file(tmp_path, TOYS["vit"], seed=2))
    model = build(checkpoint)
    params = trainable(model)
    parts = parts_of(model.config, [3, 3, 3], seed=4)
    p = torch_clip.parameters(dict(checkpoint.arrays()), requires_grad=True)
    wanted = whole_loss(p, model.config, parts, positives)
    wanted.backward()
    loss, gradients = contrastive_gradients(model, parts, list(params), positives)
    close(loss.numpy().ravel(), [wanted.item()], "trajectory_loss")
    for key, g in zip(params, gradients, strict=True):
        compared = without_key_bias(key, g.numpy().reshape(p[key].shape)), without_key_bias(key, p[key].grad.numpy())
        close(*compared, "contrastive_gradient_relative", "accumulated gradients, relative", relative=True)
    assert abs(float(p["logit_scale"].grad)) > 1e-6


def test_accumulation_moves_running_statistics_once_per_part(tmp_path):
    model = build(open_checkpoint(toy_file(tmp_path, TOYS["resnet"], seed=2)))
    parts = parts_of(model.config, [3, 4], seed=4)
    training_mode(model)
    params = trainable(model)
    before = model.visual.bn1.running_mean.numpy()
    contrastive_gradients(model, parts, list(params), "own")
    moved = model.visual.bn1.running_mean.numpy()
    other = build(open_checkpoint(toy_file(tmp_path, TOYS["resnet"], seed=2)))
    training_mode(other)
    for pixels, _, _ in parts:
        other.encode_image(pixels).sync()
    assert np.array_equal(moved, other.visual.bn1.running_mean.numpy()) and not np.array_equal(before, moved)


@pytest.mark.parametrize("name", ["vit", "resnet"])
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_steps_of_the_recipe(name, seed, tmp_path, close):
    """Warm-up and cosine, decay left out where the rule says, batch statistics, the logit scale kept below 100.

    Each step from equal weights, and all twenty on their own. The ViT's scale starts at its bound; the ResNet's where
    training starts, as batch statistics of five pictures amplify each rounding at a scale of 100.
    """
    checkpoint = open_checkpoint(toy_file(tmp_path, TOYS[name], seed=seed))
    arrays = {**dict(checkpoint.arrays()), "logit_scale": np.array([SCALES[name]], np.float32)}
    config = OptimConfig(lr=RATES[name], betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, warmup=0.2)
    parts = [parts_of(checkpoint.config, [5], seed=100 * seed + number) for number in range(20)]
    label = f"toy {name}: {{}} 20 contrastive steps"

    def prepared():
        model = build(checkpoint)
        training_mode(model)
        load_strict(model, arrays)
        return model, optimiser(config, trainable(model), no_weight_decay)

    def ours_at(number):
        optim.lr = learning_rate(config, number, 20)
        return contrastive_gradients(model, parts[number], list(optim.params), "own")

    def in_torch():
        p = doubled(torch_clip.parameters(arrays, requires_grad=True))
        groups = [{"params": [p[k]], "weight_decay": decay} for k, decay in optim._decay.items()]
        assert {group["weight_decay"] for group in groups} == {0.0, 0.2}
        return p, torch.optim.AdamW(groups, config.lr, config.betas, config.eps)

    def loss_at(p, number):
        rising, falling = (number + 1) / 4, 0.5 * (1 + math.cos(math.pi * (number - 4) / 16))
        for group in reference.param_groups:
            group["lr"] = config.lr * (rising if number < 4 else falling)
        return whole_loss(p, model.config, parts[number], "own", training=True)

    def clamp():
        with torch.no_grad():
            p["logit_scale"].clamp_(0, math.log(100.0))

    def clamp_both():
        clamp_logit_scale(model)
        clamp()

    def free_run():
        nonlocal p, reference
        p, reference = in_torch()
        losses = []
        for number in range(20):
            wanted = loss_at(p, number)
            reference.zero_grad()
            wanted.backward()
            reference.step()
            clamp()
            losses.append(wanted.detach().numpy())
        return {k: without_key_bias(k, p[k].detach().numpy()) for k in optim.params} | {"": np.stack(losses)}

    model, optim = prepared()
    p, reference = in_torch()
    each = label.format("each of")
    steps_from_equal_weights(20, optim, ours_at, reference, p, loss_at, clamp_both, close, each)

    model, optim = prepared()
    losses = []
    for number in range(20):
        loss, gradients = ours_at(number)
        optim.apply(gradients)
        clamp_logit_scale(model)
        losses.append(loss.numpy().ravel()[0])
    wanted, drift = in_both_precisions(free_run)
    close(losses, wanted[""], "contrastive_trajectory_loss", label.format("losses of"), drift=drift[""])
    for k, v in optim.params.items():
        got = without_key_bias(k, v.numpy()).reshape(wanted[k].shape)
        close(got, wanted[k], "contrastive_trajectory", label.format("weights after"), drift=drift[k])


@pytest.mark.parametrize(("before", "after"), [(4.7, math.log(100.0)), (-0.3, 0.0), (2.5, 2.5)])
def test_the_logit_scale_stays_between_one_and_a_hundred(before, after, tmp_path, close):
    model = build(open_checkpoint(toy_file(tmp_path, TOYS["vit"])))
    for trained in (True, False):
        trainable(model, ("*",) if trained else ("visual.*",))
        model.logit_scale.update(jt.array([before]))
        model.logit_scale.start_grad() if trained else model.logit_scale.stop_grad()
        clamp_logit_scale(model)
        close(model.logit_scale.numpy(), [after], "optimiser")
        assert model.logit_scale.is_stop_grad() != trained

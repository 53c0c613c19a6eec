"""Optimisers, schedules and twenty training steps of a whole model against torch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from jclip.config import OptimConfig  # noqa: E402
from jclip.functional.similarity import normalise  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.trainable import no_weight_decay, trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.train.optim import SGD, AdamW, clip_by_norm, cosine, learning_rate  # noqa: E402
from jclip.weights.checkpoint import load_strict, open_checkpoint  # noqa: E402
from tests.parity import torch_clip  # noqa: E402
from tests.toys import TOYS, toy_batch, toy_file  # noqa: E402
from tests.trajectories import in_both_precisions, steps_from_equal_weights, without_key_bias  # noqa: E402

OPTIMISERS = {
    "adamw": (
        lambda p: AdamW(p, 3e-3, (0.9, 0.98), 1e-6, 0.2),
        lambda p: torch.optim.AdamW(p, 3e-3, (0.9, 0.98), 1e-6, 0.2),
    ),
    "adamw, large eps": (
        lambda p: AdamW(p, 1e-3, eps=1e-4, weight_decay=1e-2),
        lambda p: torch.optim.AdamW(p, 1e-3, eps=1e-4),
    ),
    "sgd": (lambda p: SGD(p, 1e-2, 0.9, 5e-4), lambda p: torch.optim.SGD(p, 1e-2, 0.9, weight_decay=5e-4)),
    "sgd, plain": (lambda p: SGD(p, 1e-2, 0.0), lambda p: torch.optim.SGD(p, 1e-2)),
    "sgd, nesterov": (
        lambda p: SGD(p, 1e-2, 0.9, 5e-4, nesterov=True),
        lambda p: torch.optim.SGD(p, 1e-2, 0.9, weight_decay=5e-4, nesterov=True),
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_optimisers_take_the_same_steps(name, seed, close):
    rng = np.random.default_rng(seed)
    start = {"w": rng.standard_normal((5, 7)), "b": rng.standard_normal(7), "unused": rng.standard_normal(3)}
    start = {k: v.astype(np.float32) for k, v in start.items()}
    make, make_torch = OPTIMISERS[name]
    ours = {k: jt.array(v) for k, v in start.items()}
    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    optim, reference = make(ours), make_torch(list(theirs.values()))
    for number in range(20):
        optim.lr = reference.param_groups[0]["lr"] = 1e-2 * (number + 1) / 20
        gradients = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in start.items()}
        optim.apply([jt.array(g) for g in gradients.values()])
        for k, p in theirs.items():
            p.grad = torch.tensor(gradients[k])
        reference.step()
        for k, p in theirs.items():
            close(ours[k].numpy(), p.detach(), "optimiser", f"20 steps of {name}")
            assert not ours[k].is_stop_grad()


def test_clipping_equals_torch(close):
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(s).astype(np.float32) for s in ((5, 7), (7,), (2, 3, 4))]
    for limit in (0.5, 100.0):
        theirs = [torch.zeros(g.shape, requires_grad=True) for g in gradients]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(theirs, limit)
        for ours, p in zip(clip_by_norm([jt.array(g) for g in gradients], limit), theirs, strict=True):
            close(ours.numpy(), p.grad, "optimiser")


def test_schedules_equal_torch(close):
    config, total = OptimConfig(lr=0.3), 17
    p = torch.zeros(1, requires_grad=True)
    reference = torch.optim.SGD([p], lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=total)
    for step in range(total):
        close(learning_rate(config, step, total), reference.param_groups[0]["lr"], "schedule")
        reference.step()
        schedule.step()
    assert cosine(0, 10, 2.0, 1.0) == 2.0 and abs(cosine(10, 10, 2.0, 1.0) - 1.0) < 1e-15
    warm = OptimConfig(lr=1.0, warmup=4)
    assert [learning_rate(warm, s, 8) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(OptimConfig(lr=0.5, schedule="constant"), 99, 100) == 0.5


@pytest.mark.parametrize("step_epochs, gamma", [(10, 0.1), (3, 0.5)])
def test_the_step_schedule_equals_torchs(step_epochs, gamma, close):
    config, batches = OptimConfig(lr=0.3, schedule="step", step_epochs=step_epochs, gamma=gamma, epochs=23), 4
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(reference, step_size=step_epochs, gamma=gamma)
    for epoch in range(config.epochs):
        for batch in range(batches):
            rate = learning_rate(config, epoch * batches + batch, config.epochs * batches)
            close(rate, reference.param_groups[0]["lr"], "schedule")
        reference.step()
        schedule.step()
    assert learning_rate(config, 91, 92) < config.lr


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_twenty_adamw_steps_of_the_whole_model(name, tmp_path, close):
    """From a fresh logit scale, as training starts: each step from equal weights, and all twenty on their own."""
    checkpoint = open_checkpoint(toy_file(tmp_path, TOYS[name], seed=3))
    arrays = {**dict(checkpoint.arrays()), "logit_scale": np.array([np.log(1 / 0.07)], np.float32)}

    def prepared():
        model = build(checkpoint)
        load_strict(model, arrays)
        return model, AdamW(trainable(model), 1e-3, (0.9, 0.98), 1e-6, 0.2, exclude=no_weight_decay)

    model, optim = prepared()
    batches = [toy_batch(model.config, seed=number, images=4, texts=4) for number in range(20)]
    label = f"toy {name}: {{}} 20 AdamW steps"
    p, reference = torch_adamw(arrays, optim)
    steps_from_equal_weights(
        20, optim, lambda i: our_gradients(model, optim, *batches[i]), reference, p,
        lambda p, i: torch_loss(p, model.config, *batches[i]), lambda: None, close, label.format("each of"),
    )  # fmt: skip

    def free_run():
        p, reference = torch_adamw(arrays, optim)
        losses = []
        for batch in batches:
            wanted = torch_loss(p, model.config, *batch)
            reference.zero_grad()
            wanted.backward()
            reference.step()
            losses.append(wanted.detach().numpy())
        return {k: without_key_bias(k, v.detach().numpy()) for k, v in p.items()} | {"": np.stack(losses)}

    model, optim = prepared()
    losses = []
    for batch in batches:
        loss, gradients = our_gradients(model, optim, *batch)
        optim.apply(gradients)
        losses.append(loss.item())
    wanted, drift = in_both_precisions(free_run)
    close(losses, wanted[""], "trajectory_loss", label.format("losses of"), drift=drift[""])
    for k, v in optim.params.items():
        got = without_key_bias(k, v.numpy()).reshape(wanted[k].shape)
        close(got, wanted[k], "trajectory", label.format("weights after"), drift=drift[k])


def torch_adamw(arrays, optim):
    """The parameters in float64 and torch's optimiser of those that `optim` trains, with its rule of decay."""
    p = {
        k: torch.tensor(v.astype(np.float64)).reshape(() if k == "logit_scale" else v.shape) for k, v in arrays.items()
    }
    groups = [{"params": [p[k].requires_grad_()], "weight_decay": optim._decay[k]} for k in optim.params]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}
    return p, torch.optim.AdamW(groups, 1e-3, (0.9, 0.98), 1e-6)


def our_gradients(model, optim, pixels, tokens):
    """The loss of images and their texts, and its gradients in the order of the optimiser's parameters."""
    images, texts = normalise(model.encode_image(pixels)), normalise(model.encode_text(tokens))
    per_image = model.logit_scale.exp() * jt.matmul(images, texts.transpose(0, 1))
    target = jt.array(np.arange(len(pixels)))
    both = (jt.nn.cross_entropy_loss(scores, target) for scores in (per_image, per_image.transpose(0, 1)))
    loss = sum(both) / 2
    return loss, jt.grad(loss, list(optim.params.values()))


def torch_loss(p, config, pixels, tokens):
    normal, entropy = torch.nn.functional.normalize, torch.nn.functional.cross_entropy
    images = normal(torch_clip.encode_image(p, config, torch.tensor(pixels).double()), dim=-1)
    texts = normal(torch_clip.encode_text(p, config, torch.tensor(tokens).long()), dim=-1)
    per_image, target = p["logit_scale"].exp() * images @ texts.T, torch.arange(len(pixels))
    return (entropy(per_image, target) + entropy(per_image.T, target)) / 2

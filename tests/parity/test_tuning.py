"""What contrastive tuning adds to the plain loss, each beside torch from the formulas: the losses, their gradients, twenty
steps from equal weights; and recomputed blocks, which change the memory alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from jclip.config import OptimConfig  # noqa: E402
from jclip.functional.losses import distillation_loss, positive_pairs, positive_targets, sigmoid_loss, softplus  # noqa: E402
from jclip.model.clip import build, clamp_logit_scale  # noqa: E402
from jclip.model.parameter_groups import LowRank, rate_factors  # noqa: E402
from jclip.model.patch_dropout import draw_patches, encode_kept_patches  # noqa: E402
from jclip.model.recompute import recompute_blocks  # noqa: E402
from jclip.model.trainable import no_weight_decay, trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.train.on_captions import Objective, Part, caption_gradients, teacher_scores  # noqa: E402
from jclip.train.optim import optimiser  # noqa: E402
from jclip.train.tuned_towers import TunedTowers  # noqa: E402
from jclip.weights.checkpoint import open_checkpoint  # noqa: E402
from tests.parity import torch_clip  # noqa: E402
from tests.toys import TOY_EVAS, TOY_RESNET, TOY_VIT, TOY_VIT_GELU, toy_batch, toy_file  # noqa: E402
from tests.trajectories import steps_from_equal_weights, without_key_bias  # noqa: E402

F = torch.nn.functional
BATCH, STEPS = 5, 20


def unit_rows(rng, shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def torch_sigmoid_loss(images, texts, scale, bias, positives):
    """SigLIP, listing 1: labels 1 and -1, the sum of log sigmoids by the number of images."""
    logits = scale * images @ texts.T + bias
    labels = 2 * torch.as_tensor(positives).to(logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


def torch_softmax_loss(images, texts, scale, targets):
    logits = scale * images @ texts.T
    wanted = torch.as_tensor(targets).to(logits.dtype)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2


def torch_distillation(images, texts, scale, wanted):
    """open_clip's DistillClipLoss without the contrastive part."""
    logits, wanted = scale * images @ texts.T, torch.as_tensor(wanted).to(images.dtype)
    pairs = ((wanted, logits), (wanted.T, logits.T))
    return sum(-(t.softmax(1) * s.log_softmax(1)).sum(1).mean() for t, s in pairs) / 2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("grouped", [False, True])
def test_sigmoid_loss_and_gradients(seed, grouped, close):
    rng = np.random.default_rng(seed)
    arrays = [
        unit_rows(rng, (7, 5)),
        unit_rows(rng, (7, 5)),
        np.array([9.0], np.float32),
        np.array([-10.0], np.float32),
    ]
    positives = positive_pairs(np.array([0, 1, 0, 2, 3, 1, 0])) if grouped else None
    ours, theirs = [jt.array(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    loss = sigmoid_loss(*ours, positives)
    wanted = torch_sigmoid_loss(*theirs, np.eye(7, dtype=bool) if positives is None else positives)
    close(loss.numpy().ravel(), [wanted.item()], "trajectory_loss", "sigmoid loss")
    wanted.backward()
    for g, t in zip(jt.grad(loss, ours), theirs, strict=True):
        close(g.numpy(), t.grad, "gradient_relative", "sigmoid loss: gradients, relative", relative=True)


def test_softplus_keeps_small_values(close):
    x = np.array([-30, -17.5, -9, -1.3, -1e-3, 1e-3, 0.4, 3, 20, 80], np.float32)
    var, tensor = jt.array(x), torch.tensor(x, dtype=torch.float64, requires_grad=True)
    ours, wanted = softplus(var), F.softplus(tensor)
    wanted.sum().backward()
    close(ours.numpy() / wanted.detach().numpy(), np.ones(10), "rounding", "softplus, relative")
    close(
        jt.grad(ours.sum(), var).numpy() / tensor.grad.numpy(), np.ones(10), "rounding", "softplus: gradient, relative"
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_distillation_loss_and_gradients(seed, close):
    rng = np.random.default_rng(seed)
    arrays = [unit_rows(rng, (6, 5)), unit_rows(rng, (6, 5)), np.array([23.0], np.float32)]
    wanted_scores = 40 * unit_rows(rng, (6, 9)) @ unit_rows(rng, (6, 9)).T
    ours, theirs = [jt.array(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    loss, wanted = distillation_loss(*ours, wanted_scores), torch_distillation(*theirs, wanted_scores)
    close(loss.numpy().ravel(), [wanted.item()], "loss", "distillation loss")
    wanted.backward()
    for g, t in zip(jt.grad(loss, ours), theirs, strict=True):
        close(g.numpy(), t.grad, "gradient_relative", "distillation loss: gradients, relative", relative=True)


def test_the_losses_are_open_clips(close):
    loss = pytest.importorskip("open_clip.loss", reason="open_clip is not installed (pip install open_clip_torch)")
    rng = np.random.default_rng(3)
    images, texts, taught, read = (unit_rows(rng, (6, width)) for width in (5, 5, 8, 8))
    tensors = [torch.tensor(a) for a in (images, texts)]
    theirs = loss.SigLipLoss()(*tensors, torch.tensor(11.0), torch.tensor(-9.0))
    ours = sigmoid_loss(jt.array(images), jt.array(texts), jt.array([11.0]), jt.array([-9.0]))
    close(ours.numpy().ravel(), [float(theirs)], "trajectory_loss", "sigmoid loss beside open_clip's")
    more = [torch.tensor(a) for a in (taught, read)]
    theirs = loss.DistillClipLoss()(*tensors, torch.tensor(20.0), *more, torch.tensor(30.0))[1]
    ours = distillation_loss(jt.array(images), jt.array(texts), jt.array([20.0]), 30 * taught @ read.T)
    close(ours.numpy().ravel(), [float(theirs)], "loss", "distillation loss beside open_clip's")


def test_positives_by_hand():
    captions, images = np.array([4, 1, 4, 0]), np.array([0, 0, 1, 2])
    both = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert positive_pairs(captions, images).astype(int).tolist() == both
    third = np.float32(1 / 3)
    wanted = [[third, third, third, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]
    assert np.array_equal(positive_targets(captions, images), np.array(wanted, np.float32))


def test_rates_fall_from_the_projection_down():
    names = [
        "logit_scale", "visual.proj", "visual.ln_post.weight", "visual.transformer.resblocks.1.attn.q.A",
        "visual.transformer.resblocks.0.ln_1.bias", "visual.conv1.weight", "text_projection", "ln_final.bias",
        "transformer.resblocks.0.ln_1.bias", "token_embedding.weight",
    ]  # fmt: skip
    found = rate_factors(TOY_VIT, 0.5, names)
    assert [found.get(name, 1.0) for name in names] == [1, 1, 0.5, 0.5, 0.25, 0.125, 1, 0.5, 0.125, 0.0625]
    assert rate_factors(TOY_VIT, 1.0, names) == {}


@pytest.mark.parametrize("seed", [0, 1])
def test_kept_patches(seed, tmp_path, close):
    rng = np.random.default_rng(seed)
    kept = draw_patches(rng, 3, 16, 0.6)
    assert kept.shape == (3, 6) and (np.diff(kept, axis=1) > 0).all() and draw_patches(rng, 2, 16, 0.99).shape == (2, 1)
    assert len({tuple(row) for row in kept}) > 1 and 0 <= kept.min() <= kept.max() < 16
    checkpoint = open_checkpoint(toy_file(tmp_path, TOY_VIT, seed=seed))
    model, pixels = build(checkpoint), toy_batch(TOY_VIT, seed)[0]
    wanted = encode_kept(torch_clip.parameters(dict(checkpoint.arrays())), TOY_VIT, torch.tensor(pixels), kept)
    close(encode_kept_patches(model, pixels, kept).numpy(), wanted, "features", "features of kept patches")
    every = np.tile(np.arange(16, dtype=np.int32), (3, 1))
    whole = encode_kept_patches(model, pixels, every).numpy()
    close(whole, model.encode_image(pixels).numpy(), "features", "features of all patches")


def encode_kept(p, config, images, kept):
    """A ViT whose patches are dropped after the positions, as open_clip's PatchDropout does."""
    v, eps = config.vision, config.norm_eps
    x = F.conv2d(images, p["visual.conv1.weight"], stride=v.patch_size).flatten(2).transpose(1, 2)
    x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + p["visual.positional_embedding"]
    rows = torch.arange(len(x))[:, None]
    x = torch.cat([x[:, :1], x[:, 1:][rows, torch.tensor(kept).long()]], 1)
    x = torch_clip.norm(x, p, "visual.ln_pre", eps)
    act = torch_clip.activation(config.activation)
    x = torch_clip.transformer(x, p, "visual.", v.layers, v.heads, act, eps)
    return torch_clip.norm(x[:, 0], p, "visual.ln_post", eps) @ p["visual.proj"]


LORA = LowRank(rank=3, alpha=2.0, dropout=0.0, parts=("q", "v"))
CASES = {  # objective, and what else is set
    "sigmoid": ({"loss": "sigmoid"}, {}),
    "sigmoid, shared": ({"loss": "sigmoid", "positives": "caption"}, {"bias": -3.0}),
    "shared images": ({"positives": "image"}, {}),
    "shared captions and images": ({"positives": "both"}, {"recompute": True}),
    "teacher": ({"distill": 0.7}, {"teacher": True}),
    "kept patches": ({}, {"dropped": 0.4}),
    "layer decay": ({}, {"decay": 0.6}),
    "low rank": ({}, {"lora": LORA}),
    "low rank, recomputed": ({"positives": "caption"}, {"lora": LORA, "recompute": True}),
}


def parts_at(config, number: int, dropped: float) -> list[Part]:
    pixels, tokens = toy_batch(config, seed=300 + number, images=BATCH, texts=BATCH)
    meanings, photos = np.array([0, 1, 2, 1, 3]), np.array([0, 0, 1, 2, 3])
    rows, columns = config.vision.grid
    kept = draw_patches(np.random.default_rng(number), BATCH, rows * columns, dropped) if dropped else None
    return [Part(pixels, tokens, meanings, photos, kept, tokens)]


def with_updates(p, model_weights, lora: LowRank):
    """The weights with the updates added in, as CLIP-LoRA's formula has them."""
    whole = {k: v.to(p["logit_scale"].dtype) for k, v in model_weights.items()}
    for k in [k for k in whole if k.endswith("attn.in_proj_weight")]:
        name, width = k.removesuffix(".in_proj_weight"), whole[k].shape[1]
        updates = [
            p[f"{name}.{part}.B"] @ p[f"{name}.{part}.A"] if part in lora.parts else whole[k].new_zeros(width, width)
            for part in "qkv"
        ]
        whole[k] = whole[k] + lora.alpha / math.sqrt(lora.rank) * torch.cat(updates)
    return {**whole, **{k: v for k, v in p.items() if k in whole}}


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps(name, tmp_path, close):
    """Each step from equal weights: loss, gradients, and the step of AdamW with each parameter's own rate and decay."""
    objective_options, settings = CASES[name]
    how = SimpleNamespace(**{"bias": -10.0, "dropped": 0.0, "decay": 1.0, "lora": None, **settings})
    checkpoint = open_checkpoint(toy_file(tmp_path, TOY_VIT, seed=2))
    arrays = dict(checkpoint.arrays())
    model, teacher = build(checkpoint), None
    if settings.get("teacher"):
        teacher = build(open_checkpoint(toy_file(tmp_path, TOY_VIT_GELU, seed=5)))
    tuned = TunedTowers(model, ("*",), how.lora, how.bias if objective_options.get("loss") else None)
    for i, key in enumerate(k for k in tuned.params if k.endswith(".B")):  # zero at the start, which hides A
        noise = np.random.default_rng(i).standard_normal(tuned.params[key].shape, np.float32)
        tuned.params[key].update(jt.array(0.1 * noise))
        tuned.params[key].start_grad()
    if settings.get("recompute"):
        recompute_blocks(model, tuned.params, tuned.adapters)
    objective = Objective(**objective_options, teacher=teacher, adapters=tuned.adapters, further=tuned.further)
    config = OptimConfig(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    optim = optimiser(config, tuned.params, no_weight_decay)
    optim.rates = rate_factors(TOY_VIT, how.decay, optim.params)
    base = torch_clip.parameters(arrays)
    p = {k: torch.tensor(v.numpy(), dtype=torch.float64).requires_grad_() for k, v in tuned.params.items()}
    p = {k: v.detach().reshape(()).requires_grad_() if k.startswith("logit_") else v for k, v in p.items()}
    rates = {k: config.lr * (how.decay ** depth_of(k) if how.decay < 1 else 1.0) for k in p}
    groups = [{"params": [v], "weight_decay": optim._decay[k], "lr": rates[k]} for k, v in p.items()]
    reference = torch.optim.AdamW(groups, config.lr, config.betas, config.eps)
    parts = [parts_at(TOY_VIT, number, how.dropped) for number in range(STEPS)]
    taught = [teacher_scores(teacher, part) if teacher else None for part in parts]

    def gradients(number: int):
        return caption_gradients(model, parts[number], list(optim.params), objective, number)

    def loss_of(p, number: int):
        (part,) = parts[number]
        weights = with_updates(p, base, how.lora) if how.lora else p
        pixels = torch.tensor(part.images).to(p["logit_scale"].dtype)
        kept = np.tile(np.arange(16), (BATCH, 1)) if part.kept is None else part.kept
        images = F.normalize(encode_kept(weights, TOY_VIT, pixels, kept), dim=-1)
        texts = F.normalize(torch_clip.encode_text(weights, TOY_VIT, torch.tensor(part.tokens).long()), dim=-1)
        same = part.meanings[:, None] == part.meanings, part.photos[:, None] == part.photos
        kinds = {"own": np.eye(BATCH, dtype=bool), "caption": same[0], "image": same[1], "both": same[0] | same[1]}
        wanted, scale = kinds[objective_options.get("positives", "own")], p["logit_scale"].exp()
        if objective_options.get("loss"):
            return torch_sigmoid_loss(images, texts, scale, p["logit_bias"], wanted)
        loss = torch_softmax_loss(images, texts, scale, wanted / wanted.sum(1, keepdims=True))
        return loss + (0.7 * torch_distillation(images, texts, scale, taught[number]) if teacher else 0)

    def clamp():
        clamp_logit_scale(model)
        with torch.no_grad():
            p["logit_scale"].clamp_(0, math.log(100.0))

    label = f"tuning, {name}: each of {STEPS} steps"
    steps_from_equal_weights(STEPS, optim, gradients, reference, p, loss_of, clamp, close, label)


def depth_of(name: str) -> int:
    """How many groups stand above a parameter's own, counted by hand on the toy: two image blocks, three text blocks."""
    above = {
        "visual.proj": 0, "visual.ln_post": 1, "visual.transformer.resblocks.1": 1, "visual.transformer.resblocks.0": 2,
        "visual.": 3, "text_projection": 0, "ln_final": 1, "transformer.resblocks.2": 1, "transformer.resblocks.1": 2,
        "transformer.resblocks.0": 3, "logit_scale": 0,
    }  # fmt: skip
    return next((depth for start, depth in above.items() if name.startswith(start)), 4)


@pytest.mark.parametrize("config", [TOY_VIT, TOY_RESNET, TOY_EVAS["eva02"]], ids=["vit", "resnet", "eva"])
def test_recomputed_blocks_have_the_same_gradients(config, tmp_path, close):
    """With parts as well, which are themselves computed again."""
    checkpoint = open_checkpoint(toy_file(tmp_path, config, seed=1))
    parts = [(*toy_batch(config, i, 4, 4), np.arange(4 * i, 4 * i + 4)) for i in range(2)]
    found = []
    for again in (False, True):
        model = build(checkpoint)
        params = trainable(model)
        if again:
            recompute_blocks(model, params)
        calls = counted(model)
        loss, gradients = caption_gradients(model, parts, list(params), Objective())
        found.append((loss.numpy(), {k: g.numpy() for k, g in zip(params, gradients, strict=True)}, len(calls)))
    (loss, gradients, once), (same, recomputed, twice) = found
    assert np.array_equal(loss, same) and twice > once > 0
    for k, g in gradients.items():
        pair = without_key_bias(k, recomputed[k]), without_key_bias(k, g)
        close(*pair, "gradient_relative", "recomputed blocks: gradients, relative", relative=True)


def counted(model) -> list:
    """Receives an entry whenever the first text block's norm is computed."""
    calls, norm = [], model.transformer.resblocks[0].ln_1
    real = norm.execute
    norm.execute = lambda x, *more: calls.append(1) or real(x, *more)
    return calls


def test_recomputed_dropout_draws_alike(tmp_path, close):
    """Low-rank updates with dropout: both ways of computing have the same masks, and each step its own."""
    checkpoint = open_checkpoint(toy_file(tmp_path, TOY_VIT, seed=1))
    found = []
    for again, number in ((False, 3), (True, 3), (True, 4)):
        model = build(checkpoint)
        tuned = TunedTowers(model, ("*",), LowRank(rank=3, dropout=0.4))
        for key in [k for k in tuned.params if k.endswith(".B")]:
            tuned.params[key].update(jt.ones_like(tuned.params[key]) * 0.1)
            tuned.params[key].start_grad()
        if again:
            recompute_blocks(model, tuned.params, tuned.adapters)
        tuned.train(True)
        objective = Objective(adapters=tuned.adapters, further=tuned.further)
        parts = parts_at(TOY_VIT, 0, 0.0)
        _, gradients = caption_gradients(model, parts, list(tuned.params), objective, number)
        found.append([g.numpy() for g in gradients])
    for a, b in zip(found[0], found[1], strict=True):
        close(b, a, "gradient_relative", "recomputed dropout: gradients, relative", relative=True)
    moved = max(np.abs(a - b).max() for a, b in zip(found[1], found[2], strict=True))
    assert moved > 1e-3 * max(np.abs(a).max() for a in found[1])

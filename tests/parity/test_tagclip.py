"""TagCLIP stage by stage: ours against torch written from the paper's formulas and its code's constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

import torch.nn.functional as F  # noqa: E402

from jclip.functional import local_to_global as ours  # noqa: E402
from jclip.functional.positions import resize_bilinearly  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.patch_attention import crops_seen_in_part, patches_with_attention  # noqa: E402
from jclip.weights.checkpoint import open_checkpoint  # noqa: E402
from tests.parity.torch_clip import activation, norm, parameters  # noqa: E402
from tests.toys import TOY_LAYER_SCALE, TOY_VIT, toy_file  # noqa: E402

DEEP = replace(TOY_VIT, vision=replace(TOY_VIT.vision, layers=7))
SIDES = (30, 45)  # of photos: 6 x 9 patches of 5 pixels
CLASSES, NAMES = 6, 9  # the last three are background
SETTINGS = ours.LocalToGlobal()


def walk(p, config, images, mask_of):
    """Tokens (B, 1 + P, E) before their length is taken, and each layer's mean weights (B, N, N) without the mask."""
    v, eps, act = config.vision, config.norm_eps, activation(config.activation)
    grid = [side // v.patch_size for side in images.shape[2:]]
    table = p["visual.positional_embedding"]
    cells = table[1:].T.reshape(1, -1, *v.grid)
    cells = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False).flatten(2)[0].T
    x = F.conv2d(images, p["visual.conv1.weight"], stride=v.patch_size).flatten(2).transpose(1, 2)
    x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + torch.cat([table[:1], cells])
    x, seen = norm(x, p, "visual.ln_pre", eps), []
    for i in range(v.layers):
        b = f"visual.transformer.resblocks.{i}."
        qkv = F.linear(norm(x, p, b + "ln_1", eps), p[b + "attn.in_proj_weight"], p[b + "attn.in_proj_bias"])
        q, k, value = (t.unflatten(-1, (v.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        scores = q @ k.transpose(2, 3) / (v.width // v.heads) ** 0.5
        seen.append(scores.softmax(-1).mean(1))
        mixed = ((scores + mask_of(i, x.shape[1])).softmax(-1) @ value).transpose(1, 2).flatten(2)
        mixed = F.linear(mixed, p[b + "attn.out_proj.weight"], p[b + "attn.out_proj.bias"])
        x = x + mixed * p.get(b + "ls_1.gamma", 1)
        hidden = act(F.linear(norm(x, p, b + "ln_2", eps), p[b + "mlp.c_fc.weight"], p[b + "mlp.c_fc.bias"]))
        hidden = F.linear(hidden, p[b + "mlp.c_proj.weight"], p[b + "mlp.c_proj.bias"])
        x = x + hidden * p.get(b + "ls_2.gamma", 1)
    return norm(x, p, "visual.ln_post", eps) @ p["visual.proj"], seen


def first_pass(p, config, images):
    """Features (P, E) of one photo's patches, and its attention (P, P)."""
    last = config.vision.layers - 1
    tokens, seen = walk(p, config, images, lambda i, n: -100.0 * (1 - torch.eye(n)) if i == last else torch.zeros(n, n))
    seen = torch.stack(seen)[:, 0, 1:, 1:]
    votes = (seen > seen.mean((1, 2), keepdim=True)).sum(0) >= max(1, (last + 1) // 3)
    first = min(2 * (last + 1) // 3, last - 1)
    return F.normalize(tokens[0, 1:], dim=-1), seen[first:last].mean(0) * votes


def boxes_of(grey, limit):
    """Exclusive corners of the boxes around 8-connected cells above `limit`, by flooding."""
    todo, found = {tuple(at) for at in np.argwhere(grey > limit).tolist()}, []
    while todo:
        part, edge = set(), [todo.pop()]
        while edge:
            y, x = at = edge.pop()
            part.add(at)
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            edge += near
        ys, xs = zip(*part, strict=True)
        found.append((min(ys), min(xs), max(ys) + 1, max(xs) + 1))
    return found


def refine(coarse, attention, grid, published):
    refined = attention @ coarse
    for k in range(coarse.shape[1]):
        share = refined[:, k] - refined[:, k].min()
        share = share / share.max()
        grey = (share.numpy() * np.float32(255)).astype(np.uint8).reshape(grid)
        mask = torch.zeros(grid)
        for y0, x0, y1, x1 in boxes_of(grey, int(share.mean() * 255)):
            mask[y0 : min(y1, grid[0] - published), x0 : min(x1, grid[1] - published)] = 1
        refined[:, k] = (attention * mask.reshape(1, -1)) @ coarse[:, k]
    return refined


def again(p, config, image, refined, best, text, scale, published):
    """Scores of the classes, those that stand out mixed with their probability in a crop; and which these are."""
    patch, side = config.vision.patch_size, config.vision.image_size[0]
    grid, cells = [s // patch for s in image.shape[2:]], side // patch
    limit, out, looked = refined.min() + 0.5 * (refined.max() - refined.min()), best.clone(), []
    for c in range(len(best)):
        if best[c] <= limit:
            continue
        own = refined[:, c] - refined[:, c].min()
        mask = (own / own.max() > 0.5).reshape(*grid)
        ys, xs = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        y0, y1 = int(ys[0]), min(int(ys[-1]) + 1, grid[0] - published)
        x0, x1 = int(xs[0]), min(int(xs[-1]) + 1, grid[1] - published)
        if y0 == y1 or x0 == x1:
            if published:
                break
            continue
        small = (
            F.interpolate(mask[y0:y1, x0:x1][None, None].float(), size=(cells, cells), mode="nearest").flatten().bool()
        )
        crop = image[:, :, y0 * patch : y1 * patch, x0 * patch : x1 * patch]
        crop = F.interpolate(crop, size=(side, side), mode="bilinear", align_corners=False)
        hidden = torch.zeros(cells * cells + 1, cells * cells + 1)
        hidden[0, 1:][~small] = -1000.0
        feature = F.normalize(walk(p, config, crop, lambda i, n, hidden=hidden: hidden)[0][:, 0], dim=-1)
        out[c] = 0.5 * best[c] + 0.5 * (scale * feature @ text.T).softmax(-1)[0, c]
        looked.append(c)
    return out, looked


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(("config", "seed"), [(DEEP, 0), (DEEP, 1), (TOY_LAYER_SCALE, 2)])
def test_every_stage_is_torchs(config, seed, published, tmp_path, close):
    saved = open_checkpoint(toy_file(tmp_path, config, seed))
    model, p = build(saved), parameters({k: t.read() for k, t in saved.tensors.items()})
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((2, 3, *SIDES), dtype=np.float32)
    text = rng.standard_normal((NAMES, config.embed_dim)).astype(np.float32)
    text, scale = text / np.linalg.norm(text, axis=1, keepdims=True), 9.0
    settings = replace(SETTINGS, published=published)
    features, attention = patches_with_attention(model, pixels, *settings.layers(config.vision.layers))
    grid, looked = (SIDES[0] // 5, SIDES[1] // 5), []
    for i in range(2):
        image = torch.tensor(pixels[i : i + 1])
        wanted, weights = first_pass(p, config, image)
        close(features[i], wanted.numpy(), "features_normalised", "TagCLIP: patches")
        close(attention[i], weights.numpy(), "features_normalised", "TagCLIP: attention")
        coarse = (scale * wanted @ torch.tensor(text).T).softmax(-1)
        mine = ours.coarse_scores(features[i], text, scale)
        close(mine, coarse.numpy(), "scores", "TagCLIP: coarse")
        refined = refine(coarse, weights, grid, published)
        mine = ours.refined_scores(mine, attention[i], grid, published)
        close(mine, refined.numpy(), "scores", "TagCLIP: refined")
        best = refined[:, :CLASSES].max(0).values
        scores, classes = again(p, config, image, refined, best, torch.tensor(text), scale, published)
        crops = ours.to_look_at_again(mine, CLASSES, grid, settings)
        assert [one.label for one in crops] == classes
        looked += classes
        found = {}
        for one in crops:
            y, x = (slice(5 * a, 5 * b) for a, b in (one.rows, one.columns))
            cut = resize_bilinearly(pixels[i][:, y, x], (20, 20)).astype(np.float32)
            feature = crops_seen_in_part(model, cut[None], ours.nearest_mask(one.mask, (4, 4)).reshape(1, -1))
            found[one.label] = float(ours.coarse_scores(feature, text, scale)[0, one.label])
        close(ours.photo_scores(mine, found, 0.5)[:CLASSES], scores.numpy(), "scores", "TagCLIP: photo")
    assert looked  # else the last stage was never compared

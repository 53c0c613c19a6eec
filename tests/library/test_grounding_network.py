"""The network that finds a phrase's box against torch, written from the paper's formulas; its savings change nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from jclip.errors import ConfigError
from jclip.functional.boxes import box_loss
from jclip.model.grounding import FusionShape, GroundingNetwork, initial_arrays, sine_positions
from jclip.model.tower_levels import block_levels, fusion_shape, image_parts, spread, stage_grid
from jclip.runtime import jt
from jclip.train.optim import AdamW, clip_by_norm
from jclip.weights.variants import VARIANTS, config_of
from tests.library.test_kernels import needs_onednn
from tests.toys import SMALL_RESNET, SMALL_VIT
from tests.trajectories import steps_from_equal_weights

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
nn = torch.nn.functional

SHAPE = FusionShape(
    image_width=22, text_width=14, image_tokens=7, max_text=9, hidden=12, layers=3, heads=3, ffn=20, dropout=0.0
)
SHAPES = {
    "plain": SHAPE,
    "norms": replace(SHAPE, project_norm=True, present=True),
    "last": replace(SHAPE, last=True, image_width=14),
}
B, L = 5, 6  # phrases, and the longest of them


def torch_network(shape: FusionShape, p, images, texts, said, seen):
    """Boxes and presence of all `max_text` tokens, every layer whole: the formulas as the reference computes them."""

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        return nn.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    v, t = linear(images, "visu_proj" if shape.last else "ml_visu_proj"), linear(texts, "text_proj")
    if shape.project_norm:
        v, t = norm(v, "visu_norm"), norm(t, "text_norm")
    n, D = len(texts), shape.hidden
    x = torch.cat([p["reg_token.weight"].expand(n, 1, D), t, v], dim=1)
    ignored = torch.cat([torch.zeros(n, 1, dtype=torch.bool), said == 0, seen == 0], dim=1)
    for i in range(shape.layers):
        name = f"vl_transformer.encoder.layers.{i}"
        q = k = x + p["vl_pos_embed.weight"]
        wq, wk, wv = p[f"{name}.self_attn.in_proj_weight"].chunk(3)
        bq, bk, bv = p[f"{name}.self_attn.in_proj_bias"].chunk(3)
        split = [
            y.reshape(n, -1, shape.heads, D // shape.heads).transpose(1, 2)
            for y in (q @ wq.T + bq, k @ wk.T + bk, x @ wv.T + bv)
        ]
        scores = split[0] @ split[1].transpose(2, 3) / math.sqrt(D // shape.heads)
        weights = scores.masked_fill(ignored[:, None, None], -torch.inf).softmax(-1)
        mixed = (weights @ split[2]).transpose(1, 2).reshape(n, -1, D)
        x = norm(x + linear(mixed, f"{name}.self_attn.out_proj"), f"{name}.norm1")
        x = norm(x + linear(torch.relu(linear(x, f"{name}.linear1")), f"{name}.linear2"), f"{name}.norm2")
    inner = torch.relu(linear(torch.relu(linear(x[:, 0], "bbox_embed.layers.0")), "bbox_embed.layers.1"))
    return torch.sigmoid(linear(inner, "bbox_embed.layers.2")), linear(inner, "present_embed")[
        :, 0
    ] if shape.present else None


def torch_box_loss(p, t):
    """Σ|p - t| + 1 - GIoU, the mean."""
    (a0, a1), (b0, b1) = ((x[:, :2] - x[:, 2:] / 2, x[:, :2] + x[:, 2:] / 2) for x in (p, t))
    shared = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(1)
    union = p[:, 2:].prod(1) + t[:, 2:].prod(1) - shared
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(1)
    giou = shared / (union + 1e-7) - (hull - union) / (hull + 1e-7)
    return ((p - t).abs().sum(1) + 1 - giou).mean()


def inputs_of(shape: FusionShape, seed: int) -> dict[str, np.ndarray]:
    """Phrases of 2 to 6 tokens of 9, patches of which some are padding, boxes, and whether things are there."""
    rng = np.random.default_rng((seed, 1))
    said = np.zeros((B, shape.max_text), np.float32)
    for row, length in zip(said, (2, 6, 3, 4, 6), strict=True):
        row[:length] = 1
    seen = (rng.random((B, shape.image_tokens)) < 0.7).astype(np.float32)
    seen[:, 0] = 1
    return {
        "images": rng.standard_normal((B, shape.image_tokens, shape.image_width)).astype(np.float32),
        "texts": rng.standard_normal((B, shape.max_text, shape.text_width)).astype(np.float32),
        "said": said,
        "seen": seen,
        "boxes": rng.uniform(0.2, 0.6, (B, 4)).astype(np.float32),
        "there": rng.integers(0, 2, B).astype(np.float32),
    }


def started(shape: FusionShape, seed: int) -> GroundingNetwork:
    """Norms and biases, which start as ones and zeros, drawn: or a wrong one would not show."""
    network, rng = GroundingNetwork(shape, seed), np.random.default_rng(seed + 7)
    drawn = {k: v.numpy() for k, v in network.state_dict().items()}
    network.put({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in drawn.items() if v.ndim == 1})
    return network


def loss_of_ours(network, data, **options):
    found = network(*(data[k] for k in ("images", "texts", "said", "seen")), **options)
    loss = box_loss(found.boxes, jt.array(data["boxes"]))
    if found.present is not None:
        y = jt.array(data["there"])
        loss = (
            loss
            + (
                jt.maximum(found.present, jt.zeros_like(y))
                - found.present * y
                + jt.log(1 + jt.exp(-jt.abs(found.present)))
            ).mean()
        )
    return loss, found


def loss_of_torch(shape, p, data):
    given = [torch.tensor(data[k]).double() for k in ("images", "texts", "said", "seen", "boxes", "there")]
    boxes, present = torch_network(shape, p, *given[:4])
    loss = torch_box_loss(boxes, given[4])
    if present is not None:
        loss = loss + nn.binary_cross_entropy_with_logits(present, given[5])
    return loss, boxes, present


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_every_parameters_gradient_equal_torchs(kind, seed, close):
    shape, data = SHAPES[kind], inputs_of(SHAPES[kind], seed)
    network = started(shape, seed)
    params = network.state_dict()
    p = {k: torch.tensor(v.numpy()).double().requires_grad_() for k, v in params.items()}
    wanted, boxes, present = loss_of_torch(shape, p, data)
    wanted.backward()
    for whole in (False, True):
        loss, found = loss_of_ours(network, data, whole=whole)
        close(found.boxes.numpy(), boxes.detach(), "features", "grounding network against torch: boxes")
        if present is not None:
            close(found.present.numpy(), present.detach(), "features")
        close(loss.numpy(), [wanted.item()], "loss")
        for k, g in zip(params, jt.grad(loss, list(params.values())), strict=True):
            wanted_g, got = p[k].grad, g.numpy()
            if k.endswith("in_proj_bias"):  # the softmax does not see the keys' part
                wanted_g, got = (np.delete(np.asarray(a), np.s_[12:24]) for a in (wanted_g, got))
            close(
                got,
                wanted_g,
                "gradient_relative",
                "grounding network against torch: gradients, relative",
                relative=True,
            )


def test_ten_adamw_steps_equal_torchs(close):
    shape = SHAPES["norms"]
    network = started(shape, 3)
    params = network.state_dict()
    ours = AdamW(params, lr=1e-3, weight_decay=1e-2)
    p = {k: torch.tensor(v.numpy()).double().requires_grad_() for k, v in params.items()}
    reference = torch.optim.AdamW([p[k] for k in params], lr=1e-3, weight_decay=1e-2)

    def gradients(number):
        loss, _ = loss_of_ours(network, inputs_of(shape, 10 + number))
        return loss, jt.grad(loss, list(params.values()))

    steps_from_equal_weights(
        10, ours, gradients, reference, p, lambda p, number: loss_of_torch(shape, p, inputs_of(shape, 10 + number))[0],
        lambda: None, close, "grounding network",
    )  # fmt: skip
    assert clip_by_norm([jt.ones((4,))], 1.0)[0].numpy() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_cut_text_the_last_layer_for_reg_and_photos_once_change_no_box(seed, close):
    shape, data = SHAPES["norms"], inputs_of(SHAPES["norms"], seed)
    network, of = started(shape, seed), np.array([1, 0, 1, 1, 0])
    with jt.no_grad():
        cut = network(data["images"][:2], data["texts"], data["said"], data["seen"][:2], of=of)
        shorter = network(data["images"][:2], data["texts"][:, :L], data["said"][:, :L], data["seen"][:2], of=of)
        whole = network(data["images"][of], data["texts"], data["said"], data["seen"][of], whole=True)
    for found in (cut, shorter):
        close(found.boxes.numpy(), whole.boxes.numpy(), "features_normalised")
        close(found.present.numpy(), whole.present.numpy(), "features")


@pytest.mark.parametrize("kind", ["norms", "last"])
def test_plain_operators_find_the_same_boxes(kind, close, monkeypatch):
    shape, data = SHAPES[kind], inputs_of(SHAPES[kind], 1)
    network, of = started(shape, 1), np.array([1, 0, 1, 1, 0])
    params, found = list(network.state_dict().values()), []
    for kernels in ("", "plain"):
        monkeypatch.setenv("JCLIP_KERNELS", kernels)
        boxes = network(data["images"][:2], data["texts"], data["said"], data["seen"][:2], of=of).boxes
        loss = box_loss(boxes, jt.array(data["boxes"]))
        found.append([boxes.numpy(), *(g.numpy() for g in jt.grad(loss, params))])
    close(found[0][0], found[1][0], "features_normalised", "grounding network, fused and plain: boxes")
    for name, ours, plain in zip(network.state_dict(), *(part[1:] for part in found), strict=True):
        if not name.endswith("in_proj_bias"):
            close(ours, plain, "gradient_relative", "grounding network, fused and plain: gradients", relative=True)


@needs_onednn
def test_dropout_is_the_same_whatever_is_left_out(close):
    """What is dropped is a matter of phrase, layer and place."""
    shape = replace(SHAPES["norms"], dropout=0.3)
    network = started(shape, 0)
    pairs = [loss_of_ours(network, inputs_of(shape, 0), seed=5, whole=whole) for whole in (False, True)]
    close(
        pairs[0][1].boxes.numpy(), pairs[1][1].boxes.numpy(), "features_normalised", "dropout, tokens left out: boxes"
    )
    params = network.state_dict()
    cut, whole = (jt.grad(loss, list(params.values())) for loss, _ in pairs)
    for k, a, b in zip(params, cut, whole, strict=True):
        if not k.endswith("in_proj_bias"):
            close(a.numpy(), b.numpy(), "gradient_relative", "dropout, tokens left out: gradients", relative=True)


def test_masked_tokens_have_no_part_in_a_box_and_seen_ones_have():
    data, network = inputs_of(SHAPE, 0), started(SHAPE, 0)

    def boxes(**changed):
        with jt.no_grad():
            return network(*({**data, **changed}[k] for k in ("images", "texts", "said", "seen"))).boxes.numpy()

    before = boxes()
    hidden = data["images"] + 9 * (1 - data["seen"][:, :, None])
    assert np.array_equal(boxes(images=hidden), before)
    unsaid = data["texts"] + 9 * (1 - data["said"][:, :, None])
    assert np.array_equal(boxes(texts=unsaid), before)
    moved = data["images"].copy()
    moved[:, 0] += 1
    assert (np.abs(boxes(images=moved) - before).max(axis=1) > 1e-5).all()
    assert (before > 0).all() and (before < 1).all()


def test_a_photo_of_padding_alone_and_a_phrase_without_tokens_have_a_box(close):
    data, network = inputs_of(SHAPE, 0), started(SHAPE, 0)
    for empty in ({"seen": np.zeros_like(data["seen"])}, {"said": np.zeros_like(data["said"])}):
        given = [{**data, **empty}[k] for k in ("images", "texts", "said", "seen")]
        with jt.no_grad():
            found, whole = (network(*given, whole=whole).boxes.numpy() for whole in (False, True))
        close(found, whole, "features_normalised")


def test_dropout_is_drawn_by_its_seed_and_off_without():
    shape = replace(SHAPE, dropout=0.4)
    data, network = inputs_of(shape, 0), started(shape, 0)

    def boxes(seed):
        return network(*(data[k] for k in ("images", "texts", "said", "seen")), seed=seed).boxes.numpy()

    assert np.array_equal(boxes(5), boxes(5)) and np.array_equal(boxes(None), boxes(None))
    assert all(np.abs(boxes(5) - boxes(other)).max() > 1e-4 for other in (6, None))


PUBLISHED = {  # as the reference prints them, of which the unused `visu_proj` and the tower's positions are no part here
    "ViT-B/16": (21_832_964, 512, 197 * 768),
    "ViT-B/32": (21_644_804, 512, 50 * 768),
    "ViT-L/14": (38_920_452, 768, 257 * 1024),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_the_references(name, monkeypatch):
    printed, width, positions = PUBLISHED[name]
    shape = fusion_shape(VARIANTS[name])
    assert (shape.length, shape.hidden) == (1 + 77 + VARIANTS[name].vision.grid[0] ** 2 + 1, width)
    monkeypatch.setattr("jclip.model.grounding.initial_arrays", lambda shapes, seed: {})
    network = GroundingNetwork(shape)
    parts = {k: int(np.prod(v.shape)) for k, v in network.state_dict().items()}
    assert sum(parts.values()) == printed - (512 * width + width) - positions
    if name == "ViT-B/16":
        of = {
            part: sum(n for k, n in parts.items() if k.startswith(part))
            for part in ("vl_t", "ml_", "bbox", "text", "vl_p", "reg")
        }
        assert of == {
            "vl_t": 18_914_304,
            "ml_": 1_573_376,
            "bbox": 527_364,
            "text": 262_656,
            "vl_p": 140_800,
            "reg": 512,
        }


def test_parameters_start_as_the_references_do():
    shape = replace(SHAPE, hidden=48, ffn=96, heads=4, image_tokens=150, project_norm=True)
    shapes = {k: tuple(v.shape) for k, v in GroundingNetwork(shape).state_dict().items()}
    start = initial_arrays(shapes, seed=3)
    layer = "vl_transformer.encoder.layers.1"

    def reaches(name, bound):
        return 0.9 * bound < np.abs(start[name]).max() <= bound

    assert reaches(f"{layer}.self_attn.in_proj_weight", math.sqrt(6 / (48 + 144)))
    assert reaches(f"{layer}.linear1.weight", math.sqrt(6 / (48 + 96)))
    assert reaches(f"{layer}.linear1.bias", 1 / math.sqrt(48)) and reaches(
        "bbox_embed.layers.0.weight", 1 / math.sqrt(48)
    )
    assert reaches("ml_visu_proj.weight", 1 / math.sqrt(22))
    assert not start[f"{layer}.self_attn.in_proj_bias"].any() and not start[f"{layer}.self_attn.out_proj.bias"].any()
    assert start["vl_pos_embed.weight"].std() == pytest.approx(1, abs=0.05)
    assert (start["visu_norm.weight"] == 1).all() and not start["visu_norm.bias"].any()
    other = initial_arrays(shapes, seed=4)
    assert not np.array_equal(start["text_proj.weight"], other["text_proj.weight"])


def test_positions_that_start_as_sines_tell_where_a_cell_is(close):
    table = sine_positions(3, 13)
    assert table.shape == (9, 13) and table.dtype == np.float32 and not table[:, 12].any()
    y, x = 5 / 6, 1 / 6  # the cell of the last row and the first column
    waves = [f(math.pi * k * at) for at in (y, x) for f in (math.sin, math.cos) for k in (1, 2, 3)]
    close(table[6, :12], math.sqrt(2) * np.array(waves), "rounding", "sines of one cell")
    close((table[:, :12] ** 2).mean(axis=1), np.ones(9), "rounding", "mean square of each cell")
    for cells in (4, 5):  # without a class token, and behind one
        shape = replace(SHAPE, image_tokens=cells)
        drawn, sines = (GroundingNetwork(shape, 2, kind).vl_pos_embed.weight.numpy() for kind in ("random", "sine"))
        assert np.array_equal(sines[-4:], sine_positions(2, 12)) and np.array_equal(sines[:-4], drawn[:-4])
        assert not np.array_equal(sines[-4:], drawn[-4:])


def test_sizes_that_fit_nothing_are_refused():
    with pytest.raises(ConfigError, match="heads must divide hidden=12, got 5"):
        replace(SHAPE, heads=5)
    with pytest.raises(ConfigError, match="dropout must be in"):
        replace(SHAPE, dropout=1.0)
    network, data = started(SHAPE, 0), inputs_of(SHAPE, 0)
    with pytest.raises(ValueError, match="7 image and at most 9 text tokens, got 6 and 9"):
        network(data["images"][:, :6], data["texts"], data["said"])


def test_levels_of_the_towers():
    assert block_levels(12) == (0, 3, 7, 11) and block_levels(24) == (0, 7, 15, 23) and block_levels(2) == (0, 1)
    assert stage_grid(VARIANTS["RN50"].vision) == (14, 14)
    assert stage_grid(config_of("shapes-tiny-rn").vision) == (8, 8)


@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("layers", ["levels", "last"])
def test_a_towers_tokens_are_its_levels_side_by_side(config, layers, close):
    from jclip.model.clip import CLIP, inference

    jt.set_global_seed(3)
    model, shape = CLIP(config), fusion_shape(config, layers)
    model.eval()
    pixels = np.random.default_rng(0).standard_normal((2, 3, *config.vision.image_size)).astype(np.float32)
    with inference(model):
        parts = [part.numpy() for part in image_parts(model, pixels, layers)]
        taps: dict = {}
        pooled = model.encode_image(pixels, taps=taps).numpy()
    tokens = spread(parts, config)
    assert tokens.shape == (2, shape.image_tokens, shape.image_width) and tokens.dtype == np.float32
    if layers == "last":
        close(tokens[:, 0], pooled, "features")
    elif config is SMALL_VIT:
        assert np.array_equal(
            tokens, np.concatenate([taps["visual.block0"].numpy(), taps["visual.block1"].numpy()], axis=2)
        )
    else:
        rows, columns = stage_grid(config.vision)
        for i, width in enumerate((24, 48, 96, 192), start=1):
            maps, at = taps[f"visual.layer{i}"].numpy(), 24 * (2 ** (i - 1) - 1)
            high = rows // maps.shape[2] if maps.shape[2] < rows else 1
            fine = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(maps), (rows // high, columns // high)).numpy()
            y, x = 5, 2
            close(tokens[:, y * columns + x, at : at + width], fine[:, :, y // high, x // high], "features")

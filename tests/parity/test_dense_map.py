"""Maps of features against torch: ResNets with their pool's positions and without, ViTs' values and tokens, any size."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from jclip.errors import ConfigError  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.dense_map import dense_map  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.checkpoint import open_checkpoint  # noqa: E402
from tests.parity import torch_clip  # noqa: E402
from tests.parity.test_seams import dense_resnet, dense_vit  # noqa: E402
from tests.toys import SMALL_TEXT, TOY_EVAS, TOY_RESNET, TOY_VIT, toy_file  # noqa: E402

F = torch.nn.functional
SIZES = {"resnet": [(96, 96), (64, 128), (160, 32)], "vit": [(20, 20), (15, 30), (25, 10)]}
LABELS = {
    "{'positions': True}": "with positions", "{}": "without positions", "{'vit': 'value'}": "values",
    "{'vit': 'token'}": "tokens",
}  # fmt: skip
CASES = [(kind, size, seed) for kind, sizes in SIZES.items() for size in sizes for seed in (0, 1)]


def pixels_of(size, seed):
    return np.random.default_rng((7, seed)).standard_normal((3, 3, *size)).astype(np.float32)


def with_table_for(p, key, grid, size):
    """The parameters, the table of positions as torch resamples it."""
    table = p[key]
    cells = table[1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells.double(), size=size, mode="bicubic", align_corners=False, antialias=True)
    return {**p, key: torch.cat([table[:1], cells.flatten(2)[0].T.to(table.dtype)])}


def without_positions(p):
    key = "visual.attnpool.positional_embedding"
    return {**p, key: torch.zeros_like(p[key][:1])}


@pytest.mark.parametrize("kind, size, seed", CASES)
def test_maps_equal_torchs(kind, size, seed, tmp_path, close):
    config = {"resnet": TOY_RESNET, "vit": TOY_VIT}[kind]
    checkpoint = open_checkpoint(toy_file(tmp_path, config, seed=seed + 4))
    model, p = build(checkpoint), torch_clip.parameters(dict(checkpoint.arrays()))
    pixels, step = pixels_of(size, seed), {"resnet": 32, "vit": 5}[kind]
    grid, x = (size[0] // step, size[1] // step), torch.tensor(pixels)
    if kind == "resnet":
        placed = with_table_for(p, "visual.attnpool.positional_embedding", config.vision.grid, grid)
        cases = [({"positions": True}, placed), ({}, without_positions(p))]
        wanted = [(torch_clip.encode_resnet(q, config, x), dense_resnet(q, config, x)) for _, q in cases]
    else:
        placed = with_table_for(p, "visual.positional_embedding", config.vision.grid, grid)
        cases = [({"vit": name}, placed) for name in ("value", "token")]
        wanted = [(torch_clip.encode_vit(q, config, x), dense_vit(q, config, x, o["vit"])) for o, q in cases]
    with jt.no_grad():
        for (options, _), (pooled, cells) in zip(cases, wanted, strict=True):
            got, label = dense_map(model, pixels, **options), f"dense map, {kind}, {LABELS[str(options)]}"
            close(got[0].numpy(), pooled, "features", f"{label}: pooled")
            close(got[1].numpy(), cells, "tokens", f"{label}: cells")


def test_positions_are_the_stock_pool_and_no_positions_are_not(tmp_path):
    model = build(open_checkpoint(toy_file(tmp_path, TOY_RESNET)))
    pixels = pixels_of((96, 96), 0)
    with jt.no_grad():
        stock, cells = model.encode_image(pixels, dense=True)
        placed, free = dense_map(model, pixels, positions=True), dense_map(model, pixels)
    assert np.array_equal(placed[0].numpy(), stock.numpy()) and np.array_equal(free[1].numpy(), cells.numpy())
    assert np.abs(free[0].numpy() - stock.numpy()).max() > 0.01


def test_a_pool_without_positions_does_not_see_where_things_are(tmp_path, close):
    """Cells in another order: the same pooled feature."""
    model = build(open_checkpoint(toy_file(tmp_path, TOY_RESNET)))
    pool = model.visual.attnpool
    cells = np.random.default_rng(0).standard_normal((2, 5, 192)).astype(np.float32)
    with jt.no_grad():
        ahead, back = (pool.attend(pool.with_mean(jt.array(c))).numpy() for c in (cells, cells[:, ::-1].copy()))
    close(ahead, back, "features")


@pytest.mark.parametrize(
    "config, size, message",
    [
        (TOY_RESNET, (96, 80), "height and width must be multiples of 32, the model's step, got 96 x 80"),
        (TOY_RESNET, (0, 32), "height and width must be multiples of 32, the model's step, got 0 x 32"),
        (TOY_VIT, (20, 18), "height and width must be multiples of 5, the model's step, got 20 x 18"),
        (TOY_EVAS["eva02"], (20, 20), "this image tower takes photos of 20 x 15, got 20 x 20"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, size, message, tmp_path):
    model = build(open_checkpoint(toy_file(tmp_path, config)))
    with pytest.raises(ConfigError, match=message):
        dense_map(model, np.zeros((1, 3, *size), np.float32))


def test_an_eva_tower_has_its_map_at_its_own_size(tmp_path):
    config = TOY_EVAS["eva02"]
    model = build(open_checkpoint(toy_file(tmp_path, config)))
    pixels = pixels_of(config.vision.image_size, 1)
    with jt.no_grad():
        for kind in ("value", "token"):
            got, wanted = dense_map(model, pixels, vit=kind), model.encode_image(pixels, dense=kind)
            assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(got, wanted, strict=True))


def test_a_text_tower_has_no_map(tmp_path):
    from jclip.model.clip import CLIP
    from jclip.weights.variants import CLIPConfig

    with pytest.raises(ConfigError, match="text tower alone"):
        dense_map(CLIP(CLIPConfig(14, None, SMALL_TEXT)), pixels_of((20, 20), 0))

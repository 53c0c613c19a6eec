"""Positive and negative prompts learned from photos, against torch: whole sequences of 77 tokens, the formulas as written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import dual_prompt as recipe
from jclip.config import DataConfig, OptimConfig
from jclip.data import known_labels
from jclip.data.label_files import PhotoLabels
from jclip.errors import ConfigError, DataError, JclipError
from jclip.features.pair_maps import PairScorer, PairSource
from jclip.features.source import ModelSource
from jclip.model import dense_map
from jclip.model.prompt_sets import PromptSets
from jclip.runtime import jt
from jclip.train import pair_training as training
from jclip.train.run import Run
from jclip.weights.checkpoint import open_checkpoint
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.parity import torch_clip  # noqa: E402
from tests.parity.test_contrastive import doubled  # noqa: E402
from tests.parity.test_seams import dense_vit  # noqa: E402
from tests.recipes.test_coop import NAMES  # noqa: E402
from tests.recipes.test_prompt_sets import torch_text, vectors_of  # noqa: E402

SMOKE = Path(__file__).parents[2] / "configs" / "dual_prompt" / "smoke.yaml"
PHOTOS = 9


@pytest.fixture(params=["vit", "resnet"])
def tower(request, small_models) -> tuple:
    """A source, its config and its weights in float64."""
    checkpoint = open_checkpoint(small_models[request.param])
    source = ModelSource(small_models[request.param])
    return source, checkpoint.config, doubled(torch_clip.parameters(dict(checkpoint.arrays())))


def torch_places(config, p, pixels, places="dualcoop"):
    """Features (B, P, E) as the authors' pool makes them: values of the mean and the cells, with positions."""
    if config.vision.kind != "resnet":
        return dense_vit(p, config, pixels, "value")
    taps, a = {}, "visual.attnpool."
    square = pixels.shape[2:] == config.vision.image_size
    table, own = p[a + "positional_embedding"], config.vision.grid
    width = table.shape[1]
    with torch.no_grad():
        if square:
            torch_clip.encode_resnet(p, config, pixels, taps)
        else:  # the pool of the reference adds a table of the right size, whatever is in it
            rows = 1 + (pixels.shape[2] // 32) * (pixels.shape[3] // 32)
            torch_clip.encode_resnet({**p, a + "positional_embedding": table[:1].repeat(rows, 1)}, config, pixels, taps)
    maps = taps["visual.layer4"]
    h, w = maps.shape[2:]
    if places == "cells":
        x = maps.flatten(2).transpose(1, 2)
        v = torch.nn.functional.linear(x, p[a + "v_proj.weight"], p[a + "v_proj.bias"])
        return torch.nn.functional.linear(v, p[a + "c_proj.weight"], p[a + "c_proj.bias"])
    if (h, w) != own:
        cells = table[1:].T.reshape(1, width, *own)
        if places == "tai_dpt":
            factors = tuple((new + 0.1) / old for new, old in zip((h, w), own, strict=True))
            cells = torch.nn.functional.interpolate(cells, scale_factor=factors, mode="bicubic")
        else:
            cells = torch.nn.functional.interpolate(cells, size=(h, w), mode="bicubic")
        table = torch.cat([table[:1], cells.reshape(width, h * w).T])
    x = maps.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + table
    v = torch.nn.functional.linear(x, p[a + "v_proj.weight"], p[a + "v_proj.bias"])
    return torch.nn.functional.linear(v, p[a + "c_proj.weight"], p[a + "c_proj.bias"])


def torch_pair(cfg, places, text, scale, sharpness):
    """S+ and S- (B, C) of places (B, P, E)."""
    x = places / places.norm(dim=-1, keepdim=True)
    yes, no = x @ text["positive"].T, x @ text["negative"].T
    w = torch.softmax(sharpness * (x @ text["evidence"].T if "evidence" in text else yes), dim=1)
    if cfg.kind == "dualcoop_pp":
        u = torch.softmax(200 * yes * yes.max(dim=2, keepdim=True)[0], dim=2)
        yes = yes * (u / u.max(dim=2, keepdim=True)[0] if cfg.winner == "pp_norm" else 1 + u)
    return scale * (w * yes).sum(1), scale * (w * no).sum(1)


def torch_loss(cfg, yes, no, y):
    """The asymmetric loss as written: known labels alone, powers without gradient."""
    if cfg.loss == "ranking":
        hinges = cfg.margin - (yes - no)[:, None, :] + (yes - no)[:, :, None]  # (B, absent, present)
        pairs = (y == 0)[:, :, None] & (y == 1)[:, None, :]
        return cfg.loss_weight * (hinges.clamp(min=0) * pairs).sum() / len(y)
    if cfg.loss == "pair":
        p_no, p = torch.softmax(torch.stack([no, yes]), dim=0)
        least, divisor = 1e-6, 1
    else:
        p = torch.sigmoid(yes - no)
        p_no, least, divisor = 1 - p, 1e-8, len(y)
    y, p, p_no = (x.reshape(-1)[(y != -1).reshape(-1)] for x in (y, p, p_no))
    q = (p_no + 0.05).clamp(max=1)
    power = torch.where(y == 1, (1 - p) ** 1.5, (1 - q) ** 2).detach()
    logs = y * torch.log(p.clamp(min=least)) + (1 - y) * torch.log(q.clamp(min=least))
    return -cfg.loss_weight * (power * logs).sum() / divisor


KINDS = {
    "authors": {"loss_weight": 0.03, "per_class": True},
    "tai": {
        "loss": "difference",
        "learn": ("scale", "sharpness"),
        "loss_weight": 1.0,
        "places": "cells",
        "scale": 50.0,
    },
    "pp": {"kind": "dualcoop_pp", "learn": ("sharpness",), "scale": 20.1, "sharpness": 18.0, "loss_weight": 0.02},
    "pp_plus": {"kind": "dualcoop_pp", "winner": "pp_plus", "scale": 9.0, "loss_weight": 0.05},
    "ranking": {"loss": "ranking", "loss_weight": 0.3, "margin": 2.0, "scale": 11.0},
}


def targets_of(seed: int) -> np.ndarray:
    return np.random.default_rng((seed, 2)).choice([1, 0, -1], (PHOTOS, len(NAMES)), p=[0.4, 0.4, 0.2]).astype(np.int8)


class Fixed(training.PlaceBatches):
    """Batches of rows at hand."""

    def __init__(self, cfg, rows, targets):
        self._cfg, self._kept, self._targets, self._size = cfg, rows, targets, cfg.optim.batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_steps_and_the_photos_scores_equal_torchs(kind, seed, tower, tmp_path, close):
    source, config, p = tower
    settings = {"scale": 30.0, "sharpness": 12.0, **KINDS[kind]}
    optim = OptimConfig(
        name="sgd",
        lr=0.02,
        weight_decay=5e-4,
        schedule="epoch_cosine",
        warmup=1,
        warmup_lr=1e-3,
        epochs=7,
        stop=5,
        batch=4,
    )
    cfg = recipe.Config(model="x", context=3, positive_power=1.5, optim=optim, seed=seed, **settings)
    places = recipe.prompted_source({}, cfg, source)
    pixels = np.random.default_rng(seed).standard_normal((PHOTOS, 3, *config.vision.image_size)).astype(np.float32)
    with jt.no_grad():
        rows = places.model.encode_image(pixels).numpy()
    theirs_places = torch_places(config, p, torch.tensor(pixels.astype(np.float64)), cfg.places).detach()
    assert rows.shape == (PHOTOS, places.count * config.embed_dim)
    close(rows.reshape(theirs_places.shape), theirs_places, "tokens", f"dual_prompt: places, {config.vision.kind}")

    head = training.PairHead(cfg, recipe.prompts_of(cfg, source, NAMES))
    start, targets = vectors_of(head.prompts, seed), targets_of(seed)
    theirs = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in start.items()}
    logs = {k: torch.tensor(np.log(getattr(cfg, k)), requires_grad=True) for k in cfg.learn}
    with Run(tmp_path, {"recipe": "x"}) as run:
        outcome, state = training.train(cfg, run, head, Fixed(cfg, rows, targets))
    learned = head.learned(state.arrays())

    def factors():
        return [logs[k].exp() if k in logs else getattr(cfg, k) for k in ("scale", "sharpness")]

    sgd, losses = torch.optim.SGD([*theirs.values(), *logs.values()], 1.0, momentum=0.9, weight_decay=5e-4), []
    own = cfg.sets if cfg.per_class else ()
    for epoch in range(5):
        sgd.param_groups[0]["lr"] = 1e-3 if epoch == 0 else 0.02 * (1 + np.cos(np.pi * (epoch - 1) / 7)) / 2
        order = np.random.default_rng((seed, epoch)).permutation(PHOTOS)
        for some in (order[:4], order[4:8]):
            text = torch_text(config, p, theirs, own)
            loss = torch_loss(cfg, *torch_pair(cfg, theirs_places[some], text, *factors()), torch.tensor(targets[some]))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
    close([outcome.last["loss"]], [np.mean(losses[-2:])], "trajectory_loss", "dual_prompt: loss of the last epoch")
    for name, vectors in theirs.items():
        close(
            learned[f"context_{name}"], vectors.detach(), "trajectory", f"dual_prompt, {kind}: vectors after 10 steps"
        )
        assert np.abs(learned[f"context_{name}"] - start[name]).max() > 1e-3
    for name, log in logs.items():
        close(learned[name], [log.exp().item()], "scores", f"dual_prompt, {kind}: learned factors")
        assert abs(float(learned[name][0]) - getattr(cfg, name)) > 1e-4
    kept = {k: torch.tensor(learned[f"context_{k}"].astype(np.float64)) for k in cfg.sets}  # of equal vectors
    ends = [float(learned[k][0]) for k in ("scale", "sharpness")]
    yes, no = torch_pair(cfg, theirs_places, torch_text(config, p, kept, own), *ends)
    close(PairScorer(learned, cfg)(rows), yes - no, "scores", f"dual_prompt, {kind}: scores of photos")


@pytest.mark.parametrize("places", ["dualcoop", "tai_dpt", "cells"])
def test_places_of_larger_photos_have_the_named_positions(places, small_models, close):
    checkpoint = open_checkpoint(small_models["resnet"])
    source, p = ModelSource(small_models["resnet"]), torch_clip.parameters(dict(checkpoint.arrays()))
    pixels = np.random.default_rng(3).standard_normal((2, 3, 96, 160)).astype(np.float32)
    with jt.no_grad():
        ours = dense_map.value_places(source.model, pixels, places).numpy()
    assert ours.shape[1] == 3 * 5 + (places != "cells")
    close(
        ours, torch_places(checkpoint.config, p, torch.tensor(pixels), places).detach(), "tokens", "places of 96 x 160"
    )


def test_resampling_by_a_factor_is_another_one(close):
    from jclip.functional.positions import resample_positions

    table = np.random.default_rng(0).standard_normal((1 + 49, 3))
    by_factor = resample_positions(table, (7, 7), (14, 14), antialias=False, margin=0.1)
    cells = torch.tensor(table[1:].T.reshape(1, 3, 7, 7))
    wanted = torch.nn.functional.interpolate(cells, scale_factor=(14.1 / 7, 14.1 / 7), mode="bicubic")
    close(by_factor[1:], wanted.reshape(3, 196).T, "rounding")
    by_size = resample_positions(table, (7, 7), (14, 14), antialias=False)
    assert np.abs(by_factor - by_size).max() > 1e-2


def labels_of(photos: int, seed: int = 0, classes: int = 3) -> PhotoLabels:
    targets = np.random.default_rng(seed).integers(0, 2, (photos, classes)).astype(np.int8)
    return PhotoLabels(tuple("abc"[:classes]), tuple(f"{i}.png" for i in range(photos)), targets)


def test_masks_are_drawn_by_seed_kept_and_refused_for_others(tmp_path):
    labels = labels_of(400)
    half, more = (known_labels.draw_mask(400, 3, share, 5) for share in (0.5, 0.8))
    assert abs(half.mean() - 0.5) < 0.05 and (more | half == more).all()
    assert not np.array_equal(half, known_labels.draw_mask(400, 3, 0.5, 6))
    for name in ("a.npz", "b.npz"):
        known_labels.write_mask(tmp_path / name, half, labels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.array_equal(known_labels.read_mask(tmp_path / "a.npz", labels), half)
    hidden = known_labels.masked(labels.targets, half)
    assert np.array_equal(hidden == -1, ~half) and np.array_equal(hidden[half], labels.targets[half])
    with pytest.raises(DataError, match="known: must be 0 or 1 for 5 photos and 3 classes, got bool"):
        known_labels.read_mask(tmp_path / "a.npz", labels_of(5))
    with pytest.raises(DataError, match=r"images: must be the data's, in their order, got '399.png' for '0.png'"):
        known_labels.write_mask(tmp_path / "c.npz", half, labels.take(np.arange(400)[::-1]))
        known_labels.read_mask(tmp_path / "c.npz", labels)


def test_what_is_not_known_changes_nothing(small_models):
    """Labels that are hidden, whatever they are, leave the loss and its gradients bit for bit as they were."""
    source = ModelSource(small_models["vit"])
    cfg = recipe.Config(model="x", context=2)
    head = training.PairHead(cfg, PromptSets(source.model, NAMES, cfg.sets, 2))
    vectors_of(head.prompts, 1)
    rows = np.random.default_rng(1).standard_normal((PHOTOS, 5 * 24)).astype(np.float32)
    targets, found = targets_of(3), []
    known = targets >= 0
    for other in (0, 1):
        hidden = known_labels.masked(np.where(known, targets, other), known)
        loss = head.loss(rows, hidden)
        found.append([loss.numpy(), *(g.numpy() for g in jt.grad(loss, [*head.parameters.values()]))])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    full = head.loss(rows, np.where(known, targets, 1)).numpy()
    assert not np.array_equal(full, found[0][0])


@pytest.fixture
def photo_list(tmp_path) -> list[str]:
    """Settings that name photos of one to three colours each, with lists."""
    return [*toys.photos_of_colours(tmp_path, train=11, val=6, test=7), "optim.epochs=3", "optim.batch=4"]


def test_cached_features_and_photos_encoded_anew_give_the_same(small_models, photo_list, tmp_path, monkeypatch, close):
    settings = [f"model={small_models['resnet']}", *photo_list, "size=64", "known=0.7"]
    kept = toys.train(SMOKE, tmp_path / "kept", *settings)
    monkeypatch.setattr(training, "MOST_KEPT", 0)
    anew = toys.train(SMOKE, tmp_path / "anew", *settings)
    assert kept.keys() == anew.keys() and kept["train_count"] == 11 and 0.5 < kept["known"] < 0.9
    close(anew["train_loss"], kept["train_loss"], "trajectory_loss")
    given = [s for s in settings if not s.startswith("known")] + ["known=1", f"mask={tmp_path / 'kept' / 'mask.npz'}"]
    assert toys.train(SMOKE, tmp_path / "given", *given) == anew


@pytest.mark.parametrize("augment", ["none", "dualcoop"])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(augment, small_models, photo_list, tmp_path, monkeypatch):
    learn = ["learn=[scale,sharpness]", "selection=val", f"augment={augment}"]
    settings = [f"model={small_models['vit']}", *photo_list, *learn]
    toys.check_resumes(monkeypatch, SMOKE, tmp_path, settings, training.PairHead, "loss", 4)  # of 2 steps an epoch


def test_a_run_measures_again_what_it_measured_and_takes_other_names(small_models, photo_list, tmp_path, close):
    from jclip.commands import train as train_command  # noqa: F401 - the command's own folder of files
    from jclip.report.predictor import Predictor

    settings = [f"model={small_models['resnet']}", *photo_list, "kind=dualcoop_pp"]
    metrics = toys.train(SMOKE, tmp_path / "run", *settings)
    done = Predictor.load(tmp_path / "run")
    again = done.measure(tmp_path / "eval")
    close(again["map_merged"], metrics["test_map_merged"], "rounding")
    assert again["map_local"] == again["map_merged"] and again["count"] == 7
    other = done.telling_apart(("ox", "zebra crossing"), done.source())
    rows, scores = other.scores_of(done.own_split()[1])
    assert scores.shape == (7, 2) and len(rows) == 7
    assert done.scored(done.own_split()[1].paths).scores.shape == (7, 3)


def test_classes_never_seen_are_reported_apart(small_models, photo_list, tmp_path):
    settings = [f"model={small_models['vit']}", *photo_list, "known=1"]
    metrics = toys.train(SMOKE, tmp_path / "run", *settings, "only=[red thing,blue thing]")
    assert {"test_map_seen", "test_map_unseen", "test_f1_at_3", "test_f1_at_3_unseen"} <= {*metrics}
    scores, targets = np.array([[0.9, 0.2, 0.1], [0.1, 0.3, 0.2]]), np.array([[1, 0, -1], [0, 1, 1]])
    assert training.overall_f1(scores, targets, k=1) == 2 * 2 / (2 + 3)
    assert training.overall_f1(scores, targets, k=3) == 2 * 3 / (5 + 3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"known": 0.0}, r"known must be in \(0, 1\], got 0.0"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be above 0, got 0.0"),
        ({"margin": -1.0}, "margin must be at least 0, got -1.0"),
        ({"clip": 1.0}, r"clip must be in \[0, 1\), got 1.0"),
        ({"mask": "m.npz", "known": 0.5}, "mask and known must not both be set, got mask=m.npz and known=0.5"),
        ({"only": ("a",), "per_class": True}, "per_class=true and only must not both be set: classes outside `only`"),
        ({"learn": ("scale", "scale")}, "learn must name each factor once, got scale, scale"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        recipe.Config(model="x", **settings)


def test_what_is_missing_is_reported(small_models, photo_list, tmp_path, capfd):
    model, rest = f"model={small_models['resnet']}", [s for s in photo_list if not s.startswith("data.val")]
    for settings, message in (
        (
            [s for s in photo_list if not s.startswith("data.train")] + ["data.train="],
            "data.train must have labelled photos, got none",
        ),
        ([*rest, "data.val=", "selection=val"], "selection=val needs labelled validation photos, got none"),
        ([*photo_list, "size=50"], "size must be a multiple of 32, the model's step"),
        ([*photo_list, "only=[red thing,purple thing]"], "unknown class in only"),
        ([*photo_list, "augment=flop"], "unknown augmentation"),
    ):
        with pytest.raises(JclipError, match=message):
            toys.train(SMOKE, tmp_path / str(abs(hash(message))), model, *settings)
    with pytest.raises(DataError, match="training photos must have known labels"):
        known_labels.check_known(np.full((2, 3), -1, np.int8), "abc", np.ones(3, bool))
    known_labels.check_known(np.array([[1, 0, -1], [1, -1, 0]], np.int8), "abc", np.array([True, True, False]))
    assert "1 of 2 classes have no photo known to show them: b" in capfd.readouterr().err
    cfg = recipe.Config(model="x", per_class=True)
    with pytest.raises(ConfigError, match="classes must be the run's own with per_class=true, got others"):
        recipe.for_classes({}, cfg, ("ox", "ant"), None)
    assert replace(cfg, kind="dualcoop_pp").sets == ("positive", "negative", "evidence") and DataConfig() == cfg.data
    assert cfg.winner_among == "none" and replace(cfg, kind="dualcoop_pp").winner_among == "pp_norm"
    with pytest.raises(ConfigError, match="size must be a multiple of 32"):
        PairSource(ModelSource(small_models["resnet"]), size=40)

"""Prompts for several classes learned from sentences, against torch: whole sequences of 77 tokens, the formulas as written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from finetune import text_as_image as recipe
from jclip.config import DataConfig, OptimConfig
from jclip.data.labelled_captions import LabelledCaptions
from jclip.errors import ConfigError, DataError
from jclip.features.photo_maps import MapScorer, MapSource
from jclip.features.sentence_features import sentence_features
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.model.prompt_sets import PromptSets
from jclip.train import caption_training as training
from jclip.train.run import Run
from jclip.weights.checkpoint import open_checkpoint
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.parity import torch_clip  # noqa: E402
from tests.parity.test_contrastive import doubled  # noqa: E402
from tests.parity.test_seams import dense_resnet, dense_vit  # noqa: E402
from tests.recipes.test_coop import NAMES  # noqa: E402
from tests.recipes.test_prompt_sets import SETS, torch_text, vectors_of  # noqa: E402

SMOKE = Path(__file__).parents[2] / "configs" / "text_as_image" / "smoke.yaml"
TEXTS = (
    "an ant on a great white shark", "the b c d e", "a t-rex and two ants by the sea.", "nothing at all", "t-rex", "ant",
    "a great white shark, b c d e and an ant", "b c d e!", "one t-rex looking at a great white shark",
)  # fmt: skip


@pytest.fixture(params=["vit", "resnet"])
def tower(request, small_models) -> tuple:
    """A source, its config and its weights in float64."""
    checkpoint = open_checkpoint(small_models[request.param])
    source = ModelSource(small_models[request.param])
    return source, checkpoint.config, doubled(torch_clip.parameters(dict(checkpoint.arrays())))


def torch_captions(config, p, texts, tokenize):
    """Features of length one at every token of all 77, and which of them are padding."""
    tokens = torch.tensor(tokenize(texts).astype(np.int64))
    t, hidden = config.text, torch.full((77, 77), float("-inf"), dtype=torch.float64).triu(1)
    x = p["token_embedding.weight"][tokens] + p["positional_embedding"]
    act = torch_clip.activation(config.activation)
    x = torch_clip.transformer(x, p, "", t.layers, t.heads, act, config.norm_eps, hidden)
    every = torch_clip.norm(x, p, "ln_final", config.norm_eps) @ p["text_projection"]
    every = every / every.norm(dim=-1, keepdim=True)
    return every[torch.arange(len(x)), tokens.argmax(1)].detach(), every.detach(), tokens != 0


def torch_local(places, mask, text, cfg, tau):
    """S (B, C), over (P, B, C) as the authors lay it."""
    a = places.permute(1, 0, 2) @ text["local"].T
    e = places.permute(1, 0, 2) @ text["evidence"].T if "evidence" in text else a
    p = torch.softmax((tau * e).masked_fill(~mask.T[:, :, None], -torch.inf), dim=0)
    if cfg.winner == "seed":
        a = a * torch.softmax(tau * a * (a.max(dim=-1, keepdim=True)[0] + 1), dim=-1)
    return (cfg.scale * a * p).sum(0)


def torch_scores(ends, places, mask, text, cfg, tau):
    return cfg.scale * ends @ text["global"].T, torch_local(places, mask, text, cfg, tau)


def torch_loss(scores, y, cfg, weights):
    total = 0.0
    for s in scores:
        for b in range(len(y)):
            i, j = np.flatnonzero(y[b] == 0), np.flatnonzero(y[b] == 1)
            hinge = torch.clamp(cfg.margin - s[b, j][None] + s[b, i][:, None], min=0)
            total = total + (hinge * torch.tensor(weights[np.ix_(i, j)])).sum() / len(y)
    return total


def targets_of(seed: int) -> np.ndarray:
    targets = np.random.default_rng((seed, 2)).choice([1, 0, -1], (len(TEXTS), 4), p=[0.4, 0.5, 0.1]).astype(np.int8)
    targets[3] = 0
    return targets


KINDS = {
    "plain": {},
    "evidence": {"evidence": True, "winner": "seed", "per_class": True, "evidence_per_class": False},
    "teacher": {"teacher_global": 1.0, "teacher_local": 50.0, "keep": "student", "cooccurrence": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_steps_and_the_photos_scores_equal_torchs(kind, seed, tower, tmp_path, close):
    source, config, p = tower
    settings = KINDS[kind]
    optim = OptimConfig(
        name="sgd", lr=0.02, weight_decay=5e-4, schedule="epoch_cosine", warmup=1, warmup_lr=1e-3, epochs=7, stop=5,
        batch=4, average=0.8 if kind == "teacher" else 0.0,
    )  # fmt: skip
    cfg = recipe.Config(
        model="x", context=3, margin=0.9, tau_text=20.0, tau_image=9.0, optim=optim, seed=seed, **settings
    )
    prompts = PromptSets(source.model, NAMES, cfg.sets, 3, per_class=cfg.per_class_sets)
    start, targets = vectors_of(prompts, seed), targets_of(seed)
    weights = np.ones(len(TEXTS), np.float32)
    pairs = training.weights_of_pairs(cfg, LabelledCaptions(NAMES, TEXTS, targets, weights))
    loss = training.CaptionLoss(cfg, prompts, sentence_features(source, TEXTS, "fp32"), targets, pairs)
    batches = training.CaptionBatches(np.ones(len(TEXTS)), 4, seed)
    with Run(tmp_path, {"recipe": "x"}) as run:
        outcome, state = training.train(cfg, run, prompts, loss, batches)
    learned = training.learned_of(prompts, state.arrays(), state)

    theirs = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in start.items()}
    result = by_torch(cfg, config, p, theirs, targets, source.model.tokenize, seed)
    close([outcome.last["loss"]], [np.mean(result[-2:])], "trajectory_loss", "text_as_image: loss of the last epoch")
    for name, vectors in theirs.items():
        label = f"text_as_image, {kind}: vectors after 10 steps"
        close(learned[f"context_{name}"], vectors.detach(), "trajectory", label)
        assert np.abs(learned[f"context_{name}"] - start[name]).max() > 1e-3

    pixels = np.random.default_rng(seed).standard_normal((3, 3, *config.vision.image_size)).astype(np.float32)
    rows = MapSource(source).model.encode_image(pixels).numpy()
    text = torch_text(config, p, theirs, cfg.per_class_sets)
    pooled, cells = torch_map(config, p, torch.tensor(pixels.astype(np.float64)))
    seen = torch.ones(cells.shape[:2], dtype=torch.bool)
    wanted = torch_scores(pooled, cells, seen, text, cfg, 9.0)
    for got, own in zip(MapScorer(learned, cfg)(rows), wanted, strict=True):
        close(got, own.detach(), "scores", f"text_as_image, {kind}: scores of photos")
    merged = recipe.scorer({**learned, "merge": np.array([0.3])}, cfg)(rows)
    close(merged, (0.3 * wanted[0] + 0.7 * wanted[1]).detach(), "scores")


def by_torch(cfg, config, p, theirs, targets, tokenize, seed) -> list[float]:
    """The authors' loop: an epoch at the warm-up rate, a cosine by epochs, momentum, decay; losses of the steps."""
    ends, places, mask = torch_captions(config, p, TEXTS, tokenize)
    weights = np.ones((4, 4))
    if cfg.cooccurrence:
        present = (targets == 1).astype(float)
        together = present.T @ present * (1 - np.eye(4))
        weights = np.log(1 / (together / together.sum(1, keepdims=True) + 1e-6)) * (1 - np.eye(4))
        weights = weights / weights.mean(1, keepdims=True)
    sgd = torch.optim.SGD([*theirs.values()], 1.0, momentum=0.9, weight_decay=5e-4)
    teacher, losses = {k: v.detach().clone() for k, v in theirs.items()}, []
    for epoch in range(5):
        sgd.param_groups[0]["lr"] = 1e-3 if epoch == 0 else 0.02 * (1 + np.cos(np.pi * (epoch - 1) / 7)) / 2
        order = np.random.default_rng((seed, epoch)).permutation(len(TEXTS))
        for rows in (order[:4], order[4:8]):
            batch = ends[rows], places[rows], mask[rows]
            scores = torch_scores(*batch, torch_text(config, p, theirs, cfg.per_class_sets), cfg, 20.0)
            loss = torch_loss(scores, targets[rows], cfg, weights)
            if cfg.optim.average:
                teacher = {k: 0.8 * teacher[k] + 0.2 * v.detach() for k, v in theirs.items()}
                taught = torch_scores(*batch, torch_text(config, p, teacher, cfg.per_class_sets), cfg, 20.0)
                for s, t, w in zip(scores, taught, (1.0, 50.0), strict=True):
                    log_t = torch.log_softmax(t.detach(), 1)
                    loss = loss + w * (log_t.exp() * (log_t - torch.log_softmax(s, 1))).sum() / 4
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
    return losses


def torch_map(config, p, pixels):
    """Pooled features and cells of length one: a ResNet's pool without its positions, a ViT's values."""
    if config.vision.kind == "resnet":
        key = "visual.attnpool.positional_embedding"
        pooled = torch_clip.encode_resnet({**p, key: torch.zeros_like(p[key][:1])}, config, pixels)
        cells = dense_resnet(p, config, pixels)
    else:
        pooled, cells = torch_clip.encode_vit(p, config, pixels), dense_vit(p, config, pixels, "value")
    return (x / x.norm(dim=-1, keepdim=True) for x in (pooled, cells))


@pytest.mark.parametrize("winner", ["none", "pp_norm"])
def test_a_bank_and_cooccurrence_change_the_scores_they_are_for(winner, close):
    rng = np.random.default_rng(7)
    learned = {f"text_{name}": unit(rng.standard_normal((4, 6))).astype(np.float32) for name in ("global", "local")}
    rows, bank = (
        rng.standard_normal((5, 4 * 6)).astype(np.float32),
        unit(rng.standard_normal((13, 6))).astype(np.float32),
    )
    shares = rng.uniform(0, 1, (4, 4)).astype(np.float32)
    cfg = SimpleNamespace(tau_image=9.0, scale=4.0, winner=winner, bank=3, bank_mix=0.25, modulation=0.5)
    plain, other = MapScorer(learned, cfg)(rows), MapScorer({**learned, "bank": bank, "shares": shares}, cfg)(rows)
    close(other.places, plain.places + 0.5 * plain.places @ shares, "scores")
    pooled = unit(rows.reshape(5, 4, 6)[:, 0])
    nearest = np.argsort(-pooled @ bank.T, axis=1)[:, :3]
    close(other.whole, 4 * (0.75 * pooled + 0.25 * bank[nearest].mean(axis=1)) @ learned["text_global"].T, "scores")


def test_maps_are_kept_apart_from_other_features_and_from_each_other(small_models):
    source = ModelSource(small_models["resnet"])
    kinds = [source.identity, MapSource(source).identity, MapSource(source, positions=True).identity]
    assert len({str(kind) for kind in kinds}) == 3
    vit = ModelSource(small_models["vit"])
    assert MapSource(vit, vit="token").identity != MapSource(vit).identity
    assert MapSource(vit).model.encode_image(np.zeros((2, 3, 32, 32), np.float32)).shape == [2, 24 * (1 + 16)]
    assert MapSource(source).model.encode_image(np.zeros((2, 3, 64, 64), np.float32)).shape == [2, 24 * (1 + 4)]


@pytest.fixture
def photo_list(tmp_path) -> list[str]:
    """Settings that name photos of one to three colours each, with lists, and labelled captions of the colours."""
    return [
        *toys.photos_of_colours(tmp_path, val=6, test=7),
        "captions=[]",
        "per_name=12",
        "optim.epochs=2",
        "optim.batch=8",
    ]


def test_names_alone_are_enough(small_models, photo_list, tmp_path):
    """Captions are made of the names, written down, and give the same again when they are read."""
    names = next(s for s in photo_list if s.startswith("data.classes"))
    common = [f"model={small_models['resnet']}", "data.root=", "search=false", "optim.epochs=2", "optim.batch=8"]
    metrics = toys.train(SMOKE, tmp_path / "a", *common, names, "captions=[]", "per_name=12")
    assert {*metrics} == {"train_loss", "captions"} and metrics["captions"] >= 36
    again = toys.train(SMOKE, tmp_path / "b", *common, names, f"captions={tmp_path / 'a' / 'captions.jsonl'}")
    assert again == metrics


def test_a_run_reports_all_three_and_its_scorer_gives_the_merged(small_models, photo_list, tmp_path, close):
    from jclip.data.labelled_photos import read_labelled_photos
    from jclip.features.extraction import extract
    from jclip.readers import safetensors
    from jclip.train.configs import read_config
    from jclip.train.multi_label_photos import SHARES, mean_precision

    settings = [f"model={small_models['vit']}", *photo_list, "selection=val", "evidence=true", "bank=2"]
    metrics = toys.train(SMOKE, tmp_path / "run", *settings)
    assert {f"{part}_map{kind}" for part in ("val", "test") for kind in ("_global", "_local", "_merged")} <= {*metrics}
    cfg = read_config(str(SMOKE), settings)[1]
    learned = {k: np.array(t.read()) for k, t in safetensors.read_sealed(tmp_path / "run/learned.safetensors").items()}
    source = recipe.prompted_source(learned, cfg, ModelSource(small_models["vit"]))
    for part in ("val", "test"):
        photos = read_labelled_photos(cfg.data, part)
        rows = extract(source, photos.split)[1]
        close(
            mean_precision(recipe.scorer(learned, cfg)(rows), photos.targets), metrics[f"{part}_map_merged"], "rounding"
        )
        if part == "val":
            both = MapScorer(learned, cfg)(rows)
            tried = [mean_precision(both.merged(share), photos.targets) for share in SHARES]
            close(max(tried), metrics["val_map_merged"], "rounding")
            assert SHARES[int(np.argmax(tried))] == metrics["merge"] == learned["merge"][0]
    others = recipe.for_classes(learned, cfg, ("ox", "zebra crossing"), ModelSource(small_models["vit"]))
    assert others["text_local"].shape == (2, 24) and recipe.scorer(others, cfg)(rows).shape == (7, 2)


def test_a_run_that_was_killed_goes_on_to_the_same_numbers(small_models, photo_list, tmp_path, monkeypatch):
    settings = [f"model={small_models['vit']}", *photo_list, "optim.average=0.9", "teacher_local=3"]
    toys.check_resumes(
        monkeypatch, SMOKE, tmp_path, settings, training.CaptionLoss, "__call__", 6
    )  # of 4 steps an epoch


def test_a_run_starts_from_another_ones_prompts(small_models, photo_list, tmp_path, capfd):
    from jclip.readers import safetensors

    settings = [f"model={small_models['vit']}", *photo_list]
    toys.train(SMOKE, tmp_path / "first", *settings)
    still = ["optim.lr=0", "optim.warmup=0", f"init_from={tmp_path / 'first'}"]
    toys.train(SMOKE, tmp_path / "second", *settings, *still)
    kept = [
        dict(safetensors.read_sealed(tmp_path / run / "learned.safetensors").items()) for run in ("first", "second")
    ]
    for name in ("context_global", "context_local", "text_local"):
        assert np.array_equal(*(np.array(arrays[name].read()) for arrays in kept))
    with pytest.raises(DataError, match=r"the prompts 'global' must have the shape \(5, 32\), got \(4, 32\)"):
        toys.train(SMOKE, tmp_path / "third", *settings, "context=5", f"init_from={tmp_path / 'first'}")
    more = toys.train(SMOKE, tmp_path / "fourth", *settings, *still, "evidence=true")
    assert (
        np.isfinite(more["train_loss"]) and "has no evidence prompts: these start at random" in capfd.readouterr().err
    )


def test_captions_that_teach_nothing_are_refused(capfd):
    names, ones = ("a", "b", "c"), np.ones(2, np.float32)
    with pytest.raises(DataError, match="none of 2 captions names any of the 3 classes"):
        training.check_captions(np.zeros((2, 3), np.int8), ones, names)
    with pytest.raises(DataError, match="every caption names all classes that are known of it"):
        training.check_captions(np.array([[1, 1, 1], [1, -1, -1]], np.int8), ones, names)
    with pytest.raises(DataError, match="there must be at least two, got 1; `jclip tag` takes one"):
        training.check_captions(np.ones((2, 1), np.int8), ones, ("a",))
    with pytest.raises(DataError, match="there are no captions to learn from"):
        training.check_captions(np.ones((2, 3), np.int8), 0 * ones, names)
    training.check_captions(np.array([[1, 1, 0], [0, -1, 0]], np.int8), ones, names)
    stderr = capfd.readouterr().err
    assert "1 of 3 classes are in no caption, and are only pushed down: c" in stderr
    assert "1 of 2 captions name no class, or all: they teach nothing" in stderr


def test_captions_count_as_often_as_they_weigh():
    batches = training.CaptionBatches(np.array([0.2, 0, 3.4, 2]), 4, seed=3)
    assert batches.steps == 1
    seen = np.concatenate([np.concatenate([*batches(epoch)]) for epoch in range(40)])
    shares = np.bincount(seen, minlength=4) / 40
    assert shares[1] == 0 and np.array_equal(np.argsort(shares), [1, 0, 3, 2])
    assert not np.array_equal(next(batches(0)), next(batches(1)))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"context": 0}, "context=0, scenes=4000, per_name=300 must be at least 1"),
        ({"scale": 0.0}, "scale=0.0, tau_text=50.0, tau_image=40.0 must be above 0"),
        ({"merge": 1.5}, r"merge=1.5, bank_mix=0.5 must be in \[0, 1\]"),
        ({"teacher_local": 1.0}, "a teacher must have a moving average, got optim.average=0"),
        (
            {"cooccurrence": True, "loss": "asymmetric"},
            "cooccurrence weighs pairs of the ranking loss, got loss=asymmetric",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        recipe.Config(model="x", **settings)


def test_what_is_missing_is_reported(small_models, photo_list, tmp_path):
    model, names = f"model={small_models['vit']}", next(s for s in photo_list if s.startswith("data.classes"))
    for settings, message in (
        (["data.root=", "captions=[]", "search=false"], "there are no class names: set data.classes"),
        (["data.root=", names, "captions=[]"], r"merge \(search=true\) needs labelled validation photos, got none"),
        (
            [*photo_list, "classes=red thing,blue thing,green thing"],
            "classes must be those of the photos, in their order",
        ),
        (["data.root=", names, "search=false"], "captions of the embedded world are of its hundred classes"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            toys.train(SMOKE, tmp_path / str(abs(hash(message))), model, *settings)
    cfg = recipe.Config(model="x", per_class=True)
    with pytest.raises(ConfigError, match="classes must be the run's own with per_class=true, got others"):
        recipe.for_classes({}, cfg, ("ox", "ant"), None)
    assert replace(cfg, evidence=True).per_class_sets == SETS
    assert replace(cfg, evidence=True, evidence_per_class=False).per_class_sets == ("global", "local")
    assert DataConfig() == cfg.data

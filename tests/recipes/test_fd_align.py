"""FD-Align against the authors' way in torch: prototypes, loss, gradients, ten steps of the whole tower and the head."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from _pytest.outcomes import Failed
from PIL import Image

from finetune import fd_align
from jclip.config import DataConfig
from jclip.data.splits import read_photos
from jclip.errors import ConfigError
from jclip.features.extraction import extract, few_shot_features
from jclip.features.heads import ZeroShotHead, encode_prompts, text_means
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.losses import kl_divergence
from jclip.prompts.templates import class_prompts, load_templates
from jclip.readers import read_weights
from jclip.runtime import jt
from jclip.train.run import Run
from jclip.weights.checkpoint import open_checkpoint
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.parity import torch_clip  # noqa: E402
from tests.parity.test_contrastive import doubled  # noqa: E402
from tests.trajectories import without_key_bias  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs" / "fd_align"
F = torch.nn.functional
CLASSES, STYLES, WIDTH = 4, 3, 24


def config(**settings) -> fd_align.Config:
    return fd_align.Config(DataConfig(root="x"), model="x", **settings)


# Prototypes


@pytest.mark.parametrize("unit_first", [True, False])
def test_texts_are_averaged_both_ways(unit_first, small_models, monkeypatch, close):
    source = ModelSource(small_models["vit"])
    prompts = class_prompts(["cat", "great white shark", "b", "c d"], load_templates("openai7"))
    raw = encode_prompts(source.model, source.model.tokenize([p for of in prompts for p in of])).astype(np.float64)
    texts = (unit(raw) if unit_first else raw).reshape(4, 7, WIDTH)
    for _ in range(2):  # made, and from the cache
        head, means = text_means(source, prompts, unit_first)
        close(head.weights, unit(texts.mean(axis=1)), "features_normalised", "FD-Align: the head's start")
        close(means, unit(texts.mean(axis=0)), "features_normalised", "FD-Align: templates' means")
        monkeypatch.setattr(type(source.model), "encode_text", lambda *_: pytest.fail("the texts were read again"))
    assert np.isclose(head.scale, 100.0) and means.shape == (7, WIDTH)
    if unit_first:
        from jclip.features.heads import zero_shot_head

        assert np.array_equal(zero_shot_head(source, prompts).weights, head.weights)


def template_means(seed: int, templates: int = 80) -> np.ndarray:
    """Rows around five directions, one in eight of them far off."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((5, WIDTH))[rng.integers(0, 5, templates)] / 3 + rng.standard_normal((1, WIDTH))
    rows[::8] += rng.standard_normal((len(rows[::8]), WIDTH))
    return unit(rows + rng.standard_normal(rows.shape) / 9).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_centres_of_the_sixty_most_normal_templates(seed, close):
    from sklearn.cluster import KMeans
    from sklearn.ensemble import IsolationForest

    means = template_means(seed)
    S = fd_align.prototypes(fd_align.Spurious(), means, 100.0, seed)
    assert S.shape == (20, WIDTH) and S.dtype == np.float32
    forest = IsolationForest(random_state=seed).fit(100.0 * means.astype(np.float64))
    scores = forest.decision_function(100.0 * means.astype(np.float64))
    threshold = sorted(scores, reverse=True)[60]
    kept = 100.0 * means[[score > threshold for score in scores]].astype(np.float64)
    found = KMeans(n_clusters=20, n_init=10, random_state=0).fit(kept)
    assert len(kept) == 60
    close(S, found.cluster_centers_, "scores", "FD-Align: prototypes")
    by_hand = np.stack([kept[found.labels_ == j].mean(axis=0) for j in range(20)])
    close(S, by_hand, "scores", "FD-Align: centres as means")  # not brought to length 100 again
    assert (np.linalg.norm(S, axis=1) < 100.001).all() and np.linalg.norm(S, axis=1).min() > 50
    assert np.array_equal(S, fd_align.prototypes(fd_align.Spurious(), means, 100.0, seed))


def test_the_parts_can_be_left_out(close):
    from sklearn.neighbors import LocalOutlierFactor

    means = template_means(3, 30)
    all_of_them = fd_align.Spurious(outliers="none", clusters=0)
    close(fd_align.prototypes(all_of_them, means, 100.0, 0), 100 * means, "scores")
    close(fd_align.prototypes(replace(all_of_them, scale=1.0), means, 100.0, 0), means, "features")
    factors = LocalOutlierFactor(20).fit(100.0 * means.astype(np.float64)).negative_outlier_factor_
    kept = np.sort(np.argsort(-factors)[:24])
    lof = fd_align.prototypes(fd_align.Spurious("lof", kept=24, clusters=0), means, 100.0, 0)
    close(lof, 100 * means[kept], "scores", "FD-Align: LOF")
    forest = fd_align.prototypes(fd_align.Spurious(kept=24, clusters=0), means, 100.0, 0)
    assert forest.shape == lof.shape and not np.array_equal(forest, lof)
    assert fd_align.prototypes(fd_align.Spurious("none", clusters=7), means, 100.0, 0).shape == (7, WIDTH)


def test_prototypes_find_what_is_unlike_the_others():
    means = template_means(5, 40)
    means[[4, 17]] = -means[[4, 17]]  # the other way round
    for kind in ("isolation_forest", "lof"):
        lowest = np.argsort(fd_align.normality(kind, 100.0 * means, 0))[:2]
        assert set(lowest) == {4, 17}, kind


# Loss, gradients, steps


class Reference:
    """The tower and its head in torch, float64; the tower before training stands beside."""

    def __init__(self, file, weights, moved, S):
        checkpoint = open_checkpoint(file)
        arrays = dict(checkpoint.arrays())
        self.config, self.S = checkpoint.config, torch.tensor(S.astype(np.float64))
        self.before = doubled(torch_clip.parameters(arrays))
        self.p = doubled(torch_clip.parameters({**arrays, **moved}, requires_grad=True))
        self.head = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in weights.items()}
        self.params = {k: v for k, v in self.p.items() if k.startswith("visual.") and v.requires_grad} | self.head

    def loss(self, pixels, labels, beta=20.0):
        x = torch.tensor(pixels.astype(np.float64))
        with torch.no_grad():
            before = F.normalize(torch_clip.encode_image(self.before, self.config, x))
        features = F.normalize(torch_clip.encode_image(self.p, self.config, x))
        styles, held = (F.softmax(f @ self.S.T, dim=1) for f in (features, before))
        spurious = F.kl_div(torch.log(styles), held, reduction="none").mean()  # KLDivLoss's default: over all entries
        scores = F.linear(features, self.head["weight"], self.head["bias"])
        return F.cross_entropy(scores, torch.tensor(labels)) + beta * spurious


def case(small_models, kind: str, seed: int, moved: bool = True):
    """Source, head, prototypes, and the tower as training may leave it."""
    rng, source = np.random.default_rng((seed, 3)), ModelSource(small_models[kind])
    weights = {"weight": (2 * rng.standard_normal((CLASSES, WIDTH))).astype(np.float32),
               "bias": rng.standard_normal(CLASSES).astype(np.float32)}  # fmt: skip
    S = (5 * unit(rng.standard_normal((STYLES, WIDTH)))).astype(np.float32)  # at 100 random ones leave no doubt
    changed = {}
    if moved:
        for k, v in source.checkpoint.arrays():
            if k.startswith("visual.") and "running_" not in k:
                changed[k] = (v * (1 + 0.4 * rng.standard_normal(v.shape))).astype(np.float32)
    return source, weights, S, changed


def batch(source: ModelSource, seed: int, photos: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((seed, 5))
    shape = photos, 3, *source.config.vision.image_size
    return rng.standard_normal(shape, dtype=np.float32), rng.integers(0, CLASSES, photos)


def prepared(source, weights, S, changed, cfg):
    """Our loss as a function of pixels and labels, the trained parameters, the features before."""
    from jclip.data.splits import Split
    from jclip.model.clip import put_arrays, training_mode
    from jclip.model.trainable import trainable

    head, before = {k: jt.array(v) for k, v in weights.items()}, fd_align.features_before(cfg, source, Split())
    put_arrays(source.model, changed)
    training_mode(source.model, ())
    params = trainable(source.model, ["visual.*"]) | head
    loss_of = fd_align.batch_loss(cfg, source.model, head, S)
    return (lambda pixels, labels: loss_of(pixels, labels, before(jt.array(pixels), np.arange(len(pixels))))), params


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_equal_the_authors(kind, seed, small_models, close):
    source, *parts = case(small_models, kind, seed)
    loss_of, params = prepared(source, parts[0], parts[1], parts[2], config())
    reference = Reference(small_models[kind], parts[0], parts[2], parts[1])
    loss, wanted = loss_of(*batch(source, seed)), reference.loss(*batch(source, seed))
    close([loss.item()], [wanted.item()], "trajectory_loss", "FD-Align: loss")
    alone = reference.loss(*batch(source, seed), beta=0.0).item()
    assert wanted.item() - alone > 0.05  # so that the second half counts
    wanted.backward()
    names = [k for k in params if not k.endswith(("running_mean", "running_var"))]
    assert set(names) == set(reference.params)
    for k, g in zip(names, jt.grad(loss, [params[k] for k in names]), strict=True):
        wanted = reference.params[k].grad.numpy()
        pair = (without_key_bias(k, a) for a in (g.numpy().reshape(wanted.shape), wanted))
        close(*pair, "contrastive_gradient_relative", "FD-Align: gradients, relative", relative=True)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_steps_equal_torchs(kind, seed, small_models, close):
    from jclip.train.optim import learning_rate, optimiser

    source, weights, S, _ = case(small_models, kind, seed, moved=False)
    settings = replace(config().optim, lr=1e-3, epochs=2)
    loss_of, params = prepared(source, weights, S, {}, config())
    frozen = {k: v.numpy() for k, v in source.model.state_dict().items() if k not in params}
    reference, ours = Reference(small_models[kind], weights, {}, S), optimiser(settings, params)
    theirs = torch.optim.SGD(reference.params.values(), settings.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 10)
    losses, wanted = [], []
    for number in range(10):
        ours.lr = learning_rate(settings, number, 10)
        given = batch(source, 10 * seed + number)
        loss, expected = loss_of(*given), reference.loss(*given)
        ours.step(loss)
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        schedule.step()
        losses.append(loss.item())
        wanted.append(expected.item())
    close(losses, wanted, "trajectory_loss", "FD-Align: losses of ten steps")
    start = {k: v for k, v in source.checkpoint.arrays() if k in params} | weights
    moved = [np.abs(v - params[k].numpy()).max() for k, v in start.items() if "running_" not in k]
    assert max(moved) > 5e-3 and min(moved) > 0
    for k, v in reference.params.items():
        compared = (without_key_bias(k, a.reshape(v.shape)) for a in (params[k].numpy(), v.detach().numpy()))
        close(*compared, "trajectory", "FD-Align: weights after ten steps")
    assert frozen and all(np.array_equal(source.model.state_dict()[k].numpy(), v) for k, v in frozen.items())
    assert "logit_scale" in frozen and "text_projection" in frozen


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_before_the_first_step_nothing_is_lost_to_style(kind, small_models, close):
    source, weights, S, _ = case(small_models, kind, 0, moved=False)
    pixels, labels = batch(source, 0)
    with_style, _ = prepared(source, weights, S, {}, config(beta=20.0))
    without, _ = prepared(source, weights, S, {}, config(beta=0.0))
    close(with_style(pixels, labels).numpy(), without(pixels, labels).numpy(), "loss", "FD-Align: L_s before")


def test_the_divergence_by_hand_also_where_probabilities_underflow(close):
    p, q = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]), np.array([[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
    logs = (jt.array((np.log(a) + 7).astype(np.float32)) for a in (q, p))
    close(kl_divergence(*logs).numpy(), [(p * np.log(p / q)).sum()], "loss")
    far = jt.array(np.array([[0.0, -400.0]], np.float32))
    assert kl_divergence(far, far).item() == 0 and np.isfinite(jt.grad(kl_divergence(far, far), far).numpy()).all()


def test_the_head_alone_equals_torchs(small_models, photo_folder, tmp_path, close):
    """Stage one: three epochs of Nesterov's steps on kept features, a cosine by steps."""
    source, data = ModelSource(small_models["vit"]), DataConfig(root=str(photo_folder), shots=3, val_shots=2)
    optim = replace(config().head_optim, lr=0.5, epochs=3, batch=4)
    cfg = replace(config(augment="none", selection="last", head_optim=optim), data=data)
    photos = read_photos(data)
    before = few_shot_features(data, source, "openai7", training=None, photos=photos)
    start = fd_align.start_of(ZeroShotHead(before.text, before.scale))
    with Run(tmp_path, {"recipe": "fd_align"}) as run:
        ours = fd_align.train_head(cfg, run, source, photos, before, start)
    p = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in start.items()}
    sgd = torch.optim.SGD(p.values(), 0.5, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 9)
    x, y = (
        torch.tensor(unit(extract(source, photos.train)[1]).astype(np.float64)),
        torch.tensor(photos.train.labels).long(),
    )
    for epoch in range(3):
        for rows in torch.tensor(np.random.default_rng((cfg.seed, epoch)).permutation(len(x))).split(4):
            loss = F.cross_entropy(F.linear(x[rows], p["weight"], p["bias"]), y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
    for k, v in p.items():
        close(ours[k], v.detach(), "scores", "FD-Align: the head alone, 9 steps")
        assert np.abs(ours[k] - start[k]).max() > 0.01


# Whole runs


def train(folder, *settings) -> dict[str, float]:
    return toys.train(CONFIGS / "smoke.yaml", folder, *settings)


def arrays_of(file) -> dict[str, np.ndarray]:
    return {k: np.array(t.read()) for k, t in read_weights(file).items()}


@pytest.fixture
def settings(small_models, photo_folder) -> list[str]:
    own = [
        f"model={small_models['vit']}",
        f"data.root={photo_folder}",
        "data.split_file=",
        "data.shots=2",
        "data.val_shots=2",
    ]
    return [*own, "optim.batch=4", "optim.lr=0.05", "optim.epochs=3"]


def test_from_photos_to_a_tuned_model(settings, small_models, tmp_path, monkeypatch):
    more = [*settings, "head_first=true", "head_views=2", "data.shots=4", "head_optim.epochs=2", "head_optim.batch=3"]
    whole = train(tmp_path / "whole", *more)
    assert {"zero_shot_test_top1", "head_test_top1", "test_top1", "test_top1_last_epoch", "best_epoch"} <= set(whole)
    assert whole["prototypes"] == 3 and not (tmp_path / "whole" / "head.safetensors").exists()
    before, after = arrays_of(small_models["vit"]), arrays_of(tmp_path / "whole" / "model.safetensors")
    still = {k for k in before if np.array_equal(before[k], after[k])}
    assert still == {k for k in before if not k.startswith("visual.")}

    with toys.broken_off(fd_align, monkeypatch, step=4):
        train(tmp_path / "killed", *more)
    assert train(tmp_path / "killed", *more) == whole


def test_features_before_are_computed_once_where_views_do_not_change(small_models, photo_folder, monkeypatch, close):
    source, rows = ModelSource(small_models["vit"]), np.array([3, 0, 2])
    photos = read_photos(DataConfig(root=str(photo_folder), shots=2))
    pixels = jt.array(np.stack([source.preprocess(Image.open(photos.train.paths[i])) for i in rows]))
    copied = fd_align.features_before(config(), source, photos.train)(pixels, rows)
    assert source.model  # so that what is made from here on is a second tower
    monkeypatch.setattr("jclip.model.clip.image_tower", lambda *_: pytest.fail("a second tower was made"))
    known = fd_align.features_before(config(augment="none"), source, photos.train)(None, rows)
    close(known.numpy(), copied.numpy(), "features_normalised", "FD-Align: features before, kept")
    assert known.is_stop_grad() and copied.is_stop_grad()
    with pytest.raises(Failed, match="a second tower was made"):
        fd_align.features_before(config(), source, photos.train)


def test_half_way_back(settings, small_models, tmp_path, close):
    tuned = train(tmp_path / "tuned", *settings)
    half = train(tmp_path / "half", *settings, "wise=0.25")
    assert {k: half[f"tuned_{k}"] for k in ("val_top1", "test_nll")} == {k: tuned[k] for k in ("val_top1", "test_nll")}
    ends = arrays_of(small_models["vit"]), arrays_of(tmp_path / "tuned" / "model.safetensors")
    for k, v in arrays_of(tmp_path / "half" / "model.safetensors").items():
        close(v, 0.25 * ends[0][k] + 0.75 * ends[1][k], "optimiser", "FD-Align: part of the way back")
    heads = [arrays_of(tmp_path / name / "learned.safetensors") for name in ("tuned", "half")]
    source = ModelSource(small_models["vit"])
    zero_shot, _ = text_means(source, class_prompts(read_classes(settings), load_templates("openai7")))
    close(heads[1]["weight"], 0.25 * 100 * zero_shot.weights + 0.75 * heads[0]["weight"], "scores")
    close(heads[1]["bias"], 0.75 * heads[0]["bias"], "optimiser")


def test_measuring_leaves_the_model_as_it_is(settings, small_models, photo_folder):
    """Not even weights of the tower that come with the head are put into it."""
    source, photos = ModelSource(small_models["vit"]), read_photos(DataConfig(root=str(photo_folder), shots=2))
    before = {k: v.numpy().copy() for k, v in source.model.state_dict().items()}
    rng = np.random.default_rng(5)
    head = {"weight": rng.standard_normal((3, WIDTH)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    message = fd_align.measured(config(), source, photos, head, "tuned_")
    moved = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in before.items() if k.startswith("visual.")}
    assert moved and fd_align.measured(config(), source, photos, head | moved, "tuned_") == message
    assert all(np.array_equal(before[k], v.numpy()) for k, v in source.model.state_dict().items())
    assert message["tuned_test_count"] == 18 and {k.split("_")[0] for k in message} == {"tuned"}


def read_classes(settings) -> tuple[str, ...]:
    return read_photos(DataConfig(root=settings[1].removeprefix("data.root="))).classnames


def test_other_classes_by_their_texts(settings, small_models, tmp_path, close):
    from jclip.report.predictor import Classifier

    train(tmp_path, *settings, "optim.epochs=1")
    done = Classifier.load(tmp_path)
    source, names = ModelSource(done.model), ("a thing", "two things")
    assert source.checkpoint.path == tmp_path / "model.safetensors"
    learned = fd_align.for_classes(done.learned, done.config, names, source)
    features = unit(np.random.default_rng(0).standard_normal((5, WIDTH))).astype(np.float32)
    from jclip.features.heads import zero_shot_head

    wanted = zero_shot_head(source, class_prompts(names, load_templates("openai7")))(features)
    close(fd_align.scorer(learned, done.config)(features), wanted, "scores", "FD-Align: other classes")


def test_the_challenges_way(settings, photo_folder, tmp_path, close):
    """Fixed head, raw texts, all templates as they are, S of length one, AdamW; the loss nearly forgets styles."""
    own = [s for s in settings if not s.startswith("optim.lr")]
    metrics = toys.train(CONFIGS / "jittor_challenge.yaml", tmp_path, *own)
    assert metrics["prototypes"] == 16
    source = ModelSource(settings[0].removeprefix("model="))
    prompts = class_prompts(read_classes(settings), load_templates("jittor_challenge16"))
    head, _ = text_means(source, prompts, unit_first=False)
    learned = arrays_of(tmp_path / "learned.safetensors")
    assert np.array_equal(learned["weight"], np.float32(head.scale) * head.weights) and not learned["bias"].any()


def test_rates_are_for_a_batch_of_256():
    cfg = fd_align.fitted(config(), 32)
    assert (cfg.optim.batch, cfg.head_optim.batch) == (32, 32) and np.isclose(cfg.optim.lr, 5e-5 / 8)
    assert fd_align.fitted(config(), 1000).optim == config().optim
    assert fd_align.fitted(config(lr_batch=0), 32).optim.lr == 5e-5


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["spurious.kept=8"], "spurious.kept must be at most 7 .templates., got 8; or set spurious.outliers=none"),
        (["spurious.clusters=7"], "spurious.clusters must be at most 6, the templates kept, got 7"),
        (
            ["spurious.outliers=none", "spurious.clusters=8"],
            "spurious.clusters must be at most 7, the templates kept, got 8",
        ),
        (["spurious.kept=0"], "spurious.kept must be at least 1"),
        (["data.features=x.npz"], "tunes towers on photos, not on precomputed features"),
        (["data.val_shots=0"], "choosing the epoch needs validation photos, and there are none"),
        (["wise=1.5"], r"wise in \[0, 1\]"),
        (["head_first=true", "train_head=false"], "head_first=true trains the head: set train_head=true"),
    ],
)
def test_what_can_not_work_is_reported(wrong, message, settings, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, *settings, *wrong)


def test_sentences_of_classes_are_no_templates(settings, tmp_path):
    names = read_classes(settings)
    sentences = {name: [f"{i} of {name}" for i in range(7 + k)] for k, name in enumerate(names)}
    (tmp_path / "s.json").write_text(json.dumps(sentences), encoding="utf-8")
    with pytest.raises(
        ConfigError, match="templates fill 7 to 9 prompts per class, and here all classes need the same"
    ):
        train(tmp_path / "run", *settings, f"templates={tmp_path / 's.json'}")

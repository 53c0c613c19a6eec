"""PromptSRC against the authors' way in torch: every term, whole runs with their average, a run that was killed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune import promptsrc
from jclip.config import DataConfig
from jclip.data.splits import read_photos
from jclip.errors import ConfigError
from jclip.features.source import ModelSource
from jclip.functional.losses import kl_divergence
from jclip.functional.similarity import zero_shot_scores
from jclip.model.deep_prompts import DeepPrompts, first_arrays
from jclip.prompts.templates import load_templates
from jclip.prompts.tokenizer import tokenizer
from jclip.readers import read_weights
from jclip.runtime import jt
from jclip.train.configs import read_config
from jclip.train.deep_prompt_training import batch_loss
from jclip.train.on_photos import photo_epochs
from tests.recipes import toys

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.parity import torch_clip  # noqa: E402
from tests.recipes.prompted_clip import PromptedCLIP, epochs_of_sgd, tensors, unit, vectors_of  # noqa: E402
from tests.recipes.test_maple import NAMES, data_of, model_file, scattered, source  # noqa: E402, F401
from tests.trajectories import in_both_precisions  # noqa: E402

CONFIG = Path(__file__).parents[2] / "configs" / "promptsrc" / "smoke.yaml"
TEMPLATES = "openai7"


def config(**settings) -> promptsrc.Config:
    return promptsrc.Config(DataConfig(root="x"), model="x", templates=TEMPLATES, **settings)


class Authors:
    """The loss as the authors write it, on tensors by jclip's names."""

    def __init__(self, file, names, templates, theirs):
        self.clip, self.names, self.params = PromptedCLIP(file), names, theirs
        self.held = self.frozen_texts(templates)

    def frozen_texts(self, templates):
        """Raw features of each template, averaged, then of length one."""
        spoken = [name.replace("_", " ") for name in self.names]
        tokens = [
            torch.tensor(tokenizer()([t.replace("{}", name) for name in spoken]).astype(np.int64)) for t in templates
        ]
        raw = [torch_clip.encode_text(self.clip.weights, self.clip.config, ids) for ids in tokens]
        return unit(torch.stack(raw, 1).mean(1))

    def terms(self, pixels, labels):
        functional, scale = torch.nn.functional, self.clip.scale
        text_vectors, image_vectors = vectors_of(self.params)
        text, images = self.clip.texts(self.names, text_vectors), self.clip.images(pixels, image_vectors)
        plain, scores = self.clip.images(pixels, []), scale * images @ text.T
        wanted = scale * plain @ self.held.T
        kl = functional.kl_div(functional.log_softmax(scores, 1), functional.log_softmax(wanted, 1),
                               reduction="sum", log_target=True) / scores.numel()  # fmt: skip
        return [functional.cross_entropy(scores, labels), 10 * functional.l1_loss(images, plain),
                25 * functional.l1_loss(text, self.held), kl]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_every_term_and_its_gradients_equal_the_authors(seed, source, model_file, close):  # noqa: F811
    rng, data = np.random.default_rng((seed, 5)), data_of(source)
    pixels, labels = rng.standard_normal((3, 3, 32, 32), dtype=np.float32), rng.integers(0, 4, 3)
    prompts = DeepPrompts(source.model, data, config(depth=3).prompts, seed)
    theirs = tensors(scattered(prompts, seed))
    authors = Authors(model_file, NAMES, load_templates(TEMPLATES), theirs)
    scale, held = float(authors.clip.scale), promptsrc.raw_means(source, NAMES, TEMPLATES)
    close(held, authors.held, "features_normalised", "PromptSRC: texts that hold")
    terms = authors.terms(pixels, torch.tensor(labels))
    for number, weights in enumerate([(0, 0, 0), (10, 0, 0), (0, 25, 0), (0, 0, 1), (10, 25, 1)]):
        cfg = config(**dict(zip(("image_weight", "text_weight", "scores_weight"), map(float, weights), strict=True)))
        penalty = promptsrc.regulariser(cfg, source.model, held, scale)
        loss = batch_loss(prompts, scale, penalty)(pixels, labels)
        wanted = terms[0] + sum(t for t, w in zip(terms[1:], weights, strict=True) if w)
        assert number == 0 or (wanted - terms[0]).item() > 1e-3
        close([loss.item()], [wanted.item()], "loss", "PromptSRC: loss, relative", relative=True)
        own = torch.autograd.grad(wanted, list(theirs.values()), retain_graph=True)
        for mine, its in zip(jt.grad(loss, [prompts.params[k] for k in theirs]), own, strict=True):
            close(mine.numpy(), its, "gradient_relative", "PromptSRC: gradients, relative", relative=True)


RUN = ["data.split_file=", "data.shots=4", "data.val_shots=2", "augment=coop", f"templates={TEMPLATES}", "mean=3",
       "deviation=0.8", "optim.lr=0.02", "optim.epochs=4", "optim.batch=4"]  # fmt: skip


@pytest.mark.parametrize("seed, selection", [(0, "aggregate"), (1, "last")])
def test_a_run_equals_torchs(seed, selection, model_file, photo_folder, tmp_path, close):  # noqa: F811
    """Four epochs of three steps on photos in fresh views: every epoch's loss, and the average over the epochs."""
    settings = [*RUN, f"model={model_file}", f"data.root={photo_folder}", f"seed={seed}", f"selection={selection}"]
    metrics = toys.train(CONFIG, tmp_path / "run", *settings)

    cfg, source = read_config(str(CONFIG), settings)[1], ModelSource(model_file)  # noqa: F811
    photos = read_photos(cfg.data)
    weights = np.array([np.exp(-((e - 3) ** 2) / (2 * 0.8**2)) / (0.8 * np.sqrt(2 * np.pi)) for e in (1, 2, 3, 4)])

    def in_torch():
        theirs = tensors(first_arrays(source.model, cfg.prompts, seed))
        authors = Authors(model_file, photos.classnames, load_templates(TEMPLATES), theirs)
        total = {k: torch.zeros_like(v) for k, v in theirs.items()}

        def aggregate(epoch):
            for k, v in theirs.items():
                total[k] += float(weights[epoch] / weights.sum()) * v.detach()

        losses = epochs_of_sgd(
            theirs, 0.02, 4, photo_epochs(cfg, photos, source), lambda *batch: sum(authors.terms(*batch)), aggregate
        )
        kept = {k: v.detach() for k, v in (total if selection == "aggregate" else theirs).items()}
        assert max(np.abs(total[k].numpy() - theirs[k].detach().numpy()).max() for k in total) > 1e-3
        text = authors.clip.texts(photos.classnames, vectors_of(kept)[0])
        return {**kept, "text": text, "losses": np.array(losses)}

    wanted, drift = in_both_precisions(in_torch)
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learned = {k: np.array(t.read()) for k, t in read_weights(tmp_path / "run" / "learned.safetensors").items()}
    found, names = {**learned, "losses": [line["loss"] for line in written]}, {"losses": "losses of four epochs"}
    for k, array in wanted.items():
        label = f"PromptSRC: {names.get(k, 'texts of what is kept' if k == 'text' else 'what is kept')}"
        close(found[k], array, "trajectory_loss" if k == "losses" else "trajectory", label, drift=drift[k])
    assert ("best_epoch" in metrics) and "test_top1_last_epoch" in metrics


def test_a_killed_run_goes_on_to_the_same_average(small_models, photo_folder, tmp_path, monkeypatch):
    settings = [*RUN, f"model={small_models['vit']}", f"data.root={photo_folder}"]
    whole = toys.train(CONFIG, tmp_path / "whole", *settings)
    real, calls = promptsrc.Aggregate.add, []

    def dying(average, epoch):
        calls.append(epoch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(average, epoch)

    monkeypatch.setattr("jclip.train.loop.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(promptsrc.Aggregate, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            toys.train(CONFIG, tmp_path / "killed", *settings)
    assert toys.train(CONFIG, tmp_path / "killed", *settings) == whole
    files = [read_weights(tmp_path / name / "learned.safetensors") for name in ("whole", "killed")]
    assert all(np.array_equal(t.read(), files[1][k].read()) for k, t in files[0].items())


def test_weights_of_the_epochs_sum_to_one_and_equal_states_stay(close):
    for epochs, mean, deviation in ((20, 15, 1), (50, 30, 30), (50, 45, 5), (20, 6, 10)):
        weights = promptsrc.gaussian(epochs, mean, deviation)
        assert weights.shape == (epochs,) and weights.sum() == pytest.approx(1) and weights.argmax() == mean - 1
    state = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    average = promptsrc.Aggregate({"x": jt.array(state)}, weights)
    for epoch in range(20):
        average.add(epoch)
    close(average.arrays()["x"], state, "rounding", "PromptSRC: the average of equal states")
    with pytest.raises(ConfigError, match="mean must be near the epochs 1 to 5, got 100.0"):
        promptsrc.gaussian(5, 100.0, 1.0)


def test_without_an_effect_nothing_is_held():
    rng = np.random.default_rng(1)
    x, y = (jt.array(rng.standard_normal((5, 7)).astype(np.float32)) for _ in range(2))
    assert promptsrc.mean_distance(x, x).item() == 0 and kl_divergence(x, x).item() == 0
    assert promptsrc.mean_distance(x, y).item() > 0.1 and kl_divergence(x, y).item() > 0.1
    far = jt.array(np.array([[0, -3e4], [-3e4, 0]], np.float32))  # probabilities that are 0
    assert kl_divergence(far, far).item() == 0 and np.isfinite(kl_divergence(x[:2, :2], far).item())


def test_the_frozen_towers_keep_nothing_for_a_backward_pass(source):  # noqa: F811
    held, pixels = promptsrc.raw_means(source, NAMES, TEMPLATES), np.ones((2, 3, 32, 32), np.float32)
    seen = []

    class Watched:
        def encode_image(self, images):
            seen.append(source.model.encode_image(images))
            return seen[-1]

    prompts = DeepPrompts(source.model, data_of(source), config(depth=2).prompts, 0)
    images, text = prompts.images(pixels), prompts.text()
    penalty = promptsrc.regulariser(config(), Watched(), held, 8.0)
    assert not penalty(jt.array(pixels), images, text, zero_shot_scores(images, text, 8.0)).is_stop_grad()
    assert len(seen) == 1 and seen[0].is_stop_grad() and not images.is_stop_grad()


def test_other_names_get_the_learned_vectors(source, model_file, close):  # noqa: F811
    prompts = DeepPrompts(source.model, data_of(source), config(depth=3).prompts, 0)
    scattered(prompts, 6)
    found = promptsrc.for_classes(prompts.learned(8.0), config(depth=3), ("ox", "zebra_crossing"), source)
    text = PromptedCLIP(model_file).texts(("ox", "zebra_crossing"), vectors_of(tensors(prompts.arrays()))[0])
    close(found["text"], text.detach(), "features_normalised", "PromptSRC: other names")


@pytest.mark.parametrize("settings, message", [
    ({"text": 0}, "text and image must be at least 1 vector each, got 0 and 4"),
    ({"deviation": 0.0}, "deviation above 0, got deviation=0.0"),
    ({"image_weight": -1.0}, "the three weights must be at least 0"),
    ({"depth": 0}, "depth=0"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)

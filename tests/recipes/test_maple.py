"""MaPLe and its baselines against the authors' way in torch: features, gradients, whole runs; what a finished run does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune import Classifier, maple
from finetune.__main__ import main
from jclip.config import DataConfig, OptimConfig
from jclip.data.splits import read_photos
from jclip.errors import ConfigError, DataError
from jclip.features.precomputed import FeatureSet
from jclip.features.source import ModelSource, PromptedSource
from jclip.functional.directions import unit
from jclip.model.deep_prompts import DeepPrompts, encode_beside, first_arrays, opening
from jclip.model.parameter_groups import Prompting
from jclip.prompts.tokenizer import tokenizer
from jclip.readers import read_weights
from jclip.runtime import jt
from jclip.train.configs import read_config
from jclip.train.deep_prompt_training import batch_loss
from jclip.train.on_photos import photo_epochs
from jclip.train.optim import optimiser
from jclip.weights.variants import CLIPConfig, TextConfig, ViTConfig
from tests.recipes import toys
from tests.toys import toy_file

torch = pytest.importorskip("torch", reason=toys.NO_TORCH)

from tests.recipes.prompted_clip import PromptedCLIP, epochs_of_sgd, tensors, vectors_of  # noqa: E402
from tests.trajectories import in_both_precisions  # noqa: E402

CONFIG = Path(__file__).parents[2] / "configs" / "maple" / "smoke.yaml"
NAMES = ("ant", "great_white_shark", "t-rex", "b c d e")
DEEP = CLIPConfig(24, ViTConfig((32, 32), 8, 48, 3, 3, 60), TextConfig(width=32, heads=4, layers=4, mlp_width=40))
KINDS = {
    "coupled": {"text": 2, "image": 2, "depth": 3, "coupled": True},
    "independent": {"text": 3, "image": 5, "depth": 2, "coupled": False},
    "text": {"text": 4, "image": 0, "depth": 4, "coupled": False},
    "image": {"text": 0, "image": 6, "depth": 3, "coupled": False},
    "shallow": {"text": 7, "image": 1, "depth": 1, "coupled": False, "words": ""},
}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    return toy_file(tmp_path_factory.mktemp("deep"), DEEP)


@pytest.fixture
def source(model_file) -> ModelSource:
    return ModelSource(model_file)


def prompting(kind: str) -> Prompting:
    return Prompting(**{"words": "a photo of a", **KINDS[kind]})


def data_of(source: ModelSource) -> FeatureSet:
    text = source.model.encode_text(source.model.tokenize([f"a photo of a {n.replace('_', ' ')}." for n in NAMES]))
    none, labels = np.zeros((0, 24), np.float32), np.zeros(0, np.int64)
    return FeatureSet(NAMES, none, labels, none, labels, none, labels, unit(text.numpy()), 8.0)


def scattered(prompts: DeepPrompts, seed: int) -> dict:
    """Parameters as training may leave them, put into `prompts`."""
    rng = np.random.default_rng((seed, 9))
    arrays = {k: (rng.standard_normal(a.shape) / 6).astype(np.float32) for k, a in prompts.arrays().items()}
    prompts.put(arrays)
    for var in prompts.params.values():
        var.start_grad()
    return arrays


@pytest.mark.parametrize("at_once", [256, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_features_and_gradients_equal_the_authors(kind, at_once, seed, source, model_file, monkeypatch, close):
    monkeypatch.setattr("jclip.model.learned_prompts.AT_ONCE", at_once)
    asked, rng = prompting(kind), np.random.default_rng((seed, 2))
    prompts = DeepPrompts(source.model, data_of(source), asked, seed)
    theirs, reference = tensors(scattered(prompts, seed)), PromptedCLIP(model_file)
    pixels = rng.standard_normal((3, 3, 32, 32), dtype=np.float32)
    text, image = vectors_of(theirs)
    wanted = reference.images(pixels, image), reference.texts(NAMES, text, asked.words)
    got = prompts.images(pixels), prompts.text()
    total, pulled = 0, 0
    for mine, own, what in zip(got, wanted, ("images", "texts"), strict=True):
        close(mine.numpy(), own.detach(), "features_normalised", f"MaPLe: {what}")
        pull = rng.standard_normal(mine.shape).astype(np.float32)
        total, pulled = total + (own * torch.tensor(pull)).sum(), pulled + (mine * jt.array(pull)).sum()
    total.backward()
    for name, gradient in zip(prompts.params, jt.grad(pulled, list(prompts.params.values())), strict=True):
        label = "MaPLe: gradients, relative"
        close(gradient.numpy(), theirs[name].grad, "gradient_relative", label, relative=True)


@pytest.mark.parametrize("kind, selection, seed", [("coupled", "last", 0), ("independent", "val", 1)])
def test_a_run_equals_torchs(kind, selection, seed, model_file, photo_folder, tmp_path, close):
    """Four epochs of three steps on photos in fresh views: every epoch's loss, what is kept, its features and accuracy."""
    settings = [f"{k}={v}" for k, v in KINDS[kind].items()] + [f"model={model_file}", f"selection={selection}"]
    settings += [f"data.root={photo_folder}", "data.split_file=", "data.shots=4", "data.val_shots=2", "augment=coop"]
    settings += [f"seed={seed}", "optim.lr=0.05", "optim.epochs=4", "optim.batch=4"]
    metrics = toys.train(CONFIG, tmp_path / "run", *settings)

    cfg, source = read_config(str(CONFIG), settings)[1], ModelSource(model_file)
    photos = read_photos(cfg.data)
    pixels = next(photo_epochs(cfg, photos, source)(0))[0]

    def in_torch():
        reference, theirs, after = PromptedCLIP(model_file), tensors(first_arrays(source.model, cfg.prompts, seed)), []

        def loss_of(pixels, labels):
            text, image = vectors_of(theirs)
            scores = reference.images(pixels, image) @ reference.texts(photos.classnames, text).T
            return torch.nn.functional.cross_entropy(reference.scale * scores, labels)

        def keep(epoch):
            after.append({k: v.detach().clone() for k, v in theirs.items()})

        losses = epochs_of_sgd(theirs, 0.05, 4, photo_epochs(cfg, photos, source), loss_of, keep)
        chosen = after[metrics["best_epoch"] - 1 if selection == "val" else 3]
        text, image = vectors_of(chosen)
        seen = {"text": reference.texts(photos.classnames, text), "photos": reference.images(pixels, image)}
        return {**chosen, "image": torch.stack(image), **seen, "losses": np.array(losses)}

    wanted, drift = in_both_precisions(in_torch)
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    learned = {k: np.array(t.read()) for k, t in read_weights(tmp_path / "run" / "learned.safetensors").items()}
    found = {**learned, "losses": [line["loss"] for line in written]}
    found["photos"] = unit(maple.prompted_source(learned, cfg, source).model.encode_image(pixels).numpy())
    names = {
        "losses": "losses of four epochs",
        "text": "texts of the chosen epoch",
        "photos": "images of the chosen epoch",
    }
    for k, array in wanted.items():
        label = f"MaPLe: {names.get(k, 'parameters of the chosen epoch')}"
        close(found[k], array, "trajectory_loss" if k == "losses" else "trajectory", label, drift=drift[k])
    assert metrics["parameters"] == sum(wanted[k].size for k in first_arrays(source.model, cfg.prompts, seed))
    if selection == "last":
        assert metrics["test_top1"] == metrics["test_top1_last_epoch"]


def test_the_towers_stay_as_they_are(source):
    prompts = DeepPrompts(source.model, data_of(source), prompting("coupled"), 0)
    frozen = {k: v.numpy() for k, v in source.model.state_dict().items()}
    optim = optimiser(OptimConfig(name="sgd", lr=0.1), prompts.params)
    for _ in range(2):
        optim.step(batch_loss(prompts, 8.0)(np.ones((2, 3, 32, 32), np.float32), np.array([1, 3])))
    assert all(np.array_equal(v.numpy(), frozen[k]) for k, v in source.model.state_dict().items())
    assert all(v.is_stop_grad() for v in source.model.state_dict().values())


def test_the_start(source):
    table = source.model.token_embedding.weight.numpy()
    words = tokenizer().encode("a photo of a")
    coupled = first_arrays(source.model, prompting("coupled"), 3)
    assert (
        np.array_equal(coupled["context"][0], table[words[:2]]) and opening(source.model, prompting("coupled")) == words
    )
    assert not np.array_equal(coupled["W"][0], coupled["W"][1]) and np.array_equal(coupled["W"][1], coupled["W"][2])
    assert not np.array_equal(coupled["b"][0], coupled["b"][1]) and np.array_equal(coupled["b"][1], coupled["b"][2])
    assert 0.01 < coupled["context"][1:].std() < 0.03 and np.abs(coupled["W"]).max() <= 32**-0.5
    random = first_arrays(source.model, prompting("shallow"), 3)["context"]
    assert random.shape == (1, 7, 32) and 0.01 < random.std() < 0.03


def test_vectors_stand_behind_the_patches_and_the_class_token_is_read(source, close):
    taps, vectors = {}, jt.array(np.ones((3, 5, 48), np.float32))
    found = encode_beside(source.model, np.ones((2, 3, 32, 32), np.float32), vectors, taps=taps)
    assert [taps[name].shape for name in ("visual.stem", "visual.block2")] == [[2, 1 + 16 + 5, 48]] * 2
    first = source.model.visual.ln_post(taps["visual.block2"][:, 0])
    close(found.numpy(), jt.matmul(first, source.model.visual.proj).numpy(), "rounding", "MaPLe: the class token")


def test_a_tower_without_vectors_is_the_models_own(source, close):
    pixels, data = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32), data_of(source)
    images = DeepPrompts(source.model, data, prompting("text"), 0).images(pixels)
    plain = unit(source.model.encode_image(pixels).numpy())
    close(images.numpy(), plain, "features_normalised", "MaPLe: images without vectors")
    assert images.is_stop_grad()
    assert np.array_equal(DeepPrompts(source.model, data, prompting("image"), 0).text().numpy(), data.text)
    one = DeepPrompts(source.model, data, replace(prompting("independent"), depth=1, text=4), 0).text()
    close(one.numpy(), data.text, "features_normalised", "MaPLe: words as vectors")


# What a finished run does


@pytest.fixture(scope="module")
def finished(model_file, photo_folder, tmp_path_factory) -> Path:
    """A run of photos, trained by the command."""
    folder = tmp_path_factory.mktemp("maple") / "run"
    settings = [f"model={model_file}", f"data.root={photo_folder}", "data.split_file=", "data.shots=4", "optim.lr=0.05"]
    assert main(["train", str(CONFIG), *settings, "optim.epochs=3", "optim.batch=4", "--run", str(folder)]) == 0
    return folder


def test_commands_see_with_the_learned_vectors(finished, photo_folder, capsys):
    written = json.loads((finished / "result.json").read_text())["metrics"]
    assert json.loads((finished / "eval.json").read_text())["correct"] == written["test_correct"]  # written by `train`
    (finished / "eval.json").unlink()
    assert main(["eval", str(finished)]) == 0
    assert json.loads((finished / "eval.json").read_text())["nll"] == pytest.approx(written["test_nll"], abs=1e-5)
    done = Classifier.load(finished)
    predictions = done.predict([photo_folder / "test"])
    labels = [done.classnames.index(Path(photo).parent.name) for photo in predictions.photos]
    assert (predictions.scores.argmax(1) == labels).sum() == written["test_correct"]
    plain = replace(done, module=zero_shot_of_the_run)
    assert np.abs(plain.predict([photo_folder / "test"]).scores - predictions.scores).max() > 0.1
    assert len((finished / "words.csv").read_text().splitlines()) == 3


class zero_shot_of_the_run:
    scorer = staticmethod(maple.scorer)


def test_features_are_kept_by_the_vectors_that_made_them(finished, source):
    learned = Classifier.load(finished).learned
    seen = PromptedSource(source, learned["image"])
    other = PromptedSource(source, learned["image"] + np.float32(1e-6))
    assert len({json.dumps(s.identity) for s in (source, seen, other)}) == 3
    assert seen.text_identity == source.identity and seen.width == 24 and seen.config == source.config


@pytest.mark.parametrize("kind", ["coupled", "image"])
def test_other_names_get_the_learned_vectors(kind, source, close):
    others, reference = ("zebra crossing", "ox", "a_b c d e f g"), PromptedCLIP(source.checkpoint.path)
    prompts = DeepPrompts(source.model, data_of(source), prompting(kind), 0)
    scattered(prompts, 5)
    learned = prompts.learned(8.0)
    cfg = maple.Config(DataConfig(root="x"), model="x", **KINDS[kind])
    found = maple.for_classes(learned, cfg, others, source)
    text = vectors_of(tensors(prompts.arrays()))[0]
    close(found["text"], reference.texts(others, text).detach(), "features_normalised", "MaPLe: other names")
    assert set(found) == set(learned) and all(found[k] is learned[k] for k in learned if k != "text")


def test_what_does_not_fit_is_reported_before_training(source, small_models, tmp_path):
    resnet = ModelSource(small_models["resnet"])
    with pytest.raises(
        ConfigError, match="this model's image tower is none: take another model, or learn text vectors"
    ):
        toys.train(CONFIG, tmp_path / "a", f"model={small_models['resnet']}")
    prompting("text").check(replace(resnet.config, text=DEEP.text))
    with pytest.raises(ConfigError, match="depth must be at most 3, the blocks of the image tower, got 4"):
        replace(prompting("coupled"), depth=4).check(DEEP)
    with pytest.raises(ConfigError, match="depth must be at most 4, the blocks of the text tower, got 5"):
        replace(prompting("text"), depth=5).check(DEEP)
    with pytest.raises(ConfigError, match="text=5 vectors can't start from the 4 tokens of words='a photo of a'"):
        DeepPrompts(source.model, data_of(source), replace(prompting("text"), text=5), 0)
    with pytest.raises(DataError, match="75 context vectors and the name 'b c d e' make 82 tokens, the tower takes 77"):
        DeepPrompts(source.model, data_of(source), replace(prompting("text"), text=75, words=""), 0)
    for settings, message in (
        ({"depth": 0}, "one of them and depth=0 1"),
        ({"text": 0, "image": 0}, "text=0 and image=0 vectors"),
        ({"text": 0}, "coupled image vectors are made of the text's"),
        ({"data": DataConfig(features="x.npz")}, "tunes towers on photos"),
    ):
        with pytest.raises(ConfigError, match=message):
            maple.Config(**{"data": DataConfig(root="x"), "model": "x", **settings})

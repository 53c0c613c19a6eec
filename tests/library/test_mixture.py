"""Several models as one: what the formulas say, one model in memory at a time, and nothing computed twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jclip.choices import PreprocessChoice
from jclip.cli import main
from jclip.commands.zero_shot_photos import classify
from jclip.config import build
from jclip.data.preprocess import with_choice
from jclip.errors import ConfigError, DataError
from jclip.features.member import Member, check_mixture
from jclip.features.several_models import Mixture, PromptHead
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.functional.metrics import softmax
from jclip.prompts.tokenizer import tokenize
from jclip.readers import read_weights
from tests.conftest import use_cache
from tests.toys import SMALL_VIT, toy_file

NAMES = ("red thing", "绿 thing", "blue thing")
TEMPLATES = ("a photo of a {}.", "the {}", "a drawing of many {}!")


@pytest.fixture(scope="session")
def other_vit(tmp_path_factory) -> Path:
    """Another input size, width of features and activation."""
    vision = replace(SMALL_VIT.vision, image_size=(40, 40))
    return toy_file(
        tmp_path_factory.mktemp("other"), replace(SMALL_VIT, embed_dim=18, vision=vision, activation="gelu"), 5
    )


@pytest.fixture
def prompts(tmp_path) -> str:
    (tmp_path / "prompts.txt").write_text("\n".join(TEMPLATES), encoding="utf-8")
    return str(tmp_path / "prompts.txt")


@pytest.fixture
def photos(photo_folder) -> list[str]:
    return sorted(map(str, (photo_folder / "test").rglob("*.png")))


def written_out(member: Member, photos: list[str], close) -> np.ndarray:
    """P (N, C, T) float64: the model's prompts and photos by hand, softmax over all prompts, at its scale."""
    source = ModelSource(member.weights)
    texts = [t.replace("{}", name) for name in NAMES for t in TEMPLATES]
    e = unit(source.model.encode_text(tokenize(texts)).numpy().astype(np.float64))
    look = with_choice(source.preprocess, member.preprocess)
    x = unit(source.model.encode_image(np.stack([look(Image.open(p)) for p in photos])).numpy().astype(np.float64))
    s = member.scale or float(np.exp(source.model.logit_scale.numpy()[0]))
    return softmax(s * x @ e.T).reshape(len(photos), len(NAMES), len(TEMPLATES))


def between(p: np.ndarray) -> float:
    """A threshold that keeps about half of them, and that no rounding carries one across."""
    ordered = np.sort(p.ravel())
    return float(ordered[len(ordered) // 2 - 1 :][:2].mean())


@pytest.fixture
def members(small_models, other_vit, prompts) -> list[Member]:
    look = PreprocessChoice(sharpness=2.3, resize="squash")
    first = Member(str(small_models["vit"]), prompts, "prob-prompts", 0.54, scale=20.0, preprocess=look)
    return [first, Member(str(other_vit), prompts, "prob-prompts", 0.46)]


def test_probabilities_are_mixed_as_written_out(members, photos, close):
    p = [written_out(member, photos, close) for member in members]
    mean = 0.54 * p[0] + 0.46 * p[1]
    close(classify(members, photos, NAMES).probabilities, mean.mean(2) * 3, "probabilities_at_100", "mixture: prob")
    threshold = between(mean)
    kept = np.where(mean > threshold, mean, 0).mean(2)
    dropped = classify(members, photos, NAMES, drop_below=threshold).probabilities
    close(dropped, kept / kept.sum(1, keepdims=True), "probabilities_at_100", "mixture: threshold after mixing")
    assert np.array_equal(classify(members, photos, NAMES, drop_below_uniform=9 * threshold).probabilities, dropped)
    geo = 0.54 * np.log(3 * p[0].mean(2)) + 0.46 * np.log(3 * p[1].mean(2))
    close(
        classify(members, photos, NAMES, mix="geo").probabilities, softmax(geo), "probabilities_at_100", "mixture: geo"
    )


def test_logits_are_mixed_as_they_are(members, photos, close):
    by_max = [replace(member, mode="max") for member in members]
    p = [np.log(written_out(member, photos, close)).max(2) for member in by_max]  # up to a number of each photo's own
    got = classify(by_max, photos, NAMES, mix="logit")
    close(got.probabilities, softmax(0.54 * p[0] + 0.46 * p[1]), "probabilities_at_100", "mixture: logit")
    alone = classify([replace(by_max[0], weight=0.0), by_max[1]], photos, NAMES)
    close(alone.scores, classify(by_max[1:], photos, NAMES).scores, "scores")


def test_a_threshold_of_one_model_comes_before_its_mean(members, photos, close):
    p = written_out(members[0], photos, close)
    threshold = between(p)
    for given in ({"drop_below": threshold}, {"drop_below_uniform": 9 * threshold}):
        kept = np.where(p > threshold, p, 0).mean(2)
        got = classify([replace(members[0], **given)], photos, NAMES).probabilities
        close(got, kept / kept.sum(1, keepdims=True), "probabilities_at_100")


def test_views_are_averaged_in_the_space_of_features(members, photos, close):
    member = replace(members[0], views="flip", mode="embed")
    source = member.source()
    pixels = [source.preprocess(Image.open(p)) for p in photos]
    both = source.model.encode_image(np.stack([*pixels, *(x[:, :, ::-1] for x in pixels)])).numpy()
    x = unit(both.reshape(2, len(photos), -1).mean(0))
    texts = [[t.replace("{}", name) for t in TEMPLATES] for name in NAMES]
    w = unit(np.stack([unit(source.model.encode_text(tokenize(of)).numpy()).mean(0) for of in texts]))
    close(classify([member], photos, NAMES).scores, 20.0 * x @ w.T, "scores", "mixture: views")


def test_the_prompt_that_decided(members, photos):
    got = classify(members, photos, NAMES, explain=True)
    source, member = members[0].source(), members[0]
    alone = classify([replace(member, mode="embed")], photos, NAMES, explain=True)
    assert len(got.prompts) == len(photos) and {p.replace(n, "{}") for p in got.prompts for n in NAMES if n in p} <= {
        *TEMPLATES
    }
    x = unit(source.model.encode_image(np.stack([source.preprocess(Image.open(p)) for p in photos])).numpy())
    for row, (best, prompt) in enumerate(zip(alone.best[:, 0], alone.prompts, strict=True)):
        own = [t.replace("{}", NAMES[best]) for t in TEMPLATES]
        assert prompt == own[int((unit(source.model.encode_text(tokenize(own)).numpy()) @ x[row]).argmax())]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("drop_below", [0.0, 0.03])
def test_no_weights_are_better_than_those_that_were_searched(seed, drop_below):
    """All of 21 pairs, each scored as the mixture scores photos."""
    rng, counts = np.random.default_rng(seed), np.array([3, 2, 4])
    heads = tuple(
        PromptHead(unit(rng.standard_normal((9, width))).astype(np.float32), counts, 8.0, "prob-prompts")
        for width in (5, 7)
    )
    labels = rng.integers(0, 3, 200)
    centres = [np.stack([head.prompts[s : s + n].mean(0) for s, n in ((0, 3), (3, 2), (5, 4))]) for head in heads]
    features = np.concatenate(
        [unit(own[labels] + 0.5 * rng.standard_normal((200, own.shape[1]))) for own in centres], axis=1
    ).astype(np.float32)
    even = Mixture(heads, np.array([0.5, 0.5]), drop_below=drop_below)
    right = [
        int((replace(even, weights=np.array([i / 20, 1 - i / 20]))(features).argmax(1) == labels).sum())
        for i in range(21)
    ]
    found = even.searched(features, labels, 0.05)
    assert right[round(20 * found.weights[0])] == max(right) > min(right)
    assert np.array_equal(Mixture.from_arrays(found.arrays(), ["prob-prompts"] * 2, "prob")(features), found(features))


class Watch:
    """Which models are in memory, and which were loaded."""

    def __init__(self, monkeypatch):
        self.loaded: list[str] = []
        self.now: set[int] = set()
        build_model, release = sys.modules["jclip.model.clip"].build, ModelSource.release

        def watched(checkpoint, dtype):
            assert not self.now, "two models at once"
            self.loaded.append(checkpoint.path.name)
            self.now.add(1)
            return build_model(checkpoint, dtype)

        def released(source):
            self.now.clear()
            release(source)
            assert "model" not in vars(source)

        monkeypatch.setattr("jclip.model.clip.build", watched)
        monkeypatch.setattr(ModelSource, "release", released)


def test_models_come_one_after_the_other_and_a_third_is_all_that_is_new(members, small_models, photos, monkeypatch):
    watch = Watch(monkeypatch)
    classify(members, photos, NAMES)
    assert len(watch.loaded) == 2
    third = Member(str(small_models["resnet"]), members[0].prompts, "max")
    got = classify([*members, third], photos, NAMES)
    assert watch.loaded[2:] == [small_models["resnet"].name]
    assert np.array_equal(classify([*members, third], photos, NAMES).scores, got.scores) and len(watch.loaded) == 3
    classify([replace(m, mode="max", weight=0.1, drop_below_uniform=0.0) for m in members], photos, NAMES, mix="logit")
    assert len(watch.loaded) == 3  # another mode needs nothing new


def test_blocks_may_stay_on_disk(members, photos, close, own_cache):
    whole = classify(members, photos, NAMES).scores
    for file in own_cache.rglob("*.safetensors"):
        file.unlink()
    streamed = [replace(member, stream=True) for member in members]
    close(classify(streamed, photos, NAMES).scores, whole, "scores", "mixture: streamed")


KILLED = """
import os, signal, sys
from tests.conftest import use_cache
from jclip.features.source import ModelSource

use_cache(sys.argv[1], setattr)
release = ModelSource.release
def killed(self):
    release(self)
    os.kill(os.getpid(), signal.SIGKILL)
ModelSource.release = killed
from jclip.cli import main
main(["train", "mine.yaml", "--run", "killed"])
"""


def test_killed_after_the_first_model_and_continued(members, photo_folder, tmp_path, monkeypatch):
    text = [f"  - {{weights: '{m.weights}', prompts: '{m.prompts}', mode: prob-prompts}}" for m in members]
    head = f"recipe: zero_shot\nsearch: true\ndata: {{root: '{photo_folder}', shots: 4}}\nmodels:\n"
    (tmp_path / "mine.yaml").write_text(head + "\n".join(text), encoding="utf-8")
    env, caches = (
        {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        [tmp_path / "cache", tmp_path / "another"],
    )
    command = [sys.executable, "-c", KILLED, caches[0]]
    died = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path / "killed" / "result.json").exists()
    monkeypatch.chdir(tmp_path)
    use_cache(caches[0], monkeypatch.setattr)
    watch = Watch(monkeypatch)
    assert main(["train", "mine.yaml", "--run", "killed"]) == 0
    assert watch.loaded == [Path(members[1].weights).name]  # nothing of the first
    use_cache(caches[1], monkeypatch.setattr)
    assert main(["train", "mine.yaml", "--run", "whole"]) == 0
    assert len(watch.loaded) == 3
    message = [{k: t.read() for k, t in read_weights(tmp_path / run / "learned.safetensors").items()} for run in
            ("killed", "whole")]  # fmt: skip
    assert message[0].keys() == message[1].keys() and all(
        np.array_equal(a, message[1][k]) for k, a in message[0].items()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "embed", "drop_below": 0.1}, "set mode to prob-prompts"),
        ({"weight": -1.0}, "at least 0"),
        (
            {"views": "fife-crops"},
            "none, flip, five-crops, ten-crops, got 'fife-crops', did you mean 'five-crops'",
        ),
        ({"mode": "mean"}, "must be one of embed"),
        ({"preprocess": {"sharpness": -1.0}}, "sharpness"),
        ({"preprocess": {"resize": "stretch"}}, "resize must be one of .*, got 'stretch'"),
        ({"wieght": 1.0}, "unknown key wieght, did you mean 'weight'"),
    ],
)
def test_settings_of_a_member_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(Member, {"weights": "x.pt", **settings}, "mine.yaml")


def test_what_can_not_be_mixed(members, photos, tmp_path):
    with pytest.raises(ConfigError, match="mix=logit: .* scores by probabilities"):
        check_mixture(members, "logit")
    with pytest.raises(ConfigError, match="all models need mode prob-prompts"):
        check_mixture([members[0], replace(members[1], mode="max")], "prob", 0.1)
    with pytest.raises(ConfigError, match="at least one weight must be above 0"):
        check_mixture([replace(m, weight=0.0) for m in members], "prob")
    with pytest.raises(ConfigError, match="give them the same prompts"):
        classify([members[0], replace(members[1], prompts="simple")], photos, NAMES, drop_below=0.1)
    (tmp_path / "given.json").write_text('{"red thing": ["a", "b"], "绿 thing": ["c"], "blue thing": ["d"]}')
    with pytest.raises(ConfigError, match="has 1 to 2 prompts per class: mode prob-templates"):
        classify([replace(members[0], prompts=str(tmp_path / "given.json"), mode="prob-templates")], photos, NAMES)
    with pytest.raises(DataError, match="does not decode"):
        (tmp_path / "broken.png").write_text("no photo")
        classify(members, [str(tmp_path / "broken.png"), *photos], NAMES)


def test_photos_that_do_not_decode_are_left_out_for_all_models(members, photos, tmp_path):
    (tmp_path / "broken.png").write_text("no photo")
    got = classify(members, [photos[0], str(tmp_path / "broken.png"), *photos[1:]], NAMES, on_error="skip")
    assert got.photos == tuple(photos) and np.array_equal(got.scores, classify(members, photos, NAMES).scores)

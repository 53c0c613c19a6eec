"""Heads and features: computed once, keyed by all that made them, equal to the plain formula."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import jclip.features.extraction
from jclip.choices import PreprocessChoice
from jclip.config import DataConfig
from jclip.data.augment import AUGMENTS, TEST_VIEWS, Views
from jclip.data.splits import read_photos
from jclip.errors import ConfigError, DataError
from jclip.features.extraction import TrainingRows, extract, few_shot_features, training_view
from jclip.features.heads import (
    PROMPTS_AT_LEAST,
    PROMPTS_AT_ONCE,
    encode_prompts,
    head_of_names,
    rows_by_length,
    zero_shot_head,
)
from jclip.features.precomputed import read_precomputed
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.prompts import scripts
from jclip.prompts.tokenizer import tokenize
from jclip.runtime import jt
from jclip.weights.checkpoint import save_checkpoint
from tests.toys import SMALL_VIT, toy_file


@pytest.fixture(params=["vit", "resnet"])
def source(request, small_models):
    return ModelSource(small_models[request.param])


@pytest.fixture
def photos(photo_folder):
    return read_photos(DataConfig(root=str(photo_folder), shots=2, val_shots=1))


class Untouched:
    """Stands where a model must not be needed."""

    def __getattr__(self, name):
        raise AssertionError(f"the model was asked for {name}")


def untouched(source):
    other = ModelSource(source.checkpoint.path)
    other.__dict__["model"] = Untouched()
    return other


# Heads


def test_head_is_the_mean_of_unit_prompts_normalised(source, close):
    prompts = [["a cat.", "the cat of my dear old neighbour."], ["a dog."], ["one", "two", "three words here"]]
    head = zero_shot_head(source, prompts)
    with jt.no_grad():
        by_hand = [unit(unit(source.model.encode_text(tokenize(p)).numpy()).mean(axis=0)) for p in prompts]
    close(head.weights, np.stack(by_hand), "features_normalised")
    assert head.scale == pytest.approx(100.0, rel=1e-5)
    close(head(head.weights), 100 * head.weights @ head.weights.T, "scores")


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_of_prompts_hold_each_prompt_once_and_end_where_prompts_get_longer(seed):
    drawn = np.random.default_rng(seed)
    for count in (0, 1, 23, 25, 49, 240, 1500):
        lengths = drawn.integers(5, 14, count)
        batches = list(rows_by_length(lengths))
        assert sorted(row for rows in batches for row in rows) == list(range(count))
        assert all(PROMPTS_AT_LEAST <= len(rows) <= PROMPTS_AT_ONCE for rows in batches[:-1])
        joined = [lengths[rows] for rows in batches]
        assert all(before.max() < after.min() for before, after in itertools.pairwise(joined))
    same = list(rows_by_length(np.full(1100, 7)))
    assert [len(rows) for rows in same] == [512, 512, 76]


def test_prompts_of_many_lengths_are_encoded_as_each_by_itself(source, close):
    texts = [" ".join(["word"] * (1 + i % 5)) for i in range(130)]
    encoded = encode_prompts(source.model, tokenize(texts))
    with jt.no_grad():
        alone = np.concatenate([source.model.encode_text(tokenize([t] * 2)).numpy()[:1] for t in texts[:5]])
    close(unit(encoded), unit(alone)[np.arange(130) % 5], "features_normalised")


def test_one_prompt_twice_is_once(source, close):
    once, twice = (zero_shot_head(source, [["a cat."] * n, ["a dog."]]).weights for n in (1, 2))
    close(once, twice, "features_normalised")


def test_heads_are_computed_once_and_not_mixed(source, small_models):
    prompts = [["a cat."], ["a dog."]]
    first = zero_shot_head(source, prompts)
    assert np.array_equal(zero_shot_head(untouched(source), prompts).weights, first.weights)
    for other in ([["a cat."], ["a fox."]], [["a dog."], ["a cat."]]):
        with pytest.raises(AssertionError, match="the model was asked"):
            zero_shot_head(untouched(source), other)
    for path in small_models.values():
        if path != source.checkpoint.path:
            with pytest.raises(AssertionError, match="the model was asked"):
                zero_shot_head(untouched(ModelSource(path)), prompts)


def test_a_prompt_that_is_too_long_is_reported(source):
    with pytest.raises(DataError, match="too long for context length 77"):
        zero_shot_head(source, [["word " * 90], ["a"]])
    assert zero_shot_head(source, [["word " * 90], ["a"]], truncate=True).weights.shape == (2, 24)


# Features


def by_hand(source, pixels):
    with jt.no_grad():
        return source.model.encode_image(np.stack(pixels)).numpy()


def test_features_are_those_of_each_photo(source, photos, close):
    rows, features = extract(source, photos.test)
    assert rows.tolist() == list(range(len(photos.test)))
    wanted = by_hand(source, [source.preprocess(Image.open(p)) for p in photos.test.paths])
    close(features, wanted, "features")


def test_views_are_averaged_before_normalising_and_seeded_by_photo_and_view(source, photos, close):
    _, features = extract(source, photos.train, views=3, augment="tip_adapter", seed=5)
    view = AUGMENTS["tip_adapter"]
    wanted = [
        by_hand(
            source, [view(Image.open(p), source.preprocess, np.random.default_rng((5, v, row))) for v in range(3)]
        ).mean(0)
        for row, p in enumerate(photos.train.paths)
    ]
    close(features, np.stack(wanted), "features")
    _, later = extract(source, photos.train, views=1, first_view=2, augment="tip_adapter", seed=5)
    _, others = extract(source, photos.train, views=2, augment="tip_adapter", seed=5)
    close((later + 2 * others) / 3, features, "features")


def test_batch_size_does_not_matter(source, photos, monkeypatch, close):
    _, wanted = extract(source, photos.train, views=2, augment="coop", seed=1)
    monkeypatch.setattr(jclip.features.extraction, "BATCH", 3)
    monkeypatch.setattr(jclip.features.extraction, "feature_key", lambda *a: "other")
    close(extract(source, photos.train, views=2, augment="coop", seed=1)[1], wanted, "features")


def test_features_are_computed_once_and_never_mixed(source, photos, small_models, tmp_path):
    options = {"views": 2, "augment": "coop", "seed": 1}
    rows, features = extract(source, photos.train, **options)
    again = extract(untouched(source), photos.train, **options)
    assert np.array_equal(again[1], features) and np.array_equal(again[0], rows)
    changed = [
        {**options, "views": 3},
        {**options, "seed": 2},
        {**options, "augment": "tip_adapter"},
        {**options, "first_view": 1},
        {},
    ]
    for other in changed:
        with pytest.raises(AssertionError, match="the model was asked"):
            extract(untouched(source), photos.train, **other)
    with pytest.raises(AssertionError, match="the model was asked"):
        extract(untouched(source), photos.train.take(range(1, len(photos.train))), **options)
    sharper = replace(source.preprocess, sharpness=2.0)
    arrays = dict(source.checkpoint.arrays())
    save_checkpoint(tmp_path / "sharper.safetensors", arrays, source.config, sharper)
    with pytest.raises(AssertionError, match="the model was asked"):
        extract(untouched(ModelSource(tmp_path / "sharper.safetensors")), photos.train, **options)


def test_features_of_fixed_views_are_their_mean(source, photos, close):
    _, plain = extract(source, photos.test)
    _, mirrored = extract(source, photos.test, augment="mirror")
    close(extract(source, photos.test, augment="flip")[1], (plain + mirrored) / 2, "features")
    rows, features = extract(source, photos.test, augment="ten-crops", views=3, seed=1)
    crops = [Views(source.preprocess, TEST_VIEWS["ten-crops"])(Image.open(p), 0) for p in photos.test.paths]
    assert crops[0].shape == (10, 3, *source.config.vision.image_size)
    close(features, np.stack([by_hand(source, views).mean(0) for views in crops]), "features")
    again = extract(untouched(source), photos.test, augment="ten-crops", seed=2)
    assert np.array_equal(again[1], features) and np.array_equal(again[0], rows)
    with pytest.raises(AssertionError, match="the model was asked"):
        extract(untouched(source), photos.test, augment="five-crops")


def test_fixed_views_are_the_same_from_processes(source, photos, monkeypatch, close):
    _, features = extract(source, photos.test, augment="five-crops")
    monkeypatch.setattr(jclip.features.extraction, "feature_key", lambda *a: "other")
    monkeypatch.setattr("jclip.data.loader._WORTH_PROCESSES", 1)
    monkeypatch.setenv("JCLIP_WORKERS", "2")
    close(extract(source, photos.test, augment="five-crops")[1], features, "features")


def test_what_is_set_otherwise_than_the_weights_say_is_another_source(small_models, photos):
    path = small_models["vit"]
    plain, sharp = ModelSource(path), ModelSource(path, preprocess=PreprocessChoice(resize="squash", sharpness=2.3))
    assert ModelSource(path, preprocess=PreprocessChoice()).preprocess == plain.preprocess
    assert sharp.preprocess == replace(plain.preprocess, resize="squash", sharpness=2.3)
    assert sharp.identity == plain.identity  # the weights are the same: so are heads
    assert not np.array_equal(extract(sharp, photos.test)[1], extract(plain, photos.test)[1])


def test_a_size_that_is_set_resamples_the_positions(small_models, photos):
    path = small_models["vit"]
    larger, asked = (
        ModelSource(path, preprocess=PreprocessChoice(size=48, sharpness=2.0)),
        ModelSource(path, image_size=48),
    )
    assert larger.config == asked.config and larger.config.vision.image_size == (48, 48)
    assert larger.preprocess == replace(asked.preprocess, sharpness=2.0)
    ours, theirs = (dict(s.checkpoint.arrays())["visual.positional_embedding"] for s in (larger, asked))
    assert ours.shape == (37, 48) and np.array_equal(ours, theirs)
    assert extract(larger, photos.test, augment="flip")[1].shape == (18, 24)
    drafted = ModelSource(path, draft=True, preprocess=PreprocessChoice(draft=False))
    assert not drafted.preprocess.draft and ModelSource(path, draft=True).preprocess.draft
    with pytest.raises(ConfigError, match="image size must be a multiple of 8, the model's step, got 49 x 49"):
        ModelSource(path, preprocess=PreprocessChoice(size=49))


# Penultimate features


@pytest.fixture(params=[0, 1])
def before_projection(request, tmp_path):
    return ModelSource(toy_file(tmp_path, SMALL_VIT, request.param), penultimate=True)


def test_penultimate_features_are_those_that_the_projection_takes(before_projection, photos, close):
    projection = dict(before_projection.checkpoint.arrays())["visual.proj"]
    _, features = extract(before_projection, photos.test)
    assert features.shape == (18, 48) and before_projection.width == 48
    pixels = [before_projection.preprocess(Image.open(p)) for p in photos.test.paths]
    close(features @ projection, by_hand(before_projection, pixels), "features", "penultimate features, projected")


def test_penultimate_features_are_never_mixed_with_projected(before_projection, photos):
    path = before_projection.checkpoint.path
    kinds = {penultimate: ModelSource(path, penultimate=penultimate) for penultimate in (False, True)}
    for options in ({}, {"views": 2, "augment": "coop", "seed": 1}):
        found = {}
        for penultimate, source in kinds.items():
            if not penultimate:
                found[False] = extract(source, photos.train, **options)[1]
            other = ModelSource(path, penultimate=penultimate)
            other.__dict__["model"] = Untouched()
            if penultimate:
                with pytest.raises(AssertionError, match="the model was asked"):
                    extract(other, photos.train, **options)
                found[True] = extract(source, photos.train, **options)[1]
            assert np.array_equal(extract(other, photos.train, **options)[1], found[penultimate])
        assert found[False].shape == (6, 24) and found[True].shape == (6, 48)


def test_few_shot_penultimate_features_come_without_text(before_projection, photo_folder, close):
    config = DataConfig(root=str(photo_folder), shots=2, val_shots=1)
    views = TrainingRows(views=2, augment="tip_adapter", each_view=True)
    data = few_shot_features(config, before_projection, "simple", views)
    assert data.text is None and data.train.shape == (12, 48) and data.classes == 3
    assert data.val.shape == (3, 48) and data.test.shape == (18, 48)
    close(np.linalg.norm(data.test, axis=1), np.ones(18), "features_normalised")
    view, _ = training_view(config, before_projection, data, "tip_adapter", 0, view=1)
    assert np.array_equal(view, data.train[6:])
    only_test = few_shot_features(config, before_projection, "simple", training=None)
    assert only_test.train.shape == (0, 48) and np.array_equal(only_test.test, data.test)


def test_a_resnet_has_no_penultimate_features(small_models):
    with pytest.raises(ConfigError, match="only vision transformers have features before their projection"):
        ModelSource(small_models["resnet"], penultimate=True)


def test_a_photo_that_changed_is_computed_anew(source, photos, tmp_path):
    copy = tmp_path / "x.png"
    Image.open(photos.test.paths[0]).save(copy)
    split = replace(photos.test.take([0]), paths=(str(copy),))
    before = extract(source, split)[1]
    Image.effect_noise((50, 50), 90).convert("RGB").save(copy)
    os.utime(copy, ns=(1, 1))
    assert not np.array_equal(extract(source, split)[1], before)


def test_skipped_photos_are_reported_and_not_cached(source, photos, tmp_path, capfd):
    (tmp_path / "bad.jpg").write_text("no photo")
    split = replace(photos.test.take([0, 1]), paths=(str(tmp_path / "bad.jpg"), photos.test.paths[0]))
    rows, features = extract(source, split, on_error="skip")
    assert rows.tolist() == [1] and features.shape == (1, 24)
    stderr = capfd.readouterr().err
    assert "skipped 1 of 2 photos" in stderr and "bad.jpg does not decode" in stderr
    with pytest.raises(AssertionError, match="the model was asked"):
        extract(untouched(source), split, on_error="skip")
    with pytest.raises(DataError, match="none of 1 photos decoded"):
        extract(source, split.take([0]), on_error="skip")


def test_few_shot_features_of_photos(source, photo_folder, close):
    config = DataConfig(root=str(photo_folder), shots=2, val_shots=1)
    data = few_shot_features(config, source, "simple", TrainingRows(views=2, augment="tip_adapter", seed=0))
    assert data.train.shape == (6, 24) and data.val.shape == (3, 24) and data.test.shape == (18, 24)
    for x in (data.train, data.val, data.test, data.text):
        close(np.linalg.norm(x, axis=1), np.ones(len(x)), "features_normalised")
    assert data.test_labels.tolist() == sorted([0, 1, 2] * 6) and data.scale == pytest.approx(100)
    fresh, labels = training_view(config, source, data, "tip_adapter", 0, view=7)
    assert (
        fresh.shape == data.train.shape and (labels == data.train_labels).all() and not np.allclose(fresh, data.train)
    )
    assert training_view(config, source, data, "none", 0, view=7)[0] is data.train
    with pytest.raises(ConfigError, match="photos need a model"):
        few_shot_features(config, None, "simple")


def test_names_that_the_weights_cannot_read_are_reported_where_prompts_say_them(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scripts, "_warned", set())
    (tmp_path / "said.json").write_text('{"狗": ["a dog."], "b": ["a b."]}', encoding="utf-8")
    assert head_of_names(source, ["狗", "b"], str(tmp_path / "said.json")).weights.shape == (2, 24)
    assert not capsys.readouterr().err
    head_of_names(source, ["b", "大_狗"], "simple")
    assert capsys.readouterr().err.startswith("'大_狗' is Chinese, which these weights never learned")


# Precomputed features


def test_recorded_features_in_both_spellings(shared, close):
    folder = shared / "clip_vitb32_features"
    lvis = read_precomputed(str(folder / "caltech_lvis.npz"), 4)
    assert (
        lvis.train.shape == (140, 512) and len(lvis.test) == 922 and lvis.text.shape == (35, 512) and lvis.scale == 100
    )
    pets = read_precomputed(str(folder / "oxford_pets.npz"), 16)
    assert pets.train.shape == (592, 512) and len(pets.classnames) == 37 and pets.text is None
    close(np.linalg.norm(pets.test, axis=1), np.ones(3669), "features_normalised")


def npz(path, **changes):
    arrays = {
        "keys_2": np.ones((4, 3)), "keys_2_l": np.array([0, 0, 1, 1]), "val_f": np.ones((2, 3)), "val_l": np.array([0, 1]),
        "test_f": np.ones((2, 3)), "test_l": np.array([0, 1]), "classnames": np.array(["a", "b"]),
    } | changes  # fmt: skip
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return str(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(keys_2_l=None), "lacks keys_2 or keys_2_l"),
        (dict(keys_2=np.full((4, 3), np.nan)), "keys_2 holds 12 values that are NaN or infinite"),
        (dict(keys_2=np.ones((5, 3))), r"\(5, 3\) and keys_2_l \(4,\) do not belong together"),
        (dict(test_f=np.ones((2, 4))), "features of different widths: 3, 4"),
        (dict(test_l=np.array([0, 2])), "test labels reach from 0 to 2, there are 2 classes"),
        (dict(text_features=np.ones((3, 3))), "3 text features for 2 classes"),
        (dict(text_features=np.ones((2, 4))), "features of different widths: 3, 4"),
        (dict(text_features=np.ones(3)), r"text features must be \(C, E\), got shape \(3,\)"),
        (dict(classnames=None, test_l=np.array([0, 3])), "no row has label 2, though labels reach 3: number them"),
        (dict(keys_2=np.full((4, 3), "x")), "keys_2 must hold floating-point values, got <U1"),
        (
            dict(logit_scale=np.ones(2)),
            r"logit_scale must be one number above 0 in float32, such as 100, got an array \(2,\)",
        ),
        (dict(classnames=np.array([{"a": 1}], object)), "is not a readable .npz"),
    ],
)
def test_recorded_features_that_contradict_themselves(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_precomputed(npz(tmp_path / "x.npz", **changes), 2)


def test_recorded_features_that_are_absent(tmp_path):
    with pytest.raises(DataError, match="no features of 16 shots \\(has 2\\): set data.shots"):
        read_precomputed(npz(tmp_path / "x.npz"), 16)
    (tmp_path / "y.npz").write_text("no zip")
    for name in ("y.npz", "z.npz"):
        with pytest.raises(DataError, match="is not a readable .npz"):
            read_precomputed(str(tmp_path / name), 2)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "one.npy", np.ones(3))
    for name in ("cut.npz", "one.npy"):
        with pytest.raises(DataError, match=f"{name} is not a readable .npz"):
            read_precomputed(str(tmp_path / name), 2)
    with pytest.raises(DataError, match="x.npz must be an .npy with one array, got several"):
        read_precomputed(str(tmp_path / "x.npz"), 2, text_path=str(tmp_path / "x.npz"))
    np.save(tmp_path / "t.npy", np.eye(2, 3))
    data = read_precomputed(npz(tmp_path / "x.npz"), 2, text_path=str(tmp_path / "t.npy"))
    assert data.text.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("entering", [False, True])
def test_a_part_of_broken_photos_only_is_empty(entering, small_models, photo_folder, monkeypatch, tmp_path, capsys):
    source = ModelSource(small_models["vit"])
    split = read_photos(DataConfig(root=str(photo_folder), shots=0)).test
    broken = tmp_path / "broken.png"
    broken.write_text("no photo")
    bad = replace(split, paths=(str(broken),) * 8 + split.paths[8:])
    options = {"on_error": "skip", "entering": entering}
    rows, whole = extract(source, bad, **options)
    monkeypatch.setattr(jclip.features.extraction, "PART", 4)
    monkeypatch.setenv("JCLIP_BATCH", "4")
    capsys.readouterr()
    found = extract(source, bad, **options)
    assert found[0].tolist() == rows.tolist() == list(range(8, 18)) and np.array_equal(found[1], whole)
    assert capsys.readouterr().err.count("skipped 8 of 18 photos (first: ") == 1
    with pytest.raises(DataError, match="none of 18 photos decoded: .*broken.png"):
        extract(source, replace(split, paths=(str(broken),) * 18), **options)
    with pytest.raises(DataError, match="broken.png does not decode"):
        extract(source, bad, entering=entering)


def test_many_photos_are_kept_in_parts(small_models, photo_folder, monkeypatch, tmp_path, close):
    """A break in the third part of five loses that alone; all parts are the whole, with a photo that doesn't decode too."""
    source = ModelSource(small_models["vit"])
    split = read_photos(DataConfig(root=str(photo_folder), shots=0)).test
    broken = tmp_path / "broken.png"
    broken.write_text("no photo")
    split = replace(split, paths=(*split.paths[:5], str(broken), *split.paths[6:]))
    rows, whole = extract(source, split, on_error="skip")
    monkeypatch.setattr(jclip.features.extraction, "PART", 4)
    monkeypatch.setenv("JCLIP_BATCH", "2")
    compute, seen = jclip.features.extraction._compute, []

    def dying(model, part, *arguments, **options):
        if len(seen) == 2:
            seen.append(None)
            raise KeyboardInterrupt
        seen.append(part.paths)
        return compute(model, part, *arguments, **options)

    monkeypatch.setattr(jclip.features.extraction, "_compute", dying)
    with pytest.raises(KeyboardInterrupt):
        extract(source, split, on_error="skip")
    again = extract(source, split, on_error="skip")
    assert np.array_equal(again[0], rows) and 5 not in rows and len(rows) == 17
    close(again[1], whole, "features")
    assert seen[3:] == [
        split.paths[4:8],
        split.paths[8:12],
        split.paths[12:16],
        split.paths[16:],
    ]  # the broken one's anew

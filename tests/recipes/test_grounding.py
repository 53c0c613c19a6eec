"""Visual grounding end to end on scenes: what is learned, measured, kept, resumed and predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import grounding as recipe
from jclip.cli import main
from jclip.config import BoxDataConfig
from jclip.data import shapes
from jclip.data.box_samples import BoxSamples, drawn_scene, samples_of_scenes, world_samples
from jclip.errors import CheckpointError, ConfigError, DataError
from jclip.features import box_features
from jclip.features.source import ModelSource
from jclip.functional.boxes import centres_to_corners, giou, iou
from jclip.model.grounding import GroundingNetwork
from jclip.model.tower_levels import fusion_shape
from jclip.report.grounder import Grounder
from jclip.report.predictor import Predictor
from jclip.runtime import jt
from jclip.train import box_towers
from jclip.train.box_training import PhraseBatches, auroc, batch_loss, check_step, found_in, presence

SMOKE = Path(__file__).parents[2] / "configs" / "grounding" / "smoke.yaml"


@pytest.fixture(scope="module")
def tiny() -> ModelSource:
    return ModelSource("shapes-tiny-rn")


@pytest.fixture(scope="module")
def features(tiny) -> box_features.BoxFeatures:
    """Six scenes, two of them with twins."""
    scenes = [drawn_scene((3, i), shapes.SEEN_PAIRS, 0.4) for i in range(6)]
    return box_features.box_features(
        tiny, samples_of_scenes(scenes, 64), box_features.Reading(stored="fp32"), keep=False
    )


@pytest.fixture(scope="module")
def network(tiny) -> GroundingNetwork:
    return GroundingNetwork(
        fusion_shape(tiny.config, hidden=24, layers=2, heads=3, ffn=20, dropout=0.0, present=True), seed=2
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs of grounding") / "a, b"
    assert main(["train", str(SMOKE), "--run", str(folder)]) == 0
    return folder


def test_a_batch_has_each_photo_once_and_each_phrase_of_it(features, tiny, close):
    samples = features.samples
    rows = np.array([4, 0, 1, 5])
    batch = features.batch(rows)
    assert len(batch.images) == len({*samples.of[rows].tolist()}) < len(rows)
    assert np.array_equal(np.unique(samples.of[rows])[batch.of], samples.of[rows])
    for place, row in enumerate(rows):
        ids = tiny.model.tokenize([samples.phrases[row]])
        with jt.no_grad():
            _, every = tiny.model.encode_text(ids, dense=True)
        length = int(ids.argmax()) + 1
        assert batch.said[place].sum() == length
        close(batch.texts[place, :length], every.numpy()[0], "features_normalised", "text tokens of a batch")
        close(centres_to_corners(batch.boxes[place]) * 64, samples.boxes[row], "features", "boxes of a batch in pixels")
    assert batch.there.all()
    other = features.batch(rows, {1: samples.phrases[3]})
    assert other.there.tolist() == [1, 0, 1, 1]


def test_boxes_of_all_samples_are_those_of_each_alone(features, network, close):
    boxes, present = box_features.found_boxes(network, features)
    assert boxes.shape == (len(features), 4) and present.shape == (len(features),)
    for row in (0, 3, len(features) - 1):
        with jt.no_grad():
            alone = network(*features.batch(np.array([row]))[:4])
        close(boxes[row], alone.boxes.numpy()[0], "features_normalised")
        close(present[row], alone.present.numpy()[0], "features")


def test_the_report_counts_what_overlaps_by_half(features, network, close):
    found = found_in(network, features, seed=0)
    report = found.report()
    overlaps = iou(*found.compared)
    assert report["acc@0.5"] == pytest.approx((overlaps >= 0.5).mean()) and report["count"] == len(features)
    assert report["mean_iou"] == pytest.approx(overlaps.mean())
    in_photo = replace(found, frame="image", criterion="giou")
    close(in_photo.compared[0], found.compared[0], "closed_form", "boxes in the photo")  # scenes fill the square
    assert in_photo.report()["acc@0.25"] == (giou(*found.compared) >= 0.25).mean()
    sides = np.array([phrase.endswith(("left", "right", "top", "bottom")) for phrase in features.samples.phrases])
    if sides.any() and not sides.all():
        assert report["acc_sides"] == pytest.approx((overlaps[sides] >= 0.5).mean())
    assert 0 <= report["present_auroc"] <= 1
    assert auroc(np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])) == pytest.approx((1 + 0.5 + 0.75) / 3)
    assert presence(np.array([3.0, -1.0, 2.0]), np.array([0.0, 2.0])) == {
        "present_auroc": pytest.approx((1 + 0 + 0.75) / 3), "present_acc": pytest.approx(3 / 5),
    }  # fmt: skip


def test_the_loss_leaves_boxes_of_absent_things_out(features, network, close):
    rows = np.array([0, 1, 2, 3])
    absent = dict(zip((1, 3), features.samples.absent_phrases(rows[[1, 3]], np.random.default_rng(0)), strict=True))
    batch = features.batch(rows, absent)
    loss = float(batch_loss(network, batch, 0).numpy()[0])
    found = network(batch.images, batch.texts, batch.said, batch.seen, batch.of)
    p, t, x = found.boxes.numpy().astype(float), batch.boxes.astype(float), found.present.numpy().astype(float)
    wanted = []
    for row in (0, 2):
        a, b = centres_to_corners(p[row]), centres_to_corners(t[row])
        shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
        union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
        hull = (np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])).prod()
        wanted.append(np.abs(p[row] - t[row]).sum() + 1 - shared / union + (hull - union) / hull)
    sure = 1 / (1 + np.exp(-x))
    said = -np.log(np.where(batch.there == 1, sure, 1 - sure)).mean()
    close(loss, np.mean(wanted) + said, "loss")


def test_absent_phrases_fit_nothing_in_the_photo(features):
    samples = features.samples
    rows = np.arange(len(samples))
    for row, phrase in zip(rows, samples.absent_phrases(rows, np.random.default_rng(1)), strict=True):
        words = phrase.split()
        for thing in samples.photos[samples.of[row]].things:
            assert words[1:3] != [thing.colour, thing.shape] and words[1:] not in ([thing.shape], [thing.colour, "one"])
    alone = samples_of_scenes(samples.photos[:1], 64)
    with pytest.raises(DataError, match="must come from other photos, got none that differs"):
        alone.absent_phrases(np.array([0]), np.random.default_rng(0))


def test_batches_of_an_epoch_are_the_same_at_every_call_and_others_in_the_next(features):
    batches = PhraseBatches(features, 4, seed=3, absent=0.5)

    def boxes(epoch):
        return [(b.boxes.tolist(), b.there.tolist()) for b in batches.epoch(epoch)]

    assert boxes(0) == boxes(0) != boxes(1) and len(boxes(0)) == len(batches) == len(features) // 4
    assert all(any(there) for _, there in boxes(0))
    with pytest.raises(DataError, match="a batch must fit the"):
        PhraseBatches(features, 1000, seed=3)
    check_step(20, 20)
    check_step(20, 6, 3)
    for size, accumulate, message in ((21, 1, "a batch must fit the 20"), (6, 4, "a step of 4 x 6 phrases")):
        with pytest.raises(DataError, match=message):
            check_step(20, size, accumulate)


EARLY = {
    "a batch must fit the 40 phrases": ["optim.batch=41"],
    "a step of 3 x 16 phrases": ["accumulate=3"],
    "heads must divide hidden=24, got 5": ["heads=5"],
    "selection=val needs validation phrases": ["selection=val"],
}


@pytest.mark.parametrize("message", EARLY)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_a_training_refuses_it_refuses_before_photos_are_encoded(message, dry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(box_features, "box_features", lambda *_, **__: pytest.fail("encoded"))
    lines = [{"image": "a.png", "box": [1, 2, 30, 40], "phrase": f"it {i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    given = [f"data.train={tmp_path}/rows.jsonl", "selection=last", f"--run={tmp_path}/r"]
    assert main(["train", str(SMOKE), *given, *EARLY[message], *dry]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_scenes_of_few_pairs_have_twins_and_unseen_ones_only_unseen_pairs():
    data = BoxDataConfig(scenes=40, unseen_scenes=5, twins=1.0)

    def sides(samples):
        return sum(phrase.endswith(("left", "right", "top", "bottom")) for phrase in samples.phrases) / len(samples)

    assert sides(world_samples(data, "train", 64)) > 0.15 > sides(world_samples(replace(data, twins=0.0), "train", 64))
    apart = replace(data, twins=0.0, train_twins=1.0)
    assert world_samples(apart, "train", 64).phrases == world_samples(data, "train", 64).phrases
    assert world_samples(apart, "test", 64).phrases == world_samples(replace(data, twins=0.0), "test", 64).phrases
    unseen = world_samples(data, "unseen", 64)
    assert {(t.colour, t.shape) for scene in unseen.photos for t in scene.things} <= {*shapes.UNSEEN_PAIRS}
    assert world_samples(replace(data, val=""), "val", 64) is None
    with pytest.raises(ConfigError, match=r"data.train must be shapes \(the embedded world\) or empty, got x.jsonl"):
        world_samples(replace(data, train="x.jsonl"), "train", 64)


def test_tokens_of_photos_are_kept_and_read_again(tiny, features, own_cache, monkeypatch):
    reading, samples = box_features.Reading(), features.samples
    first = box_features.box_features(tiny, samples, reading)
    assert first.parts[0].dtype == np.float16 and len(list((own_cache / "features").glob("boxes-*"))) == 1
    monkeypatch.setattr(box_features, "_encoded", lambda *_: pytest.fail("encoded again"))
    second = box_features.box_features(tiny, samples, reading)
    assert all(np.array_equal(a, b) for a, b in zip(first.parts, second.parts, strict=True))


def test_a_run_is_measured_again_and_predicts_what_it_measured(finished, tmp_path, capsys, close):
    result = json.loads((finished / "result.json").read_text())["metrics"]
    lines = [json.loads(line) for line in (finished / "boxes.jsonl").read_text().splitlines()]
    assert len(lines) == result["test_count"]
    assert main(["eval", str(finished), "--out", str(tmp_path / "again")]) == 0
    assert "Acc@0.5" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "eval.json").read_text())
    assert again["mean_iou"] == pytest.approx(result["test_mean_iou"], abs=1e-6)
    assert again["present_auroc"] == pytest.approx(result["test_present_auroc"], abs=1e-6)

    done = Predictor.load(finished)
    assert isinstance(done, Grounder)
    scene = world_samples(done.config.data, "test", 64).photos[0]
    scene.render(64).save(tmp_path / "a scene, one.png")
    found = done.predict(tmp_path / "a scene, one.png", scene.phrases())
    assert [thing.phrase for thing in found] == [line["phrase"] for line in lines[: len(found)]]
    close(
        [thing.box for thing in found], [line["box"] for line in lines[: len(found)]], "written_boxes", "boxes of a run"
    )
    assert all(0 <= thing.present <= 1 for thing in found)
    wide = Image.new("RGB", (300, 90), "grey")
    (thing,) = done.predict(wide, "the red one")
    x1, y1, x2, y2 = thing.box
    assert 0 <= x1 <= x2 <= 300 and 0 <= y1 <= y2 <= 90 and thing.xywh == (x1, y1, x2 - x1, y2 - y1)


def test_what_can_not_be_found_or_measured_is_refused_in_one_line(finished, tmp_path, capsys):
    done = Predictor.load(finished)
    with pytest.raises(ConfigError, match="a phrase must not be empty"):
        done.predict(Image.new("RGB", (9, 9)), ["the red one", " "])
    assert main(["predict", str(finished), "photo.png"]) == 2
    assert "can't be used to label photos without phrases" in capsys.readouterr().err
    other = Predictor.load(finished, model="shapes-tiny-vit")
    with pytest.raises(ConfigError, match="was trained with image_width=960, this model and config have 512"):
        _ = other.network
    assert main(["eval", str(finished), "data.test=", "--out", str(tmp_path / "x")]) == 2
    assert "there are no test phrases to measure on" in capsys.readouterr().err
    for setting, said in (
        ("prompt=x", "prompt must hold {phrase} once"),
        ("heads=5", "heads must divide hidden=24, got 5"),
        ("absent=1", "absent must be in"),
        ("data.twins=2", "data.twins must be in"),
        ("data.train_twins=-1", "data.train_twins must be in"),
        ("data.train=", "there is nothing to learn from"),
    ):
        assert main(["train", str(SMOKE), setting, "--run", str(tmp_path / setting[:6])]) == 2
        assert said in capsys.readouterr().err


def test_a_damaged_network_is_named(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy" / "learned.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="learned.safetensors"):
        Predictor.load(tmp_path / "copy")


@pytest.mark.parametrize(
    "settings", [["visual_layers=last"], ["model=shapes-tiny-vit", "dropout=0.1", "positions=sine"]]
)
def test_other_towers_and_layers_learn_too(settings, tmp_path):
    assert main(["train", str(SMOKE), *settings, "data.scenes=24", "--run", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert 0 <= metrics["test_mean_iou"] <= 1


def test_the_towers_positions_are_trained_and_kept_with_the_run(tmp_path):
    asked = ["model=shapes-tiny-vit", "visual_positions=trained", "data.scenes=16", "data.unseen_scenes=0"]
    assert main(["train", str(SMOKE), *asked, "--run", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    done = Predictor.load(tmp_path / "run")
    learned = done.learned[box_towers.POSITIONS]
    own = ModelSource("shapes-tiny-vit").model.visual.positional_embedding.numpy()
    assert learned.shape == own.shape and 1e-4 < np.abs(learned - own).max() < 0.1
    assert done.measure(tmp_path)["mean_iou"] == pytest.approx(metrics["test_mean_iou"], abs=1e-5)
    assert np.array_equal(done.source.model.visual.positional_embedding.numpy(), learned)


def test_only_a_vits_positions_can_be_trained(tmp_path, capsys):
    assert main(["train", str(SMOKE), "visual_positions=trained", "--run", str(tmp_path / "run")]) == 2
    assert "visual_positions=trained needs a ViT" in capsys.readouterr().err


def test_a_few_scenes_are_learned_by_heart(features):
    """Eight times the smoke's epochs on six scenes: boxes of known phrases come closer."""
    cfg = recipe.Config(model="shapes-tiny-rn")
    network = GroundingNetwork(
        fusion_shape(features.source.config, hidden=48, layers=2, heads=3, ffn=64, dropout=0.0, project_norm=True),
        seed=1,
    )
    from jclip.train.optim import AdamW

    optim = AdamW(network.state_dict(), lr=2e-3, weight_decay=0)
    rows = np.arange(len(features))
    before = found_in(network, features).report()["mean_iou"]
    for step in range(60):
        optim.step(batch_loss(network, features.batch(rows), step), cfg.clip)
    after = found_in(network, features).report()["mean_iou"]
    assert after > before + 0.3


def test_photos_on_disk_are_samples_as_well(tmp_path, tiny):
    Image.new("RGB", (100, 50), "red").save(tmp_path / "a.png")
    samples = BoxSamples(
        (tmp_path / "a.png",), np.array([[100, 50]]), np.array([0]), ("it",), np.array([[10.0, 10, 30, 40]])
    )
    features = box_features.box_features(tiny, samples, box_features.Reading())
    assert samples.name(0).endswith("a.png") and features.seen.shape == (1, 64)
    assert features.seen.reshape(8, 8).any(axis=1).tolist() == [False, False, *[True] * 4, False, False]
    assert np.allclose(features.targets[0], [0.2, 0.5, 0.2, 0.3])

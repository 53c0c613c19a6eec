"""Which box a phrase means: ReCLIP's scores and rules against the paper's formulas in loops and torch, rough boxes, boxes of
detectors."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from jclip.data import shapes
from jclip.data.box_samples import drawn_scene, samples_of_scenes
from jclip.data.detector_boxes import read_detector_boxes
from jclip.errors import ConfigError, DataError
from jclip.features import box_proposals, rough_boxes
from jclip.features.source import ModelSource
from jclip.functional import box_relations
from jclip.functional.boxes import iou
from jclip.prompts.place_words import Thing, read_places
from jclip.runtime import jt
from jclip.weights.variants import VARIANTS

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

BOXES = np.array([[2.0, 3, 20, 18], [30, 5, 55, 25], [8, 30, 18, 60], [28, 33, 62, 61], [31, 36, 40, 50]])


@pytest.fixture(scope="module")
def tiny() -> ModelSource:
    return ModelSource("shapes-tiny-rn")


def in_loops(name: str, i: int, j: int) -> float:
    """R[i, j], from the definitions."""
    a, b = BOXES[i], BOXES[j]

    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return {
        "left": (a[0] + a[2]) / 2 < (b[0] + b[2]) / 2,
        "right": (a[0] + a[2]) / 2 > (b[0] + b[2]) / 2,
        "above": (a[1] + a[3]) / 2 < (b[1] + b[3]) / 2,
        "below": (a[1] + a[3]) / 2 > (b[1] + b[3]) / 2,
        "bigger": area(a) > area(b),
        "smaller": area(a) < area(b),
        "within": shared / area(a),
    }[name]


@pytest.mark.parametrize("seed", [0, 1])
def test_relations_and_rules_equal_loops_over_their_definitions(seed, close):
    rng, n = np.random.default_rng(seed), len(BOXES)
    p, q, s = (x / x.sum() for x in rng.random((3, n)))
    for name, rule in box_relations.RELATIONS.items():
        wanted = np.array([[in_loops(name, i, j) for j in range(n)] for i in range(n)], float)
        close(rule(BOXES), wanted, "closed_form")
        both = np.array([p[i] * sum(wanted[i, j] * q[j] for j in range(n)) for i in range(n)])
        close(box_relations.related(p, q, rule(BOXES)), both / both.sum(), "closed_form")
        most = np.array([sum(p[i] * p[j] * wanted[i, j] for j in range(n)) for i in range(n)])
        close(box_relations.extreme(p, rule(BOXES)), most / most.sum(), "closed_form")
    third = box_relations.between(BOXES)
    wanted = np.zeros(n)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                hull = [*np.minimum(BOXES[j, :2], BOXES[k, :2]), *np.maximum(BOXES[j, 2:], BOXES[k, 2:])]
                wide = min(BOXES[i, 2], hull[2]) - max(BOXES[i, 0], hull[0])
                high = min(BOXES[i, 3], hull[3]) - max(BOXES[i, 1], hull[1])
                share = (
                    max(wide, 0) * max(high, 0) / ((BOXES[i, 2:] - BOXES[i, :2]).prod()) if len({i, j, k}) == 3 else 0
                )
                close(third[i, j, k], share, "closed_form")
                wanted[i] += p[i] * share * q[j] * s[k]
    close(box_relations.among(p, q, s, third), wanted / wanted.sum(), "closed_form")


def test_a_rule_that_no_box_obeys_changes_nothing(close):
    alone = np.array([0.0, 0, 1, 0, 0])
    assert np.array_equal(box_relations.related(alone, alone, box_relations.RELATIONS["left"](BOXES)), alone)
    thing = Thing("a", (("left", (Thing("b"),)),), ("above",))
    assert np.array_equal(box_proposals.phrase_probabilities("a left of b", thing, lambda _: alone, BOXES), alone)
    likely = {"a left of b": np.array([0.1, 0.2, 0.3, 0.2, 0.2]), "a": np.array([0.4, 0.1, 0.2, 0.2, 0.1])}
    thing = Thing("a", (), ("above",))
    both = likely["a left of b"] * box_proposals.thing_probabilities(thing, likely.get, BOXES)
    found = box_proposals.phrase_probabilities("a left of b", thing, likely.get, BOXES)
    close(found, both / both.sum(), "closed_form")


@pytest.mark.parametrize("seed", [3, 4])
def test_scores_equal_the_papers_formulas_in_torch(seed, tiny, close):
    """Crops, blurred surroundings, logits, softmax and rules, written out here; the towers are ours on both sides."""
    scene = drawn_scene((seed, 0), shapes.SEEN_PAIRS, 1.0)
    photo, model, size = scene.render(96), tiny.model, tiny.config.vision.image_size
    boxes = scene.boxes(96).astype(float)
    mean, std = (np.array(v)[:, None, None] for v in (tiny.preprocess.mean, tiny.preprocess.std))

    def pixels(picture):
        resized = picture.resize(size[::-1], Image.Resampling.BICUBIC)
        return ((np.asarray(resized, float).transpose(2, 0, 1) / 255 - mean) / std).astype(np.float32)

    views: list[list[np.ndarray]] = [[], []]
    for box in boxes.tolist():
        views[0].append(pixels(photo.crop([round(v) for v in box])))
        mask, blurred = Image.new("L", photo.size, 0), photo.filter(ImageFilter.GaussianBlur(100))
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        blurred.paste(photo, mask=mask)
        views[1].append(pixels(blurred))
    with jt.no_grad():
        images = torch.tensor(model.encode_image(np.stack([*views[0], *views[1]])).numpy()).double()
    images = torch.nn.functional.normalize(images, dim=1).reshape(2, len(boxes), -1)

    def likely(text):
        with jt.no_grad():
            t = torch.tensor(model.encode_text(model.tokenize([f"a photo of {text}"])).numpy()).double()[0]
        logits = float(model.logit_scale.exp().numpy()[0]) * (images @ (t / t.norm()))
        return logits.sum(0).softmax(0).numpy(), (images @ (t / t.norm()))[0].numpy()

    relation = {name: rule(boxes) for name, rule in box_relations.RELATIONS.items()}
    name = scene.things[0].name
    phrases = [f"the {name}", f"the {name} on the left", f"the {name} above the {scene.things[1].name}"]
    whole = [likely(phrase)[0] for phrase in phrases]
    own, other = likely(f"the {name}")[0], likely(f"the {scene.things[1].name}")[0]
    left, above = own * (relation["left"] @ own), own * (relation["above"] @ other)
    wanted = [whole[0]]
    for all_of_it, rule in ((whole[1], left), (whole[2], above)):
        rule = rule / rule.sum() if rule.sum() > 0 else own
        wanted.append(all_of_it * rule / (all_of_it * rule).sum())
    found = box_proposals.BoxScorer([tiny])(photo, boxes, phrases)
    for one, probabilities, phrase in zip(found, wanted, phrases, strict=True):
        close(one.probabilities, probabilities, "scores", "ReCLIP's probabilities")
        close(one.cosines, likely(phrase)[1], "features", "cosines of crops")
    support = box_proposals.crop_support(box_proposals.TextFeatures(tiny), photo, boxes, [phrases[0]] * len(boxes))
    close(support, likely(phrases[0])[1], "features", "support value")
    twice = box_proposals.BoxScorer([tiny, tiny])(photo, boxes, phrases[:1])[0].probabilities
    close(twice, whole[0] ** 2 / (whole[0] ** 2).sum(), "scores", "two models add their scores")


def test_true_boxes_and_rough_ones_find_things_of_scenes(tiny):
    samples = samples_of_scenes([drawn_scene((9, i), shapes.SEEN_PAIRS, 0.5) for i in range(12)], 64)
    scorer, rough, among, alone = box_proposals.BoxScorer([tiny]), rough_boxes.RoughScorer(tiny), [], []
    for number in range(len(samples.photos)):
        rows = np.flatnonzero(samples.of == number)
        boxes, phrases = samples.boxes[rows].astype(float), [samples.phrases[row] for row in rows]
        among += [row == one.best for row, one in enumerate(scorer(samples.photo(number), boxes, phrases))]
        found = rough(samples.photo(number), phrases)
        alone += [iou(own[one.best], box) for (own, one), box in zip(found, boxes, strict=True)]
    assert np.mean(among) >= 0.85 and (np.array(alone) >= 0.5).mean() > 0.5


def test_boxes_of_a_map_stand_around_its_parts():
    scores = np.zeros((32, 64), np.float32)
    scores[4:10, 5:12], scores[20:24, 40:60], scores[30, 1] = 0.8, 1.0, 0.9
    boxes = rough_boxes.boxes_of_map(scores, (640, 320))
    assert boxes.tolist() == [[400, 200, 600, 240], [50, 40, 120, 100]]  # a single cell is no part, unless the best
    scores[30, 1] = 2
    assert rough_boxes.boxes_of_map(scores, (640, 320)).tolist() == [[10, 300, 20, 310]]
    assert rough_boxes.boxes_of_map(np.ones((8, 64), np.float32), (640, 80)).tolist() == [[0, 0, 640, 80]]


def test_sizes_of_maps_are_steps_of_the_tower(tiny):
    vision = tiny.config.vision
    assert rough_boxes.map_size((200, 100), vision, 1) == (64, 128) == rough_boxes.map_size((9000, 100), vision, 1)
    assert rough_boxes.map_size((100, 150), vision, 4) == (384, 256)
    assert rough_boxes.map_size((100, 130), VARIANTS["ViT-B/16"].vision, 2) == (576, 448)
    joined = rough_boxes.joint_map([np.eye(2), np.eye(4)], (30, 60))
    assert joined.shape == (64, 32) and abs(joined.mean()) < 1e-6


def test_a_tower_alone_is_refused(tiny):
    alone = ModelSource("shapes-tiny-rn")
    alone.checkpoint = replace(alone.checkpoint, config=replace(alone.config, text=None))
    with pytest.raises(ConfigError, match="needs weights with both towers"):
        box_proposals.BoxScorer([alone])


def written(folder, value) -> str:
    path = folder / "boxes, of a detector.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def entry(image: object, box: object, **more) -> dict:
    return {"image_id": image, "category_id": 3, "bbox": box, **more}


def test_boxes_of_a_detector_are_found_by_number_or_name(tmp_path):
    entries = [entry(7, [1, 2, 3, 4], score=0.9), entry("b.png", [0, 0, 64, 32]), entry(7, [5, 5, 5, 5.5], score=0.2)]
    found = read_detector_boxes(written(tmp_path, entries))
    assert found.boxes("x/COCO_000000000007.jpg", (10, 10)).tolist() == [
        [1, 2, 4, 6],
        [5, 5, 10, 10],
    ]  # cut at the edge
    assert found.boxes("7.jpg", (10, 10), 0.5).tolist() == [[1, 2, 4, 6]]
    assert found.boxes("somewhere/b.png", (64, 32)).tolist() == [[0, 0, 64, 32]]
    named = {"images": [{"id": 1, "file_name": "a/c.jpg"}], "annotations": [entry(1, [0, 0, 1, 1])]}
    assert read_detector_boxes(written(tmp_path, named)).boxes("c.jpg", (9, 9)).tolist() == [[0, 0, 1, 1]]


def test_the_only_photo_of_a_file_is_taken_and_said(tmp_path, capsys):
    found = read_detector_boxes(written(tmp_path, [entry(5, [0, 0, 1, 1])]))
    assert len(found.boxes("holiday.png", (9, 9))) == 1 and "all boxes are of 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be COCO's results"),
        ({"annotations": 3}, "must be COCO's results"),
        ([3], "entry 0: must be an object"),
        ([entry(1, [1, 2, 3])], "entry 0: bbox must be x, y, width, height"),
        ([entry(1, [1, 2, -3, 4])], "above 0, got"),
        ([entry(1, [1, 2, 3, 4], score="x")], "entry 0: score must be a number"),
        ([entry(None, [1, 2, 3, 4])], "entry 0: must have image_id"),
        (
            {"images": [{"id": 1}], "annotations": [entry(1, [0, 0, 1, 1])]},
            "images must be objects with id and file_name",
        ),
        ([entry(1, [0, 0, 90, 4])], "entry 0: a box must lie within the photo of 20 x 20 pixels"),
        ([entry(1, [10, 10, 18, 18])], "it would fit as x1, y1, x2, y2"),
        ([entry(2, [0, 0, 1, 1]), entry(3, [0, 0, 1, 1])], "must have boxes of 1.png, got 2 other photos"),
    ],
)
def test_wrong_boxes_of_a_detector_are_one_line(value, message, tmp_path):
    with pytest.raises(DataError) as refused:
        read_detector_boxes(written(tmp_path, value)).boxes("1.png", (20, 20))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_words_of_places_have_no_rules_where_they_shall_not(tiny):
    scene = drawn_scene((2, 2), shapes.SEEN_PAIRS, 1.0)
    photo, boxes = scene.render(64), scene.boxes(64).astype(float)
    phrase = f"the {scene.things[0].name} on the left"
    plain = box_proposals.BoxScorer([tiny], box_proposals.ProposalRules(places=False))(photo, boxes, [phrase])[0]
    ruled = box_proposals.BoxScorer([tiny])(photo, boxes, [phrase])[0]
    assert plain.read.plain and ruled.read == read_places(phrase) and not ruled.read.plain
    assert not np.allclose(plain.probabilities, ruled.probabilities)

"""Scores of several names per photo without training: formulas by hand, and photos of many sizes through small models."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jclip.data.photo_file import ORIENTATION
from jclip.data.shapes import CLASSNAMES, SEEN_STYLES, draw_scene
from jclip.errors import ConfigError, DataError
from jclip.features import tagging
from jclip.features.source import ModelSource
from jclip.features.tagging import Tagger
from jclip.functional import local_to_global as formulas
from jclip.functional.metrics import average_precisions
from jclip.prompts.background_names import BACKGROUNDS, background_beside
from tests.toys import TOY_EVAS, toy_file

NAMES = ("cat", "dog", "bird", "fire hydrant")
PLAIN = "a photo of a {}."


def grid_of(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def test_boxes_are_of_patches_that_touch_and_their_union_is_taken():
    marked = grid_of("#....", ".#..#", "....#", "#....")
    wanted = grid_of("##...", "##..#", "....#", "#....")
    cut = grid_of("##...", "##...", ".....", ".....")  # without the last row and column
    assert np.array_equal(formulas.box_union(np.stack([marked, ~marked]))[0], wanted)
    assert np.array_equal(formulas.box_union(marked[None], cut_edges=True)[0], cut)
    ring = grid_of("#####", "#...#", "#.#.#", "#...#", "#####")
    assert formulas.box_union(ring[None]).all()
    assert not formulas.box_union(np.zeros((2, 3, 4), bool)).any()


def test_a_long_winding_part_is_one():
    snake = grid_of("#########", "........#", "#########", "#........", "#########", "........#", "#########")
    assert formulas.box_union(snake[None]).all() and len(np.unique(formulas.connected_parts(snake[None]))) == 2


def refined_of(*maps: np.ndarray) -> np.ndarray:
    return np.stack([m.reshape(-1) for m in maps], axis=1).astype(np.float32)


def test_the_first_empty_box_ends_the_looking_again_as_published():
    inner, edge = np.zeros((3, 4)), np.zeros((3, 4))
    inner[0, :2], edge[1, 3] = (0.9, 0.8), 0.9  # the second lies in the last column alone
    refined = refined_of(inner, edge, inner, 0.1 * inner)
    settings = formulas.LocalToGlobal()
    found = formulas.to_look_at_again(refined, 4, (3, 4), settings)
    assert [one.label for one in found] == [0]
    assert (found[0].rows, found[0].columns) == ((0, 1), (0, 2)) and found[0].mask.tolist() == [[True, True]]
    rest = formulas.to_look_at_again(refined, 4, (3, 4), replace(settings, published=False))
    assert [one.label for one in rest] == [0, 1, 2]  # the last does not stand out
    assert (rest[1].rows, rest[1].columns) == ((1, 2), (3, 4))
    assert [one.label for one in formulas.to_look_at_again(refined, 1, (3, 4), settings)] == [0]  # the rest: background


def test_layers_and_votes_follow_the_depth():
    layers = {depth: formulas.LocalToGlobal().layers(depth) for depth in (2, 12, 24)}
    assert layers == {2: (range(1), 1), 12: (range(8, 11), 4), 24: (range(16, 23), 8)}
    assert formulas.LocalToGlobal(first=0, votes=3).layers(12) == (range(11), 3)


def test_scores_of_places_by_hand():
    cosines = np.array([[[0.5, 0.1], [0.2, 0.3]]], np.float32)  # one photo, two places, two names
    e = np.exp
    shares = [e(1.0) / (e(1.0) + e(0.2)), e(0.6) / (e(0.4) + e(0.6))]
    assert formulas.place_shares(cosines, 2.0)[0] == pytest.approx(shares)
    dense = [(1.0 * e(1.0) + 0.4 * e(0.4)) / (e(1.0) + e(0.4)), (0.2 * e(0.2) + 0.6 * e(0.6)) / (e(0.2) + e(0.6))]
    assert formulas.cell_scores(cosines, 2.0)[0] == pytest.approx(dense)


def test_thresholds_and_choice_by_hand():
    scores = np.array([[0.1, 0.5, 0.3, 0.25], [0.2, 0.2, 0.2, 0.2]], np.float32)
    assert formulas.halfway(scores) == pytest.approx([0.3, 0.2])
    logits = np.log(scores)
    assert np.exp(formulas.halfway(logits, logits=True)) == pytest.approx([0.3, 0.2])
    above = scores > np.array([[0.26], [0.21]])
    assert formulas.chosen(scores, above).tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert formulas.chosen(scores, above, force=False).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert formulas.chosen(scores, scores > 0, most=2).tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    assert formulas.chosen(scores, scores < 0.28, most=2).tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]
    assert above.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


def test_normalising_within_photos_and_over_them_by_hand():
    scores = np.array([[1.0, 3.0, 5.0], [0.0, 0.0, 3.0], [2.0, 2.0, 2.0]])
    first = np.array([[-1.5, 0, 1.5], [-(0.5**0.5) * 1.5, -(0.5**0.5) * 1.5, 2**0.5 * 1.5], [0, 0, 0]]) / 1.5**0.5
    first[1] = np.array([-1, -1, 2]) / 2**0.5
    wanted = (first - first.mean(0)) / first.std(0)
    assert formulas.normalised_both_ways(scores) == pytest.approx(wanted, abs=1e-6)
    assert not formulas.normalised_both_ways(np.full((3, 2), 4.0)).any()


def test_background_names_that_are_classes_are_left_out():
    assert background_beside(["Fire_Hydrant", "SKY"], ["sky", "sea", "Sea", "fire hydrant"]) == ("sea",)
    assert len(BACKGROUNDS["coco"]) == 23 and len(BACKGROUNDS["voc"]) == 25


# Photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[str]:
    """Seven photos of four sizes, seeded; the last one lies on its side and says so."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(3)
    sizes = [(50, 43), (43, 50), (50, 43), (70, 30), (64, 64), (50, 43), (43, 50)]
    for i, (width, height) in enumerate(sizes):
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
        exif = Image.Exif()
        if i == 6:
            exif[ORIENTATION] = 6
        image.save(folder / f"{i}.png", exif=exif)
    return [str(folder / f"{i}.png") for i in range(len(sizes))]


@pytest.fixture
def sources(small_models) -> dict[str, ModelSource]:
    return {kind: ModelSource(path) for kind, path in small_models.items()}


WAYS = [
    ("vit", "tagclip"),
    ("vit", "places"),
    ("vit", "dense"),
    ("vit", "whole"),
    ("resnet", "places"),
    ("resnet", "dense"),
]


@pytest.mark.parametrize(("kind", "method"), WAYS)
def test_a_photos_scores_are_its_own(kind, method, sources, photos, monkeypatch, close):
    """Whatever stands beside it, in whatever order and batch."""
    tagger = Tagger(sources[kind], NAMES, PLAIN, ["sea", "sky"], method)
    scores = tagger.scores(photos)
    assert scores.shape == (7, 4) and np.isfinite(scores).all() and np.ptp(scores, axis=0).any()
    monkeypatch.setenv("JCLIP_BATCH", "2")
    close(tagger.scores(photos[::-1])[::-1], scores, "scores", "tags: another order and batch")
    close(tagger.scores(photos[3:4]), scores[3:4], "scores", "tags: a photo alone")
    assert set(np.argmax(scores, axis=1)) <= {0, 1, 2, 3}


def test_tagclip_sees_whole_photos_rounded_up_to_patches(sources, photos, monkeypatch, close):
    from jclip.model import patch_attention as passes

    seen, crops, source = [], [], sources["vit"]
    whole, part = passes.patches_with_attention, passes.crops_seen_in_part

    def watched(model, pixels, *more):
        seen.append(pixels)
        return whole(model, pixels, *more)

    monkeypatch.setattr(passes, "patches_with_attention", watched)
    monkeypatch.setattr(passes, "crops_seen_in_part", lambda *a: (crops.append(a[1]), part(*a))[1])
    tagger = Tagger(source, NAMES, PLAIN, ["sea"], settings=formulas.LocalToGlobal(candidate=0.2))
    scores = tagger.scores(photos)
    assert sorted(p.shape for p in seen) == [(1, 3, 32, 72), (1, 3, 56, 48), (1, 3, 64, 64), (4, 3, 48, 56)]
    assert all(c.shape[1:] == (3, 32, 32) for c in crops) and crops
    size = replace(source.preprocess, size=(48, 56), resize="squash")
    pixels = size(Image.open(photos[0]))[None]
    head, text = tagger.head, tagger.head.weights
    features, attention = whole(source.model, pixels, range(1), 1)
    refined = formulas.refined_scores(formulas.coarse_scores(features[0], text, head.scale), attention[0], (6, 7), True)
    again = formulas.to_look_at_again(refined, 4, (6, 7), tagger.settings)
    best = refined.max(axis=0)
    plain = [c for c in range(4) if c not in {one.label for one in again}]
    close(scores[0, plain], best[plain], "scores", "tags: classes that nobody looked at again")
    looked = [one.label for one in again]
    assert looked and not np.isclose(scores[0, looked], best[looked]).all()
    smaller = Tagger(source, NAMES, PLAIN, ["sea"], size=40)
    smaller.scores(photos[:1])
    assert seen[-1].shape == (1, 3, 40, 40)  # 40 x 34.4, rounded up


def test_dense_maps_keep_the_aspect(sources, photos, monkeypatch):
    from jclip.model import dense_map as maps

    seen, plain = [], maps.dense_map
    monkeypatch.setattr(maps, "dense_map", lambda m, x: (seen.append(x.shape), plain(m, x))[1])
    Tagger(sources["resnet"], NAMES, PLAIN).scores(photos)
    assert sorted(seen) == [(1, 3, 64, 64), (1, 3, 64, 160), (1, 3, 96, 64), (4, 3, 64, 96)]  # one pass for each size


def test_windows_raise_scores_to_the_highest_of_them(sources, photos, tmp_path, close):
    one = Tagger(sources["vit"], NAMES, PLAIN, ["sea"], "whole", windows=(2,))
    plain = Tagger(sources["vit"], NAMES, PLAIN, ["sea"], "whole")
    photo, crops = Image.open(photos[4]), []
    for i, (top, left) in enumerate((top, left) for top in (0, 11, 21, 32) for left in (0, 11, 21, 32)):
        crops.append(str(tmp_path / f"{i}.png"))
        photo.crop((left, top, left + 32, top + 32)).save(crops[-1])
    best = plain.scores([photos[4], *crops]).max(axis=0)
    close(one.scores(photos[4:5])[0], best, "scores", "tags: windows")
    with pytest.raises(ConfigError, match="scales of windows must be different integers"):
        Tagger(sources["vit"], NAMES, windows=(2, 2))


def test_templates_and_sentences(sources, photos, tmp_path):
    file = tmp_path / "said.json"
    file.write_text('{"cat": ["a small cat.", "a cat"], "dog": ["one dog"]}', encoding="utf-8")
    tagger = Tagger(sources["resnet"], ("cat", "dog"), str(file), ["sea"])
    assert tagger.head.weights.shape == (3, 24)  # the background has no sentences, and a plain prompt
    same = Tagger(sources["resnet"], ("cat", "dog"), PLAIN, ["sea"]).head.weights
    assert np.allclose(tagger.head.weights[2], same[2]) and not np.allclose(tagger.head.weights[0], same[0])


def test_background_names_are_put_into_all_templates_that_are_given(sources, tmp_path):
    sentences = {"cat": ["a small cat."], "dog": ["one dog"]}
    (tmp_path / "said.json").write_text(json.dumps(sentences))
    (tmp_path / "both.json").write_text(json.dumps({"templates": ["my {}."], "class_sentences": sentences}))
    wanted = {
        "a drawing of a {}.": ["a drawing of a sea."], f"simple+{tmp_path}/said.json": ["a photo of a sea."],
        f"{tmp_path}/both.json": ["my sea."], f"{tmp_path}/both.json+simple": ["my sea.", "a photo of a sea."],
    }  # fmt: skip
    found = {t: Tagger(sources["resnet"], ("cat", "dog"), t, ["sea"]).made_of[1][1] for t in wanted}
    assert found == {templates: [prompts] for templates, prompts in wanted.items()}


def test_photos_that_cannot_be_scored(sources, photos, tmp_path, capsys):
    broken, tiny = tmp_path / "broken.jpg", tmp_path / "tiny.png"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    Image.new("RGB", (100, 7)).save(tiny)
    mixed = [photos[0], str(broken), photos[3], str(tiny)]
    tagger = Tagger(sources["vit"], NAMES, PLAIN)
    found = tagger.scored(mixed, on_error="skip")
    assert found.photos == (photos[0], photos[3]) and len(found.skipped) == 2
    assert np.array_equal(found.scores, tagger.scores([photos[0], photos[3]]))
    assert capsys.readouterr().err.count("skipped 2 of 4 photos (first: ") == 1
    with pytest.raises(DataError, match="broken.jpg does not decode"):
        tagger.scores(mixed)
    with pytest.raises(DataError, match=r"of 100 x 7 pixels must give at least 2 x 2 patches of 8: enlarge it, or use"):
        tagger.scores([str(tiny)])
    with pytest.raises(DataError, match="none of 1 photos can be scored"):
        tagger.scored([str(broken)], on_error="skip")


def test_towers_and_names_that_a_method_cannot_take(sources, photos, tmp_path):
    eva = ModelSource(toy_file(tmp_path, TOY_EVAS["eva02"]))
    for source, names, more, message in (
        (
            sources["resnet"],
            NAMES,
            {"method": "tagclip"},
            "tagclip reads the attention of vision transformers, got a tower",
        ),
        (eva, NAMES, {"method": "tagclip"}, "of kind eva: use --method places, dense or whole"),
        (sources["vit"], (), {}, "class names must be at least one and none empty"),
        (sources["vit"], ("cat", " "), {}, "class names must be at least one and none empty"),
        (sources["vit"], ("fire hydrant", "Fire_hydrant"), {}, "class names must be unique"),
        (
            sources["vit"],
            ("cat",),
            {"background": ()},
            "scores by shares of all names, got one class and no background",
        ),
        (sources["vit"], NAMES, {"method": "best"}, "method must be one of auto, tagclip"),
    ):
        with pytest.raises(ConfigError, match=message):
            Tagger(source, names, **more)
    assert Tagger(sources["vit"], ("cat",), background=(), method="dense").method == "dense"
    assert Tagger(eva, NAMES).method == "places"
    assert Tagger(sources["vit"], NAMES, background=["sky", "Cat", "Fire_hydrant"]).background == ("sky",)
    assert Tagger(sources["resnet"], NAMES).method == "places" and Tagger(sources["vit"], NAMES).method == "tagclip"


def test_nothing_grows_with_the_number_of_photos_but_scores(sources, photos, monkeypatch):
    """Pixels are asked for in batches, and none of them is kept."""
    import weakref

    alive, plain = [], tagging.batches

    def watched(*args):
        for at, pixels in plain(*args):
            alive.append(weakref.ref(pixels.base if pixels.base is not None else pixels))
            yield at, pixels
            del pixels
            assert sum(one() is not None for one in alive) <= 2

    monkeypatch.setattr(tagging, "batches", watched)
    monkeypatch.setenv("JCLIP_BATCH", "1")
    Tagger(sources["resnet"], NAMES, PLAIN).scores(photos * 3)
    assert len(alive) == 21


def test_the_shipped_model_finds_the_things_of_a_scene(tmp_path):
    scenes = [draw_scene((1, i), styles=SEEN_STYLES, count=(2, 4)) for i in range(150)]
    paths = [str(tmp_path / f"{i}.png") for i in range(len(scenes))]
    for path, scene in zip(paths, scenes, strict=True):
        scene.render(64).save(path)
    there = np.array([[name in scene.labels for name in CLASSNAMES] for scene in scenes])
    source, found = ModelSource("shapes-tiny-rn"), {}
    for method in ("places", "dense", "whole"):
        scores = Tagger(source, CLASSNAMES, "simple", method=method).scores(paths)
        found[method] = float(np.nanmean(average_precisions(scores, there)))
    assert found["places"] > 0.9 and found["dense"] > 0.85 and found["whole"] < 0.5, found


@pytest.mark.parametrize("method", ["tagclip", "places"])
def test_blocks_on_disk_and_bfloat16_give_the_same(method, small_models, photos, monkeypatch, close):
    from jclip import kernels

    def scores(**more) -> np.ndarray:
        return Tagger(ModelSource(small_models["vit"], **more), NAMES, PLAIN, ["sea"], method).scores(photos[:4])

    plain = scores()
    close(scores(stream=True), plain, "scores", "tags: blocks on disk")
    if not kernels.why_no_half("bf16"):
        close(scores(dtype="bf16"), plain, "half_tower_relative", "tags: bfloat16")

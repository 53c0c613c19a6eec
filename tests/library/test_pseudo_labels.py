"""Phrases with boxes made of detections, triplets and captions: the published rules, worked by hand. Without Jittor."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from jclip.cli import main
from jclip.data.box_files import read_box_file
from jclip.data.detected_things import Detection, PhotoFacts, Triplet, read_photo_facts
from jclip.data.pseudo_labels import (
    PseudoLabelConfig,
    caption_rows,
    make_pseudo_labels,
    relation_rows,
    template_rows,
)
from jclip.data.shape_sources import corrupted, human_rows, named_scenes, photo_facts, pseudo_rows
from jclip.data.template_phrases import (
    Target,
    WordGroups,
    best_targets,
    filtered,
    phrases_of,
    place_words,
    targets_of,
    word_groups,
)
from jclip.errors import ConfigError, DataError
from jclip.functional.boxes import iou

WORDS = word_groups()


def found(name, box, score=0.9, attribute="", sure=1.0) -> Detection:
    return Detection(name, box, score, attribute, sure)


def photo(*detections, width=640, height=480, **more) -> PhotoFacts:
    return PhotoFacts("a.jpg", width, height, tuple(detections), **more)


def places(boxes, width=640, height=480, compat=False) -> list[list[str]]:
    same = [Target(found("cup", box), person=False) for box in boxes]
    place_words(same, width, height, compat)
    return [target.places for target in same]


def box_at(x, y, w=40, h=40):
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def test_a_person_with_attribute_place_and_cloth_has_fifteen_phrases():
    target = Target(found("person", (0, 0, 9, 9), attribute="tall"), True, ["red shirt"], ["left"])
    assert phrases_of(target) == [
        "tall person",
        "tall person left", "tall person on the left", "left tall person",
        "tall person red shirt", "red shirt tall person",
        "tall person red shirt left", "tall person left red shirt", "red shirt tall person left",
        "red shirt left tall person", "left tall person red shirt", "left red shirt tall person",
        "tall person red shirt on the left", "tall person on the left red shirt", "red shirt tall person on the left",
    ]  # fmt: skip


def test_top_and_bottom_have_no_form_with_the_and_front_is_in():
    top = Target(found("cup", (0, 0, 9, 9)), False, [], ["top"])
    assert phrases_of(top) == ["cup", "cup top", "top cup"]
    front = Target(found("cup", (0, 0, 9, 9)), False, [], ["front"])
    assert phrases_of(front) == ["cup", "cup front", "cup in the front", "front cup"]


def test_of_three_the_third_is_in_the_middle_and_the_lowest_is_at_the_bottom():
    assert places([box_at(100, 60), box_at(300, 200), box_at(500, 400)]) == [
        ["left", "top"], ["middle", "center"], ["right", "bottom"],
    ]  # fmt: skip


def test_of_more_than_three_quarters_of_the_photo_decide():
    rows = places([box_at(50, 240), box_at(100, 240), box_at(320, 240), box_at(500, 240), box_at(600, 240)])
    assert rows == [["left"], ["left"], ["middle", "center"], ["right"], ["right"]]


def test_the_upper_quarter_is_of_the_height_and_in_compat_of_the_width():
    boxes = [box_at(320, 40), box_at(320, 130), box_at(320, 440)]  # a quarter of 480 is 120, of 640 it is 160
    assert places(boxes) == [["top"], [], ["bottom"]]
    assert places(boxes, compat=True) == [["top"], ["top"], ["bottom"]]


def test_the_spread_must_exceed_fifty_pixels_of_a_photo_of_640():
    assert places([box_at(100, 100), box_at(150, 100)]) == [[], []]
    assert places([box_at(100, 100), box_at(151, 100)]) == [["left"], ["right"]]
    small = [box_at(10, 10, 4, 4), box_at(15.1, 10, 4, 4)]
    assert places(small, 64, 64) == [["left"], ["right"]]
    assert places(small, 64, 64, compat=True) == [[], []]


def test_areas_say_front_and_behind():
    assert places([box_at(100, 100, 40, 40), box_at(100, 100, 80, 60)]) == [["behind"], ["front"]]  # .33
    assert places([box_at(100, 100, 40, 40), box_at(100, 100, 80, 50)]) == [[], []]  # .4 is not below .4
    four = [box_at(100, 100, 100, s) for s in (100, 20, 39, 81)]
    assert places(four) == [["front"], ["behind"], ["behind"], ["front"]]


def test_a_single_object_has_no_place():
    assert places([box_at(10, 10)]) == [[]]


def test_small_people_and_things_go_and_clothes_stay():
    side = 640 * 480 / 64 / 50  # of a box 50 wide that has just a 64th
    left = filtered(photo(found("cup", (10, 10, 60, 10 + side)), found("dog", (100, 10, 150, 9.9 + side)),
                          found("hat", (300, 10, 305, 15))), WORDS)  # fmt: skip
    assert [d.classname for d in left.things] == ["cup"] and [d.classname for d in left.clothes] == ["hat"]


def test_of_overlapping_boxes_the_lower_score_goes_all_pairs_at_once():
    a, b, c = (100, 100, 200, 200), (100, 130, 200, 230), (100, 160, 200, 260)  # a-b and b-c .54, a-c .25
    left = filtered(photo(found("cup", a, 0.5), found("dog", b, 0.6), found("cat", c, 0.7)), WORDS)
    assert [d.classname for d in left.things] == ["cat"]  # one after the other would have kept the cup
    tie = filtered(photo(found("cup", a, 0.5), found("dog", b, 0.5)), WORDS)
    assert [d.classname for d in tie.things] == ["cup"]
    groups = filtered(photo(found("cup", a, 0.5), found("man", a, 0.9)), WORDS)
    assert len(groups.things) == len(groups.people) == 1


def test_a_corner_at_zero_moves_by_a_pixel_of_640():
    assert filtered(photo(found("cup", (0, 0, 90, 90))), WORDS).things[0].box == (1, 1, 90, 90)
    small = photo(found("cup", (0, 3, 30, 30)), width=64, height=64)
    assert filtered(small, WORDS).things[0].box == (0.1, 3, 30, 30)
    assert filtered(small, WORDS, compat=True).things[0].box == (1, 3, 30, 30)


def test_attributes_need_a_score_and_leave_the_class_name():
    box = (100, 100, 300, 300)

    def of(name, attribute, sure=0.9, compat=False):
        d = filtered(photo(found(name, box, attribute=attribute, sure=sure)), WORDS, compat).things[0]
        return d.attribute, d.classname

    assert of("cup", "red", 0.3) == ("", "cup") and of("cup", "red", 0.31) == ("red", "cup")
    assert of("black dog", "black") == ("black", "dog")
    assert of("tan tank", "tan") == ("tan", "tank") == of("tan tank", "tan", compat=True)
    assert of("suntan lotion", "tan") == ("tan", "suntan lotion")  # a whole word is not there
    assert of("suntan lotion", "tan", compat=True) == ("tan", "sunlotion")  # the published rule cuts inside of words
    assert of("orange", "orange") == ("", "orange")


def test_a_second_detector_gives_attributes_by_class_and_overlap():
    first = (found("dog", (100, 100, 300, 300)), found("dog", (400, 100, 600, 300)), found("cup", (100, 320, 300, 470)))
    second = (
        found("dog", (100, 100, 300, 290), 0.8, "brown", 0.5),
        found("dog", (400, 220, 600, 300), 0.8, "white", 0.9),  # .4 of the second dog
        found("cat", (100, 320, 300, 470), 0.8, "old", 0.9),  # another class
    )
    left = filtered(photo(*first, attribute_detections=second), WORDS)
    assert [d.attribute for d in left.things] == ["brown", "", ""]


def test_clothes_belong_to_who_wears_them():
    man = found("man", (100, 100, 200, 400))
    hat, low_hat = found("hat", (130, 100, 170, 140)), found("cap", (130, 170, 170, 210))
    pants, high = found("pants", (120, 280, 180, 380)), found("shorts", (120, 150, 180, 250))
    shirt, outside = found("shirt", (110, 160, 190, 260), attribute="red"), found("coat", (180, 160, 280, 260))
    boots = found("boots", (120, 381, 180, 399))  # among pants and shoes: the first counts
    targets = targets_of(photo(man, hat, low_hat, pants, shirt, outside, boots), WORDS)
    assert [t.found.classname for t in targets] == ["man"]
    assert targets[0].clothes == ["hat", "red shirt", "pants", "boots"]
    assert targets_of(photo(man, high), WORDS)[0].clothes == []


def test_people_come_first_and_the_best_things_fill_up():
    def target(name, score, person):
        return Target(found(name, (0, 0, 9, 9), score), person)

    targets = [target("a", 0.2, True), target("b", 0.9, False), target("c", 0.7, True), target("d", 0.95, False)]
    assert [t.found.classname for t in best_targets(targets, 3)] == ["a", "c", "d"]
    assert [t.found.classname for t in best_targets(targets, 1)] == ["c"]


def test_phrases_are_drawn_without_replacement_and_small_pools_stay_whole():
    dogs = photo(found("dog", box_at(100, 200, 120, 120)), found("dog", box_at(500, 200, 120, 120)))
    pool = template_rows(dogs, WORDS, 3, 100)
    assert [p for _, p in pool] == ["dog", "dog left", "dog on the left", "left dog",
                                    "dog", "dog right", "dog on the right", "right dog"]  # fmt: skip
    drawn = template_rows(dogs, WORDS, 3, 5)
    assert len(drawn) == 5 and all(drawn.count(row) <= pool.count(row) for row in drawn)
    assert template_rows(dogs, WORDS, 3, 5, seed=1) != drawn


def test_the_words_of_groups_are_the_published_ones():
    assert len(WORDS.people) == 28 and {"she", "policeman"} <= WORDS.people
    kinds = [list(WORDS.clothes.values()).count(kind) for kind in ("hat", "shirt", "pants", "shoes")]
    assert sum(kinds) == len(WORDS.clothes)
    assert [WORDS.clothes[w] for w in ("scarf", "jeans", "boots", "shoes", "socks")] == [
        "hat",
        "shirt",
        "pants",
        "pants",
        "shoes",
    ]


def test_relations_need_three_sure_scores_and_the_ten_best_stay():
    box = (0.0, 0.0, 9.0, 9.0)

    def said(*scores):
        return [p for _, p in relation_rows(photo(triplets=tuple(Triplet("man", "wearing", f"hat{i}", box, s)
                                                                  for i, s in enumerate(scores))))]  # fmt: skip

    assert said((0.9, 0.9, 0.2), (0.21, 0.21, 0.21), (0.9, 0.5, 0.5)) == ["man wearing hat2", "man wearing hat1"]
    assert said(*[(0.3 + i / 100, 0.5, 0.5) for i in range(12)]) == [f"man wearing hat{i}" for i in range(11, 1, -1)]


def test_captions_name_classes_by_heads_or_by_the_first_of_their_words():
    dog, cup, man = (
        found("dog", (100, 100, 300, 300)),
        found("tea cup", (310, 100, 600, 300)),
        found("man", (10, 310, 300, 470)),
    )

    def rows(*captions, heads=None):
        given = photo(dog, cup, man, captions=captions, heads=heads or (None,) * len(captions))
        return [(box, caption) for box, caption in caption_rows(given, WORDS)]

    assert rows("Two dogs and a man.") == [(dog.box, "Two dogs and a man.")]
    assert rows("The tea cups of a man") == [(cup.box, "The tea cups of a man")]
    assert rows("a boat") == []
    assert rows("a man and his dog", heads=(("dog", "man", "tea"),)) == [
        (man.box, "a man and his dog"), (dog.box, "a man and his dog"),
    ]  # fmt: skip
    assert len(rows(*(f"dog {i}" for i in range(9)))) == 6


def test_rows_of_a_photo_do_not_depend_on_the_others():
    facts = [photo_facts(one, 5) for one in named_scenes(12, 3, pairs=4)]
    cfg = PseudoLabelConfig(("x",), phrases=4)
    whole = {(r.image, r.source, r.box, r.phrase) for r in make_pseudo_labels(facts, cfg).rows}
    shuffled = random.Random(1).sample(facts, len(facts))
    assert {(r.image, r.source, r.box, r.phrase) for r in make_pseudo_labels(shuffled, cfg).rows} == whole
    alone = [row for one in facts for row in make_pseudo_labels([one], cfg).rows]
    assert {(r.image, r.source, r.box, r.phrase) for r in alone} == whole


@pytest.mark.parametrize(("dataset", "count", "most"), [("unc", 3, 6), ("flickr", 7, 28)])
def test_a_data_set_brings_its_numbers(dataset, count, most):
    dogs = [found("dog", box_at(80 + 160 * (i % 4), 100 + 200 * (i // 4), 110, 110)) for i in range(8)]
    rows = make_pseudo_labels([photo(*dogs)], PseudoLabelConfig(("x",), dataset=dataset)).rows
    assert len(rows) == most and len({row.box for row in rows}) <= count


# ---- files and the command


def lines(path, *objects):
    path.write_text("".join(json.dumps(o) + "\n" for o in objects), encoding="utf-8")
    return str(path)


GOOD = {"image": "a b,c.jpg", "width": 640, "height": 480,
        "detections": [{"class": "Dog", "box": [100, 100, 300, 300], "score": 0.9}]}  # fmt: skip


def test_files_add_to_each_other_and_the_command_writes_rows(tmp_path, capsys):
    first = lines(tmp_path / "found.jsonl", GOOD, {**GOOD, "image": "empty.jpg", "detections": []})
    second = tmp_path / "captions.json"
    second.write_text(json.dumps([{"image": "a b,c.jpg", "width": 640, "height": 480, "captions": ["A dog."]}]))
    out = tmp_path / "rows.jsonl"
    assert main(["pseudo-labels", first, str(second), "--out", str(out)]) == 0
    rows = read_box_file(out).rows
    assert [(r.image, r.phrase, r.source, r.box, r.size) for r in rows] == [
        ("a b,c.jpg", "dog", "template", (100, 100, 300, 300), (640, 480)),
        ("a b,c.jpg", "A dog.", "caption", (100, 100, 300, 300), (640, 480)),
    ]
    printed = capsys.readouterr()
    assert "rows: 2 of 2 photos" in printed.out and "1 photo gave no row: empty.jpg" in printed.err
    config = tmp_path / "labels.yaml"
    config.write_text("files: [found.jsonl, captions.json]\nsources: caption\ndataset: unc\n")
    split = tmp_path / "unc_train_pseudo.pth"
    assert main(["pseudo-labels", str(config), "seed=3", "--out", str(split)]) == 0
    assert [(r.box, r.phrase) for r in read_box_file(split).rows] == [((100, 100, 300, 300), "A dog.")]


def detection(**more):
    return {**GOOD, "detections": [{**GOOD["detections"][0], **more}]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({**GOOD, "width": 0}, "width must be a whole number"),
        ({**GOOD, "image": ""}, "must have image as text"),
        ({"image": "a", "width": 1, "height": 1}, "must have one of detections"),
        ({**GOOD, "detections": [3]}, "detections must be a list of objects"),
        (detection(box=[1, 2, 3]), "four finite numbers"),
        (detection(box=[1, 2, 3, "4"]), "four finite numbers"),
        (detection(box=[1, 2, 900, 300]), "within the picture of 640 x 480"),
        (detection(box=[500, 100, 130, 300]), "fit as x, y, width, height"),
        (detection(score=None), "score must be a number"),
        (detection(attribute=7), "attribute must be text or null"),
        (
            {**GOOD, "triplets": [{"subject": "a", "predicate": "b", "object": "c", "subject_box": [1, 1, 9, 9]}]},
            "scores",
        ),
        ({**GOOD, "captions": ["a"], "heads": []}, "heads must be a list of words for each of 1 captions"),
        ({**GOOD, "captions": "a dog"}, "captions must be lists of texts"),
    ],
)
def test_a_broken_object_is_one_line_with_its_place(tmp_path, capsys, value, says):
    path = lines(tmp_path / "found.jsonl", {**GOOD, "image": "first.jpg"}, value)
    out = tmp_path / "out.jsonl"
    assert main(["pseudo-labels", path, "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "line 2" in printed and says in printed and not out.exists()


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (['{"image": "a", "width": NaN}\n'], "NaN"),
        (["[1]\n"], "must be a JSON object"),
        (["\n"], "empty"),
        ([json.dumps(GOOD) + "\n"] * 2, "has its detections already"),
        ([json.dumps(GOOD) + "\n", json.dumps({**GOOD, "height": 470}) + "\n"], "here, 640 x 480 before"),
    ],
)
def test_broken_files_are_refused(tmp_path, texts, says):
    paths = []
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.jsonl").write_text(text)
        paths.append(tmp_path / f"{i}.jsonl")
    with pytest.raises(DataError, match=says):
        read_photo_facts(paths)


def test_a_flipped_box_among_many_is_dropped_and_an_edge_is_cut(tmp_path):
    boxes = [[10, 10, 650, 300]] + [[5, 5, 90, 90]] * 200 + [[630, 470, 10, 10]]
    path = lines(tmp_path / "a.jsonl", {**GOOD, "detections": [{"class": "dog", "box": b, "score": 1} for b in boxes]})
    (facts,) = read_photo_facts([path])
    assert len(facts.detections) == 201 and facts.detections[0].box == (10, 10, 640, 300)


def test_settings_that_cannot_be_are_refused(tmp_path, capsys):
    path = lines(tmp_path / "a.jsonl", GOOD)
    for more, says in (
        (["--sources", "relation"], "needs triplets"),
        (["--sources", "templates"], "must be one of template, relation, caption"),
        (["--out", str(tmp_path / "a.doc")], "must end in"),
        (["--out", path], "would be overwritten"),
    ):
        assert main(["pseudo-labels", path, *more]) == 2
        assert says in capsys.readouterr().err
    config = tmp_path / "a.yaml"
    for text, says in (
        ("files: 3", "files must be text"),
        ("files: []", "at least one file"),
        ("seed: 1", "missing"),
        ("files: a.jsonl\nsources: [relation, relation]", "different names"),
        ("files: a.jsonl\ndataset: coco", "unknown data set 'coco'"),
        ("files: a.jsonl\nobject: 3", "did you mean 'objects'"),
    ):
        config.write_text(f"{text}\n")
        assert main(["pseudo-labels", str(config)]) == 2
        printed = capsys.readouterr().err
        assert says in printed and printed.count("\n") == 1, printed
    words = tmp_path / "words.yaml"
    words.write_text("peoples: [man]\n")
    with pytest.raises(ConfigError, match="unknown key 'peoples'"):
        word_groups(words)
    assert WordGroups.of({"people": ["Astro  Naut"]}, "x").people == {"astro naut"}


# ---- the embedded world


def test_noise_is_a_share_of_rows_with_another_box_or_another_phrase():
    scenes = named_scenes(400, 1)
    clean, noisy = pseudo_rows(scenes, 1, noise=0.0), pseudo_rows(scenes, 1, noise=0.3)
    for source in clean:
        pairs = list(zip(clean[source], noisy[source], strict=True))
        kinds = [row.extra.get("corrupted", "") for _, row in pairs]
        assert not any(row.extra for row in clean[source])
        assert (
            abs(kinds.count("box") / len(kinds) - 0.3) < 0.06 and abs(kinds.count("phrase") / len(kinds) - 0.15) < 0.05
        )
        for (before, after), kind in zip(pairs, kinds, strict=True):
            assert (before.box != after.box) == (kind == "box") and (before.phrase != after.phrase) == (
                kind == "phrase"
            )
            assert kind != "box" or iou(np.array(before.box), np.array(after.box)) < 0.5
    assert corrupted(clean["relation"], {}, 1, 0.0) == clean["relation"]


def test_world_writes_what_other_commands_read(tmp_path, capsys):
    out = tmp_path / "my world, 1"
    assert main(["world", str(out), "--scenes", "20", "--seed", "2", "--pairs", "3"]) == 0
    human = read_box_file(out / "boxes.jsonl", photos=out / "photos").rows
    assert [*human] == human_rows(named_scenes(20, 2, 3)) and {r.split for r in human} == {"train", "val", "test"}
    assert sum(any(w in r.phrase for w in ("left", "right", "top", "bottom")) for r in human) > 4
    found_files = [str(out / f"{name}.jsonl") for name in ("detections", "triplets", "captions")]
    assert main(["pseudo-labels", *found_files, "--seed", "2", "--out", str(tmp_path / "rows.jsonl")]) == 0
    made = read_box_file(tmp_path / "rows.jsonl", photos=out / "photos").rows
    learned = [one for one in named_scenes(20, 2, 3) if one.split == "train"]
    want = pseudo_rows(learned, 2, noise=0.0)
    assert [(r.box, r.phrase) for r in made if r.source == "template"] == [(r.box, r.phrase) for r in want["template"]]
    first = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    assert main(["world", str(out), "--scenes", "20", "--seed", "2", "--pairs", "3"]) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == first
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    capsys.readouterr()
    assert (
        main(["world", str(other), "--scenes", "2"]) == 2
        and "must be a new or an empty folder" in capsys.readouterr().err
    )

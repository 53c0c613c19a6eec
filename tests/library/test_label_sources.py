"""Labels of photos with several classes each, of every source: what is read, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jclip.data.label_files import PhotoLabels, read_label_arrays
from jclip.data.multi_label_sets import LabelRules, read_coco, read_labels, read_nus_wide, read_voc
from jclip.errors import ConfigError, DataError
from jclip.prompts.class_sets import class_set

NAMES = ("cat", "dog", "traffic light")
VOC = class_set("voc2007")


def voc_folder(root, objects: dict[str, list[tuple[str, int | None]]]):
    """A devkit of these photos: class and `difficult` of each object, None where the file does not say it."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for photo, things in objects.items():
        found = "".join(
            f"<object><name>{name}</name>{'' if hard is None else f'<difficult>{hard}</difficult>'}<bndbox/></object>"
            for name, hard in things
        )
        (root / "Annotations" / f"{photo}.xml").write_text(f"<annotation><folder>VOC</folder>{found}</annotation>")
    (root / "ImageSets/Main/test.txt").write_text("".join(f"{photo}\n" for photo in objects))
    return root


THINGS = {"000007": [("dog", 0), ("dog", 1), ("person", 1)], "000002": [("tvmonitor", None)], "000004": []}


def test_voc_and_its_difficult_objects(tmp_path):
    root = voc_folder(tmp_path, THINGS)
    (root / "JPEGImages" / "000002.jpg").write_bytes(b"x")
    found = read_labels(str(root))
    assert found.classnames == VOC and found.photos == ("000007.jpg", "000002.jpg", "000004.jpg")
    wanted = np.zeros((3, 20), np.int8)
    wanted[0, VOC.index("dog")] = wanted[1, VOC.index("tvmonitor")] = 1
    assert np.array_equal(found.targets, wanted) and found.targets.dtype == np.int8
    assert found.rules == {"format": "VOC", "part": "test", "difficult": "as_negative", "only_difficult": 1}
    assert found.missing == tuple(str(root / "JPEGImages" / name) for name in ("000007.jpg", "000004.jpg"))
    ignoring = read_labels(f"{root}:test", rules=LabelRules("ignore")).targets
    wanted[0, VOC.index("person")] = -1
    assert np.array_equal(ignoring, wanted)
    other = read_labels(str(root), ("person", *(n for n in VOC if n != "person")))
    assert other.targets[0, 1 + [n for n in VOC if n != "person"].index("dog")] == 1


def test_what_voc_refuses(tmp_path):
    root = voc_folder(tmp_path, {"a": [("dgo", 0)]})
    with pytest.raises(DataError, match=r"a\.xml: classes must be among the 20 named, got 'dgo', did you mean 'dog'\?"):
        read_voc(root)
    annotation = root / "Annotations" / "a.xml"
    for text, message in (
        ("<annotation><object>", "is not valid XML"), ("<photo/>", "must be an <annotation>, got <photo>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', "a document type or entities"),
        ("<annotation><object><name>dog</name><difficult>2</difficult></object></annotation>", "0 or 1, got '2'"),
    ):  # fmt: skip
        annotation.write_text(text)
        with pytest.raises(DataError, match=message):
            read_voc(root)
    annotation.unlink()
    with pytest.raises(DataError, match=r"can't read .*a\.xml"):
        read_voc(root)
    (root / "ImageSets/Main/test.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="each photo must be listed once, got 'a' again"):
        read_voc(root)
    with pytest.raises(DataError, match=r"can't read .*val\.txt"):
        read_voc(root, "val")


def coco_file(path, **changes):
    values = {
        "images": [{"id": 9, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 5, "file_name": "c.jpg"}],
        "categories": [{"id": 10, "name": "traffic light"}, {"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"image_id": 3, "category_id": 10, "iscrowd": 0}, {"image_id": 3, "category_id": 10},
            {"image_id": 9, "category_id": 4, "iscrowd": 1}, {"image_id": 9, "category_id": 1, "iscrowd": 0},
        ],
    } | changes  # fmt: skip
    path.write_text(json.dumps(values))
    return path


def test_coco_keeps_all_images_and_says_its_rule_of_crowds(tmp_path):
    path = coco_file(tmp_path / "instances.json")
    found = read_labels(str(path), root="photos")
    assert (
        found.classnames == NAMES and found.photos == ("b.jpg", "a.jpg", "c.jpg") and found.paths[0] == "photos/b.jpg"
    )
    assert found.targets.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert found.rules == {"format": "COCO instances", "crowd": "count", "crowd_boxes": 1, "without_objects": 1}
    assert read_coco(path, crowd="skip").targets.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert read_coco(path, ("Traffic_Light", "dog", "cat")).targets.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("changes, message", [
    ({"images": None}, 'got no "images"'),
    ({"images": [{"id": "9", "file_name": "b.jpg"}]}, "images, entry 0: must have id, file_name"),
    ({"images": [{"id": 9, "file_name": "b.jpg"}] * 2}, "image must have an id of its own, got 1 ids of 2"),
    ({"images": [{"id": 9, "file_name": "b"}, {"id": 3, "file_name": "b"}], "annotations": []}, "must be listed once, got 'b'"),
    ({"annotations": [{"image_id": 77, "category_id": 1}]}, "entry 0: must be of a listed image and category, got image 77"),
    ({"annotations": [{"image_id": 9, "category_id": 2}]}, "category 2"),
    ({"annotations": [{"image_id": True, "category_id": 1}]}, "must have image_id, category_id"),
])  # fmt: skip
def test_what_coco_refuses(changes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_coco(coco_file(tmp_path / "x.json", **changes))


def test_categories_that_are_not_named(tmp_path):
    with pytest.raises(DataError, match="among the 3 named, got 'traffic light', did you mean 'trafic light'"):
        read_coco(coco_file(tmp_path / "x.json"), ("cat", "dog", "trafic light"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match='got no "images"'):
        read_labels(str(tmp_path / "list.json"))


def nus_folder(root):
    for folder in ("ConceptsList", "ImageList", "Groundtruth/TrainTestLabels", "Groundtruth/AllLabels"):
        (root / folder).mkdir(parents=True)
    (root / "ConceptsList/Concepts81.txt").write_text("airport\nanimal\n")
    (root / "ImageList/TestImagelist.txt").write_text("actor\\0001_21.jpg \r\nzoo\\0002_7.jpg\r\n")
    (root / "ImageList/Imagelist.txt").write_text("actor\\0001_21.jpg\nzoo\\0002_7.jpg\nzoo\\0003_9.jpg\n")
    for name, own, whole in (("airport", "1\n0\n", "1\n0\n1\n"), ("animal", "0\n1\n", "0\n1\n1\n")):
        (root / f"Groundtruth/TrainTestLabels/Labels_{name}_Test.txt").write_text(own)
        (root / f"Groundtruth/AllLabels/Labels_{name}.txt").write_text(whole)
    return root


def test_nus_wide_lists(tmp_path):
    root = nus_folder(tmp_path)
    found = read_labels(str(root))
    assert found.classnames == ("airport", "animal") and found.photos == ("actor/0001_21.jpg", "zoo/0002_7.jpg")
    assert found.targets.tolist() == [[1, 0], [0, 1]] and len(found.missing) == 2
    assert read_labels(f"{root}:all", ("animal", "airport")).targets.tolist() == [[0, 1], [1, 0], [1, 1]]
    with pytest.raises(DataError, match="one of Train, Test, All, got 'Val'"):
        read_nus_wide(root, "val")
    with pytest.raises(DataError, match="must have the file TrainImagelist.txt, in it or in ConceptsList"):
        read_nus_wide(root, "Train")
    labels = root / "Groundtruth/TrainTestLabels/Labels_animal_Test.txt"
    for text, message in (
        ("0\n", "a line for each of the 2 photos of TestImagelist.txt, got 1"), ("0\n2\n", "0 or 1 a line, got '2'"),
    ):  # fmt: skip
        labels.write_text(text)
        with pytest.raises(DataError, match=message):
            read_nus_wide(root)


def test_label_lists(tmp_path):
    """TagCLIP's lines: names that are numbers, photos without labels, blanks in names, commas."""
    path = tmp_path / "list.txt"
    path.write_text("000000000139 0 2\n000000000285\nmy photo.jpg 1\n2007_000033 2\nb.jpg,0,1\nc 7.jpg\n")
    found = read_labels(str(path), NAMES, root="/x")
    assert found.photos == ("000000000139", "000000000285", "my photo.jpg", "2007_000033", "b.jpg", "c 7.jpg")
    assert found.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(ConfigError, match="name the classes with --classes"):
        read_labels(str(path))
    for text, message in (
        ("a.jpg 3\n", "line 1: label 3 is beyond the 3 classes"), ("a.jpg 1\na.jpg 2\n", "'a.jpg' again"),
        ("a.jpg cat\n", "labels must be integers from 0, got 'cat'"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_labels(str(path), NAMES)
    with pytest.raises(DataError, match="has no parts, got 'test'"):
        read_labels(f"{path}:test", NAMES)


def test_tables(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("photo,labels,unknown\na.jpg,cat; Dog,traffic_light\nb.jpg,,\n")
    assert read_labels(str(path), NAMES).targets.tolist() == [[1, 1, -1], [0, 0, 0]]
    path.write_text("photo,labels\na.jpg,cat|trafic light\n")
    with pytest.raises(DataError, match="line 2: .*got 'trafic light', did you mean 'traffic light'"):
        read_labels(str(path), NAMES)
    with pytest.raises(ConfigError, match="labels by name: say all classes"):
        read_labels(str(path))
    path.write_text("image,dog,cat\nb.jpg,1,0\na.jpg,-1,\n")
    found = read_labels(str(path))
    assert found.classnames == ("dog", "cat") and found.photos == ("b.jpg", "a.jpg")
    assert found.targets.tolist() == [[1, 0], [-1, 0]]
    assert read_labels(str(path), ("cat", "dog")).targets.tolist() == [[0, 1], [0, -1]]
    with pytest.raises(DataError, match="a column for each class, got none for traffic light"):
        read_labels(str(path), NAMES)
    for text, message in (
        ("photo,dog\na.jpg,yes\n", "line 2, dog: must be 1, 0 or -1 .*got 'yes'"),
        ("dog,cat\n1,0\n", "must have a column photo or"),
        ("photo,dog,Dog\na,1,1\n", "one column, got two"), ("photo,dog\na,1\na,1\n", "'a' again"),
        ("photo,dog\n", "at least one photo"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_labels(str(path))


def test_json_lines(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"photo": "a.jpg", "labels": ["dog"], "unknown": ["cat"], "by": 3}\n\n{"image": "b.jpg", "labels": []}\n'
    )
    found = read_labels(str(path), NAMES)
    assert found.photos == ("a.jpg", "b.jpg") and found.targets.tolist() == [[-1, 1, 0], [0, 0, 0]]
    for text, message in (
        ('{"photo": "a.jpg"}', '"labels" must be a list of class names, got None'), ('["a.jpg"]', 'an object with "photo"'),
        ('{"photo": "a.jpg", "labels": ["cow"]}', "line 1: classes must be among the 3 named, got 'cow'"),
        ('{"photo": "a.jpg", "labels": "cat"}', "must be a list"), ("{", "is not valid JSON"),
    ):  # fmt: skip
        path.write_text(text + "\n")
        with pytest.raises(DataError, match=message):
            read_labels(str(path), NAMES)


def test_arrays_and_what_their_values_mean(tmp_path, capsys):
    path = tmp_path / "x.npz"
    np.savez(path, targets=np.array([[1, 0, -1], [-1, -1, 1]], np.int8), images=np.array(["a", "b"]))
    assert read_labels(str(path), NAMES).targets.tolist() == [[1, 0, -1], [-1, -1, 1]]
    assert "50%" not in capsys.readouterr().err
    for difficult, wanted in (("as_negative", [[1, 0, 0], [0, 0, 1]]), ("ignore", [[1, -1, 0], [0, 0, 1]])):
        found = read_labels(f"{path}:targets", NAMES, LabelRules(difficult, values="voc"))
        assert found.targets.tolist() == wanted and found.photos == ("a", "b")
    np.savez(path, targets=np.full((2, 2), -1) + np.eye(2, dtype=int) * 2, classes=np.array(["dog", "cat"]))
    assert read_labels(str(path), ("cat", "dog")).targets.tolist() == [[-1, 1], [1, -1]]
    np.savez(path, y=np.full((9, 2), -1, np.int8))
    read_label_arrays(path, "y")
    assert "100% of the labels are -1, unknown; if that means absent, say --label-values voc" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"must hold an array 'targets' \(it has y\)"):
        read_labels(str(path))
    with pytest.raises(DataError, match="a column for each of 3 classes, got 2"):
        read_labels(f"{path}:y", NAMES)
    np.savez(path, targets=np.array([[2, 0]]))
    with pytest.raises(DataError, match="must be labels .* of 1, 0 and -1"):
        read_labels(str(path))


def test_a_folder_per_class(photo_folder):
    found = read_labels(str(photo_folder))
    assert len(found) == 18 and found.targets.sum(axis=0).tolist() == [6, 6, 6] and not found.missing
    turned = read_labels(str(photo_folder), found.classnames[::-1])
    assert np.array_equal(turned.targets, found.targets[:, ::-1])


def test_the_hash_is_of_names_and_labels():
    found = PhotoLabels(("cat", "dog"), ("a", "b"), np.array([[1, 0], [0, -1]], np.int8), "/x")
    assert found.sha256() == PhotoLabels(("cat", "dog"), ("a", "b"), np.array([[1, 0], [0, -1]], np.int8)).sha256()
    for other in (found.take([1, 0]), PhotoLabels(("cat", "cow"), found.photos, found.targets),
                  PhotoLabels(found.classnames, found.photos, abs(found.targets))):  # fmt: skip
        assert other.sha256() != found.sha256()
    assert found.split.paths == ("/x/a", "/x/b") and found.split.labels.tolist() == [-1, -1]

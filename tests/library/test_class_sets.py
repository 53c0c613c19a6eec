"""Class sets hold each class of a data set once, in the order of its labels. Needs no Jittor."""

from __future__ import annotations

import hashlib

import pytest

from jclip.errors import UnknownName
from jclip.prompts.class_sets import class_set, class_sets

CLASSES = {  # number of classes, SHA-256 of their names in order
    "caltech101": (102, "e0ecbf33d0f07158"),
    "caltech101_vtab": (102, "8cd73f5d8e14e75f"),
    "cars": (196, "93d089469409bbd0"),
    "cifar10": (10, "bb3914949cecedee"),
    "cifar100": (100, "60ae3a3ac1355fcf"),
    "clevr_closest_object_distance": (6, "747824b2730ecf44"),
    "clevr_count_all": (8, "d949e12b895f424a"),
    "coco": (80, "d7654b2610157284"),
    "country211": (211, "027b30d283f3a153"),
    "diabetic_retinopathy": (5, "4c2896af07cd8e30"),
    "dmlab": (6, "e16a64c8859bb2bb"),
    "dtd": (47, "681d23b9cd3c2ede"),
    "eurosat": (10, "ee2e41b9973e7206"),
    "fer2013": (7, "0fece1ddf1a3ebf7"),
    "fgvc_aircraft": (100, "e1c9e72060e63d52"),
    "flowers": (102, "5429e1ef6e0e5aa3"),
    "food101": (101, "9c0eeb5a368baacb"),
    "gtsrb": (43, "953036bc5aedbe6b"),
    "imagenet1k": (1000, "571ae1c583b4be7d"),
    "kitti_closest_vehicle_distance": (4, "ecc16a4f92ee9fb1"),
    "mnist": (10, "29dd21f55e4611d4"),
    "nuswide": (81, "454b648677332111"),
    "pcam": (2, "27352df7ede1fd87"),
    "pets": (37, "50be1443390f8a02"),
    "renderedsst2": (2, "2e61aa7558046c2c"),
    "resisc45": (45, "3c2177013901f0ef"),
    "stl10": (10, "08b234ce7b11dbd3"),
    "svhn": (10, "dfab20279a085795"),
    "voc2007": (20, "7d877f185c807bc5"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_sets_as_published(name):
    names = class_set(name)
    assert (len(names), hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]) == CLASSES[name]
    assert all(isinstance(n, str) and n == n.strip() and "_" not in n for n in names)
    again = sorted({n for n in names if names.count(n) > 1})
    assert again == (["missile", "sunglasses"] if name == "imagenet1k" else [])


def test_all_sets():
    assert class_sets() == sorted(CLASSES)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "dtd", "food101", "resisc45", "stl10", "voc2007", "pets"])
def test_labels_in_the_order_of_folders(name):
    folders = [n.replace(" ", "_").lower() for n in class_set(name)]
    assert folders == sorted(folders)


def test_labels_in_the_order_of_their_lists():
    assert list(class_set("fgvc_aircraft")) == sorted(class_set("fgvc_aircraft"))
    makers = [n.split()[0] for n in class_set("cars")]
    assert makers == sorted(makers)
    assert sorted(class_set("caltech101_vtab")) == sorted(class_set("caltech101"))
    assert class_set("coco")[::79] == ("person", "toothbrush") and class_set("svhn")[9] == "nine"
    assert class_set("imagenet1k")[207] == "Golden Retriever" and class_set("imagenet1k")[999] == "toilet paper"


def test_imagenet_as_open_clip_has_it(open_clip_lists):
    assert class_set("imagenet1k") == tuple(open_clip_lists.IMAGENET_CLASSNAMES)


def test_unknown_names():
    with pytest.raises(UnknownName, match="unknown class set 'food', did you mean 'food101'"):
        class_set("food")
    with pytest.raises(UnknownName, match="did you mean 'cifar100'"):
        class_set("CIFAR-100")
    with pytest.raises(UnknownName, match="unknown class set '../prompts/simple'"):
        class_set("../prompts/simple")

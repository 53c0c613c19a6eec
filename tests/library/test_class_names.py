"""Names of classes as users give them, and data whose classes get other names."""

from __future__ import annotations

import json

import pytest

from jclip.class_sets import class_set
from jclip.data.class_names import ClassNames, read_class_names
from jclip.errors import DataError


def test_names_come_from_a_list_a_set_or_a_file(tmp_path):
    assert read_class_names(" a cat, dog ,").names == ("a cat", "dog")
    assert read_class_names("cifar10").names == class_set("cifar10")
    (tmp_path / "names.txt").write_text("﻿dog 1\nblack cat 0\n", encoding="utf-8")
    assert read_class_names(str(tmp_path / "names.txt")).names == ("black cat", "dog")
    (tmp_path / "names.json").write_text('["x", "y z"]')
    assert read_class_names(str(tmp_path / "names.json")).names == ("x", "y z")
    assert len(read_class_names("imagenet1k").names) == 1000  # though two of its names stand there twice


def test_categories_come_in_the_order_of_their_ids_with_synonyms(tmp_path):
    entries = [
        {"id": 7, "name": "crayfish", "synonyms": ["crayfish", "crawfish"]},
        {"id": 3, "name": "spray_can", "synonyms": ["spray_can", "aerosol_can"]},
    ]
    for name, values in (("list", entries), ("coco", {"images": [], "categories": entries})):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
        found = read_class_names(str(tmp_path / f"{name}.json"))
        assert found.names == ("spray_can", "crayfish")
        assert found.places(["Crawfish", "aerosol can", "crayfish"]).tolist() == [1, 0, 1]


def test_places_by_name_before_places_by_order():
    names = ClassNames(("dog", "black cat", "owl"))
    assert names.places(["owl", "Black_Cat"]).tolist() == [2, 1]
    assert names.places(["owl", "dog", "black  cat"]).tolist() == [2, 0, 1]
    assert names.places(["n01", "n02", "n03"]).tolist() == [0, 1, 2]  # equally many, none known: one after the other
    with pytest.raises(DataError, match="2 classes, 1 of which are none of the 3 .*'owls', did you mean 'owl'"):
        names.places(["dog", "owls"])


def test_a_name_that_is_also_a_synonym_is_itself():
    assert ClassNames(("a", "b"), {"b": 0, "c": 0}).places(["b", "c"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (" , ", "no class names given"),
        ("a,b,a", "class names stand more than once: a"),
        ("classes.txt", "no such file of class names"),
    ],
)
def test_wrong_names(given, message):
    with pytest.raises(DataError, match=message):
        read_class_names(given)

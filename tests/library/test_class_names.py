"""Names of classes as users give them, and data whose classes get other names."""

from __future__ import annotations

import json

import pytest

from jclip.data.class_names import ClassNames, read_class_names
from jclip.errors import DataError
from jclip.prompts.class_sets import class_set


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


def test_one_misspelt_name_is_no_reason_to_go_by_order(capsys):
    names = ClassNames(("dog", "black cat", "owl"))
    with pytest.raises(
        DataError, match="3 classes, 1 of which are none of the 3 .*'blak_cat', did you mean 'black cat'"
    ):
        names.places(["owl", "blak_cat", "dog"])
    assert capsys.readouterr().err == ""


def test_order_and_odd_spellings_are_reported_in_one_line(capsys):
    names = ClassNames(("dog", "café noir", "owl"), {"strigiform": 2})
    names.places(["n01", "n02", "n03"])
    assert capsys.readouterr().err.endswith("taken in order (n01 = dog, n02 = café noir, n03 = owl)\n")
    assert names.places((), 3).tolist() == [0, 1, 2] and "0 = dog" in capsys.readouterr().err
    with pytest.raises(DataError, match="2 classes, without names"):
        names.places((), 2)
    assert names.places(["owl", "cafe\u0301_noir"]).tolist() == [2, 1]
    assert "1 class names differ in Unicode form" in capsys.readouterr().err
    assert names.places(["ｏｗｌ", "strigiform", "dog"]).tolist() == [2, 2, 0]
    assert "are other names of one (first: 'ｏｗｌ' and 'strigiform')" in capsys.readouterr().err
    assert names.places(["owl", "dog", "café_noir"]).tolist() == [2, 0, 1] and capsys.readouterr().err == ""


def test_a_name_that_is_also_a_synonym_is_itself():
    assert ClassNames(("a", "b"), {"b": 0, "c": 0}).places(["b", "c"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (" , ", "no class names given"),
        ("a,b,a", r"class names stand more than once: a \(name 1 and name 3\)"),
        ("owl,Ｏｗl", "stand more than once: owl .*but for Unicode form"),
        ("black cat,black_cat", "stand more than once: black cat .*but for blanks"),
        ("classes.txt", "no such file of class names"),
        ("/dev/null", "it is not a regular file"),
        ("imagnet1k", "got one .imagnet1k., .*did you mean the set 'imagenet1k'.*add a second name"),
        ("cat dog owl", "got one .cat dog owl., .*separate names by commas, or add a second name"),
        ("猫，狗，马", "got one .猫，狗，马., .*separate names by commas"),
        ("cat", "classes must be at least two, got one .cat., .*add a second name"),
        ("x" * 5000, "classes must be at least two, got one"),
    ],
)
def test_wrong_names(given, message):
    with pytest.raises(DataError, match=message):
        read_class_names(given)


FILES = {
    "a.txt": "cat\nblack dog\n",
    "b.txt": "0 cat\n1 black dog\n",
    "c.txt": "1: black dog\n0: cat\n",
    "d.txt": "cat 0\nblack dog\t1\n",
    "e.txt": "1,cat\n2,black dog\n",
    "f.txt": "id name\n0 cat\n1 black dog\n",
    "g.txt": "1. cat\r2. black  dog\r",
    "i.txt": "n02124075 cat\nn02084071 black dog\n",
    "j.txt": "'cat',\n'black dog'\n",
    "h.txt": "classes\ncat\nblack dog",
    "a.csv": "cat\nblack dog\n",
    "b.csv": "id,name\n1,black dog\n0,cat\n",
    "c.csv": "name;wnid;label\ncat;n02;0\nblack dog;n01;1\n",
    "d.csv": "0,cat\n1,black dog\n",
    "e.tsv": "cat\t0\nblack dog\t1\n",
    "f.csv": '"name"\n"cat"\n"black dog"\n',
    "a.json": '{"0": "cat", "1": "black dog"}',
    "b.json": '{"black dog": 1, "cat": 0}',
    "c.json": '["cat", "black dog"]',
    "d.json": '[{"name": "black dog", "id": 9}, {"name": "cat", "id": 4}]',
    "e.json": '{"_name_or_path": "x", "id2label": {"1": "black dog", "0": "cat"}, "label2id": {"cat": 0}}',
    "f.json": '{"0": ["n01", "cat"], "1": ["n02", "black dog"]}',
    "a.yaml": "path: ../x\ntrain: a\nnc: 2\nnames: [cat, black dog]\n",
    "b.yaml": "names:\n  0: cat\n  1: black dog\ndownload: |\n  import os\n",
}


@pytest.mark.parametrize("file", FILES)
def test_forms_of_class_lists(tmp_path, file):
    (tmp_path / file).write_text(FILES[file])
    assert read_class_names(str(tmp_path / file)).names == ("cat", "black dog")


def test_numbers_that_belong_to_names_and_names_that_are_numbers(tmp_path):
    for number, names in enumerate(
        (["Boeing 747", "Boeing 737"], ["0", "1", "2"], ["level 0", "level 1"], ["no", "yes"])
    ):
        (tmp_path / f"{number}.txt").write_text("\n".join(names))
        (tmp_path / f"{number}.yaml").write_text("names: [" + ", ".join(names) + "]")
        for suffix in ("txt", "yaml"):
            assert read_class_names(str(tmp_path / f"{number}.{suffix}")).names == tuple(names)
    (tmp_path / "n.json").write_text("[0, 1]")
    assert read_class_names(str(tmp_path / "n.json")).names == ("0", "1")


def test_a_line_that_looks_like_a_folder_and_its_class_is_a_name_where_others_do_not(tmp_path):
    (tmp_path / "c.txt").write_text("cat\nn02084071 black dog\nowl\n")
    assert read_class_names(str(tmp_path / "c.txt")).names == ("cat", "n02084071 black dog", "owl")


def test_folders_of_a_list_are_other_names_of_its_classes(tmp_path):
    (tmp_path / "c.csv").write_text("wnid,name\nn02,cat\nn01,dog\n")
    assert read_class_names(str(tmp_path / "c.csv")).places(["n01", "n02"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.txt", "猫、狗、马\n", "must have a class name per line, got one line with commas"),
        ("a.txt", "a, b, c\n", "must have a class name per line, got one line with commas"),
        (
            "a.txt",
            "cat 0\ndog 0\nowl 1\n",
            r"labels must be 0 to 2, each once, got 0, 0, 1 \(.*line 2: 0 stands there again",
        ),
        ("a.txt", "cat 0\ndog 2\n", "labels must be 0 to 1, each once, got 0, 2"),
        ("a.txt", "cat 0\ndog 1\ncat 2\n", "stand more than once: cat .line 1 and line 3.: name each class once"),
        ("a.txt", "cat\nCat\n", "stand more than once: cat .line 1 and line 2, 'Cat' but for case"),
        ("a.txt", "cat 0\ndog 1\nowl -1\n", "line 3: must have `name label` lines, got 'owl -1'"),
        ("a.txt", "# my classes\ncat\ndog\n", "line 1: class lists have no comments, got '# my classes'"),
        ("a.txt", "cat\n\x1b[2Jdog\n", r"line 2: class names must be of letters, digits and signs, got '\\x1b'"),
        ("a.txt", "cat\n" + "x" * 2001, "line 2: must be a class name of 1 to 2,000 characters, got one of 2,001"),
        ("a.txt", "\n\n", "is empty"),
        ("a.csv", "a,b,c\n", "must have a class per line, got one line"),
        ("a.csv", "id,name\n0,cat\n1\n", "line 3: must have 2 fields as other lines have, got 1"),
        ("a.csv", "id,name\n0,cat\n-1,dog\n", "line 3: id must be an integer from 0, got '-1'"),
        ("a.csv", "cat,x\ndog,y\n", "must have a column of names and at most one of numbers, got 2 columns"),
        ("a.csv", "id,name\n0,cat\n0,dog\n", "labels must be 0 to 1, each once"),
        ("a.json", '{"0": "cat", "2": "dog"}', "labels must be 0 to 1, each once, got 0, 2"),
        ("a.json", '{"cat": 0, "dog": 1.0}', "must be a list of names.*got 1.0 for 'dog'"),
        ("a.json", '{"cat": true, "dog": 1}', "got true for 'cat'"),
        ("a.json", '{"cat": ["a cat"], "dog": []}', "sentences by class are a prompts file"),
        ("a.json", '["cat", null]', "entry 1: must be a class name in quotation marks, got null"),
        ("a.json", '["cat", 1.5]', "entry 1: .*got 1.5"),
        ("a.json", "3", "must be a list of names.*got 3"),
        ("a.json", "{}", "no class names given"),
        (
            "a.json",
            '[{"name": "cat", "id": 1}, {"name": "dog", "id": 1}]',
            "entry 1: ids must be unique, got 1 also in",
        ),
        ("a.json", '[{"name": "cat", "id": 1}, {"name": "dog"}]', "an id in every entry, or in none"),
        ("a.json", '[{"name": "cat", "id": "x"}]', "id must be an integer"),
        ("a.json", '[{"title": "cat"}]', "entry 0: must have a name"),
        ("a.yaml", "names: [cat, dog]\nnc: 3", "nc must be the number of names, 2, got 3"),
        ("a.yaml", "names: {0: cat, 0: dog}", "key '0' stands more than once"),
        ("a.yaml", "a: &a [x]\nnames: *a", "a list of classes has no aliases"),
        ("a.yaml", "[" * 5000, "is not valid YAML"),
        ("a.yaml", "names: !!python/object/apply:os.system [ls]", "got one .ls."),
    ],
)
def test_class_lists_that_are_refused(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_names(str(tmp_path / file))

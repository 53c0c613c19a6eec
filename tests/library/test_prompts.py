"""Prompt sets are those that were published, and class names stand in them as they were meant to. Needs no Jittor."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from jclip.errors import DataError, UnknownName, printable
from jclip.prompts.templates import (
    class_prompts,
    fill,
    load_templates,
    prompt_sets,
    prompts_of,
    repeated,
    warn_repeated,
    without_sentences,
)

AJOU = ["Buildings", "Forests", "Glacier", "Mountains", "Sea", "Street"]
BENCHMARKS = {  # number of templates, SHA-256 of them sorted: as CLIP_benchmark 1.6.2 has them
    "caltech101": (34, "54cd03ef17d79733"),
    "cars": (8, "3bc69e1e93e21849"),
    "cifar10": (18, "97021691e41204ee"),
    "cifar100": (18, "97021691e41204ee"),
    "clevr_closest_object_distance": (1, "51620f3652b278b7"),
    "clevr_count_all": (1, "2738eec6258c50ab"),
    "country211": (5, "35591ca29b76070e"),
    "diabetic_retinopathy": (1, "01a722fcde0d60a0"),
    "dmlab": (1, "5678e420e37eb1e7"),
    "dsprites_label_orientation": (4, "68d2d35f41d07a97"),
    "dsprites_label_x_position": (1, "a4391d71516e8ee9"),
    "dtd": (8, "a289f18f2a9814c4"),
    "eurosat": (3, "46db4434bcbfda77"),
    "fer2013": (6, "66c59f1645eddd36"),
    "fgvc_aircraft": (2, "d5ef16cd2372eda4"),
    "flowers": (1, "15a4cd24ceee766a"),
    "food101": (1, "ed37b8edb44968e5"),
    "gtsrb": (3, "1cb1dc1bf950f054"),
    "imagenet1k": (80, "6861574a25b4ae6d"),
    "kitti_closest_vehicle_distance": (1, "5678e420e37eb1e7"),
    "mnist": (1, "1b9b98b6c7bf8e9d"),
    "pcam": (2, "6bc4924b0f83d172"),
    "pets": (1, "ee5e9e3f42e3ca57"),
    "renderedsst2": (1, "1303d6e1f4583c7d"),
    "resisc45": (4, "53a56595ea1b2d7c"),
    "smallnorb_label_azimuth": (4, "68d2d35f41d07a97"),
    "smallnorb_label_elevation": (4, "68d2d35f41d07a97"),
    "stl10": (2, "a771a976d1c71895"),
    "sun397": (2, "a771a976d1c71895"),
    "svhn": (6, "3913b4279908dcde"),
    "voc2007": (1, "ef16f614aadbaf38"),
    "voc2007_multilabel": (1, "ef16f614aadbaf38"),
}


def digest(templates) -> str:
    lines = sorted(t.replace("{}", "{c}") for t in templates)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def eighty() -> set[str]:
    """OpenAI's templates from the words that they are made of."""
    photos = (
        "many|the hard to see|a hard to see|a clean|a dirty|my|the cool|the dirty|the|one|a|the clean|a large|a nice"
    )
    photos += "|a weird|the nice|the small|the weird|the large|a cool|a small"
    taken = "bad|low resolution|cropped|bright|dark|close-up|black and white|pixelated|jpeg corrupted|blurry|good"
    made = "sculpture|rendering|tattoo|drawing|painting|doodle|sketch|rendition"
    like, both = "embroidered|plastic|origami|toy|cartoon|plushie", ("a", "the")
    lines = [f"a photo of {which} {{c}}." for which in photos.split("|")]
    lines += [f"a {how} photo of {which} {{c}}." for how, which in product(taken.split("|"), both)]
    lines += [f"a {what} of {which} {{c}}." for what, which in product(made.split("|"), both)]
    lines += [f"{what} of {which} {{c}}." for what, which in product(("graffiti", "art"), both)]
    lines += [f"itap of {which} {{c}}." for which in (*both, "my")]
    lines += [f"{which} {how} {{c}}." for which, how in product(both, like.split("|"))]
    return {*lines, *(f"{which} {{c}} in a video game." for which in both)}


def test_prompt_sets_as_published():
    papers = {
        "ajou52",
        "chinese",
        "jittor_challenge",
        "jittor_challenge16",
        "openai7",
        "openai80",
        "promptsrc60",
        "simple",
        "tagclip85",
    }
    assert prompt_sets() == sorted(papers | BENCHMARKS.keys())
    templates = load_templates("openai80")
    assert len(set(templates)) == len(templates) == 80
    assert {t.replace("{}", "{c}") for t in templates} == eighty()
    assert len(load_templates("promptsrc60")) == 60 and set(load_templates("promptsrc60")) < set(templates)
    assert len(set(load_templates("jittor_challenge16")) & set(templates)) == 16
    assert len(load_templates("openai7")) == 7 and load_templates("simple") == ("a photo of a {}.",)
    assert load_templates("{} texture.") == ("{} texture.",)
    assert fill("a {c}.", "cat") == fill("a {}.", "cat") == "a cat."


@pytest.mark.parametrize("name", BENCHMARKS)
def test_sets_of_the_benchmarks(name):
    templates = load_templates(name)
    assert (len(set(templates)), digest(templates)) == BENCHMARKS[name]
    assert len(templates) == len(set(templates))


def test_eighty_as_open_clip_has_them(open_clip_lists):
    assert {template("{c}") for template in open_clip_lists.OPENAI_IMAGENET_TEMPLATES} == eighty()


def test_names_of_sets_cost_no_time():
    heavy = "{'numpy', 'inflect', 'jittor', 'typeguard'}"
    code = f"import sys, jclip.prompts.templates as p\np.prompt_sets()\nbad = {heavy} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent)


def test_sets_of_the_benchmarks_like_any_other():
    assert load_templates("cars[3]") == ("i love my {c}!",)
    assert load_templates("imagenet1k[79]") == (load_templates("openai80")[79],)
    assert class_prompts(["sea_ice"], load_templates("simple+resisc45")) == [
        [
            "a photo of a sea ice.",
            "a sattelite image of sea ice",  # spelled as it was published
            "an aerial view of sea ice",
            "a sattelite photo of sea ice",
            "sea ice from above",
        ]
    ]
    with pytest.raises(UnknownName, match="did you mean 'eurosat'"):
        load_templates("EuroSAT")


def test_ajou52(capfd):
    prompts = prompts_of(AJOU, "ajou52")
    assert [len(set(of_class)) for of_class in prompts] == [52] * 6 and len(set().union(*prompts)) == 312
    assert prompts[4][:4] == ["Sea", "a photo of a Sea", "a image of a Sea", "art of the Sea"]
    assert prompts[4][49:] == ["A picture of water", "A picture of the ocean", "A scenic view of the sea and waves"]
    own, of_openai = load_templates("ajou52").templates[:8], load_templates("ajou52").templates[8:]
    assert len(set(of_openai)) == 41 and set(of_openai) < eighty() and not eighty() & set(own)
    assert capfd.readouterr() == ("", "")


def test_classes_without_sentences_are_reported(capfd):
    names = ["sea", "desert", "STREET", "jungle", "lake", "tundra", "cave", "reef"]
    prompts = prompts_of(names, "simple+ajou52")
    assert [len(of_class) for of_class in prompts] == [53, 50, 53, 50, 50, 50, 50, 50]
    assert prompts[2][-1] == "An urban street with buildings and cars" and prompts[2][0] == "a photo of a STREET."
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1
    assert (
        "classes without sentences in the prompt set: 6 of 8 (desert, jungle, lake, tundra, cave, …): the temp" in err
    )
    assert without_sentences(["Sea"], load_templates("ajou52")) == without_sentences(names, ("a {}",)) == []


def test_the_layout_with_both_is_a_users_too(tmp_path):
    path = tmp_path / "both.json"
    both = {"templates": ["a {}.", "{c}!"], "class_sentences": {"Hot dog": "a bun", "cat": ["it purrs", "a {c}"]}}
    path.write_text(json.dumps(both))
    assert class_prompts(["cat", "hot_dog", "ox"], load_templates(str(path))) == [
        ["a cat.", "cat!", "it purrs", "a {c}"],
        ["a hot dog.", "hot dog!", "a bun"],
        ["a ox.", "ox!"],
    ]
    assert load_templates(f"{path}[1]") == ("{c}!",)
    with pytest.raises(DataError, match=r"both.json\[2\]' names none of its 2 templates"):
        load_templates(f"{path}[2]")
    path.write_text('{"templates": ["a {}."]}')
    assert class_prompts(["ox"], load_templates(str(path))) == [["a ox."]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"class_sentences": {"a": ["b"]}}',
            r'must be {"templates": \[...\], "class_sentences": .*, got class_sentences',
        ),
        ('{"templates": ["{}"], "class_sentences": {}, "note": 1}', "got templates, class_sentences, note"),
        ('{"templates": ["{}"], "class_sentences": ["a"]}', "got templates, class_sentences"),
        ('{"templates": ["a cat"], "class_sentences": {}}', "'a cat' has no place for the class name"),
        ('{"templates": "{}", "class_sentences": {}}', "must be a list of templates, got '{}'"),
        ("7", "must be a list of templates, got 7"),
        ("[7]", "7 has no place for the class name"),
    ],
)
def test_files_that_are_no_set(tmp_path, text, message):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_templates(str(tmp_path / "mine.json"))


def test_prompts_of_classes(tmp_path):
    assert class_prompts(["hot_dog", "猫"], ("a {}.", "the {c}.")) == [
        ["a hot dog.", "the hot dog."],
        ["a 猫.", "the 猫."],
    ]
    (tmp_path / "cupl.json").write_text('{"hot_dog": ["long bun", "sausage"], "cat": "purrs", "Cat": "is a name"}')
    assert class_prompts(["cat", "hot_dog", "Cat", "Hot dog"], load_templates(str(tmp_path / "cupl.json"))) == [
        ["purrs"],
        ["long bun", "sausage"],
        ["is a name"],
        ["long bun", "sausage"],
    ]
    with pytest.raises(DataError, match="no sentences are given for class 'hot_dgo', did you mean 'hot_dog'"):
        class_prompts(["cat", "hot_dgo"], load_templates(str(tmp_path / "cupl.json")))
    (tmp_path / "bad.txt").write_text("a photo of {}.\na photo.\n")
    with pytest.raises(DataError, match="'a photo.' has no place for the class name"):
        load_templates(str(tmp_path / "bad.txt"))


FORMS = (  # of the challenge's entrants, for the name Polar_bear and for Bear
    ("Polar_bear", "Bear"),
    ("Polar_bear , 10", "Bear , 4"),
    ("A photo of a Polar_bear", "A photo of a Bear"),
    ("A photo of a Polar_bear with 10", "A photo of a Bear with 4"),
    ("A photo of Polar_bear and the length of the prompt is 10", "A photo of Bear and the length of the prompt is 4"),
    ("A photo of Polar_bear and the length of the Polar_bear is 10", "A photo of Bear and the length of the Bear is 4"),
    ("A photo of Polar bear and the length of the name is 10", "A photo of Bear and the length of the name is 4"),
    ("A photo of Polar_bear with 10 and _ in Polar_bear", "A photo of Bear with 4 and _ not in Bear"),
    ("A photo of Polar_bear, Polar_bear, Polar_bear", "A photo of Bear, Bear, Bear"),
)


@pytest.mark.parametrize("number", range(9))
def test_the_forms_of_the_challenge(number):
    assert class_prompts(["Polar_bear", "Bear"], load_templates(f"jittor_challenge[{number}]")) == [
        [form] for form in FORMS[number]
    ]
    together = class_prompts(["Polar_bear", "Bear"], load_templates("jittor_challenge"))
    assert [prompts[number] for prompts in together] == list(FORMS[number])


def test_places_of_a_template():
    assert fill("{} {c} {raw} {length} {in}", "{raw}_1") == "{raw} 1 {raw} 1 {raw}_1 7 in"  # names are not filled in
    assert load_templates("a {raw}") == ("a {raw}",)
    joined = class_prompts(["a_b"], load_templates("simple+jittor_challenge[2]"))
    assert joined == [["a photo of a a b.", "A photo of a a_b"]]
    with pytest.raises(DataError, match=r"'jittor_challenge\[9\]' names none of its 9 templates, counted from 0"):
        load_templates("jittor_challenge[9]")
    with pytest.raises(UnknownName, match="did you mean 'jittor_challenge'"):
        load_templates("jittor_chalenge[4]")


def test_prompt_sets_together(tmp_path):
    (tmp_path / "mixed.json").write_text(json.dumps({"a_b": ["It is flat.", "It is blue."], "c": "It is round."}))
    joined = class_prompts(["a_b", "c"], load_templates(f"simple+{tmp_path}/mixed.json"))
    assert joined == [["a photo of a a b.", "It is flat.", "It is blue."], ["a photo of a c.", "It is round."]]
    assert load_templates("a {} + a shadow") == ("a {} + a shadow",)
    (tmp_path / "a+b.txt").write_text("some {}\n")
    assert load_templates(f"{tmp_path}/a+b.txt") == ("some {}",)
    with pytest.raises(UnknownName, match="openai77"):
        load_templates("simple+openai77")


# Repeated prompts


def test_repeated_prompts(capfd):
    assert repeated([["a", "b"], ["c", "a"], ["d", "d", "b"]]) == [("a", (0, 1)), ("b", (0, 2)), ("d", (2, 2))]
    assert repeated([["a"], [], ["b"]]) == []
    warn_repeated([["a"], ["b"]], ["x", "y"])
    assert capfd.readouterr() == ("", "")


def test_repeated_prompts_are_reported_in_one_line(capfd):
    prompts_of(["hen", "missile", "cat", "missile"], "openai80")
    stderr = capfd.readouterr().err
    assert stderr.startswith("prompts that several classes share: 80, first ") and stderr.count("\n") == 1
    assert "of 1 (missile) and 3 (missile)" in stderr and "more than once" not in stderr
    prompts_of(["cat", "dog"], "simple+cifar10")
    assert capfd.readouterr().err == (
        "prompts that a class has more than once: 2, first 'a photo of a cat.' of 0 (cat); "
        "they count as often: leave the copies out\n"
    )
    warn_repeated([["a"], ["a", "b"], ["a", "a"]], ["x", "y", "z"])
    stderr = capfd.readouterr().err
    assert "share: 1, first 'a' of 0 (x) and 1 (y);" in stderr and "once: 1, first 'a' of 2 (z);" in stderr
    assert stderr.count("\n") == 1


LONG = "a photo of a very " + "long " * 200


@pytest.mark.parametrize("template", [LONG + "{}.", "{0.__class__} {}", "%s {} {0} {name!r}", "{} and {}", "{}" * 200])
def test_only_the_places_of_a_template_are_filled(template, tmp_path):
    wanted = [[template.replace("{}", "hot dog")]]
    assert class_prompts(["hot_dog"], load_templates(template)) == wanted
    (tmp_path / "t.txt").write_text(f"\ufeff{template}\r\n\r\n", encoding="utf-8")
    assert class_prompts(["hot_dog"], load_templates(str(tmp_path / "t.txt"))) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LONG, "'a photo of a very long .*has no place for the class name"),
        ("{0.__class__}", "'{0.__class__}' has no place for the class name"),
        ("a {name}", "'a {name}' has no place for the class name"),
        ("x" * 5000, "unknown prompt set or file 'x{80}'"),
        ("openai7[" + "9" * 5000 + "]", "unknown prompt set"),
        ("a[0][0]", "unknown prompt set"),
        ("../classes/cifar10", "unknown prompt set"),
        ("\ud800{}", "must be plain text"),
        ("a\0{}", "must be plain text"),
    ],
)
def test_templates_that_are_refused(given, message):
    with pytest.raises((DataError, UnknownName), match=message) as refusal:
        load_templates(given)
    assert len(printable(str(refusal.value))) < 1200


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "a {}.\na photo.\n", "p.txt, line 2: 'a photo.' has no place"),
        ("p.txt", "", "p.txt is empty"),
        ("p.txt", "a {}.\n\x1b[2J{}\n", "line 2: must be plain text"),
        ("p.json", "[]", "must be a list of templates"),
        ("p.json", '{"cat": null}', "'cat': must be text in quotation marks, got None"),
        ("p.json", '{"cat": ["a", 3]}', "'cat': must be text in quotation marks, got 3"),
        ("p.json", '{"cat": [" "]}', "'cat': must be text"),
        ("p.json", '{"cat": {"a": "b"}}', "'cat': must be text"),
        ("p.json", '{"cat": ["a"], "cat": ["b"]}', "key 'cat' appears more than once"),
        ("p.json", '{"templates": ["{}"], "class_sentences": {"cat": 1}}', "'cat': must be text"),
    ],
)
def test_prompt_files_that_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_templates(str(tmp_path / name))


def test_sentences_are_found_under_other_spellings_of_the_class(tmp_path):
    (tmp_path / "p.json").write_text('{"Cafe\u0301 noir": "black", "Cat": "one", "cat": "two"}', encoding="utf-8")
    sentences = load_templates(str(tmp_path / "p.json"))
    assert class_prompts(["caf\u00e9_noir", "Cat"], sentences) == [["black"], ["one"]]
    with pytest.raises(DataError, match="sentences of class 'CAT' must be given once, got them for 'Cat' and 'cat'"):
        class_prompts(["CAT"], sentences)

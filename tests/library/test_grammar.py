"""Articles and plurals in prompts agree when asked, in templates alone. Needs no Jittor."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jclip.errors import SetupError
from jclip.prompts.grammar import article_before, plural_of
from jclip.prompts.templates import class_prompts, fill, load_templates


@pytest.mark.parametrize(
    ("template", "name", "wanted"),
    [
        ("a photo of a origami {}.", "apple", "a photo of an origami apple."),
        ("a {} in a video game.", "owl", "an owl in a video game."),
        ("a photo of an {c}", "dog", "a photo of a dog"),
        ("A {c}, an {c}", "hour", "An hour, an hour"),
        ("an {}, a type of aircraft", "European robin", "a European robin, a type of aircraft"),
        ('a "{c}" sign', "empty circle", 'an "empty circle" sign'),
        ("a {raw}", "ice_cream", "an ice_cream"),
        ("a {}", "F/A-18", "an F/A-18"),
        ("a {}", "737-200", "a 737-200"),
        ("an {} number", "18", "an 18 number"),
        ("a {}", "猫", "a 猫"),
        ("{c}", "a apple", "a apple"),  # the name's own
        ("a plan {c} of", "a owl", "a plan a owl of"),
        ("{} and a", "apple", "apple and a"),
        ("a {}", "", "a "),
    ],
)
def test_articles(template, name, wanted):
    assert fill(template, name, article=True) == wanted


@pytest.mark.parametrize(
    ("template", "name", "wanted"),
    [
        ("a photo of many {}.", "apple", "a photo of many apples."),
        ("Several {c}", "hot_dog", "Several hot dogs"),
        ("these {}", "mouse", "these mice"),
        ("many {}", "jeans", "many jeans"),
        ("many {}", "school bus", "many school buses"),
        ("many {}", "sheep", "many sheep"),
        ("many {}", "wine glass", "many wine glasses"),
        ("many {}", "head of a flamingo", "many heads of flamingoes"),
        ("many {}", "MD-80", "many MD-80"),
        ("many {}", "猫", "many 猫"),
        ("many {raw}", "apple", "many apple"),
        ("many red {}", "apple", "many red apple"),
        ("a {}, the {c}", "apple", "a apple, the apple"),
        ("germany {}", "apple", "germany apple"),
        ("many {} of a {length}", "{c}", "many {c} of a 3"),  # names are not filled in
    ],
)
def test_plurals(template, name, wanted):
    assert fill(template, name, plural=True) == wanted


def test_grammar_is_for_templates_alone_and_off_by_default():
    sets = [("a {}", "many {}"), {"owl": ["a owl", "many owl"]}]
    assert class_prompts(["owl"], sets) == [["a owl", "many owl", "a owl", "many owl"]]
    agreed = class_prompts(["owl"], sets, article=True, plural=True)
    assert agreed == [["an owl", "many owls", "a owl", "many owl"]]
    ajou = class_prompts(["Glacier", "Igloo"], load_templates("ajou52"), article=True)
    assert ajou[0][2] == "an image of a Glacier" and ajou[1][1] == "a photo of an Igloo"
    assert ajou[0][49] == "A picture of an ice"
    for template in load_templates("jittor_challenge"):  # whose places are of all kinds
        assert fill(template, "Polar_bear", article=True, plural=True) == fill(template, "Polar_bear")


def test_without_inflect(monkeypatch):
    from jclip.prompts import grammar

    monkeypatch.setitem(sys.modules, "inflect", None)
    grammar._engine.cache_clear()
    with pytest.raises(SetupError, match="pip install inflect"):
        plural_of("word of this test")
    assert article_before("8-ball") == "an" and article_before(" …") == ""
    assert fill("a {}", "owl") == "a owl"


def test_inflect_is_imported_without_its_checks_of_types():
    pytest.importorskip("typeguard", reason="this release of inflect does without it")
    code = (
        "import typeguard; before = typeguard.typechecked\n"
        "from jclip.prompts.grammar import article_before\n"
        "assert article_before('hour') == 'an'\n"
        "import inflect\n"
        "assert not any('check' in name for name in inflect.engine.plural_noun.__code__.co_names)\n"
        "assert typeguard.typechecked is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

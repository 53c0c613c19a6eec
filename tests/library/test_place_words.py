"""How a phrase is taken apart into a thing, what it stands beside, and words of places. No Jittor."""

from __future__ import annotations

import pytest

from jclip.functional.box_relations import RELATIONS
from jclip.prompts import place_words
from jclip.prompts.place_words import Thing, read_places

READ = {  # phrase → the same as `described` has it
    "the red circle": "the red circle",
    "The red one on the LEFT": "the red one [left]",
    "the left dog": "the left dog [left]",
    "the dog on the left side of the picture": "the dog [left]",
    "the dog left of the chair": "the dog left of (the chair)",
    "the dog to the left of the red chair": "the dog left of (the red chair)",
    "man behind the car": "man above of (the car)",
    "the man who is in front of the woman": "the man below of (the woman)",
    "person in front of the bus on the right": "person below of (the bus [right])",
    "the biggest star": "the biggest star [bigger]",
    "the star bigger than the moon": "the star bigger of (the moon)",
    "the smaller of the two dogs": "the smaller of the two dogs [smaller]",
    "a car closest to the camera": "a car [bigger]",
    "the zebra closer to the camera on the left": "the zebra [bigger] [left]",
    "cup on top of the table": "cup above of (the table)",
    "the cup inside the box": "the cup within of (the box)",
    "top left": "anything [above] [left]",
    "left": "anything [left]",
    "bottom of picture": "anything [below]",
    "the bird between the dog and the cat": "the bird between of (the dog | the cat)",
    "the space between": "the space between",
    "the man, left of the dog, behind the car": "the man left of (the dog) above of (the car)",
    "the cat under the table and left of the chair": "the cat below of (the table) left of (the chair)",
    "man on right of picture with hat": "man with hat [right]",
    "the man holding a cup": "the man holding a cup",
    "the laptop, bright": "the laptop, bright",
    "红色的圆": "红色的圆",
}
PUBLISHED = {  # words that the paper's code lacks change nothing
    "the circle at the bottom": "the circle at the bottom",
    "woman in back": "woman in back",
    "dog at the top": "dog [above]",
    "man behind the car": "man above of (the car)",
}


@pytest.mark.parametrize("phrase", READ)
def test_phrases_are_taken_apart(phrase):
    assert read_places(phrase).described() == READ[phrase]


@pytest.mark.parametrize("phrase", PUBLISHED)
def test_the_papers_words_alone(phrase):
    assert read_places(phrase, published=True).described() == PUBLISHED[phrase]


def test_odd_phrases_are_read_without_an_error():
    for phrase in (
        "",
        " ",
        ",",
        "left left left",
        "between and",
        "the the",
        "of",
        "left of",
        "behind",
        "and left of and",
    ):
        assert isinstance(read_places(phrase), Thing), phrase
    assert read_places("the red one").plain and not read_places("left one").plain


def test_every_name_of_a_relation_has_its_rule():
    tables = (place_words.RELATIONS, place_words.EXTREMES, place_words.MORE_RELATIONS, place_words.MORE_EXTREMES)
    assert {name for table in tables for name in table} == {*RELATIONS}

"""What replies of a chat model say, and which sentences are kept. Needs no Jittor."""

from __future__ import annotations

import pytest

from jclip.data.lexicons import load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.reply_parsing import Candidate, Rules, approves, filtered, groups_of, list_of, sentences_of

COCO = Labeller(load_lexicon("coco"))
PERSON, CAR, DOG, CAT = 0, 2, 16, 15


@pytest.mark.parametrize(
    ("reply", "sentences"),
    [
        (
            "Sure, here are five sentences:\n1. A dog sits.\n2) A cat lies.\n\nLet me know!",
            ["A dog sits.", "A cat lies."],
        ),
        ("- A dog sits.\n* A cat lies.\n• A bird flies.", ["A dog sits.", "A cat lies.", "A bird flies."]),
        ("1. A dog sits. 2. A cat lies. 3. A bird flies.", ["A dog sits.", "A cat lies.", "A bird flies."]),
        ("1. Bus 7. Then a dog sits.", ["Bus 7. Then a dog sits."]),
        ('1. "A dog sits." (simple)\n2. **A cat** lies `here`. [note]', ["A dog sits.", "A cat lies here."]),
        ("1. Sure, here you go:\n2. A dog sits.", ["A dog sits."]),
        ("1. “A man’s dog.”", ["A man’s dog."]),
        ("A dog sits.", []),
        ("I'm sorry, but I can't help with that.", []),
        ("1. *A dog* sits.\n2. __A cat__ lies", ["A dog sits.", "A cat lies"]),
        ("1.\n2.   ", []),
        ("1. A dog" + " " * 3_000_000 + "x\n2. A cat lies.", ["A cat lies."]),
        ("", []),
    ],
)
def test_sentences(reply, sentences):
    assert sentences_of(reply) == sentences


def test_groups_are_of_whole_names():
    reply = "1. carrot, hot dog\n2. teddy bear, dog, cat (cosy)\n3. person\n4. cattle, scarf\n- Man, TAXI"
    assert [[COCO.lexicon.classnames[k] for k in group] for group in groups_of(reply, COCO)] == [
        ["carrot", "hot dog"],
        ["cat", "dog", "teddy bear"],
        ["person", "car"],
    ]


@pytest.mark.parametrize(
    ("reply", "kept"),
    [("True", True), ("**True**.", True), ("False", False), ("True or False?", False), ("true", False), ("", False)],
)
def test_verdicts(reply, kept):
    assert approves(reply) is kept


def test_lists():
    assert [list_of("abc"[:k]) for k in range(4)] == ["", "a", "a and b", "a, b and c"]


def kept(*texts: str, asked: tuple[int, ...] = (), rules: Rules | None = None):
    found = filtered([Candidate(text, asked, "") for text in texts], COCO, rules or Rules())
    assert len(found.candidates) + found.dropped.total() == len(texts)
    return [candidate.text for candidate in found.candidates], dict(found.dropped)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A dog near 一只 cat.", "letters of another script"),
        ("Собака and a dog.", "letters of another script"),
        ("A dog " + "very " * 30 + "old.", "too short or too long"),
        ("A dog " + "so " * 41, "too short or too long"),
        ("A dog", "too short or too long"),
        ("Nice dogs", "fewer than three words"),
        ("A dog in image 1 here.", "speaks of itself"),
        ("This sentence has a dog.", "speaks of itself"),
        ("As an AI I see a dog.", "speaks of itself"),
        ("A category of a dog.", "speaks of itself"),
        ("The sky is blue.", "names no class"),
    ],
)
def test_what_is_no_caption(text, why):
    assert kept(text) == ([], {why: 1})
    assert kept("A café dog sits.") == (["A café dog sits."], {})


def test_asked_names_have_to_be_there():
    assert kept("A dog sits here.", "A dog and a cat.", asked=(CAT, DOG)) == (
        ["A dog and a cat."],
        {"asked names missing": 1},
    )
    loose = kept("A dog sits here.", "The sky is blue.", asked=(CAT, DOG), rules=Rules(require_all=False))
    assert loose == (["A dog sits here."], {"names no class": 1})
    assert kept("A car near a hot dog.", asked=(CAR, DOG))[1] == {"asked names missing": 1}


def test_duplicates():
    texts = ["A dog with a cat.", "a DOG, with a cat", "With a cat, a dog.", "A dog with a hat.", "A man with a dog."]
    assert kept(*texts) == (
        ["A dog with a cat.", "A dog with a hat.", "A man with a dog."],
        {"duplicate": 1, "near-duplicate": 1},
    )
    assert kept("Brown dogs running quickly", "Quickly running brown dogs")[1] == {"near-duplicate": 1}


def test_limits_per_set_and_class():
    words = ["apple pie", "bread", "cloth", "dirt", "earth", "fabric", "gravel", "hay"]
    dogs = [f"The dog likes {word}." for word in words[1:]]
    assert kept(*dogs, rules=Rules(max_per_set=3))[1] == {"too many of one set": 4}
    names = COCO.lexicon.classnames
    pairs = [f"A man has {'an' if n[0] in 'aeiou' else 'a'} {n} with him." for n in names[1:60]]
    texts, dropped = kept(*pairs, rules=Rules(max_share=0.25))
    assert len(texts) == 20 and dropped["too many of one class"] == 59 - 20 - dropped.get("asked names missing", 0), (
        dropped
    )
    assert len(kept(*pairs, rules=Rules(max_share=1.0))[0]) == 59

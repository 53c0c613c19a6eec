"""From nouns to labels: each rule with sentences that it covers and sentences that it must leave alone. Needs no Jittor."""

from __future__ import annotations

import json
from functools import cache

import pytest

from jclip.data.lexicons import load_lexicon
from jclip.data.nouns import Labeller
from jclip.data.word_forms import plural, singular, tokens_of, with_article
from jclip.errors import ConfigError, UnknownName
from jclip.prompts.class_sets import class_set


@cache
def labeller(named: str, kind: str = "extended") -> Labeller:
    return Labeller(load_lexicon(named, kind))


def found(text: str, named: str = "coco", kind: str = "extended") -> tuple[set[str], set[str]]:
    """Names of the classes that are present, and of those that are unknown."""
    own = labeller(named, kind)
    return tuple({own.lexicon.classnames[label] for label in part} for part in own.label(text))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A hot-dog, please!", ["a", "hot", "dog", ",", "please", "!"]),
        ("The dog’s “ball”", ["the", "dog's", '"', "ball", '"']),
        ("ＣＡＴ in a Café", ["cat", "in", "a", "cafe"]),
        ("3 dogs-and cats", ["3", "dogs", "and", "cats"]),
        ("snake_case - x", ["snake", "case", "-", "x"]),
        ("", []),
    ],
)
def test_tokens(text, tokens):
    assert tokens_of(text) == tokens


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("men", "man"), ("women", "woman"), ("people", "people"), ("children", "child"), ("knives", "knife"),
        ("shelves", "shelf"), ("buses", "bus"), ("geese", "goose"), ("mice", "mouse"), ("sheep", "sheep"), ("skis", "skis"),
        ("scissors", "scissors"), ("glasses", "glass"), ("dishes", "dish"), ("tomatoes", "tomato"), ("leaves", "leaf"),
        ("calves", "calf"), ("puppies", "puppy"), ("ties", "tie"), ("boxes", "box"), ("couches", "couch"),
        ("toothbrushes", "toothbrush"), ("horses", "horse"), ("suitcases", "suitcase"), ("vases", "vase"), ("purses", "purse"),
        ("houses", "house"), ("oranges", "orange"), ("firemen", "fireman"), ("tvs", "tv"), ("viruses", "virus"),
        ("woman's", "woman"), ("dogs", "dog"), ("glass", "glass"), ("bus", "bus"), ("tennis", "tennis"), ("gas", "gas"),
    ],
)  # fmt: skip
def test_singular(many, one):
    assert singular(many) == one and singular(one) == one


@pytest.mark.parametrize("named", ["coco", "voc2007", "nuswide", "cifar100", "stl10"])
def test_the_singular_of_a_plural_is_the_noun(named):
    for name in class_set(named):
        word = name.split()[-1].lower()
        if word.isalpha() and singular(word) == word and word not in ("people", "broccoli"):
            assert singular(plural(word)) == singular("people" if word == "person" else word), word


def test_articles():
    assert [with_article(x) for x in ("orange", "umbrella", "uniform", "hour", "dog", "old dog", "unopened box")] == [
        "an orange", "an umbrella", "a uniform", "an hour", "a dog", "an old dog", "an unopened box",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "present"),
    [
        ("A teddy bear on a bed", {"teddy bear", "bed"}),  # the longest phrase wins, and no word counts twice
        ("A bear on a bed", {"bear", "bed"}),
        ("Two hot-dogs on a plate", {"hot dog"}),
        ("A hotdog for the hot dog", {"hot dog", "dog"} - {"dog"}),
        ("A hot, dog", {"dog"}),
        ("A man with a baseball bat", {"person", "baseball bat"}),
        ("A tennis racket and a ball", {"tennis racket", "sports ball"}),
        ("Wine glasses, a glass of wine", {"wine glass"}),
        ("A stop, sign here", set()),
        ("Fire hydrants near hydrants", {"fire hydrant"}),
        ("A motor bike, a motorbike and a motorcycle", {"motorcycle"}),
        ("A carrot", {"carrot"}),
        ("A carpet", set()),
        ("Man's best friend and the women's cats", {"person", "cat"}),
        ("the KNIVES and Forks", {"knife", "fork"}),
    ],
)
def test_phrases(text, present):
    assert found(text) == (present, set())


@pytest.mark.parametrize(
    "text", ["they are training hard", "a tied rope", "we booked a room", "skiing down", "watching it"]
)
def test_verb_forms_name_nothing(text):
    assert found(text)[0] == set() and found(text, "coco", "compat")[0] == set()


@pytest.mark.parametrize(
    ("text", "present"),
    [
        ("a woman dancing", {"person", "dancing"}),
        ("they danced and tattooed arms", {"dancing", "tattoo"}),
        ("people protesting, swimming and surfing", {"person", "protest", "swimmers", "surf"}),
        ("a dog running", {"dog", "running"}),
        ("books on a training bear", {"book", "bear"}),
        ("a housing estate", set()),
    ],
)
def test_activities_of_nuswide_are_named_by_their_verbs(text, present):
    assert found(text, "nuswide", "compat")[0] == present


@pytest.mark.parametrize(
    ("text", "present", "unknown"),
    [
        ("an orange and a cup", {"orange", "cup"}, set()),
        ("two orange slices", set(), {"orange"}),
        ("a sliced orange on a table", {"orange", "dining table"}, set()),
        ("the orange car", {"car"}, {"orange"}),
        ("everything is orange", set(), {"orange"}),
        ("three oranges", {"orange"}, set()),
        ("a remote on the couch", {"remote", "couch"}, set()),
        ("his tv remote", {"remote", "tv"} - {"tv"} | {"tv"}, set()),
        ("in remote places", set(), {"remote"}),
        ("a remote island", set(), {"remote"}),
        ("a remote control", {"remote"}, set()),
        ("his tie", {"tie"}, set()),
        ("to tie a rope", set(), {"tie"}),
        ("she can train it", set(), {"train"}),
        ("a train in the station", {"train"}, set()),
        ("they bear it", set(), {"bear"}),
        ("a brown bear", {"bear"}, set()),
        ("ships sink, boats sink", {"boat", "sink"}, set()),
        ("they sink", set(), {"sink"}),
        ("a cat and a mouse", {"cat"}, {"mouse"}),
        ("two mice in a trap", set(), {"mouse"}),
        ("a mouse and a keyboard", {"mouse", "keyboard"}, set()),
        ("a coach, a jet and a table", {"bus", "airplane", "dining table"}, set()),
        ("playing tennis with a man", {"person"}, {"sports ball"}),
        ("a tennis ball", {"sports ball"}, set()),
        ("a railroad track", set(), {"train"}),
    ],
)
def test_guards(text, present, unknown):
    assert found(text) == (present, unknown)


@pytest.mark.parametrize(
    ("text", "present"),
    [
        ("the orange car", {"orange", "car"}),
        ("to tie", {"tie"}),
        ("a cat and a mouse", {"cat", "mouse"}),
        ("tennis", {"sports ball"}),
    ],
)
def test_the_published_words_have_no_guards(text, present):
    assert found(text, kind="compat") == (present, set())


@pytest.mark.parametrize("kind", ["compat", "extended"])
@pytest.mark.parametrize(
    ("text", "present", "unknown"),
    [
        ("a street without any cars", set(), {"car"}),
        ("no dog or cat", set(), {"dog", "cat"}),
        ("this is not a bus", set(), {"bus"}),
        ("it isn't a bus", set(), {"bus"}),
        ("nobody on a bench", set(), {"bench"}),
        ("no sign of a big brown dog", {"dog"}, set()),
        ("not the bus", {"bus"}, set()),
        ("There is no car. Dogs play.", {"dog"}, {"car"}),
        ("a dog but no other dog", {"dog"}, set()),
        ("a nook with a dog", {"dog"}, set()),
    ],
)
def test_negation(text, present, unknown, kind):
    assert found(text, kind=kind) == (present, unknown)


@pytest.mark.parametrize(
    ("text", "present", "unknown"),
    [
        ("a tiger", {"tiger"}, {"animal"}),
        ("a tiger, an animal", {"tiger", "animal"}, set()),
        ("horses near the ocean", {"horses", "ocean"}, {"animal", "water"}),
        ("a map", {"map"}, set()),
    ],
)
def test_what_a_name_implies_is_unknown(text, present, unknown):
    assert found(text, "nuswide") == (present, unknown)
    assert found(text, "nuswide", "compat") == (present, set())


def test_nuswide_counts_the_first_words_only():
    text = " ".join(["very"] * 76)
    assert found(f"{text} dog cat", "nuswide", "compat") == ({"dog"}, set())
    assert found(f"{text} dog cat", "coco")[0] == {"dog", "cat"}


@pytest.mark.parametrize("kind", ["compat", "extended"])
@pytest.mark.parametrize("named", ["coco", "voc2007", "nuswide"])
def test_every_word_of_a_lexicon_names_its_class_and_no_other(named, kind):
    own = labeller(named, kind)
    for label, words in enumerate(own.lexicon.synonyms):
        for word in (own.lexicon.classnames[label], own.lexicon.prompt_names[label], *words):
            assert own.label(f"a {word}")[0] == {label} and own.label_of(word) == label, word
            assert own.label(f"a {word.replace(' ', '')}")[0] == {label}, word


def test_published_words():
    assert found("human people man woman passenger")[0] == {"person"}
    assert found("a kid", kind="compat") == (set(), set()) and found("a kid")[0] == {"person"}
    assert load_lexicon("coco").prompt_names[3:5] == ("motor bike", "aeroplane")
    assert load_lexicon("voc2007").prompt_names == class_set("voc2007")
    assert found("benches around a dinner table, a couch", "voc2007")[0] == {"chair", "diningtable", "sofa"}
    assert found("a frosted runway", "nuswide", "compat")[0] == {"frost", "airport"}


def test_the_same_words_whatever_their_order():
    names = ("dog", "hot dog", "dog house")
    for order in (names, names[::-1]):
        own = Labeller(load_lexicon(order))
        named = [order[label] for label in own.label("a hot dog house")[0]]
        assert named == ["hot dog"]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_lexicon_of_ones_own(tmp_path):
    own = load_lexicon(write(tmp_path / "own.yaml", "forklift: [lift truck, stacker]\npallet:\nPerson: [worker]\n"))
    assert own.classnames == ("forklift", "pallet", "Person")
    assert Labeller(own).label("Workers and a LIFT-TRUCK") == ({0, 2}, set())
    more = write(
        tmp_path / "more.yaml",
        "synonyms: {forklift: [stacker]}\ndoubtful: {person: [crew]}\nimplies: {forklift: [person]}\n"
        "prompt_names: {pallet: wooden pallet}\nverb_forms: [pallet]\nguards: {verbs: [pallet]}\n",
    )
    own = Labeller(load_lexicon(["forklift", "pallet", "person"], more))
    assert own.label("a stacker") == ({0}, {2}) and own.label("a crew") == (set(), {2})
    assert own.label("they pallet it") == (set(), {1}) and own.label("palleting") == ({1}, set())
    assert own.lexicon.prompt_names == ("forklift", "wooden pallet", "person")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "dog: [pet]\ncat: [pets]\n",
            ConfigError,
            "must name one class, got 'pets' for 'dog' (there as 'pet') and 'cat'",
        ),
        ("dog: [cat]\ncat:\n", ConfigError, "for 'dog' and 'cat'"),
        ("dog: pet\ncat: [x]\n", ConfigError, "every class must have a list of synonyms"),
        ("dog: ['!']\ncat:\n", ConfigError, "must have a word"),
        ("dog: [1]\ncat:\n", ConfigError, "must be a list of words"),
        ("synonyms: {dog: [x]}\nsynonym: {}\n", ConfigError, "unknown key 'synonym', did you mean 'synonyms'?"),
        ("synonyms: {dog: []}\nimplies: {dog: [animal]}\n", UnknownName, "unknown class"),
        ("synonyms: {dog: []}\nmost_tokens: -1\n", ConfigError, "most_tokens must be an integer from 0"),
        ("synonyms: {dog: []}\nguards: {verb: [x]}\n", ConfigError, "guards must hold"),
    ],
)
def test_a_wrong_lexicon_is_refused_in_one_line(tmp_path, text, error, message):
    with pytest.raises(error) as caught:
        Labeller(load_lexicon(write(tmp_path / "own.yaml", text)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_lexicon_has_to_be_of_the_classes(tmp_path):
    words = write(tmp_path / "own.yaml", "dgo: [pet]\n")
    with pytest.raises(UnknownName, match="unknown class in .* 'dgo', did you mean 'dog'"):
        load_lexicon(["dog", "cat"], words)
    with pytest.raises(ConfigError, match="compat, extended or a YAML file"):
        load_lexicon("coco", "extendet")
    with pytest.raises(ConfigError, match=r"must name one class, got 'dogs' for 'dog' \(there as 'dog'\) and 'dogs'"):
        Labeller(load_lexicon(["dog", "dogs"]))


def test_labels_of_real_captions_are_right_nearly_always(shared):
    """Against the boxes of the photos: a class may be there and unsaid, so that only what is said counts."""
    values = json.loads((shared / "coco" / "captions_val2017.json").read_text(encoding="utf-8"))
    photos = json.loads((shared / "coco" / "coco.json").read_text(encoding="utf-8"))["images"]
    boxed = {int(p["image"][:12]): {*p["labels"]} for p in photos if p["annotated"] and p["split"] == "val2017"}
    right = {"compat": [0, 0], "extended": [0, 0]}
    for value in values["annotations"]:
        if value["image_id"] in boxed:
            for kind, counts in right.items():
                named = found(value["caption"], kind=kind)[0]
                counts[0] += len(named & boxed[value["image_id"]])
                counts[1] += len(named)
    assert right == {"compat": [1213, 1318], "extended": [1328, 1412]}  # precision .920 and .941

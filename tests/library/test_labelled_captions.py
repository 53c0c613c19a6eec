"""Captions with labels in three states: our file, the formats of others with their traps, balance. Needs no Jittor."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jclip.data.caption_formats import label_files, numbered_sentence, read_caption_file
from jclip.data.labelled_captions import (
    LabelledCaptions,
    balanced_rows,
    joined,
    labelled,
    read_captions,
    to_lines,
    write_captions,
)
from jclip.data.lexicons import load_lexicon
from jclip.data.nouns import Labeller
from jclip.errors import DataError, UnknownName
from jclip.functional.cooccurrence import count_cooccurrence

NAMES = ("dog", "cat", "hot dog")
LABELLER = Labeller(load_lexicon(NAMES))


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def texts(file):
    return [caption.text for caption in file.captions]


@pytest.fixture
def some():
    """Four captions of three classes in all three states."""
    targets = np.array([[1, 0, -1], [0, 1, 0], [1, 1, 0], [0, 0, 0]], np.int8)
    texts = ("a dog", "a cat: 猫", 'a "dog" and a cat', "nothing")
    return LabelledCaptions(NAMES, texts, targets, np.array([1, 2.5, 1, 1], np.float32), ("a", "b", "c", "d"))


def test_a_file_reads_back_as_it_was(some, tmp_path):
    write_captions(tmp_path / "own.jsonl", some)
    back = read_captions(tmp_path / "own.jsonl", NAMES)
    assert (back.texts, back.ids, back.classnames) == (some.texts, some.ids, NAMES)
    assert np.array_equal(back.targets, some.targets) and back.targets.dtype == np.int8
    assert np.array_equal(back.weights, some.weights) and back.weights.dtype == np.float32
    assert to_lines(back) == to_lines(some)
    twice = read_captions([tmp_path / "own.jsonl"] * 2, NAMES)
    assert len(twice) == 8 and np.array_equal(twice.targets[4:], some.targets)


def test_labels_are_names_in_any_order_and_case(tmp_path):
    path = write(tmp_path / "own.jsonl", '{"text": "x", "labels": ["Hot_Dog", "dog"], "unknown": ["CAT", "dog"]}\n\n')
    assert read_captions(path, NAMES[::-1]).targets.tolist() == [[1, -1, 1]]


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ('{"text": "x", "labels": ["dgo"]}', UnknownName, "line 2: labels 'dgo', did you mean 'dog'"),
        ('{"text": "x", "labels": [], "unknown": ["x"]}', UnknownName, "line 2: unknown 'x'"),
        ('{"text": "x"}', DataError, "must be a caption such as"),
        ('{"text": 3, "labels": []}', DataError, "must be a caption such as"),
        ('{"text": "x", "labels": [0]}', DataError, "must be a list of class names"),
        ('{"text": "x", "labels": [], "weight": -1}', DataError, "weight must be a number in [0, 1e9)"),
        ("[1]", DataError, "must be a caption such as"),
        ('{"text": "x", "lab', DataError, "is not valid JSON"),
    ],
)
def test_what_is_no_caption_is_refused_with_its_line(line, error, message, tmp_path):
    path = write(tmp_path / "own.jsonl", '{"text": "a dog", "labels": ["dog"]}\n' + line + "\n")
    with pytest.raises(error) as caught:
        read_captions(path, NAMES)
    assert message in str(caught.value) and "own.jsonl" in str(caught.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="at least one file"):
        read_captions([], NAMES)
    with pytest.raises(DataError, match="is empty"):
        read_captions(write(tmp_path / "empty.jsonl", "\n"), NAMES)
    with pytest.raises(DataError, match="No such file"):
        read_captions(tmp_path / "absent.jsonl", NAMES)


def test_rows_folding_and_restriction(some):
    assert some.at([2, 0]).texts == ('a "dog" and a cat', "a dog") and some.at([2, 0]).ids == ("c", "a")
    assert some.counts().tolist() == [2, 2, 0]
    both = joined([some, some.at([0, 1])])
    folded = both.folded()
    assert folded.texts == some.texts and folded.weights.tolist() == [2, 5, 1, 1]
    other = LabelledCaptions(NAMES, ("a dog",), np.array([[1, 0, 0]], np.int8), np.ones(1, np.float32))
    assert len(joined([some, other]).folded()) == 5, "equal words with other labels stay apart"
    assert some.only([0]).targets.tolist() == [[1, -1, -1], [0, 1, -1], [1, 1, -1], [0, -1, -1]]
    with pytest.raises(DataError, match="same classes"):
        joined([some, LabelledCaptions(NAMES[:2], (), np.zeros((0, 2), np.int8), np.ones(0, np.float32))])


def test_pairs_are_counted(some):
    made = count_cooccurrence(some.targets)
    assert made.adj.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]] and made.counts.tolist() == [2, 2, 0]
    rng = np.random.default_rng(0)
    targets = rng.integers(-1, 2, (57, 7))
    made = count_cooccurrence(targets)
    expected = [[sum((row[i] == 1) & (row[j] == 1) for row in targets) for j in range(7)] for i in range(7)]
    assert made.counts.tolist() == [expected[i][i] for i in range(7)]
    assert made.adj.tolist() == [[0 if i == j else expected[i][j] for j in range(7)] for i in range(7)]
    assert made.adj.dtype == made.counts.dtype == np.int64


def test_balance_gives_each_caption_to_its_rarest_class():
    # person 5, dog 3, toaster 1: rows 1 and 4 go to dog, row 3 to toaster, the others to person
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 0, -1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], np.int8)
    assert balanced_rows(targets, 1).tolist() == [0, 1, 3]
    assert balanced_rows(targets, 2).tolist() == [0, 1, 2, 3, 4]
    drawn = {tuple(balanced_rows(targets, 1, seed).tolist()) for seed in range(20)}
    assert drawn == {tuple(sorted((a, b, 3))) for a in (0, 2) for b in (1, 4)}
    assert balanced_rows(targets, 1, 3).tolist() == balanced_rows(targets, 1, 3).tolist()
    assert balanced_rows(np.zeros((0, 3)), 1).tolist() == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1. A dog sits.", "A dog sits."),
        ("12. A dog. A cat.", "A dog A cat."),  # an inner ". " loses its dot, the last stays
        ("3. A dog 2.5 m long. ", "A dog 2.5 m long."),
        ("A dog sits.", ""),
        ("1. 一只狗 a dog", ""),
        ("1. A", ""),
        ("1. " + "dog " * 40, ""),
        ("1.A dog sits", ""),
    ],
)
def test_numbered_sentences(line, text):
    assert numbered_sentence(line.strip())[0] == text


def test_a_list_maps_synonyms_to_classes(tmp_path):
    values = [{"id": 7, "caption": "a puppy\n and a man", "labels": ["pup", "human"]}, {"caption": "a kite"}]
    captions, (file,) = label_files([write(tmp_path / "x.json", values)], Labeller(load_lexicon("coco")))
    assert file.format == "list" and captions.ids == ("7", "2") and captions.texts[0] == "a puppy and a man"
    assert captions.meta[0] == {"asked": ["dog", "person"]}
    assert [np.flatnonzero(row == 1).tolist() for row in captions.targets] == [[0, 16], [33]]


def test_sentences_by_class_number(tmp_path):
    values = {
        "0": ["1. A dog runs.", "Sure, here are:", "2. 狗 dog", "3. A bone lies here."],
        "2": ["1. Hot dogs. Good."],
    }
    captions, (file,) = label_files([write(tmp_path / "x.json", values)], LABELLER)
    assert captions.texts == ("A dog runs.", "A bone lies here.", "Hot dogs Good.")
    assert captions.targets.tolist() == [[1, 0, 0], [-1, 0, 0], [0, 0, 1]], "what is asked and not said is unknown"
    assert dict(file.dropped) == {"no number at the start": 1, "letters of another script": 1} and not file.bad
    with pytest.raises(DataError, match="must be the number of a class, 0 to 2, got '3'"):
        read_caption_file(write(tmp_path / "y.json", {"3": ["1. A dog runs."]}), LABELLER)


def test_lines_with_labels_and_captions(tmp_path):
    lines = (
        '{"labels": ["cat"], "captions": ["1. A cat sleeps.", "no number"]}\n'
        '{"labels": ["dog"], "captions": ["1. A dog and a cat."]}\n'
    )
    captions, (file,) = label_files([write(tmp_path / "x.jsonl", lines)], LABELLER)
    assert captions.ids == ("1-1", "2-1") and captions.sources == ("hard", "hard")
    assert captions.targets.tolist() == [[0, 1, 0], [1, 1, 0]], "further classes that a sentence names are labels"
    assert dict(file.dropped) == {"no number at the start": 1}


def test_coco_captions_and_narratives(tmp_path):
    coco = {
        "images": [],
        "annotations": [{"id": 38, "image_id": 1, "caption": "A cat\n"}, {"id": 39, "caption": " "}] * 2,
    }
    with pytest.raises(
        DataError, match="2 of 4 rows are not captions .annotation 2: must have a caption as text, got ' '"
    ):
        read_caption_file(write(tmp_path / "x.json", coco), LABELLER)
    assert texts(read_caption_file(tmp_path / "x.json", LABELLER, max_bad=0.5)) == ["A cat", "A cat"]
    entry = {
        "image_id": "9a",
        "annotator_id": 4,
        "caption": "A cat.",
        "timed_caption": [{"utterance": "a"}],
        "traces": [[]],
    }
    found = read_caption_file(write(tmp_path / "n.jsonl", "\n".join([json.dumps(entry)] * 2)), LABELLER)
    assert found.format == "localized narratives" and found.captions[0].id == "9a-4" and len(found.captions) == 2
    assert texts(read_caption_file(write(tmp_path / "one.jsonl", entry), LABELLER)) == ["A cat."]


def test_text_with_and_without_numbers(tmp_path):
    text = "[12] (dog, cat)\n1. A dog.\n2) A cat. It sits.\n\n3 dogs run\nhot dog\r\n[13]\n"
    found = read_caption_file(write(tmp_path / "x.txt", text), LABELLER)
    assert texts(found) == ["A dog.", "A cat. It sits.", "3 dogs run", "hot dog"] and found.dropped["header"] == 2


def test_tables_that_training_reads(tmp_path):
    """Names of files are no captions; a table without such a column is text."""
    table = 'filepath,title\ncat.jpg,"a dog, alone"\ncat.jpg\nx.jpg, a  hot dog \n'
    found = read_caption_file(write(tmp_path / "x.csv", table), LABELLER, max_bad=0.5)
    assert (found.format, texts(found), len(found.bad)) == ("table", ["a dog, alone", "a hot dog"], 1)
    path = write(tmp_path / "y.csv", "image_name| comment_number| comment\ncat.jpg| 0| a dog\n")
    assert texts(read_caption_file(path, LABELLER)) == ["a dog"]
    assert texts(read_caption_file(write(tmp_path / "z.csv", "a cat, a dog\n"), LABELLER)) == ["a cat, a dog"]


def test_our_own_file_is_labelled_anew(some, tmp_path):
    write_captions(tmp_path / "own.jsonl", some)
    captions, (file,) = label_files([tmp_path / "own.jsonl"], LABELLER)
    assert captions.ids == some.ids and file.format == "jclip's JSON lines"
    assert captions.targets.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_bad_lines_are_left_out_counted_and_shown(tmp_path, capsys):
    good = '{"labels": ["cat"], "captions": ["1. A cat sleeps."]}'
    bad = [
        '{"labels": ["ca',
        '{"labels": ["kat"], "captions": []}',
        "[3]",
        '{"labels": 3, "captions": []}',
        "null",
        '{"x": 1}',
    ]
    path = write(tmp_path / "x.jsonl", "\n".join([good] * 594 + bad))
    found = read_caption_file(path, LABELLER)
    assert len(found.captions) == 594 and len(found.bad) == 6
    message = capsys.readouterr().err
    assert message.count("line 59") == 5 and "line 600" not in message and "did you mean 'cat'" in message
    with pytest.raises(DataError, match=r"6 of 599 rows are not captions .* at most 0\.01"):
        read_caption_file(write(tmp_path / "y.jsonl", "\n".join([good] * 593 + bad)), LABELLER)
    with pytest.raises(DataError, match="label 'kat' must be the name of a class, did you mean 'cat'"):
        read_caption_file(write(tmp_path / "z.json", [{"caption": "a", "labels": ["kat"]}]), LABELLER)


@pytest.mark.parametrize("name", ["x.pkl", "x.pt", "x.npy"])
def test_a_pickle_is_never_read(name, tmp_path):
    with pytest.raises(DataError, match="got a pickle"):
        read_caption_file(write(tmp_path / name, "A dog"), LABELLER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no captions"),
        ("[1", "is not valid JSON"),
        ("\n\n", "is empty"),
        ("{}", "no captions"),
    ],
)
def test_what_is_no_file_of_captions(text, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_caption_file(write(tmp_path / "x.json", text), LABELLER)


def test_labelling_is_the_same_each_time():
    lines = ["a dog and a hot dog", "cats", "no cat"]
    own = labelled(lines, LABELLER, "list")
    assert own.targets.tolist() == [[1, 0, 1], [0, 1, 0], [0, -1, 0]] and own.ids == ("list-1", "list-2", "list-3")
    assert to_lines(own) == to_lines(labelled(lines, Labeller(load_lexicon(NAMES)), "list"))

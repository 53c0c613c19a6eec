"""`jclip captions label` and `generate` with templates: files, reports, what is wrong. Needs no Jittor."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jclip.cli import main
from jclip.data.labelled_captions import read_captions, to_lines
from jclip.data.lexicons import load_lexicon
from jclip.data.scene_captions import template_captions
from jclip.data.training_sentences import single_sentences
from jclip.prompts.class_sets import class_set

COCO = class_set("coco")


def run(*arguments) -> int:
    return main(["captions", *map(str, arguments)])


@pytest.fixture
def captions(tmp_path):
    """A text file of four captions, one of which names no class of COCO."""
    path = tmp_path / "mine.txt"
    path.write_text("1. A man and his puppy.\n2. Two dogs.\n3. The sky.\n4. No cat, an orange car.\n", encoding="utf-8")
    return path


def test_label(captions, tmp_path, capsys):
    out = tmp_path / "labelled.jsonl"
    assert run("label", captions, "--classes", "coco", "--out", out) == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines[2] == {
        "id": "4",
        "text": "No cat, an orange car.",
        "labels": ["car"],
        "unknown": ["cat", "orange"],
        "source": "text",
        "meta": {},
    }
    assert [line["labels"] for line in lines[:2]] == [["person", "dog"], ["dog"]]
    report = json.loads((tmp_path / "labelled.report.json").read_text(encoding="utf-8"))
    assert report["captions_read"] == 4 and report["captions_kept"] == 3 and report["captions_without_a_class"] == 1
    assert report["first_ids_without_a_class"] == ["3"] and report["labels"] == 4 and report["unknown"] == 2
    assert report["labels_per_class"]["dog"] == 2 and report["unknown_per_class"]["cat"] == 1
    assert len(report["classes_without_a_caption"]) == 77 and report["files"][0]["format"] == "text"
    printed = capsys.readouterr()
    assert "captions: 3 kept of 4, 1 name no class; 1.33 labels per caption" in printed.out
    assert "no caption names 77 of 80 classes: bicycle, motorcycle" in printed.err
    first = out.read_bytes()
    assert run("label", captions, "--classes", "coco", "--out", out) == 0 and out.read_bytes() == first


def test_label_with_other_words(captions, tmp_path):
    out = tmp_path / "labelled.jsonl"
    run("label", captions, "--classes", "coco", "--lexicon", "compat", "--out", out)
    assert read_captions(out, COCO).targets[2, [COCO.index("orange"), COCO.index("car")]].tolist() == [1, 1]
    (tmp_path / "names.txt").write_text("pet\nsky\n", encoding="utf-8")
    (tmp_path / "words.yaml").write_text("pet: [puppy, dog, cat]\n", encoding="utf-8")
    assert (
        run("label", captions, "--classes", tmp_path / "names.txt", "--lexicon", tmp_path / "words.yaml", "--out", out)
        == 0
    )
    assert read_captions(out, ("pet", "sky")).targets.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert run("label", captions, "--classes", tmp_path / "words.yaml", "--out", out) == 0
    assert run("label", captions, captions, "--classes", "man,sky", "--out", out) == 0
    assert read_captions(out, ("man", "sky")).targets.tolist() == [[1, 0], [0, 1]] * 2


def test_at_most_some_for_each_class(captions, tmp_path):
    out = tmp_path / "labelled.jsonl"
    run("label", captions, captions, "--classes", "coco", "--out", out, "--max-per-class", 1)
    assert read_captions(out, COCO).ids == ("1", "2", "4")
    run("label", captions, captions, "--classes", "coco", "--out", out, "--max-per-class", 1, "--seed", 3)
    assert len(read_captions(out, COCO)) == 3


def test_nothing_is_written_in_a_dry_run(captions, tmp_path, capsys):
    assert run("label", captions, "--classes", "coco", "--dry-run", "--out", tmp_path / "x.jsonl") == 0
    assert "nothing is written" in capsys.readouterr().out and not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "{mine}", "--classes", "coco"], "--out must name where to write"),
        (["label", "{mine}", "--out", "x"], "--classes must name the classes to look for"),
        (["label", "{mine}", "--classes", "coco", "--out", "{mine}"], "would be overwritten"),
        (["label", "no.txt", "--classes", "coco", "--out", "x"], "can't read no.txt: No such file or directory"),
        (["label", "{mine}", "--classes", "zebra,giraffe", "--out", "x"], "none of 4 captions name one of the classes"),
        (["label", "{mine}", "--classes", "dog", "--out", "x"], "classes must be at least two"),
        (
            ["label", "{mine}", "--classes", "dog,dogs", "--out", "x"],
            "a word must name one class, got 'dogs' for 'dog'",
        ),
        (
            ["label", "{chinese}", "--classes", "coco", "--out", "x"],
            "2 are in another script than the Latin: captions must be",
        ),
        (
            ["label", "{french}", "--classes", "coco", "--out", "x"],
            "captions must be in the language of the class names",
        ),
        (
            ["label", "{names}", "--classes", "coco", "--out", "x"],
            "label 'dgo' must be the name of a class, did you mean 'dog'?",
        ),
        (
            ["label", "{twice}", "--classes", "dog,cat", "--lexicon", "{words}", "--out", "x"],
            "got 'pet' for 'dog' and 'cat'",
        ),
        (["labels", "{mine}"], "invalid choice: 'labels'"),
        (["generate", "no.yaml", "--out", "x"], "can't read no.yaml"),
        (["generate", "{made}", "--out", "{mine}"], "--out must be a folder, got a file"),
        (
            ["generate", "{made}", "--seed", "3", "--out", "x"],
            "--seed belongs to `captions label`: for generate write seed=",
        ),
        (["generate", "{made}", "colour=3", "--out", "x"], "unknown key colour"),
        (["generate", "{made}", "min_per_class=0", "--out", "x"], "captions.min_per_class must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, captions, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {
        "mine": captions.read_text(),
        "chinese": "一只狗坐在长椅上。\n两只猫。\n",
        "french": "Un homme et son chien.\nDeux chiens.\n",
        "names": '[{"caption": "a dog", "labels": ["dgo"]}]',
        "twice": "a pet\n",
        "words": "dog: [pet]\ncat: [pet]\n",
        "made": "classes: a,b\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.{'yaml' if name in ('words', 'made') else 'txt'}").write_text(text, encoding="utf-8")
    places = {name: next(tmp_path.glob(f"{name}.*")) for name in texts}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("jclip captions: ") and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_few_named_captions_are_reported(tmp_path, capsys):
    path = tmp_path / "german.txt"
    path.write_text("Ein Hund im Bus.\n" + "Zwei Hunde spielen.\n" * 30, encoding="utf-8")
    assert run("label", path, "--classes", "coco", "--out", tmp_path / "x.jsonl") == 0
    assert (
        "1 of 31 captions name one of the classes (person, bicycle, car, …): are they in the language"
        in capsys.readouterr().err
    )


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "made.yaml"
    path.write_text("classes: voc2007\nmin_per_class: 20\n", encoding="utf-8")
    return path


def test_generate(made, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("generate", made, "seed=3", "--out", out) == 0
    voc = class_set("voc2007")
    assert (out / "captions.jsonl").read_text(encoding="utf-8") == to_lines(template_captions(voc, 3, min_per_class=20))
    assert (out / "single.jsonl").read_text(encoding="utf-8") == to_lines(single_sentences(load_lexicon("voc2007")))
    assert (out / "hard.jsonl").read_text() == ""
    both = (out / "captions.jsonl").read_text() + (out / "single.jsonl").read_text()
    assert (out / "all.jsonl").read_text() == both
    report = json.loads((out / "report.json").read_text())
    assert report["captions"] == {
        "captions": 400,
        "single": 1780,
        "hard": 0,
        "all": 2180,
        "sets": report["captions"]["sets"],
    }
    assert report["classes_below_min_per_class"] == [] and min(report["captions_per_class"].values()) >= 20
    assert report["config"]["seed"] == 3 and report["requests"] == 0
    again = tmp_path / "again"
    assert run("generate", made, "seed=3", "--out", again) == 0
    for file in out.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    assert "captions per class:" in capsys.readouterr().out


def test_generate_with_all_that_there_is(made, tmp_path):
    (tmp_path / "sets.txt").write_text("dog, cat\nperson, dog, sofa, chair\n" * 2, encoding="utf-8")
    (tmp_path / "own.yaml").write_text("dog: [hound]\n", encoding="utf-8")
    out = tmp_path / "out"
    more = ["hard=[cat, person]", "partner=person", "templates={single: false, pairs: true, sets: true, subsets: true}"]
    made.write_text("classes: voc2007\ncount: 50\nsets: sets.txt\nlexicon: own.yaml\n", encoding="utf-8")
    assert run("generate", made, *more, "--out", out) == 0
    everything = read_captions(out / "all.jsonl", class_set("voc2007"))
    assert len(everything) == 50 + 9 * 190 + 4 + (1 + 5) + (2 * 89 + 89 + 4)
    assert (out / "sets.jsonl").read_text().splitlines()[0] == '{"names": ["dog", "cat"]}'
    hard = read_captions(out / "hard.jsonl", class_set("voc2007"))
    assert len(hard) == 271 and (hard.targets[:, 0] == -1).all() and hard.sources[0] == "hard"
    assert run("generate", made, "max_per_class=2", "--out", out) == 0
    assert len(read_captions(out / "all.jsonl", class_set("voc2007"))) <= 2 * 20


def test_three_names_are_enough(tmp_path):
    (tmp_path / "names.txt").write_text("forklift\npallet\nperson\n", encoding="utf-8")
    (tmp_path / "made.yaml").write_text("classes: names.txt\nmin_per_class: 30\n", encoding="utf-8")
    assert run("generate", tmp_path / "made.yaml", "--out", tmp_path / "out") == 0
    names = ("forklift", "pallet", "person")
    assert read_captions(tmp_path / "out" / "captions.jsonl", names).counts().min() >= 30
    everything = read_captions(tmp_path / "out" / "all.jsonl", names)
    assert not np.all(everything.targets == 1, axis=1).any()


def test_names_whose_bytes_are_no_text(captions, made, tmp_path, capsys):
    """As the command line hands over what is no UTF-8: a model may be called so, a class not."""
    assert run("label", captions, "--classes", "dog,\udcb2x", "--out", tmp_path / "x.jsonl") == 2
    assert run("generate", made, "classes=dog,\udcb2x", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("class names must be UTF-8 text, got '\\udcb2x'") == 2
    assert run("generate", made, "generator=openai", "server.model=\udcb2", "--out", tmp_path / "out", "--dry-run") == 0


def test_real_captions(shared, tmp_path, capsys):
    out = tmp_path / "labelled.jsonl"
    assert (
        run(
            "label", shared / "coco" / "captions_val2017.json", "--classes", "coco", "--lexicon", "compat", "--out", out
        )
        == 0
    )
    report = json.loads(out.with_suffix(".report.json").read_text(encoding="utf-8"))
    assert report["captions_read"] == 25014 and report["files"][0]["bad"] == 0
    assert report["classes_without_a_caption"] == []
    assert (report["captions_kept"], report["labels"], report["unknown"]) == (21130, 30993, 10)

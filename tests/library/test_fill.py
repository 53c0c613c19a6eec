"""`jclip fill`: what is filled against the formula, what stays, how often anything is encoded, and its files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from jclip.cli import main
from jclip.data import shapes
from jclip.data.attribute_tables import (
    Attributes,
    dollar_bytes,
    parse_words,
    read_attribute_table,
    read_attributes,
    table_bytes,
)
from jclip.errors import JclipError
from jclip.features import attribute_filling
from jclip.features.attribute_filling import Choice, decide
from jclip.features.source import ModelSource
from jclip.model import clip
from tests.tolerances import tolerance

COLOURS, SHAPES = tuple(shapes.COLOURS), tuple(shapes.SHAPES)
WORLD = Attributes({"color": list(COLOURS), "shape": list(SHAPES)}, ("color", "shape"), "a photo of a {color} {shape}.")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve photos of one thing each and a table that lacks colours, shapes or both; two rows have the same photo."""
    root = tmp_path_factory.mktemp("scenes")
    things = [(COLOURS[(3 * i) % 10], SHAPES[i % 10]) for i in range(12)]
    lines = ["photo,color,shape,note"]
    for i, (colour, shape) in enumerate(things):
        pair = ((colour, shape),)
        shapes.draw_scene((77, i), pairs=pair, styles=("filled",), count=(1, 1), radius=(0.3, 0.36)).render().save(
            root / f"{i}.png"
        )
        given = [colour if i % 3 else "", shape if i % 4 else "unknown"]
        lines.append(f"{i}.png,{','.join(given)},n{i}")
    lines.append(f"1.png,,{things[1][1]},again")
    (root / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root, things


def test_against_the_formula_with_each_photo_and_text_encoded_once(scenes, monkeypatch):
    root, things = scenes
    seen = {"images": 0, "texts": 0}

    def counted(name, key):
        inner = getattr(clip.CLIP, name)

        def call(self, batch, *rest, **more):
            seen[key] += len(batch)
            return inner(self, batch, *rest, **more)

        monkeypatch.setattr(clip.CLIP, name, call)

    counted("encode_image", "images")
    counted("encode_text", "texts")
    source = ModelSource("shapes-tiny-vit")
    table = read_attribute_table(root / "table.csv", WORLD)
    done = attribute_filling.fill(table, source)
    lacking = {row.photo for row in table.rows if table.missing(row)}
    texts = {t for row in table.rows if table.missing(row) for t in attribute_filling.choice_of(table, row).texts}
    assert seen == {"images": len(lacking), "texts": len(texts)} and len(lacking) < len(table.rows)
    attribute_filling.fill(table, source)
    assert seen == {"images": len(lacking), "texts": len(texts)}, "the second time all comes from the cache"

    pixels = {row.photo: source.preprocess(Image.open(root / row.photo)) for row in table.rows}
    for row in done.rows:
        missing = table.missing(row)
        if not missing:
            assert row.filled == {}
            continue
        colours = COLOURS if "color" in missing else (row.given["color"],)
        kinds = SHAPES if "shape" in missing else (row.given["shape"],)
        pairs = [(c, s) for c in colours for s in kinds]
        tokens = source.model.tokenize([f"a photo of a {c} {s}." for c, s in pairs])
        text = source.model.encode_text(tokens).numpy().astype(np.float64)
        photo = source.model.encode_image(pixels[row.photo][None]).numpy().astype(np.float64)[0]
        cosines = (text / np.linalg.norm(text, axis=1, keepdims=True)) @ (photo / np.linalg.norm(photo))
        e = np.exp(float(np.exp(source.model.logit_scale.numpy()[0])) * (cosines - cosines.max()))
        best = pairs[int(cosines.argmax())]
        for name, place in (("color", 0), ("shape", 1)):
            if name in missing:
                value, probability, margin = row.filled[name]
                own = np.array([p[place] == best[place] for p in pairs])
                assert value == best[place]
                assert abs(probability - e[own].sum() / e.sum()) < tolerance("scores")
                assert abs(margin - (cosines.max() - cosines[~own].max())) < tolerance("features_normalised")
    right = [
        row.values == dict(zip(("color", "shape"), thing, strict=True))
        for row, thing in zip(done.rows, things, strict=False)
    ]
    assert np.mean(right) >= 0.9
    assert [row.given for row in done.rows] == [row.given for row in table.rows]


CHOICE = Choice(("color", "type"), (("red", "Bus"), ("red", "SUV"), ("blue", "Bus"), ("blue", "SUV")), ("",) * 4)


def test_probability_and_margin_by_hand():
    cosines = np.log([0.4, 0.3, 0.2, 0.1])
    (color, type_) = decide(cosines, CHOICE, 1.0, 0.0, 0.0).values()
    assert color[0] == "red" and type_[0] == "Bus"
    assert abs(color[1] - 0.7) < tolerance("closed_form") and abs(type_[1] - 0.6) < tolerance("closed_form")
    assert abs(color[2] - np.log(2)) < tolerance("closed_form")
    assert abs(type_[2] - np.log(4 / 3)) < tolerance("closed_form")


@pytest.mark.parametrize(
    ("limits", "left"), [((0.65, 0.0), ["red", ""]), ((0.0, 0.3), ["red", ""]), ((0.9, 0), ["", ""])]
)
def test_what_is_not_certain_enough_stays_empty_with_its_numbers(limits, left):
    found = decide(np.log([0.4, 0.3, 0.2, 0.1]), CHOICE, 1.0, *limits)
    assert [value for value, *_ in found.values()] == left
    assert abs(found["type"][1] - 0.6) < tolerance("closed_form")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("white Audi SUV", {"color": "white", "brand": "Audi", "type": "SUV"}),
        ("This is a white Audi.", {"color": "white", "brand": "Audi"}),
        ("An orange Balong Heavy Truck.", {"color": "orange", "brand": "Balong Heavy Truck"}),
        ("black Golden Dragon Bus", {"color": "black", "brand": "Golden Dragon", "type": "Bus"}),
        ("Balong Heavy Truck Truck", {"brand": "Balong Heavy Truck", "type": "Truck"}),
        ("A pink MORRIS-GARAGE SUV.", {"color": "pink", "brand": "MORRIS-GARAGE", "type": "SUV"}),
        ("red Some New Name Sedan", {"color": "red", "brand": "Some New Name", "type": "Sedan"}),
        ("Microbus", {"type": "Microbus"}),
        ("This is a red car.", {"color": "red"}),
        ("", {}),
    ],
)
def test_words_of_a_car(said, found):
    assert parse_words(said, read_attributes("a3r")) == found


def test_a_word_stands_once_and_what_is_absent_drops_out():
    preset = read_attributes("a3r")
    assert preset.fill == ("color", "type")
    assert {n: len({*v}) for n, v in preset.attributes.items()} == {"color": 11, "type": 6, "brand": 65}  # A3R's counts
    assert preset.text({"color": "red", "brand": "Balong Heavy Truck", "type": "Truck"}) == "red Balong Heavy Truck"
    assert preset.text({"type": "Bus"}) == "Bus"
    assert WORLD.text({"color": "red"}) == "a photo of a red."


def test_dollar_files_in_and_out(tmp_path):
    """Cars get a fourth field, persons their sentence; candidates are the listed values and the table's own."""
    for name in ("vehicle_1.jpg", "vehicle_2.jpg", "0001.jpg"):
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "train_label.txt"
    person = "0001.jpg$male,young,backpack$A young man with a backpack."
    path.write_text(
        f"vehicle_1.jpg$white Audi$This is a white Audi.\nvehicle_2.jpg$Some Brand SUV$A Some Brand SUV.\n{person}\n",
        encoding="utf-8",
    )
    table = read_attribute_table(path, read_attributes("a3r"))
    assert [table.missing(row) for row in table.rows] == [("type",), ("color",), ()]
    assert attribute_filling.choice_of(table, table.rows[0]).texts[:2] == ("white Audi Bus", "white Audi Microbus")
    assert attribute_filling.choice_of(table, table.rows[1]).texts[0] == "black Some Brand SUV"
    table.rows[0].filled["type"] = ("SUV", 0.9, 0.1)
    assert dollar_bytes(table).decode() == (
        "vehicle_1.jpg$white Audi$This is a white Audi.$white Audi SUV\n"
        "vehicle_2.jpg$Some Brand SUV$A Some Brand SUV.$Some Brand SUV\n"
        f"{person}$A young man with a backpack.\n"
    )
    rows = list(csv.DictReader(table_bytes(table).decode().splitlines()))
    assert rows[0]["type"] == "SUV" and rows[0]["type_probability"] == "0.900000" and rows[1]["color"] == ""
    brands = Attributes({**read_attributes("a3r").attributes}, ("brand",), "{brand}", ("brand",))
    assert read_attribute_table(path, brands).candidates["brand"][-2:] == ("ZXAUTO", "Some Brand")


def test_the_command(scenes, tmp_path, capsys):
    root, things = scenes
    out = tmp_path / "filled.csv"
    arguments = [
        "fill", str(root / "table.csv"), "--model", "shapes-tiny-vit", "--out", str(out), "--fill", "color,shape",
        "--template", "a photo of a {color} {shape}.", "--values", "color=" + ",".join(COLOURS),
        "--values", "shape=" + ",".join(SHAPES),
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "color      5        5" in printed and f"13 rows: {out}" in printed
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["note"] for row in rows[:2]] == ["n0", "n1"]
    assert rows[2]["completed"] == f"a photo of a {things[2][0]} {things[2][1]}." and rows[2]["color_probability"] == ""
    first = out.read_bytes()
    assert main(arguments) == 0 and out.read_bytes() == first
    assert main([*arguments, "--min-probability", "1"]) == 0
    emptied = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert any(row["color_probability"] and not row["color"] for row in emptied)


def test_skip_leaves_rows_of_absent_photos(scenes, capsys):
    table = scenes[0] / "partly.csv"
    table.write_text("photo,color,shape\nabsent.png,,circle\n0.png,,circle\n", encoding="utf-8")
    arguments = ["fill", str(table), "--model", "shapes-tiny-vit", "--fill", "color", "--values", "color=red,blue"]
    assert main([*arguments, "--template", "a {color} car"]) == 2
    assert "1 of 2 photos are missing" in capsys.readouterr().err
    assert main([*arguments, "--template", "a {color} car", "--on-error", "skip"]) == 0
    left, filled = list(csv.DictReader((scenes[0] / "partly_filled.csv").read_text(encoding="utf-8").splitlines()))
    assert left["color"] == "" and filled["color"] in ("red", "blue")


def test_without_out_it_lies_beside_the_table(scenes, capsys):
    table = scenes[0] / "named.csv"
    table.write_text("photo,color,shape\n0.png,red,circle\n", encoding="utf-8")
    assert (
        main(["fill", str(table), "--model", "shapes-tiny-vit", "--fill", "color", "--template", "a {color} car"]) == 0
    )
    assert (scenes[0] / "named_filled.csv").read_text(encoding="utf-8").splitlines()[1].endswith(",a red car")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photo,color\n", "must hold rows"),
        ("picture,color\n1.png,red\n", "must have a column filepath or photo or image"),
        ("photo,color\n,red\n", "line 2: must have a photo"),
        ("photo,color\nabsent.png,red\n", "1 of 1 photos are missing, the first in line 2"),
        ("photo,color\n1.png,red,blue\n", "line 2: must have 2 fields"),
    ],
)
def test_tables_that_are_refused(text, said, tmp_path):
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(JclipError, match=said):
        read_attribute_table(tmp_path / "t.csv", WORLD)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "x.json"], "--out must end in .csv or .txt"),
        (["--preset", "a4r"], "unknown preset of attributes"),
        (["--fill", "wheels"], "unknown attribute"),
        (["--values", "color"], "--values must be NAME=a,b,c"),
        (["--template", "no names"], "must not be empty"),
        (["--template", "a {color}"], "template must name every filled attribute"),
        (["--out", "filled.txt"], "must be a `$` file to be written as one"),
        (["--values", "type="], "no row has a type"),
    ],
)
def test_options_that_are_refused(more, said, scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["fill", str(scenes[0] / "table.csv"), "--out", "filled.csv", "--model", "shapes-tiny-vit", *more]
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""`jclip search` as people type it: a folder of photos, every form of output, links and back, a sheet, lines from a pipe."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.data.augment import AUGMENTS, Views
from jclip.data.shapes import SEEN_STYLES, draw_scene
from jclip.errors import ConfigError
from jclip.features import extraction, half_models, query_features
from jclip.features.gallery import Gallery
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.prompts import scripts
from jclip.readers.spreadsheet import read_csv
from tests.made_galleries import made_gallery, unit_rows

MODEL = "shapes-tiny-rn"
PAIRS = (("red", "circle"), ("blue", "star"), ("green", "moon"), ("white", "cross"))
ODD = ("a\nb.png", "<img src=x onerror=alert(1)>.png", "-rf.png", "c, d.png", "=1+1.png", "照片.png")


def run(*arguments) -> int:
    return main([*map(str, arguments)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """28 photos of one thing each, in two folders, some with odd names."""
    root = tmp_path_factory.mktemp("my photos, 2024")
    for i in range(28):
        place = root / ("b" if i % 2 else "a") / (ODD[i] if i < len(ODD) else f"{i}.png")
        place.parent.mkdir(exist_ok=True)
        draw_scene((7, i), pairs=[PAIRS[i % 4]], styles=SEEN_STYLES[:1], count=(1, 1)).render(64).save(place)
    return root


@pytest.fixture(autouse=True)
def default_model(monkeypatch):
    monkeypatch.setenv("JCLIP_MODEL", MODEL)


def things(paths: list[str], photos: Path) -> list[int]:
    """Which of `PAIRS` each photo shows."""
    numbers = {str(photos / ("b" if i % 2 else "a") / (ODD[i] if i < len(ODD) else f"{i}.png")): i for i in range(28)}
    return [numbers[path] % 4 for path in paths]


def test_a_folder_is_embedded_once_and_updated(photos, tmp_path, capsys, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    for i, path in enumerate(sorted(photos.rglob("[0-9]*.png"))):
        (mine / f"{i}.png").write_bytes(path.read_bytes())
    encoded, before = [], extraction.encoded_batches

    def counted(model, paths, *more):
        encoded.append(len(paths))
        return before(model, paths, *more)

    monkeypatch.setattr(extraction, "encoded_batches", counted)
    assert run("search", mine, "star " * 99) == 2 and "is too long" in capsys.readouterr().err and not encoded
    assert run("search", mine, "blue star", "--filepath-only") == 0
    first = capsys.readouterr()
    assert "photos encoded: 22;" in first.err and encoded == [22]
    assert run("search", mine, "blue star", "--filepath-only") == 0
    again = capsys.readouterr()
    assert again.out == first.out and not again.err and encoded == [22]
    (mine / "0.png").unlink()
    (mine / "new.png").write_bytes((photos / "a" / "=1+1.png").read_bytes())
    (mine / "broken.png").write_bytes(b"no photo")
    assert run("search", mine, "blue star", "--filepath-only") == 0
    said = capsys.readouterr().err
    assert "photos encoded: 1, dropped: 1; in all, kept in the cache: 22" in said and "can't be read: 1 of 23" in said
    assert encoded == [22, 2]  # the broken one was tried
    assert run("search", mine, "blue star", "--filepath-only") == 0 and encoded == [22, 2]


def test_texts_and_photos_find_what_they_show(photos, capsys):
    for number, (colour, shape) in enumerate(PAIRS):
        assert run("search", photos, f"a {colour} {shape}", "--top", 5, "--filepath-only", "--null") == 0
        paths = capsys.readouterr().out.split("\0")[:-1]
        assert things(paths, photos).count(number) >= 4
    assert run("search", photos, f"@{photos}/b/c, d.png", "--top", 1, "--filepath-only") == 0
    assert capsys.readouterr().out == f"{photos}/b/c, d.png\n"
    assert (
        run("search", photos, "a red circle", "+", "a blue star", "-", "a blue star", "--top", 3, "--filepath-only")
        == 0
    )
    assert things(capsys.readouterr().out.split("\n")[:-1], photos) == [0, 0, 0]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_half_a_model_is_the_whole(kind, small_models, photos, close):
    """Each tower alone gives the features of the whole model, and the other's weights are not there."""
    whole, half = (ModelSource(small_models[kind]) for _ in range(2))
    texts = ["a red circle", "two blue stars"]
    tokens = whole.model.tokenize(texts)
    want = unit(whole.model.encode_text(tokens).float32().numpy())
    close(query_features.text_features(half, texts), want, "features_normalised")
    some = [str(photos / "a" / "6.png"), str(photos / "a" / "8.png")]
    batches = list(extraction.encoded_batches(whole.model, some, Views(whole.preprocess)))
    close(
        query_features.photo_features(half, some), unit(np.concatenate([f for _, f in batches])), "features_normalised"
    )
    assert "model" not in vars(half)
    text, vision = (half_models.load_half(half, tower).state_dict() for tower in ("text", "vision"))
    assert {n.split(".")[0] for n in text} & {"visual"} == set() and any(n.startswith("visual") for n in vision)
    mirrored = list(extraction.encoded_batches(whole.model, some, Views(whole.preprocess, AUGMENTS["mirror"])))
    want = unit(np.concatenate([f for _, f in mirrored]))
    close(query_features.photo_features(half, some, mirrored=True), want, "features_normalised")


def test_the_same_photos_in_every_form(photos, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("a red circle\n=1+1\n<b>bold</b>\n", encoding="utf-8")
    files = [tmp_path / f"found.{ending}" for ending in ("json", "jsonl", "csv", "txt")]
    given = ["search", photos, "--queries", tmp_path / "q.txt", "--top", 28]
    for file in files:
        assert run(*given, "--out", file) == 0
    table = capsys.readouterr().out
    assert "a red circle\n" in table and "background of this query" in table and "\n\n=1+1\n" in table
    found = json.loads(files[0].read_text(encoding="utf-8"))
    assert [json.loads(line) for line in files[1].read_text(encoding="utf-8").splitlines()] == found
    assert [one["query"] for one in found] == ["a red circle", "=1+1", "<b>bold</b>"]
    rows = [(one["query"], photo["photo"], photo["stands_out"]) for one in found for photo in one["photos"]]
    read = [(row["query"], row["photo"], row["stands_out"] == "true") for row in read_csv(files[2])]
    assert read == rows and len(rows) == 84
    assert {name for _, name, _ in rows} == {str(path) for path in photos.rglob("*.png")}
    assert files[3].read_text(encoding="utf-8") == "".join(
        f"{name}\n" for name in dict.fromkeys(name for _, name, _ in rows)
    )
    assert run(*given, "--json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found
    assert run(*given, "--csv") == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out)))[1][:3] == [
        "a red circle",
        "1",
        str(found[0]["photos"][0]["row"]),
    ]


def test_what_uses_other_queries_says_so_in_every_form(photos, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("a red circle\na blue star\n")
    given = ["search", photos, "--queries", tmp_path / "q.txt", "--rerank", "expand,spread=all"]
    said = "results depend on the other queries of this call"
    assert run(*given, "--out", tmp_path / "a.csv", "--sheet", tmp_path / "a.html", "--link", tmp_path / "links") == 0
    printed = capsys.readouterr()
    assert printed.out.count(said) == 2 and said in printed.err
    assert {row["uses_other_queries"] for row in read_csv(tmp_path / "a.csv")} == {"true"}
    assert said in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert run(*given, "--json") == 0
    assert all(json.loads(line)["uses_other_queries"] for line in capsys.readouterr().out.splitlines())
    assert run(*given, "--filepath-only") == 0
    assert said in capsys.readouterr().err


def test_links_are_made_and_undone(photos, tmp_path, capsys):
    folder = tmp_path / "links"
    assert run("search", photos, "a red circle / ../..", "--top", 28, "--link", folder) == 0
    (below,) = (path for path in folder.iterdir() if path.is_dir())
    links = sorted(below.iterdir())
    assert len(links) == 28 and {str(link.readlink()) for link in links} == {
        str(path) for path in photos.rglob("*.png")
    }
    assert [link.name[:2] for link in links] == [f"{i:02d}" for i in range(1, 29)]
    assert run("search", photos, "a blue star", "--link", folder) == 2
    assert "stands there already" in capsys.readouterr().err
    assert run("unsort", folder / "sorted.json") == 0
    assert not list(folder.iterdir()) and len(list(photos.rglob("*.png"))) == 28


def test_a_sheet_is_one_page_and_outlives_its_photos(photos, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in photos.rglob("*.png"):
        (mine / path.name).write_bytes(path.read_bytes())
    assert run("search", mine, "<script>alert(1)</script>", "--top", 28, "--sheet", tmp_path / "s.html") == 0
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 28 == page.count('src="data:image/jpeg;base64,') and "<script" not in page
    assert "onerror=alert(1)>" not in page and html.escape("<img src=x onerror=alert(1)>.png") in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    folder = made_gallery(tmp_path / "g", unit_rows(30))  # photos that are not there
    for ending in ("html", "png"):
        assert run("search", folder, "row:2", "--sheet", tmp_path / f"gone.{ending}") == 0
        assert (tmp_path / f"gone.{ending}").stat().st_size > 1000
    assert run("search", mine, "star", "--sheet", mine / "c, d.png") == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_queries_from_a_pipe(photos, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a red circle - a blue star\n\nrow:99\n+\na green moon\n"))
    assert run("search", photos, "--json") == 2
    printed = capsys.readouterr()
    assert [json.loads(line)["query"] for line in printed.out.splitlines()] == [
        "a red circle - a blue star",
        "a green moon",
    ]
    assert "row:99 must be in" in printed.err and "got it last" in printed.err


def test_a_terminal_is_asked_until_its_end(photos, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    lines = iter(["a red circle", "0:x", "", "exit", "never read"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert run("search", photos, "--top", 1) == 0
    printed = capsys.readouterr()
    assert "28 photos; a query a line" in printed.err and "weight must be in" in printed.err
    assert printed.out.count("cosine") == 1 and next(lines) == "never read"


def test_rules_flips_and_hints(photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "rules.yaml").write_text("cars:\n  words: [car]\n  suffix: ' by night'\n")
    seen, before = [], query_features.text_features

    def noted(source, texts, truncate=False):
        seen.extend(texts)
        return before(source, texts, truncate)

    monkeypatch.setattr(query_features, "text_features", noted)
    assert run("search", photos, "red car", "--rules", tmp_path / "rules.yaml", "--top", 1) == 0
    assert seen == ["red car by night"]
    capsys.readouterr()
    monkeypatch.chdir(photos)
    assert run("search", photos, "b/c, d.png", "--flips", "max", "--candidates", 5, "--top", 2) == 0
    printed = capsys.readouterr()
    assert "is searched as words; for what the file shows put @ in front" in printed.err
    assert "re-ranked: none, mirrored photos: max" in printed.out


def test_another_script_is_warned_of(photos, tmp_path, capsys, monkeypatch):
    named = ["--classes", "红圆,star"]
    for arguments in (["search", photos, "蓝色星星"], ["zero-shot", photos, *named], ["tag", photos, *named]):
        monkeypatch.setattr(scripts, "_warned", set())
        assert run(*arguments) == 0
        assert capsys.readouterr().err.count("is Chinese, which these weights never learned") == 1


def test_another_model_or_preprocessing_than_the_gallerys_is_refused(photos, tmp_path, capsys):
    source = ModelSource(MODEL)
    seen = source.preprocess.to_dict()
    same = {"identity": source.identity, "model": MODEL, "preprocess": seen}
    features = unit_rows(30, width=source.config.embed_dim)
    folder = made_gallery(tmp_path / "g", features, **same)
    assert run("search", folder, "a red circle", "--top", 1) == 0
    assert run("search", folder, "row:1", "--model", "shapes-tiny-vit") == 2
    assert "must have the same weights, got" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="must have the same preprocessing"):
        Gallery.open(folder, source=ModelSource(MODEL, upright=False))
    other = made_gallery(tmp_path / "h", features, **{**same, "identity": ["0" * 64, *source.identity[1:]]})
    assert run("search", other, "a red circle") == 2
    assert "must have the same weights, got" in capsys.readouterr().err
    lost = made_gallery(tmp_path / "i", features, **{**same, "model": "moved/away.safetensors"})
    assert run("search", lost, "a red circle") == 2
    assert "name where it is by --model" in capsys.readouterr().err
    assert run("search", lost, "a red circle", "--model", MODEL) == 0

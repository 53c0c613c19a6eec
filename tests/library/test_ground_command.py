"""`jclip ground` as people type it: photos, folders, phrases, JSON, drawings, the run that ships, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune  # noqa: F401 - offers its recipes
from jclip.cli import main
from jclip.data import shapes
from jclip.data.box_samples import drawn_scene
from jclip.errors import DataError
from jclip.functional.boxes import iou
from jclip.model.clip import CLIP
from jclip.model.grounding_attention import reg_attention
from jclip.report.predictor import Predictor
from jclip.runtime import jt
from jclip.train.run_folder import existing_run, is_shipped
from tests.library.test_grounding_network import SHAPES, inputs_of, started

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

RUN = "shapes-tiny-ground"
KEYS = ["phrase", "box", "xywh", "support", "present", "probability"]


@pytest.fixture(scope="module")
def scene() -> shapes.Scene:
    return drawn_scene((3, 1), shapes.SEEN_PAIRS, 0.4)


@pytest.fixture
def folder(tmp_path, monkeypatch, scene) -> Path:
    """Photos in a folder with an odd name, boxes of a detector beside them."""
    place = tmp_path / "my photos, two"
    place.mkdir()
    scene.render(64).save(place / "a 1.png")
    drawn_scene((3, 2), shapes.SEEN_PAIRS, 0).render(80).save(place / "b.png")
    found = [{"image_id": 1, "bbox": [*box[:2], *np.subtract(box[2:], box[:2])]} for box in scene.boxes(64).tolist()]
    (tmp_path / "boxes.json").write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return place


def lines_of(capsys, *arguments: str) -> list[dict]:
    assert main(["ground", *map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_gives_what_it_predicts_in_python(folder, scene, capsys):
    photo, phrases = folder / "a 1.png", scene.phrases()
    (line,) = lines_of(capsys, photo, *phrases, "--run", RUN)
    assert [*line] == ["photo", "width", "height", "method", "found"] and [*line["found"][0]] == KEYS
    assert (line["photo"], line["width"], line["height"], line["method"]) == (str(photo), 64, 64, "network")
    assert lines_of(capsys, photo, *phrases, "--run", RUN, "--model", "shapes-tiny-rn") == [line]
    wanted = Predictor.load(RUN).predict(photo, phrases, support=True)
    for thing, found in zip(wanted, line["found"], strict=True):
        assert found["phrase"] == thing.phrase and found["box"] == [round(v, 2) for v in thing.box]
        assert found["support"] == round(thing.support, 4) and found["probability"] is None
        assert found["present"] == (thing.present and round(thing.present, 4))
        assert found["xywh"] == [round(v, 2) for v in thing.xywh]


def test_boxes_are_of_the_photo_as_it_is_seen(folder, capsys):
    upright = Image.new("RGB", (90, 50), (120, 120, 120))
    upright.paste((220, 30, 30), (60, 10, 85, 35))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    upright.save("upright.png")
    turned, straight = (
        lines_of(capsys, name, "the red square", "--run", RUN)[0] for name in ("turned.png", "upright.png")
    )
    assert (turned["width"], turned["height"]) == (90, 50) and turned["found"] == straight["found"]


def test_with_weights_alone_one_of_the_boxes_or_a_rough_one(folder, scene, capsys):
    photo, phrases = folder / "a 1.png", scene.phrases()
    (line,) = lines_of(capsys, photo, *phrases, "--model", "shapes-tiny-rn", "--boxes", "boxes.json")
    assert line["method"] == "proposals"
    for found, box in zip(line["found"], scene.boxes(64), strict=True):
        assert iou(np.array(found["box"]), box) > 0.99 and found["probability"] > 0.5 and found["present"] is None
    (line,) = lines_of(capsys, photo, *phrases, "--model", "shapes-tiny-rn")
    assert line["method"] == "rough" and all(0 <= v <= 64 for found in line["found"] for v in found["box"])
    several = ("--model", "shapes-tiny-rn", "--model", "shapes-tiny-vit", "--boxes", "boxes.json", "--no-rules")
    assert len(lines_of(capsys, photo, *phrases, *several)[0]["found"]) == len(phrases)


def test_folders_are_a_line_per_photo_and_a_drawing_each(folder, tmp_path, capsys):
    (folder / "c.png").write_bytes(b"no photo")
    arguments = [str(folder), str(folder / "a 1.png"), "the red one", "--run", RUN]
    assert main(["ground", *arguments, "--draw", "drawn", "--attention", "looked"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("the red one") == 3 and "skipped 1 of 4 photos" in printed.err
    assert printed.out.splitlines()[0].split()[:2] == ["photo", "phrase"] and "probability" not in printed.out
    for place in ("drawn", "looked"):
        assert sorted(p.name for p in (tmp_path / place).iterdir()) == ["a 1.png", "a 1_2.png", "b.png"]
    assert Image.open(tmp_path / "drawn" / "a 1.png").size == (480, 480)


@pytest.mark.parametrize("how", [("--run", RUN, "--attention", "looked"), ("--model", "shapes-tiny-rn")])
def test_a_phrase_is_encoded_once_for_all_photos_and_a_photo_once_for_all_phrases(how, folder, monkeypatch, capsys):
    texts, photos = [], []
    for name, seen in (("encode_text", texts), ("encode_image", photos)):
        plain = getattr(CLIP, name)
        monkeypatch.setattr(
            CLIP, name, lambda self, x, *more, f=plain, s=seen, **named: s.append(len(x)) or f(self, x, *more, **named)
        )
    blurred = []
    plain_filter = Image.Image.filter
    monkeypatch.setattr(Image.Image, "filter", lambda *a: blurred.append(1) or plain_filter(*a))
    assert main(["ground", str(folder), "the red one", "the star", *how]) == 0
    capsys.readouterr()
    if how[0] == "--run":  # tokens of both phrases together, then each with "a photo of" for its support
        assert texts == [2, 1, 1] and photos == [1, 2] * 2 and not blurred
    else:
        assert texts == [1] * 3 and len(blurred) == 2  # both and "a photo"; the maps are of another method


def test_a_long_phrase_is_refused_also_after_it_was_cut(scene):
    run, photo = Predictor.load(RUN), scene.render(64)
    assert run.predict(photo, [LONG], support=True, truncate=True)
    with pytest.raises(DataError, match="too long"):
        run.predict(photo, [LONG])


def test_the_last_argument_is_a_phrase_even_where_a_file_has_its_name(folder, tmp_path, capsys):
    (tmp_path / "dog").mkdir()
    assert lines_of(capsys, folder / "b.png", "dog", "--run", RUN)[0]["found"][0]["phrase"] == "dog"
    assert lines_of(capsys, folder / "b.png", "--phrase", "b.png", "--run", RUN)[0]["found"][0]["phrase"] == "b.png"


LONG = "very " * 90
WRONG = {
    "no such photo or folder: 'none.png'": ["none.png", "dog"],
    "name what to find in": ["b.png"],
    "a phrase must not be empty": ["b.png", " "],
    "no such photo: 'none.jpg'": ["b.png", "none.jpg", "dog"],
    "photos must stand before phrases": ["b.png", "dog", "b.png"],
    "holds no finished run (no result.json), did you mean 'shapes-tiny-ground'?": [
        "b.png",
        "dog",
        "--run",
        "shapes-tiny-grund",
    ],
    "must hold a run of the task ground, got classify": ["b.png", "dog", "--run", "other"],
    "is too long for context length": ["b.png", LONG, "--run", RUN],
    "is too long for": ["b.png", LONG, "--model", "shapes-tiny-rn"],
    "--model must name one model beside --run": ["b.png", "dog", "--run", RUN, "--model", "a", "--model", "b"],
    "--boxes must stand beside --model, without --run": ["b.png", "dog", "--run", RUN, "--boxes", "boxes.json"],
    "--no-rules must stand beside --model, without --run": ["b.png", "dog", "--run", RUN, "--no-rules"],
    "--attention must stand beside --run": ["b.png", "dog", "--model", "shapes-tiny-rn", "--attention", "x.png"],
    "--min-score must stand beside --boxes": ["b.png", "dog", "--min-score", "1"],
    "several models must stand beside --boxes": ["b.png", "dog", "--model", "a", "--model", "b"],
    "a drawing is written as one of": ["b.png", "dog", "--run", RUN, "--draw", "x.gif"],
    "need a folder, got 'x.png'": [".", "dog", "--run", RUN, "--draw", "x.png"],
    "is read, and would be overwritten": ["b.png", "dog", "--run", RUN, "--draw", "b.png"],
    "got none with a score of 2": [
        "b.png",
        "dog",
        "--model",
        "shapes-tiny-rn",
        "--boxes",
        "b.json",
        "--min-score",
        "2",
    ],
    "is not valid JSON": ["b.png", "dog", "--model", "shapes-tiny-rn", "--boxes", "b.png.json"],
    "does not decode": ["c.png", "dog", "--run", RUN],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_one_line(message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    Path("b.json").write_text('[{"image_id": "b", "bbox": [0, 0, 9, 9], "score": 1}]', encoding="utf-8")
    Path("b.png.json").write_text("[NaN]", encoding="utf-8")
    Path("c.png").write_bytes(b"no photo")
    Path("other").mkdir()
    Path("other/result.json").write_text(
        '{"config": {"recipe": "zero_shot", "model": "x"}, "metrics": {}}', encoding="utf-8"
    )
    before = sorted(p.name for p in folder.iterdir())
    assert main(["ground", *WRONG[message]]) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1] and not printed.out
    assert len([line for line in printed.err.splitlines() if line.startswith("jclip ground: ")]) == 1
    assert sorted(p.name for p in folder.iterdir()) == before


def test_the_run_that_ships_has_a_name_wherever_a_run_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert is_shipped(existing_run(RUN)) and not is_shipped(existing_run("elsewhere"))
    assert main(["compare", RUN]) == 0 and RUN in capsys.readouterr().out
    assert main(["eval", RUN]) == 2 and "say with --out" in capsys.readouterr().err
    assert main(["predict", RUN, "x.png"]) == 2
    Path(RUN).mkdir()
    assert existing_run(RUN) == Path(RUN)  # a folder of that name comes first


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_where_reg_looks_equals_torchs_attention(kind, seed, close):
    """The layers by torch's own modules, whose attention of the last one is asked for."""
    shape, data = SHAPES[kind], inputs_of(SHAPES[kind], seed)
    network = started(shape, seed)
    p = {k: torch.tensor(v.numpy()).double() for k, v in network.state_dict().items()}
    F = torch.nn.functional

    def projected(x, name, norm):
        x = F.linear(torch.tensor(x).double(), p[f"{name}.weight"], p[f"{name}.bias"])
        return F.layer_norm(x, x.shape[-1:], p[f"{norm}.weight"], p[f"{norm}.bias"]) if shape.project_norm else x

    images = projected(data["images"], "visu_proj" if shape.last else "ml_visu_proj", "visu_norm")
    texts = projected(data["texts"], "text_proj", "text_norm")
    x = torch.cat([p["reg_token.weight"].expand(len(texts), 1, shape.hidden), texts, images], dim=1)
    counted = np.concatenate([np.ones((len(texts), 1)), data["said"], data["seen"]], axis=1)
    ignored, weights = torch.tensor(counted == 0), None
    for i in range(shape.layers):
        name = f"vl_transformer.encoder.layers.{i}."
        layer = torch.nn.TransformerEncoderLayer(
            shape.hidden, shape.heads, shape.ffn, 0.0, batch_first=True, dtype=torch.float64
        )
        layer.load_state_dict({k: p[name + k] for k in layer.state_dict()})
        q = x + p["vl_pos_embed.weight"]
        mixed, weights = layer.self_attn(q, q, x, ignored, need_weights=True, average_attn_weights=False)
        x = layer.norm1(x + mixed)
        x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
    found = reg_attention(network, *(data[k] for k in ("images", "texts", "said", "seen")))
    close(found, weights[:, :, 0].detach().numpy(), "probabilities_at_100", "attention of [REG]")
    assert (found[counted[:, None].repeat(shape.heads, 1) == 0] == 0).all()


def test_where_a_run_looks_is_the_mean_of_heads_on_its_grid(scene, close):
    run, photo = Predictor.load(RUN), scene.render(64).resize((64, 40))
    looked = run.attention(photo, scene.phrases())
    assert [one.phrase for one in looked] == [*scene.phrases()]
    for one in looked:
        assert one.weights.shape == (8, 8) and 0 < one.weights.sum() <= 1 + 1e-6 and not one.weights[0].any()  # padding
        assert math.isclose(one.place.ratio, 1) and one.place.top == 12
    with pytest.raises(DataError, match="too long"):
        run.attention(photo, LONG)
    jt.sync_all()

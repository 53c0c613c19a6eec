"""Classify and tag: the command that is shown computes the same, unsure photos come first, wrong ones are named; clicks."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import finetune  # noqa: F401 - offers its recipes
from jclip.app import drawn_examples, photo_labelling, score_bars
from jclip.app.desk import Desk, Stopped
from jclip.app.opened_models import OpenedModels
from jclip.app.photo_labelling import Labeller, Question
from jclip.app.uploaded_files import check_uploaded, uploaded
from jclip.cli import main
from jclip.data.photo_file import open_photo
from jclip.errors import ConfigError, DataError, UnknownName, notice
from jclip.features import photo_galleries
from jclip.features.concepts import write_concept
from jclip.features.lesson import Lesson
from jclip.features.source import ModelSource
from jclip.functional.calibration import sigmoid
from jclip.functional.directions import unit
from jclip.prompts import query_terms
from jclip.prompts.class_sets import class_set
from jclip.prompts.templates import class_prompts, load_templates
from jclip.report import tag_rules
from jclip.report.asked_photos import Asked, ask
from jclip.report.predictions import Predictions
from jclip.report.tag_rules import kept_calibration
from jclip.report.tags import Tags
from jclip.report.typed_names import NAMES_FILE, typed_classes, typed_templates
from tests.app.conftest import needs_gradio
from tests.browser import PATIENCE
from tests.library.test_predict_tags import trained
from tests.toys import SMALL_SIGLIP, toy_file

ODD = ("-a=1.png", "a, b.png", "照片 3.png", "it's 4.png")
NAMES = "\n".join(drawn_examples.NAMES)


@pytest.fixture(scope="module")
def handed(tmp_path_factory) -> Path:
    """Drawn scenes under odd names."""
    folder = tmp_path_factory.mktemp("handed over, 照片")
    for path, name in zip(drawn_examples.scenes(folder)[:4], ODD, strict=True):
        Path(path).rename(folder / name)
    for path in folder.glob("scene-*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def labeller():
    desk = Desk(model="shapes-tiny-rn")
    yield Labeller(desk)
    desk.close()


@pytest.fixture(scope="module")
def runs(small_models, photo_folder, tmp_path_factory) -> dict[str, Path]:
    """A run of one class for each photo, and one of several."""
    folder = tmp_path_factory.mktemp("runs, 训练")
    (folder / "gda.yaml").write_text(
        f"recipe: gda\nmodel: '{small_models['vit']}'\ntemplates: simple\ndata: {{root: '{photo_folder}', shots: 1}}\n"
    )
    assert main(["train", str(folder / "gda.yaml"), "--run", str(folder / "one")]) == 0
    return {"one": folder / "one", "several": trained(folder / "several", small_models)}


def asked(handed: Path, **more) -> Question:
    return Question({str(handed / name): name for name in ODD}, **more)


def as_shown(command: str, folder: Path, monkeypatch) -> list[dict]:
    """What the file holds that the command writes in the folder of the photos."""
    monkeypatch.chdir(folder)
    *before, line = command.split("\n")
    for other in before:
        subprocess.run(["sh", "-c", other], check=True)
    program, *words = shlex.split(line)
    out = Path(words[words.index("--out") + 1])
    try:
        assert program == "jclip" and main(words) == 0
        return json.loads(out.read_text(encoding="utf-8"))
    finally:
        out.unlink(missing_ok=True)
        Path(NAMES_FILE).unlink(missing_ok=True)


MANY = "\n".join(f'thing {k}, "x\\n$HOME"' for k in range(1200))
QUESTIONS = {
    "names": ("classes", {"names": NAMES}),
    "a set": ("classes", {"names": "cifar10", "templates": "a picture of $HOME's {}"}),
    "many names": ("classes", {"names": MANY, "templates": "simple"}),
    "tags": ("tags", {"names": NAMES, "templates": "simple"}),
    "a threshold": ("tags", {"names": NAMES, "templates": "simple", "threshold": -0.25, "none": False}),
    "one name": ("tags", {"names": "x/y.txt", "templates": "simple", "model": "shapes-tiny-rn"}),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_the_shown_command_computes_the_same(case, labeller, handed, monkeypatch, capsys):
    how, given = QUESTIONS[case]
    answer = getattr(labeller, how)(asked(handed, **given)).to_json()
    assert as_shown(answer["command"], handed, monkeypatch) == answer["photos"]
    assert [entry["photo"].removeprefix("./") for entry in answer["photos"]] == [*ODD] and answer["failed"] == []
    capsys.readouterr()


@pytest.mark.parametrize("names", ["concept:warm.concept", "green thing\nconcept:in, here/warm.concept\nblue thing"])
def test_what_was_taught_is_a_name_of_tags(names, labeller, handed, monkeypatch, capsys):
    gallery = photo_galleries.gallery_of_photos(handed, "shapes-tiny-rn")
    concept = Lesson(gallery, query_terms.parse_terms(["something red"])).concept("warm")
    (handed / "in, here").mkdir(exist_ok=True)
    for place in ("warm.concept", "in, here/warm.concept"):
        write_concept(handed / place, concept)
    monkeypatch.chdir(handed)
    found = labeller.tags(asked(handed, names=names, templates="simple"))
    assert as_shown(found.command, handed, monkeypatch) == found.to_json()["photos"]
    bars = {bar.name: bar for bar in score_bars.bars_of(found.asked.found, 0)}
    assert bars["warm"].limit == 0.5 and found.asked.found.margins.max() <= 0.5
    for wrong in (f"concept:{handed}/warm.concept", "@../x.concept"):
        with pytest.raises(ConfigError, match="must lie below where jclip app was started"):
            labeller.tags(asked(handed, names=f"a\n{wrong}"))
    with pytest.raises(DataError, match="no such concept: none.concept"):
        labeller.tags(asked(handed, names="a\nconcept:none.concept"))
    capsys.readouterr()


def test_runs_answer_as_predict_does(labeller, handed, runs, monkeypatch, capsys):
    one, several = (str(runs[name]) for name in ("one", "several"))
    for how, run, more in (("classes", one, {}), ("tags", several, {}), ("tags", several, {"threshold": 0.5})):
        answer = getattr(labeller, how)(asked(handed, run=run, **more)).to_json()
        assert as_shown(answer["command"], handed, monkeypatch) == answer["photos"]
    opened = labeller.opened.run(one)
    assert opened is labeller.opened.run(one) and opened.source() is opened.source()  # the model stays loaded
    with pytest.raises(ConfigError, match="ask it for tags"):
        labeller.classes(asked(handed, run=several))
    with pytest.raises(ConfigError, match="ask it for classes"):
        labeller.tags(asked(handed, run=one))
    with pytest.raises(ConfigError, match="jclip ground"):
        labeller.classes(asked(handed, run="shapes-tiny-ground"))
    capsys.readouterr()


def test_fitted_thresholds_stand_beside_the_scores(labeller, handed, runs, monkeypatch, capsys):
    names = ("red thing", "green thing", "blue thing")
    lines = [json.dumps({"image": name, "labels": [names[k % 3], names[(k + 1) % 3]]}) for k, name in enumerate(ODD)]
    (runs["several"].parent / "labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(runs["several"].parent)
    given = ["--calibrate-on", "labels.jsonl", "--root", str(handed), "--threshold", "class_f1", "--out", "x.json"]
    assert main(["predict", str(runs["several"]), str(handed), *given]) == 0
    found = labeller.tags(asked(handed, run=str(runs["several"])))
    assert as_shown(found.command, handed, monkeypatch) == found.to_json()["photos"]
    fitted = kept_calibration(labeller.opened.run(str(runs["several"])))
    wanted = sigmoid(fitted.a * fitted.thresholds + fitted.b)
    for row in range(len(ODD)):
        assert np.allclose(found.asked.found.limits_of(row), wanted, equal_nan=True)
    bars = {bar.name: bar for bar in score_bars.bars_of(found.asked.found, 0)}
    for name, limit in zip(names, wanted, strict=True):
        assert bars[name].limit == (None if np.isnan(limit) else pytest.approx(limit))
    capsys.readouterr()


def test_the_prompt_that_decided_is_the_nearest_of_the_class(labeller, handed, close):
    """Against each prompt's own cosine, of photo and text encoded alone."""
    found = labeller.classes(asked(handed, names=NAMES)).asked.found
    source, prompts = ModelSource("shapes-tiny-rn"), class_prompts(drawn_examples.NAMES, load_templates("openai80"))
    for row, name in enumerate(ODD):
        photo = source.preprocess(open_photo(handed / name))[None]
        seen = unit(source.model.encode_image(photo).numpy())[0]
        own = prompts[int(found.scores[row].argmax())]
        cosines = unit(source.model.encode_text(source.tokenize(own)).numpy()) @ seen
        assert found.prompts[row] == own[int(cosines.argmax())]
        close(np.array([found.cosines[row]]), cosines.max(keepdims=True), "probabilities_at_100", "cosine that decided")


def test_unsure_photos_come_first():
    scores = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.5, 0.1, 0.4]]))
    found = Predictions(("a", "b", "c"), ("x", "y", "z"), scores)
    assert np.allclose(found.margins, [0.5, 0.05, 0.1]) and Asked(found).order == [1, 2, 0]
    assert np.allclose(Predictions(("a",), ("x",), np.zeros((1, 1))).margins, 0)
    tags = Tags(("a", "b"), ("x", "y"), np.array([[0.9, 0.2], [0.6, 0.1]]), threshold=0.5)
    assert np.allclose(tags.margins, [0.3, 0.1]) and Asked(tags).order == [1, 0]
    fitted = Tags(("a",), ("x", "y"), np.array([[0.9, 0.2]]), passing=np.array([[True, False]]),
                  limits=np.array([0.3, np.nan]))  # fmt: skip
    assert np.allclose(fitted.margins, [0.6])
    assert [(bar.name, bar.chosen, bar.limit) for bar in score_bars.bars_of(fitted, 0)] == [
        ("x", True, pytest.approx(0.3)), ("y", False, None),
    ]  # fmt: skip


def test_photos_that_do_not_decode_are_left_out_with_a_line_each(handed, tmp_path):
    """Also those of which only the labelling finds out; in parts as all at once."""
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    shutil.copy(handed / ODD[1], tmp_path / "late.png")
    photos, said = (
        [str(handed / ODD[0]), *(str(tmp_path / n) for n in ("broken.jpg", "late.png")), str(handed / ODD[2])],
        [],
    )

    def label(some):
        if late := next((photo for photo in some if photo.endswith("late.png")), ""):
            raise DataError(f"{late} is too small")
        return Predictions(tuple(some), ("x", "y"), np.array([[len(photo), 0] for photo in some], float))

    for at_once in (1, 2, 64):
        found = ask(photos, label, at_once, lambda done, total: said.append((done, total)))
        assert found.found.photos == (photos[0], photos[3])
        assert found.found.scores[:, 0].tolist() == [len(photos[0]), len(photos[3])]
        assert [Path(line.split(" ")[0]).name for line in found.failed] == ["broken.jpg", "late.png"]
        assert said[-1][1] == 3
    with pytest.raises(DataError, match="does not decode"):
        ask(photos[1:2], label)
    with pytest.raises(DataError, match="photos must be given"):
        ask([], label)
    with pytest.raises(ZeroDivisionError):
        ask(photos, label, step=lambda done, total: 1 // 0)


def test_a_wrong_photo_gives_the_line_of_the_command(labeller, shared, tmp_path, monkeypatch, capsys):
    wrong = shared / "hostile" / "billion_laughs.pt"
    shutil.copy(wrong, tmp_path / "billion laughs.jpg")
    monkeypatch.chdir(tmp_path)
    assert (
        main(["zero-shot", "billion laughs.jpg", "--classes", "a,b", "--model", "shapes-tiny-rn", "--on-error", "stop"])
        == 2
    )
    said = capsys.readouterr().err.strip()
    for how in (labeller.classes, labeller.tags):
        with pytest.raises(DataError) as raised:
            how(Question({str(tmp_path / "billion laughs.jpg"): "billion laughs.jpg"}, "a\nb"))
        assert said.startswith(f"jclip zero-shot: {raised.value}") and str(tmp_path) not in str(raised.value)


def test_what_the_command_would_note_is_said(labeller, handed):
    assert any("never learned" in note for note in labeller.classes(asked(handed, names="γάτα\nσκύλος")).notes)
    notice("nobody hears this")


def test_names_and_templates_are_never_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("secret.txt", "a {} b", "plain"):
        (tmp_path / name).write_text("a\nb\n")
    assert typed_classes(f"{tmp_path}/secret.txt\nplain").names == (f"{tmp_path}/secret.txt", "plain")
    assert typed_classes("plain , secret.txt").names == ("plain", "secret.txt")
    assert typed_classes(" imagenet1k ").names == class_set("imagenet1k") and typed_classes("coco").argument == "coco"
    assert typed_classes("one, name\n two  words ").names == ("one, name", "two words")
    for concept in ("concept:warm.concept", "@warm.concept"):
        with pytest.raises(
            DataError, match=f"names must be texts here, got the concept '{concept}': tags are given by"
        ):
            typed_classes(f"a heart\n{concept}")
        assert typed_classes(concept, 1, taught=True).argument == concept
    assert json.loads(typed_classes("one, name\ntwo").file) == ["one, name", "two"]
    assert typed_templates(" openai7+simple ") == "openai7+simple" and typed_templates("jittor_challenge[2]")
    assert typed_templates("") == "" and typed_templates("a photo of {}") == "a photo of {}"
    for text, error in (("a {} b", DataError), (f"{tmp_path}/secret.txt", UnknownName), ("plain", UnknownName),
                        ("x{}" * 1000, DataError), ("openai7+plain", UnknownName)):  # fmt: skip
        with pytest.raises(error):
            typed_templates(text)
    many, long = "\n".join(map(str, range(100_001))), "x" * 2001 + "\ny"
    wrong = {
        "": "must be given",
        "cat": "at least two",
        "cat\nCat": "stand more than once",
        long: "2,000",
        many: "100,001",
    }
    for text, message in wrong.items():
        with pytest.raises(DataError, match=message):
            typed_classes(text)


def test_photos_are_called_as_they_were_and_are_never_paths(tmp_path):
    made = [SimpleNamespace(path=str(tmp_path / "x" / "a.png"), orig_name="../<a>.png"),
            SimpleNamespace(path=str(tmp_path / "y" / "b.png"), orig_name=None)]  # fmt: skip
    wanted = {made[0].path: "<a>.png", made[1].path: "b.png"}
    assert uploaded(SimpleNamespace(root=made)) == wanted and uploaded(made[1]) == {made[1].path: "b.png"}
    assert uploaded(None) == uploaded(SimpleNamespace(root=[])) == {}
    check_uploaded(tmp_path, wanted)
    for path in ("/etc/passwd", f"{tmp_path}/../passwd", str(tmp_path)):
        with pytest.raises(DataError, match="must be uploaded"):
            check_uploaded(tmp_path, [path])


def test_names_of_files_and_classes_stay_text_and_long_lists_short():
    evil = "<img src=x onerror=alert(1)>${value}`'\""
    names = (evil, *(f"class {k}" for k in range(1199)))
    scores = np.zeros((2, 1200), np.float32)
    scores[:, 0] = 5.0
    found = Predictions(("p", "q"), names, scores, prompts=(evil, evil), cosines=(0.5, 0.25))
    for language in ("en", "zh"):
        html = score_bars.bars_html(Asked(found), 0, evil, "/tmp/a.webp", language)
        html += score_bars.table_html(Asked(found), [evil, evil], ["/tmp/a.webp"], language)
        assert (
            "<img src=x" not in html
            and "${" not in html
            and "`" not in html
            and html.count("onerror") == html.count("=alert")
        )
        assert html.count('class="sb-row') == score_bars.BARS and "1,190" in html
        share = 1 - (np.exp(5.0) + 9) / (np.exp(5.0) + 1199)
        assert f"{100 * share:.1f}" in html and ("1 more photos" in html or "1 张照片" in html)


def test_weights_of_the_sigmoid_loss_give_probabilities_of_their_own(
    labeller, handed, tmp_path_factory, monkeypatch, capsys
):
    pytest.importorskip("tokenizers", reason="its vocabulary is a tokenizer.json: pip install '.[tokenizers]'")
    model = str(toy_file(tmp_path_factory.mktemp("siglip"), SMALL_SIGLIP))
    for how in ("classes", "tags"):
        found = getattr(labeller, how)(asked(handed, names="cat\ndog\nowl", templates="simple", model=model))
        assert as_shown(found.command, handed, monkeypatch) == found.to_json()["photos"]
        kept = found.asked.found
        assert kept.sigmoid if how == "classes" else kept.kind == "probability"
    capsys.readouterr()


def test_a_gallery_of_eight_bits_is_labelled_as_commands_do_it(labeller):
    """Without further options: in float32, by weights that are opened beside those of the gallery."""
    desk = Desk(model="shapes-tiny-rn")
    desk.gallery = SimpleNamespace(source=ModelSource("shapes-tiny-rn", dtype="int8"))
    source, name = OpenedModels(desk).plain()
    assert source.dtype == "fp32" and name == "shapes-tiny-rn"
    desk.gallery.source = ModelSource("shapes-tiny-vit")
    source, name = OpenedModels(desk).plain()
    assert source is desk.gallery.source and name == str(source.checkpoint.path)
    desk.close()


def test_labelling_goes_on_where_it_was_stopped(labeller, handed, monkeypatch):
    monkeypatch.setattr(photo_labelling, "AT_ONCE", 1)
    question, label, looked = asked(handed, names=NAMES, templates="simple"), tag_rules.tags_of, []
    whole = labeller.tags(question).to_json()
    monkeypatch.setattr(tag_rules, "tags_of", lambda *given: looked.append(1) or label(*given))

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped(done, total)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped at 2 of 4"):
        patch.setattr(labeller.desk, "step", stop)
        labeller.tags(question)
    assert labeller.tags(question).to_json() == whole and len(looked) == 4
    labeller.tags(question)
    assert len(looked) == 8  # what is finished is asked anew


def test_the_encoding_of_prompts_can_be_stopped(labeller, handed, monkeypatch):
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done:
            raise Stopped(done, total)

    monkeypatch.setattr(labeller.desk, "step", stop)
    with pytest.raises(Stopped):
        labeller.classes(asked(handed, names="\n".join(f"never asked {k}" for k in range(600)), templates="simple"))
    assert seen[-1][1] == 600 and seen[-1][0] < 600


# --- in the browser


def hand_over(page, field: str, *photos: Path) -> None:
    """Chooses files as a person does."""
    (files,) = page.wait(lambda: page.browser.find_elements("css selector", f"{field} input[type=file]"))
    files.send_keys("\n".join(map(str, photos)))


def test_drawn_scenes_are_classified_and_tagged_by_clicks(page):
    page.open()
    page.tab("classify")
    page.click("#classify-example")
    page.wait(lambda: "red circle" in page.value("#classify-names textarea"))
    page.click("#classify-go")
    page.wait(lambda: len(page.all("#classify-table tbody tr")) == drawn_examples.COUNT)
    page.wait(lambda: page.all("#classify-bars .sb-on"))
    page.says("#classify-summary", "most unsure")
    second = page.all("#classify-table .sb-pick span")[1].text
    page.click("#classify-table tr:nth-child(2) .sb-pick")
    page.wait(lambda: page.text("#classify-bars figcaption") == second)
    page.click("#tag-go")
    page.wait(lambda: page.all("#classify-bars u"))
    page.wait(lambda: " --none " in page.value("#classify .command textarea"))
    assert page.complaints() == []


def test_a_wrong_photo_is_said_in_the_page_in_chinese_and_narrow(page, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "<img src=x onerror=document.title=1>.png")
    page.open(390, language="zh-CN")
    page.tab("classify")
    hand_over(page, "#classify-photos", *tmp_path.iterdir())
    page.wait(lambda: "broken" in page.text("#classify-photos"))
    page.type("#classify-names textarea", "red thing\nblue thing")
    page.click("#classify-go")
    page.says("#classify-summary", "没有处理")
    page.says("#classify-bars", "red thing")
    assert "broken.jpg does not decode" in page.text("#classify-summary") and not page.wider_than_screen()
    assert page.browser.title == "jclip"
    assert "'<img src=x onerror=document.title=1>.png'" in page.value("#classify .command textarea").replace("./", "")


def test_the_endpoints_of_both_tabs_answer_as_json(served, handed):
    needs_gradio()
    from gradio_client import Client, handle_file

    client, run = Client(served.address, verbose=False, httpx_kwargs={"timeout": PATIENCE}), drawn_examples.RUN
    try:
        photos = [handle_file(str(handed / name)) for name in ODD]
        found = client.predict(photos=photos, names=NAMES, templates="simple", run="", api_name="/classify")
        assert len(found["photos"]) == 4 and found["photos"][0]["predictions"][0]["class"] in drawn_examples.NAMES
        assert found["command"].startswith("jclip zero-shot ") and "cosine" in found["photos"][0]
        found = client.predict(photos, NAMES, "simple", "", None, True, api_name="/tag")
        assert [*found["photos"][0]] == ["photo", "tags"] and found["failed"] == []
        found = client.predict(photo=photos[0], phrases="the red circle\nthe moon", run=run, api_name="/locate")
        assert [thing["phrase"] for thing in found["found"]] == ["the red circle", "the moon"] and found[
            "method"
        ] == "network"
        for api, wrong, message in (
            ("/classify", [photos, "one", "", ""], "at least two"),
            ("/tag", [[], NAMES, "", "", None, True], "photos must be given"),
            ("/locate", [photos[0], "dog", "nowhere"], "holds no finished run"),
        ):
            with pytest.raises(Exception, match=message):
                client.predict(*wrong, api_name=api)
    finally:
        client.close()

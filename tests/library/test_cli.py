"""Commands as people type them: quick to answer, right, and one clear line when something is wrong."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jclip.cli
from jclip.commands import doctor
from jclip.features.heads import zero_shot_head
from jclip.features.source import ModelSource
from jclip.functional.directions import unit
from jclip.kernels import trials
from jclip.postponed import postponed
from jclip.prompts.templates import class_prompts, load_templates
from jclip.weights.text_configs import BertConfig, SigLIPTextConfig, TextConfig

ROOT = Path(__file__).parent.parent.parent
CLASSES = "red thing,绿 thing,blue thing"


def run(*arguments: str) -> int:
    return jclip.cli.main([str(a) for a in arguments])


# Quick answers: what takes long to load is not loaded. The seconds are the bench's.

SLOW = ("numpy.", "PIL.", "jittor", "torch", "matplotlib.", "sklearn", "scipy")
LOADED = f"[name for name in sys.modules if name.startswith({SLOW})]"


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_help_loads_nothing_slow():
    """All in one process: what one command had loaded would be there after it."""
    code = f"""if True:
        import sys
        from jclip.cli import main
        for command in sys.argv[1:]:
            try:
                main([*command.split(), "--help"])
            except SystemExit as e:
                assert not e.code
            assert not {LOADED}, (command, {LOADED})
        """
    commands = ["", "zero-shot", "train", "eval", "predict", "recipes", "models", "warmup", "doctor"]
    done = python(code, *commands)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(commands)


def test_wrong_settings_are_reported_before_numpy_is_loaded():
    code = f"""if True:
        import sys
        from finetune.__main__ import main
        for config in sys.argv[1:]:
            assert main(["train", config, "no_such_key=1"]) == 2, config
            assert not {LOADED}, (config, {LOADED})
        import numpy
        assert numpy.arange(3).sum() == 3  # postponed, not broken
        import numpy.fft
        assert numpy.fft.fft([1.0])[0] == 1
        """
    configs = sorted(ROOT.glob("configs/*/smoke.yaml"))
    done = python(code, *configs)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("unknown key no_such_key") == len(configs) > 20


def test_a_postponed_package_is_run_once_by_its_first_use(tmp_path, monkeypatch, capsys):
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel" / "__init__.py").write_text("print('run')\nvalue = 7")
    (tmp_path / "parcel" / "part.py").write_text("value = 8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(KeyError), postponed("parcel"):
            import parcel

            assert capsys.readouterr().out == ""
            raise KeyError
        import parcel.part

        assert (parcel.value, parcel.part.value, capsys.readouterr().out) == (7, 8, "run\n")
        with postponed("parcel"), postponed("no_such_parcel"), pytest.raises(ModuleNotFoundError):
            import no_such_parcel  # noqa: F401
        (tmp_path / "parcel" / "__init__.py").write_text("raise KeyError('broken')  # longer than before")
        for name in ("parcel", "parcel.part"):
            del sys.modules[name]
        with pytest.raises(KeyError, match="broken"), postponed("parcel"):
            import parcel  # reported when the block ends, and not left half run
        assert "parcel" not in sys.modules
    finally:
        for name in ("parcel", "parcel.part"):
            sys.modules.pop(name, None)


def test_tokenizing_loads_no_framework():
    done = python("import jclip, sys; jclip.tokenize('x'); assert not {'jittor', 'torch', 'sklearn'} & {*sys.modules}")
    assert done.returncode == 0, done.stderr


def test_a_warm_zero_shot_compiles_nothing_and_loads_no_tables_or_plots(small_models, tmp_path):
    """Prompts and photo are new each time, so that nothing comes from the cache of features; the second time g++ fails."""
    code = """if True:
        import sys
        from jclip.cli import main
        assert main(sys.argv[1:]) == 0
        assert not [name for name in sys.modules if name.startswith(("torch", "matplotlib.", "sklearn"))]
        """
    for number, environment in enumerate(({}, {"DEPENDENCIES_OUTPUT": "/nowhere/at/all"})):
        Image.effect_noise((320, 240), 40 + number).convert("RGB").save(tmp_path / "photo.jpg")
        options = ["--model", small_models["vit"], "--classes", f"a cat {number},a dog", "--templates", "openai7"]
        done = python(code, "zero-shot", tmp_path / "photo.jpg", *options, **environment)
        assert done.returncode == 0 and "a dog" in done.stdout, done.stderr


# zero-shot


@pytest.fixture
def photos(photo_folder):
    return sorted((photo_folder / "test").rglob("*.png"))


def by_hand(source, photos):
    head = zero_shot_head(source, class_prompts(CLASSES.split(","), load_templates("openai7")))
    images = np.stack([source.preprocess(Image.open(p)) for p in photos])
    scores = head.scale * unit(source.model.encode_image(images).numpy()) @ head.weights.T
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_zero_shot_writes_what_the_formula_says(kind, small_models, photo_folder, photos, tmp_path, capsys, close):
    out = tmp_path / "my results" / "r.csv"
    options = ["--model", small_models[kind], "--classes", CLASSES, "--templates", "openai7", "--out", out, "--top", 3]
    assert run("zero-shot", photo_folder / "test", *options) == 0
    assert "top 1" in (result := capsys.readouterr().out) and f"written: {out} (18 photos)" in result
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    found = {row["photo"]: {row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)} for row in rows}
    wanted = by_hand(ModelSource(small_models[kind]), photos)
    got = [[found[str(p)][c] for c in CLASSES.split(",")] for p in photos]
    close(got, wanted, "scores")


def test_zero_shot_in_the_challenges_lines_and_json(small_models, photos, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("red thing 2\n绿 thing 0\nblue thing 1\n", encoding="utf-8")
    for name in ("r.txt", "r.json"):
        options = ["--model", small_models["vit"], "--classes", tmp_path / "classes.txt", "--out", tmp_path / name]
        assert run("zero-shot", *photos[:2], *options) == 0
    lines = (tmp_path / "r.txt").read_text().splitlines()
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    for photo, line, entry in zip(photos, lines, written, strict=False):
        name, *ids = line.rsplit(" ", 3)
        assert name == photo.name and sorted(ids) == ["0", "1", "2"] and entry["photo"] == str(photo)
        assert [p["label"] for p in entry["predictions"]] == list(map(int, ids))


def wrong(tmp_path, small_models):
    vit = ["--model", small_models["vit"]]
    (tmp_path / "broken.jpg").write_text("no photo")
    (tmp_path / "no weights.pt").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.json").write_text("7")
    Image.new("RGB", (40, 40)).save(tmp_path / "ok.png")
    ok, two = tmp_path / "ok.png", ["--classes", "a,b"]
    return {
        "no such photo or folder": [tmp_path / "none.jpg", *vit, *two],
        "no photo below": [tmp_path / "empty", *vit, *two],
        "broken.jpg does not decode": [tmp_path / "broken.jpg", *vit, *two],
        "is neither a file nor a model's name, did you mean 'ViT-B/32'": [ok, "--model", "ViT-B/33", *two],
        "no weights.pt is a damaged archive": [ok, "--model", tmp_path / "no weights.pt", *two],
        "no such file of class names": [ok, *vit, "--classes", "classes.txt"],
        "names.json: must be a list of names": [ok, *vit, "--classes", tmp_path / "names.json"],
        "class names stand more than once: a": [ok, *vit, "--classes", "a,b,a"],
        "no class names given": [ok, *vit, "--classes", " , "],
        "unknown prompt set or file 'openai81', did you mean 'openai80'": [ok, *vit, *two, "--templates", "openai81"],
        "must be one of .csv, .json, .txt": [ok, *vit, *two, "--out", "r.xls"],
        "argument --top: must be an integer in [1, 1000000], got '0'": [ok, *vit, *two, "--top", 0],
        "too long for context length 77": [ok, *vit, "--classes", "a," + "long " * 90],
        "dtype fp16 on the CPU: no operator here computes it": [ok, *vit, *two, "--dtype", "fp16"],
    }


@pytest.mark.parametrize("case", range(14))
def test_zero_shot_reports_what_is_wrong_in_one_line(case, small_models, tmp_path, capsys):
    from jclip.runtime import jt

    message, arguments = list(wrong(tmp_path, small_models).items())[case]
    if "on the CPU" in message and jt.flags.use_cuda:
        pytest.skip("there is a GPU")
    assert run("zero-shot", *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("jclip zero-shot: ") and not printed.out
    assert len([line for line in printed.err.splitlines() if "Compiling" not in line and line.strip()]) == 1


def test_a_results_file_that_cannot_be_written_is_reported(small_models, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["--model", small_models["vit"], "--classes", CLASSES, "--out", tmp_path / "file" / "r.csv"]
    assert run("zero-shot", photos[0], *options) == 2
    assert f"jclip zero-shot: {tmp_path / 'file'}: File exists" in capsys.readouterr().err


def test_broken_photos_are_skipped_and_counted_unless_all_are(small_models, photos, tmp_path, capfd):
    (tmp_path / "broken.jpg").write_text("no photo")
    options = ["--model", small_models["vit"], "--classes", CLASSES]
    assert run("zero-shot", tmp_path / "broken.jpg", photos[0], *options) == 0
    printed = capfd.readouterr()
    assert "skipped 1 of 2 photos (first: " in printed.err and photos[0].name in printed.out
    assert run("zero-shot", tmp_path / "broken.jpg", photos[0], *options, "--on-error", "stop") == 2
    assert run("zero-shot", tmp_path / "broken.jpg", *options) == 2
    assert "none of 1 photos decoded: " in capfd.readouterr().err


# The other commands


def test_unknown_commands_suggest_the_nearest(capsys):
    assert run("zeroshot") == 2
    assert "unknown command 'zeroshot', did you mean 'zero-shot'?" in capsys.readouterr().err
    assert run() == 2 and run("--version") == 0
    assert "jclip 0." in capsys.readouterr().out
    assert run("help") == 0 and capsys.readouterr().out.startswith("usage: jclip COMMAND")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["{photos}"], "for photos `jclip check-data '{photos}' --write run.yaml` writes a config"),
        (["coop"], "'coop' is a recipe, name one of its configs: coop/"),
        (["run.yml"], "unknown config 'run.yml' (no such file, and not one of those that `jclip recipes` lists)"),
        (["tip_adapter/smok"], "unknown config 'tip_adapter/smok', did you mean 'tip_adapter/smoke'? (no such file"),
        (["tip_adapter/smoke", "shots=4"], "unknown key shots, did you mean 'data.shots'? (known: data, "),
        (["tip_adapter/smoke", "--data.shots", "4"], "settings have no dashes, write data.shots=4 (see --help)"),
    ],
)
def test_what_newcomers_type_is_answered_by_what_to_type(typed, answer, tmp_path, capsys):
    assert run("train", *(word.format(photos=tmp_path) for word in typed)) == 2
    assert answer.format(photos=tmp_path) in capsys.readouterr().err


def test_models_are_listed_and_written(tmp_path, capsys, monkeypatch):
    from jclip.commands import models as models_command
    from jclip.weights.variants import VARIANTS
    from tests.toys import TOY_VIT

    assert run("models") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in VARIANTS) and "vit_l14_336" in printed
    monkeypatch.setitem(models_command.VARIANTS, "RN50", TOY_VIT)
    assert run("models", "--random", "rn50", "--out", tmp_path / "x.safetensors", "--seed", 7) == 0
    assert ModelSource(tmp_path / "x.safetensors").config == TOY_VIT
    assert run("models", "--random", "RN50") == 2
    assert "--random NAME and --out PATH must be given together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "resize", "text"),
    [
        (
            "ViT-B-16-SigLIP2-NaFlex",
            "proportional",
            SigLIPTextConfig(24, 2, 1, 48, context_length=16, vocab_size=30_000),
        ),
        ("Chinese-CLIP-ViT-B-16", "squash", BertConfig(24, 2, 1, 48, context_length=16, vocab_size=30_000)),
        ("ViT-H-14-worldwide", "shortest", TextConfig(24, 2, 1, 48, 16, 30_000, end=2)),
    ],
)
def test_random_weights_with_another_vocabulary_have_one_of_letters(name, resize, text, tmp_path, capsys, monkeypatch):
    from jclip.commands import models as models_command

    pytest.importorskip("tokenizers")
    towers, file = models_command.ARCHITECTURES, tmp_path / "random.safetensors"
    vision = replace(towers[name].vision, width=24, heads=3, layers=1, mlp_width=48)
    monkeypatch.setitem(towers, name, replace(towers[name], embed_dim=24, vision=vision, text=text))
    assert run("models", "--random", f"{name}/some_tag", "--out", file) == 0
    assert "one of 30,000 letters in its place" in capsys.readouterr().err
    source = ModelSource(file)
    ids = source.tokenize(["a cat", "四只猫", "四只狗"])
    assert ids.shape == (3, 16) and not np.array_equal(ids[1], ids[2]) and source.preprocess.resize == resize


def test_an_architecture_that_is_none_is_one_line_with_the_nearest(capsys):
    assert run("models", "--random", "PE-Core-B-17", "--out", "x.safetensors") == 2
    assert "unknown model 'PE-Core-B-17', did you mean 'PE-Core-B-16'?" in capsys.readouterr().err


def test_every_published_architecture_can_be_random_but_fg_clips(capsys):
    from jclip.commands.models import known_name
    from jclip.weights import catalogue

    for name in {row.architecture for row in catalogue.rows()}:
        if not name.startswith("FG-CLIP2"):
            assert known_name(name)
    assert known_name("MobileCLIP2-B/dfndr2b") == "MobileCLIP-B" and known_name("ViT-L-14-336") == "ViT-L/14@336px"
    assert run("models", "--random", "FG-CLIP2-base", "--out", "x.safetensors") == 2
    assert "--random knows no sizes of FG-CLIP2-base: its folder alone states them" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m jclip.cli models | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""


def test_windows_users_are_pointed_to_wsl(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert run("doctor") == 2
    assert "run it inside WSL2" in capsys.readouterr().err


def test_the_doctor_finds_and_tries(capsys):
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    for name in ("compiler", "Python headers", "oneDNN", "GPU", "threads", "cache"):
        assert f"\n{name}" in printed
    assert printed.count(" right on the ") == 3 and printed.endswith("everything ran and was right\n")


def test_the_doctor_reports_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setitem(trials.TRIALS, "convolution", lambda: 0.5)
    monkeypatch.setitem(trials.TRIALS, "attention", lambda: 1 / 0)
    monkeypatch.setattr(doctor.toolchain, "find_onednn", lambda: None)
    monkeypatch.setenv("PATH", "")
    assert run("doctor") == 1
    printed = capsys.readouterr().out
    assert (
        "convolution      WRONG" in printed
        and "attention        FAILED on the" in printed
        and "division by zero" in printed
    )
    assert "MISSING: no C++ compiler (g++ not found): sudo apt install g++" in printed
    assert "100 times slower: pip install onednn-cpu-gomp==2022.2.1" in printed


def test_the_doctor_where_jittor_does_not_start(tmp_path):
    environment = {**os.environ, "cc_path": "/nowhere/g++", "JCLIP_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "jclip.cli", "doctor"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Jittor           does not start: no C++ compiler" in done.stdout
    assert "Traceback" not in done.stderr


# The interface that Jittor users know


def test_the_interface_of_jittors_clip(tmp_path, photos, close):
    """`import jclip as clip` with the challenge's `.pkl`: OpenAI's names and marks, saved by `jt.save`."""
    from dataclasses import replace

    import jclip as clip
    from jclip.model.clip import CLIP
    from jclip.readers import jittor_pickle
    from jclip.runtime import jt
    from jclip.weights.checkpoint import SCALARS, random_arrays
    from jclip.weights.variants import VARIANTS, CLIPConfig

    text = replace(VARIANTS["ViT-B/32"].text, width=64, heads=1, layers=1, mlp_width=64)
    vision = replace(VARIANTS["ViT-B/32"].vision, layers=1, width=384, heads=6, mlp_width=64, image_size=(64, 64))
    shapes = {k: tuple(v.shape) for k, v in CLIP(CLIPConfig(24, vision, text)).state_dict().items()}
    arrays = {**random_arrays(shapes, 0), **{s: np.array(64.0, np.float32) for s in SCALARS}}
    jittor_pickle.write(tmp_path / "ViT-B-32.pkl", arrays)

    assert "ViT-B/32" in clip.available_models()
    model, preprocess = clip.load(str(tmp_path / "ViT-B-32.pkl"))
    image = preprocess(Image.open(photos[0])).unsqueeze(0)
    tokens = clip.tokenize(["a diagram", "a dog", "a cat"])
    assert isinstance(image, jt.Var) and tuple(image.shape) == (1, 3, 64, 64)
    with jt.no_grad():
        logits_per_image, logits_per_text = model(image, tokens)
        probs = logits_per_image.softmax(dim=-1).numpy()
        features = model.encode_image(image)
        features /= features.norm(dim=-1, keepdim=True)
        assert tuple(model.encode_text(tokens).shape) == (3, 24)
    assert probs.shape == (1, 3) and abs(probs.sum() - 1) < 1e-5 and tuple(logits_per_text.shape) == (3, 1)
    same = model.encode_image(image.numpy()).numpy()
    close(unit(same), features.numpy(), "features_normalised")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        clip.laod  # noqa: B018
    assert set(clip.__all__) <= set(dir(clip)) and all(getattr(clip, name) is not None for name in clip.__all__)

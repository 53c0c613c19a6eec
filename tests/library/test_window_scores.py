"""Photos scored in windows by several runs: window by window, in parts, killed and resumed, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune  # noqa: F401 - offers its recipes
from jclip.cli import main
from jclip.data.photo_file import open_photo
from jclip.features import window_scores
from jclip.features.photo_maps import MapScorer, MapSource
from jclip.features.source import ModelSource
from jclip.functional.caption_bank import nearest_in_bank
from jclip.functional.directions import unit
from jclip.functional.window_fusion import FusionRule, branch_scores, fused_windows
from jclip.functional.windows import cut, sliding_windows
from jclip.model import dense_map
from jclip.report import window_files
from jclip.report.score_files import read_scores
from jclip.report.tagging_run import TaggingRun
from jclip.runtime import jt
from jclip.train.configs import read_config, resolved
from jclip.train.run import Run

SMOKE = Path(__file__).parents[2] / "configs" / "text_as_image" / "smoke.yaml"
NAMES = ("red thing", "green thing", "blue thing")
SIZES = ((41, 67), (90, 53), (33, 33), (20, 70), (64, 64), (57, 41), (48, 96))


def trained(folder: Path, small_models, names=NAMES, *more: str) -> Path:
    """A run that learned a few words."""
    settings = [
        f"model={small_models['resnet']}",
        "data={}",
        f"classes={','.join(names)}",
        "captions=[]",
        "search=false",
    ]
    settings += ["per_name=12", "optim.batch=8", "optim.epochs=1", *more]
    module, cfg, _ = read_config(str(SMOKE), settings)
    with Run(folder, resolved(module, cfg)) as run:
        run.finish(module.run(cfg, run))
    return folder


@pytest.fixture(scope="module")
def world(small_models, tmp_path_factory) -> Path:
    """Runs a (bank, modulation), b (evidence, other order of classes), and a folder of photos."""
    folder, rng = tmp_path_factory.mktemp("窗口 of photos"), np.random.default_rng(3)
    trained(folder / "a", small_models, NAMES, "bank=3", "modulation=0.5", "merge=0.3")
    trained(folder / "b", small_models, NAMES[::-1], "evidence=true", "winner=pp_plus", "seed=2")
    trained(folder / "other", small_models, ("red thing", "green thing", "dog"))
    (folder / "photos").mkdir()
    for i, (height, width) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / "photos" / f"{i}.png")
    return folder


def by_hand(run: TaggingRun, photo: str, mode: str, rule: FusionRule) -> dict[str, np.ndarray]:
    """Window after window, the fused branches of one photo."""
    source, image = run.source(), open_photo(photo)
    rgb = image.resize((max(32, image.width), max(32, image.height)), Image.Resampling.BICUBIC)
    boxes = sliding_windows(rgb.height, rgb.width, mode, (2, 3)).boxes
    seen = [source.preprocess(image)]
    squash = replace(source.preprocess, resize="squash")
    seen += [squash(Image.fromarray(cut(np.asarray(rgb), box))) for box in boxes]
    rows = np.concatenate([source.model.encode_image(x[None]).numpy() for x in seen])
    scorer = MapScorer(run.learned, run.config)
    scored, near = scorer(rows), None
    if "bank" in run.learned:
        pooled = unit(rows.reshape(len(rows), -1, source.width)[:, 0])
        near = nearest_in_bank(pooled, run.learned["bank"], run.config.bank)[0].mean(axis=1)[1:]
    return {
        name: branch_scores(s[:1], fused_windows(s[1:], near, rule)[None], rule.kappa)[0]
        for name, s in (("global", scored.whole), ("local", scored.places))
    }


@pytest.mark.parametrize(("mode", "form"), [("even", "sim_var"), ("seed", "var_sim_var")])
def test_scores_are_those_of_each_window_alone(mode, form, world, tmp_path, close, monkeypatch):
    monkeypatch.setattr(window_files, "PHOTOS_OF_PART", 3)
    monkeypatch.setenv("JCLIP_BATCH", "5")
    argv = ["--run", str(world / "a"), "--run", f"second={world / 'b'}", "--windows", mode, "--scales", "2,3"]
    argv += ["--fuse", form, "--theta", "1.1", "--kappa", "1.4", "--out", str(tmp_path / "out")]
    assert main(["score", str(world / "photos"), *argv]) == 0
    rule, flip = FusionRule(form, 1.1, 1.4), {"a": slice(None), "second": slice(None, None, -1)}
    for name, folder in (("a", "a"), ("second", "b")):
        scores, run = read_scores(str(tmp_path / "out" / f"{name}.npz")), TaggingRun.load(world / folder)
        assert scores.classnames == NAMES and [Path(p).name for p in scores.photos] == [f"{i}.png" for i in range(7)]
        for n in (0, 3, 5):
            wanted = by_hand(run, scores.photos[n], mode, rule)
            for branch, of_branch in wanted.items():
                close(scores.parts[branch][n], of_branch[flip[name]], "features")
        share = float(run.learned["merge"][0])
        close(scores.main, share * scores.parts["global"] + (1 - share) * scores.parts["local"], "rounding")
        whole = run.parts_of(window_files.unlabelled([*scores.photos]))[1]
        saved = read_scores(str(tmp_path / "out" / f"{name}-whole.npz"))
        close(saved.parts["local"], whole["local"][:, flip[name]], "features")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory) -> Path:
    """Both runs' scores of the photos in three parts."""
    out = tmp_path_factory.mktemp("scored") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_files, "PHOTOS_OF_PART", 3)
        assert main(arguments(world, out)) == 0
    return out


def arguments(world: Path, out: Path, *more: str) -> list[str]:
    runs = ["--run", str(world / "a"), "--run", str(world / "b")]
    return ["score", str(world / "photos"), *runs, "--shapes", "unit", "--scales", "2", "--out", str(out), *more]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(window_files, "PHOTOS_OF_PART", 3)


@pytest.mark.usefixtures("small_parts")
def test_shards_score_to_the_same_bytes(world, scored, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(world, out, "--shard", "2/2")) == 0
    assert "shard 2/2: 1 of 3 parts are finished" in capsys.readouterr().out and not (out / "a.npz").exists()
    assert main(arguments(world, out, "--shard", "1/2")) == 0
    assert contents(out) == contents(scored)


@pytest.mark.usefixtures("small_parts")
def test_what_was_broken_off_or_damaged_goes_on_to_the_same_bytes(world, scored, tmp_path, monkeypatch, capsys):
    out, computed, real = tmp_path / "out", [], window_scores.WindowScorer.scores

    def until_the_second(self, photos):
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append([Path(p).name for p in photos])
        return real(self, photos)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(window_scores.WindowScorer, "scores", until_the_second)
        window_files.WindowFiles(*files_of(world, out)).score()
    assert [*contents(out)] == ["manifest.json", "parts/part_00000.npz"]
    computed.clear()
    monkeypatch.setattr(window_scores.WindowScorer, "scores", lambda s, p: computed.append(len(p)) or real(s, p))
    assert main(arguments(world, out)) == 0
    assert computed == [3, 1] and contents(out) == contents(scored)
    part = out / "parts" / "part_00001.npz"
    part.write_bytes(part.read_bytes()[:200])
    computed.clear()
    capsys.readouterr()
    assert main(arguments(world, out)) == 0
    assert computed == [3] and contents(out) == contents(scored)
    assert "it is scored again" in capsys.readouterr().err


def files_of(world: Path, out: Path) -> tuple:
    plan = window_scores.WindowPlan(scales=(2,), shapes="unit")
    runs = [window_files.read_run(str(world / name), window_files.Weighing()) for name in "ab"]
    return out, runs, [str(world / "photos" / f"{i}.png") for i in range(7)], plan


def test_models_of_one_tower_share_each_pass(world, close):
    _, runs, photos, plan = files_of(world, Path())
    found, passes = [], []
    for some in (runs, runs[:1]):
        files = window_files.WindowFiles(Path("nowhere"), some, photos, plan)
        scorer = window_scores.WindowScorer(files._models(), plan)
        found.append(scorer.scores(photos)[0]["a"])
        passes.append(scorer.passes)
    assert passes[0] == passes[1] > 7 * 16
    for part in window_scores.PARTS:  # one product of all prompts, or of one run's
        close(found[0][part], found[1][part], "features")


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scales", "3"], "holds scores of other windows: choose another --out"),
        (["--run", "c={}/a"], "holds scores of other runs"),
        (["--theta", "0.5"], "holds scores of other runs"),
        (["--run", "{}/other"], r"must have the same classes, got 3 of other and 3 of a .*'dog'"),
        (["--run", "{}/a"], "different names for their files, got 'a' twice: give NAME=FOLDER"),
        (["--run", "{}/photos"], "must be a finished run|holds no"),
        (["--windows", "dens"], "invalid choice: 'dens'"),
    ],
)
def test_refused_in_a_line(more, message, world, scored, capsys):
    before = contents(scored)
    assert main([*arguments(world, scored), *(m.format(world) for m in more)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, lines[-1]), lines
    assert contents(scored) == before


@pytest.mark.usefixtures("small_parts")
def test_the_same_run_with_other_contents_is_another_model(world, scored, tmp_path, small_models, capsys):
    other = trained(tmp_path / "a", small_models, NAMES, "bank=3", "modulation=0.5", "merge=0.3", "seed=5")
    argv = arguments(world, scored)
    argv[argv.index(str(world / "a"))] = str(other)
    assert main(argv) == 2
    assert f"{scored} holds scores of other runs" in capsys.readouterr().err


def test_scores_that_are_not_finite_name_photo_and_run(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        window_files, "read_run", lambda given, weighing: window_files.ScoredRun("a", damaged(given), weighing)
    )
    argv = [
        "score",
        str(world / "photos"),
        "--run",
        str(world / "a"),
        "--windows",
        "none",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "scores must be finite" in line and "0.png" in line and line.endswith("by a")


def damaged(folder: str) -> TaggingRun:
    run = TaggingRun.load(folder)
    text = run.learned["text_local"].copy()
    text[1, 0] = np.nan
    return replace(run, learned={**run.learned, "text_local": text})


def test_label_statistics_are_used_and_said(world, tmp_path, close, capsys):
    labels = tmp_path / "labels.jsonl"
    sets = [("red thing", "blue thing"), ("red thing", "green thing"), ("red thing", "blue thing")]
    lines = [json.dumps({"image": f"{i}.png", "labels": own}) for i, own in enumerate(sets)]
    labels.write_text("\n".join(lines))
    shares = np.array([[0, 1 / 3, 2 / 3], [1, 0, 0], [1, 0, 0]])
    plain = {}
    for name, strength in (("plain", "0"), ("moved", "0.7")):
        out = tmp_path / name
        argv = [
            "--run",
            str(world / "b"),
            "--windows",
            "none",
            "--label-statistics",
            str(labels),
            "--modulation",
            strength,
        ]
        assert main(["score", str(world / "photos"), *argv, "--out", str(out)]) == 0
        assert "uses_label_statistics" in capsys.readouterr().out
        plain[name] = read_scores(str(out / "b.npz"))
        assert plain[name].uses_label_statistics
    order = [NAMES.index(name) for name in plain["plain"].classnames]
    moved = plain["plain"].parts["local"] @ (np.eye(3) + 0.7 * shares[np.ix_(order, order)])
    close(plain["moved"].parts["local"], moved, "rounding")


CAPTIONS = (
    '{"text": "a", "labels": ["red thing", "blue thing"], "weight": 2}\n'
    '{"text": "b", "labels": ["red thing", "green thing"]}\n'
    '{"text": "c", "labels": ["green thing"], "unknown": ["red thing"]}\n'
)


@pytest.mark.parametrize("run", ["a", "b"])
def test_caption_statistics_take_the_place_of_the_runs_own(run, world, tmp_path, close, capsys):
    """Run a was trained with modulation, b without."""
    captions, plain = tmp_path / "other captions, 2.jsonl", {}
    captions.write_text(CAPTIONS)
    shares = np.array([[0, 1 / 3, 2 / 3], [1, 0, 0], [1, 0, 0]])  # red, green, blue
    for name, strength in (("plain", "0"), ("moved", "0.7")):
        argv = ["--run", str(world / run), "--windows", "none", "--caption-statistics", str(captions)]
        argv += ["--modulation", strength, "--out", str(tmp_path / name)]
        assert main(["score", str(world / "photos"), *argv]) == 0
        assert "uses_label_statistics" not in capsys.readouterr().out
        plain[name] = read_scores(str(tmp_path / name / f"{run}.npz"))
        assert not plain[name].uses_label_statistics
    order = [NAMES.index(name) for name in plain["plain"].classnames]
    moved = plain["plain"].parts["local"] @ (np.eye(3) + 0.7 * shares[np.ix_(order, order)])
    close(plain["moved"].parts["local"], moved, "rounding")
    learned = TaggingRun.load(world / run).learned
    argv_of_its_own = ["--run", str(world / run), "--windows", "none", "--out", str(tmp_path / "own")]
    assert main(["score", str(world / "photos"), *argv_of_its_own]) == 0
    own = np.eye(3) + 0.5 * learned.get("shares", np.zeros((3, 3)))
    found = read_scores(str(tmp_path / "own" / f"{run}.npz")).parts["local"]
    close(found, plain["plain"].parts["local"] @ own, "features")
    captions.write_text(CAPTIONS.replace(', "weight": 2', ""))
    assert main(["score", str(world / "photos"), *argv]) == 2
    assert "holds scores of other statistics" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--modulation", "0.7"], "--modulation is of --caption-statistics or --label-statistics, got neither"),
        (["--caption-statistics", "{}/one.jsonl"], "one.jsonl: some rows must have two of the 3 classes, got none"),
        (["--label-statistics", "{}/one.jsonl"], "one.jsonl: some rows must have two of the 3 classes, got none"),
        (["--caption-statistics", "{}/cat.jsonl"], "unknown class in .*cat.jsonl, line 1: labels 'cat'"),
        (
            ["--caption-statistics", "{}/text.jsonl"],
            "text.jsonl, line 1: must be a caption.*`jclip captions label` makes",
        ),
        (["--caption-statistics", "{}/none.jsonl"], "can't read .*none.jsonl: No such file"),
        (["--caption-statistics", "x", "--label-statistics", "y"], "in captions or in labels of photos, got both"),
    ],
)
def test_statistics_that_say_nothing_are_refused(more, message, world, tmp_path, capsys):
    for name, text in (
        ("one", '{"text": "a", "photo": "a.png", "labels": ["red thing"]}'),
        ("cat", '{"text": "a", "labels": ["cat"]}'),
        ("text", "a red thing and a blue thing"),
    ):
        (tmp_path / f"{name}.jsonl").write_text(f"{text}\n")
    argv = ["score", str(world / "photos"), "--run", str(world / "a"), "--out", str(tmp_path / "out")]
    assert main([*argv, *(m.format(tmp_path) for m in more)]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_windows_of_one_map_are_pooled_as_their_cells_alone(small_models, close):
    source = MapSource(ModelSource(small_models["resnet"]))
    height, width = source.preprocess.size
    pixels = np.random.default_rng(1).normal(size=(2, 3, 2 * height, 2 * width)).astype(np.float32)
    model = source._source.model
    with jt.no_grad():
        maps, cells, pool = (
            dense_map.WindowsOfMap(model, pixels),
            model.visual.cells(jt.array(pixels)),
            model.visual.attnpool,
        )
        rows, columns = maps.rows, maps.columns
        boxes = np.array([[0, 0, columns, rows], [0, 0, columns, rows]])
        pooled, places = dense_map.dense_map(model, pixels)
        whole = maps.of(1, boxes).numpy()
        close(whole[:, 0], np.stack([pooled.numpy()[1]] * 2), "features")
        close(whole[:, 1:], np.stack([places.numpy()[1]] * 2), "features")
        some = np.array([[columns - 1, 0, columns, rows - 1], [0, 1, 1, rows]])
        found = maps.of(0, some).numpy()
        for row, (left, top, right, bottom) in zip(found, some, strict=True):
            at = [y * columns + x for y in range(top, bottom) for x in range(left, right)]
            own = jt.array(cells.numpy()[:1, at])
            close(row[:1], pool.attend(pool.with_mean(own)).numpy(), "features")
            close(row[1:], pool.values(own).numpy()[0], "features")


def test_dense_windows_are_others_than_cut_ones(world, tmp_path):
    argv = ["score", str(world / "photos"), "--run", str(world / "a"), "--scales", "2", "--shapes", "unit", "--out"]
    assert main([*argv, str(tmp_path / "even")]) == main([*argv, str(tmp_path / "dense"), "--windows", "dense"]) == 0
    even, dense = (read_scores(str(tmp_path / kind / "a.npz")).parts for kind in ("even", "dense"))
    assert np.isfinite(dense["local"]).all() and (even["local"] != dense["local"]).any()


@pytest.fixture(scope="module")
def pairs(world, small_models) -> Path:
    """Runs of positive and negative prompts on a ResNet: dual, and dual pp with evidence, of the same tower and size."""
    (world / "labels.jsonl").write_text(
        "".join(
            json.dumps({"image": f"photos/{i}.png", "labels": [NAMES[i % 3], NAMES[(i + 1) % 3]][: 1 + i % 2]}) + "\n"
            for i in range(7)
        )
    )
    (world / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(NAMES)))
    smoke = Path(__file__).parents[2] / "configs" / "dual_prompt" / "smoke.yaml"
    data = f"data={{train: {world / 'labels.jsonl'}, classes: {world / 'classes.txt'}}}"
    for name, more in (("dual", ["kind=dualcoop"]), ("dual pp", ["kind=dualcoop_pp", "seed=4"])):
        settings = [
            f"model={small_models['resnet']}",
            data,
            "optim.epochs=1",
            "optim.batch=4",
            "known=1",
            "augment=none",
        ]
        module, cfg, _ = read_config(str(smoke), [*settings, "selection=last", *more])
        with Run(world / name, resolved(module, cfg)) as run:
            run.finish(module.run(cfg, run))
    return world


def test_runs_of_labelled_photos_are_scored_in_windows(pairs, tmp_path, close, capsys):
    out = tmp_path / "out"
    argv = ["score", str(pairs / "photos"), "--run", str(pairs / "dual"), "--run", str(pairs / "dual pp")]
    argv += ["--run", str(pairs / "b"), "--scales", "2", "--shapes", "unit", "--fuse", "max", "--kappa", "1.2"]
    assert main([*argv, "--out", str(out)]) == 0
    assert "uses_label_statistics" in capsys.readouterr().out
    for name in ("dual", "dual pp"):
        run, scores = TaggingRun.load(pairs / name), read_scores(str(out / f"{name}.npz"))
        assert scores.uses_label_statistics and [*scores.parts] == ["scores"]
        source, photo = run.source(), scores.photos[1]
        image = open_photo(photo)
        squash = replace(source.preprocess, resize="squash")
        boxes = sliding_windows(image.height, image.width, "even", (2,), "unit").boxes
        seen = [source.preprocess(image), *(squash(Image.fromarray(cut(np.asarray(image), box))) for box in boxes)]
        found = run.scorer()(np.concatenate([source.model.encode_image(x[None]).numpy() for x in seen]))
        close(scores.main[1], found[0] + 1.2 * found[1:].max(axis=0), "features")
    assert not read_scores(str(out / "b.npz")).uses_label_statistics
    assert main([*argv[:4], "--windows", "dense", "--out", str(tmp_path / "dense")]) == 2
    assert "got dual, which scores places alone: use even windows" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["even", "seed"])
def test_a_vision_transformers_windows(mode, world, small_models, tmp_path, close, capsys):
    folder = world / "vit"
    if not folder.is_dir():
        trained(folder, small_models | {"resnet": small_models["vit"]}, NAMES, "vit=value")
    argv = ["score", str(world / "photos"), "--run", str(folder), "--scales", "2,3"]
    assert main([*argv, "--windows", mode, "--theta", "0.5", "--out", str(tmp_path / "out")]) == 0
    scores = read_scores(str(tmp_path / "out" / "vit.npz"))
    for branch, wanted in by_hand(TaggingRun.load(folder), scores.photos[1], mode, FusionRule(theta=0.5)).items():
        close(scores.parts[branch][1], wanted, "features")
    assert main([*argv, "--windows", "dense", "--out", str(tmp_path / "dense")]) == 2
    assert "dense windows are of a ResNet's map, got another tower of vit: use even windows" in capsys.readouterr().err


def test_an_ensemble_and_the_contests_list(world, tmp_path, close, capsys):
    out, rule = tmp_path / "out", tmp_path / "my rule.yaml"
    rule.write_text("kind: columns\ncolumns: {b: [green thing]}\n")
    argv = ["score", str(world / "photos"), "--run", str(world / "a"), "--run", str(world / "b"), "--windows", "none"]
    argv += ["--out", str(out), "--ensemble", str(rule)]
    assert main([*argv, "--list", str(tmp_path / "result.json")]) == 0
    assert "uses_label_statistics" in capsys.readouterr().out
    a, b, made = (read_scores(str(out / f"{name}.npz")) for name in ("a", "b", "ensemble"))
    assert np.array_equal(made.main, np.c_[a.main[:, 0], b.main[:, NAMES.index("green thing")], a.main[:, 2]])
    assert not made.comparable and made.uses_label_statistics and not a.uses_label_statistics
    assert np.array_equal(np.array(json.loads((tmp_path / "result.json").read_text())), made.main)
    rule.write_text("kind: columns\ncolumns: {c: [green thing]}\n")
    for more, message in (
        ([], "unknown model of an ensemble 'c'"),
        (["--run", f"ensemble={world / 'b'}"], "a run named ensemble"),
    ):
        assert main([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    for some, message in ((argv[:4], "at least two runs, got one"), (argv[:6], "put them together with --ensemble")):
        last = ["--ensemble", str(rule)] if some == argv[:4] else ["--list", "x.json"]
        assert main([*some, "--out", str(tmp_path / "no"), *last]) == 2
        assert message in capsys.readouterr().err


def test_writing_holds_one_part_of_one_branch(world, tmp_path, monkeypatch):
    """While files are written no more arrays of a part are read at once than a branch needs."""
    monkeypatch.setattr(window_files, "PHOTOS_OF_PART", 2)
    seen, real = [], window_files.write_scores_in_parts
    monkeypatch.setattr(
        window_files, "write_scores_in_parts",
        lambda path, parts, *more: seen.extend(len(m) for f in parts.values() for m in f()) or real(path, parts, *more),
    )  # fmt: skip
    argv = [
        "score",
        str(world / "photos"),
        "--run",
        str(world / "a"),
        "--windows",
        "none",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(argv) == 0
    assert seen == [2, 2, 2, 1] * 3

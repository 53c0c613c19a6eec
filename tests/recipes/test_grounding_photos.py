"""Visual grounding on photos of files: steps in fresh views, towers that learn, tokens on disk, resumed and measured again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import grounding as recipe
from jclip.cli import main
from jclip.config import OptimConfig
from jclip.data.box_views import BoxAugment, Normalisation
from jclip.errors import DataError
from jclip.features import box_features
from jclip.features.source import ModelSource
from jclip.functional import boxes as box_forms
from jclip.model import tower_levels
from jclip.model.grounding import GroundingNetwork
from jclip.report.predictor import Predictor
from jclip.runtime import jt
from jclip.train import box_batches
from jclip.train.configs import read_config
from tests.killed import killed_at
from tests.tolerances import tolerance
from tests.toys import SMALL_VIT, toy_file

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "grounding" / "smoke.yaml"
REAL = ROOT.parent / "shared" / "data" / "grounding"
PHRASES = ("the red thing", "a man on the left", "it", "something blue", "top shelf", "a cup", "the sky", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight phrases of five photos of noise in three splits; of one photo there are three."""
    folder = tmp_path_factory.mktemp("photos, and rows")
    (folder / "images").mkdir()
    rng, sizes = np.random.default_rng(4), [(90, 60), (50, 80), (64, 64), (100, 40), (33, 77)]
    for number, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / "images" / f"{number}.png")
    of, rows = [0, 0, 0, 1, 2, 3, 3, 4], []
    for phrase, photo in zip(PHRASES, of, strict=True):
        (x, y), (w, h) = rng.uniform(0, 12, 2), sizes[photo]
        rows.append({"image": f"{photo}.png", "phrase": phrase, "box": [x, y, x + w / 2, y + h / 3]})
    text = "".join(json.dumps({**row, "split": split}) + "\n" for split in ("train", "val", "testA") for row in rows)
    (folder / "rows.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return toy_file(tmp_path_factory.mktemp("weights"), SMALL_VIT, 3)


def settings(folder: Path, weights: Path, *more: str) -> list[str]:
    file = folder / "rows.jsonl"
    named = [f"data.train={file}", f'data.val="{file}"', f'data.test=["{file}:testA", "{file}:val"]']
    return [*named, f"model={weights}", "optim.batch=4", "present=false", *more]


def config_of(folder: Path, weights: Path, *more: str) -> recipe.Config:
    return read_config(str(SMOKE), settings(folder, weights, *more))[1]


def steps_of(cfg: recipe.Config, source: ModelSource):
    """Network, towers, and a function of batches that gives loss and gradients."""
    towers = recipe.learning_towers(cfg, source)
    network = GroundingNetwork(recipe.fusion_shape(cfg, source), 5)
    optim = recipe.optimiser_of(cfg, network, towers)

    def step(batches, number=0):
        loss, gradients = box_batches.step_gradients(network, towers, batches, optim.params.values(), 1, number)
        return float(loss.numpy()[0]), {k: g.numpy() for k, g in zip(optim.params, gradients, strict=True)}

    return network, towers, step


def test_an_augmented_step_is_that_of_the_views_written_out(folder, weights, close):
    """Pixels, boxes and masks of the training views, the towers' tokens of these, the loss of the network's boxes."""
    cfg, source = config_of(folder, weights, "augment=true", "seed=7"), ModelSource(weights)
    features = recipe.read_parts(cfg, source)["train"]
    network, _, step = steps_of(cfg, source)
    (batch, *_), samples = next(recipe.training_batches(cfg, features).epoch(2)), features.samples
    look, rows = (
        Normalisation(source.preprocess.mean, source.preprocess.std),
        np.random.default_rng((7, 2)).permutation(8)[:4],
    )
    losses = []
    for place, row in enumerate(rows.tolist()):
        rng, phrase = np.random.default_rng((7, 2, row)), samples.phrases[row]
        with Image.open(samples.photos[samples.of[row]]) as photo:
            pixels, box, where = BoxAugment()(photo, samples.boxes[row], phrase, 32, look, rng)
        assert np.array_equal(batch.pixels[place], pixels) and batch.phrases[place] == phrase.lower()
        close(batch.boxes[place], box, "rounding", "boxes of training views")
        seen = np.concatenate([[True], ~where.masked_patches(8).ravel()])
        assert np.array_equal(batch.seen[place], seen) and batch.of[place] == place
        with jt.no_grad():
            tokens = tower_levels.image_parts(source.model, pixels[None])[0].numpy()
            _, texts = source.model.encode_text(source.model.tokenize([phrase.lower()]), dense=True)
            found = network(tokens, texts.numpy(), np.ones(texts.shape[:2]), seen[None]).boxes.numpy().astype(float)
        corners = [box_forms.centres_to_corners(b) for b in (found, box[None])]
        losses.append(np.abs(found - box).sum() + 1 - box_forms.giou(*corners)[0])
    loss, gradients = step([batch])
    close(loss, np.mean(losses), "loss", "loss of an augmented step")
    assert set(gradients) == set(network.state_dict()) and any(np.abs(g).max() > 1e-4 for g in gradients.values())


def test_an_augmented_steps_gradients_are_torchs(folder, weights, close):
    """Views by PIL, tokens by the towers, from there on torch: the loss and every parameter's gradient."""
    torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
    from tests.library.test_grounding_network import loss_of_torch

    cfg, source = config_of(folder, weights, "augment=true"), ModelSource(weights)
    features = recipe.read_parts(cfg, source)["train"]
    network, towers, step = steps_of(cfg, source)
    (batch,) = next(recipe.training_batches(cfg, features).epoch(0))
    loss, gradients = step([batch])
    tokens, shape = box_batches.whole_batch(towers, batch), network.shape
    texts, said = np.zeros((4, shape.max_text, shape.text_width)), np.zeros((4, shape.max_text))
    texts[:, : tokens.texts.shape[1]], said[:, : tokens.said.shape[1]] = tokens.texts, tokens.said
    data = {
        "images": tokens.images.numpy(),
        "texts": texts,
        "said": said,
        "seen": batch.seen,
        "boxes": batch.boxes,
        "there": batch.there,
    }
    p = {k: torch.tensor(v.numpy()).double().requires_grad_() for k, v in network.state_dict().items()}
    wanted, _, _ = loss_of_torch(shape, p, data)
    wanted.backward()
    close(loss, wanted.item(), "loss", "loss of an augmented step against torch")
    keys = np.s_[shape.hidden : 2 * shape.hidden]  # of the packed bias, which the softmax does not see
    for name, got in gradients.items():
        pair = [
            np.delete(np.asarray(g), keys) if name.endswith("in_proj_bias") else np.asarray(g)
            for g in (got, p[name].grad)
        ]
        close(*pair, "gradient_relative", "gradients of an augmented step against torch", relative=True)


@pytest.mark.parametrize("more", [(), ("augment=true", "visual_positions=trained"), ("tower=lora", "present=true")])
def test_two_batches_in_a_step_are_one_of_twice_the_size(folder, weights, more, close):
    source = ModelSource(weights)
    cfg = config_of(folder, weights, "optim.batch=8", *more)
    features = recipe.read_parts(cfg, source)["train"]
    whole = next(recipe.training_batches(replace(cfg, absent=0.0), features).epoch(0))
    halved = replace(cfg, accumulate=2, absent=0.0, optim=replace(cfg.optim, batch=4))
    parts = next(recipe.training_batches(halved, features).epoch(0))
    assert len(whole) == 1 and len(parts) == 2 and [len(b.there) for b in parts] == [4, 4]
    _, towers, step = steps_of(cfg, source)
    (loss, gradients), (other, others) = step(whole), step(parts)
    towers.end()
    close(loss, other, "loss", "loss in two parts")
    for name, gradient in gradients.items():
        close(others[name], gradient, "gradient_relative", "gradients in two parts", relative=True)
    with pytest.raises(DataError, match="a step of 3 x 4 phrases .* must fit the 8"):
        recipe.training_batches(replace(halved, accumulate=3), features)


def test_the_rate_goes_with_the_phrases_of_a_step():
    cfg = recipe.Config("m", optim=OptimConfig(lr=2.5e-4, batch=64), accumulate=3, lr_scaling="linear")
    assert cfg.scaled.lr == pytest.approx(1.25e-4) and replace(cfg, lr_scaling="none").scaled.lr == 2.5e-4
    assert replace(cfg, accumulate=1).scaled.lr == pytest.approx(2.5e-4 / 6)  # 4.2e-5 of one card


def test_tokens_in_memory_on_disk_and_of_each_step_are_the_same(folder, weights, own_cache, monkeypatch, capsys):
    source, cfg = ModelSource(weights), config_of(folder, weights)
    samples = recipe.samples_of(cfg, source, "train")
    found = {
        where: box_features.box_features(source, samples, cfg.reading, where=where)
        for where in ("memory", "disk", "steps")
    }
    rows = np.array([5, 0, 2, 7])
    batches = {where: features.batch(rows) for where, features in found.items()}
    assert found["disk"].parts == () and found["disk"].kept == "disk"
    for other in ("disk", "steps"):
        assert np.array_equal(batches["memory"].images.astype(np.float16), batches[other].images.astype(np.float16))
        assert np.array_equal(batches["memory"].texts, batches[other].texts)
    (file,) = (own_cache / "features").glob("boxes-*.tokens")
    assert file.stat().st_size == 5 * box_features.token_bytes(source, cfg.reading)
    with monkeypatch.context() as patch:  # a second training on the same photos encodes none
        patch.setattr(tower_levels, "image_parts", lambda *_: pytest.fail("encoded again"))
        box_features.box_features(source, samples.of_rows([3, 1]), cfg.reading, where="disk").batch(np.array([0, 1]))
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    again = box_features.box_features(source, samples, cfg.reading, where="disk").batch(rows)
    assert np.array_equal(again.images, batches["disk"].images) and "is damaged in record" in capsys.readouterr().err


def test_many_photos_tokens_go_to_the_disk_and_where_it_is_full_nowhere(
    folder, weights, own_cache, monkeypatch, capsys
):
    source, reading = ModelSource(weights), box_features.Reading()
    size = box_features.token_bytes(source, reading)
    assert size == 2 * 17 * 2 * 48  # two blocks of width 48, fp16

    def place(photos: int, keep: bool = True) -> str:
        return box_features.place_of_tokens(source, reading, photos, keep, "auto")

    monkeypatch.setattr(box_features, "MOST_IN_MEMORY", 10 * size)
    assert (place(10), place(11), place(11, keep=False)) == ("memory", "disk", "steps")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 11 * size}))
    assert place(11) == "steps" and "each step encodes its photos" in capsys.readouterr().err


def test_phrases_that_the_tower_can_not_read_whole_are_counted(weights, capsys):
    source, long = ModelSource(weights), "a very long phrase " * 30
    tokens = box_features.phrase_tokens(source, ["short", long, "short"])
    assert tokens.starts.tolist() == [0, 3, 80] and tokens.batch([long])[0].shape == (1, 77, 24)
    assert "1 of 2 phrases are longer than the 77 tokens of the text tower" in capsys.readouterr().err


LEARNING = (
    "augment=true", "visual_positions=trained", "tower=lora", "dropout=0.1", "lora.dropout=0.2", "tower_rate=0.5",
    "accumulate=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(folder, weights, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "all that learns"
    assert main(["train", str(SMOKE), *settings(folder, weights, *LEARNING), "--run", str(run)]) == 0
    return run


def test_towers_that_learned_are_kept_with_the_run(finished, weights, tmp_path, capsys):
    metrics = json.loads((finished / "result.json").read_text())["metrics"]
    assert metrics["test_count"] == 16 and metrics["test_testA_count"] == metrics["test_val_count"] == 8
    assert metrics["test_val_mean_iou"] == pytest.approx(metrics["val_mean_iou"], abs=1e-5)
    both = metrics["test_testA_mean_iou"] + metrics["test_val_mean_iou"]
    assert metrics["test_mean_iou"] == pytest.approx(both / 2, abs=1e-5)
    done, own = Predictor.load(finished), ModelSource(weights).model.state_dict()
    assert done.measure(tmp_path)["mean_iou"] == pytest.approx(metrics["test_mean_iou"], abs=1e-5)
    learned, name = done.source.model.state_dict(), "transformer.resblocks.1.attn"
    for tower in ("", "visual."):
        merged = learned[f"{tower}{name}.in_proj_weight"].numpy() - own[f"{tower}{name}.in_proj_weight"].numpy()
        a, b = (done.learned[f"{tower}{name}.k.{kind}"] for kind in "AB")
        width = b.shape[0]
        assert np.abs(b).max() > 0 and np.allclose(merged[width : 2 * width], b @ a, atol=tolerance("merged_update"))
    assert main(["eval", str(finished), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:5]] == ["all", "testA", "val"]


def test_a_killed_run_ends_with_the_same_bytes(finished, folder, weights, tmp_path):
    run = tmp_path / "killed, once"
    command = ["train", str(SMOKE), *settings(folder, weights, *LEARNING), "--run", str(run)]
    killed_at("*/train.safetensors", *command)
    assert (run / "train.safetensors").is_file() and not (run / "result.json").is_file()
    assert main(command) == 0
    assert (run / "learned.safetensors").read_bytes() == (finished / "learned.safetensors").read_bytes()


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(folder, weights, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(SMOKE), *settings(folder, weights), "--run", str(run), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not run.exists() and "train: 8 phrases of 5 photos" in said and "steps: 4 of 4 phrases, in 2 epochs" in said
    assert "by one process" in said and "memory: " in said and "in memory, 0 MiB" in said


def test_a_row_of_configs_is_one_table(folder, weights, tmp_path, capsys):
    rows = folder.with_name("rows")  # commas stand between values here
    rows.symlink_to(folder)
    more = [f"data.train={rows}/rows.jsonl,{rows}/none.jsonl", "seed=1,2", "optim.epochs=1"]
    places = ["--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["sweep", str(SMOKE), *settings(folder, weights)[1:], *more, *places]) == 0
    head, _, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["acc@0.5,", "%,", "2", "seeds", "val", "testA", "val"] and row.startswith("smoke")
    assert [line.startswith("not run: smoke, seed") for line in rest] == [True, True, False]
    assert "test_testA_acc@0.5" in (tmp_path / "out" / "sweep.csv").read_text().splitlines()[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="no real photos beside the checkout")
def test_a_dozen_real_photos_are_learned_from(weights, tmp_path):
    rows, kept = json.loads((REAL / "triples.json").read_text()), []
    for row in rows:
        if row["image"] in kept or len(kept) < 12:
            kept.append(row["image"])
    (tmp_path / "rows.json").write_text(json.dumps([row for row in rows if row["image"] in kept]))
    data = [f"data.train={tmp_path}/rows.json", f"data.test={tmp_path}/rows.json", f"data.images={REAL / 'images'}"]
    for number, more in enumerate((["augment=true"], ["augment=true", "tower=lora", "visual_positions=trained"])):
        run = tmp_path / f"run {number}"
        asked = [*data, f"model={weights}", "optim.batch=6", "selection=last", *more, "--run", str(run)]
        assert main(["train", str(SMOKE), *asked]) == 0
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        assert metrics["test_count"] >= 12 and 0 < metrics["train_loss"] < 5


@pytest.mark.parametrize("kind", ["single", "several", "full"])
@pytest.mark.parametrize("name", ["unc", "unc_plus", "gref", "gref_umd", "referit", "flickr"])
def test_published_settings_have_the_published_rate_and_batch(name, kind):
    cfg, reference = read_config(f"grounding/{name}_{kind}")[1], 320 if kind == "full" else 384
    assert (cfg.optim.batch * cfg.accumulate, cfg.scaled.lr, cfg.optim.epochs) == (reference, 2.5e-4, 110)
    assert len(cfg.data.train) == (3 if kind == "several" else 1) and cfg.data.truncate and cfg.augment
    dataset = name.replace("_plus", "+")
    assert all(Path(file).name.split("_train")[0].endswith(dataset) for file in cfg.data.train)
    assert len(cfg.data.test or ()) == {"unc": 2, "unc_plus": 2, "gref": 0}.get(name, 1)

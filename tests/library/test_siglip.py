"""SigLIP's weights in what uses them: parts of the towers, the family's own sigmoid, its loss, and settings it can't take."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.cli import main as convert
from finetune import wise_ft
from jclip import kernels
from jclip.cli import main
from jclip.data.photo_file import open_photo
from jclip.errors import ConfigError, DataError
from jclip.features.source import ModelSource
from jclip.features.tagging import Tagger
from jclip.functional.similarity import normalise
from jclip.model import deep_prompts, dense_map, low_rank, padded_mlp, patch_dropout
from jclip.model.clip import CLIP, build, clamp_logit_scale, inference, put_arrays
from jclip.model.last_block import LastBlock
from jclip.model.learned_prompts import Frame, Layout
from jclip.model.parameter_groups import LowRank, image_groups, text_groups
from jclip.model.trainable import trainable
from jclip.readers import read_weights, safetensors
from jclip.report.calibration_file import read_calibration
from jclip.report.score_files import read_scores
from jclip.runtime import jt
from jclip.weights.checkpoint import load_strict, open_checkpoint, random_arrays
from jclip.weights.variants import ARCHITECTURES, CLIPConfig
from tests.tolerances import TOLERANCES, tolerance
from tests.toys import SMALL_SIGLIP, TOY_SIGLIP, TOY_VIT, shapes_of, toy_batch, toy_file

NAMES = "red thing,green thing,blue thing,a boat"
ROOT = Path(__file__).parent.parent.parent


def model_of(config=TOY_SIGLIP, seed=0):
    arrays = random_arrays(shapes_of(config), seed)
    model = CLIP(config)
    load_strict(model, arrays)
    model.eval()
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights that read photos and texts; the logits of their pairs are not all of one sign."""
    pytest.importorskip("tokenizers", reason="not installed: pip install '.[tokenizers]'")
    folder = tmp_path_factory.mktemp("siglip weights")
    file = read_weights(toy_file(folder, SMALL_SIGLIP))
    arrays = {k: t.read() for k, t in file.items()} | {"logit_bias": np.array([1.5], np.float32)}
    arrays["logit_scale"] = np.array(2.0, np.float32)
    safetensors.write(folder / "own.safetensors", arrays, file.metadata)
    return folder / "own.safetensors"


def test_low_rank_updates_merge_into_the_weights_of_both_towers(close):
    model = model_of()
    adapters = low_rank.Adapters(model, LowRank(rank=2, dropout=0.0), 0)
    assert {name.split(".blocks.")[0].split(".resblocks.")[0] for name in adapters.params} == {
        "visual.trunk", "text.transformer"
    }  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in adapters.params.items()}
    for name, value in arrays.items():
        adapters.params[name].update(jt.array(value))
    pixels, tokens = toy_batch(TOY_SIGLIP)
    with jt.no_grad():
        plain = model.encode_image(pixels).numpy()
        adapters.attach()
        beside = [model.encode_image(pixels).numpy(), model.encode_text(tokens).numpy()]
        adapters.detach()
        put_arrays(model, adapters.merged(arrays))
        merged = [model.encode_image(pixels).numpy(), model.encode_text(tokens).numpy()]
    assert np.abs(merged[0] - plain).max() > 0.1
    for got, wanted in zip(beside, merged, strict=True):
        close(got, wanted, "features", "SigLIP with updates merged and beside")


def test_the_last_block_alone_gives_the_whole_towers_features(close):
    model = model_of()
    pixels, _ = toy_batch(TOY_SIGLIP)
    block = LastBlock(model)
    with jt.no_grad():
        close(
            block.leaving(block.entering(pixels)).numpy(), model.encode_image(pixels).numpy(), "features", "last block"
        )
    assert {name.split(".")[2] for name in block.fresh()} == {"blocks", "norm", "attn_pool"}


def test_groups_are_all_of_a_tower_each_once():
    names = set(shapes_of(TOY_SIGLIP)) - {"logit_scale", "logit_bias"}
    model, found = model_of(), []
    for groups in (image_groups(TOY_SIGLIP), text_groups(TOY_SIGLIP)):
        for patterns in groups:
            found += list(trainable(model, patterns))
    assert sorted(found) == sorted(names)


def test_patches_that_are_all_kept_are_the_whole_photo(close):
    model = model_of()
    pixels, _ = toy_batch(TOY_SIGLIP)
    patch_dropout.check_patch_dropout(model)
    kept = np.tile(np.arange(12, dtype=np.int32), (3, 1))
    with jt.no_grad():
        got = patch_dropout.encode_kept_patches(model, pixels, kept).numpy()
        close(got, model.encode_image(pixels).numpy(), "features", "SigLIP, all patches kept")
        fewer = patch_dropout.encode_kept_patches(model, pixels, kept[:, 1:]).numpy()
    assert np.abs(fewer - got).max() > 0.01


def test_learned_vectors_that_are_patches_count_as_such(close):
    """A vector equal to a patch's embedding, beside the others, in the first block's place of that patch."""
    model = model_of()
    pixels, _ = toy_batch(TOY_SIGLIP, images=1)
    with jt.no_grad():
        tokens = model.visual.embed(jt.array(pixels))
        last = tokens[0, 11:].reshape((1, 1, -1))
        got = model.visual.encode(jt.concat([tokens[:, :11], last], dim=1)).numpy()
        close(got, model.encode_image(pixels).numpy(), "features", "SigLIP, a patch as a vector")
        more = deep_prompts.encode_beside(model, pixels, last).numpy()
    assert np.abs(more - got).max() > 1e-3


def test_a_map_of_another_size_is_that_of_resized_weights(tmp_path, close):
    found = open_checkpoint(toy_file(tmp_path, TOY_SIGLIP))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 25, 30)).astype(np.float32)
    with jt.no_grad():
        pooled, cells = dense_map.dense_map(build(found), pixels)
        wanted = build(found.resized((25, 30))).encode_image(pixels, dense=True)
    close(pooled.numpy(), wanted[0].numpy(), "features", "SigLIP's map, pooled")
    close(cells.numpy(), wanted[1].numpy(), "tokens", "SigLIP's map")


@pytest.mark.skipif(bool(kernels.why_no_half("bf16")), reason="no half precision on this processor")
@pytest.mark.parametrize("seed", [0, 1])
def test_half_precision_stays_near_and_gives_the_weights_back(seed, close):
    wide, narrow = model_of(seed=seed), model_of(seed=seed)
    narrow.to("bf16")
    pixels, tokens = toy_batch(TOY_SIGLIP)
    with jt.no_grad():
        for kind in ("image", "text"):
            batch = pixels if kind == "image" else tokens
            got, wanted = (getattr(m, f"encode_{kind}")(batch).numpy() for m in (narrow, wide))
            close(got, wanted, "half_tower_relative", f"SigLIP in bf16: {kind}, relative", relative=True)
    rounded = narrow.full_weights()
    for name, value in wide.state_dict().items():
        back = rounded[name].numpy()
        assert back.shape == tuple(value.shape), name
        close(back, value.numpy(), "half_relative", "SigLIP's weights from bf16, relative", relative=True)
    kept = [k for k, v in narrow.state_dict().items() if v.dtype == "float32" and v.ndim == 2]
    assert sorted(kept) == ["text.positional_embedding", "text.token_embedding.weight"]


@pytest.mark.skipif(bool(jt.flags.use_cuda), reason="int8 is for CPUs")
@pytest.mark.parametrize("config", [TOY_VIT, TOY_SIGLIP], ids=["vit", "siglip"])
def test_mlps_of_odd_width_are_made_wider_in_8_bits_and_narrow_again(config, close):
    """100 hidden units become 128, as the 4304 of SO400M become 4352; what comes out is that of 100."""
    config = replace(config, vision=replace(config.vision, mlp_width=100), text=replace(config.text, mlp_width=70))
    wide, odd, even = model_of(config), model_of(config), model_of(config)
    odd.to("int8")
    for key, value in padded_mlp.padded(even.full_weights()).items():
        even.state_dict()[key].update(value)
    pixels, tokens = toy_batch(config)
    hidden = [v.shape[0] for k, v in odd.state_dict().items() if k.endswith((".fc1.bias", ".c_fc.bias"))]
    assert {*hidden} == {128}
    with jt.no_grad():
        for kind, batch in (("image", pixels), ("text", tokens)):
            close(*(getattr(m, f"encode_{kind}")(batch).numpy() for m in (even, wide)), "features", "wider MLPs")
            a, b = (getattr(m, f"encode_{kind}")(batch).numpy() for m in (odd, wide))
            cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            assert 1 - cosines.min() < TOLERANCES["int8_toy_cosine"]
    odd.to("fp32")
    for key, value in wide.state_dict().items():
        assert tuple(odd.state_dict()[key].shape) == tuple(value.shape), key
    with jt.no_grad():
        assert np.isfinite(odd.encode_image(pixels).numpy()).all()


def test_texts_are_never_cut_and_short_rows_are_refused(weights):
    source = ModelSource(weights)
    ids = source.tokenize(["a", "a boat on the sea"])
    assert ids.shape == (2, 64) and source.model.ends(ids).tolist() == [63, 63] and not source.model.causal
    with pytest.raises(DataError, match="must be 64 tokens long, padding included, got 9"):
        source.model.encode_text(ids[:, :9])
    for length in (32, 80):
        with pytest.raises(ConfigError, match="reads a text at its last place: its context of 64 must stay"):
            source.checkpoint.with_context(length)


def test_learned_vectors_that_are_words_read_as_these_words(weights, close):
    """Vectors equal to the embeddings of "a photo of a", and in the second block to what the first made of them."""
    source = ModelSource(weights)
    model, names = source.model, ["boat", "red car"]
    words = source.tokenizer.encode("a photo of a")
    layout = Layout.of(source, names, len(words))
    assert layout.first == 0 and layout.tokens.shape == (2, 64) and (layout.tokens[:, -1] == source.tokenizer.pad).all()
    vectors = jt.array(model.word_vectors.numpy()[words])
    ids = source.tokenize([f"a photo of a {name}." for name in names])
    with jt.no_grad():
        taps: dict = {}
        wanted = normalise(model.encode_text(ids, taps=taps)).numpy()
        got = Frame(model, layout).encode(vectors).numpy()
        close(got, wanted, "features_normalised", "SigLIP's learned prompts")
        one = Layout.of(source, names[:1], len(words))
        made = taps["text.block0"][0, : len(words)]
        deep = Frame(model, one).encode(jt.stack([vectors, made])).numpy()
        close(deep, wanted[:1], "features_normalised", "SigLIP's deep prompts")
        other = Frame(model, one).encode(jt.stack([vectors, vectors])).numpy()
    assert np.abs(other - deep).max() > 1e-3


def test_zero_shot_says_the_sigmoid_of_each_class(weights, photo_folder, tmp_path, capsys):
    photos, out = photo_folder / "test", tmp_path / "out.csv"
    command = ["zero-shot", str(photos), "--model", str(weights), "--classes", NAMES, "--templates", "simple"]
    assert main([*command, "--top", "4", "--out", str(out)]) == 0
    with open(out, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    source = ModelSource(weights)
    ids = source.tokenize([f"a photo of a {name}." for name in NAMES.split(",")])
    pixels = np.stack([source.preprocess(open_photo(row["photo"])) for row in rows])
    with inference(source.model):
        wanted = source.model.probabilities(pixels, ids).numpy()
    assert 0.02 < wanted.min() < wanted.max() < 0.98 and np.abs(wanted.sum(axis=1) - 1).max() > 0.1
    for row, chances in zip(rows, wanted, strict=True):
        said = {row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in range(1, 5)}
        assert [*said.values()] == sorted(said.values(), reverse=True)
        for name, chance in zip(NAMES.split(","), chances, strict=True):
            assert said[name] == pytest.approx(chance, abs=1e-5)
    certain = sorted(float(row["probability_1"]) for row in rows)
    capsys.readouterr()
    assert main([*command, "--unknown", str((certain[4] + certain[5]) / 2)]) == 0
    assert capsys.readouterr().out.count("unknown (") == 5


def test_tags_have_the_familys_probabilities_and_thresholds_that_are_fitted(weights, photo_folder, tmp_path, capsys):
    photos, scores = photo_folder / "test", tmp_path / "scores.npz"
    command = ["tag", str(photos), "--model", str(weights), "--classes", NAMES, "--templates", "simple"]
    assert main([*command, "--out", str(scores)]) == 0
    assert "tags with their probability" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "tags.json"), "--threshold", "0"]) == 0
    tagger = Tagger(ModelSource(weights), NAMES.split(","), "simple")
    assert tagger.method == "whole"
    found = read_scores(str(scores))
    logits, paths = found.main, found.photos
    entries = json.loads((tmp_path / "tags.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(tagger.scores(paths), logits, rtol=0, atol=tolerance("scores"))
    pixels = np.stack([tagger.source.preprocess(open_photo(path)) for path in paths])
    ids = tagger.source.tokenize([f"a photo of a {name}." for name in NAMES.split(",")])
    with inference(tagger.source.model):
        wanted = tagger.source.model.probabilities(pixels, ids).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), wanted, rtol=0, atol=tolerance("features_normalised"))
    for entry, row in zip(entries, logits, strict=True):
        said = {tag["class"]: tag["probability"] for tag in entry["tags"]}
        for name, logit in zip(NAMES.split(","), row, strict=True):
            assert said[name] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)
    labels = tmp_path / "labels.txt"
    kinds = {"red_thing": 0, "绿 thing": 1, "blue thing": 2}
    labels.write_text("".join(f"{path} {kinds[Path(path).parent.name]}\n" for path in paths), encoding="utf-8")
    fitted = tmp_path / "fitted.json"
    measure = ["measure", str(scores), "--labels", str(labels), "--threshold", "class_f1", "--calibrate", str(fitted)]
    assert main(measure) == 0
    assert main([*command, "--calibration", str(fitted), "--out", str(tmp_path / "again.json")]) == 0
    thresholds = read_calibration(fitted).thresholds
    for entry, row in zip(json.loads((tmp_path / "again.json").read_text(encoding="utf-8")), logits, strict=True):
        chosen = {n for n, x, t in zip(NAMES.split(","), row, thresholds, strict=True) if x >= t and n != "a boat"}
        assert {tag["class"] for tag in entry["tags"]} == chosen


QUICK = ["scratch=false", "zero_shot=[]", "data.scenes=24", "data.val_scenes=6", "optim.batch=8", "optim.epochs=2"]


def train(recipe, *settings):
    return main(["train", str(ROOT / "configs" / recipe / "smoke.yaml"), *map(str, settings)])


def test_its_own_loss_trains_its_bias_and_leaves_the_scale(weights, tmp_path, capsys):
    place = ["--run", str(tmp_path / "r")]
    assert train("contrastive", *QUICK, f"model={weights}", *place) == 2
    error = capsys.readouterr().err
    assert "loss must be sigmoid for" in error and len(error.splitlines()) == 1
    assert train("full", f"model={weights}", *place) == 2
    error = capsys.readouterr().err
    assert "was not trained with: set loss=sigmoid, or cross_entropy" in error
    assert train("full", "loss=sigmoid", *place) == 2
    assert "loss=sigmoid must be of weights with a bias of their logits (SigLIP), got" in capsys.readouterr().err
    assert train("contrastive", *QUICK, f"model={weights}", "loss=sigmoid", "optim.lr=1e-2", *place) == 0
    after = open_checkpoint(tmp_path / "r" / "model.safetensors")
    assert after.config == SMALL_SIGLIP and after.vocabulary is not None
    bias = float(after.tensors["logit_bias"].read().reshape(()))
    assert bias != 1.5 and abs(bias - 1.5) < 0.5
    said = json.loads((tmp_path / "r" / "result.json").read_text())["metrics"]["logit_bias"]
    assert said == pytest.approx(bias, abs=1e-5)


def test_towers_are_tuned_on_photos_by_its_own_loss(weights, photo_folder, tmp_path):
    data = [f"data.root={photo_folder}", "data.shots=4", "data.val_shots=2", "optim.batch=6", "optim.lr=1e-3"]
    place = ["--run", str(tmp_path / "r")]
    assert train("full", f"model={weights}", *data, "loss=sigmoid", "positives=same", "optim.epochs=4", *place) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    after = open_checkpoint(tmp_path / "r" / "model.safetensors")
    assert float(after.tensors["logit_bias"].read().reshape(())) != 1.5 and after.vocabulary is not None


def test_a_mixture_of_two_keeps_bias_and_vocabulary(tmp_path):
    first, second = (open_checkpoint(toy_file(tmp_path, SMALL_SIGLIP, seed)) for seed in (0, 1))
    wise_ft.save_mixture(tmp_path / "mixed.safetensors", first, second, 0.25)
    mixed = open_checkpoint(tmp_path / "mixed.safetensors")
    assert mixed.config == first.config and mixed.vocabulary.data == first.vocabulary.data
    assert ModelSource(tmp_path / "mixed.safetensors").logit_bias == -10


def test_a_scale_above_a_hundred_is_its_own(tmp_path):
    model = model_of()
    put_arrays(model, {"logit_scale": np.array([4.77], np.float32)})
    clamp_logit_scale(model)
    assert model.logit_scale.item() == pytest.approx(4.77)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embed_dim": 20}, "embed_dim must be SigLIP's vision.width 24, got 20"),
        ({"sigmoid": 1}, "sigmoid must be true or false, got 1"),
        ({"vision": {"kind": "of tomorrow"}}, "vision.kind must be one of"),
        ({"vision": {"activation": "relu"}}, "vision.activation must be one of"),
        ({"text": {"projection": False}}, "embed_dim must be text.width 20 without text.projection, got 24"),
    ],
)
def test_configs_that_no_siglip_has_are_one_line(changed, message):
    said = TOY_SIGLIP.to_dict()
    merged = {k: {**said[k], **v} if isinstance(v, dict) else v for k, v in changed.items()}
    with pytest.raises(ConfigError, match="^[^\n]+$") as raised:
        CLIPConfig.from_dict({**said, **merged})
    assert message in str(raised.value)
    assert CLIPConfig.from_dict(said) == TOY_SIGLIP


def described(folder: Path, config: dict) -> list[str]:
    folder.mkdir()
    safetensors.write(folder / "model.safetensors", {"vision_model.head.probe": np.zeros((1, 1, 4), np.float32)})
    (folder / "config.json").write_text(json.dumps(config))
    return [str(folder), str(folder.with_name("out"))]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "siglip2", "vision_config": {"num_patches": 17}}, "num_patches must be a square, got 17"),
        (
            {"model_type": "siglip2", "vision_config": {"num_patches": "9"}},
            "vision_config.num_patches must be an integer",
        ),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "must have its attention pool"),
        ({"model_type": "siglip", "vision_config": {"hidden_size": 100}}, "vision.heads must divide width 100, got 12"),
        ({"model_type": "siglip", "text_config": {"hidden_act": "relu"}}, "text_config.hidden_act must be one of"),
        ({"model_type": "siglip", "text_config": {"vocab_size": -1}}, "text_config.vocab_size must be"),
        ({"model_type": "siglip"}, "needs its vocabulary, which is not beside it: put tokenizer.json or spiece.model"),
        ({"model_type": "siglip3"}, "is of a siglip3 model"),
        (
            {"model_type": "siglip", "vision_config": {"num_channels": 4}},
            "vision_config.num_channels must be one of 3, got 4",
        ),
        (
            {"model_type": "siglip2", "vision_config": {"num_channels": 4}},
            "vision_config.num_channels must be one of 3",
        ),
        ({"model_type": "clip", "vision_config": {"num_channels": 4}}, "vision_config.num_channels must be one of 3"),
        (
            {
                "model_type": "chinese_clip",
                "projection_dim": 8,
                "vision_config": {"num_channels": 4},
                "text_config": {},
            },
            "vision_config.num_channels must be one of 3, got 4",
        ),
    ],
)
def test_folders_that_cannot_be_read_are_one_line(config, message, tmp_path, capsys):
    assert convert(described(tmp_path / "in", config)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error


def test_features_before_a_projection_are_refused(weights):
    with pytest.raises(ConfigError, match="has no projection: take features=projected"):
        ModelSource(weights, penultimate=True)


def test_names_stand_for_towers_whatever_their_activation():
    from jclip.weights.variants import architecture_name

    config = ARCHITECTURES["ViT-B-16-SigLIP2"]
    assert architecture_name(replace(config, vision=replace(config.vision, activation="gelu"))) == "ViT-B-16-SigLIP2"
    assert architecture_name(replace(config, text=replace(config.text, vocab_size=32000))) == "ViT-B-16-SigLIP"


def test_the_english_vocabulary_warns_of_other_scripts(weights, monkeypatch):
    from jclip.features import source as sources
    from jclip.prompts.scripts import SIGLIP_ENGLISH

    assert ModelSource(weights).vocabulary_kind == "tokenizer.json"
    monkeypatch.setattr(sources, "C4", TOY_SIGLIP.text.vocab_size)
    assert ModelSource(weights).vocabulary_kind == SIGLIP_ENGLISH

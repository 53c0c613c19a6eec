"""FG-CLIP 2 against its authors' formulas over transformers' SigLIP 2 of any aspect: photos, and each way to read texts."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
transformers = pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")

import safetensors.torch  # noqa: E402

from convert.cli import main  # noqa: E402
from jclip.errors import CheckpointError, ConfigError  # noqa: E402
from jclip.functional.similarity import normalise  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.trainable import trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.families import Stated  # noqa: E402
from jclip.weights.identify import identify  # noqa: E402
from tests.converters.writers import torch_model  # noqa: E402
from tests.toys import letter_words  # noqa: E402

LONG, SHORT, PATCH, GRID, WIDTH = 29, 11, 5, 4, 24
TEXTS = {"short": SHORT, "box": SHORT, "long": LONG}
EMBEDDINGS = "text_model.embeddings.position_embedding"


def fg_clip_folder(folder, seed, **changed):
    """The authors' folder; the SigLIP 2 that it extends, and all tensors."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision = {**sizes, "intermediate_size": 42, "patch_size": PATCH, "num_patches": GRID * GRID}
    text = {**sizes, "intermediate_size": 33, "vocab_size": 97, "max_position_embeddings": SHORT}
    text |= {"projection_size": WIDTH, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    config._attn_implementation = "eager"
    model = torch_model(transformers.Siglip2Model(config), seed)
    rng = np.random.default_rng(seed)
    heads = {f"{name}_head": (WIDTH, WIDTH) for name in ("longtext", "boxtext")}
    shapes = {f"{name}.weight": shape for name, shape in heads.items()} | {f"{name}.bias": (WIDTH,) for name in heads}
    shapes |= {f"{EMBEDDINGS}_{which}.weight": (LONG, WIDTH) for which in ("res", "ori")}
    shapes["dense_feature_head.probe"] = (1, 1, WIDTH)
    with torch.no_grad():
        model.logit_scale.fill_(1.9)
        model.logit_bias.fill_(-1.3)
    tensors = dict(model.state_dict())
    tensors |= {name: torch.tensor(rng.standard_normal(shape, dtype=np.float32) / 5) for name, shape in shapes.items()}
    folder.mkdir()
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    said = {
        "model_type": "fgclip2",
        "vision_config": vision,
        "text_config": {**text, "longtext_len": LONG, "keep_len": 20},
    }
    for table, key, value in changed.values():
        said[table][key] = value
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_bytes(letter_words(97).data)
    return model, tensors


def photos_as_authors(model, pixels):
    """Patches row by row, colours last; every patch of a square photo counts."""
    count = len(pixels)
    patches = torch.tensor(pixels).reshape(count, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 3, 5, 1)
    shapes = torch.full((count, 2), GRID)
    mask = torch.ones(count, GRID * GRID, dtype=torch.long)
    out = model.vision_model(patches.reshape(count, GRID * GRID, -1), pixel_attention_mask=mask, spatial_shapes=shapes)
    return out.pooler_output


def texts_as_authors(model, tensors, ids, way):
    """Positions and head by the way; all tokens count, the last is read."""
    length = ids.shape[1]
    if way == "long":
        first = (torch.arange(LONG) < 20).float()[:, None]
        table = tensors[f"{EMBEDDINGS}_ori.weight"] * first + tensors[f"{EMBEDDINGS}_res.weight"] * (1 - first)
    else:
        table = tensors[f"{EMBEDDINGS}.weight"]
    x = tensors["text_model.embeddings.token_embedding.weight"][ids] + table[:length]
    last = model.text_model.final_layer_norm(model.text_model.encoder(inputs_embeds=x).last_hidden_state)[:, -1]
    head = {"short": "text_model.head", "box": "boxtext_head", "long": "longtext_head"}[way]
    return torch.nn.functional.linear(last, tensors[f"{head}.weight"], tensors[f"{head}.bias"])


def batch(way, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((3, 3, GRID * PATCH, GRID * PATCH)).astype(np.float32)
    return pixels, rng.integers(0, 97, (5, TEXTS[way])).astype(np.int32)


@pytest.mark.parametrize("way", TEXTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_features_and_probabilities_equal_the_authors(way, seed, tmp_path, close):
    theirs, tensors = fg_clip_folder(tmp_path / "fg", seed)
    source = identify(tmp_path / "fg", Stated(texts=None if way == "short" else way))
    source.check()
    every = [*source.report.copied, *source.report.transformed, *source.report.dropped]
    assert sorted(every) == sorted(tensors) and not source.report.unknown
    found = source.checkpoint
    assert found.preprocess.resize == "proportional" and found.preprocess.interpolation == "bilinear"
    assert (found.config.text.context_length, found.config.vision.image_size) == (TEXTS[way], (20, 20))
    model = build(found)
    pixels, ids = batch(way, seed)
    with torch.no_grad(), jt.no_grad():
        image, text = (
            photos_as_authors(theirs, pixels),
            texts_as_authors(theirs, tensors, torch.tensor(ids).long(), way),
        )
        ours = model.encode_image(pixels), model.encode_text(ids)
        probabilities = model.probabilities(pixels, ids)
    units = [torch.nn.functional.normalize(x, dim=-1) for x in (image, text)]
    for kind, got, wanted, unit in zip(("image", f"{way} text"), ours, (image, text), units, strict=True):
        close(got.numpy(), wanted, "features", f"FG-CLIP 2: {kind}")
        close(normalise(got).numpy(), unit, "features_normalised", f"FG-CLIP 2: {kind}, normalised")
    wanted = torch.sigmoid(units[0] @ units[1].T * theirs.logit_scale.exp() + theirs.logit_bias)
    close(probabilities.numpy(), wanted.detach(), "features_normalised", "FG-CLIP 2: probabilities")


def test_gradients_of_long_texts_equal_the_authors(tmp_path, close):
    theirs, tensors = fg_clip_folder(tmp_path / "fg", 2)
    model = build(identify(tmp_path / "fg", Stated(texts="long")).checkpoint)
    _, ids = batch("long", 2)
    names = [f"{EMBEDDINGS}_ori.weight", f"{EMBEDDINGS}_res.weight", "longtext_head.weight"]
    leaves = {name: tensors[name].clone().requires_grad_() for name in names}
    texts_as_authors(theirs, tensors | leaves, torch.tensor(ids).long(), "long").square().sum().backward()
    named = trainable(model)
    ours = [named[name] for name in ("text.positional_embedding", "text.text_projection.weight")]
    ours = [grad.numpy() for grad in jt.grad(model.encode_text(ids).sqr().sum(), ours)]
    positions = torch.cat([leaves[names[0]].grad[:20], leaves[names[1]].grad[20:]])
    close(ours[0], positions, "gradient_relative", "FG-CLIP 2: gradients, relative", relative=True)
    close(ours[1], leaves[names[2]].grad, "gradient_relative", "FG-CLIP 2: gradients, relative", relative=True)


def test_out_as_siglip_2_computes_the_same(tmp_path, close):
    theirs, tensors = fg_clip_folder(tmp_path / "fg", 3)
    assert main([str(tmp_path / "fg"), str(tmp_path / "long"), "--texts", "long", "--to", "huggingface"]) == 0
    out = transformers.Siglip2Model.from_pretrained(tmp_path / "long").eval()
    pixels, ids = batch("long", 3)
    name = "FG-CLIP 2 as SigLIP 2"
    with torch.no_grad():
        text = out.get_text_features(torch.tensor(ids).long()).pooler_output
        close(text, texts_as_authors(theirs, tensors, torch.tensor(ids).long(), "long"), "features", name)
        close(photos_as_authors(out, pixels), photos_as_authors(theirs, pixels), "features", name)


def test_what_can_not_be_is_one_line(tmp_path):
    fg_clip_folder(tmp_path / "fg", 0)
    (tmp_path / "fg" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"is of FG-CLIP 2: its folder must hold config.json"):
        identify(tmp_path / "fg")
    for name, (table, key, value), message in [
        ("keep", ("text_config", "keep_len", 7), "keep_len must be one of 20, got 7"),
        ("grid", ("vision_config", "num_patches", 17), "num_patches must be a square, got 17"),
    ]:
        fg_clip_folder(tmp_path / name, 0, it=(table, key, value))
        with pytest.raises(CheckpointError, match=message):
            identify(tmp_path / name)
    from tests.toys import TOY_VIT, toy_file

    assert main([str(toy_file(tmp_path, TOY_VIT)), str(tmp_path / "clip"), "--to", "huggingface"]) == 0
    with pytest.raises(
        ConfigError, match="--texts must be of FG-CLIP 2's weights, got .*, which read texts in one way"
    ):
        identify(tmp_path / "clip", Stated(texts="long"))


def test_its_vocabulary_is_lower_cased(tmp_path):
    fg_clip_folder(tmp_path / "fg", 0)
    spec = {"type": "BPE", "vocab": {"<pad>": 0, "</s>": 1, "a": 2, "A": 3, "b": 4}, "merges": []}
    (tmp_path / "fg" / "tokenizer.json").write_text(json.dumps({"model": spec}))
    from jclip.prompts.vocabularies import tokenizer_files

    file = tokenizer_files(tmp_path / "fg")
    assert file.settings == {"lower_case": True}

"""SigLIP against transformers and open_clip: seeded random models of their own classes, read, computed, written back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
pytest.importorskip("transformers", reason="the reference is not installed: pip install '.[parity]'")

from convert.cli import main  # noqa: E402
from jclip.functional.losses import sigmoid_loss  # noqa: E402
from jclip.functional.similarity import normalise  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.trainable import trainable  # noqa: E402
from jclip.readers import read_weights  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights import siglip_variants  # noqa: E402
from jclip.weights.identify import identify  # noqa: E402
from jclip.weights.layouts import from_siglip  # noqa: E402
from jclip.weights.parameter_shapes import parameter_shapes  # noqa: E402
from jclip.weights.variants import ARCHITECTURES, architecture_name  # noqa: E402
from tests.toys import TOY_SIGLIP, letter_words  # noqa: E402

SQUARE = replace(TOY_SIGLIP, vision=replace(TOY_SIGLIP.vision, image_size=(20, 20)))
UNEVEN = replace(SQUARE, vision=replace(SQUARE.vision, image_size=(23, 23)))  # pixels beyond the last whole patch
TIMM = "vit_toy_patch5_siglip_20"
WATCHED = (  # parameters whose gradients are compared: by our name, transformers'
    ("visual.trunk.patch_embed.proj.bias", "vision_model.embeddings.patch_embedding.bias"),
    ("visual.trunk.blocks.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"),
    ("visual.trunk.attn_pool.latent", "vision_model.head.probe"),
    ("visual.trunk.attn_pool.mlp.fc2.weight", "vision_model.head.mlp.fc2.weight"),
    ("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("text.transformer.resblocks.1.mlp.c_proj.bias", "text_model.encoder.layers.1.mlp.fc2.bias"),
    ("text.text_projection.weight", "text_model.head.weight"),
    ("logit_scale", "logit_scale"),
    ("logit_bias", "logit_bias"),
)


def batch(config, seed, images=3, texts=5):
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((images, 3, *config.vision.image_size)).astype(np.float32)
    return pixels, rng.integers(0, config.text.vocab_size, (texts, config.text.context_length)).astype(np.int32)


def with_words(folder, config):
    (folder / "tokenizer.json").write_bytes(letter_words(config.text.vocab_size).data)


def hugging_face(folder, config, seed):
    """The folder as transformers writes it, with a vocabulary; the model."""
    from tests.parity.torch_siglip import hugging_face_model

    model = hugging_face_model(config, seed)
    model.save_pretrained(folder)
    with_words(folder, config)
    return model


def loaded(path):
    found = identify(path)
    found.check()
    return build(found.checkpoint), found.checkpoint


@pytest.mark.parametrize("config", [SQUARE, UNEVEN], ids=["square", "uneven"])
@pytest.mark.parametrize("seed", [0, 1])
def test_features_tokens_and_probabilities_equal_transformers(config, seed, tmp_path, close):
    theirs = hugging_face(tmp_path / "hf", config, seed)
    model, found = loaded(tmp_path / "hf")
    assert found.config == config and found.preprocess.resize == "squash" and found.preprocess.mean == (0.5, 0.5, 0.5)
    pixels, ids = batch(config, seed)
    taps: dict = {}
    with torch.no_grad(), jt.no_grad():
        wanted = theirs(
            pixel_values=torch.tensor(pixels), input_ids=torch.tensor(ids).long(), output_hidden_states=True
        )
        pooled, tokens = model.encode_image(pixels, dense="token", taps=taps)
        read, every = model.encode_text(ids, dense=True, taps=taps)
        probabilities = model.probabilities(pixels, ids)
        said = theirs.text_model.head(wanted.text_model_output.last_hidden_state)
    label = "SigLIP against transformers"
    for kind, ours, other in (
        ("image", pooled, wanted.vision_model_output.pooler_output),
        ("text", read, wanted.text_model_output.pooler_output),
    ):
        close(ours.numpy(), other, "features", f"{label}: {kind}")
        unit = torch.nn.functional.normalize(other, dim=-1)
        close(normalise(ours).numpy(), unit, "features_normalised", f"{label}: {kind}, normalised")
    close(tokens.numpy(), wanted.vision_model_output.last_hidden_state, "tokens", f"{label}: patches")
    close(every.numpy(), said, "tokens", f"{label}: text tokens")
    for side, name in (("vision", "visual"), ("text", "text")):
        states = getattr(wanted, f"{side}_model_output").hidden_states
        for i, state in enumerate(states[1:]):
            close(taps[f"{name}.block{i}"].numpy(), state, "tokens", f"{label}: {side} blocks")
    close(
        probabilities.numpy(), torch.sigmoid(wanted.logits_per_image), "features_normalised", f"{label}: probabilities"
    )
    assert 0.02 < float(probabilities.numpy().min()) < float(probabilities.numpy().max()) < 0.98


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_of_its_loss_equal_transformers(seed, tmp_path, close):
    theirs = hugging_face(tmp_path / "hf", SQUARE, seed)
    model, _ = loaded(tmp_path / "hf")
    pixels, ids = batch(SQUARE, seed, texts=3)
    loss = theirs(pixel_values=torch.tensor(pixels), input_ids=torch.tensor(ids).long(), return_loss=True).loss
    loss.backward()
    params = trainable(model, [ours for ours, _ in WATCHED])
    images, texts = normalise(model.encode_image(pixels)), normalise(model.encode_text(ids))
    ours = sigmoid_loss(images, texts, params["logit_scale"].exp(), params["logit_bias"])
    close(ours.numpy().reshape(()), loss.detach(), "loss", "SigLIP's loss against transformers")
    gradients = jt.grad(ours, [params[name] for name, _ in WATCHED])
    wanted = dict(theirs.named_parameters())
    for (name, other), gradient in zip(WATCHED, gradients, strict=True):
        label = "SigLIP against transformers: gradients, relative"
        close(gradient.numpy(), wanted[other].grad, "gradient_relative", label, relative=True)
        assert float(wanted[other].grad.abs().max()) > 0, name


def test_back_out_to_transformers_changes_no_bit(tmp_path):
    from transformers import SiglipModel

    hugging_face(tmp_path / "hf", SQUARE, 0)
    middle, back = tmp_path / "own.safetensors", tmp_path / "back"
    assert main([str(tmp_path / "hf"), str(middle), "--check"]) == 0
    assert main([str(middle), str(back), "--to", "huggingface"]) == 0
    wanted, got = (read_weights(folder / "model.safetensors") for folder in (tmp_path / "hf", back))
    assert set(wanted) == set(got)
    for name, tensor in wanted.items():
        assert tensor.shape == got[name].shape and np.array_equal(tensor.read(), got[name].read()), name
    _, said = SiglipModel.from_pretrained(back, output_loading_info=True)
    assert not any(said[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    once, again = identify(middle).checkpoint, identify(back).checkpoint
    assert (once.config, once.preprocess) == (again.config, again.preprocess)
    assert once.vocabulary.data == again.vocabulary.data == (tmp_path / "hf/tokenizer.json").read_bytes()


@pytest.fixture
def toy_timm(monkeypatch):
    """A toy SigLIP tower under timm's roof, by activation; its name is one that jclip knows."""
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    import sys

    from timm.models import _registry

    from tests.parity.torch_siglip import timm_tower

    def register(config):
        def entry(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **options):
            return timm_tower(config)

        entry.__name__, entry.__module__ = TIMM, "tests.parity.test_siglip"
        monkeypatch.setitem(_registry._model_entrypoints, TIMM, entry)
        monkeypatch.setitem(_registry._model_to_module, TIMM, "vision_transformer")
        monkeypatch.setitem(siglip_variants.SIGLIP_TIMM, TIMM, config.vision)

    assert "timm" in sys.modules
    return register


def told(config):
    """open_clip's description of a toy model."""
    said = from_siglip.described(config)
    assert said["vision_cfg"]["timm_model_name"] == TIMM
    shown = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    return said, shown


@pytest.mark.parametrize("seed, image, text, projection", [
    (0, "gelu", "gelu", True), (1, "gelu_tanh", "gelu_tanh", True), (2, "gelu", "gelu_tanh", True),
    (3, "gelu_tanh", "gelu", False),
])  # fmt: skip
def test_open_clip_both_ways(seed, image, text, projection, toy_timm, tmp_path, close):
    from tests.parity.torch_siglip import open_clip_folder

    words = replace(SQUARE.text, activation=text, projection=projection, width=20 if projection else 24)
    config = replace(SQUARE, vision=replace(SQUARE.vision, activation=image), text=words, activation=image)
    toy_timm(config)
    theirs = open_clip_folder(tmp_path / "in", *told(config)[:1], seed, told(config)[1])
    with_words(tmp_path / "in", config)
    model, found = loaded(tmp_path / "in")
    assert found.config == config and found.preprocess.resize == "squash"
    pixels, ids = batch(config, seed)
    with torch.no_grad(), jt.no_grad():
        wanted = theirs.encode_image(torch.tensor(pixels)), theirs.encode_text(torch.tensor(ids).long())
        logits = theirs.get_logits(torch.tensor(pixels), torch.tensor(ids).long())[0]
        got = model.encode_image(pixels), model.encode_text(ids)
        per_image, _ = model(pixels, ids)
    for kind, ours, other in zip(("image", "text"), got, wanted, strict=True):
        close(ours.numpy(), other, "features", f"SigLIP against open_clip: {kind}")
    close(per_image.numpy(), logits, "features", "SigLIP against open_clip: logits with bias")
    middle, back = tmp_path / "own.pt", tmp_path / "back"
    assert main([str(tmp_path / "in"), str(middle), "--to", "torch"]) == 0
    assert main([str(tmp_path / "in"), str(back), "--to", "open_clip", "--check"]) == 0
    wanted = read_weights(tmp_path / "in/open_clip_model.safetensors")
    for path in (middle, back / "open_clip_model.safetensors"):
        found = read_weights(path)
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            assert tensor.shape == found[name].shape and np.array_equal(tensor.read(), found[name].read()), name
    assert json.loads((back / "open_clip_config.json").read_text())["model_cfg"] == told(config)[0]


def test_open_clip_loads_what_transformers_wrote(toy_timm, tmp_path, close, capsys):
    import open_clip

    erf = replace(SQUARE, vision=replace(SQUARE.vision, activation="gelu"))
    toy_timm(erf)  # timm knows the tower with the exact GELU alone
    theirs = hugging_face(tmp_path / "hf", SQUARE, 4)
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), "--to", "open_clip"]) == 0
    assert "whose GELU is not gelu_tanh as here" in capsys.readouterr().err
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    pixels, ids = batch(SQUARE, 4)
    with torch.no_grad():
        wanted = theirs.get_text_features(torch.tensor(ids).long()).pooler_output
        close(model.encode_text(torch.tensor(ids).long()), wanted, "features", "open_clip reads SigLIP: text")
        image = theirs.get_image_features(torch.tensor(pixels)).pooler_output
        off = (model.encode_image(torch.tensor(pixels)) - image).abs().max() / image.abs().max()
    assert 1e-5 < off < 1e-2


def test_positions_of_another_size_equal_transformers(tmp_path, close):
    theirs = hugging_face(tmp_path / "hf", SQUARE, 0)
    found = identify(tmp_path / "hf").checkpoint.resized((35, 25))
    assert found.preprocess.size == (35, 25) and found.tensors["visual.trunk.pos_embed"].shape == (1, 35, 24)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 35, 25)).astype(np.float32)
    with torch.no_grad(), jt.no_grad():
        wanted = theirs.vision_model(torch.tensor(pixels), interpolate_pos_encoding=True)
        got = build(found).encode_image(pixels, dense="token")
    close(got[0].numpy(), wanted.pooler_output, "features", "SigLIP at another size: image")
    close(got[1].numpy(), wanted.last_hidden_state, "tokens", "SigLIP at another size: patches")


def test_a_patch_alone_is_what_the_pool_takes_of_one_token(tmp_path, close):
    theirs = hugging_face(tmp_path / "hf", SQUARE, 0)
    model, _ = loaded(tmp_path / "hf")
    pixels, _ = batch(SQUARE, 0)
    with torch.no_grad(), jt.no_grad():
        tokens = theirs.vision_model(torch.tensor(pixels)).last_hidden_state
        alone = torch.stack([theirs.vision_model.head(tokens[:, i : i + 1]) for i in range(tokens.shape[1])], dim=1)
        got = model.encode_image(pixels, dense=True)[1]
    close(got.numpy(), alone, "tokens", "SigLIP: a patch alone")


@pytest.mark.parametrize("name", [n for n in siglip_variants.SIGLIP_TOWERS if not n.endswith("i18n-256")][::3])
def test_architectures_by_name_have_transformers_parameters(name):
    """On the meta device, so that nothing is allocated; the shapes that our layout asks for go out under their names."""
    from jclip.readers import LazyTensor
    from tests.parity.torch_siglip import hugging_face_model

    config = ARCHITECTURES[name]
    few = replace(config, vision=replace(config.vision, layers=1), text=replace(config.text, layers=1))
    with torch.device("meta"):
        theirs = hugging_face_model(few, 0)
    shapes = parameter_shapes(few)
    out = from_siglip.to_hugging_face({k: LazyTensor(s, "float32", lambda: None) for k, s in shapes.items()})
    assert {k: t.shape for k, t in out.items()} == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert architecture_name(config) == name


def test_open_clips_configs_are_the_architectures_by_name():
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    names = [name for name in open_clip.list_models() if "SigLIP" in name]
    assert len(names) == 26
    for name in names:
        config = from_siglip.config_from_open_clip(open_clip.get_model_config(name), name)
        assert architecture_name(config) == name
        again = from_siglip.described(config)
        assert from_siglip.config_from_open_clip(again, name) == config


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("prefix", ["", "_model."])
def test_towers_alone(tower, prefix, tmp_path, close):
    """As transformers 5 exports them, without a prefix, and as 4 did; out again it loads them."""
    import safetensors.torch
    from transformers import SiglipTextModel, SiglipVisionModel

    both = hugging_face(tmp_path / "both", SQUARE, 5)
    side = {"image": "vision", "text": "text"}[tower]
    theirs, folder = getattr(both, f"{side}_model"), tmp_path / "in"
    theirs.save_pretrained(folder)
    with_words(folder, SQUARE)
    if prefix:
        named = {f"{side}{prefix}{k}": v.contiguous() for k, v in theirs.state_dict().items()}
        safetensors.torch.save_file(named, folder / "model.safetensors")
    found = identify(folder, tower=tower)
    found.check()
    pixels, ids = batch(SQUARE, 5)
    given, model = pixels if tower == "image" else ids, build(found.checkpoint)
    with torch.no_grad(), jt.no_grad():
        wanted = theirs(torch.tensor(given) if tower == "image" else torch.tensor(given).long()).pooler_output
        got = getattr(model, f"encode_{tower}")(given).numpy()
    close(got, wanted, "features", "SigLIP's towers alone")
    assert main([str(folder), str(tmp_path / "out"), "--to", "huggingface", "--tower", tower]) == 0
    kind = SiglipVisionModel if tower == "image" else SiglipTextModel
    again, said = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("resample", [2, 3])
def test_photos_become_the_pixels_that_transformers_makes(resample, tmp_path, close):
    from PIL import Image
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    hugging_face(tmp_path / "hf", SQUARE, 0)
    theirs = SiglipImageProcessorPil(size={"height": 20, "width": 20}, resample=resample)
    theirs.save_pretrained(tmp_path / "hf")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    wanted = theirs(photo, return_tensors="np")["pixel_values"][0]
    close(identify(tmp_path / "hf").checkpoint.preprocess(photo), wanted, "rounding", "SigLIP's pixels")

"""PE-Core, MobileCLIP B and L, MetaCLIP 2 worldwide against open_clip, timm and transformers, in and out again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from convert.cli import main
from jclip.data.preprocess import Preprocess
from jclip.functional.similarity import normalise
from jclip.model.clip import build
from jclip.readers import LazyTensor, read_weights
from jclip.runtime import jt
from jclip.weights import variants
from jclip.weights.checkpoint import in_memory, open_checkpoint, random_arrays, save_checkpoint
from jclip.weights.families import Stated
from jclip.weights.identify import identify, layout_of
from jclip.weights.layouts import from_open_clip, from_timm
from jclip.weights.layouts.keymap import unapply
from jclip.weights.parameter_shapes import config_from_shapes, parameter_shapes
from jclip.weights.recent_architectures import MOBILE, PERCEPTION
from tests import toys_2025
from tests.toys import toy_batch
from tests.toys_2025 import TIMM_NAMES, TOYS_2025, open_clip_folder, toy_texts

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
pytest.importorskip("open_clip", reason="open_clip is not installed")
NAMES = pytest.mark.parametrize("name", TOYS_2025)
FAMILY = {"PE": "pe", "MobileCLIP": "mobileclip"}
SEEDS = pytest.mark.parametrize("seed", [0, 1])


@pytest.fixture(autouse=True)
def toy_names(monkeypatch):
    """The toy towers under their names in timm."""
    for name, timm in TIMM_NAMES.items():
        monkeypatch.setitem(from_open_clip.TIMM, timm, f"toy-{name}")
        monkeypatch.setitem(variants.ARCHITECTURES, f"toy-{name}", TOYS_2025[name])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """open_clip's model and its folder, by name and seed."""
    folder = tmp_path_factory.mktemp("open_clip")
    return {
        (n, s): (open_clip_folder(folder / f"{n}-{s}", n, s), folder / f"{n}-{s}") for n in TOYS_2025 for s in (0, 1)
    }


def encoded(model, pixels, ids):
    with torch.no_grad():
        return model.encode_image(torch.tensor(pixels)), model.encode_text(torch.tensor(ids).long())


@SEEDS
@NAMES
def test_features_of_open_clips_folder(name, seed, folders, close):
    theirs, folder = folders[name, seed]
    config = TOYS_2025[name]
    source = identify(folder)
    source.check()
    assert source.checkpoint.config == config and source.checkpoint.preprocess.resize == "squash"
    model, (pixels, _), ids = build(source.checkpoint), toy_batch(config, seed), toy_texts(config, seed)
    with jt.no_grad():
        ours = model.encode_image(pixels), model.encode_text(ids)
    for kind, got, wanted in zip(("image", "text"), ours, encoded(theirs, pixels, ids), strict=True):
        close(got.numpy(), wanted, "features", f"toy {name} against open_clip: {kind}")
        unit = torch.nn.functional.normalize(wanted, dim=-1)
        close(normalise(got).numpy(), unit, "features_normalised", f"toy {name} against open_clip: {kind}, normalised")


@NAMES
def test_every_blocks_tokens(name, folders, close):
    theirs, folder = folders[name, 0]
    config, taps = TOYS_2025[name], {}
    model, (pixels, _), ids = build(identify(folder).checkpoint), toy_batch(config), toy_texts(config)
    with jt.no_grad(), torch.no_grad():
        model.encode_image(pixels, taps=taps)
        _, every = model.encode_text(ids, dense=True, taps=taps)
        text = theirs.text if hasattr(theirs, "text") else theirs
        x = text.token_embedding(torch.tensor(ids).long()) + text.positional_embedding
        for i, block in enumerate(text.transformer.resblocks):
            x = block(x, attn_mask=text.attn_mask)
            close(taps[f"text.block{i}"].numpy(), x[:, : every.shape[1]], "tokens", f"toy {name}: text tokens")
        close(every.numpy(), (text.ln_final(x) @ text.text_projection)[:, : every.shape[1]], "tokens")
        for i, block in enumerate(_image_blocks(theirs, torch.tensor(pixels))):
            close(taps[f"visual.block{i}"].numpy(), block, "tokens", f"toy {name}: image tokens")


def _image_blocks(model, pixels):
    trunk = getattr(model.visual, "trunk", None)
    if trunk is None:
        found, hooks = [], []
        for block in model.visual.transformer.resblocks:
            hooks.append(block.register_forward_hook(lambda _, __, y: found.append(y)))
        model.encode_image(pixels)
        [hook.remove() for hook in hooks]
        return found
    first = trunk.num_prefix_tokens
    made = trunk.forward_intermediates(
        pixels, output_fmt="NLC", return_prefix_tokens=first > 0, intermediates_only=True
    )
    return [torch.cat([y[1], y[0]], dim=1) for y in made] if first else made


@NAMES
def test_gradients(name, folders, close):
    theirs, folder = folders[name, 0]
    config, model = TOYS_2025[name], build(identify(folder).checkpoint)
    for parameter in model.parameters():
        parameter.start_grad()
    (pixels, _), ids = toy_batch(config), toy_texts(config)
    theirs.zero_grad()
    loss = (theirs.encode_image(torch.tensor(pixels)) ** 2).sum()
    (loss + (theirs.encode_text(torch.tensor(ids).long()) ** 2).sum()).backward()
    given = {k: p.grad.numpy() for k, p in theirs.named_parameters() if p.grad is not None}
    tensors = {k: in_memory(np.ascontiguousarray(g)) for k, g in given.items()}
    wanted = (from_timm.canonical if name in TIMM_NAMES else from_open_clip.canonical)(tensors)[0]
    params = {k: v for k, v in model.named_parameters() if k in wanted}
    assert set(params) == set(wanted)
    loss = (model.encode_image(pixels) ** 2).sum() + (model.encode_text(ids) ** 2).sum()
    for key, gradient in zip(params, jt.grad(loss, list(params.values())), strict=True):
        label = f"toy {name}: gradients, relative"
        close(gradient.numpy(), wanted[key].read(), "gradient_relative", label, relative=True)


@NAMES
def test_out_and_in_again_changes_no_bit(name, folders, tmp_path):
    """open_clip's folder → jclip's file → open_clip's folder: the same tensors and description of the towers."""
    _, folder = folders[name, 0]
    ours, out = tmp_path / "ours.safetensors", tmp_path / "out"
    assert main([str(folder), str(ours), "--check"]) == 0
    assert open_checkpoint(ours).config == TOYS_2025[name]
    assert main([str(ours), str(out), "--to", "open_clip"]) == 0
    wanted, got = (read_weights(place / "open_clip_model.safetensors") for place in (folder, out))
    assert set(wanted) == set(got)
    for key, tensor in wanted.items():
        assert np.array_equal(tensor.read(), got[key].read()), key
    said = json.loads((out / "open_clip_config.json").read_text())
    assert identify(out).checkpoint.config == TOYS_2025[name]
    assert said["preprocess_cfg"]["interpolation"] == "bilinear"


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_open_clip_loads_what_we_write(name, tmp_path, close):
    import open_clip

    toys_2025.register_timm()
    config = TOYS_2025[name]
    source, out = tmp_path / "ours.safetensors", tmp_path / "out"
    shown = Preprocess(size=config.vision.image_size, interpolation="bilinear")
    save_checkpoint(source, random_arrays(parameter_shapes(config), 3), config, shown)
    assert main([str(source), str(out), "--to", "open_clip"]) == 0
    theirs = open_clip.create_model(f"local-dir:{out}").eval()
    (pixels, _), ids = toy_batch(config), toy_texts(config)
    with jt.no_grad():
        model = build(open_checkpoint(source))
        ours = model.encode_image(pixels), model.encode_text(ids)
    for got, wanted in zip(ours, encoded(theirs, pixels, ids), strict=True):
        close(got.numpy(), wanted, "features", f"toy {name}: open_clip reads ours")


# Real sizes: shapes alone


@pytest.mark.parametrize("name", [*PERCEPTION, *MOBILE, "MobileCLIP2-L-14"])
def test_shapes_of_open_clips_own_models_report_the_architecture(name):
    import open_clip

    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
    tensors = {k: LazyTensor(tuple(v.shape), "float32", None) for k, v in model.state_dict().items()}
    kept = {k: t for k, t in tensors.items() if not k.endswith("num_batches_tracked")}
    assert layout_of(kept, name) == from_timm.OPEN_CLIP
    made, report = from_timm.canonical(kept)
    shapes = {k: t.shape or (1,) for k, t in made.items()}
    known = variants.ARCHITECTURES[name]
    config = replace(known, vision=from_timm.as_of_timm(known.vision))
    assert not report.unknown and shapes == parameter_shapes(config)
    found = config_from_shapes(shapes, Stated(FAMILY.get(name.split("-")[0], "mobileclip2-l14")), name)
    assert found == config and variants.architecture_name(found) == name
    width = {"PE-Core-bigG-14-448": 1280}.get(name)
    assert width is None or (not config.vision.class_token and config.vision.heads == 16)


# The authors' own files


def authors_file(folder, config, seed):
    """A state dict under the authors' names, which are ours, and open_clip's model with the same numbers."""
    from open_clip.model import CustomTextCLIP
    from timm.models.eva import checkpoint_filter_fn

    toys_2025.register_timm()
    name = "pe" if config.vision.class_token else "pe_g"
    said = toys_2025.described(name)["model_cfg"]
    said["text_cfg"]["heads"] = config.text.heads
    theirs = CustomTextCLIP(said["embed_dim"], said["vision_cfg"], said["text_cfg"]).eval()
    arrays = random_arrays(parameter_shapes(config), seed)
    state = {k: torch.tensor(a) for k, a in arrays.items()}
    trunk = checkpoint_filter_fn(state, theirs.visual.trunk)
    text = {f"text.{k}": v for k, v in state.items() if not k.startswith(("visual.", "logit_scale"))}
    scale = {"logit_scale": state["logit_scale"].reshape(())}
    theirs.load_state_dict({**{f"visual.trunk.{k}": v for k, v in trunk.items()}, **text, **scale})
    path = folder / f"PE-Core-{name}-{seed}.pt"
    torch.save({k: v.reshape(()) if k == "logit_scale" else v for k, v in state.items()}, path)
    return theirs, path


@SEEDS
@pytest.mark.parametrize("name", ["pe", "pe_g"])
def test_pe_cores_own_file(name, seed, tmp_path, close):
    toy = TOYS_2025[name]
    vision = replace(toy.vision, proj_bias=False, rope_grid=(4, 4))
    config = replace(toy, vision=vision, text=replace(toy.text, heads=1))  # of 64, or one
    theirs, path = authors_file(tmp_path, config, seed)
    theirs.visual.trunk.rope.ref_feat_shape = [4, 4]
    theirs.visual.trunk.rope.reset_parameters()
    stated = ["--vision-head-width", "16"]
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pt"
    assert main([str(path), str(ours), *stated]) == 0
    found = open_checkpoint(ours)
    assert found.config == config and found.metadata["source_family"] == "pe"
    assert (found.preprocess.resize, found.preprocess.interpolation, found.preprocess.mean) == (
        "squash",
        "bilinear",
        (0.5,) * 3,
    )
    assert main([str(ours), str(back), "--to", "torch"]) == 0
    wanted, got = torch.load(path, weights_only=True), torch.load(back, weights_only=True)
    assert set(wanted) == set(got) and all(torch.equal(v, got[k]) for k, v in wanted.items())
    (pixels, _), ids = toy_batch(config, seed), toy_texts(config, seed)
    model = build(found)
    with jt.no_grad():
        both = model.encode_image(pixels), model.encode_text(ids)
    for mine, other in zip(both, encoded(theirs, pixels, ids), strict=True):
        close(mine.numpy(), other, "features", f"toy {name}: the authors' own file")


@pytest.mark.parametrize("value, kept", [(0.0, False), (0.5, True)])
def test_the_authors_layout_has_no_bias_of_zeros(value, kept, tmp_path, capsys):
    config, source, out = TOYS_2025["pe"], tmp_path / "ours.safetensors", tmp_path / "out.pt"
    arrays = random_arrays(parameter_shapes(config), 0)
    arrays["visual.proj_bias"][:] = value
    save_checkpoint(source, arrays, config, Preprocess(size=config.vision.image_size))
    assert main([str(source), str(out), "--to", "torch"]) == 0
    assert ("visual.proj_bias" in torch.load(out, weights_only=True)) == kept
    assert ("visual.proj_bias is not zero" in capsys.readouterr().err) == kept


@SEEDS
def test_mobileclips_own_file(seed, tmp_path, close):
    """The names of Apple's code, which open_clip converts to its own; computed as that code does, which pads photos by
    `int((4 - 1) / 2)` pixels in the first convolution, and whose norms have torch's epsilon."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import CustomTextCLIP

    toys_2025.register_timm()
    said = toys_2025.described("mobile_b")["model_cfg"]
    said["text_cfg"]["heads"] = 1
    toy = TOYS_2025["mobile_b"]
    config = replace(
        toy, vision=replace(toy.vision, proj_bias=False, norm_eps=1e-5, heads=3, stem_padding=1),
        text=replace(toy.text, heads=1),
    )  # fmt: skip
    arrays = random_arrays(parameter_shapes(config), seed)
    lazy = {k: in_memory(a.reshape(()) if k == "logit_scale" else a) for k, a in arrays.items()}
    apple = {k: torch.tensor(t.read()) for k, t in unapply(lazy, from_timm.APPLE_RULES).items()}
    path = tmp_path / "mobileclip_b.pt"
    torch.save(apple, path)
    theirs = CustomTextCLIP(said["embed_dim"], said["vision_cfg"], said["text_cfg"]).eval()
    theirs.load_state_dict(convert_state_dict(theirs, apple), strict=False)
    theirs.visual.trunk.patch_embed.backbone[0].conv.padding = (1, 1)
    for norm in (m for m in theirs.visual.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.eps = 1e-5
    found = identify(path, Stated(head_width=8)).checkpoint
    assert (
        found.config == config and found.preprocess.std == (1.0,) * 3 and found.preprocess.interpolation == "bilinear"
    )
    (pixels, _), ids = toy_batch(config, seed), toy_texts(config, seed)
    model = build(found)
    with jt.no_grad():
        both = model.encode_image(pixels), model.encode_text(ids)
    for mine, other in zip(both, encoded(theirs, pixels, ids), strict=True):
        close(mine.numpy(), other, "features", "toy MobileCLIP B: Apple's own file")
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pt"
    assert main([str(path), str(ours), "--vision-head-width", "8"]) == 0
    assert main([str(ours), str(back), "--to", "mobileclip"]) == 0
    got = torch.load(back, weights_only=True)
    counters = {k: got.pop(k) for k in list(got) if k.endswith("num_batches_tracked")}
    assert set(got) == set(apple) and all(torch.equal(v, got[k]) for k, v in apple.items())
    assert sorted(counters) == [f"image_encoder.model.patch_emb.{i}.block.norm.num_batches_tracked" for i in range(2)]
    identify(back, Stated(head_width=8)).check()


def test_only_mobileclip_b_goes_to_apples_code(tmp_path, capsys):
    for value, name, code, message in [
        (0.5, "mobile_b", 2, "must be of weights without a bias of the projection"),
        (0.0, "mobile_b", 0, "Apple's code adds 1e-05 in the image tower's norms and 1 pixel around photos"),
        (0.0, "pe", 2, "must be of both towers of MobileCLIP B, got others"),
    ]:
        config = TOYS_2025[name]
        arrays = random_arrays(parameter_shapes(config), 0)
        arrays["visual.proj_bias"][:] = value
        source = tmp_path / f"{name}.safetensors"
        save_checkpoint(source, arrays, config, Preprocess(size=config.vision.image_size))
        assert main([str(source), str(tmp_path / "out.pt"), "--to", "mobileclip"]) == code
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1


# MetaCLIP 2 in Hugging Face's layout


def worldwide_folder(folder, seed):
    """transformers' MetaClip2Model at toy size, its norms random, and its folder."""
    from transformers import MetaClip2Config, MetaClip2Model

    config = TOYS_2025["worldwide"]
    v, t = config.vision, config.text
    vision = dict(
        hidden_size=v.width, intermediate_size=v.mlp_width, num_hidden_layers=v.layers, num_attention_heads=v.heads,
        image_size=20, patch_size=5, hidden_act="quick_gelu", projection_dim=config.embed_dim,
    )  # fmt: skip
    text = dict(
        hidden_size=t.width, intermediate_size=t.mlp_width, num_hidden_layers=t.layers, num_attention_heads=t.heads,
        max_position_embeddings=t.context_length, vocab_size=t.vocab_size, hidden_act="quick_gelu", eos_token_id=t.end,
        bos_token_id=0, pad_token_id=1, projection_dim=config.embed_dim,
    )  # fmt: skip
    said = MetaClip2Config(vision_config=vision, text_config=text, projection_dim=config.embed_dim)
    model = toys_2025.shuffled(MetaClip2Model(said), seed)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(toys_2025.worldwide_words(t.vocab_size))
    return model


@SEEDS
def test_metaclip_2_of_transformers(seed, tmp_path, close):
    folder, ours, out = tmp_path / "theirs", tmp_path / "ours.safetensors", tmp_path / "out"
    theirs, config = worldwide_folder(folder, seed), TOYS_2025["worldwide"]
    assert main([str(folder), str(ours), "--check"]) == 0 and main([str(ours), str(out), "--to", "huggingface"]) == 0
    found = open_checkpoint(ours)
    assert found.config == config
    (pixels, _), ids = toy_batch(config, seed), toy_texts(config, seed)
    model = build(found)
    with torch.no_grad(), jt.no_grad():
        wanted = theirs.get_image_features(torch.tensor(pixels)), theirs.get_text_features(torch.tensor(ids).long())
        both = model.encode_image(pixels), model.encode_text(ids)
        again = type(theirs).from_pretrained(out).eval().get_text_features(torch.tensor(ids).long()).pooler_output
    for mine, other in zip(both, wanted, strict=True):
        close(mine.numpy(), other.pooler_output, "features", "toy worldwide against transformers")
    close(both[1].numpy(), again, "features", "toy worldwide against transformers")
    before, after = (read_weights(place / "model.safetensors") for place in (folder, out))
    assert set(before) == set(after) and all(np.array_equal(t.read(), after[k].read()) for k, t in before.items())
    assert json.loads((out / "config.json").read_text())["text_config"]["eos_token_id"] == 2


def test_a_tower_that_is_not_causal_sees_padding_after_cut_texts(folders, close):
    """Embeddings of texts that end before the context does, as learned prompts are, get what the whole rows give."""
    config = TOYS_2025["mobile_l"]
    model, ids = build(identify(folders["mobile_l", 0][1]).checkpoint), toy_texts(config)
    ends = model.ends(ids)
    with jt.no_grad():
        wanted = model.encode_text(ids)
        cut = model.encode_text_embeddings(model.embed(ids[:, : ends.max() + 1]), ends)
        other = ids.copy()
        other[:, -1] = 5
        assert not np.allclose(model.encode_text(other).numpy(), wanted.numpy())
    close(cut.numpy(), wanted.numpy(), "kernel")
    assert not model.causal and model.holds_text

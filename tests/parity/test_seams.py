"""What recipes need of the model without copying it: dense tokens, text from embeddings, deep prompts, other sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from jclip import kernels  # noqa: E402
from jclip.errors import ConfigError  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.layers import LayerNorm, put_tokens  # noqa: E402
from jclip.model.trainable import trainable  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.checkpoint import open_checkpoint  # noqa: E402
from tests.parity import torch_clip  # noqa: E402
from tests.toys import TOY_RESNET, TOY_VIT, TOY_VIT_GELU, TOYS, toy_batch, toy_file  # noqa: E402


@pytest.fixture(params=list(TOYS))
def case(request, tmp_path):
    checkpoint = open_checkpoint(toy_file(tmp_path, TOYS[request.param], seed=2))
    return build(checkpoint), torch_clip.parameters(dict(checkpoint.arrays()))


@pytest.fixture(autouse=True)
def without_gradients():
    with jt.no_grad(), torch.no_grad():
        yield


def dense_vit(p, config, pixels, kind):
    """Per-patch embeddings in torch: of the last block's output, or of its value projection alone."""
    taps = {}
    torch_clip.encode_vit(p, config, pixels, taps)
    last = config.vision.layers - 1
    x = taps[f"visual.block{last}"]
    if kind == "value":
        b = f"visual.transformer.resblocks.{last}."
        y = torch_clip.norm(taps[f"visual.block{last - 1}"], p, b + "ln_1", config.norm_eps)
        v = torch.nn.functional.linear(
            y, p[b + "attn.in_proj_weight"].chunk(3)[2], p[b + "attn.in_proj_bias"].chunk(3)[2]
        )
        x = torch.nn.functional.linear(v, p[b + "attn.out_proj.weight"], p[b + "attn.out_proj.bias"])
    return torch_clip.norm(x[:, 1:], p, "visual.ln_post", config.norm_eps) @ p["visual.proj"]


def dense_resnet(p, config, pixels):
    taps = {}
    torch_clip.encode_resnet(p, config, pixels, taps)
    a, cells = "visual.attnpool.", taps["visual.layer4"].flatten(2).transpose(1, 2)
    v = torch.nn.functional.linear(cells, p[a + "v_proj.weight"], p[a + "v_proj.bias"])
    return torch.nn.functional.linear(v, p[a + "c_proj.weight"], p[a + "c_proj.bias"])


def test_dense_image_tokens(case, close):
    model, p = case
    pixels, _ = toy_batch(model.config)
    plain = model.encode_image(pixels).numpy()
    kinds = ("value", "token") if model.config.vision.kind == "vit" else ("value",)
    for kind in kinds:
        pooled, tokens = model.encode_image(pixels, dense=kind)
        wanted = (
            dense_vit(p, model.config, torch.tensor(pixels), kind)
            if len(kinds) == 2
            else dense_resnet(p, model.config, torch.tensor(pixels))
        )
        close(tokens.numpy(), wanted, "tokens", f"dense image tokens, {model.config.vision.kind} {kind}")
        close(pooled.numpy(), plain, "features")
    assert np.array_equal(
        model.encode_image(pixels, dense=True)[1].numpy(), model.encode_image(pixels, dense="value")[1].numpy()
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_penultimate_features_are_what_is_projected(seed, case, close):
    model, p = case
    pixels, _ = toy_batch(model.config, seed)
    if model.config.vision.kind == "resnet":
        with pytest.raises(ConfigError, match="only vision transformers have features before their projection"):
            model.encode_image(pixels, penultimate=True)
        return
    width = model.config.vision.width
    wanted = torch_clip.encode_vit(p | {"visual.proj": torch.eye(width)}, model.config, torch.tensor(pixels))
    ours = model.encode_image(pixels, penultimate=True).numpy()
    assert ours.shape == (3, width) and width != model.config.embed_dim
    close(ours, wanted, "features", "penultimate features")
    close(ours @ p["visual.proj"].numpy(), model.encode_image(pixels).numpy(), "features")


def test_dense_text_tokens(case, close):
    model, p = case
    _, tokens = toy_batch(model.config)
    taps = {}
    torch_clip.encode_text(p, model.config, torch.tensor(tokens).long(), taps)
    last = taps[f"text.block{model.config.text.layers - 1}"]
    wanted = torch_clip.norm(last, p, "ln_final", model.config.norm_eps) @ p["text_projection"]
    pooled, every = model.encode_text(tokens, dense=True)
    length = tokens.argmax(axis=1).max() + 1
    assert every.shape[1] == length < tokens.shape[1]
    close(every.numpy(), wanted[:, :length], "tokens", "dense text tokens")
    close(pooled.numpy(), model.encode_text(tokens).numpy(), "features")


def test_text_from_embeddings(case, close):
    model, _ = case
    _, tokens = toy_batch(model.config)
    embedded = model.embed(tokens)
    assert tuple(embedded.shape) == (*tokens.shape, model.config.text.width)
    got = model.encode_text_embeddings(embedded, tokens.argmax(axis=1))
    close(got.numpy(), model.encode_text(tokens).numpy(), "features", "text from embeddings")


def test_gradients_reach_learned_words_and_nothing_else(case):
    model, _ = case
    _, tokens = toy_batch(model.config)
    before = {k: v.numpy() for k, v in model.state_dict().items()}
    words = jt.array(np.random.default_rng(0).standard_normal((2, model.config.text.width)).astype(np.float32))
    words.start_grad()
    with jt.enable_grad():
        x = put_tokens(model.embed(tokens), 1, words)
        loss = model.encode_text_embeddings(x, tokens.argmax(axis=1)).sum()
        gradient = jt.grad(loss, words).numpy()
    assert np.abs(gradient).min() > 0
    assert all(np.array_equal(before[k], v.numpy()) for k, v in model.state_dict().items())


def test_padding_and_order_do_not_matter(case, close):
    model, _ = case
    pixels, tokens = toy_batch(model.config)
    text, image = model.encode_text(tokens).numpy(), model.encode_image(pixels).numpy()
    order = np.random.default_rng(1).permutation(len(tokens))
    close(model.encode_text(tokens[order]).numpy(), text[order], "features", "text, permuted batch")
    close(model.encode_image(pixels[::-1]).numpy(), image[::-1], "features", "image, permuted batch")
    noisy = np.where(np.arange(tokens.shape[1]) > tokens.argmax(axis=1)[:, None], 7, tokens).astype(np.int32)
    close(model.encode_text(noisy).numpy(), text, "features", "text, other padding")
    close(
        np.concatenate([model.encode_text(row[None]).numpy() for row in tokens]), text, "features", "text, one by one"
    )
    close(model.encode_text(jt.array(tokens)).numpy(), text, "features")


def test_deep_prompts_replace_tokens_before_their_layer(tmp_path, close):
    model = build(open_checkpoint(toy_file(tmp_path, TOY_VIT)))
    tower, pixels = model.visual.transformer, toy_batch(TOY_VIT)[0]
    x = model.visual.ln_pre(model.visual.embed(jt.array(pixels)))
    prompt = jt.array(np.random.default_rng(0).standard_normal((2, TOY_VIT.vision.width)).astype(np.float32))
    first = tower.resblocks[0](x).numpy()
    first[:, -2:] = prompt.numpy()
    wanted = tower.resblocks[1](jt.array(first)).numpy()
    position = x.shape[1] - 2
    close(tower(x, insert={1: (position, prompt)}).numpy(), wanted, "tokens")
    each = prompt.unsqueeze(0).expand((3, 2, TOY_VIT.vision.width))
    close(tower(x, insert={1: (position, each)}).numpy(), wanted, "tokens")
    close(tower(tower(x, layers=[0]), layers=[1]).numpy(), tower(x).numpy(), "tokens")
    with pytest.raises(ValueError, match="tokens for positions 16 to 17 do not fit a sequence of 17"):
        put_tokens(x, 16, prompt)


def test_a_linear_map_can_be_wrapped(tmp_path, close):
    """A low-rank update on q and v in place of the packed projection: the seam of LoRA."""
    model = build(open_checkpoint(toy_file(tmp_path, TOY_VIT)))
    pixels, width = toy_batch(TOY_VIT)[0], TOY_VIT.vision.width
    plain = model.encode_image(pixels).numpy()
    attention = model.visual.transformer.resblocks[0].attn
    delta = np.random.default_rng(0).standard_normal((3 * width, width)).astype(np.float32) * 0.01
    delta[width : 2 * width] = 0

    class LowRank(jt.nn.Module):
        def __init__(self, inner):
            self._inner = inner
            self.update = jt.array(delta)

        def execute(self, x):
            return self._inner(x) + jt.nn.matmul_transpose(x, self.update)

    attention.in_proj = LowRank(attention.in_proj)
    wrapped = model.encode_image(pixels).numpy()
    assert list(trainable(model, ["*in_proj.update"])) == ["visual.transformer.resblocks.0.attn.in_proj.update"]
    del attention.in_proj
    close(model.encode_image(pixels).numpy(), plain, "features")
    attention.in_proj_weight.update(attention.in_proj_weight + jt.array(delta))
    close(wrapped, model.encode_image(pixels).numpy(), "features", "wrapped projection against merged")


@pytest.mark.parametrize(
    "config, size", [(TOY_VIT, (30, 30)), (TOY_VIT_GELU, (15, 35)), (TOY_RESNET, (64, 128))], ids=str
)
def test_other_input_sizes(config, size, tmp_path, close):
    path = toy_file(tmp_path, config)
    for antialias in (True, False):
        checkpoint = open_checkpoint(path).resized(size, antialias)
        assert checkpoint.preprocess.size == size
        model, p = build(checkpoint), torch_clip.parameters(dict(open_checkpoint(path).arrays()))
        key = "visual.positional_embedding" if config.vision.kind == "vit" else "visual.attnpool.positional_embedding"
        table = p[key]
        cells = table[1:].reshape(1, *config.vision.grid, -1).permute(0, 3, 1, 2)
        grid = replace(config.vision, image_size=size).grid
        cells = torch.nn.functional.interpolate(cells, grid, mode="bicubic", antialias=antialias)
        p[key] = torch.cat([table[:1], cells.flatten(2)[0].T])
        pixels = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)
        wanted = torch_clip.encode_image(p, config, torch.tensor(pixels))
        close(model.encode_image(pixels).numpy(), wanted, "features", f"{config.vision.kind} at {size}")
        _, tokens = model.encode_image(pixels, dense=True)
        assert tokens.shape[1] == grid[0] * grid[1]
    with pytest.raises(ConfigError, match="image size must be a multiple of .*, got 33 x 33"):
        open_checkpoint(path).resized(33)
    with pytest.raises(ValueError, match="do not fit a model of input"):
        model.encode_image(toy_batch(config)[0])


def test_hugging_faces_dialect_of_positions(tmp_path, close):
    pytest.importorskip("transformers")
    from tests.parity.hugging_face import hugging_face_model

    checkpoint = open_checkpoint(toy_file(tmp_path, TOY_VIT))
    reference = hugging_face_model(TOY_VIT, dict(checkpoint.arrays()))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 35, 35), dtype=np.float32)
    wanted = reference.get_image_features(torch.tensor(pixels), interpolate_pos_encoding=True).pooler_output
    ours = build(checkpoint.resized(35, antialias=False)).encode_image(pixels)
    close(ours.numpy(), wanted, "features", "other size, against transformers")


# Numerics


@pytest.mark.parametrize("mean", [0.0, 10.0, 100.0, 1000.0])
def test_layer_norm_keeps_its_digits(mean, close):
    x = (np.random.default_rng(0).standard_normal((7, 64)) + mean).astype(np.float32)
    norm = LayerNorm(64)
    weight, bias = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    norm.weight.update(jt.array(weight))
    norm.bias.update(jt.array(bias))
    wide = x.astype(np.float64)
    wanted = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * weight + bias
    close(norm(jt.array(x)).numpy(), wanted, "layer_norm", f"LayerNorm at mean {mean:g}")


HALVES = {"fp16": "float16", "bf16": "bfloat16"}


@pytest.mark.parametrize("name", list(TOYS))
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_keeps_norms_statistics_and_logits_in_float32(name, dtype, tmp_path, monkeypatch):
    """What a GPU's operations take and give, read off the graph; Jittor's CPU kernels for it are wrong, so nothing runs."""
    model = build(open_checkpoint(toy_file(tmp_path, TOYS[name])))
    monkeypatch.setattr(kernels, "chosen", lambda: "plain")
    if not jt.flags.use_cuda:
        with pytest.raises(ConfigError, match=f"dtype {dtype} on the CPU: "):
            model.to(dtype)
    with pytest.raises(ConfigError, match="dtype must be one of fp32, fp16, bf16, int8, got 'fp8'"):
        model.to("fp8")
    half = HALVES[dtype]
    model._cast(half)
    model.dtype = dtype
    kinds = {k: str(v.dtype) for k, v in model.state_dict().items()}
    wide = [k for k in kinds if k == "logit_scale" or ".bn" in k or "ln_" in k or ".downsample.1." in k]
    assert {kinds[k] for k in wide} == {"float32"} and {kinds[k] for k in kinds if k not in wide} == {half}
    softmaxes, plain = [], jt.nn.softmax
    monkeypatch.setattr(jt.nn, "softmax", lambda x, dim: softmaxes.append(str(x.dtype)) or plain(x, dim))
    pixels, tokens = toy_batch(model.config)
    taps = {}
    image, text = model.encode_image(pixels, taps=taps), model.encode_text(tokens, taps=taps)
    per_image, per_text = model(pixels, tokens)
    assert {str(v.dtype) for v in (*taps.values(), image, text)} == {half}
    assert str(per_image.dtype) == str(per_text.dtype) == "float32"
    assert softmaxes and set(softmaxes) == {"float32"}


@pytest.mark.skipif(not jt.flags.use_cuda, reason="no GPU: Jittor's half precision does not work on the CPU")
@pytest.mark.parametrize("name", list(TOYS))
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_on_the_gpu(name, dtype, tmp_path, close):
    model = build(open_checkpoint(toy_file(tmp_path, TOYS[name])))
    pixels, tokens = toy_batch(model.config)
    wanted = model.encode_image(pixels).numpy(), model.encode_text(tokens).numpy()
    model.to(dtype)
    for kind, got, fp32 in zip(
        ("image", "text"), (model.encode_image(pixels), model.encode_text(tokens)), wanted, strict=True
    ):
        close(got.float32().numpy(), fp32, "half_relative", f"toy {name} {dtype}: {kind}, relative", relative=True)

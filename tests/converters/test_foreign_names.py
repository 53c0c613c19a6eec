"""Weights as training scripts leave them: under foreign names, averaged, in geometric parametrisation, pickled whole, and
with a classifier beside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import jclip
from convert.cli import main
from jclip.errors import CheckpointError
from jclip.readers import read_weights
from jclip.report.predictor import Predictor
from jclip.runtime import jt
from jclip.weights.checkpoint import random_arrays
from tests.toys import SMALL_VIT, TOY_VIT, shapes_of, toy_batch

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

CONFIG = replace(TOY_VIT, text=replace(TOY_VIT.text, width=64, heads=1))  # as far as a file shows it: text heads of 64
WIDE = replace(  # whose heads' width is known
    SMALL_VIT, text=CONFIG.text, vision=replace(SMALL_VIT.vision, width=384, heads=6)
)
OPTIONS = ["--family", "openai", "--vision-head-width", "8"]


def state_of(seed: int = 0, config=CONFIG) -> dict[str, object]:
    return {k: torch.tensor(a) for k, a in random_arrays(shapes_of(config), seed).items()}


def under(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def converted(src, out, *options: str) -> dict[str, np.ndarray]:
    assert main([str(src), str(out), *OPTIONS, *options]) == 0
    return {name: tensor.read() for name, tensor in read_weights(out).items() if name != "tokenizer"}


def same(got: dict[str, np.ndarray], state: dict) -> None:
    assert got.keys() == state.keys()
    for name, tensor in state.items():
        assert np.array_equal(got[name].reshape(tensor.shape), tensor.numpy()), name


def geometric(state: dict, seed: int) -> tuple[dict, dict]:
    """The same with r and θ in place of the MLPs' weights, r of either sign, and the weights that torch makes of these."""
    generator = torch.Generator().manual_seed(seed)
    made, plain = {}, {}
    for name, tensor in state.items():
        if name.endswith(("mlp.c_fc.weight", "mlp.c_proj.weight")):
            stem = name.removesuffix(".weight")
            made[f"{stem}.theta"] = tensor
            made[f"{stem}.r"] = torch.randn(len(tensor), 1, generator=generator)
            plain[name] = made[f"{stem}.r"] * torch.nn.functional.normalize(tensor, p=2, dim=1)
        else:
            made[name] = plain[name] = tensor
    return made, plain


def apart(state: dict) -> dict:
    """q, k and v of each block in maps of their own, as fine-tuning with dropped heads keeps them."""
    made = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".in_proj_")
        for which, part in zip("qkv", tensor.chunk(3), strict=True) if stem else ():
            made[f"{stem}.{which}_proj.{kind}"] = part
        if not stem:
            made[name] = tensor
    return made


def as_module(state: dict) -> object:
    """A tree of torch's modules with these parameters, and a mask as a buffer and another as an attribute."""
    root = torch.nn.Module()
    for name, tensor in state.items():
        at = root
        *path, last = name.split(".")
        for part in path:
            if part not in at._modules:
                at.add_module(part, torch.nn.Module())
            at = at._modules[part]
        at.register_parameter(last, torch.nn.Parameter(tensor))
    root.register_buffer("attn_mask", torch.zeros(3, 3))
    root.visual.transformer.attn_probs = torch.zeros(2, 2)
    return root


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", ["state dict", "module", "q, k, v apart"])
def test_geometric_weights_are_read_as_torch_multiplies_them(form, seed, tmp_path, close):
    made, plain = geometric(state_of(seed), seed)
    made = apart(made) if form == "q, k, v apart" else made
    torch.save(as_module(made) if form != "state dict" else made, tmp_path / "clip_ft_20.pt")
    got = converted(tmp_path / "clip_ft_20.pt", tmp_path / "out.safetensors")
    assert got.keys() == plain.keys()
    for name, tensor in plain.items():
        close(got[name].reshape(tensor.shape), tensor, "kernel", "weights of r and theta")
    torch.save(plain, tmp_path / "plain.pt")
    pixels, tokens = toy_batch(CONFIG, seed)
    ours, theirs = (
        jclip.load(path, family="openai")[0] for path in (tmp_path / "out.safetensors", converted_path(tmp_path))
    )
    with jt.no_grad():
        close(ours.encode_image(pixels).numpy(), theirs.encode_image(pixels).numpy(), "features")
        close(ours.encode_text(tokens).numpy(), theirs.encode_text(tokens).numpy(), "features")


def converted_path(folder):
    assert main([str(folder / "plain.pt"), str(folder / "plain.safetensors"), *OPTIONS]) == 0
    return folder / "plain.safetensors"


def test_r_and_theta_that_do_not_belong_together(tmp_path, capsys):
    made, _ = geometric(state_of(), 0)
    name = next(name for name in made if name.endswith(".r"))
    torch.save({**made, name: torch.ones(3, 1)}, tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt"), str(tmp_path / "out"), *OPTIONS]) == 2
    assert f"{name} (out, 1), got" in capsys.readouterr().err


FORMS = {  # what a script saves of two sets, and how the second is asked for
    "Lightning": (
        lambda a, b: {"state_dict": {**under("model.clip.", b), "loss.scale": torch.ones(1)}},
        ["--prefix", "model.clip."],
    ),
    "prefix without its point": (
        lambda a, b: {**under("net.clip_model.", b), "net.queue": torch.ones(2, 3)},
        ["--prefix", "net.clip_model"],
    ),
    "prefix of letters": (lambda a, b: {**a, **under("ema_", b)}, ["--prefix", "ema_"]),
    "timm": (
        lambda a, b: {"state_dict": a, "state_dict_ema": under("module.", b)},
        ["--weights-key", "state_dict_ema"],
    ),
    "model_ema": (lambda a, b: {"model": a, "model_ema": b, "epoch": 3}, ["--weights-key", "model_ema"]),
    "both": (
        lambda a, b: {"state_dict": a, "state_dict_ema": under("net.", b)},
        ["--weights-key", "state_dict_ema", "--prefix", "net"],
    ),
    "whole module": (lambda a, b: {"student": as_module(a), "teacher": as_module(b)}, ["--weights-key", "teacher"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_that_are_stated(form, tmp_path):
    save, options = FORMS[form]
    wanted = state_of(1)
    torch.save(save(state_of(0), wanted), tmp_path / "last.ckpt")
    same(converted(tmp_path / "last.ckpt", tmp_path / "out.safetensors", *options), wanted)


def test_load_takes_the_same_and_the_other_set_is_the_default(tmp_path, capsys, close):
    first, second = state_of(0, WIDE), state_of(1, WIDE)
    torch.save({"state_dict": under("net.", first), "state_dict_ema": under("net.", second)}, tmp_path / "last.ckpt")
    pixels, _ = toy_batch(WIDE)

    def features(**names: str) -> np.ndarray:
        model, _ = jclip.load(tmp_path / "last.ckpt", family="openai", prefix="net.", **names)
        with jt.no_grad():
            return model.encode_image(pixels).numpy()

    def own(state: dict) -> np.ndarray:
        torch.save(state, tmp_path / "own.pt")
        with jt.no_grad():
            return jclip.load(tmp_path / "own.pt", family="openai")[0].encode_image(pixels).numpy()

    assert np.array_equal(features(), own(first))
    assert np.array_equal(features(weights_key="state_dict_ema"), own(second))
    capsys.readouterr()
    torch.save({"state_dict": first, "state_dict_ema": second}, tmp_path / "last.ckpt")
    jclip.load(tmp_path / "last.ckpt", family="openai")
    said = "also holds averaged weights, not read here: --weights-key (weights_key=) state_dict_ema takes them"
    assert capsys.readouterr().err == f"{tmp_path / 'last.ckpt'} {said}\n"
    model = tmp_path / "jclip.safetensors"
    assert main([str(tmp_path / "own.pt"), str(model), "--family", "openai"]) == 0
    with pytest.raises(CheckpointError, match="was written by jclip and has its own names: leave --prefix"):
        jclip.load(model, prefix="net.")


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "its names begin with net.clip., which --prefix (prefix=) takes away"),
        (
            ["--prefix", "net.clp."],
            "--prefix (prefix=) must be what names begin with, ema.net, model.net, got 'net.clp.'",
        ),
        (["--weights-key", "emma"], "--weights-key (weights_key=) must name one of ema, model, got 'emma'"),
        (["--prefix", ""], "must name a file or folder, got ''"),
    ],
)
def test_names_that_the_file_lacks_are_one_line(options, message, tmp_path, capsys):
    state = under("net.clip.", state_of())
    torch.save({"model": state, "ema": state}, tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt"), str(tmp_path / "out"), *OPTIONS, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


# A classifier beside the towers

NAMES = ("red thing", "green thing", "blue thing")


def tuned(folder, form: str, width: int, bias: bool = True, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A checkpoint of a fine-tuned CLIP with its head; W (C, D) and b (C,)."""
    rng = np.random.default_rng(7)
    weight, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((classes, width), (classes,)))
    head = {"weight": torch.tensor(weight)} | ({"bias": torch.tensor(b)} if bias else {})
    state = state_of(0, WIDE)
    saved = {
        "Lightning": {"state_dict": {**under("model.", state), **under("head.", head)}},
        "beside": {**state, **under("classifier.", head)},
        "image classifier": {**under("image_encoder.model.", state), **under("classification_head.", head)},
        "inside": {"model": {**state, **under("fc.", head)}, "optimizer": {"fc.weight": torch.ones(3, 3)}},
    }[form]
    torch.save(saved, folder / "best.ckpt")
    return weight, b if bias else np.zeros(classes, np.float32)


@pytest.fixture
def photos(tmp_path) -> list[str]:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "test.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(5)))
    (tmp_path / "classes.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(NAMES)))
    return [f"data.test={tmp_path / 'test.txt'}", f"data.classes={tmp_path / 'classes.txt'}", f"data.root={tmp_path}"]


@pytest.mark.parametrize(
    "form, width, bias",
    [("Lightning", 24, True), ("beside", 384, True), ("inside", 24, False), ("image classifier", 24, True)],
)
def test_a_head_becomes_a_run_that_scores_with_it(form, width, bias, photos, tmp_path, close, capsys):
    weight, b = tuned(tmp_path, form, width, bias)
    command = [str(tmp_path / "best.ckpt"), str(tmp_path / "run"), "--family", "openai", "--classes", ",".join(NAMES)]
    assert main([*command, "--head"]) == 0
    layer = "penultimate" if width == 384 else "projected"
    assert f"3 classes on {layer} features of width {width}" in capsys.readouterr().out
    done = Predictor.load(tmp_path / "run", photos)
    done, split = done.own_split()
    result, rows = done.label(split)
    model, preprocess = jclip.load(tmp_path / "run" / "model.safetensors")
    from PIL import Image

    pixels = jt.stack([preprocess(Image.open(tmp_path / f"{i}.png")) for i in range(5)])
    with jt.no_grad():
        features = model.encode_image(pixels, penultimate=True) if width == 384 else model.encode_image(pixels)
    scores = features.numpy() @ weight.T + b
    assert [*rows] == [*range(5)]
    close(result.scores, scores, "features")


def test_without_head_the_towers_are_read_and_the_head_is_named(tmp_path, capsys):
    tuned(tmp_path, "beside", 24)
    same(converted_wide(tmp_path), state_of(0, WIDE))
    assert (
        "also holds a classifier, classifier (3, 24), which python convert --head classifier keeps"
        in capsys.readouterr().err
    )


def converted_wide(folder) -> dict[str, np.ndarray]:
    assert main([str(folder / "best.ckpt"), str(folder / "out.safetensors"), "--family", "openai"]) == 0
    return {name: tensor.read() for name, tensor in read_weights(folder / "out.safetensors").items()}


@pytest.mark.parametrize(
    "width, options, message",
    [
        (
            24,
            ["--head", "fc", "--classes", "a,b,c"],
            "must hold one classifier fc, got head: name it with --head",
        ),
        (24, ["--head", "--classes", "a,b"], "head is of 3 classes, got 2 names: name those with --classes"),
        (
            37,
            ["--head", "--classes", "a,b,c"],
            "must read image features of width 24 (projected) or 384 (penultimate), got 37",
        ),
        (24, ["--head"], "--head must come with --classes"),
        (24, ["--head", "--classes", "a,b,c", "--to", "torch"], "--head must come with --classes, and without"),
        (24, ["--head", "--classes", "a,b,c", "--set", "solver=sgd"], "needs solver=lbfgs and features=projected"),
    ],
)
def test_heads_that_do_not_fit_are_one_line(width, options, message, tmp_path, capsys):
    tuned(tmp_path, "Lightning", width)
    capsys.readouterr()
    assert main([str(tmp_path / "best.ckpt"), str(tmp_path / "run"), "--family", "openai", *options]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and len(error) <= 2 and not (tmp_path / "run" / "result.json").exists()

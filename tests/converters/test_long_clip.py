"""Long-CLIP's files in and out, and CLIP's positions stretched, against the authors' formulas written in torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")

from convert.cli import main  # noqa: E402
from jclip.data.preprocess import Preprocess  # noqa: E402
from jclip.errors import CheckpointError  # noqa: E402
from jclip.functional.positions import stretch_fourfold  # noqa: E402
from jclip.model.clip import build  # noqa: E402
from jclip.model.trainable import trainable  # noqa: E402
from jclip.readers import read_weights  # noqa: E402
from jclip.runtime import jt  # noqa: E402
from jclip.weights.checkpoint import random_arrays  # noqa: E402
from jclip.weights.families import Stated  # noqa: E402
from jclip.weights.identify import identify  # noqa: E402
from jclip.weights.variants import ARCHITECTURES, CLIPConfig, TextConfig, ViTConfig, architecture_name  # noqa: E402
from tests.parity import torch_clip  # noqa: E402
from tests.toys import shapes_of, toy_batch, toy_file  # noqa: E402

WHOLE = CLIPConfig(  # what the authors' code can hold: heads of 64, MLPs of four widths, 248 tokens
    24, ViTConfig((20, 20), patch_size=5, width=192, layers=1, heads=3, mlp_width=768),
    TextConfig(width=128, heads=2, layers=2, mlp_width=512, context_length=248, vocab_size=614),
)  # fmt: skip
LONG = replace(WHOLE, text=replace(WHOLE.text, context_length=37, vocab_size=97))
HEADS = ["--vision-head-width", "64"]  # which files of unknown width do not show


def authors_file(path, config, seed):
    """A state dict as the authors train it: two tables, no scalars."""
    arrays = random_arrays(shapes_of(config), seed)
    arrays["positional_embedding_res"] = random_arrays({"x": arrays["positional_embedding"].shape}, seed + 50)["x"]
    arrays["logit_scale"] = arrays["logit_scale"].reshape(())
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
    return path, arrays


def encode_as_authors(p, config, tokens, taps=None):
    """Their masks over both tables; the rest is CLIP's."""
    first = (torch.arange(config.text.context_length) < 20).float()[:, None]
    table = p["positional_embedding"] * first + p["positional_embedding_res"] * (1 - first)
    return torch_clip.encode_text({**p, "positional_embedding": table}, config, tokens, taps)


@pytest.mark.parametrize("seed", [0, 1])
def test_features_tokens_and_gradients_equal_the_authors(seed, tmp_path, close):
    path, arrays = authors_file(tmp_path / "longclip-B.pt", LONG, seed)
    source = identify(path, Stated(head_width=64))  # the file shows its family
    source.check()
    found = source.checkpoint
    assert (found.config, found.metadata["source_family"]) == (LONG, "long-clip")
    assert found.preprocess == Preprocess(size=(20, 20))
    model = build(found)
    pixels, tokens = toy_batch(LONG, seed)
    tokens[0] = [*range(1, 34), 96, 0, 0, 0]  # a text that reaches both tables
    ours, theirs = {}, {}
    with jt.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(tokens, taps=ours)
    p = torch_clip.parameters(arrays)
    wanted = encode_as_authors(p, LONG, torch.tensor(tokens).long(), theirs)
    close(image.numpy(), torch_clip.encode_image(p, LONG, torch.tensor(pixels)), "features", "toy Long-CLIP: image")
    close(text.numpy(), wanted, "features", "toy Long-CLIP: text")
    for key, value in ours.items():
        every = theirs[key].numpy()[:, : value.shape[1]]
        close(value.numpy(), every, "tokens", f"toy Long-CLIP: {key}")
    p = torch_clip.parameters(arrays, requires_grad=True)
    encode_as_authors(p, LONG, torch.tensor(tokens).long()).square().sum().backward()
    named = trainable(model)
    ours = jt.grad(model.encode_text(tokens).sqr().sum(), [named["positional_embedding"]])[0].numpy()
    grads = [p[name].grad.numpy() for name in ("positional_embedding", "positional_embedding_res")]
    wanted = np.concatenate([grads[0][:20], grads[1][20:]])
    close(ours, wanted, "gradient_relative", "toy Long-CLIP: gradients, relative", relative=True)


def test_out_and_in_again_is_bit_for_bit(tmp_path):
    path, arrays = authors_file(tmp_path / "long.pt", WHOLE, 3)
    assert main([str(path), str(tmp_path / "ours.safetensors"), *HEADS]) == 0
    assert main([str(tmp_path / "ours.safetensors"), str(tmp_path / "out.pt"), "--to", "long_clip"]) == 0
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    table = np.concatenate([arrays["positional_embedding"][:20], arrays["positional_embedding_res"][20:]])
    assert back.keys() == arrays.keys()
    for name, value in back.items():
        wanted = table if name.startswith("positional_embedding") else arrays[name]
        assert np.array_equal(value.numpy(), wanted) and value.shape == wanted.shape, name
    assert main([str(tmp_path / "out.pt"), str(tmp_path / "again.safetensors"), *HEADS]) == 0
    ours, again = (read_weights(tmp_path / f"{name}.safetensors") for name in ("ours", "again"))
    assert all(np.array_equal(ours[name].read(), again[name].read()) for name in ours)


def test_stretched_positions_equal_the_authors_loop():
    table = np.random.default_rng(0).standard_normal((77, 6)).astype(np.float32)
    exact, wanted = table.astype(np.float64), np.zeros((248, 6))
    wanted[:20] = exact[:20]
    for i in range(56):
        for quarter in range(4):
            before, after = exact[i + 20], exact[i + 21]
            wanted[20 + 4 * i + quarter] = ((4 - quarter) * before + quarter * after) / 4
    for quarter in range(4):
        wanted[244 + quarter] = exact[76] + quarter * (exact[76] - exact[75]) / 4
    assert np.array_equal(stretch_fourfold(table), wanted.astype(np.float32))


def test_clip_becomes_long_by_command(tmp_path, capsys):
    short = replace(WHOLE, text=replace(WHOLE.text, context_length=77))
    path = toy_file(tmp_path, short)
    options = ["--context-length", "248", "--context-by", "long-clip", "--to", "long_clip"]
    assert main([str(path), str(tmp_path / "long.pt"), *options]) == 0
    found = identify(tmp_path / "long.pt", Stated(head_width=64)).checkpoint
    assert found.config == WHOLE
    table = read_weights(path)["positional_embedding"].read()
    assert np.array_equal(found.tensors["positional_embedding"].read(), stretch_fourfold(table))
    capsys.readouterr()
    for length, message in [("240", "must have 248 tokens by method long-clip, got 240"), ("20", "got 20")]:
        assert main([str(path), str(tmp_path / "no.pt"), *options[2:], "--context-length", length]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert main([str(path), str(tmp_path / "no.pt"), "--to", "long_clip"]) == 2
    assert "a context of 77 tokens and not 248" in capsys.readouterr().err
    few = toy_file(tmp_path, replace(WHOLE, text=replace(WHOLE.text, context_length=21)))
    assert main([str(few), str(tmp_path / "no.pt"), "--context-length", "24", "--context-by", "long-clip"]) == 2
    assert "must have at least 22 tokens before by method long-clip" in capsys.readouterr().err


def test_tables_that_do_not_belong_together_are_one_line(tmp_path):
    path, arrays = authors_file(tmp_path / "long.pt", LONG, 0)
    arrays["positional_embedding_res"] = arrays["positional_embedding_res"][:-1]
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
    with pytest.raises(
        CheckpointError, match=r"positional_embedding_res must have .* shape \(37, 128\), got \(36, 128\)"
    ):
        identify(path, Stated(head_width=64))


def test_published_sizes_have_names():
    for name in ("LongCLIP-B-16", "LongCLIP-L-14"):
        assert architecture_name(ARCHITECTURES[name]) == name and ARCHITECTURES[name].text.context_length == 248


def test_check_gives_open_clip_one_table(tmp_path, monkeypatch):
    """open_clip knows no second table of positions, and would refuse the file as it lies."""
    from convert import check

    def create(name):
        read = read_weights(Path(name.removeprefix("local-dir:")) / "open_clip_pytorch_model.bin")
        given.update({key: tensor.read() for key, tensor in read.items()})
        return made

    given, made = {}, torch.nn.Identity()
    made.encode_image = made.encode_text = None
    monkeypatch.setattr(check, "_imported", lambda *_: [create])
    path, arrays = authors_file(tmp_path / "long.pt", WHOLE, 3)
    check._open_clip(identify(path, Stated(head_width=64)))
    assert given.keys() == arrays.keys() - {"positional_embedding_res"}
    assert np.array_equal(given["positional_embedding"][20:], arrays["positional_embedding_res"][20:])

"""Other input sizes and context lengths: positions resampled as each dialect does it, noted in the metadata."""

from __future__ import annotations

import numpy as np
import pytest

from convert.cli import main
from jclip.functional.positions import resample_linearly
from jclip.readers import read_weights
from jclip.weights.checkpoint import open_checkpoint
from tests.toys import TOY_EVAS, TOY_RESNET, TOY_VIT, toy_file

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")


def resampled(path, out, *options) -> np.ndarray:
    assert main([str(path), str(out), *options]) == 0
    return open_checkpoint(out)


@pytest.mark.parametrize("size", [(30, 30), (15, 35), (10, 10)])
@pytest.mark.parametrize("antialias", ["yes", "no"])
def test_image_positions_equal_torchs(size, antialias, tmp_path, close):
    for config, key, class_rows in (
        (TOY_VIT, "visual.positional_embedding", 1),
        (TOY_EVAS["eva02"], "visual.trunk.pos_embed", 1),
    ):
        path = toy_file(tmp_path, config)
        table = read_weights(path)[key].read()
        table = table.reshape(table.shape[-2:])
        numbers = [str(n) for n in (size if size[0] != size[1] else size[:1])]
        found = resampled(path, tmp_path / "out.safetensors", "--image-size", *numbers, "--antialias", antialias)
        grid = torch.tensor(table[class_rows:]).reshape(1, *config.vision.grid, -1).permute(0, 3, 1, 2)
        new = (size[0] // 5, size[1] // 5)
        wanted = torch.nn.functional.interpolate(
            grid, size=new, mode="bicubic", antialias=antialias == "yes", align_corners=False
        )
        got = found.tensors[key].read().reshape(-1, table.shape[1])
        assert np.array_equal(got[0], table[0]) and found.config.vision.image_size == size
        close(got[1:], wanted.permute(0, 2, 3, 1).reshape(-1, table.shape[1]), "resampling", "positions against torch")
        assert found.preprocess.size == size
        assert found.metadata["image_positions"].endswith(f"antialias {'true' if antialias == 'yes' else 'false'}")


def test_each_family_has_its_own_dialect(tmp_path):
    vit = resampled(toy_file(tmp_path, TOY_VIT), tmp_path / "a.safetensors", "--image-size", "30")
    eva = resampled(toy_file(tmp_path, TOY_EVAS["8b"]), tmp_path / "b.safetensors", "--image-size", "30")
    assert vit.metadata["image_positions"] == "4x4 to 6x6, antialias true"
    assert eva.metadata["image_positions"] == "4x3 to 6x6, antialias false"


def test_open_clip_resamples_as_we_do(tmp_path, close):
    """open_clip's own resampling, when it is given another image size, against ours."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    source = toy_file(tmp_path, TOY_VIT)
    assert main([str(source), str(tmp_path / "folder"), "--to", "open_clip"]) == 0
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'folder'}", force_image_size=30)
    ours = resampled(source, tmp_path / "out.safetensors", "--image-size", "30")
    wanted = theirs.visual.positional_embedding.detach()
    close(ours.tensors["visual.positional_embedding"].read(), wanted, "resampling", "positions against open_clip")


def test_attention_pools_are_resampled_too(tmp_path):
    found = resampled(toy_file(tmp_path, TOY_RESNET), tmp_path / "out.safetensors", "--image-size", "64", "160")
    assert found.tensors["visual.attnpool.positional_embedding"].shape[0] == 1 + 2 * 5


@pytest.mark.parametrize("length", [7, 16, 29])
def test_context_positions_equal_torchs(length, tmp_path, close):
    path = toy_file(tmp_path, TOY_VIT)
    table = read_weights(path)["positional_embedding"].read()
    found = resampled(path, tmp_path / "out.safetensors", "--context-length", str(length), "--context-by", "linear")
    wanted = torch.nn.functional.interpolate(
        torch.tensor(table.T[None]), size=length, mode="linear", align_corners=False
    )
    close(found.tensors["positional_embedding"].read(), wanted[0].T, "resampling", "context positions against torch")
    assert found.config.text.context_length == length and found.metadata["text_positions"] == f"11 to {length}, linear"


def test_a_shorter_context_keeps_the_trained_positions(tmp_path):
    path = toy_file(tmp_path, TOY_VIT)
    table = read_weights(path)["positional_embedding"].read()
    found = resampled(path, tmp_path / "out.safetensors", "--context-length", "7")
    assert np.array_equal(found.tensors["positional_embedding"].read(), table[:7])
    assert found.metadata["text_positions"] == "11 to 7, truncated"
    grown = resampled(path, tmp_path / "grown.safetensors", "--context-length", "20")
    assert np.array_equal(grown.tensors["positional_embedding"].read(), resample_linearly(table, 20))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--image-size", "33"], "image size must be a multiple of 5, the model's step, got 33 x 33"),
        (["--image-size", "20", "20", "20"], "must be HEIGHT [WIDTH], got 3 numbers"),
        (["--image-size", "0"], "--image-size: must be an integer in [1, 4096], got '0'"),
        (["--image-size", "1000000000"], "--image-size: must be an integer in [1, 4096], got '1000000000'"),
        (["--context-length", "0"], "--context-length: must be an integer in [2, 4096], got '0'"),
        (["--context-length", "1000000000"], "--context-length: must be an integer in [2, 4096], got '1000000000'"),
        (["--context-length", "2"], "a context of 11 can't be made 2 long"),
        (["--context-length", "20", "--context-by", "truncate"], "can't be made 20 long by method truncate"),
    ],
)
def test_sizes_that_can_not_be(options, message, tmp_path, capsys):
    assert main([str(toy_file(tmp_path, TOY_VIT)), str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()

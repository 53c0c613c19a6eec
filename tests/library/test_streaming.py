"""A tower read block by block computes what the whole one does, and says what it can't do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jclip.errors import ConfigError
from jclip.features.loading import load
from jclip.machine import available
from jclip.model import streaming
from jclip.model.clip import CLIP
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.weights.checkpoint import open_checkpoint
from tests.toys import TOY_BERT, TOY_EVAS, TOY_LAYER_SCALE, TOY_RESNET, TOY_SIGLIP, TOY_VIT, toy_batch, toy_file

CONFIGS = {
    **TOY_EVAS, "vit": TOY_VIT, "layer_scale": TOY_LAYER_SCALE, "resnet": TOY_RESNET, "bert": TOY_BERT,
    "siglip": TOY_SIGLIP,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_equals_whole(name, tmp_path, close):
    """To the bit, but for RMS norms, whose sums Jittor fuses with what stands before and after them."""
    config = CONFIGS[name]
    path = toy_file(tmp_path, config)
    whole, streamed = load(path)[0], load(path, stream=True)[0]
    pixels, tokens = toy_batch(config)
    taps = {}, {}
    for _ in range(2):  # the second pass starts with the last block in place
        with jt.no_grad():
            images = [m.encode_image(pixels, taps=t).numpy() for m, t in zip((whole, streamed), taps, strict=True)]
            texts = [m.encode_text(tokens).numpy() for m in (whole, streamed)]
        if name not in ("8b", "18b"):
            assert np.array_equal(*images) and np.array_equal(*texts)
        close(images[1], images[0], "kernel", f"streamed against whole, {name}")
    assert taps[0].keys() == taps[1].keys()
    assert streamed.config == config
    assert not any("blocks" in k for k in streamed.state_dict())


def test_memory_decides_or_the_user(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(toy_file(tmp_path, TOY_VIT))
    assert streaming.weight_bytes(checkpoint) == 4 * sum(
        int(np.prod(v.shape)) for v in CLIP(TOY_VIT).state_dict().values()
    )
    assert not streaming.wanted(checkpoint)
    monkeypatch.setattr(available, "memory", lambda: streaming.weight_bytes(checkpoint))
    assert streaming.wanted(checkpoint)
    monkeypatch.setenv("JCLIP_STREAM", "0")
    assert not streaming.wanted(checkpoint)
    monkeypatch.setenv("JCLIP_STREAM", "yes")
    with pytest.raises(ConfigError, match="JCLIP_STREAM must be 0 or 1, got yes"):
        streaming.wanted(checkpoint)


def test_it_does_not_train_and_computes_in_fp32(tmp_path):
    path = toy_file(tmp_path, TOY_VIT)
    with pytest.raises(ConfigError, match="can't be trained"):
        trainable(load(path, stream=True)[0])
    with pytest.raises(ConfigError, match="in fp32 only"):
        load(path, dtype="bf16", stream=True)


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from jclip.features.loading import load
from jclip.runtime import jt
path, stream = sys.argv[1], sys.argv[2] == "1"
model, _ = load(path, stream=stream)
H, W = model.config.vision.image_size
with jt.no_grad():
    features = model.encode_image(np.linspace(-1, 1, 2 * 3 * H * W, dtype=np.float32).reshape(2, 3, H, W)).numpy()
peak = next(line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
print(json.dumps([int(peak), features.tolist()]))
"""


def test_an_18b_like_tower_needs_the_memory_of_a_few_blocks(tmp_path, close):
    """24 blocks as 18B has them, 512 wide: the weights alone take 302 MB, the streamed run stays far below."""
    from dataclasses import replace

    from jclip.data.preprocess import Preprocess
    from jclip.weights.checkpoint import random_arrays, save_checkpoint
    from jclip.weights.parameter_shapes import parameter_shapes

    toy = TOY_EVAS["18b"]
    tower = replace(toy.vision, width=512, layers=24, heads=4, mlp_width=2560)
    config = replace(toy, vision=tower)
    path, arrays = tmp_path / "18b-like.safetensors", random_arrays(parameter_shapes(config), 0)
    save_checkpoint(path, arrays, config, Preprocess(size=tower.image_size))

    def run(stream: str) -> tuple[int, np.ndarray]:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), stream], capture_output=True, text=True,
            cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        kilobytes, features = json.loads(done.stdout.splitlines()[-1])
        return kilobytes * 1024, np.array(features)

    (whole, wanted), (streamed, got) = run("0"), run("1")
    close(got, wanted, "kernel", "streamed against whole, 24 blocks as 18B has them")
    weights = path.stat().st_size
    assert streamed < whole - 0.6 * weights, (whole, streamed, weights)

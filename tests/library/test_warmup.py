"""What is compiled ahead is all that later batches need, whatever their sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jclip.cli import main

ROOT = Path(__file__).parent.parent.parent
LATER = """
import sys
import time
import numpy as np
from jclip.runtime import jt
from jclip.features.source import ModelSource
from jclip.model.clip import inference
model = ModelSource(sys.argv[1]).model
if len(sys.argv) > 2:
    jt.code((1,), "float32", [], cpu_src=f"out0_p[0] = 1; // {time.time()}").numpy()
for batch in (1, 3, 5):
    with inference(model):
        model.encode_image(np.ones((batch, 3, *model.config.vision.image_size), np.float32)).numpy()
        model.encode_text(model.tokenize(["a photo of a cat" + " and a dog" * n for n in range(batch)])).numpy()
print("compiled nothing")
"""


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_other_sizes_and_another_process_compile_nothing(kind, small_models, capsys):
    assert main(["warmup", "--model", str(small_models[kind])]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[2:]] == ["image", "text", "training"]
    assert later(small_models[kind]).stdout == "compiled nothing\n"
    if kind == "vit":
        assert later(small_models[kind], "and one operator more").stdout == ""


def later(*arguments) -> subprocess.CompletedProcess:
    """Other processes may compile meanwhile, so that what is in the cache proves nothing: in this one g++ ends at once."""
    command, environment = [sys.executable, "-c", LATER, *arguments], {"DEPENDENCIES_OUTPUT": "/nowhere/at/all"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def test_names_need_no_weights_and_wrong_ones_are_reported(capsys):
    assert main(["warmup", "--model", "shapes-tiny-vit", "--stages", "text"]) == 0
    assert "operators compiled" in capsys.readouterr().out
    assert main(["warmup", "--model", "ViT-B/33"]) == 2
    assert "model 'ViT-B/33', did you mean 'ViT-B/32'" in capsys.readouterr().err

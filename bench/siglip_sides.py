"""The rows of bench/speed.py with SigLIP's image tower: jclip against transformers' `SiglipModel`, random weights."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from sides import Prepared, images, parse


def config_of(name: str):
    """The architecture, its text tower left out of the work and made small."""
    from jclip.weights.variants import ARCHITECTURES

    config = ARCHITECTURES[name]
    return replace(config, text=replace(config.text, layers=1, vocab_size=512))


def prepare_jclip(task: str) -> Prepared:
    from jclip.model.clip import CLIP
    from jclip.runtime import jt

    _, name, batch, dtype = parse(task)
    model = CLIP(config_of(name))
    model.eval()
    jt.sync_all()
    model.to(dtype)
    pixels = jt.array(images(model.config, batch))

    def run() -> None:
        with jt.no_grad():
            model.encode_image(pixels).sync(True)

    return run, run, batch


def prepare_torch(task: str) -> Prepared:
    import torch

    sys.modules.setdefault("torchvision", None)  # one of another build than torch's would stop the import
    from transformers import SiglipConfig, SiglipModel

    from jclip.weights.layouts.from_siglip import described_for_hugging_face

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _, name, batch, dtype = parse(task)
    config = config_of(name)
    said = described_for_hugging_face(config, "float32")
    made = SiglipConfig(vision_config=said["vision_config"], text_config=said["text_config"])
    model = SiglipModel._from_config(made, attn_implementation="sdpa").eval()
    pixels = torch.from_numpy(images(config, batch))

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != "fp32"):
            model.get_image_features(pixel_values=pixels)

    return run, run, batch

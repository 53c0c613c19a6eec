"""The rows of bench/speed.py with encoders of 2025, random weights: jclip against the library that has them.

SigLIP 2 and Chinese-CLIP's text tower run in transformers, PE-Core's and MobileCLIP's image towers in timm, each with sdpa.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace

from sides import Prepared, images, parse

TIMM = {"PE-Core-B-16": "vit_pe_core_base_patch16_224", "MobileCLIP-B": "vit_base_mci_224"}
SHORTEST = 6  # tokens of a Chinese text; the longest fills the context


def takes(task: str) -> bool:
    """Whether the task is one of these rows."""
    from jclip.weights.variants import ARCHITECTURES

    return parse(task)[1] in ARCHITECTURES


def config_of(task: str):
    """The architecture without the tower that has no work in the task."""
    from jclip.weights.variants import ARCHITECTURES

    kind, name, *_ = parse(task)
    config = ARCHITECTURES[name]
    if kind == "text":
        return replace(config, vision=None)
    return replace(config, text=replace(config.text, layers=1, vocab_size=512))


def texts(config, batch: int, full: bool = False):
    """Seeded ids (B, L), padding behind each text: lengths from `SHORTEST` to L evenly, or all of L tokens."""
    import numpy as np

    t, rng = config.text, np.random.default_rng(0)
    ids = rng.integers(t.pad + 1, t.vocab_size, (batch, t.context_length)).astype(np.int32)
    shortest = t.context_length if full else SHORTEST
    lengths = rng.permutation(np.linspace(shortest, t.context_length, batch).round().astype(int))
    ids[np.arange(t.context_length) >= lengths[:, None]] = t.pad
    return ids


def prepare_jclip(task: str) -> Prepared:
    from jclip.model.clip import CLIP
    from jclip.runtime import jt

    kind, _, batch, dtype = parse(task)
    config = config_of(task)
    model = CLIP(config)
    model.eval()
    jt.sync_all()
    model.to(dtype)
    encode, given = (model.encode_image, jt.array(images(config, batch))) if kind == "image" else (
        model.encode_text, texts(config, batch, "tokens" in task))  # fmt: skip

    def run() -> None:
        with jt.no_grad():
            encode(given).sync(True)

    return run, run, batch


def prepare_torch(task: str) -> Prepared:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind, name, batch, dtype = parse(task)
    config = config_of(task)
    if kind == "text":
        encode = torch_bert(config, torch.from_numpy(texts(config, batch, "tokens" in task)).long())
    else:
        pixels = torch.from_numpy(images(config, batch))
        tower = torch_timm(name, config) if name in TIMM else torch_siglip(config)

        def encode() -> None:
            tower(pixels)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != "fp32"):
            encode()

    return run, run, batch


def torch_siglip(config):
    """transformers' SigLIP image tower of that architecture."""
    sys.modules.setdefault("torchvision", None)  # one of another build than torch's would stop the import
    from transformers import SiglipConfig, SiglipModel

    from jclip.weights.layouts.from_siglip import described_for_hugging_face

    said = described_for_hugging_face(config, "float32")
    made = SiglipConfig(vision_config=said["vision_config"], text_config=said["text_config"])
    return SiglipModel._from_config(made, attn_implementation="sdpa").vision_model.eval()


def torch_timm(name: str, config):
    """timm's tower of that name, which open_clip runs."""
    with_torchvision()
    import timm

    return timm.create_model(TIMM[name], num_classes=config.embed_dim, depth=config.vision.layers).eval()


def with_torchvision() -> None:
    """Import torchvision, which timm reads; of another build than torch's, with the operators that it lacks declared."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys.modules["torchvision operators"] = library  # kept alive as long as the process


def torch_bert(config, ids) -> Callable[[], None]:
    """transformers' Chinese-CLIP text tower with its projection, on ids (B, L) and their mask."""
    sys.modules.setdefault("torchvision", None)
    import torch
    from transformers import ChineseCLIPTextConfig, ChineseCLIPTextModel

    t = config.text
    made = ChineseCLIPTextConfig(
        vocab_size=t.vocab_size, hidden_size=t.width, num_hidden_layers=t.layers, num_attention_heads=t.heads,
        intermediate_size=t.mlp_width, max_position_embeddings=t.positions, layer_norm_eps=t.norm_eps,
    )  # fmt: skip
    made._attn_implementation = "sdpa"
    tower = ChineseCLIPTextModel(made, add_pooling_layer=False).eval()
    projection = torch.nn.Linear(t.width, config.embed_dim, bias=False)
    mask = (ids != t.pad).long()

    def encode() -> None:
        projection(tower(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])

    return encode

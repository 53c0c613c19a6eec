"""What bench/speed.py and bench/memory.py run on either side: the same work in jclip and in torch."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Prepared = tuple[Callable[[], None], Callable[[], None], int]  # warm-up, what is timed, how many items it handles
CLASSES = 374  # of the Jittor challenge
RATES = {"fp32": "of_sgemm", "bf16": "of_half_rate"}  # the share of a dtype's product rate that a tower reaches
LOGIT_SCALE = math.log(1 / 0.07)
PHOTOS, PHOTO_SIZE, PHOTO_BATCH = 2000, (500, 375), 64


def parse(task: str) -> tuple[str, str, int, str]:
    """`image RN50 batch 32 bf16` → image, RN50, 32, bf16."""
    words = task.split()
    if words[0] == "text" and "batch" not in words:
        return "text", "ViT-B/32", CLASSES, "fp32"
    batch = PHOTO_BATCH if words[0] == "photos" else int(words[3])
    return words[0], words[1], batch, words[-1] if words[-1] in ("bf16", "int8") else "fp32"


def prepare_jclip(task: str) -> Prepared:
    if (encoders := importlib.import_module("encoder_sides")).takes(task):
        return encoders.prepare_jclip(task)
    from jclip.model.clip import CLIP
    from jclip.runtime import jt
    from jclip.weights.variants import VARIANTS

    kind, name, batch, dtype = parse(task)
    model = CLIP(VARIANTS[name])
    model.eval()
    jt.sync_all()
    if kind == "train":
        return jclip_training(model, batch, dtype)
    model.to(dtype)
    if kind == "photos":
        return jclip_photos(model)
    encode, given = (model.encode_image, jt.array(images(model.config, batch))) if kind == "image" else (
        model.encode_text, prompts())  # fmt: skip

    def run() -> None:
        with jt.no_grad():
            encode(given).sync(True)

    return run, run, batch


def jclip_training(model, batch: int, dtype: str = "fp32") -> Prepared:
    """One step of contrastive training on all parameters, as the recipe `contrastive` takes it."""
    import numpy as np

    from jclip import kernels
    from jclip.model.clip import training_mode
    from jclip.model.trainable import no_weight_decay, trainable
    from jclip.train.on_captions import Objective, caption_gradients
    from jclip.train.optim import AdamW

    training_mode(model)
    optim = AdamW(trainable(model), 1e-6, (0.9, 0.98), 1e-6, 0.1, exclude=no_weight_decay)
    part = (images(model.config, batch), prompts()[:batch], np.arange(batch))

    def step() -> None:
        with kernels.products_in(dtype):
            loss, gradients = caption_gradients(model, [part], list(optim.params), Objective())
            optim.apply(gradients)
        loss.sync(True)

    return step, step, batch


def jclip_photos(model) -> Prepared:
    """Files to features, decoded as `jclip zero-shot` and the recipes do it."""
    import numpy as np

    from jclip.data.preprocess import Preprocess
    from jclip.data.splits import Split
    from jclip.features.extraction import encode_photos

    def over(paths: list[str]) -> Callable[[], None]:
        split = Split(tuple(paths), np.zeros(len(paths), np.int32))
        return lambda: encode_photos(model, Preprocess(), split)

    paths = photos()
    return over(paths[: 2 * PHOTO_BATCH]), over(paths), len(paths)


def prepare_torch(task: str) -> Prepared:
    if (encoders := importlib.import_module("encoder_sides")).takes(task):
        return encoders.prepare_torch(task)
    import torch

    from jclip.weights.variants import VARIANTS

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind, name, batch, dtype = parse(task)
    config = VARIANTS[name]
    if config.vision.kind == "resnet":
        return torch_resnet_training(config, batch, dtype) if kind == "train" else torch_resnet(config, batch)
    model = torch_clip_model(config)
    if kind == "photos":
        return torch_photos(model)
    tokens = torch.from_numpy(prompts()).long()
    if "cut" in task or kind == "train":
        tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
    pixels = torch.from_numpy(images(config, batch)) if kind != "text" else None
    if kind == "train":
        return torch_training(model, pixels, tokens[:batch], dtype)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != "fp32"):
            if kind == "image":
                model.get_image_features(pixel_values=pixels)
            else:
                model.get_text_features(input_ids=tokens)

    return run, run, batch


def torch_training(model, pixels, tokens, dtype: str = "fp32") -> Prepared:
    import torch

    model.train()
    optim = torch.optim.AdamW(model.parameters(), 1e-6, (0.9, 0.98), 1e-6, 0.1)

    def step() -> None:
        optim.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "fp32"):
            loss = model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        optim.step()

    return step, step, len(pixels)


def torch_photos(model) -> Prepared:
    """A DataLoader of two workers in front of the tower; each photo through the same PIL steps."""
    import torch
    from PIL import Image

    from jclip.data.preprocess import Preprocess

    class Photos(torch.utils.data.Dataset):
        def __init__(self, paths: list[str]):
            self.paths, self.preprocess = paths, Preprocess()

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int):
            return torch.from_numpy(self.preprocess(Image.open(self.paths[i])))

    def over(paths: list[str]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                loader = torch.utils.data.DataLoader(Photos(paths), PHOTO_BATCH, num_workers=2)
                torch.cat([model.get_image_features(pixel_values=batch).pooler_output for batch in loader])

        return run

    paths = photos()
    return over(paths[: 2 * PHOTO_BATCH]), over(paths), len(paths)


def torch_clip_model(config):
    """transformers' CLIPModel of that architecture."""
    sys.modules.setdefault("torchvision", None)  # one of another build than torch's would stop the import
    from transformers import CLIPConfig, CLIPModel

    v = config.vision
    vision = {
        "hidden_size": v.width, "intermediate_size": v.mlp_width, "num_hidden_layers": v.layers,
        "num_attention_heads": v.heads, "image_size": v.image_size[0], "patch_size": v.patch_size,
    }  # fmt: skip
    made = CLIPConfig(vision_config=vision, text_config=text_settings(config), projection_dim=config.embed_dim)
    return CLIPModel._from_config(made, attn_implementation="sdpa").eval()


def torch_clip_text(config):
    """transformers' text tower of that architecture, with its projection."""
    sys.modules.setdefault("torchvision", None)
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    made = CLIPTextConfig(**text_settings(config), projection_dim=config.embed_dim)
    return CLIPTextModelWithProjection._from_config(made, attn_implementation="sdpa")


def text_settings(config) -> dict[str, int]:
    """Of a text tower, as transformers names them."""
    t = config.text
    return {
        "hidden_size": t.width, "intermediate_size": t.mlp_width, "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads, "vocab_size": t.vocab_size, "eos_token_id": t.vocab_size - 1,
    }  # fmt: skip


def torch_resnet(config, batch: int) -> Prepared:
    """The twin of the parity tests."""
    import torch

    from jclip.weights.checkpoint import random_arrays
    from tests.parity import torch_clip
    from tests.toys import shapes_of

    p = torch_clip.parameters(random_arrays(shapes_of(config), 0))
    pixels = torch.from_numpy(images(config, batch))

    def encode() -> None:
        with torch.inference_mode():
            torch_clip.encode_image(p, config, pixels)

    return encode, encode, batch


def torch_resnet_training(config, batch: int, dtype: str) -> Prepared:
    """The twin of the parity tests beside transformers' text tower; maps channels-last, which torch computes faster."""
    import torch

    from jclip.weights.checkpoint import random_arrays
    from tests.parity import torch_clip
    from tests.toys import shapes_of

    arrays = random_arrays({k: s for k, s in shapes_of(config).items() if k.startswith("visual.")}, 0)
    p = torch_clip.parameters(arrays, requires_grad=True)
    p = {
        k: v.detach().to(memory_format=torch.channels_last).requires_grad_() if v.ndim == 4 else v for k, v in p.items()
    }
    scale = torch.tensor(LOGIT_SCALE, requires_grad=True)
    model = torch_clip_text(config).train()
    trained = [scale, *(v for v in p.values() if v.requires_grad), *model.parameters()]
    optim = torch.optim.AdamW(trained, 1e-6, (0.9, 0.98), 1e-6, 0.1)
    pixels = torch.from_numpy(images(config, batch)).contiguous(memory_format=torch.channels_last)
    tokens = torch.from_numpy(prompts()).long()
    tokens, own = tokens[:batch, : int(tokens.argmax(dim=1).max()) + 1], torch.arange(batch)
    unit, entropy = torch.nn.functional.normalize, torch.nn.functional.cross_entropy

    def step() -> None:
        optim.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "fp32"):
            seen = unit(torch_clip.encode_image(p, config, pixels, training=True), dim=-1)
            scores = scale.exp() * seen @ unit(model(input_ids=tokens).text_embeds, dim=-1).T
            loss = (entropy(scores, own) + entropy(scores.T, own)) / 2
        loss.backward()
        optim.step()

    return step, step, batch


def images(config, batch: int):
    """Seeded pixels (B, 3, H, W)."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((batch, 3, *config.vision.image_size), dtype=np.float32)


def words(count: int) -> list[str]:
    """Words that are one token each."""
    from jclip.prompts.tokenizer import Tokenizer

    symbols = Tokenizer()._symbols[20_000:]
    ends = [s.removesuffix("</w>") for s in symbols if s.endswith("</w>")]
    return [word for word in ends if word.isascii() and word.isalpha()][:count]


def prompts():
    """Token ids of `a photo of a WORD.` for 374 words of the vocabulary."""
    from jclip.prompts.tokenizer import tokenize

    return tokenize([f"a photo of a {word}." for word in words(CLASSES)])


def photos() -> list[str]:
    """2,000 JPEGs of 500 x 375 of about 45 kB in the temporary folder, made at the first call; a hundred are different."""
    from PIL import Image

    folder = Path(tempfile.gettempdir()) / f"jclip-bench-{PHOTO_SIZE[0]}x{PHOTO_SIZE[1]}"
    paths = [folder / f"{i:04}.jpg" for i in range(PHOTOS)]
    if not paths[-1].is_file():
        folder.mkdir(exist_ok=True)
        for i, path in enumerate(paths):
            if i >= 100:
                shutil.copy(paths[i % 100], path)
                continue
            channels = [
                Image.effect_noise((63, 47), 40 + i % 50).resize(PHOTO_SIZE, Image.Resampling.BICUBIC) for _ in "RGB"
            ]
            Image.merge("RGB", channels).save(path, quality=95)
    return [str(p) for p in paths]


def gflop(task: str) -> float:
    """10^9 multiplications and additions of one image's products as jclip computes them, for a ViT in float32 or bf16; else 0.

    The last layer's are those of the class token: of all other tokens only keys and values.
    """
    from jclip.weights.variants import VARIANTS, ViTConfig

    kind, name, _, dtype = parse(task)
    vision = VARIANTS[name].vision if name in VARIANTS else None
    if kind != "image" or dtype not in RATES or not isinstance(vision, ViTConfig):
        return 0.0
    cells, D = vision.grid[0] * vision.grid[1], vision.width
    N = cells + 1
    token = 2 * D * D + 2 * D * vision.mlp_width + 2 * N * D  # behind keys and values
    layer, last = N * (2 * D * D + token), N * 2 * D * D + token
    return 2e-9 * (cells * 3 * vision.patch_size**2 * D + (vision.layers - 1) * layer + last)


def product_rate(dtype: str, clock: Callable[[], float], size: int = 2048, seconds: float = 2.0) -> float:
    """10^9 operations per second of oneDNN's own product of square matrices, the best of several.

    In float32 its sgemm; in bf16 a weight in the order that it likes best, and an output in bf16 as well.
    """
    from jclip import kernels
    from jclip.runtime import jt

    a, b = jt.randn(size, size), jt.randn(size, size)
    if dtype == "bf16":
        a, b = kernels.to_half(a, pack=False), kernels.to_half(b, pack=True)
    jt.sync_all(True)
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = clock()
        with jt.no_grad():
            (kernels.linear(a, b, half=True) if dtype == "bf16" else jt.matmul(a, b)).sync(True)
        best = max(best, 2e-9 * size**3 / (clock() - start))
    return best


if __name__ == "__main__":
    sys.exit("run bench/speed.py or bench/memory.py")

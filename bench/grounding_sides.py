"""What bench/grounding_speed.py gives to both sides, weights, photos and phrases, and what it runs on jclip's.

A photo is drawn of noise, as wide and high as photos of COCO are, so that as much of its square is padding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jclip.prompts.tokenizer import tokenize
from jclip.weights.variants import VARIANTS

MODEL, BATCH, ASKED, SIDE, LAYERS, HEADS, DROPOUT = "ViT-B/16", 16, 20, 224, 6, 8, 0.1
RATE, DECAY, CLIP = 2e-4, 1e-4, 0.1
HEAD = 64  # width of an attention head
WIDE = ((640, 480), (640, 427), (640, 426), (500, 375), (612, 612))
HIGH = ((480, 640), (427, 640))
SIZES = (*WIDE, *HIGH, *WIDE[:4], *HIGH[:1], *WIDE[:4])  # of the batch's photos
PHRASES = (
    "man", "left", "woman in red", "the dog", "red car", "guy on right", "white shirt", "the boy in the middle",
    "bottom left pizza", "person not holding anything", "second horse from the left", "kid with hat", "black bag",
    "the person looking at an apple laptop", "top right corner", "zebra facing us", "girl", "the chair behind the table",
    "blue umbrella", "lady with glasses",
)  # fmt: skip
FOLDER = Path(tempfile.gettempdir()) / "jclip-bench-grounding"


class Given(NamedTuple):
    """Photos (I, 3, S, S) in squares with (I, N) which tokens are no padding, token ids (B, 77), of: (B,) each phrase's
    photo, boxes (B, 4) centres."""

    pixels: np.ndarray
    seen: np.ndarray
    ids: np.ndarray
    of: np.ndarray
    boxes: np.ndarray


class Step(NamedTuple):
    """What is timed, which returns a number when all is computed; and the same without dropout, before anything is learned."""

    run: Callable[[], float]
    compared: Callable[[], np.ndarray]


def given(part: str) -> Given:
    """A batch of as many photos as phrases, or all phrases of one photo."""
    from jclip.data import box_views

    rng, asks = np.random.default_rng(0), part == "inference"
    sizes, phrases = (SIZES[:1], PHRASES) if asks else (SIZES[:BATCH], PHRASES[:BATCH])
    patch, pixels, seen = VARIANTS[MODEL].vision.patch_size, np.zeros((len(sizes), 3, SIDE, SIDE), np.float32), []
    for square, size in zip(pixels, sizes, strict=True):
        place = box_views.centred(size, SIDE)
        inside = square[:, place.top : place.top + place.height, place.left : place.left + place.width]
        inside[:] = rng.standard_normal(inside.shape)
        seen.append(np.append([True], ~place.masked_patches(patch).ravel()))
    boxes = rng.uniform(0.2, 0.6, (len(phrases), 4)).astype(np.float32)
    of = np.zeros(len(phrases), int) if asks else np.arange(len(phrases))
    return Given(pixels, np.array(seen, np.float32), tokenize(phrases), of, boxes)


def weights() -> Path:
    """ViT-B/16 with seeded random weights; made at the first call, which needs Jittor."""
    from jclip.data.preprocess import Preprocess
    from jclip.weights.checkpoint import random_arrays, save_checkpoint

    path, config = FOLDER / "ViT-B-16.safetensors", VARIANTS[MODEL]
    if not path.is_file():
        from tests.toys import shapes_of

        FOLDER.mkdir(exist_ok=True)
        save_checkpoint(path, random_arrays(shapes_of(config), 0), config, Preprocess(size=config.vision.image_size))
    return path


def network_arrays() -> dict[str, np.ndarray]:
    """Where the fusion network starts, by name; the first call needs Jittor."""
    path = FOLDER / "network.npz"
    if not path.is_file():
        FOLDER.mkdir(exist_ok=True)
        with open(path, "wb") as f:
            np.savez(f, **{k: v.numpy() for k, v in network().state_dict().items()})
    return dict(np.load(path))


def tokens_of_batch() -> dict[str, np.ndarray]:
    """Tokens of both towers for the training batch, those of photos in float16; the first call needs Jittor."""
    path = FOLDER / "tokens.npz"
    if not path.is_file():
        images, texts, _ = encoded(model(), given("training"))
        with open(path, "wb") as f:
            np.savez(f, images=images.numpy().astype(np.float16), texts=texts.numpy())
    return dict(np.load(path))


def material() -> dict[str, Any]:
    """Makes all that is read from files, so that no measured process does."""
    return {"weights": str(weights()), "network": len(network_arrays()), "tokens": len(tokens_of_batch())}


def model():
    """Both towers."""
    from jclip.features.source import ModelSource

    return ModelSource(weights()).model


def network():
    """The fusion network."""
    from jclip.model.grounding import GroundingNetwork
    from jclip.model.tower_levels import fusion_shape

    return GroundingNetwork(fusion_shape(VARIANTS[MODEL], layers=LAYERS, heads=HEADS, dropout=DROPOUT), seed=1)


def encoded(towers, data: Given) -> tuple:
    """Tokens of photos and of phrases, cut at the longest, and which of the phrases' count."""
    from jclip.model import clip, tower_levels

    with clip.inference(towers):
        (images,) = tower_levels.image_parts(towers, data.pixels)
        _, texts = towers.encode_text(data.ids, dense=True)
    lengths = data.ids.argmax(axis=1) + 1
    return images, texts, (np.arange(texts.shape[1]) < lengths[:, None]).astype(np.float32)


def training(cached: bool) -> Step:
    """A step of the recipe: tokens from memory, as the recipe has them, or from both towers."""
    from jclip.features.box_features import Batch
    from jclip.model.trainable import trainable
    from jclip.train.box_training import batch_loss
    from jclip.train.optim import AdamW

    data, towers, fusion = given("training"), None if cached else model(), network()
    fusion.put(network_arrays())
    optim = AdamW(trainable(fusion), RATE, weight_decay=DECAY)
    stored, numbers = tokens_of_batch() if cached else {}, iter(range(1, 1_000_000))

    def batch() -> Batch:
        if cached:
            images, texts = stored["images"], stored["texts"]
            said = (np.arange(texts.shape[1]) < (data.ids.argmax(axis=1) + 1)[:, None]).astype(np.float32)
        else:
            images, texts, said = encoded(towers, data)
        there = np.ones(len(data.of), np.float32)
        return Batch(images, texts, said, data.seen, data.of, data.boxes, there, np.arange(len(data.pixels)))

    def run() -> float:
        loss = batch_loss(fusion, batch(), next(numbers))
        optim.step(loss, CLIP)
        return loss.item()

    return Step(run, lambda: batch_loss(fusion, batch(), None).numpy())


def inference() -> Step:
    """Boxes of all phrases in a photo."""
    from jclip.runtime import jt

    data, towers, fusion = given("inference"), model(), network()
    fusion.put(network_arrays())

    def boxes() -> np.ndarray:
        with jt.no_grad():
            images, texts, said = encoded(towers, data)
            return fusion(images, texts, said, data.seen, data.of).boxes.numpy()

    return Step(lambda: float(boxes()[0, 0]), boxes)


def attention_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k and v (B, N, 3D) of the batch's sequences with padding, (B, N) which tokens may be looked at, and a gradient."""
    data, rng = given("training"), np.random.default_rng(1)
    lengths = data.ids.argmax(axis=1) + 1
    said = np.arange(lengths.max()) < lengths[:, None]
    keys = np.concatenate([np.ones((BATCH, 1)), said, data.seen], axis=1).astype(np.float32)
    B, N, D = *keys.shape, HEADS * HEAD
    return (
        rng.standard_normal((B, N, 3 * D), dtype=np.float32),
        keys,
        rng.standard_normal((B, N, D), dtype=np.float32),
    )


def attention(rate: float) -> Step:
    """The operator with a key mask, forward and backward. rate: of dropout of its weights."""
    from jclip import kernels
    from jclip.runtime import jt

    qkv, keys, grad = map(jt.array, attention_inputs())
    numbers = iter(range(1, 1_000_000))

    def both(rate: float):
        x = qkv.clone()
        x.start_grad()
        return jt.grad((kernels.masked_attention(x, keys, HEADS, rate, next(numbers)) * grad).sum(), x)

    def run() -> float:
        both(rate).sync(True)
        return 0.0

    return Step(run, lambda: both(0.0).numpy())

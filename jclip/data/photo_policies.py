"""Random changes of photos from published lists: AutoAugment's operations, its policies, RandAugment as UDA has it, cut-outs.

Cubuk et al., CVPR 2019, arXiv 1805.09501, tables 6, 7 and 9. An operation has ten strengths, of which UDA's RandAugment
(Xie et al., arXiv 1904.12848) draws two operations and strengths, each applied half of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

GREY = (128, 128, 128)  # of what moves in from outside
HOLE = (125, 122, 113)  # ImageNet's mean, which a cut-out of RandAugment is filled with
STRENGTHS = 10
_MIRRORED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Sharpness", "Brightness")

Step = tuple[float, str, int]  # how probable, operation, strength from 0 to 9

IMAGENET: tuple[tuple[Step, Step], ...] = (
    ((0.4, "Posterize", 8), (0.6, "Rotate", 9)), ((0.6, "Solarize", 5), (0.6, "AutoContrast", 5)),
    ((0.8, "Equalize", 8), (0.6, "Equalize", 3)), ((0.6, "Posterize", 7), (0.6, "Posterize", 6)),
    ((0.4, "Equalize", 7), (0.2, "Solarize", 4)), ((0.4, "Equalize", 4), (0.8, "Rotate", 8)),
    ((0.6, "Solarize", 3), (0.6, "Equalize", 7)), ((0.8, "Posterize", 5), (1.0, "Equalize", 2)),
    ((0.2, "Rotate", 3), (0.6, "Solarize", 8)), ((0.6, "Equalize", 8), (0.4, "Posterize", 6)),
    ((0.8, "Rotate", 8), (0.4, "Color", 0)), ((0.4, "Rotate", 9), (0.6, "Equalize", 2)),
    ((0.0, "Equalize", 7), (0.8, "Equalize", 8)), ((0.6, "Invert", 4), (1.0, "Equalize", 8)),
    ((0.6, "Color", 4), (1.0, "Contrast", 8)), ((0.8, "Rotate", 8), (1.0, "Color", 2)),
    ((0.8, "Color", 8), (0.8, "Solarize", 7)), ((0.4, "Sharpness", 7), (0.6, "Invert", 8)),
    ((0.6, "ShearX", 5), (1.0, "Equalize", 9)), ((0.4, "Color", 0), (0.6, "Equalize", 3)),
    ((0.4, "Equalize", 7), (0.2, "Solarize", 4)), ((0.6, "Solarize", 5), (0.6, "AutoContrast", 5)),
    ((0.6, "Invert", 4), (1.0, "Equalize", 8)), ((0.6, "Color", 4), (1.0, "Contrast", 8)),
    ((0.8, "Equalize", 8), (0.6, "Equalize", 3)),
)  # fmt: skip

CIFAR10: tuple[tuple[Step, Step], ...] = (
    ((0.1, "Invert", 7), (0.2, "Contrast", 6)), ((0.7, "Rotate", 2), (0.3, "TranslateX", 9)),
    ((0.8, "Sharpness", 1), (0.9, "Sharpness", 3)), ((0.5, "ShearY", 8), (0.7, "TranslateY", 9)),
    ((0.5, "AutoContrast", 8), (0.9, "Equalize", 2)), ((0.2, "ShearY", 7), (0.3, "Posterize", 7)),
    ((0.4, "Color", 3), (0.6, "Brightness", 7)), ((0.3, "Sharpness", 9), (0.7, "Brightness", 9)),
    ((0.6, "Equalize", 5), (0.5, "Equalize", 1)), ((0.6, "Contrast", 7), (0.6, "Sharpness", 5)),
    ((0.7, "Color", 7), (0.5, "TranslateX", 8)), ((0.3, "Equalize", 7), (0.4, "AutoContrast", 8)),
    ((0.4, "TranslateY", 3), (0.2, "Sharpness", 6)), ((0.9, "Brightness", 6), (0.2, "Color", 8)),
    ((0.5, "Solarize", 2), (0.0, "Invert", 3)), ((0.2, "Equalize", 0), (0.6, "AutoContrast", 0)),
    ((0.2, "Equalize", 8), (0.8, "Equalize", 4)), ((0.9, "Color", 9), (0.6, "Equalize", 6)),
    ((0.8, "AutoContrast", 4), (0.2, "Solarize", 8)), ((0.1, "Brightness", 3), (0.7, "Color", 0)),
    ((0.4, "Solarize", 5), (0.9, "AutoContrast", 3)), ((0.9, "TranslateY", 9), (0.7, "TranslateY", 9)),
    ((0.9, "AutoContrast", 2), (0.8, "Solarize", 3)), ((0.8, "Equalize", 8), (0.1, "Invert", 3)),
    ((0.7, "TranslateY", 9), (0.9, "AutoContrast", 1)),
)  # fmt: skip
POLICIES: dict[str, Sequence[tuple[Step, Step]]] = {"imagenet+cifar10": IMAGENET + CIFAR10}  # beside "rand_augment"


def _moved(image: Image.Image, *numbers: float, smooth: bool = False) -> Image.Image:
    """The photo whose pixel at (x, y) is the old one's at `numbers` (a, b, c, d, e, f): (a x + b y + c, d x + e y + f)."""
    kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, numbers, kind, fillcolor=GREY)


_PLAIN: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "ShearX": lambda image, x: _moved(image, 1, x, 0, 0, 1, 0, smooth=True),
    "ShearY": lambda image, x: _moved(image, 1, 0, 0, x, 1, 0, smooth=True),
    "TranslateX": lambda image, x: _moved(image, 1, 0, x * image.width, 0, 1, 0),
    "TranslateY": lambda image, x: _moved(image, 1, 0, 0, 0, 1, x * image.height),
    "Rotate": lambda image, x: image.rotate(x, fillcolor=GREY),
    "Color": lambda image, x: ImageEnhance.Color(image).enhance(1 + x),
    "Contrast": lambda image, x: ImageEnhance.Contrast(image).enhance(1 + x),
    "Sharpness": lambda image, x: ImageEnhance.Sharpness(image).enhance(1 + x),
    "Brightness": lambda image, x: ImageEnhance.Brightness(image).enhance(1 + x),
    "Posterize": lambda image, x: ImageOps.posterize(image, int(x)),
    "Solarize": lambda image, x: ImageOps.solarize(image, x),
    "AutoContrast": lambda image, x: ImageOps.autocontrast(image),
    "Equalize": lambda image, x: ImageOps.equalize(image),
    "Invert": lambda image, x: ImageOps.invert(image),
}
OPERATIONS = (*_PLAIN, "Cutout")  # of which RandAugment draws


def strength(operation: str, level: int) -> float:
    """What the level, 0 to 9, stands for: a slope, a share of the side, degrees, bits, a threshold, or pixels."""
    part = level / (STRENGTHS - 1)
    if operation.startswith("Shear"):
        return 0.3 * part
    if operation.startswith("Translate"):
        return 150 / 331 * part
    most = {"Rotate": 30.0, "Cutout": 20.0, "Posterize": -4.0, "Solarize": -256.0}.get(operation, 0.9) * part
    base = {"Posterize": 8.0, "Solarize": 256.0}.get(operation, 0.0)
    return float(np.round(base + most)) if operation in ("Posterize", "Cutout") else base + most


def changed(image: Image.Image, operation: str, level: int, rng: np.random.Generator) -> Image.Image:
    """The RGB photo after an operation of `OPERATIONS`. What may go either way does so at random; a rotation turns left."""
    amount = strength(operation, level)
    if operation == "Cutout":
        return _with_hole(image, int(amount), rng)
    if operation in _MIRRORED:
        amount *= int(2 * rng.integers(2) - 1)
    return _PLAIN[operation](image, amount)


def _with_hole(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A square of that many pixels, less where it sticks out, is filled; its centre is anywhere."""
    x, y = int(rng.integers(image.width)), int(rng.integers(image.height))
    half, image = size // 2, image.copy()
    image.paste(HOLE, (max(0, x - half), max(0, y - half), min(image.width, x + half), min(image.height, y + half)))
    return image


def rand_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two operations at random, each of a random strength from 1 to 9 and applied half of the time."""
    for _ in range(2):
        operation, level = OPERATIONS[rng.integers(len(OPERATIONS))], int(rng.integers(1, STRENGTHS))
        if rng.random() < 0.5:
            image = changed(image, operation, level, rng)
    return image


def by_policy(image: Image.Image, policies: Sequence[tuple[Step, Step]], rng: np.random.Generator) -> Image.Image:
    """The two steps of a policy at random, each with its probability."""
    for probability, operation, level in policies[int(rng.integers(len(policies)))]:
        if rng.random() < probability:
            image = changed(image, operation, level, rng)
    return image


def cut_out(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """A rectangle of a random colour over the photo, its sides that share of the photo's, less where it sticks out."""
    sides = [int(share * side + 0.5) // 2 for side in image.size]
    centre = [int(rng.integers(side)) for side in image.size]
    first = [max(0, at - half) for at, half in zip(centre, sides, strict=True)]
    last = [min(side, at + half) for at, half, side in zip(centre, sides, image.size, strict=True)]
    colour, image = tuple(rng.integers(0, 256, 3).tolist()), image.copy()
    ImageDraw.Draw(image).rectangle((*first, *last), fill=colour)
    return image

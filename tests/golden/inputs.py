"""Seeded inputs of the goldens: what the originals saw, the tests show to jclip."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

HARD_STRINGS = [
    "",
    " ",
    "a",
    "a photo of a cat.",
    "A PHOTO of a Cat!!!",
    "it's he'll we've I'm you'd they're don't o'clock 'quoted'",
    "1234567890 3.14159 2,000,000",
    "hello\tworld\nnew\r\nline\u00a0nbsp\u3000wide",
    "  leading and trailing   and   inner  ",
    "naïve café résumé São Paulo Ærøskøbing",
    "ÅNGSTRÖM ẞ İstanbul ſ ﬁ ﬂ",
    "汉语和漢字 日本語のテキスト 한국어",
    "Привет мир Ελληνικά עברית العربية हिन्दी ไทย",
    "emoji 😀👍🏽👨‍👩‍👧‍👦🇨🇳 ❤️",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; &quot;twice&quot; &#39;",
    "AT&T R&D &nbsp; &unknown;",
    "â€œmojibakeâ€\x9d cafÃ©",
    "“curly” ‘quotes’ – — … •",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３",
    "zero\u200bwidth\ufeffbom soft\u00adhyphen",
    "control \x07 bell \x1b[31mred\x1b[0m",
    "e\u0301 combining a\u030a n\u0303",
    "snake_case kebab-case camelCase path/to/file.txt C:\\dir",
    "#hashtag @user https://example.com/?q=1&r=2#frag",
    "½ ² ³ ① ⅷ ٣ ४",
    "$5.00 €10 £7 ¥900 100% a+b=c x^2 ~10 <3 :-)",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "l'été qu'il 'S 'T 'RE 'VE 'M 'LL 'D",
    "\U0001f469\u200d\U0001f52c \U00020000 \ue000 \ufffd",
    "\u2028line\u2029para\x85next\x0bvt\x0cff",
]
PHOTO_SIZES = [(61, 40), (40, 61), (33, 33), (100, 37), (37, 101), (32, 47), (48, 31)]
TARGETS = [24, 32, 33]
CROP_BOXES = [(0, 0, 30, 31), (3, 5, 17, 22), (10, 2, 7, 25)]
SHARPNESS = [0.0, 0.5, 1.0, 2.0, 2.3]

_ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " .,;:!?-_/\\'\"()[]{}<>@#$%^*+=~`|",
    "äöüßéèêñçåøæœ",
    "的一是在不了有和人这中大为上个国我以要他",
    "абвгдежзийклмнопрст",
    "αβγδεζηθικλμ",
]
_WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "cat",
    "dog",
    "it's",
    "don't",
    "running",
    "2024",
    "New-York",
    "jittor",
    "clip",
    "&amp;",
]


def random_strings(count: int, seed: int = 20260101) -> list[str]:
    """Strings of words, letters of several scripts and punctuation."""
    rng = random.Random(seed)

    def piece() -> str:
        if rng.random() < 0.4:
            return rng.choice(_WORDS)
        alphabet = rng.choice(_ALPHABETS)
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9)))

    return [rng.choice([" ", " ", "", "  "]).join(piece() for _ in range(rng.randint(1, 9))) for _ in range(count)]


def photo(width: int, height: int, mode: str) -> Image.Image:
    """A seeded picture with smooth and sharp parts, in any of Pillow's modes."""
    rng = np.random.default_rng((width, height))
    y, x = np.mgrid[:height, :width]
    waves = [127 + 80 * np.sin(x / (3 + c) + y / (5 + c)) + 47 * ((x // 7 + y // 5 + c) % 2) for c in range(4)]
    pixels = np.clip(np.stack(waves, -1) + rng.integers(-20, 20, (height, width, 4)), 0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 7)
    if mode in ("RGBA", "CMYK"):
        return Image.frombytes(mode, (width, height), pixels.tobytes())
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))
    if mode == "LA":
        return Image.frombytes("LA", (width, height), np.ascontiguousarray(pixels[:, :, :2]).tobytes())
    return (
        image
        if mode == "RGB"
        else image.quantize(16, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        if mode == "P"
        else image.convert(mode)
    )

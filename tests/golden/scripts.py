"""Seeded texts of many scripts: what tokenizers of other families are compared on."""

from __future__ import annotations

import random

SCRIPTS = {
    "latin": "abcdefghijklmnop XYZ",
    "accented": "äöüßéèêñçåøæœŒŠŽİ",
    "chinese": "的一是在不了有和人这中大为上个国我，。！",
    "japanese": "日本語テキストひらがな・ー",
    "korean": "한국어텍스트조선말ᄒ",
    "cyrillic": "абвгдежзиЙЖё",
    "greek": "αβγδεςΣΑΊ",
    "hebrew": "עברית\u200f",
    "arabic": "العربيةًٌ٣",
    "devanagari": "हिन्दीक्षि",
    "thai": "ไทยภาษา",
    "tamil": "தமிழ்",
    "emoji": "😀👍🏽👨\u200d👩\u200d👧🇨🇳❤\ufe0f🧑🏿\u200d🚀",
    "full-width": "ＦＵＬＬ１２３（）！　",
    "half-width": "ﾊﾝｶｸｶﾅﾞ｡",
    "compatible": "ﬁﬂ①ⅷ½²™ﷺ",
    "combining": "e\u0301a\u030an\u0303o\u0308\u0323",
    "white space": "\t\n\r\x0b\x0c \u00a0\u3000\u2028\u2029\x85",
    "control": "\x01\x07\x1b\x7f\u200b\ufeff\u00ad\u200e",
    "punctuation": "!\"#$%&'()*+,-./:;=?@[\\]^_`{|}~",
    "quotes": "“”‘’–—…•▁",
    "rare": "\U00020000\ue000\ufffd\u0378",
}
LONG = ["pneumonoultramicroscopicsilicovolcanoconiosis" * 3, "一二三四五六七八九十" * 9]
WORDS = ["a photo of a cat", "dog's", "两只猫", "snake_case", "AT&amp;T", "cafÃ©", *LONG]


def script_strings(count: int, seed: int) -> list[str]:
    """Texts of one to six parts, each of a script's letters, a few of another's among them, or whole words."""
    rng = random.Random(seed)
    scripts = list(SCRIPTS.values())

    def part() -> str:
        if rng.random() < 0.15:
            return rng.choice(WORDS)
        own = rng.choice(scripts)
        return "".join(rng.choice(rng.choice(scripts) if rng.random() < 0.1 else own) for _ in range(rng.randint(1, 8)))

    return ["".join(part() + rng.choice(["", " ", " ", "  "]) for _ in range(rng.randint(1, 6))) for _ in range(count)]

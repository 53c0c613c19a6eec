"""Words of English as captions have them: tokens, singular and plural, articles. Plain rules, no data files."""

from __future__ import annotations

import re
import unicodedata

_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|[^\W\d_]+|[^\w\s]")
_HYPHEN = re.compile(r"(?<=\w)[-\u2010\u2011](?=\w)")
_QUOTES = str.maketrans("\u2018\u2019\u02bc\u201c\u201d", "'''\"\"")
_SINGULARS = {
    "men": "man", "women": "woman", "people": "people", "children": "child", "knives": "knife", "shelves": "shelf",
    "buses": "bus", "geese": "goose", "mice": "mouse", "sheep": "sheep", "skis": "skis", "scissors": "scissors",
    "glasses": "glass", "dishes": "dish", "tomatoes": "tomato", "loaves": "loaf", "leaves": "leaf", "wolves": "wolf",
    "calves": "calf",
    # more of the same kinds
    "feet": "foot", "teeth": "tooth", "oxen": "ox", "wives": "wife", "lives": "life", "halves": "half", "scarves": "scarf",
    "hooves": "hoof", "thieves": "thief", "elves": "elf", "tvs": "tv", "pcs": "pc", "cds": "cd", "dvds": "dvd",
    "cookies": "cookie", "brownies": "brownie", "smoothies": "smoothie", "movies": "movie", "hoodies": "hoodie",
    "zombies": "zombie", "selfies": "selfie", "calories": "calorie", "genies": "genie", "shoes": "shoe", "toes": "toe",
    "canoes": "canoe", "horseshoes": "horseshoe", "axes": "axe", "fuses": "fuse", "irises": "iris", "atlases": "atlas",
    "canvases": "canvas", "gases": "gas", "lenses": "lens", "rhinoceroses": "rhinoceros", "quizzes": "quiz",
    "headaches": "headache", "moustaches": "moustache", "mustaches": "mustache",
    # no plurals, though they end like some
    "canvas": "canvas", "lens": "lens", "news": "news", "series": "series", "species": "species", "jeans": "jeans",
    "shorts": "shorts", "trousers": "trousers", "pants": "pants", "tights": "tights", "pliers": "pliers",
    "clothes": "clothes", "binoculars": "binoculars", "tweezers": "tweezers", "christmas": "christmas",
}  # fmt: skip
_PLURALS = {one: many for many, one in reversed(_SINGULARS.items()) if one != many}
_PLURALS |= {"person": "people", "ski": "skis", "glass": "glasses", "hat": "hats"}
_CONSONANT_SOUND = re.compile(r"(?:uni(?!n)|use|usu|eur|ewe|one\b|once|ufo)")
_VOWEL_SOUND = re.compile(r"(?:hour|honest|honou?r|heir)")


def tokens_of(text: str) -> list[str]:
    """Returns the lower-case words, numbers and marks of a text in order; "hot-dog" is two words, "dog's" is `dog's`.

    Full-width and other compatibility forms become plain (NFKC), curly quotes straight; accents are dropped. A run of
    letters of another script is one token.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
        text = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf"))
        text = unicodedata.normalize("NFC", text)
    if "-" in text or not text.isascii():
        text = _HYPHEN.sub(" ", text)
    return _TOKEN.findall(text.lower())


def singular(word: str) -> str:
    """Returns the singular of a lower-case word: knives → knife, horses → horse, dishes → dish, bus → bus, women's → woman.

    A table of exceptions first; then -ies → y in words of over four letters, -(ss|x|zz|ch|sh)es and -oes lose es, other
    words their s, except -ss, -us, -is and words under four letters.
    """
    word = word.removesuffix("'s")
    if (known := _SINGULARS.get(word)) is not None:
        return known
    if len(word) < 4 or word[-1] != "s" or word.endswith(("ss", "us", "is")):
        return f"{word[:-3]}man" if word.endswith("men") and len(word) > 5 else word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "zzes", "ches", "shes", "oes")):
        return word[:-2]
    if word.endswith("uses") and not word.endswith(("ouses", "auses")):
        return word[:-2]
    return word[:-1]


def plural(word: str) -> str:
    """Returns the plural of a lower-case noun, the last word of a phrase inflected: `singular` leads back."""
    head, blank, last = word.rpartition(" ")
    return f"{head}{blank}{_plural(last)}"


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if _SINGULARS.get(word) == word:
        return word
    if word.endswith("man") and word != "human":
        return f"{word[:-3]}men"
    if word.endswith("y") and word[-2:-1] not in (*"aeiou", ""):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "z", "ch", "sh")) else f"{word}s"


def with_article(phrase: str) -> str:
    """Returns the phrase after "a" or "an", by its first sound as far as letters show it."""
    low = phrase.lower()
    vowel = (low[:1] in (*"aeiou", "") and not _CONSONANT_SOUND.match(low)) or bool(_VOWEL_SOUND.match(low))
    return f"{'an' if vowel else 'a'} {phrase}"

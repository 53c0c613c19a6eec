"""In which script a text is written, and whether weights learned to read it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from jclip.errors import notice, quoted

NAMES = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"} | {
    script: script.title()
    for script in (
        "CYRILLIC",
        "ARABIC",
        "HEBREW",
        "DEVANAGARI",
        "THAI",
        "GREEK",
        "BENGALI",
        "TAMIL",
        "TELUGU",
        "KANNADA",
        "MALAYALAM",
        "GUJARATI",
        "GURMUKHI",
        "SINHALA",
        "KHMER",
        "LAO",
        "MYANMAR",
        "ETHIOPIC",
        "TIBETAN",
        "GEORGIAN",
        "ARMENIAN",
    )
}  # fmt: skip - the first word of a letter's Unicode name → what people call the script
READERS = "Chinese-CLIP, SigLIP 2 or open_clip's xlm-roberta towers"  # weights that read other scripts
_warned: set[str] = set()


def script_of(text: str) -> str:
    """What most of a text's letters are of: "LATIN", "CJK", … as Unicode names them; "" without letters."""
    counts = Counter(unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
    counts = Counter({("CJK" if name.startswith("CJK") else name): n for name, n in counts.items() if name})
    return counts.most_common(1)[0][0] if counts else ""


def warn_unread(texts: Iterable[str], tokenizer: str = "openai-bpe") -> None:
    """One line on stderr, once per process and script, where a text is in a script that the weights never learned.

    All weights that CLIP's own vocabulary belongs to were trained on English captions: their bytes of other scripts
    become tokens without meaning, and results are random.
    """
    if tokenizer != "openai-bpe":
        return
    for text in texts:
        script = script_of(text)
        if script in NAMES and script not in _warned:
            _warned.add(script)
            notice(
                f"{quoted(text, 60)} is {NAMES[script]}, which these weights never learned (English captions): results "
                f"will be near random; write it in English, or use weights that read it: {READERS} (not read by jclip yet)"
            )

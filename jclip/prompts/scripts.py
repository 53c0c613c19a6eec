"""In which script a text is written, and whether weights learned to read it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from jclip.errors import notice, quoted
from jclip.prompts.tokenizer import OPENAI_BPE

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
READERS = "Chinese-CLIP, SigLIP 2 or MetaCLIP 2 worldwide"  # weights that read other scripts
SIGLIP_ENGLISH = "siglip-english"  # SentencePiece of 32,000 English pieces: other scripts are unknown to it
LEARNED = {  # kind of vocabulary → the captions that its weights learned from, and their scripts beside Latin
    OPENAI_BPE: ("English", ()),
    SIGLIP_ENGLISH: ("English", ()),
    "wordpiece": ("Chinese", ("CJK",)),
}
_warned: set[str] = set()


def script_of(text: str) -> str:
    """What most of a text's letters are of: "LATIN", "CJK", … as Unicode names them; "" without letters."""
    counts = Counter(unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
    counts = Counter({("CJK" if name.startswith("CJK") else name): n for name, n in counts.items() if name})
    return counts.most_common(1)[0][0] if counts else ""


def warn_unread(texts: Iterable[str], tokenizer: str = OPENAI_BPE) -> None:
    """One line on stderr, once per process and script, where a text is in a script that the weights never learned.

    tokenizer: the kind of their vocabulary. All weights that CLIP's own belongs to were trained on English captions: their
    bytes of other scripts become tokens without meaning, and results are random. A WordPiece is Chinese-CLIP's; of SigLIP
    those with the English vocabulary learned English captions alone.
    """
    for text in texts:
        line, script = unread(text, tokenizer), script_of(text)
        if line and script not in _warned:
            _warned.add(script)
            notice(line)


def unread(text: str, tokenizer: str) -> str:
    """What is to be said of a text in a script that weights of this vocabulary never learned; empty for others."""
    language, own = LEARNED.get(tokenizer, ("", ()))
    script = script_of(text)
    if not language or script not in NAMES or script in own:
        return ""
    return (
        f"{quoted(text, 60)} is {NAMES[script]}, which these weights never learned ({language} captions): results "
        f"will be near random; write it in {language}, or use weights that read it: {READERS}"
    )


def warn_names(names: Sequence[str], prompts: Sequence[Sequence[str]], tokenizer: str) -> None:
    """`warn_unread` of class names that stand in their own prompts, and `warn_mixed` of the first name."""
    said = [any(name.replace("_", " ") in prompt for prompt in own) for name, own in zip(names, prompts, strict=True)]
    warn_unread((name for name, is_said in zip(names, said, strict=True) if is_said), tokenizer)
    warn_mixed(names[0], prompts[0][0], tokenizer)


def warn_mixed(name: str, prompt: str, tokenizer: str) -> None:
    """One line on stderr where a class has a Chinese name, and weights that learned Chinese read it in an English prompt."""
    if tokenizer == "wordpiece" and script_of(name) == "CJK" and script_of(prompt.replace(name, "")) == "LATIN":
        notice(
            f"{quoted(prompt, 60)} is English around a Chinese name: prompts in Chinese fit these weights better, such as "
            "--templates chinese (templates=chinese in a config) or --templates '一张{}的照片。'"
        )

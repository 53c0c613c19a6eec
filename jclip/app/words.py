"""Texts of the page in English and Chinese: the browser's language chooses, or `jclip app --language`.

`jclip/assets/app_words/<tab>.yaml` holds a tab's texts, `key: [English, Chinese]`; `t("<tab>.<key>")` is what the browser
translates, `said` a text that Python makes in an answer.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Literal, get_args

from jclip.errors import ConfigError
from jclip.paths import ASSETS
from jclip.postponed import gr
from jclip.readers.strict_yaml import read_yaml

Language = Literal["en", "zh"]
LANGUAGES = get_args(Language)
CHINESE = ("zh", "zh-CN", "zh-TW", "zh-HK", "zh-SG", "zh-Hans", "zh-Hant")  # as browsers call it
_forced: list[Language] = []


def force(language: Language | None) -> None:
    """From now on all texts are in that language; None: in the browser's."""
    _forced[:] = [language] if language else []


@functools.cache
def texts() -> dict[str, tuple[str, str]]:
    """`tab.key` → English, Chinese. Raises `ConfigError` for an entry that is no pair of texts."""
    found = {}
    for file in sorted((ASSETS / "app_words").glob("*.yaml")):
        for key, pair in read_yaml(file).items():
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise ConfigError(f"{file}: {key} must be a list of two texts, English and Chinese")
            found[f"{file.stem}.{key}"] = (pair[0], pair[1])
    return found


def said(key: str, language: Language, **values: Any) -> str:
    """The text in that language, `{name}` filled in."""
    text = texts()[key][LANGUAGES.index(language)]
    return text.format(**values) if values else text


def t(key: str) -> Any:
    """What a component is given: translated by the browser, or the text where a language is forced."""
    if _forced:
        return said(key, _forced[0])
    texts()[key]  # a wrong key ends here, not on screen
    return gr.I18n()(key)


def translations() -> Any:
    """All texts as Gradio hands them to browsers."""
    by_language = [{key: pair[place] for key, pair in texts().items()} for place in range(len(LANGUAGES))]
    english, chinese = by_language
    return gr.I18n(en=english, **dict.fromkeys(CHINESE, chinese))


def language(request: Any = None) -> Language:
    """The language of a request: what is forced, else the first of Accept-Language that is there, else English."""
    if _forced:
        return _forced[0]
    accepted = request.headers.get("accept-language", "") if request is not None else ""
    ranked = sorted(accepted.split(","), key=_weight, reverse=True)  # stable
    return next((own for one in ranked for own in LANGUAGES if one.strip().lower().startswith(own)), "en")


def _weight(one: str) -> float:
    found = re.search(r";\s*q=([01](?:\.\d*)?)", one)
    return float(found[1]) if found else 1.0

"""The words of a page in English and Chinese: `Words("zh")("curves.title")`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from jclip.paths import ASSETS

LANGUAGES = ("en", "zh")


class Words:
    """Texts by their names in one language; `{…}` in them is filled from what is given. Numbers get commas."""

    def __init__(self, language: str = "en"):
        self.language = language if language in LANGUAGES else "en"

    def __call__(self, name: str, /, **values: Any) -> str:
        shown = {k: f"{v:,}" if type(v) is int else v for k, v in values.items()}
        return _texts()[name][LANGUAGES.index(self.language)].format(**shown)

    def of_figure(self, name: str) -> str:
        """The title of a figure, by default its own name."""
        own = _texts().get(f"figure.{name}")
        return own[LANGUAGES.index(self.language)] if own else name


@cache
def _texts() -> Mapping[str, tuple[str, str]]:
    with open(ASSETS / "report_words.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file)


def language_of_locale() -> str:
    """`zh` where the locale of messages is Chinese, else `en`."""
    named = next((os.environ[k] for k in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(k)), "")
    return "zh" if named.lower().startswith("zh") else "en"

"""Texts and links as HTML that says nothing but them: names of files and captions may hold anything."""

from __future__ import annotations

import html
from urllib.parse import quote

from jclip.errors import printable

_TEMPLATES = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})  # Gradio fills in templates


def escaped(text: object, most: int = 2000) -> str:
    """The text on one line, for an element or a quoted attribute; of a longer one the end, which tells paths apart."""
    shown = printable(str(text), 20_000)
    if len(shown) > most:
        shown = f"…{shown[1 - most :]}"
    return html.escape(shown, quote=True).translate(_TEMPLATES)


def address(picture: str) -> str:
    """Where the browser finds a picture that the desk made."""
    return f"/gradio_api/file={quote(picture)}"

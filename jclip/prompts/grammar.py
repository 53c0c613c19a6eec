"""English in prompts: a or an before a word, the plural of a name. Imports the library `inflect` only when asked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import cache

from jclip.errors import SetupError

_SPOKEN = re.compile(r"\w[\w'’./-]*")
_AN = re.compile(r"8|1[18](?:\d{2,3})?(?!\d)|[AEFHILMNORSX](?=[\d/-])")  # 8 to 89, 11, 18th, 1800; R8, F/A-18, X-ray


def article_before(text: str) -> str:
    """`a` or `an`, as the first word of `text` is spoken; nothing where it has no word."""
    word = _SPOKEN.search(text)
    return _article(word[0]) if word else ""


@cache
def _article(word: str) -> str:
    return "an" if _AN.match(word) else _engine().a(word).split(" ", 1)[0]


@cache
def plural_of(name: str) -> str:
    """The plural of a name, of its last word mostly: apple pies, heads of crocodiles, jeans.

    What does not end in a lower-case letter of ASCII stays as it is: MD-80, SUV, 猫.
    """
    if not (name.isascii() and name[-1:].islower()):
        return name
    plural = _engine().plural_noun(name)
    return name if plural == name + "s" and name.endswith("s") else plural  # "jeanss": jeans are many already


@cache
def _engine():
    try:
        with _unchecked():
            import inflect
    except ImportError as e:
        raise SetupError("articles and plurals need the package inflect: pip install inflect") from e
    return inflect.engine()


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """A block in which typeguard leaves functions as they are: to rewrite all of inflect's takes it a second per process."""
    try:
        import typeguard
    except ImportError:  # which not every release of inflect uses
        yield
        return
    before, typeguard.typechecked = typeguard.typechecked, lambda target: target
    try:
        yield
    finally:
        typeguard.typechecked = before

"""The command that does the same as a view, to copy into a terminal."""

from __future__ import annotations

import os
import shlex
from typing import Any

from jclip.errors import printable
from jclip.postponed import gr


def shown(command: str, *words: object, **options: object) -> str:
    """`jclip search photos "a dog" --top 12` of `shown("search", "photos", "a dog", top=12)`.

    An option that is None, False or empty is left out, True is the option alone, a list repeats it; `_` becomes `-`.
    A word that begins with `-` stands behind `--`, a lone sign excepted, which `jclip search` reads as one.
    """
    plain = [str(word) for word in words]
    behind = next((i for i, w in enumerate(plain) if w.startswith("-") and len(w) > 1), len(plain))
    given = [*plain[:behind]]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            given.append(option)
        elif isinstance(value, (list, tuple)):
            given += [word for one in value for word in _option(option, one)]
        elif value is not None and value is not False and value != "":
            given += _option(option, value)
    if plain[behind:]:
        given += ["--", *plain[behind:]]
    return printable(" ".join(["jclip", command, *map(quoted, given)]), 20_000)


def quoted(word: str) -> str:
    """A word for the shell; of characters that can't be seen or turn the line around, as bash and zsh write them."""
    if word.isprintable():
        return shlex.quote(word)
    seen = (c.replace("\\", r"\\").replace("'", r"\'") if c.isprintable() else _octal(c) for c in word)
    return f"$'{''.join(seen)}'"


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def _option(option: str, value: object) -> list[str]:
    """Two words; one where the value would pass for an option."""
    return [f"{option}={value}"] if str(value).startswith("-") else [option, str(value)]


def box(label: Any, **more: Any) -> Any:
    """Where a view shows its command, with a button that copies it."""
    return gr.Textbox(
        label=label, interactive=False, buttons=["copy"], lines=1, max_lines=4, elem_classes="command", **more
    )

"""A self-contained page: its style, its one script, tables, and what escapes names. Nothing outside the file is asked for."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass

from jclip.errors import printable
from jclip.paths import ASSETS
from jclip.report.page_words import Words

LONGEST = 300  # letters of a name
STYLE = (ASSETS / "report_page.css").read_text(encoding="utf-8")
SCRIPT = (ASSETS / "report_page.js").read_text(encoding="utf-8")
RUN_SCRIPT = f"{SCRIPT}\nreportPage(document);"
_TEMPLATES = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})
MOST_ROWS = 2000  # of a table
FILTERED = 20  # rows from which on a table has a field to filter it


def clean(text: object, most: int = LONGEST) -> str:
    """Text of anybody's as HTML: on one line, escaped, cut to `most` letters."""
    return escaped(printable(" ".join(str(text).split()), most))


def escaped(text: str) -> str:
    """Text as HTML, for an element or a quoted attribute. What page builders take for templates is escaped as well."""
    return html.escape(text).translate(_TEMPLATES)


@dataclass(frozen=True)
class Cell:
    """A table's cell. value: what it is sorted by, by default its text. share: in [0, 1], drawn as a bar. kind: a class of
    the style: `number`, `gain`, `loss`."""

    text: str
    value: float | None = None
    share: float | None = None
    kind: str = ""


def table(words: Words, head: Sequence[str], rows: Sequence[Sequence[str | Cell]], sortable: bool = True) -> str:
    """A table that a click on a heading sorts; of very many rows the first are shown, and the rest counted."""
    shown = rows[:MOST_ROWS]
    numeric = [any(isinstance(row[i], Cell) and row[i].value is not None for row in shown) for i in range(len(head))]
    heads = "".join(_head(name, number, sortable) for name, number in zip(head, numeric, strict=True))
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in shown)
    field = ""
    if sortable and len(shown) >= FILTERED:
        said = clean(words("table.filter"))
        field = f'<input class="filter" type="search" placeholder="{said}" aria-label="{said}">'
    more = (
        f'<p class="note">{clean(words("table.more", count=len(rows) - len(shown)))}</p>'
        if len(rows) > len(shown)
        else ""
    )
    return (
        f'<div class="tablebox">{field}<div class="scroll" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{more}</div>"
    )


def _head(name: str, numeric: bool, sortable: bool) -> str:
    kind = ' class="number"' if numeric else ""
    if not sortable:
        return f'<th scope="col"{kind}>{clean(name)}</th>'
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{clean(name)}</button></th>'


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{clean(cell)}</td>"
    kinds = " ".join(filter(None, ["number" if cell.value is not None else "", cell.kind]))
    marks = f' class="{kinds}"' if kinds else ""
    value = f' data-v="{cell.value:.9g}"' if cell.value is not None else ""
    bar = (
        f'<span class="track"><span style="width:{100 * cell.share:.1f}%"></span></span>'
        if cell.share is not None
        else ""
    )
    return f"<td{marks}{value}>{clean(cell.text)}{bar}</td>"


def section(title: str, body: str, note: str = "", name: str = "") -> str:
    """A part of the page below its heading; title and note are text, body is HTML."""
    said = f'<p class="note">{clean(note, 2000)}</p>' if note else ""
    mark = f' id="{clean(name)}"' if name else ""
    return f"<section{mark}>\n<h2>{clean(title)}</h2>\n{said}{body}\n</section>"


def paragraph(text: str, kind: str = "note") -> str:
    """A paragraph of text."""
    return f'<p class="{kind}">{clean(text, 4000)}</p>'


def folded(title: str, body: str) -> str:
    """What is shown after a click on its title; body is HTML."""
    return f"<details><summary>{clean(title)}</summary>\n{body}\n</details>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names with their values."""
    rows = "".join(f"<dt>{clean(name)}</dt><dd>{clean(value, 2000)}</dd>" for name, value in pairs)
    return f'<dl class="facts">{rows}</dl>'


@dataclass(frozen=True)
class Card:
    """A figure in large letters with its name and a note. change: below or above 0 colours the note."""

    name: str
    value: str
    note: str = ""
    change: float = 0.0


def cards(given: Sequence[Card]) -> str:
    """Figures beside each other."""
    shown = []
    for card in given:
        kind = "gain" if card.change > 0 else "loss" if card.change < 0 else ""
        note = f'<span class="{kind or "note"}">{clean(card.note)}</span>' if card.note else ""
        shown.append(
            f'<div class="card"><span class="name">{clean(card.name)}</span><b>{clean(card.value)}</b>{note}</div>'
        )
    return f'<div class="cards">{"".join(shown)}</div>'


def fragment(parts: Sequence[str], title: str = "", about: str = "") -> str:
    """Parts as HTML to be set into a page of others that has `STYLE`, and calls `SCRIPT`'s function for the element."""
    head = f'<h1>{clean(title)}</h1><p class="note">{clean(about, 2000)}</p>' if title else ""
    body = "\n".join(parts)
    return f'<div class="report">\n{head}{body}\n</div>'


def page(words: Words, title: str, about: str, parts: Sequence[str], command: str) -> str:
    """The whole file. title, about: text; parts: HTML; command: what made the page, shown at its end."""
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_digest(RUN_SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="{words.language}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{clean(title)}</title>
<style>{STYLE}</style>
<noscript><style>.report .filter {{ display: none }}</style></noscript>
</head>
<body class="report-page">
<main class="report">
<header><h1>{clean(title)}</h1><p class="note">{clean(about, 2000)}</p></header>
{body}
<footer><p class="note">{clean(words("page.made_by"))}</p>
<pre class="command">{escaped(printable(command, 20_000))}</pre></footer>
</main>
<script>{RUN_SCRIPT}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

"""A contact sheet as a page: one file with its photos inside, which needs no network and fits a phone."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from jclip.data.stored_photos import spoken_path
from jclip.errors import printable
from jclip.report.predictions import UNKNOWN, Predictions, shorten
from jclip.report.tiles import EMPTY, Section, Tile, small_photo

SIDE = 160  # pixels of a photo's longer side

STYLE = """
:root { color-scheme: light dark; --ink: #1e1e22; --pale: #6c717c; --track: #e6e8ec; --others: #a5acb8; --back: #f4f5f7;
  --paper: #fff; --right: #146e28; --wrong: #b41e1e; --unknown: #6e6e78; --open: #3c69af }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --pale: #9a9fab; --track: #35383f; --others: #717885;
  --back: #26282d; --paper: #18191c; --right: #4cae62; --wrong: #e5605c; --unknown: #8b8b96; --open: #7da7ea } }
* { box-sizing: border-box; margin: 0 }
body { background: var(--paper); color: var(--ink); font: 14px/1.35 system-ui, sans-serif; padding: 20px 16px }
main { max-width: 1160px; margin: 0 auto }
h1 { font-size: 20px } header p, h2 small, .file, .prompt { color: var(--pale) }
h2 { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; font-size: 17px;
  border-bottom: 1px solid var(--track); padding-bottom: 6px; margin: 28px 0 0 }
h2 small { font-size: 13px; font-weight: normal }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 24px 20px; margin-top: 16px }
figure { position: relative; min-width: 0; overflow-wrap: anywhere }
img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; background: var(--back);
  border-radius: 6px }
ol { list-style: none; padding: 0; margin-top: 6px } li { color: var(--pale); margin-top: 5px }
li:first-child { color: var(--ink) }
li div { display: flex; justify-content: space-between; gap: 8px } li b { font-weight: normal; white-space: nowrap }
.track { display: block; height: 5px; background: var(--track); border-radius: 2px; overflow: hidden }
.bar { display: block; height: 100%; background: var(--others) }
.right li:first-child .bar { background: var(--right) } .wrong li:first-child .bar { background: var(--wrong) }
.unknown li:first-child .bar { background: var(--unknown) } .open li:first-child .bar { background: var(--open) }
.wrong li:first-child div { color: var(--wrong) } .right li:first-child div { color: var(--right) }
.true { margin-top: 7px } .file, .prompt { font-size: 12px; margin-top: 4px } .prompt { font-style: italic }
.badge { position: absolute; top: 6px; left: 6px; background: var(--unknown); color: #fff; font-size: 12px;
  padding: 1px 7px; border-radius: 4px }
"""


def page(parts: Sequence[Section], photos: int, said: str, title: str = "") -> str:
    """The HTML of a sheet; photos: how many there are in all; said: the line below its title, by default their numbers.

    Raises `DataError` for a photo that has stopped to decode.
    """
    shown = sum(len(part.tiles) for part in parts)
    heading = (title or f"{shown} of {photos} photos") if shown else EMPTY
    body = "\n".join(map(_section, parts))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title) or f"{heading} with their classes"}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{html.escape(heading)}</h1><p>{html.escape(said)}</p></header>
{body}
</main>
</body>
</html>
"""


def legend(parts: Sequence[Section], predictions: Predictions) -> str:
    """How many classes there are, and what colours and badges mean."""
    said = [f"{len(predictions.classnames)} classes"]
    if any(tile.verdict in ("right", "wrong") for part in parts for tile in part.tiles):
        said.append("green: right, red: wrong")
    if predictions.unknown > 0:
        said.append(f"{UNKNOWN}: no class reaches {100 * predictions.unknown:g} %")
    return " · ".join(said)


def _section(part: Section) -> str:
    head = f"<h2>{html.escape(part.title)} <small>{part.span}</small></h2>\n" if part.title else ""
    tiles = "\n".join(map(_figure, part.tiles))
    return f'<section>\n{head}<div class="tiles">\n{tiles}\n</div>\n</section>'


def _figure(tile: Tile) -> str:
    """One photo: picture, classes with bars, then what else there is to say of it."""
    name, place = html.escape(tile.file), html.escape(printable(spoken_path(tile.photo)))
    badge = f'<span class="badge">{html.escape(tile.badge)}</span>' if tile.verdict == "unknown" else ""
    true = f'<p class="true">is {html.escape(tile.true)}</p>' if tile.true else ""
    prompt = f'<p class="prompt">{html.escape(tile.prompt)}</p>' if tile.prompt else ""
    classes = "".join(f"<li>{_share(*one, tile.number(rank))}</li>" for rank, one in enumerate(tile.best))
    return (
        f'<figure class="{tile.verdict}"><img src="{_data_uri(tile)}" alt="{name}">{badge}'
        f"<figcaption><ol>{classes}</ol>{true}{prompt}"
        f'<p class="file" title="{place}">{html.escape(shorten(tile.file, 28))}</p></figcaption></figure>'
    )


def _share(name: str, share: float, number: str) -> str:
    return (
        f"<div><span>{html.escape(name)}</span> <b>{html.escape(number)}</b></div>"
        f'<span class="track"><span class="bar" style="width:{100 * share:.1f}%"></span></span>'
    )


def _data_uri(tile: Tile) -> str:
    photo, written = small_photo(tile, SIDE), io.BytesIO()
    photo.thumbnail((SIDE, SIDE))
    photo.save(written, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"

"""What a search found, as a grid of pictures that can be opened, ticked, and searched for the like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jclip.app import words
from jclip.app.markup import address, escaped
from jclip.features import gallery as galleries

NAME, CAPTION = 60, 160  # characters below a picture

EVENTS = """
const send = (name, part, more = {}) => {
  const tile = part.closest('[data-row]');
  trigger(name, {row: Number(tile.dataset.row), mark: tile.dataset.mark, ...more});
};
const count = () => {
  const all = element.querySelectorAll('input.tick');
  const ticked = element.querySelectorAll('input.tick:checked').length;
  document.querySelectorAll('.ticked-count').forEach(e => { e.textContent = all.length ? `${ticked} / ${all.length}` : ''; });
};
element.addEventListener('click', event => {
  if (event.target.closest('button.similar')) { send('similar', event.target); }
  else if (event.target.closest('button.hidden')) { send('similar', event.target, {copies: true}); }
  else if (event.target.closest('button.open')) { send('open', event.target); }
});
element.addEventListener('change', event => {
  if (event.target.matches('input.tick')) {
    event.target.closest('.tile').classList.toggle('ticked', event.target.checked); count();
  }
});
watch('value', count);
"""
DIALOG = """
const show = () => { const box = element.querySelector('dialog'); if (box && !box.open) { box.showModal(); } };
element.addEventListener('click', event => {
  const box = element.querySelector('dialog');
  if (event.target.closest('button.similar')) {
    const tile = event.target.closest('[data-row]');
    box.close();
    trigger('similar', {row: Number(tile.dataset.row), mark: tile.dataset.mark});
  } else if (box && (event.target === box || event.target.closest('button.close'))) { box.close(); }
});
watch('value', show);
"""
TICKED = "[...document.querySelectorAll('#found input.tick:checked')].map(e => Number(e.value))"
TICK_ALL = """(() => {{ document.querySelectorAll('#found input.tick').forEach(e => {{
  e.checked = {on}; e.dispatchEvent(new Event('change', {{bubbles: true}})); }}); }})"""


def mark_of(gallery: galleries.Gallery, row: int) -> str:
    """What shows that a row is still the photo that was seen."""
    return str(gallery.store.rows[row]["sha256"])[:16]


def grid(gallery: galleries.Gallery, found: galleries.Found, pictures: Sequence[str], language: words.Language) -> str:
    """The hits in order; what is no better than the query's background is dimmed."""
    if not found.hits:
        return f"<p class='empty'>{escaped(words.said('search.nothing', language))}</p>"
    compared = found.background.deviation > 0
    largest = max(found.background.line, *(hit.z for hit in found.hits)) if compared else 1.0
    parts = []
    for rank, (hit, picture) in enumerate(zip(found.hits, pictures, strict=True), start=1):
        share = min(1.0, max(0.02, (hit.z if compared else hit.score) / largest))
        parts.append(_tile(gallery, hit, rank, picture, share, language))
    return f"<div class='grid'>{''.join(parts)}</div>"


def _tile(
    gallery: galleries.Gallery, hit: galleries.Hit, rank: int, picture: str, share: float, language: words.Language
) -> str:
    name = escaped(Path(hit.path).name, NAME)
    similar = escaped(words.said("search.similar", language))
    alike = ""
    if hit.hidden:
        said = escaped(words.said("search.hidden", language, count=f"{hit.hidden:,}"))
        alike = (
            f"<button type='button' class='hidden' title='{said}' aria-label='{said}: {name}'>+{hit.hidden}</button>"
        )
    caption = f"<p class='caption'>{escaped(hit.caption[:CAPTION])}</p>" if hit.caption else ""
    return (
        f"<figure class='tile{'' if hit.above else ' low'}' data-row='{hit.row}' data-mark='{mark_of(gallery, hit.row)}'>"
        f"<button type='button' class='open' title='{escaped(hit.path)}' aria-label='{rank}: {name}'>"
        f"<img src='{address(picture)}' alt='{name}'></button>"
        f"<figcaption><div class='line'><label class='name'><input type='checkbox' class='tick' value='{hit.row}'>"
        f"<span>{name}</span></label></div>"
        f"<div class='line'><span class='meter' title='z {hit.z:.1f}'><i style='width:{100 * share:.0f}%'></i></span>"
        f"<span class='score'>{hit.score:.3f}</span>{alike}"
        f"<button type='button' class='similar' title='{similar}' aria-label='{similar}: {name}'>≈</button></div>"
        f"{caption}</figcaption></figure>"
    )


def large(gallery: galleries.Gallery, row: int, picture: str, language: words.Language) -> str:
    """One photo large, with all that the gallery knows of it."""
    found = gallery.store.rows[row]
    path = gallery.path_of(row)
    facts = [
        (words.said("search.path", language), path),
        ("caption", found["caption"]),
        *found["columns"].items(),
        (words.said("search.bytes", language), f"{found['size']:,}" if isinstance(found["size"], int) else None),
        (words.said("search.row", language), f"row:{row}"),
    ]
    lines = "".join(
        f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>"
        for name, value in facts
        if value not in (None, "")
    )
    return (
        f"<dialog class='large' aria-label='{escaped(os.path.basename(path), NAME)}'><div data-row='{row}' "  # noqa: PTH119
        f"data-mark='{mark_of(gallery, row)}'><img src='{address(picture)}' alt=''><table>{lines}</table><p>"
        f"<button type='button' class='similar wide'>≈ {escaped(words.said('search.similar', language))}</button> "
        f"<button type='button' class='close wide'>{escaped(words.said('search.close', language))}</button>"
        "</p></div></dialog>"
    )

"""Photos with buttons for yes, no and unsure, which the keys y, n and ? press as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jclip.app import words
from jclip.app.markup import address, escaped
from jclip.features import gallery as galleries

NAME = 60  # characters
ANSWERS = {"yes": ("✓", "y"), "no": ("✕", "n"), "unsure": ("?", "?")}  # sign, key
EVENTS = """
const give = (tile, answer) => {
  if (!tile || tile.dataset.answer) { return; }
  tile.dataset.answer = answer;
  const open = element.querySelector('.ask-tile:not([data-answer])');
  if (open) { open.focus(); }
  trigger('answer', {row: Number(tile.dataset.row), answer});
};
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-gives]');
  if (button) { give(button.closest('.ask-tile'), button.dataset.gives); }
});
element.addEventListener('keydown', event => {
  const answer = {y: 'yes', n: 'no', '?': 'unsure'}[event.key.toLowerCase()];
  if (answer && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault(); give(event.target.closest('.ask-tile'), answer);
  }
});
"""


def grid(
    gallery: galleries.Gallery,
    rows: Sequence[int],
    pictures: Sequence[str],
    answers: Mapping[int, str],
    language: words.Language,
) -> str:
    """The photos that are asked about; answers: of those that are answered already."""
    tiles = []
    for number, (row, picture) in enumerate(zip(rows, pictures, strict=True), start=1):
        path = gallery.path_of(row)
        name = escaped(Path(path).name, NAME)
        given = f" data-answer='{escaped(answers[row])}'" if row in answers else ""
        buttons = "".join(
            f"<button type='button' data-gives='{answer}' title='{escaped(words.said(f'teach.{answer}', language))} ({key})' "
            f"aria-label='{escaped(words.said(f'teach.{answer}', language))}: {name}'>{sign}</button>"
            for answer, (sign, key) in ANSWERS.items()
        )
        tiles.append(
            f"<figure class='ask-tile' tabindex='0' data-row='{row}'{given} aria-label='{number}: {name}'>"
            f"<img src='{address(picture)}' alt='{name}' title='{escaped(path)}'><figcaption>{buttons}</figcaption></figure>"
        )
    return f"<div class='ask-grid'>{''.join(tiles)}</div>"


def strip(gallery: galleries.Gallery, rows: Sequence[int], pictures: Sequence[str], language: words.Language) -> str:
    """The best photos by the answers so far, small."""
    images = "".join(
        f"<img src='{address(picture)}' alt='{escaped(Path(gallery.path_of(row)).name, NAME)}' "
        f"title='{escaped(gallery.path_of(row))}'>"
        for row, picture in zip(rows, pictures, strict=True)
    )
    return f"<p class='strip-title'>{escaped(words.said('teach.best', language))}</p><div class='strip'>{images}</div>"

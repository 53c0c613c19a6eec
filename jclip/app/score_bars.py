"""What was found of photos as HTML: bars of one photo's scores, a table of all photos. All texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jclip.app import words
from jclip.app.markup import address, escaped
from jclip.functional.metrics import ranking
from jclip.report import asked_photos, predictions, tags

BARS = 10  # of one photo
TAGS = 5  # of a photo in the table
SHORT, LONG = 60, 300  # characters of a name, of another cell
_FIGURE = ' class="sb-figure"'
PICK = """
element.addEventListener('click', event => {
  const picked = event.target.closest('button.sb-pick');
  if (picked) { trigger('select', {row: Number(picked.dataset.row)}); }
});
"""  # a photo of the table is clicked


class Bar(NamedTuple):
    """A class's score: how long its bar is, of 1; limit: where its threshold lies; chosen: whether the photo has it."""

    name: str
    length: float
    number: str
    chosen: bool = False
    limit: float | None = None
    limit_number: str = ""


def bars_of(found: asked_photos.Found, row: int) -> list[Bar]:
    """The best classes of a photo; of tags all that it has among them, and what they are compared with."""
    best = ranking(found.scores[row : row + 1], BARS)[0]
    if isinstance(found, predictions.Predictions):
        one = found.at(row)
        return [
            Bar(
                found.classnames[k],
                float(chance),
                _percent(chance, found.sigmoid),
                bool(one.known[0] and k == best[0]),
            )
            for k, chance in zip(best, one.probabilities[0, best], strict=True)
        ]
    own = found.limits_of(row)
    lengths, limits = _lengths(found.scores[row], own)
    return [
        Bar(found.classnames[k], float(lengths[k]), tags.number(found, row, k), bool(found.has[row, k]),
            None if np.isnan(limits[k]) else float(limits[k]), "" if np.isnan(own[k]) else tags.as_read(found, own[k]))
        for k in best
    ]  # fmt: skip


def _lengths(scores: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and thresholds (C,) between 0 and 1: as they are where they are shares or probabilities, else between the
    least and the greatest."""
    values = np.concatenate([scores, limits[np.isfinite(limits)]]).astype(float)
    low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    return tuple(np.clip((of - low) / max(high - low, 1e-12), 0, 1) for of in (scores, limits))


def bars_html(asked: asked_photos.Asked, row: int, name: str, picture: str, language: words.Language) -> str:
    """A photo, large, with its bars. picture: what the desk made of it."""
    found, lines = asked.found, []
    for bar in bars_of(found, row):
        limit = ""
        if bar.limit is not None:
            title = words.said("classify.threshold_at", language, number=bar.limit_number)
            limit = f'<u style="left:{100 * bar.limit:.2f}%" title="{escaped(title)}"></u>'
        lines.append(
            f'<div class="sb-row{" sb-on" if bar.chosen else ""}"><span class="sb-name">{escaped(bar.name)}</span>'
            f'<span class="sb-line"><i style="width:{100 * bar.length:.2f}%"></i>{limit}</span>'
            f'<span class="sb-number">{escaped(bar.number)}</span></div>'
        )
    return (
        f'<div class="sb-answer"><figure class="sb-photo"><img src="{address(picture)}" alt="{escaped(name)}">'
        f"<figcaption>{escaped(name)}</figcaption></figure>"
        f'<div class="sb-bars"><div class="sb-grid">{"".join(lines)}</div>{_rest(found, row, language)}'
        f"{_prompt(found, row, language)}</div></div>"
    )


def _rest(found: asked_photos.Found, row: int, language: words.Language) -> str:
    count = len(found.classnames) - BARS
    if count <= 0:
        return ""
    if isinstance(found, predictions.Predictions) and not found.sigmoid:
        best = ranking(found.scores[row : row + 1], BARS)[0]
        share = _percent(max(0.0, 1 - float(found.at(row).probabilities[0, best].sum())))
        said = words.said("classify.rest_together", language, count=f"{count:,}", share=share)
    else:
        said = words.said("classify.rest", language, count=f"{count:,}")
    return f'<div class="sb-rest">{escaped(said)}</div>'


def _prompt(found: asked_photos.Found, row: int, language: words.Language) -> str:
    if not isinstance(found, predictions.Predictions) or not found.prompts:
        return ""
    said = words.said("classify.prompt_decided", language)
    cosine = f" <small>cos {found.cosines[row]:.3f}</small>" if found.cosines else ""
    return f'<div class="sb-rest">{escaped(said)} “{escaped(found.prompts[row])}”{cosine}</div>'


def table_html(
    asked: asked_photos.Asked, names: Sequence[str], pictures: Sequence[str], language: words.Language
) -> str:
    """A line for each of the most unsure photos, `pictures` of them in that order. names: of the photos, by row."""
    found = asked.found
    one = isinstance(found, predictions.Predictions)
    keys = ["photo", *(("class", "second") if one else ("tags", "nearest")), "margin"]
    keys += ["prompt"] if one and found.prompts else []
    head = "".join(f"<th>{escaped(words.said(f'classify.{key}', language))}</th>" for key in keys)
    cells = _class_cells if one else _tag_cells
    margins, body = found.margins, []
    for row, picture in zip(asked.order, pictures, strict=False):
        own = [*cells(found, row, language), _margin(found, float(margins[row]))]
        own += [f"{found.prompts[row]} ({found.cosines[row]:.3f})"] if len(keys) > 4 else []
        photo = (
            f'<button type="button" class="sb-pick" data-row="{row}"><img src="{address(picture)}" alt="" loading="lazy">'
            f"<span>{escaped(names[row], SHORT)}</span></button>"
        )
        said = [f"<td{_FIGURE if place == 2 else ''}>{escaped(cell, LONG)}</td>" for place, cell in enumerate(own)]
        body.append(f"<tr><td>{photo}</td>{''.join(said)}</tr>")
    more = len(asked.order) - len(pictures)
    rest = words.said("classify.more_photos", language, count=f"{more:,}") if more > 0 else ""
    return (
        f'<div class="sb-table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'<div class="sb-rest">{escaped(rest)}</div>'
    )


def _class_cells(found: predictions.Predictions, row: int, language: words.Language) -> tuple[str, str]:
    """The best class and the next, with their probabilities."""
    best, one = ranking(found.scores[row : row + 1], 2)[0], found.at(row)
    probabilities = one.probabilities[0]
    first, *second = (f"{found.classnames[k]} {_percent(probabilities[k], found.sigmoid)}" for k in best)
    if not one.known[0]:
        first = f"{words.said('classify.unknown', language)} ({first})"
    return first, "".join(second)


def _tag_cells(found: tags.Tags, row: int, language: words.Language) -> tuple[str, str]:
    """A photo's tags, and the name whose score is nearest to its threshold."""
    own, limits, scores = found.of(row), found.limits_of(row), found.scores[row]
    said = [f"{found.classnames[k]} {tags.number(found, row, k)}" for k in own[:TAGS]]
    said += [f"+ {len(own) - TAGS}"] if len(own) > TAGS else []
    tagged, away = ", ".join(said) or words.said("classify.no_tag", language), np.abs(scores - limits)
    if not np.isfinite(away).any():
        return tagged, ""
    near = int(np.nanargmin(away))
    sign = ">" if scores[near] > limits[near] else "≤"
    compared = f"{tags.number(found, row, near)} {sign} {tags.as_read(found, limits[near])}"
    return tagged, f"{found.classnames[near]} {compared}"


def _percent(probability: float, small: bool = False) -> str:
    """As commands print it, on one line."""
    return predictions.percent(probability, small).replace(" ", "\u00a0")


def _margin(found: asked_photos.Found, margin: float) -> str:
    if isinstance(found, predictions.Predictions):
        return _percent(margin, found.sigmoid)
    return tags.as_read(found, margin) if np.isfinite(margin) else ""

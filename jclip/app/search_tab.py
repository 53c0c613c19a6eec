"""Search: a sentence, a photo, or both; what is found, more like it, and ticked photos handed over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from jclip.app import search_grid, shown_command, teach_panel, words
from jclip.app.desk import Desk
from jclip.app.markup import escaped
from jclip.app.photo_field import photos_field
from jclip.app.search_form import MOST_HITS, Form
from jclip.app.search_handover import add_handover
from jclip.app.thumbnails import LARGE
from jclip.errors import DataError
from jclip.features import gallery as galleries
from jclip.postponed import gr
from jclip.prompts import scripts
from jclip.report import asked_photos, search_results

FIELDS = ("sentence", "photos", "photo_weight", "without", "without_weight", "where", "fold", "above", "cut", "top")
QUERY = ("sentence", "photos", "without")  # what another photo takes the place of
COUNTS = (12, 24, 48, 96, MOST_HITS)


def add(desk: Desk) -> None:
    """The tab: what to do where nothing is open, the form, and what is found."""
    with gr.Column(visible=False, elem_id="empty") as empty:
        about = gr.HTML(elem_id="about-empty")
        world = gr.Button(words.t("search.world"), variant="primary", elem_id="world", scale=0, min_width=240)
    with gr.Column(visible=bool(desk.place), elem_id="search") as search:
        fields = _form(desk)
        command = shown_command.box(words.t("page.command"), visible=False)
        summary = gr.HTML(elem_id="summary")
        found = gr.HTML(elem_id="found", js_on_load=search_grid.EVENTS, padding=False)
        large = gr.HTML(elem_id="large", js_on_load=search_grid.DIALOG, padding=False)
        last = gr.State()
        handover = add_handover(desk, last)
        teach_panel.add(desk, fields["sentence"])
    places = {
        "found": found,
        "large": large,
        "summary": summary,
        "command": command,
        "last": last,
        "handover": handover,
    }
    _answer_searches(desk, fields, places)
    _follow_what_is_open(desk, [about, empty, search, fields["where"]], world)


def _answer_searches(desk: Desk, fields: dict[str, Any], places: dict[str, Any]) -> None:
    """What happens on a search, on "more like it" and on a tile; `places` are where answers are shown."""
    found, large, summary = places["found"], places["large"], places["summary"]
    outputs = [found, summary, places["command"], places["last"], places["handover"]]

    def run(request: gr.Request, *values: Any) -> list[Any]:
        with desk.errors_shown():
            return _answer(desk, _form_of(desk, values), words.language(request))

    def alike(event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        with desk.errors_shown():
            row = _row(desk, event, words.language(request))
            given = dict(zip(FIELDS, values, strict=True)) | {"sentence": f"row:{row}", "photos": {}, "without": ""}
            given["fold"] = given["fold"] and not getattr(event, "copies", False)
            answer = _answer(desk, _form_of(desk, [given[name] for name in FIELDS]), words.language(request))
            return [given["sentence"], None, "", given["fold"], *answer]

    def opened(event: gr.EventData, request: gr.Request) -> str:
        with desk.errors_shown():
            row = _row(desk, event, words.language(request))
            picture = desk.thumbnail(desk.gallery.photo_at(row), LARGE)
            return search_grid.large(desk.gallery, row, picture, words.language(request))

    inputs = [fields[name] for name in FIELDS]
    asked: dict[str, Any] = {"outputs": outputs, "api_visibility": "private", "show_progress": "minimal"}
    for event in (fields["button"].click, fields["sentence"].submit):
        event(run, inputs, show_progress_on=[summary], **asked)
    renewed = [fields[name] for name in (*QUERY, "fold")]
    for place in (found, large):
        place.similar(alike, inputs, **{**asked, "outputs": [*renewed, *outputs]}, show_progress_on=[summary])
    found.open(opened, None, large, api_visibility="private", show_progress="hidden")
    gr.api(_api(desk), api_name="search")


def _follow_what_is_open(desk: Desk, state: list[Any], world: Any) -> None:
    """Shows the form where a gallery is open, else what to do; `world` opens the embedded world's.

    state: the text about the latter, both columns, and the field of conditions.
    """

    def look(request: gr.Request) -> list[Any]:
        language = words.language(request)
        columns = _columns(desk, language)
        return [
            _empty(language),
            gr.update(visible=not desk.place),
            gr.update(visible=bool(desk.place)),
            gr.update(info=columns) if columns else gr.skip(),
        ]

    def draw(request: gr.Request) -> list[Any]:
        with desk.errors_shown():
            desk.open_world()
            _open_gallery(desk, words.language(request))
        return look(request)

    world.click(draw, None, state, api_visibility="private")
    gr.on(None, look, None, state, api_visibility="private", show_progress="hidden")


def _form(desk: Desk) -> dict[str, Any]:
    """The fields by their names."""
    t = words.t
    made: dict[str, Any] = {}
    with gr.Row(equal_height=True, elem_classes="ask"):
        made["sentence"] = gr.Textbox(
            label=t("search.sentence"), placeholder=t("search.example"), lines=1, max_lines=1, scale=6, min_width=220,
            elem_id="sentence", autofocus=True,
        )  # fmt: skip
        made["button"] = gr.Button(t("search.button"), variant="primary", scale=1, min_width=110, elem_id="go")
    with gr.Accordion(t("search.more"), open=False, elem_id="more"):
        with gr.Row():
            with gr.Column(min_width=220):
                made["photos"] = photos_field(t("search.photos"), height=180, columns=3, elem_id="like-photos")
                made["photo_weight"] = _weight("search.photo_weight")
            with gr.Column(min_width=220):
                made["without"] = gr.Textbox(label=t("search.without"), lines=4, max_lines=8, elem_id="without")
                made["without_weight"] = _weight("search.without_weight")
            with gr.Column(min_width=220):
                made["where"] = gr.Textbox(
                    label=t("search.where"), lines=4, max_lines=8, elem_id="where", placeholder="year>=2020\npath~holiday"
                )  # fmt: skip
                made["top"] = gr.Dropdown(
                    label=t("search.top"), choices=list(COUNTS), value=24, elem_id="top", filterable=False
                )
            with gr.Column(min_width=220):
                made["fold"] = gr.Checkbox(label=t("search.fold"), value=True, elem_id="fold")
                made["above"] = gr.Slider(0.8, 1, 0.98, step=0.005, label=t("search.above"))
                made["cut"] = gr.Checkbox(label=t("search.cut"), value=False, elem_id="cut")
    return made


def _empty(language: words.Language) -> str:
    """What to do where nothing is open."""
    title, first, note = (words.said(f"search.{key}", language) for key in ("empty_title", "empty", "world_note"))
    return f"<h2>{title}</h2><p>{first}</p><pre>jclip app PHOTOS</pre><p class='note'>{note}</p>"


def _columns(desk: Desk, language: words.Language) -> str:
    """Which columns conditions may name."""
    if desk.gallery is None:
        return ""
    names = ", ".join([*desk.gallery.store.manifest.columns, "path", "caption"])
    return words.said("search.columns", language, names=names)


def _weight(key: str) -> Any:
    return gr.Slider(0.1, 3, 1, step=0.1, label=words.t(key))


def _form_of(desk: Desk, values: Sequence[Any]) -> Form:
    """What is filled in. Raises `DataError` for what is no photo."""
    given = dict(zip(FIELDS, values, strict=True))
    given.update({name: given[name] or "" for name in ("sentence", "without", "where")})
    given["photos"] = {str(desk.upload(path, name)): name for path, name in (given["photos"] or {}).items()}
    fold, above = given.pop("fold"), given.pop("above")
    return Form(unique=float(above) if fold else None, **given)


def _answer(desk: Desk, form: Form, language: words.Language) -> list[Any]:
    """The grid, what is said above it, the command, the answer itself, and whether there is something to hand over."""
    gallery = _open_gallery(desk, language)
    if not form.words:
        raise DataError(words.said("search.ask", language))
    begun = time.perf_counter()
    found = _found(desk, gallery, form)
    taken = 1000 * (time.perf_counter() - begun)
    for term in form.query.terms:
        if term.kind == "text" and (line := scripts.unread(term.value, gallery.source.vocabulary_kind)):
            gr.Warning(escaped(line), duration=20)
            break
    pictures = desk.many_thumbnails([gallery.photo_at(hit.row) for hit in found.hits])
    above = sum(hit.above for hit in found.hits)
    said = words.said(
        "search.found", language, count=f"{len(found.hits):,}", all=f"{len(gallery):,}", stand=above, ms=f"{taken:.0f}"
    )
    if above < len(found.hits):
        said += f" · {words.said('search.below', language)}"
    return [
        search_grid.grid(gallery, found, pictures, language),
        f"<p>{escaped(said)}</p>",
        gr.update(value=form.command(desk.place, desk.shown_model), visible=True),
        found,
        gr.update(visible=bool(found.hits)),
    ]


def _open_gallery(desk: Desk, language: words.Language) -> galleries.Gallery:
    """The gallery. Raises `DataError` where none is open, with the reason."""
    gallery = desk.opened()
    if gallery is None:
        raise DataError(desk.said_of_photos(language) or words.said("search.no_photos", language))
    return gallery


def _found(desk: Desk, gallery: galleries.Gallery, form: Form) -> galleries.Found:
    with asked_photos.called(form.photos):
        return desk.work(lambda: next(gallery.search_many([form.query], form.search)))


def _row(desk: Desk, event: Any, language: words.Language) -> int:
    """The row of the tile that was clicked. Raises `DataError` where it is another photo's by now."""
    row, gallery = event.row, desk.gallery
    if gallery is None or type(row) is not int or not 0 <= row < len(gallery):
        raise DataError(words.said("search.changed", language))
    if search_grid.mark_of(gallery, row) != event.mark:
        raise DataError(words.said("search.changed", language))
    return row


def _api(desk: Desk) -> Any:
    """The documented endpoint."""

    def search(query: str, top: int = 24, where: str = "", unique: float = 0, cut: bool = False) -> dict:
        """Photos that show what a query means, as `jclip search --json` prints them.

        query: as it is typed, such as `a dog + at sunset - people`. where: conditions, one a line. unique: hide photos
        with a higher cosine to a better one; 0: none.
        """
        with desk.errors_shown():
            form = Form(query, where=where, unique=unique or None, cut=cut, top=top)
            found = _found(desk, _open_gallery(desk, "en"), form)
            return search_results.record_of(found, search_results.How(shown=(), cut=cut))

    return search

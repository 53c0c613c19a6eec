"""What is done with ticked photos: a CSV for the browser, links or copies in a class folder beside the server."""

from __future__ import annotations

import dataclasses
import shlex
import threading
from collections.abc import Sequence
from typing import Any

from jclip.app import search_grid, words
from jclip.app.desk import Desk
from jclip.app.markup import escaped
from jclip.app.search_form import below_here
from jclip.errors import DataError
from jclip.features import gallery as galleries
from jclip.postponed import gr
from jclip.report import folder_names, search_results, sorted_folders

_ONE_AT_A_TIME = threading.Lock()  # two windows may put photos into one folder


def add_handover(desk: Desk, last: Any) -> Any:
    """The row below the hits; `last` holds the answer. Returns the row, hidden as long as there is none."""
    t = words.t
    with gr.Column(visible=False, elem_id="handover") as shown:
        with gr.Row(elem_classes="tick-row"):
            gr.HTML("<span class='ticked-count'></span>", elem_id="ticked", min_width=60)
            every = gr.Button(t("search.all"), size="sm", min_width=80, scale=0)
            none = gr.Button(t("search.none"), size="sm", min_width=80, scale=0)
            save = gr.Button(t("search.csv"), size="sm", min_width=160, scale=0, elem_id="save-csv")
        file = gr.File(visible=False, interactive=False, elem_id="csv-file", show_label=False)
        folder, label, how, put, done = _form_of_a_folder()
    rows = gr.JSON(visible=False)

    def as_csv(found: galleries.Found | None, chosen: Sequence[int], request: gr.Request) -> Any:
        with desk.errors_shown():
            text = search_results.csv_text([_ticked(found, chosen, words.language(request))], search_results.How())
            name = folder_names.folder_name(found.query)[:60]
            return gr.update(value=desk.file(f"{name}.csv", text.encode("utf-8", "surrogateescape")), visible=True)

    def into_folder(found, chosen, folder: str, label: str, how: str, request: gr.Request) -> str:
        with desk.errors_shown():
            return _put(_ticked(found, chosen, words.language(request)), folder, label, how, words.language(request))

    every.click(None, js=f"() => {search_grid.TICK_ALL.format(on='true')}()", api_visibility="private")
    none.click(None, js=f"() => {search_grid.TICK_ALL.format(on='false')}()", api_visibility="private")
    save.click(as_csv, [last, rows], file, js=f"(last, rows) => [last, {search_grid.TICKED}]", api_visibility="private")
    put.click(
        into_folder, [last, rows, folder, label, how], done, api_visibility="private",
        js=f"(last, rows, ...rest) => [last, {search_grid.TICKED}, ...rest]",
    )  # fmt: skip
    return shown


def _form_of_a_folder() -> tuple[Any, ...]:
    """Where ticked photos are put: folder, class, links or copies, the button, and what is said afterwards."""
    t = words.t
    with gr.Accordion(t("search.place"), open=False, elem_id="place"):
        with gr.Row(equal_height=True):
            folder = gr.Textbox(label=t("search.folder"), value="found", min_width=200, elem_id="folder")
            label = gr.Textbox(label=t("search.class"), min_width=160, elem_id="class")
            how = gr.Radio(
                [(t("search.link"), "link"), (t("search.copy"), "copy")],
                value="link",
                label=t("search.how"),
                min_width=160,
            )
            put = gr.Button(t("search.put"), min_width=100, scale=0, elem_id="put")
        done = gr.HTML(elem_id="put-done")
    return folder, label, how, put, done


def _ticked(found: galleries.Found | None, rows: Sequence[int] | None, language: words.Language) -> galleries.Found:
    """The answer with the ticked photos alone. Raises `DataError` for none."""
    wanted = {row for row in rows or () if type(row) is int}
    hits = tuple(hit for hit in found.hits if hit.row in wanted) if found else ()
    if not hits:
        raise DataError(words.said("search.no_tick", language))
    return dataclasses.replace(found, hits=hits)


def _put(found: galleries.Found, folder: str, label: str, how: str, language: words.Language) -> str:
    """Places the photos, and says where. Raises `ConfigError` for a folder elsewhere, `DataError` as `place` does."""
    target = below_here(folder).absolute()
    kind: sorted_folders.How = "copy" if how == "copy" else "link"
    named = dataclasses.replace(found, query=label.strip() or found.query)
    with _ONE_AT_A_TIME:
        before = sorted_folders.placed_before(target, kind)
        placed = search_results.plan_links([named], target, before)
        manifest = sorted_folders.place(placed, target, kind, before) if placed else target / folder_names.MANIFEST
    there = {one.photo for one in before.photos if one.label == named.query} if before else set()
    again = sum(hit.path in there for hit in found.hits)
    undo = f"jclip unsort {shlex.quote(str(manifest))}"
    lines = [words.said("search.put_done", language, count=len(placed), folder=target, undo=undo)]
    if again:
        lines.append(words.said("search.put_again", language, count=again))
    if absent := len(found.hits) - len(placed) - again:
        lines.append(words.said("search.put_absent", language, count=absent))
    return "".join(f"<p>{escaped(line)}</p>" for line in lines)

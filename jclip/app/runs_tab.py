"""Runs: what a training came to, and what changed from one to another; the same views as `jclip report` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jclip.app import shown_command, words
from jclip.app.desk import Desk
from jclip.app.run_places import MOST_RUNS, runs_at
from jclip.errors import ConfigError, DataError
from jclip.postponed import gr
from jclip.report import page_photos, page_words, run_comparison, run_page, run_record, web_page
from jclip.train.run_folder import is_shipped

EVENTS = f"{web_page.SCRIPT}\nreportPage(element);"
PAGE = "report.html"
OWN_STYLE = """
.ask-runs { align-items: flex-end } #run-add, #run-save { flex-grow: 0; white-space: nowrap }
#runs-empty, #run-view { padding: 0 !important } #runs-empty h2 { margin: 24px 0 6px }
#run-view .report { padding: 12px 2px 24px; max-width: none; background: none }
"""


def add(desk: Desk) -> None:
    """The tab: which runs, and their view."""
    form = _form(desk)
    folder, root, chosen = form["folder"], form["root"], form["chosen"]
    outputs = [form["view"], form["command"], form["save"], form["empty"]]

    def show(places: Sequence[str], where: str, request: gr.Request) -> list[Any]:
        with desk.errors_shown():
            return shown(desk, places, where, words.language(request))

    def open_folder(typed: str, places: Sequence[str], where: str, request: gr.Request) -> list[Any]:
        with desk.errors_shown():
            found = runs_at(typed)
            known = {os.path.realpath(run) for run in desk.runs}
            desk.runs += [run for run in found if os.path.realpath(run) not in known]
            first = [str(run) for run in found[:1]] if len(found) > 1 else [str(run) for run in found]
            picked = list(dict.fromkeys([*(places or []), *first]))
            group = gr.update(choices=choices(desk), value=picked, visible=True)
            return ["", group, *shown(desk, picked, where, words.language(request))]

    def look(request: gr.Request) -> list[Any]:
        language = words.language(request)
        said = (
            ""
            if desk.runs
            else f"<h2>{words.said('runs.empty_title', language)}</h2><p>{words.said('runs.empty', language)}</p>"
        )
        return [gr.update(choices=choices(desk), visible=bool(desk.runs)), said]

    quiet = {"api_visibility": "private", "show_progress": "minimal"}
    for event in (form["button"].click, folder.submit):
        event(open_folder, [folder, chosen, root], [folder, chosen, *outputs], show_progress_on=[form["view"]], **quiet)
    for event in (chosen.input, root.submit):
        event(show, [chosen, root], outputs, show_progress_on=[form["view"]], **quiet)
    gr.on(None, look, None, [chosen, form["empty"]], api_visibility="private", show_progress="hidden")


def _form(desk: Desk) -> dict[str, Any]:
    """The fields and the places of what is shown, by their names."""
    with gr.Row(elem_classes="ask-runs"):
        folder = gr.Textbox(
            label=words.t("runs.folder"),
            placeholder="runs",
            lines=1,
            max_lines=1,
            scale=5,
            min_width=220,
            elem_id="run-folder",
        )
        root = gr.Textbox(label=words.t("runs.root"), lines=1, max_lines=1, scale=3, min_width=180, elem_id="run-root")
        button = gr.Button(words.t("runs.add"), variant="primary", scale=1, min_width=110, elem_id="run-add")
    chosen = gr.CheckboxGroup(
        label=words.t("runs.chosen"), info=words.t("runs.info"), choices=choices(desk), elem_id="runs", visible=bool(desk.runs)
    )  # fmt: skip
    empty = gr.HTML(elem_id="runs-empty")
    with gr.Row(elem_classes="ask-runs"):
        command = shown_command.box(
            words.t("page.command"), visible=False, scale=5, min_width=220, elem_id="run-command"
        )
        save = gr.DownloadButton(words.t("runs.save"), visible=False, scale=1, min_width=150, elem_id="run-save")
    view = gr.HTML(elem_id="run-view", js_on_load=EVENTS, padding=False)
    return {
        "folder": folder, "root": root, "button": button, "chosen": chosen, "empty": empty, "command": command, "save": save,
        "view": view,
    }  # fmt: skip


def choices(desk: Desk) -> list[tuple[str, str]]:
    """What the group offers: short names that differ, and the folders that they stand for."""
    runs = desk.runs[:MOST_RUNS]
    if not runs:
        return []
    names = run_comparison.short_names([Path(os.path.realpath(run)) for run in runs])
    return [(name, str(run)) for name, run in zip(names, runs, strict=True)]


def shown(desk: Desk, places: Sequence[str], root: str, language: words.Language) -> list[Any]:
    """The view of the runs that are chosen, its command, and the file to save; nothing where none is."""
    if not places:
        return ["", gr.update(visible=False), gr.update(visible=False), ""]
    view, command, whole = view_of(desk, places, root, language)
    file = desk.file(PAGE, whole.encode("utf-8", "backslashreplace"))
    return [view, gr.update(value=command, visible=True), gr.update(value=file, visible=True), ""]


def view_of(desk: Desk, places: Sequence[str], root: str, language: words.Language) -> tuple[str, str, str]:
    """HTML of the runs `places`, the command that does the same, and the page that it writes.

    root: where photos lie now, or empty. Raises `DataError` for a run that is not open, and what reading one raises.
    """
    root, known = (root or "").strip(), {str(run) for run in desk.runs}
    if strange := [place for place in places if place not in known]:
        raise DataError(f"{strange[0]} is not among the runs that are open: type its folder first")
    if root and not Path(root).is_dir():
        raise ConfigError(f"--root must be the folder where the photos lie now, got {root}: no such folder")
    said = page_words.Words(language)
    records = [run_record.read_record(place) for place in places]
    photos = page_photos.PagePhotos(said, root, run_record.sees_upright(records[0]))
    names = [Path(place).name if is_shipped(Path(place)) else place for place in places]
    command = shown_command.shown("report", *names, root=root, out=PAGE, language=language)
    if len(records) == 1:
        title, about = records[0].name, run_page.about(said, records[0])
        parts = run_page.run_parts(said, records[0], photos)
    else:
        title, about = run_comparison.title(said, records), run_comparison.about(said, records)
        parts = run_comparison.comparison_parts(said, records, photos)
    return web_page.fragment(parts, title, about), command, web_page.page(said, title, about, parts, command)


def style() -> str:
    """The views' style sheet for this page, which says by a class whether it is dark."""
    return web_page.STYLE.replace("@media (prefers-color-scheme: dark)", ".dark") + OWN_STYLE

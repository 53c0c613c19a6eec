"""Search: a sentence, a photo, or both; what is found, more like it, and ticked photos handed over."""

from __future__ import annotations

import html
from typing import Any

from jclip.app import shown_command, words
from jclip.app.desk import Desk
from jclip.errors import DataError
from jclip.features import gallery as galleries
from jclip.postponed import gr
from jclip.prompts import query_terms


def add(desk: Desk) -> None:
    """The tab."""
    with gr.Row():
        sentence = gr.Textbox(
            label=words.t("search.sentence"), scale=5, min_width=200, elem_id="sentence", autofocus=True
        )
        button = gr.Button(words.t("search.button"), variant="primary", scale=1, min_width=100)
    found = gr.HTML(elem_id="found")
    command = shown_command.box(words.t("page.command"))

    def search(text: str) -> tuple[str, str]:
        with desk.errors_shown():
            if desk.gallery is None:
                raise DataError("no photos are open")
            query = query_terms.parse_typed(text)
            (answer,) = desk.work(lambda: list(desk.gallery.search_many([query], galleries.Search(12))))
            pictures = desk.many_thumbnails([desk.gallery.photo_at(hit.row) for hit in answer.hits])
        tiles = [f"<img src='/gradio_api/file={html.escape(picture)}'>" for picture in pictures]
        return "".join(tiles), shown_command.shown("search", desk.place, text, top=12)

    asked: dict[str, Any] = {"fn": search, "inputs": sentence, "outputs": [found, command]}
    button.click(**asked, api_name="search")
    sentence.submit(**asked, api_visibility="private")

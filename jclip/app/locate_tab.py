"""Locate: a photo and phrases; the box of each drawn, what it is worth, and where a run looks."""

from __future__ import annotations

from typing import Any

from jclip.app import drawn_examples, phrase_locating, shown_command, words
from jclip.app.desk import Desk
from jclip.app.markup import address, escaped
from jclip.app.opened_models import run_names
from jclip.app.photo_field import photo_field
from jclip.app.uploaded_files import names_kept
from jclip.postponed import gr
from jclip.report import box_drawing, found_boxes


def add(desk: Desk) -> None:
    """The tab."""
    LocateTab(desk)


class LocateTab:
    """The parts of the tab and what they do."""

    def __init__(self, desk: Desk):
        self.desk, self.locator = desk, phrase_locating.Locator(desk)
        with gr.Row(elem_id="locate"):
            with gr.Column(scale=2, min_width=300):
                self._add_question()
            with gr.Column(scale=3, min_width=300):
                self._add_answer()
        self._connect()

    def _add_question(self) -> None:
        t = words.t
        self.photo = names_kept(photo_field(t("locate.photo"), height=240, elem_id="locate-photo"))
        self.phrases = gr.Textbox(
            label=t("locate.phrases"), info=t("locate.phrases_info"), lines=4, max_lines=12, elem_id="locate-phrases"
        )
        runs = dict.fromkeys([*run_names(self.desk), drawn_examples.RUN])
        self.run = gr.Dropdown(
            ["", *runs], value="", allow_custom_value=True, label=t("locate.run"), info=t("locate.run_info"),
            elem_id="locate-run",
        )  # fmt: skip
        self.go = gr.Button(t("locate.go"), variant="primary", elem_id="locate-go")
        self.example = gr.Button(t("locate.example"), size="sm", elem_id="locate-example")
        self.model = gr.State("")  # in place of the desk's: of the drawn scene the one that ships
        self.located = gr.State(None)

    def _add_answer(self) -> None:
        self.summary = gr.HTML(words.t("locate.empty"), elem_id="locate-summary", elem_classes="sb-empty")
        self.pictures = gr.HTML(visible=False, elem_id="locate-pictures")
        self.table = gr.HTML(visible=False, elem_id="locate-table")
        self.command = shown_command.box(words.t("page.command"))
        self.json = gr.JSON(visible=False)

    def _connect(self) -> None:
        asked: dict[str, Any] = {
            "fn": self.locate, "inputs": [self.photo, self.phrases, self.run, self.model],
            "outputs": [self.located, self.json],
        }  # fmt: skip
        shown = [self.summary, self.pictures, self.table, self.command]
        plain = [self.model, *shown]
        for done in (
            self.go.click(**asked, api_name="locate"),
            self.phrases.submit(**asked, api_visibility="private"),
        ):
            done.success(self.show, self.located, shown, api_visibility="private", show_progress="hidden")
        self.photo.upload(self.dropped, self.photo, plain, api_visibility="private")
        self.example.click(self.scene, None, [self.photo, self.phrases, self.run, *plain], api_visibility="private")

    # What the parts do

    def locate(
        self, photo: dict[str, str], phrases: str, run: str, model: str, request: gr.Request
    ) -> tuple[Any, dict[str, Any]]:
        """A box of each phrase."""
        with self.desk.errors_shown(words.language(request)):
            path, name = self._checked(photo)
            found = self.desk.work(
                self.locator.locate, path, name, phrases, run or "", model, long=True, key="locate.working"
            )
        return found, found.to_json()

    def _checked(self, photo: dict[str, str]) -> tuple[str, str]:
        """Path and name. Raises `DataError` as `Desk.upload`."""
        path, name = next(iter(photo.items()), ("", ""))
        return str(self.desk.upload(path, name)), name

    def show(self, located: phrase_locating.Located, request: gr.Request) -> tuple[Any, ...]:
        """The photo with its boxes, where a run looks, a table, the command."""
        language = words.language(request)
        pictures = _figure(self.desk.picture(located.drawn), located.photo)
        if located.looked:
            panels = zip(located.looked, located.things, strict=True)
            figures = "".join(_figure(self.desk.picture(looked), thing.phrase) for looked, thing in panels)
            title = escaped(words.said("locate.looked", language))
            pictures += f"<div class='sb-note'>{title}</div><div class='sb-looked'>{figures}</div>"
        return (
            gr.update(value=summary_html(located, language), elem_classes=[]),
            gr.update(value=f"<div class='sb-picture'>{pictures}</div>", visible=True),
            gr.update(value=table_html(located, language), visible=True),
            located.command,
        )

    def dropped(self, photo: dict[str, str]) -> tuple[Any, ...]:
        """What is wrong with a photo, before anything is looked for; what was found of another goes."""
        with self.desk.errors_shown():
            self._checked(photo)
        return "", *self._nothing()

    def _nothing(self) -> tuple[Any, ...]:
        return gr.update(value="", elem_classes=[]), *[gr.update(visible=False)] * 2, ""

    def scene(self) -> tuple[Any, ...]:
        """A drawn scene with its phrases, and the run that knows it."""
        with self.desk.errors_shown():
            photo, phrases = self.desk.work(drawn_examples.scene, self.desk.pictures)
        return photo, "\n".join(phrases), drawn_examples.RUN, drawn_examples.MODEL, *self._nothing()


def _figure(picture: str, name: str) -> str:
    return f"<figure><img src='{address(picture)}' alt='{escaped(name)}'></figure>"


def summary_html(located: phrase_locating.Located, language: words.Language) -> str:
    """How many phrases, in which photo, by what; and what the command would note."""
    many = len(located.things)
    key = "phrase_count" if many == 1 else "phrases_count"
    count = words.said(f"locate.{key}", language, count=f"{many:,}")
    by = "by_network" if located.way == "network" else "by_rough"
    line = words.said(f"locate.{by}", language, count=count, photo=located.photo, by=located.by)
    notes = "".join(f"<div class='sb-note'>{escaped(note, 600)}</div>" for note in located.notes)
    worth = escaped(words.said("locate.worth", language))
    return f"<div class='sb-summary'>{escaped(line)}</div><div class='sb-note'>{worth}</div>{notes}"


def table_html(located: phrase_locating.Located, language: words.Language) -> str:
    """A line per phrase, with the colour of its box."""
    columns = [name for name in ("present", "support", "probability")
               if any(getattr(thing, name) is not None for thing in located.things)]  # fmt: skip
    head = "".join(
        f"<th>{escaped(words.said(f'locate.{name}', language))}</th>" for name in ("phrase", *columns, "box")
    )
    lines = []
    for number, thing in enumerate(located.things):
        red, green, blue = box_drawing.COLOURS[number % len(box_drawing.COLOURS)]
        phrase = (
            f"<span class='sb-key' style='background: rgb({red},{green},{blue})'></span>{escaped(thing.phrase, 200)}"
        )
        if thing.present is not None and thing.present < found_boxes.PRESENT:
            phrase += f" <small>({escaped(words.said('locate.absent', language))})</small>"
        values = [getattr(thing, name) for name in columns]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        cells.append(", ".join(f"{v:.1f}" for v in thing.box))
        figures = "".join(f"<td class='sb-figure'>{cell}</td>" for cell in cells)
        lines.append(f"<tr><td>{phrase}</td>{figures}</tr>")
    body = "".join(lines)
    return f"<div class='sb-table'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

"""Classify and tag: photos that are dropped, and names of one's own or a finished run; bars, the unsure ones first."""

from __future__ import annotations

from typing import Any

from jclip.app import drawn_examples, photo_labelling, score_bars, shown_command, words
from jclip.app.desk import Desk
from jclip.app.markup import escaped
from jclip.app.opened_models import run_names
from jclip.app.uploaded_files import check_uploaded, names_kept
from jclip.postponed import gr
from jclip.prompts import templates

SHOWN_SIDE, SIDE = 640, 96  # pixels of the photo above its bars, and of those in the table
MOST_PHOTOS = 300  # in the table


def add(desk: Desk) -> None:
    """The tab."""
    ClassifyTab(desk)


class ClassifyTab:
    """The parts of the tab and what they do."""

    def __init__(self, desk: Desk):
        self.desk, self.labeller = desk, photo_labelling.Labeller(desk)
        with gr.Row(elem_id="classify"):
            with gr.Column(scale=2, min_width=300):
                self._add_question()
            with gr.Column(scale=3, min_width=300):
                self._add_answer()
        self._connect()

    def _add_question(self) -> None:
        t, runs = words.t, run_names(self.desk)
        self.photos = names_kept(
            gr.File(label=t("classify.photos"), file_count="multiple", height=150, elem_id="classify-photos")
        )
        self.run = gr.Dropdown(
            ["", *runs], value="", allow_custom_value=True, elem_id="classify-run",
            label=t("classify.decides"), info=t("classify.decides_info"),
        )  # fmt: skip
        self.names = gr.Textbox(
            label=t("classify.names"), info=t("classify.names_info"), lines=5, max_lines=12, elem_id="classify-names"
        )
        self.templates = gr.Dropdown(
            ["", *templates.prompt_sets()], value="", allow_custom_value=True,
            label=t("classify.templates"), info=t("classify.templates_info"), elem_id="classify-templates",
        )  # fmt: skip
        with gr.Accordion(t("classify.more"), open=False):
            self.threshold = gr.Number(
                None, label=t("classify.threshold"), info=t("classify.threshold_info"), elem_id="classify-threshold"
            )
            self.none = gr.Checkbox(True, label=t("classify.none"), elem_id="classify-none")
        with gr.Row():
            self.classify = gr.Button(t("classify.classify"), variant="primary", min_width=110, elem_id="classify-go")
            self.tag = gr.Button(t("classify.tag"), variant="primary", min_width=110, elem_id="tag-go")
        self.example = gr.Button(t("classify.example"), size="sm", elem_id="classify-example")
        self.model = gr.State("")  # in place of the desk's: of the drawn scenes the one that ships
        self.labelled = gr.State(None)

    def _add_answer(self) -> None:
        t = words.t
        self.summary = gr.HTML(t("classify.empty"), elem_id="classify-summary", elem_classes="sb-empty")
        self.bars = gr.HTML(visible=False, elem_id="classify-bars")
        self.table = gr.HTML(visible=False, js_on_load=score_bars.PICK, elem_id="classify-table")
        self.command = shown_command.box(t("page.command"))
        self.json = gr.JSON(visible=False)

    def _connect(self) -> None:
        asked = [self.photos, self.names, self.templates, self.run, self.model]
        shown = [self.summary, self.bars, self.table, self.command]
        for button, ask, name, more in (
            (self.classify, self.ask_classes, "classify", []),
            (self.tag, self.ask_tags, "tag", [self.threshold, self.none]),
        ):
            done = button.click(ask, [*asked, *more], [self.labelled, self.json], api_name=name)
            done.success(self.show, self.labelled, shown, api_visibility="private", show_progress="hidden")
        self.names.submit(
            self.ask_classes, asked, [self.labelled, self.json], api_visibility="private"
        ).success(self.show, self.labelled, shown, api_visibility="private", show_progress="hidden")  # fmt: skip
        self.table.select(self.pick, self.labelled, self.bars, api_visibility="private", show_progress="hidden")
        self.run.change(
            lambda run: [gr.update(visible=not run)] * 2, self.run, [self.names, self.templates], api_visibility="private",
            show_progress="hidden",
        )  # fmt: skip
        self.photos.upload(lambda: "", None, self.model, api_visibility="private", show_progress="hidden")
        self.example.click(
            self.scenes, None, [self.photos, self.names, self.templates, self.run, self.model], api_visibility="private"
        )

    # What the parts do

    def ask_classes(
        self, photos: dict[str, str], names: str, templates: str, run: str, model: str, request: gr.Request
    ) -> tuple[Any, dict[str, Any]]:
        """One class for each photo."""
        return self._ask(self.labeller.classes, request, photos, names, templates, run, model)

    def ask_tags(
        self, photos: dict[str, str], names: str, templates: str, run: str, model: str, threshold: float | None,
        none: bool, request: gr.Request,
    ) -> tuple[Any, dict[str, Any]]:  # fmt: skip
        """Several names for each photo, or none."""
        return self._ask(self.labeller.tags, request, photos, names, templates, run, model, threshold, none)

    def _ask(self, how: Any, request: gr.Request, photos: dict[str, str], *given: Any) -> tuple[Any, dict[str, Any]]:
        with self.desk.errors_shown(words.language(request), "classify.stopped"):
            check_uploaded(self.desk.folder, photos)
            found = self.desk.work(how, photo_labelling.Question(photos, *given), long=True, key="classify.working")
        return found, found.to_json()

    def show(self, labelled: photo_labelling.Labelled, request: gr.Request) -> tuple[Any, ...]:
        """What was found: a line, the most unsure photo with its bars, all photos, a table, the command."""
        language, asked = words.language(request), labelled.asked
        photos = asked.found.photos
        names = [labelled.names.get(photo, photo) for photo in photos]
        pictures = self.desk.many_thumbnails([photos[row] for row in asked.order[:MOST_PHOTOS]], SIDE)
        return (
            gr.update(value=summary_html(labelled, language), elem_classes=[]),
            gr.update(value=self._bars(labelled, asked.order[0], language), visible=True),
            gr.update(value=score_bars.table_html(asked, names, pictures, language), visible=True),
            labelled.command,
        )

    def pick(self, labelled: photo_labelling.Labelled | None, chosen: gr.EventData, request: gr.Request) -> Any:
        """Bars of the photo that was clicked."""
        row = getattr(chosen, "row", None)
        if labelled is None or type(row) is not int or not 0 <= row < len(labelled.asked.found.photos):
            return gr.skip()
        return self._bars(labelled, row, words.language(request))

    def _bars(self, labelled: photo_labelling.Labelled, row: int, language: words.Language) -> str:
        photo = labelled.asked.found.photos[row]
        picture = self.desk.thumbnail(photo, SHOWN_SIDE)
        return score_bars.bars_html(labelled.asked, row, labelled.names.get(photo, photo), picture, language)

    def scenes(self) -> tuple[list[str], str, str, str, str]:
        """Drawn scenes with their names, and the model that knows them."""
        with self.desk.errors_shown():
            photos = self.desk.work(drawn_examples.scenes, self.desk.pictures)
        return photos, "\n".join(drawn_examples.NAMES), drawn_examples.TEMPLATES, "", drawn_examples.MODEL


def summary_html(labelled: photo_labelling.Labelled, language: words.Language) -> str:
    """How many photos, by what; which were left out, and what the command would note."""
    count = len(labelled.asked.found.photos)
    photos = words.said("classify.photo_count", language)
    if count != 1:
        photos = words.said("classify.photos_count", language, count=f"{count:,}")
    lines = [escaped(words.said("classify.summary_one", language, count=photos, by=labelled.by))]
    lines += [f"{escaped(words.said('classify.left_out', language))} {escaped(line)}"
              for line in labelled.asked.failed[:5]]  # fmt: skip
    more = len(labelled.asked.failed) - 5
    lines += [f"+ {more}"] if more > 0 else []
    lines += [escaped(line, 600) for line in labelled.notes[:5]]
    return "".join(
        f"<div class='{'sb-note' if place else 'sb-summary'}'>{line}</div>" for place, line in enumerate(lines)
    )

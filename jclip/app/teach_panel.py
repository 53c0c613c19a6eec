"""Teach it by yes and no, below a search: photos to answer, what is found by then, an audit, and the concept to keep."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from jclip.app import shown_command, teach_grid, words
from jclip.app.desk import Desk
from jclip.app.markup import escaped
from jclip.app.search_form import Form
from jclip.data import answer_files
from jclip.errors import DataError
from jclip.features import concepts, lesson, teaching
from jclip.functional.audited_shares import Share
from jclip.postponed import gr
from jclip.prompts.query_terms import CONCEPT, CONCEPT_ENDING
from jclip.report import folder_names

BEST, AUDIT = 12, 40  # photos that are shown as found, and of an audit


@dataclass
class Taught:
    """One visitor's lesson: the photos that are asked about now, and whether they are an audit's."""

    lesson: lesson.Lesson
    rows: list[int] = field(default_factory=list)
    audit: bool = False

    def next_round(self) -> None:
        """Chooses the photos that are asked about next; of an audit that is over, those of teaching."""
        if self.audit and (rows := self.lesson.audit_round(AUDIT)[: teaching.ROUND]):
            self.rows = rows
            return
        self.audit, self.rows = False, self.lesson.round()

    @property
    def answers(self) -> dict[int, str]:
        """Row → answer of all."""
        return {**self.lesson.teacher.teaching, **self.lesson.teacher.audited}


def add(desk: Desk, sentence: Any) -> None:
    """The panel; `sentence`: the field of the search that it begins with."""
    TeachPanel(desk, sentence)


class TeachPanel:
    """The parts of the panel and what they do."""

    def __init__(self, desk: Desk, sentence: Any):
        self.desk = desk
        t = words.t
        with gr.Accordion(t("teach.title"), open=False, elem_id="teach"):
            gr.HTML(t("teach.about"), elem_id="teach-about")
            begin = gr.Button(t("teach.begin"), variant="primary", elem_id="teach-begin", scale=0, min_width=180)
            with gr.Column(visible=False, elem_id="teach-work") as self.work:
                self.status = gr.HTML(elem_id="teach-status")
                self.grid = gr.HTML(elem_id="teach-grid", js_on_load=teach_grid.EVENTS, padding=False)
                with gr.Row():
                    other, undo, audit = (
                        gr.Button(t(f"teach.{name}"), size="sm", min_width=110, elem_id=f"teach-{name}")
                        for name in ("other", "undo", "audit")
                    )
                self.best = gr.HTML(elem_id="teach-best", padding=False)
                with gr.Row(equal_height=True):
                    name = gr.Textbox(label=t("teach.name"), max_length=80, min_width=200, elem_id="teach-name")
                    save = gr.Button(t("teach.save"), min_width=140, scale=0, elem_id="teach-save")
                files = gr.File(
                    visible=False, interactive=False, file_count="multiple", elem_id="teach-files", show_label=False
                )
                saved = gr.HTML(elem_id="teach-saved")
                self.command = shown_command.box(t("page.command"))
        self.taught = gr.State()
        shown = [self.taught, self.work, self.status, self.grid, self.best, self.command]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on(
            [begin.click],
            self.begin,
            sentence,
            [*shown, name, files, saved],
            api_visibility="private",
            show_progress="minimal",
        )
        self.grid.answer(self.answer, self.taught, [self.status, self.grid, self.best], **private)
        for button, act in ((other, self.other), (undo, self.undo), (audit, self.audit)):
            button.click(act, self.taught, [self.status, self.grid, self.best], **private)
        save.click(self.save, [self.taught, name], [files, saved], **private)

    # What the parts do

    def begin(self, sentence: str, request: gr.Request) -> list[Any]:
        """A lesson that begins with the sentence of the search."""
        language = words.language(request)
        with self.desk.errors_shown():
            form = Form((sentence or "").strip())
            if not form.words:
                raise DataError(words.said("search.ask", language))
            if (gallery := self.desk.gallery) is None:
                raise DataError(self.desk.said_of_photos(language) or words.said("search.wait", language))

            def start() -> Taught:
                taught = Taught(lesson.Lesson(gallery, form.query))
                taught.next_round()
                return taught

            taught = self.desk.work(start)
            command = shown_command.shown("teach", self.desk.place, *form.words, model=self.desk.shown_model)
            name = " ".join(form.query.name.split())[:80]
            return [
                taught, gr.update(visible=True), *self._shown(taught, language), gr.update(value=command), name,
                gr.update(value=None, visible=False), "",
            ]  # fmt: skip

    def answer(self, taught: Taught | None, event: gr.EventData, request: gr.Request) -> list[Any]:
        """One answer; the next photos once all are answered."""
        with self.desk.errors_shown():
            row, answer = getattr(event, "row", None), getattr(event, "answer", None)
            if taught is None or row not in taught.rows or answer not in get_args(teaching.Answer):
                return [gr.skip()] * 3
            self.desk.work(taught.lesson.answer, row, answer, taught.audit)
            if {*taught.rows} <= {*taught.answers}:
                return self._next(taught, request)
            return [self._status(taught, words.language(request)), gr.skip(), gr.skip()]

    def other(self, taught: Taught | None, request: gr.Request) -> list[Any]:
        """Other photos; ends an audit."""
        with self.desk.errors_shown():
            if taught is None:
                return [gr.skip()] * 3
            taught.audit = False
            return self._next(taught, request)

    def undo(self, taught: Taught | None, request: gr.Request) -> list[Any]:
        """Takes the last answer back."""
        with self.desk.errors_shown():
            if taught is None:
                return [gr.skip()] * 3
            row = self.desk.work(taught.lesson.undo)
            if row is not None and row not in taught.rows:
                taught.rows = [row, *taught.rows][: teaching.ROUND]
            return self._shown(taught, words.language(request))

    def audit(self, taught: Taught | None, request: gr.Request) -> list[Any]:
        """Random photos, which show how good it is."""
        with self.desk.errors_shown():
            if taught is None:
                return [gr.skip()] * 3
            taught.audit = True
            return self._next(taught, request)

    def save(self, taught: Taught | None, name: str, request: gr.Request) -> list[Any]:
        """The concept and the answers as files."""
        with self.desk.errors_shown():
            if taught is None:
                return [gr.skip()] * 2
            concept = taught.lesson.concept(" ".join((name or "").split()))
            stem = folder_names.folder_name(concept.name)[:60]
            with tempfile.TemporaryDirectory(dir=self.desk.folder) as folder:
                files = [Path(folder, f"{stem}{CONCEPT_ENDING}"), Path(folder, f"{stem}.answers.jsonl")]
                concepts.write_concept(files[0], concept)
                answer_files.write_answers(files[1], taught.lesson.answers)
                made = [self.desk.file(file.name, file.read_bytes()) for file in files]
            place, term = Path.cwd(), f"{CONCEPT}{files[0].name}"
            said = words.said("teach.saved", words.language(request), folder=place, term=term)
            return [gr.update(value=made, visible=True), f"<p>{escaped(said)}</p>"]

    # What is shown

    def _next(self, taught: Taught, request: gr.Request) -> list[Any]:
        self.desk.work(taught.next_round)
        return self._shown(taught, words.language(request))

    def _shown(self, taught: Taught, language: words.Language) -> list[Any]:
        gallery, teacher = taught.lesson.gallery, taught.lesson.teacher
        best = self.desk.work(lambda: teacher.order()[:BEST].tolist())
        pictures = self.desk.many_thumbnails([gallery.photo_at(row) for row in [*taught.rows, *best]])
        asked, found = pictures[: len(taught.rows)], pictures[len(taught.rows) :]
        return [
            self._status(taught, language),
            teach_grid.grid(gallery, taught.rows, asked, taught.answers, language),
            teach_grid.strip(gallery, best, found, language),
        ]

    def _status(self, taught: Taught, language: words.Language) -> str:
        teacher = taught.lesson.teacher
        above = self.desk.work(teacher.above)
        lines = [
            words.said(
                "teach.status", language, yes=teacher.count("yes"), no=teacher.count("no"), above=f"{above:,}",
                all=f"{teacher.rows:,}",
            )
        ]  # fmt: skip
        if taught.audit:
            lines.append(words.said("teach.auditing", language, done=len(teacher.audited), all=AUDIT))
        if teacher.audited:
            found = self.desk.work(teacher.audit)
            shares = {"precision": _share(found.precision), "recall": _share(found.recall)}
            lines.append(words.said("teach.audited", language, count=found.asked, **shares))
        if not taught.rows:
            lines.append(words.said("teach.all", language))
        return "".join(f"<p>{escaped(line)}</p>" for line in lines)


def _share(share: Share) -> str:
    interval = f"{share.low:.2f}–{share.high:.2f}"
    return f"? ({interval})" if share.value is None else f"{share.value:.2f} ({interval})"

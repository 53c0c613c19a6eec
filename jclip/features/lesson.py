"""A gallery that is taught a query: the answers are kept in a file after each of them, and what was learned is a concept."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from jclip.data.answer_files import AnswerFile, PhotoAnswer, read_answers, rows_of, write_answers
from jclip.data.gallery_inputs import shown_path
from jclip.errors import DataError
from jclip.features.concepts import Concept
from jclip.features.gallery import Gallery
from jclip.features.query_features import query_vectors
from jclip.features.teaching import ROUND, Answer, Teacher
from jclip.prompts.query_terms import Query


class Lesson:
    """A query about a gallery and the answers so far.

    answers: a file of answers, read if it is there and written after each further one; None keeps them in memory alone.
    seed: of the photos that an audit draws. truncate: cut texts that are too long. `lost` counts answers whose photos are no
    longer in the gallery, or are others now; they do not teach, and stay in the file. Raises `ConfigError` for answers about
    another query or model, `DataError` for a damaged file and a gallery without photos.
    """

    def __init__(
        self, gallery: Gallery, query: Query, answers: Path | None = None, seed: int = 0, truncate: bool = False
    ):
        self.gallery, self.query, self._file = gallery, query, answers
        store = gallery.store
        if not len(store):
            raise DataError(f"{store.folder} must hold photos to ask about, got none: embed some")
        (self.text,) = query_vectors([query], store, lambda: gallery.source, truncate=truncate)
        self.teacher = Teacher(store.parts, self.text, seed)
        self._kept: list[PhotoAnswer] = []
        self.lost = 0
        if answers is not None and os.path.lexists(answers):
            found = read_answers(answers)
            found.check(answers, query.name, store.manifest.made_by)
            self._take_over(found)

    def _take_over(self, found: AnswerFile) -> None:
        gone, here = [], []
        for one, row in zip(found.answers, rows_of(found.answers, self.gallery.store.rows), strict=True):
            if row is None:
                gone.append(one)
            else:
                here.append(one)
                self.teacher.answer(row, one.answer, one.audit)
        self._kept, self.lost = [*gone, *here], len(gone)

    def answer(self, row: int, answer: Answer, audit: bool = False) -> None:
        """Notes an answer, in the file as well."""
        self.teacher.answer(row, answer, audit)
        found = self.gallery.store.rows[row]
        self._kept.append(PhotoAnswer(shown_path(found), answer, audit, row, found["sha256"] or ""))
        self._write()

    def undo(self) -> int | None:
        """Takes the last answer back, and returns its row; None where there is none."""
        undone = self.teacher.undo()
        if undone is None:
            return None
        self._kept.pop()
        self._write()
        return undone.row

    @property
    def answers(self) -> AnswerFile:
        """All answers, as they are written."""
        return AnswerFile(tuple(self._kept), self.query.name, self.gallery.store.manifest.made_by)

    def _write(self) -> None:
        if self._file is not None:
            write_answers(self._file, self.answers)

    def usable(self, row: int) -> bool:
        """Whether a row's photo, or the tar that it is in, is there to be looked at."""
        return os.path.isfile(os.path.join(self.gallery.root, self.gallery.store.rows[row]["path"]))  # noqa: PTH113, PTH118

    def round(self, count: int = ROUND) -> list[int]:
        """The rows to ask about next; none where all that can be looked at are answered."""
        return self.teacher.round(count, self.usable)

    def audit_round(self, count: int) -> list[int]:
        """The rows that an audit asks about, those that were answered left out."""
        return self.teacher.audit_round(count, self.usable)

    def concept(self, name: str = "") -> Concept:
        """What was learned so far. name: by default the query's."""
        manifest, teacher = self.gallery.store.manifest, self.teacher
        counts = {answer: teacher.count(answer) for answer in ("yes", "no", "unsure")}
        return Concept(
            teacher.head, self.text, name or self.query.name, self.query.name, manifest.model, manifest.identity,
            manifest.preprocess, manifest.family, counts, teacher.rows,
            asdict(teacher.audit()) if teacher.audited else {},
        )  # fmt: skip

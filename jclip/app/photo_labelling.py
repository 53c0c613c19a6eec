"""What the tab Classify and tag asks of the library, on the desk's thread: photos labelled by a model, or by a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jclip.app import shown_command
from jclip.app.desk import Desk, Stopped
from jclip.app.opened_models import OpenedModels
from jclip.app.search_form import below_here
from jclip.errors import ConfigError, notices_heard_by
from jclip.features import concept_tagging, concepts, heads
from jclip.features.member import Member
from jclip.report import asked_photos, concept_tags, tag_rules, typed_names
from jclip.report.zero_shot_predictions import classify

TEMPLATES = "openai80"  # of `jclip zero-shot`
AT_ONCE = 16  # photos: between two parts others are answered, and the work can be stopped


@dataclass(frozen=True)
class Question:
    """What the tab was filled in with. photos: path → what it is called. names, templates: as typed. run: a run's folder in
    place of names. model: in place of the desk's. threshold, none: of tags, as `jclip tag` has them."""

    photos: Mapping[str, str]
    names: str = ""
    templates: str = ""
    run: str = ""
    model: str = ""
    threshold: float | None = None
    none: bool = True


@dataclass(frozen=True)
class Labelled:
    """What was found; names: path → what a photo is called; by: the model or run; command: that does the same; notes: what
    the command would say on stderr."""

    asked: asked_photos.Asked
    names: Mapping[str, str]
    by: str
    command: str
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """What the endpoints answer."""
        return {
            "by": self.by, "photos": self.asked.entries(self.names), "failed": [*self.asked.failed],
            "notes": [*self.notes], "command": self.command,
        }  # fmt: skip


class Labeller:
    """Answers questions about photos. Raises `JclipError` kinds as the commands do, photos named without their folder."""

    def __init__(self, desk: Desk):
        self.desk, self.opened = desk, OpenedModels(desk)
        self._stopped: tuple[Any, dict[tuple[str, ...], asked_photos.Found]] = (None, {})

    def classes(self, asked: Question) -> Labelled:
        """One class for each photo, as `jclip zero-shot` or `jclip predict`."""
        return self._labelled(asked, self._by_run if asked.run else self._by_names)

    def tags(self, asked: Question) -> Labelled:
        """Several names for each photo or none, as `jclip tag` or `jclip predict`."""
        return self._labelled(asked, self._tags_by_run if asked.run else self._tags_by_names)

    def _labelled(self, asked: Question, how: Callable[[Question], tuple[Any, str, Callable[..., str]]]) -> Labelled:
        notes: list[str] = []
        with (
            notices_heard_by(notes.append),
            asked_photos.called(asked.photos),
            heads.prompts_watched_by(self.desk.step),
        ):
            label, by, command = how(asked)
            found = self._going_on(how.__name__, asked, label)
        said = command(*map(as_argument, asked.photos.values()))
        failed = tuple(asked_photos.renamed(line, asked.photos) for line in found.failed)
        return Labelled(replace(found, failed=failed), asked.photos, by, said, tuple(dict.fromkeys(notes)))

    def _going_on(self, how: str, asked: Question, label: Callable) -> asked_photos.Asked:
        """The photos labelled; parts that were done when the same question was stopped are not done again."""
        question = how, asked
        done = self._stopped[1] if self._stopped[0] == question else {}

        def once(some: Sequence[str]) -> asked_photos.Found:
            if (key := tuple(some)) not in done:
                done[key] = label(some)
            return done[key]

        self._stopped = None, {}
        try:
            return asked_photos.ask([*asked.photos], once, AT_ONCE, self.desk.step)
        except Stopped:
            self._stopped = question, done
            raise

    def _by_names(self, asked: Question):
        typed, templates = typed_names.typed_classes(asked.names), typed_names.typed_templates(asked.templates)
        source, model = self.opened.plain(asked.model)
        members = [Member(model, templates or TEMPLATES, family=source.family)]

        def label(photos: Sequence[str]) -> asked_photos.Found:
            return classify(members, photos, typed.names, explain=True, source=source)

        options = {
            "model": model,
            "family": source.family,
            "templates": templates,
            "explain": True,
            "out": "classes.json",
        }
        return label, model, with_names("zero-shot", typed, options)

    def _tags_by_names(self, asked: Question):
        typed = typed_names.typed_classes(asked.names, 1, taught=True)
        templates = typed_names.typed_templates(asked.templates)
        if typed.has_concepts:
            return self._tags_by_concepts(asked, typed, templates)
        source, model = self.opened.plain(asked.model)
        tagger = tag_rules.tagger_of(source, typed.names, templates)
        rules = tag_rules.TagRules(asked.threshold, none=asked.none)

        def label(photos: Sequence[str]) -> asked_photos.Found:
            return tag_rules.tags_of(typed.names, tagger.scored(photos), rules)

        options = {"model": model, "family": source.family, "templates": templates, "threshold": asked.threshold,
                   "none": asked.none, "out": "tags.json"}  # fmt: skip
        return label, model, with_names("tag", typed, options)

    def _tags_by_concepts(self, asked: Question, typed: typed_names.TypedNames, templates: str):
        """Names and concepts, with the model that the concepts were taught with."""
        classes = [concept_of(name) if concepts.is_concept(name) else name for name in typed.names]
        taught = [one for one in classes if isinstance(one, concepts.Concept)]
        source = self.opened.of_concept(taught[0])
        for other in taught[1:]:
            other.check_concept(taught[0])
        names = [one for one in classes if isinstance(one, str)]
        tagger = tag_rules.tagger_of(source, names, templates) if names else None
        scorer = concept_tagging.ConceptTagger(source, classes, tagger)
        rules = tag_rules.TagRules(asked.threshold, none=asked.none)

        def label(photos: Sequence[str]) -> asked_photos.Found:
            return concept_tags.concept_tags(scorer, scorer.scored(photos), rules)

        options = {"templates": templates, "threshold": asked.threshold, "none": asked.none, "out": "tags.json"}
        return label, taught[0].model, with_names("tag", typed, options)

    def _by_run(self, asked: Question):
        done = self.opened.run(asked.run)
        if done.task != "classify":
            raise ConfigError(f"{asked.run} gives several labels for a photo: ask it for tags")
        return (
            lambda photos: done.predict(photos),
            asked.run,
            lambda *photos: shown_command.shown("predict", asked.run, *photos, out="classes.json"),
        )

    def _tags_by_run(self, asked: Question):
        done = self.opened.run(asked.run)
        if done.task != "multi_label":
            raise ConfigError(f"{asked.run} gives one class for each photo: ask it for classes")
        fitted = tag_rules.kept_calibration(done)

        def label(photos: Sequence[str]) -> asked_photos.Found:
            found = done.scored(photos)
            return tag_rules.tags_of_run(done.classnames, found.photos, found.scores, fitted, asked.threshold)

        def command(*photos: str) -> str:
            return shown_command.shown("predict", asked.run, *photos, threshold=asked.threshold, out="tags.json")

        return label, asked.run, command


def with_names(command: str, typed: typed_names.TypedNames, options: Mapping[str, Any]) -> Callable[..., str]:
    """The command of some photos; before it, where they are too many for a line, how the file of names is made."""

    def of(*photos: str) -> str:
        line = shown_command.shown(command, *photos, classes=typed.argument, **options)
        return f"printf '%s\\n' {shlex.quote(typed.file)} > {typed_names.NAMES_FILE}\n{line}" if typed.file else line

    return of


def concept_of(name: str) -> concepts.Concept:
    """The concept that a class name means. Raises `ConfigError` for one that is not below the folder of the start."""
    return concepts.read_concept(below_here(concepts.concept_path(name)))


def as_argument(name: str) -> str:
    """A file's name as a command takes it: never for an option or a setting."""
    return f"./{name}" if name.startswith("-") or "=" in name else name

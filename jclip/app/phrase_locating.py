"""What the tab Locate asks of the library, on the desk's thread: phrases found in a photo by a run, or roughly by a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclip.app import shown_command
from jclip.app.desk import Desk
from jclip.app.opened_models import OpenedModels
from jclip.app.photo_labelling import as_argument
from jclip.data.photo_file import PHOTO_ENDINGS
from jclip.errors import notices_heard_by
from jclip.features import heads
from jclip.report import asked_photos, box_drawing, found_boxes, grounder, phrase_finder, typed_names

if TYPE_CHECKING:  # help answers before Pillow is imported
    from PIL import Image

DRAWN, LOOKED = "boxes.png", "looks.png"


@dataclass(frozen=True)
class Located:
    """What was found in a photo; by: the run or model; drawn: the photo with boxes; looked: for each phrase, where a run
    looks."""

    photo: str
    size: tuple[int, int]
    way: phrase_finder.Way
    by: str
    things: Sequence[grounder.FoundThing]
    drawn: Image.Image
    looked: Sequence[Image.Image]
    command: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What the endpoint answers: a line of `jclip ground --json`, what found it, and the command."""
        line = found_boxes.fields(self.photo, self.size, self.way, self.things)
        return {**line, "by": self.by, "notes": [*self.notes], "command": self.command}


class Locator:
    """Finds phrases in photos. Raises `JclipError` kinds as `jclip ground` does, photos named without their folder."""

    def __init__(self, desk: Desk):
        self.desk, self.opened = desk, OpenedModels(desk)

    def locate(self, photo: str, name: str, phrases: str, run: str = "", model: str = "") -> Located:
        """A box of each phrase, a line each: by the run of that name, else roughly by a model, the desk's unless named.

        photo: its path; name: what it is called.
        """
        notes: list[str] = []
        with (
            notices_heard_by(notes.append),
            asked_photos.called({photo: name}),
            heads.prompts_watched_by(self.desk.step),
        ):
            said = typed_names.typed_phrases(phrases)
            picture = grounder.opened(photo)
            if run:
                finder, by = self.opened.finder(run), run
            else:
                source, by = self.opened.plain(model)
                finder = phrase_finder.RoughFinder(source)
            finder.check(said)
            found = finder(picture, photo, said)
        drawn = box_drawing.draw_boxes(picture, found_boxes.drawn(found.things, finder.way))
        looked = [box_drawing.draw_attention(picture, [one]) for one in found.looked or ()]
        command = command_of(name, said, run, by, self.desk.family)
        return Located(name, picture.size, finder.way, by, found.things, drawn, looked, command, tuple(notes))


def command_of(photo: str, phrases: Sequence[str], run: str, model: str, family: str | None) -> str:
    """`jclip ground` with these; phrases that it might take for photos or options stand behind `--phrase`."""
    plain = all(not phrase.startswith("-") and Path(phrase).suffix.lower() not in PHOTO_ENDINGS for phrase in phrases)
    words, options = [as_argument(photo), *phrases], {}
    if not plain:
        words, options = words[:1], {"phrase": [*phrases]}
    if run:
        options |= {"run": run, "draw": DRAWN, "attention": LOOKED}
    else:
        options |= {"model": model, "family": family, "draw": DRAWN}
    return shown_command.shown("ground", *words, **options)

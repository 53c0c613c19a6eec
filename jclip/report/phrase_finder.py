"""What finds phrases in a photo: a trained run, a model among a detector's boxes, or roughly a model alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from jclip.data import detector_boxes
from jclip.features import box_proposals, rough_boxes
from jclip.features import source as sources
from jclip.prompts import scripts
from jclip.report import found_boxes, grounder
from jclip.report.finished_run import run_folder
from jclip.train import curriculum_state

if TYPE_CHECKING:  # help answers before NumPy is imported
    from PIL import Image

Way = Literal["network", "proposals", "rough"]


class FoundPhrases(NamedTuple):
    """A box of each phrase, and of a run that was asked for it where it looks for each."""

    things: Sequence[grounder.FoundThing]
    looked: Sequence[grounder.Looked] | None = None


class PhraseFinder(Protocol):
    """What finds phrases in photos; photos are encoded once for all phrases, and phrases once for all photos."""

    @property
    def way(self) -> Way:
        """By a network, among proposals, or roughly: how a box is to be read."""

    def check(self, phrases: Sequence[str]) -> None:
        """Raises `DataError` for a phrase that is too long for the text tower, unless phrases are cut."""

    def __call__(self, picture: Image.Image, photo: str, phrases: Sequence[str]) -> FoundPhrases:
        """Boxes in pixels of an upright RGB picture; photo: its path, by which a detector's boxes are found."""


class RunFinder:
    """A finished run of grounding. attention: also give where its network looks. truncate: cut phrases that are too long."""

    way: Way = "network"

    def __init__(self, run: grounder.Grounder, attention: bool = False, truncate: bool = False):
        self.run, self.attention, self.truncate = run, attention, truncate

    @staticmethod
    def load(place: str, model: str = "", attention: bool = False, truncate: bool = False) -> RunFinder:
        """The run in folder `place`, or one that ships; of a curriculum the run on the chosen rows. model: its weights,
        where the file has moved. Raises as `Grounder.load`."""
        folder = curriculum_state.answering_folder(run_folder(place, ())[0])
        return RunFinder(grounder.Grounder.load(folder, (), model), attention, truncate)

    def check(self, phrases: Sequence[str]) -> None:
        """Raises `DataError` for a phrase that is too long."""
        self.run.check_lengths(phrases, self.truncate)

    def __call__(self, picture: Image.Image, photo: str, phrases: Sequence[str]) -> FoundPhrases:
        """A box of each phrase with its support."""
        encoded = self.run.encoded(picture, phrases, self.truncate)
        looked = self.run.looked(encoded) if self.attention else None
        return FoundPhrases(self.run.found(encoded, support=True), looked)


class RoughFinder:
    """A model alone, by the maps of its image tower. Raises `ConfigError` for weights without both towers."""

    way: Way = "rough"

    def __init__(
        self, source: sources.ModelSource, rules: box_proposals.ProposalRules | None = None, truncate: bool = False
    ):
        self.scorer, self.truncate = rough_boxes.RoughScorer(source, rules), truncate

    def check(self, phrases: Sequence[str]) -> None:
        """Raises `DataError` for a phrase that is too long; notes scripts that the model never read."""
        _check_phrases([self.scorer.source], phrases, self.scorer.rules, self.truncate)

    def __call__(self, picture: Image.Image, photo: str, phrases: Sequence[str]) -> FoundPhrases:
        """The likeliest of each phrase's rough boxes."""
        found = self.scorer(picture, phrases, self.truncate)
        return FoundPhrases([found_boxes.best_of(p, *one) for p, one in zip(phrases, found, strict=True)])


class ProposalFinder:
    """Models that choose among a detector's boxes. min_score: leave boxes below it out. Raises `ConfigError` for weights
    without both towers."""

    way: Way = "proposals"

    def __init__(
        self,
        models: Sequence[sources.ModelSource],
        proposed: detector_boxes.DetectorBoxes,
        rules: box_proposals.ProposalRules | None = None,
        min_score: float | None = None,
        truncate: bool = False,
    ):
        self.scorer, self.proposed = box_proposals.BoxScorer(models, rules), proposed
        self.min_score, self.truncate = min_score, truncate

    def check(self, phrases: Sequence[str]) -> None:
        """Raises `DataError` for a phrase that is too long for one of the models; notes scripts that it never read."""
        _check_phrases(self.scorer.sources, phrases, self.scorer.rules, self.truncate)

    def __call__(self, picture: Image.Image, photo: str, phrases: Sequence[str]) -> FoundPhrases:
        """The likeliest of the photo's boxes. Raises `DataError` for a photo without any."""
        boxes = self.proposed.boxes(photo, picture.size, self.min_score)
        found = self.scorer(picture, boxes, phrases, self.truncate)
        return FoundPhrases([found_boxes.best_of(p, boxes, one) for p, one in zip(phrases, found, strict=True)])


def _check_phrases(
    models: Sequence[sources.ModelSource], phrases: Sequence[str], rules: box_proposals.ProposalRules, truncate: bool
) -> None:
    for source in models:
        scripts.warn_unread(phrases, source.vocabulary_kind)
        box_proposals.check_lengths(source, phrases, rules.prompt, truncate)

"""Which of a photo's boxes a phrase means, by a model's weights alone: ReCLIP.

Subramanian et al., ACL 2022, arXiv 2204.05991. Each box is looked at twice, cut out of the photo and in the photo with
all else blurred, and both scores are added:

    s_i(t) = scale · (cos(crop_i, t) + cos(blurred_i, t)),    P(i | t) = softmax_i s_i(t)

Phrases that name places are taken apart (`jclip.prompts.place_words`), and their rules multiply the probabilities
(`jclip.functional.box_relations`). Several models add their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jclip.data.preprocess import notice_squashed
from jclip.errors import ConfigError
from jclip.features.extraction import batch_size
from jclip.features.heads import check_directions, encode_prompts, scale_of
from jclip.features.photo_windows import in_parts
from jclip.features.source import ModelSource
from jclip.functional import box_relations
from jclip.functional.directions import unit
from jclip.functional.metrics import softmax
from jclip.postponed import jt
from jclip.prompts import place_words

PROMPT = "a photo of {phrase}"
BLUR = 100.0  # standard deviation in pixels, whatever the photo's size
VIEWS = ("crop", "blur")


@dataclass(frozen=True)
class ProposalRules:
    """The method's constants. prompt: around each text. blur: standard deviation of the surroundings, in pixels. views: how
    a box is looked at. places: whether words for places have rules. published: with the words of the paper's code alone."""

    prompt: str = PROMPT
    blur: float = BLUR
    views: tuple[str, ...] = VIEWS
    places: bool = True
    published: bool = False


@dataclass(frozen=True)
class ScoredBoxes:
    """One phrase's probabilities (N,) of a photo's boxes, the cosines (N,) of their crops with it by the first model, and
    how the phrase was read."""

    probabilities: np.ndarray
    cosines: np.ndarray
    read: place_words.Thing

    @property
    def best(self) -> int:
        """The box that is meant; of equally likely ones the first."""
        return int(self.probabilities.argmax())


class BoxScorer:
    """Models that say which of a photo's boxes a phrase means. Raises `ConfigError` for one without both towers."""

    def __init__(self, sources: Sequence[ModelSource], rules: ProposalRules | None = None):
        for source in sources:
            check_towers(source)
            notice_squashed(source.preprocess, "pictures of boxes")
        self.sources, self.rules = tuple(sources), rules or ProposalRules()
        self.texts = tuple(TextFeatures(source) for source in self.sources)

    def __call__(
        self,
        photo: Image.Image,
        boxes: np.ndarray,
        phrases: Sequence[str],
        truncate: bool = False,
        blurred: Image.Image | None = None,
    ) -> list[ScoredBoxes]:
        """An RGB photo and corners (N, 4) in its pixels → for each phrase the scores of all boxes, which are encoded once.

        blurred: the photo as `blurred` gives it, where several calls are about the same one.
        """
        blurred = self.blurred(photo) if blurred is None else blurred
        seen = [self._seen(source, photo, blurred, boxes) for source in self.sources]
        return [self._scored(phrase, boxes, seen, truncate) for phrase in phrases]

    def blurred(self, photo: Image.Image) -> Image.Image:
        """The photo that surrounds boxes; itself where no view has surroundings."""
        return photo.filter(ImageFilter.GaussianBlur(self.rules.blur)) if "blur" in self.rules.views else photo

    def _scored(self, phrase: str, boxes: np.ndarray, seen: Sequence[np.ndarray], truncate: bool) -> ScoredBoxes:
        def likely(text: str) -> np.ndarray:
            texts = self._encoded(text, truncate)
            logits = [s * (f @ t).sum(axis=0) for s, f, t in zip(self._scales, seen, texts, strict=True)]
            return softmax(np.sum(logits, axis=0))

        said = phrase.lower()
        read = place_words.read_places(phrase, self.rules.published) if self.rules.places else place_words.Thing(said)
        cosines = seen[0][0] @ self._encoded(said, truncate)[0]
        return ScoredBoxes(phrase_probabilities(said, read, likely, boxes), cosines, read)

    @cached_property
    def _scales(self) -> list[float]:
        return [scale_of(source.model) for source in self.sources]

    def _encoded(self, text: str, truncate: bool) -> list[np.ndarray]:
        """Of each model the text's feature (E,), of length one."""
        return [of_model(self.rules.prompt.replace("{phrase}", text), truncate) for of_model in self.texts]

    def _seen(self, source: ModelSource, photo: Image.Image, blurred: Image.Image, boxes: np.ndarray) -> np.ndarray:
        """(views, N, E), of length one."""
        look = {"crop": lambda box: cut_out(photo, box), "blur": lambda box: surroundings_blurred(photo, blurred, box)}
        pictures = (look[view](box) for view in self.rules.views for box in boxes.tolist())
        return picture_features(source, pictures).reshape(len(self.rules.views), len(boxes), -1)


def phrase_probabilities(
    phrase: str, read: place_words.Thing, likely: Callable[[str], np.ndarray], boxes: np.ndarray
) -> np.ndarray:
    """(N,): of the whole phrase, times those of what it was read as where that has rules. likely: text → (N,), of sum 1."""
    whole = likely(phrase)
    if read.plain:
        return whole
    both = whole * thing_probabilities(read, likely, boxes)
    return both / both.sum() if both.sum() > 0 else whole


def thing_probabilities(thing: place_words.Thing, likely: Callable[[str], np.ndarray], boxes: np.ndarray) -> np.ndarray:
    """(N,), of sum 1: how likely each box is the thing, by its text, then its relations, then its extremes."""
    found = likely(thing.text) if thing.text else np.full(len(boxes), 1 / len(boxes))
    for name, others in thing.relations:
        those = [thing_probabilities(other, likely, boxes) for other in others]
        if name == place_words.BETWEEN:
            found = box_relations.among(found, *those, box_relations.between(boxes))
        else:
            found = box_relations.related(found, *those, box_relations.RELATIONS[name](boxes))
    for name in thing.extremes:
        found = box_relations.extreme(found, box_relations.RELATIONS[name](boxes))
    return found


def cut_out(photo: Image.Image, box: Sequence[float]) -> Image.Image:
    """The photo's part in a box of corners, rounded to whole pixels, one at least."""
    left, top = (min(max(round(v), 0), size - 1) for v, size in zip(box[:2], photo.size, strict=True))
    right, bottom = (
        min(max(round(v), low + 1), size) for v, low, size in zip(box[2:], (left, top), photo.size, strict=True)
    )
    return photo.crop((left, top, right, bottom))


def surroundings_blurred(photo: Image.Image, blurred: Image.Image, box: Sequence[float]) -> Image.Image:
    """The photo within a box, blurred around it."""
    mask = Image.new("L", photo.size, 0)
    ImageDraw.Draw(mask).rectangle([*box], fill=255)
    return Image.composite(photo, blurred, mask)


def picture_features(source: ModelSource, pictures) -> np.ndarray:
    """RGB pictures, each squashed to the model's square → (N, E) float32, of length one."""
    look, found = replace(source.preprocess, resize="squash", size=source.config.vision.image_size), []
    with jt.no_grad():
        for some in in_parts(pictures, batch_size()):
            found.append(source.model.encode_image(np.stack([look(picture) for picture in some])).float32().numpy())
    features = np.concatenate(found)
    check_directions(features, [f"box {number}" for number in range(len(features))])
    return unit(features)


def text_feature(source: ModelSource, prompt: str, truncate: bool = False) -> np.ndarray:
    """(E,), of length one. Raises `DataError` for a text that is too long, unless `truncate`."""
    features = encode_prompts(source.model, source.tokenize([prompt], truncate))
    check_directions(features, [prompt])
    return unit(features)[0]


class TextFeatures:
    """A model's features of texts, each encoded once however many photos it is looked for in."""

    def __init__(self, source: ModelSource):
        self.source = source
        self._known: dict[tuple[str, bool], np.ndarray] = {}

    def __call__(self, text: str, truncate: bool = False) -> np.ndarray:
        """(E,), of length one. Raises as `text_feature` does."""
        if (text, truncate) not in self._known:
            self._known[text, truncate] = text_feature(self.source, text, truncate)
        return self._known[text, truncate]


def crop_support(texts: TextFeatures, photo: Image.Image, boxes: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
    """(n,): the cosine of each phrase with what its own box, corners (n, 4) of an RGB photo, cuts out of it. A phrase that
    is too long is cut."""
    said = np.stack([texts(PROMPT.replace("{phrase}", phrase.lower()), True) for phrase in phrases])
    pictures = picture_features(texts.source, (cut_out(photo, box) for box in np.asarray(boxes, float).tolist()))
    return (pictures * said).sum(axis=1)


def check_lengths(source: ModelSource, phrases: Sequence[str], prompt: str, truncate: bool) -> None:
    """Raises `DataError` for a phrase that with its prompt is longer than the text tower reads, unless `truncate`."""
    if not truncate:
        source.tokenize([prompt.replace("{phrase}", phrase.lower()) for phrase in phrases])


def check_towers(source: ModelSource) -> None:
    """Raises `ConfigError` for weights of one tower alone."""
    if source.config.vision is None or source.config.text is None:
        raise ConfigError("finding phrases needs weights with both towers, got one alone: name others with --model")

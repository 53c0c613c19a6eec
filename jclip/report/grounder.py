"""A finished run as what finds phrases in photos: what the task `ground` does with its runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from jclip.data import box_samples, box_views, photo_file
from jclip.errors import CheckpointError, ConfigError, quoted
from jclip.features import box_features, box_phrases, box_proposals
from jclip.features import source as sources
from jclip.functional import box_metrics, boxes
from jclip.model import grounding, grounding_attention, tower_levels
from jclip.paths import write_together
from jclip.readers import safetensors
from jclip.report import evaluation, predictions
from jclip.report.finished_run import MODEL, FinishedRun
from jclip.report.run_table import shortly
from jclip.train import box_training
from jclip.train.run_folder import LEARNED

if TYPE_CHECKING:  # help answers before NumPy is imported
    import numpy as np
    from PIL import Image

FILES = ("eval.json", "groups.csv", "boxes.jsonl")
PARTS = {"val_": "val", "test_": "test", "unseen_": "test, pairs never seen", "": "test"}
FIGURES = {
    "acc@0.5": "Acc@0.5", "acc@0.25": "@0.25", "acc@0.75": "@0.75", "mean_iou": "mean IoU", "cumulative_iou": "cumulative IoU",
    "acc_sides": "Acc@0.5, with sides", "acc_no_sides": "without", "count": "phrases",
}  # fmt: skip


def opened(photo: str | os.PathLike | Image.Image) -> Image.Image:
    """A photo of a path, or a picture, upright and in RGB. Raises `DataError` for what does not decode."""
    is_path = isinstance(photo, str | os.PathLike)
    return (photo_file.open_photo(photo) if is_path else photo_file.as_seen(photo)).convert("RGB")


def checked_phrases(phrases: str | Sequence[str]) -> tuple[str, ...]:
    """One phrase or several. Raises `ConfigError` for none, or an empty one."""
    said = (phrases,) if isinstance(phrases, str) else tuple(phrases or ())
    if not said or not all(isinstance(phrase, str) and phrase.strip() for phrase in said):
        raise ConfigError(f"name what to find: a phrase must not be empty, got {quoted(phrases, 60)}")
    return said


class FoundThing(NamedTuple):
    """A phrase's box: corners x1, y1, x2, y2 in pixels of the photo; a box comes back in any case.

    present: the probability that the thing is there, of a run that learned it. support: the cosine of the phrase with what
    the box cuts out. probability: of the box among those that were proposed. Each is None where it is not known.
    """

    phrase: str
    box: tuple[float, float, float, float]
    present: float | None = None
    support: float | None = None
    probability: float | None = None

    @property
    def xywh(self) -> tuple[float, float, float, float]:
        """The corner x1, y1 with width and height."""
        x1, y1, x2, y2 = self.box
        return x1, y1, x2 - x1, y2 - y1


class Looked(NamedTuple):
    """Where [REG] looks for a phrase: its weights (rows, columns) of the last layer over the places of the padded square,
    the mean of all heads; what of 1 they lack goes to other tokens. place: of the photo in the square."""

    phrase: str
    weights: np.ndarray
    place: box_views.Placement


class EncodedPhoto(NamedTuple):
    """A photo upright and in RGB, phrases, and what the towers say of both."""

    picture: Image.Image
    phrases: tuple[str, ...]
    features: box_features.BoxFeatures


@dataclass(frozen=True)
class Grounder(FinishedRun):
    """A finished run of the task `ground`."""

    task: ClassVar[str] = "ground"
    learned: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, result: Mapping[str, Any], overrides: Sequence[str], model: str) -> Grounder:
        """The run as of `load`, its `result` already read. Raises `CheckpointError` where its network is damaged."""
        import numpy as np

        module, config = cls.settings(folder, result["config"], overrides, model)
        path = folder / LEARNED
        try:
            saved = safetensors.read_sealed(path)
            shape = json.loads(saved.metadata["shape"])
        except OSError as e:
            raise CheckpointError(f"can't read {path}: {e.strerror}") from e
        except (KeyError, ValueError, RecursionError) as e:
            raise CheckpointError(f"{path} must say the network's sizes: it is not what a run learned") from e
        learned, own = {k: np.array(t.read()) for k, t in saved.items()}, folder / MODEL
        weights = str(own) if own.is_file() and not model else config.model
        return cls(folder, module, config, weights, result, learned, shape)

    @cached_property
    def source(self) -> sources.ModelSource:
        """The towers."""
        return sources.source_of(self.config, self.model)

    @cached_property
    def network(self) -> grounding.GroundingNetwork:
        """The fusion network. Raises `ConfigError` where the model's towers are of other sizes."""
        wanted = self.module.fusion_shape(self.config, self.source).to_dict()
        if wanted != dict(self.shape):
            name = next(k for k in wanted if wanted[k] != self.shape.get(k))
            raise ConfigError(
                f"{self.folder} was trained with {name}={self.shape.get(name)}, this model and config have {wanted[name]}: "
                "use the model that it was trained with"
            )
        return self.module.network_of(self.learned, self.shape, self.source)

    def predict(
        self,
        photo: str | os.PathLike | Image.Image,
        phrases: str | Sequence[str],
        support: bool = False,
        truncate: bool = False,
    ) -> list[FoundThing]:
        """Boxes of phrases in a photo, which is encoded once for all of them.

        photo: a path, or a picture. An EXIF rotation is applied: boxes are in pixels of the photo as it is seen. support:
        whether each box is cut out and compared with its phrase. Raises `DataError` for a phrase that is too long, unless
        `truncate` cuts it.
        """
        return self.found(self.encoded(photo, phrases, truncate), support)

    def attention(
        self, photo: str | os.PathLike | Image.Image, phrases: str | Sequence[str], truncate: bool = False
    ) -> list[Looked]:
        """Where the network looks for each phrase. Raises as `predict` does."""
        return self.looked(self.encoded(photo, phrases, truncate))

    def encoded(
        self, photo: str | os.PathLike | Image.Image, phrases: str | Sequence[str], truncate: bool = False
    ) -> EncodedPhoto:
        """What the towers say of a photo and its phrases, once for `found` and `looked`; phrases that were those of the photo
        before are not encoded again. Raises as `predict` does."""
        import numpy as np

        picture, said = opened(photo), checked_phrases(phrases)
        samples = box_samples.BoxSamples(
            (picture,), np.array([picture.size]), np.zeros(len(said), int), said, np.zeros((len(said), 4))
        )
        _ = self.network  # which gives the towers what was trained of them, before they see phrases or the photo
        tokens = self._tokens_of(said, truncate)
        features = box_features.box_features(self.source, samples, self.config.reading, keep=False, texts=False)
        return EncodedPhoto(picture, said, replace(features, phrases=tokens))

    def found(self, encoded: EncodedPhoto, support: bool = False) -> list[FoundThing]:
        """Boxes as `predict` gives them."""
        import numpy as np

        picture, said, features = encoded
        centres, present = box_features.found_boxes(self.network, features)
        corners = features.places[0].back(centres, picture.size)
        chances = [None] * len(said) if present is None else (1 / (1 + np.exp(-present.astype(float)))).tolist()
        cosines = [None] * len(said)
        if support:
            cosines = box_proposals.crop_support(self._texts, picture, corners, said).tolist()
        return [
            FoundThing(phrase, tuple(box), *scores)
            for phrase, box, *scores in zip(said, corners.tolist(), chances, cosines, strict=True)
        ]

    def looked(self, encoded: EncodedPhoto) -> list[Looked]:
        """What `attention` gives."""
        import numpy as np

        features, found = encoded.features, []
        for row, phrase in enumerate(encoded.phrases):
            batch = features.batch(np.array([row]))
            weights = grounding_attention.reg_attention(
                self.network, batch.images, batch.texts, batch.said, batch.seen, batch.of
            )[0].mean(axis=0)
            rows, columns = tower_levels.token_grid(self.source.config, self.config.visual_layers)
            found.append(Looked(phrase, weights[-rows * columns :].reshape(rows, columns), features.places[0]))
        return found

    def check_lengths(self, phrases: Sequence[str], truncate: bool) -> None:
        """Raises `DataError` for a phrase that is too long for the text tower, unless `truncate`."""
        box_proposals.check_lengths(self.source, phrases, self.config.reading.prompt, truncate)

    @cached_property
    def _texts(self) -> box_proposals.TextFeatures:
        return box_proposals.TextFeatures(self.source)

    @cached_property
    def _tokens(self) -> dict[tuple[str, ...], box_phrases.PhraseTokens]:
        return {}

    def _tokens_of(self, said: tuple[str, ...], truncate: bool) -> box_phrases.PhraseTokens:
        """Tokens of phrases; those of the last call are kept, for many photos are mostly asked for the same."""
        self.check_lengths(said, truncate)
        if said not in self._tokens:
            reading = self.config.reading
            tokens = box_phrases.phrase_tokens(self.source, said, reading.prompt, reading.stored)
            self._tokens.clear()
            self._tokens[said] = tokens
        return self._tokens[said]

    def measure(self, out: Path) -> dict[str, float]:
        """Boxes of the test phrases of the run's config; writes `files` into `out`. Raises `ConfigError` without any."""
        network = self.network  # which gives the towers what was trained of them, before they see a photo
        features = self.module.part_features(self.config, self.source, "test")
        if features is None:
            raise ConfigError(
                "there are no test phrases to measure on: set data.test, of the embedded world also data.test_scenes"
            )
        found = box_training.found_in(network, features, self.config.seed, **self.config.compared)
        return self.write_scored(out, found, self.marks())

    def check_predict(self, sheet: bool, sort: bool) -> None:
        """Raises `ConfigError`: photos alone have no phrases."""
        raise self.refusal("used to label photos without phrases: jclip ground PHOTO PHRASE… --run RUN")

    @staticmethod
    def files() -> tuple[str, ...]:
        """Metrics, groups of phrases, and each phrase with its boxes."""
        return FILES

    @staticmethod
    def write_scored(folder: Path, scored: box_training.FoundBoxes, marks: Mapping[str, Any]) -> dict[str, float]:
        """eval.json: the report. groups.csv: count, Acc@0.5 and its interval by length, direction words and size. boxes.jsonl:
        of each phrase photo, predicted and true box in pixels, and their IoU."""
        metrics = {**scored.report(), "criterion": scored.criterion, "frame": scored.frame, **marks}
        samples, compared = scored.features.samples, scored.compared
        groups = box_metrics.phrase_groups(samples.phrases, samples.boxes, samples.sizes[samples.of])
        rows = [
            [name, int(row["count"]), *(f"{row[k]:.4f}" for k in ("acc", "acc_low", "acc_high"))]
            for name, row in box_metrics.group_report(*compared, groups, scored.criterion).items()
        ]
        overlaps = boxes.iou(*compared).tolist()
        lines = [
            {"photo": photo, "phrase": phrase, "box": _rounded(box), "true": _rounded(true), "iou": round(overlap, 4)}
            for photo, phrase, box, true, overlap in zip(
                map(samples.name, samples.of.tolist()),
                samples.phrases,
                scored.predicted,
                samples.boxes,
                overlaps,
                strict=True,
            )
        ]
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        table = evaluation.csv_bytes(["phrases", "count", "acc@0.5", "low", "high"], rows)
        found = {"eval.json": evaluation.json_text(metrics).encode(), "groups.csv": table, "boxes.jsonl": text.encode()}
        write_together(folder, found)
        return metrics

    @staticmethod
    def run_table(metrics: Mapping[str, Any]) -> str:
        """A line per part of the data, then the other figures."""
        parts = _parts(metrics)
        shown = {f"{part}{k}" for part in parts for k in FIGURES}
        rest = [f"{k} {shortly(v)}" for k, v in metrics.items() if k not in shown]
        table = [_table([(title, metrics, part) for part, title in parts.items()])] if parts else []
        return "\n".join(filter(None, [*table, ", ".join(rest)]))

    @staticmethod
    def eval_table(metrics: Mapping[str, Any]) -> str:
        """The figures of the test phrases."""
        return Grounder.run_table(metrics)

    @staticmethod
    def comparison(results: Mapping[str, Mapping[str, float]]) -> str:
        """A line per run, on test phrases or else val. Raises `ConfigError` where one has measured none."""
        part = next((p for p in ("test_", "val_") if all(f"{p}acc@0.5" in m for m in results.values())), None)
        if part is None:
            raise ConfigError(f"runs must share Acc@0.5 on val or test, got none in common: {', '.join(results)}")
        return _table([(predictions.marked(Path(name).name, m), m, part) for name, m in results.items()])


def _parts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What stands before the figures of each part of the data, and of each of several test files, with its title."""
    files = {k.removesuffix("acc@0.5"): "" for k in metrics if k.endswith("_acc@0.5")}
    if "acc@0.5" in metrics:  # of one part, each file by its name
        return {"": "all" if files else PARTS[""], **{file: file.rstrip("_") for file in files}}
    of_test = {file: file.removeprefix("test_").rstrip("_") for file in files if file not in PARTS}
    known = {part: title for part, title in PARTS.items() if part in files}
    return known | ({"test_": "test, all"} if of_test else {}) | of_test


def _table(rows: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
    """name, metrics, what stands before their names → a table, with the columns that any of them has."""
    columns = {k: title for k, title in FIGURES.items() if any(f"{before}{k}" in m for _, m, before in rows)}
    cells = [
        [name, *(shortly(m[f"{before}{k}"]) if f"{before}{k}" in m else "" for k in columns)]
        for name, m, before in rows
    ]
    return predictions.table(["", *columns.values()], cells)


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(x), 2) for x in box]

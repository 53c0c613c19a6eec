"""A finished run as a model that finds images by captions and captions by images: what the task `retrieve` does.

Its product is `model.safetensors`, which every command takes as --model: photos are labelled by `jclip zero-shot`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jclip.config import CaptionConfig
from jclip.data import captions as caption_pairs
from jclip.data import chinese_clip
from jclip.data.stored_photos import StoredPhoto, file_of, is_stored, spoken_path
from jclip.errors import ConfigError
from jclip.features import caption_features
from jclip.features import source as sources
from jclip.functional import retrieval
from jclip.functional.directions import unit
from jclip.paths import refuse_overwriting, write_together
from jclip.report import evaluation, predictions
from jclip.report.finished_run import MODEL, FinishedRun
from jclip.report.run_table import selected_on_test, shortly

WAYS = {"i2t": "image → text", "t2i": "text → image"}
FIGURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "mean_rank": "mean rank", "median_rank": "median rank"}
SEARCHES = {"text_retrieval": "image → texts", "image_retrieval": "text → images"}
GROUPED = {
    "recall@1": "R@1", "recall@5": "R@5", "recall@10": "R@10", "mean_recall": "mean R", "median_rank": "median rank",
    "map": "mAP", "map@10": "mAP@10", "r_precision": "R-precision",
}  # fmt: skip
FILES = ("eval.json", "ranks.csv", "predictions.jsonl")
BEST = 10  # images of each text in predictions.jsonl


@dataclass(frozen=True)
class Retriever(FinishedRun):
    """A finished run of the task `retrieve`."""

    task: ClassVar[str] = "retrieve"

    def measure(self, out: Path) -> dict[str, float]:
        """Retrieval among the validation pairs of the run's config, by its model as the file has it.

        eval.json: recall at 1, 5 and 10, mean and median rank both ways of pairs, as `paired_report` has them, and of each
        image with all its texts and each text with all its images, as `grouped_report`. ranks.csv: of each pair the rank,
        from 1, of the own caption among all pairs' captions and of the own image among all pairs' images.
        predictions.jsonl: of each text its ten best images, in the form of Chinese-CLIP's scorer. Raises `ConfigError` where
        no pairs are named.
        """
        data: CaptionConfig = self.config.data
        own = Path(self.model) == self.folder / MODEL  # which says its family itself
        source = sources.ModelSource(self.model, None if own else self.config.family, upright=data.upright)
        pairs = caption_pairs.read_pairs(data, "val", source.preprocess.size, self.config.seed)
        if pairs is None:
            raise ConfigError("there are no image-caption pairs to measure on: set data.val to a table of captions")
        refuse_overwriting([out / name for name in FILES], [data.val, *map(file_of, pairs.paths)])
        encoded = caption_features.encode_pairs(source.model, pairs, source.preprocess)
        metrics = {**encoded.report(), **encoded.grouped(), "count": len(encoded.rows), **self.marks()}
        captions, _ = pairs.texts(encoded.rows)
        images = [spoken_path(pairs.paths[row]) if pairs.paths else str(row) for row in encoded.rows.tolist()]
        files = _ranks(images, captions, encoded.pair_scores)
        files["predictions.jsonl"] = chinese_clip.prediction_bytes(best_images(pairs, encoded))
        write_together(out, {"eval.json": evaluation.json_text(metrics).encode(), **files})
        return metrics

    def refusal(self, what: str) -> ConfigError:
        """That its model does that, with the command."""
        return ConfigError(
            f"{self.folder} must hold a classifier, got a model trained on captions (recipe {self.recipe}): use "
            f"`jclip zero-shot PHOTOS --model {self.folder / MODEL} --classes NAMES`"
        )

    @staticmethod
    def files() -> tuple[str, ...]:
        """Metrics, and the ranks of each pair."""
        return FILES

    @staticmethod
    def run_table(metrics: Mapping[str, float]) -> str:
        """Retrieval among the validation pairs where it was measured, then the other figures."""
        tables = [
            _table(metrics, "by pairs", WAYS, FIGURES),
            _table(metrics, "by groups", SEARCHES, GROUPED),
        ]
        shown = {f"{way}_{figure}" for way in WAYS for figure in FIGURES} if tables[0] else set()
        rest = [
            f"{k} {shortly(v)}"
            for k, v in metrics.items()
            if k not in shown and not (tables[1] and k.startswith((*SEARCHES,)))
        ]
        return "\n".join(filter(None, [*tables, ", ".join(rest), *selected_on_test(metrics)]))

    @staticmethod
    def eval_table(metrics: Mapping[str, float]) -> str:
        """Recall and ranks both ways, then the other figures."""
        return Retriever.run_table(metrics)

    @staticmethod
    def comparison(results: Mapping[str, Mapping[str, float]]) -> str:
        """A line per run: recall at 1, 5 and 10 both ways. Raises `ConfigError` where one has not measured it."""
        columns = {f"{way}_{k}": f"{title} {FIGURES[k]}" for way, title in WAYS.items() for k in ("r1", "r5", "r10")}
        without = [name for name, metrics in results.items() if not columns.keys() <= metrics.keys()]
        if without:
            raise ConfigError(f"runs must share retrieval figures, got none in {without[0]}: train it with data.val")
        rows = [
            [predictions.marked(Path(name).name, m), *(shortly(m[k]) for k in columns)] for name, m in results.items()
        ]
        return predictions.table(["", *columns.values()], rows)


def _table(metrics: Mapping[str, float], title: str, ways: Mapping[str, str], figures: Mapping[str, str]) -> str:
    """The figures of both directions; nothing where they were not measured."""
    if not {f"{way}_{figure}" for way in ways for figure in figures} <= metrics.keys():
        return ""
    rows = [[name, *(shortly(metrics[f"{way}_{k}"]) for k in figures)] for way, name in ways.items()]
    return predictions.table([title, *figures.values()], rows)


def _ranks(images: list[str], captions: list[str], scores: retrieval.Scores) -> dict[str, bytes]:
    """ranks.csv. scores: of the pairs' images and texts."""
    links = retrieval.Links.of_captions(range(len(images)))
    ranks = [1 + retrieval.link_ranks(scores, links, of_texts)[0] for of_texts in (False, True)]
    rows = zip(images, captions, *(r.tolist() for r in ranks), strict=True)
    return {"ranks.csv": evaluation.csv_bytes(["photo", "caption", "rank_of_caption", "rank_of_image"], rows)}


def best_images(pairs: caption_pairs.Pairs, encoded: caption_features.Encoded) -> dict[str, list[str]]:
    """Of each text its `BEST` images, best first, by the ids that the file has; without ids a text is the number of its
    first row, from 0, and an image its path."""
    _, firsts = np.unique(encoded.text_of, return_index=True)
    rows = encoded.rows[firsts].tolist()
    texts = [pairs.names[row] if pairs.names else str(row) for row in rows]
    _, firsts = np.unique(encoded.image_of, return_index=True)
    images = [_image_id(pairs, row) for row in encoded.rows[firsts].tolist()]
    photos, captions = unit(encoded.photos), unit(encoded.captions)
    found = {}
    for start in range(0, len(texts), retrieval.AT_ONCE):
        best = np.argsort(-(captions[start : start + retrieval.AT_ONCE] @ photos.T), axis=1, kind="stable")[:, :BEST]
        found.update(zip(texts[start:], ([images[i] for i in row] for row in best.tolist()), strict=False))
    return found


def _image_id(pairs: caption_pairs.Pairs, row: int) -> str:
    if not pairs.paths:
        return str(row)
    path = pairs.paths[row]
    return StoredPhoto.at(path).name if is_stored(path) else str(path)

"""Concepts: what `jclip teach` has learned, as a file that stands wherever a class name or a term of a query may.

A safetensors file of one linear head with what it belongs to: the model and its preprocessing, the text, the line, the
counts of answers and the last audit. Nothing in it is executed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jclip.data.gallery_store import Manifest, made_by
from jclip.errors import CheckpointError, ConfigError, DataError, quoted
from jclip.features.source import ModelSource, source_as_stated
from jclip.functional.taught_head import Head
from jclip.prompts.query_terms import CONCEPT, CONCEPT_ENDING
from jclip.readers import safetensors

FORMAT, VERSION = "jclip-concept", 1
LARGEST_WIDTH = 1 << 16
_TEXTS = ("name", "query", "model", "family")


@dataclass(frozen=True)
class Concept:
    """A head (E,) and what it belongs to.

    name: what tags and folders are called. query: what was asked for. model, family, identity, preprocess: as a gallery's
    manifest has them. answers: how many photos were answered yes, no and unsure. rows: photos of the gallery. audit: of
    the last audit precision and recall with their intervals, and how many photos it asked about; empty without one.
    """

    head: Head
    text: np.ndarray
    name: str
    query: str
    model: str
    identity: list
    preprocess: dict[str, Any]
    family: str = ""
    answers: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    audit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def made_by(self) -> str:
        """SHA-256 over weights, architecture and preprocessing, as a gallery's."""
        return made_by(self.identity, self.preprocess)

    def check_gallery(self, manifest: Manifest, place: str) -> None:
        """Raises `ConfigError` for a gallery of another model or preprocessing."""
        self._check(manifest.made_by, manifest.identity, manifest.model, place, manifest.width)

    def check_concept(self, other: Concept) -> None:
        """Raises `ConfigError` for a concept of another model or preprocessing."""
        self._check(
            other.made_by, other.identity, other.model, f"the concept {quoted(other.name, 60)}", len(other.text)
        )

    def source(self, model: str = "") -> ModelSource:
        """The model that the concept was taught with, or the one of that name or file, which must be the same. Raises
        `ConfigError` for another, `CheckpointError` for none."""
        try:
            found = source_as_stated(model or self.model, self.family, self.identity[2], self.preprocess)
        except CheckpointError as e:
            hint = "" if model else f"; the concept {self.name!r} was taught with it: name where it is by --model"
            raise CheckpointError(f"{e}{hint}") from None
        own = made_by(found.identity, found.preprocess.to_dict())
        self._check(own, found.identity, str(model or self.model), "photos", found.config.embed_dim)
        return found

    def _check(self, other: str, identity: list, model: str, place: str, width: int) -> None:
        if other == self.made_by and width == len(self.head.vector):
            return
        same = made_by(identity, {}) == made_by(self.identity, {})
        raise ConfigError(
            f"the concept {quoted(self.name, 60)} was taught with {self.model} ({len(self.head.vector)} dimensions) and needs "
            f"the same {'preprocessing' if same else 'weights'}, got {model} ({width}) for {place}: teach it again there, or "
            "name the concept's own model"
        )


def is_concept(word: str) -> bool:
    """Whether a class name means a concept: `concept:FILE`, or a file with the ending .concept."""
    return word.startswith(CONCEPT) or word.endswith(CONCEPT_ENDING)


def concept_path(word: str) -> str:
    """The file that such a class name means."""
    return word.removeprefix(CONCEPT) if word.startswith(CONCEPT) else word.removeprefix("@")


def write_concept(path: str | os.PathLike, concept: Concept) -> None:
    """Writes it whole, to a temporary name first; the same concept gives the same bytes."""
    said = {name: getattr(concept, name) for name in (*_TEXTS, "identity", "preprocess", "rows")}
    said |= {"answers": dict(concept.answers), "audit": dict(concept.audit), "format": FORMAT, "version": VERSION}
    arrays = {
        "vector": concept.head.vector.astype(np.float32),
        "text": concept.text.astype(np.float32),
        "scale_and_bias": np.array([concept.head.scale, concept.head.bias], np.float64),
    }
    safetensors.write(path, arrays, {"concept": json.dumps(said, sort_keys=True)})


def read_concept(path: str | os.PathLike) -> Concept:
    """A file that `write_concept` has written. Raises `DataError` for any other, and for one that is damaged or absent."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such concept: {path} (`jclip teach` writes them)")
    try:
        file = safetensors.read_sealed(path)
        said = json.loads(file.metadata["concept"])
        if said.pop("format") != FORMAT:
            raise ValueError("another format")
        if (version := said.pop("version")) != VERSION:
            raise DataError(f"{path} must be a concept of version {VERSION}, got {version!r:.20}: use a newer jclip")
        found = _from_file(said, {name: file[name] for name in ("vector", "text", "scale_and_bias")})
    except CheckpointError as e:
        raise DataError(f"{path} must be a concept as `jclip teach` writes them: {e}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise DataError(f"{path} must be a concept as `jclip teach` writes them, got another file ({e})") from None
    return found


def _from_file(said: dict[str, Any], tensors: Mapping[str, Any]) -> Concept:
    shapes = [tensors[name].shape for name in ("vector", "text", "scale_and_bias")]
    dtypes = [tensors[name].dtype for name in ("vector", "text", "scale_and_bias")]
    if dtypes != ["float32", "float32", "float64"] or shapes[0] != shapes[1] or shapes[2] != (2,):
        raise ValueError(f"arrays of {shapes} in {dtypes}")
    if len(shapes[0]) != 1 or not 0 < shapes[0][0] <= LARGEST_WIDTH:
        raise ValueError(f"a vector of {shapes[0]}")
    vector, text, (scale, bias) = (tensors[name].read() for name in ("vector", "text", "scale_and_bias"))
    if not (abs(np.linalg.norm(vector) - 1) < 1e-3 and np.isfinite(text).all() and scale > 0):
        raise ValueError("a vector that is not of length one")
    if not (math.isfinite(scale) and math.isfinite(bias)):
        raise ValueError("numbers that are not finite")
    if not all(isinstance(said[name], str) for name in _TEXTS) or not said["name"].strip():
        raise ValueError("texts that are none")
    if not isinstance(said["identity"], list) or len(said["identity"]) < 3 or not isinstance(said["identity"][2], str):
        raise ValueError("an identity that is none")
    if not all(isinstance(said[name], dict) for name in ("preprocess", "answers", "audit")):
        raise ValueError("tables that are none")
    return Concept(Head(vector, float(scale), float(bias)), text, **said)

"""Learned prompts: vectors in the place of words around each class's name, for a text tower that stays as it is.

Zhou et al., IJCV 2022, arXiv 2109.01134, section 3.2. The prompt of class k is [start] v_1 … v_M name_k . [end]; a tower
that attends to what came before alone needs no token after the end, so none is computed, and gives the same to equal
beginnings, so [start] v_1 … v_M, in every prompt, is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from jclip.errors import DataError
from jclip.functional.similarity import normalise
from jclip.kernels.collectives import shared_rows
from jclip.kernels.gradient_parts import in_parts, slices
from jclip.machine import ranks
from jclip.model.clip import CLIP
from jclip.model.layers import SharedStart
from jclip.paths import replacing
from jclip.prompts.vocabularies import TextTokenizer
from jclip.readers.spreadsheet import write_csv_rows
from jclip.runtime import jt
from jclip.weights.stored_vocabulary import check_takes_vectors
from jclip.weights.variants import CLIPConfig

Position = Literal["end", "middle", "front"]  # where the class's name stands


SPREAD = 0.02  # standard deviation of vectors that start from no words


WORTHWHILE = 0.2  # share of a text's tokens that are not computed again


AT_ONCE = 256  # prompts of a backward pass that are kept in memory together


class Reader(Protocol):
    """What reads prompts: a model, or its source."""

    config: CLIPConfig

    @property
    def tokenizer(self) -> TextTokenizer: ...


@dataclass(frozen=True)
class Layout:
    """Prompts as tokens (C, L) with gaps for the learned vectors: slots (C, L) are 0 at words and m at the m-th vector.

    runs: so many runs of equally many prompts stand one after the other, each with vectors of its own.
    """

    tokens: np.ndarray
    slots: np.ndarray
    runs: int = 1

    @property
    def first(self) -> int:
        """Where the vectors begin that stand before a name: after the start token, where there is one."""
        return int((self.slots[0] > 0).argmax())

    @property
    def ends(self) -> np.ndarray:
        """(C,) positions of the end token, the last one that is not 0."""
        return self.tokens.shape[1] - 1 - (self.tokens[:, ::-1] != 0).argmax(axis=1)

    @classmethod
    def of(
        cls,
        reader: Reader,
        classnames: Sequence[str],
        vectors: int,
        position: Position = "end",
        fixed: Sequence[int] = (),
    ) -> Layout:
        """The layout of class names and that many vectors, cut at the longest prompt; `fixed`: tokens before each name.

        reader: the model, or its source. Raises `DataError` for what does not fit, `ConfigError` for a text tower that takes
        no vectors.
        """
        check_takes_vectors(reader.config.text)
        words, context = reader.tokenizer, reader.config.text.context_length
        names = [name.replace("_", " ") for name in classnames]
        spoken = [len(fixed) + len(words.encode(name)) for name in names]
        rows = [
            _arranged([*fixed, *words.encode(f"{name}.")], count, vectors, position)
            for name, count in zip(names, spoken, strict=True)
        ]
        first = 0 if words.start is None else 1
        length = max(len(tokens) for tokens, _ in rows) + first + 1
        if length > context:
            name = max(names, key=lambda n: len(words.encode(n)))
            raise DataError(
                f"{vectors} context vectors and the name {name!r} make {length} tokens, the tower takes "
                f"{context}: learn fewer vectors, or shorten the name"
            )
        tokens, slots = np.zeros((2, len(rows), length), np.int32)
        if reader.config.text.kind == "siglip":  # which reads all of its context, padding too
            tokens = np.full((len(rows), context), words.pad, np.int32)
            slots = np.zeros_like(tokens)
        if first:
            tokens[:, 0] = words.start
        for k, (ids, places) in enumerate(rows):
            end = first + len(ids)
            tokens[k, first:end], slots[k, first:end] = ids, places
            tokens[k, end] = words.end
        return cls(tokens, slots)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `read` takes."""
        return {"tokens": self.tokens, "slots": self.slots}

    @classmethod
    def read(cls, learned: Mapping[str, np.ndarray]) -> Layout:
        """The inverse of `arrays`."""
        return cls(learned["tokens"], learned["slots"])

    @property
    def alike(self) -> int:
        """How many tokens all prompts of a run begin with, learned vectors among them."""
        tokens, slots = (x.reshape(self.runs, -1, x.shape[-1]) for x in (self.tokens, self.slots))
        same = ((tokens == tokens[:, :1]) & (slots == slots[:, :1])).all(axis=(0, 1))
        return int(same.argmin()) if not same.all() else len(same)

    def joined(self, others: Sequence[Layout], vectors: Sequence[int]) -> Layout:
        """This one and `others` of equally many prompts as runs of one; vectors: how many each of them numbers."""
        every = (self, *others)
        length = max(layout.tokens.shape[1] for layout in every)
        before = np.cumsum([0, *vectors[:-1]])
        padding = [((0, 0), (0, length - layout.tokens.shape[1])) for layout in every]
        tokens = [np.pad(layout.tokens, pad) for layout, pad in zip(every, padding, strict=True)]
        slots = [
            np.pad(np.where(layout.slots > 0, layout.slots + start, 0), pad).astype(np.int32)
            for layout, pad, start in zip(every, padding, before, strict=True)
        ]
        return Layout(np.concatenate(tokens), np.concatenate(slots), len(every))

    def of_each_class(self, vectors: int) -> Layout:
        """The layout where each class has vectors of its own, numbered class by class."""
        own = self.slots + vectors * np.arange(len(self.slots), dtype=np.int32)[:, None]
        return replace(self, slots=np.where(self.slots > 0, own, 0))


def _arranged(name: list[int], spoken: int, vectors: int, position: Position) -> tuple[list[int], list[int]]:
    """Tokens and slots of a prompt without its start and end; `spoken`: how many tokens of `name` come before its dot."""
    places = list(range(1, vectors + 1))
    before = {"end": vectors, "middle": vectors // 2, "front": 0}[position]
    ids = [0] * before + name[:spoken] + [0] * (vectors - before) + name[spoken:]
    slots = places[:before] + [0] * spoken + places[before:] + [0] * (len(name) - spoken)
    return ids, slots


class Frame:
    """Prompts whose gaps are filled with vectors, and the text tower that reads them; it stays as it is."""

    def __init__(self, model: CLIP, layout: Layout):
        self._model, self._ends, self._alike = model, layout.ends, min(layout.alike, int(layout.ends.min()))
        self._runs, self._first = layout.runs, layout.first
        self._slots = jt.array(layout.slots).stop_grad()
        table = model.word_vectors.numpy()
        self._words = jt.array(table[layout.tokens] * (layout.slots == 0)[:, :, None]).stop_grad()

    def __len__(self) -> int:
        return len(self._ends)

    def encode(self, vectors, rows: slice | np.ndarray = slice(None), shifts=None, runs: int = 1):
        """(n, E) text features of length one of the prompts in `rows`, with `vectors` in their gaps.

        vectors: (M, D), or (J, M, D) where each of the first J blocks gets vectors of its own (those after the start
        token; the gaps are there then). shifts: (n, D) that are added to all vectors of a prompt, of the same for each of
        `runs` runs of equally many prompts. What all prompts of a run begin with is computed once.
        """
        at = rows if isinstance(rows, slice) else jt.array(rows.astype(np.int32))
        first, deep = vectors, {}
        if vectors.ndim == 3:
            first, deep = vectors[0], {i: (self._first, vectors[i]) for i in range(1, vectors.shape[0])}
        slots = self._slots[at]
        x = self._words[at] + jt.concat([jt.zeros((1, first.shape[1])), first], dim=0)[slots]
        if shifts is not None:
            x = x + (slots > 0).float32().unsqueeze(2) * shifts.unsqueeze(1)
        shared = self._shared(*x.shape[:2], runs)
        return normalise(self._model.encode_text_embeddings(x, self._ends[rows], insert=deep, shared=shared))

    def _shared(self, rows: int, length: int, runs: int) -> SharedStart | None:
        """How so many rows begin alike, where that saves enough to be worth the copies, and a token sees none behind it."""
        if not self._model.causal:
            return None
        saved = (rows - runs) * self._alike
        return SharedStart(rows, length, self._alike, runs) if saved >= WORTHWHILE * rows * length else None

    def features(self, vectors):
        """(C, E) text features of length one of all prompts; of many the backward pass recomputes each part.

        Several ranks read a share each, and all get all.
        """
        if ranks.here().several:
            width = self._model.config.embed_dim
            return shared_rows(lambda rows: self._of_rows(vectors, rows), len(self), width)
        each = len(self) // self._runs
        if len(self) <= AT_ONCE or self._runs == 1:
            parts = [(rows, self._runs) for rows in slices(len(self), AT_ONCE)]
        else:
            starts = range(0, len(self), each)
            parts = [(slice(at + s.start, at + s.stop), 1) for at in starts for s in slices(each, AT_ONCE)]
        return in_parts(lambda part: self.encode(vectors, part[0], runs=part[1]), parts, [vectors])

    def _of_rows(self, vectors, rows: slice):
        """(n, E) of consecutive prompts, in parts of one run each."""
        each, parts = len(self) // self._runs, []
        for at in range(0, len(self), each):
            start, stop = max(at, rows.start), min(at + each, rows.stop)
            parts += (
                [slice(start + s.start, start + s.stop) for s in slices(stop - start, AT_ONCE)] if start < stop else []
            )
        return in_parts(lambda part: self.encode(vectors, part), parts, [vectors])


class Prompts:
    """Class names with learned vectors, and the text features of both.

    vectors: (M, D), or (C M, D) with `per_class`; started from `words`, whose number M then is, or at random by `seed`.
    Raises `DataError` for names that do not fit.
    """

    def __init__(
        self,
        model: CLIP,
        classnames: Sequence[str],
        length: int = 16,
        words: str = "",
        position: Position = "end",
        per_class: bool = False,
        seed: int = 0,
    ):
        start = first_vectors(model, length, words, seed)
        layout = Layout.of(model, classnames, len(start), position)
        self.layout = layout.of_each_class(len(start)) if per_class else layout
        self.vectors = jt.array(np.tile(start, (len(classnames), 1)) if per_class else start)
        self.frame = Frame(model, self.layout)

    def features(self):
        """(C, E) text features of length one, of the vectors as they are."""
        return self.frame.features(self.vectors)


def first_vectors(model: CLIP, length: int, words: str, seed: int) -> np.ndarray:
    """(M, D): the embeddings of `words`, or `length` random vectors of N(0, 0.02²). Raises `DataError` for no words."""
    table = model.word_vectors
    if not words:
        rng = np.random.default_rng((seed, 0xC0))
        return (SPREAD * rng.standard_normal((length, table.shape[1]))).astype(np.float32)
    ids = model.tokenizer.encode(words.replace("_", " "))
    if not ids:
        raise DataError(f"{words!r} holds no words to start from")
    return table.numpy()[ids]


def nearest_words(model: CLIP, vectors: np.ndarray, count: int = 5) -> list[list[tuple[str, float]]]:
    """For each of `vectors` (n, D) the tokens whose embeddings are nearest, and how far away (Euclidean)."""
    table, words = model.word_vectors.numpy().astype(np.float64), model.tokenizer
    squares = (table**2).sum(axis=1)
    found = []
    for vector in vectors.astype(np.float64):
        distances = squares - 2 * table @ vector + (vector**2).sum()
        best = np.argsort(distances, kind="stable")[:count]
        found.append([(words.decode([int(i)]).strip(), math.sqrt(max(distances[i], 0.0))) for i in best])
    return found


def write_nearest(path: Path, model: CLIP, vectors: np.ndarray, count: int = 5) -> None:
    """A CSV of the `count` tokens nearest to each of the vectors (M, D) with their distances: what was learned, in words."""
    columns = [f"{what}_{i + 1}" for i in range(count) for what in ("word", "distance")]
    found = enumerate(nearest_words(model, vectors, count), start=1)
    rows = [[number, *(x for word, away in words for x in (word, f"{away:.4f}"))] for number, words in found]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        write_csv_rows(f, ["vector", *columns], rows)

"""Every token of the distinct phrases of a data set, computed once and kept one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jclip.errors import DataError, notice, quoted
from jclip.features.source import ModelSource
from jclip.machine import work_meter
from jclip.model import clip

AT_ONCE = 64  # photos, or phrases, in a tower at once
WORTH_SHOWING = 500  # photos, or phrases, whose encoding takes a while
MOST_OF_PHRASES = 2**28  # bytes of phrases' tokens in float32
Stored = Literal["fp16", "fp32"]
KINDS: dict[str, str] = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class PhraseTokens:
    """Text tokens (T, E) of distinct phrases, one after the other; starts: (P + 1,) where each begins; each phrase's row."""

    tokens: np.ndarray
    starts: np.ndarray
    rows: dict[str, int]

    def batch(self, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(B, L, E) and (B, L) which of them count, of these phrases, filled up with zeros to the longest."""
        rows = [self.rows[phrase] for phrase in phrases]
        lengths = self.starts[1:][rows] - self.starts[rows]
        said = (np.arange(lengths.max()) < lengths[:, None]).astype(np.float32)
        found = np.zeros((*said.shape, self.tokens.shape[1]), np.float32)
        for place, row in enumerate(rows):
            found[place, : lengths[place]] = self.tokens[self.starts[row] : self.starts[row + 1]]
        return found, said


def in_prompt(phrase: str, prompt: str) -> str:
    """The text that the tower reads for a phrase."""
    return prompt.replace("{phrase}", phrase.lower())


def phrase_ids(source: ModelSource, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids (P, as many as the model reads) and lengths (P,); a text that is too long is cut before its end token."""
    ids = source.tokenize(texts, truncate=True)
    return ids, source.model.ends(ids) + 1


def phrase_tokens(
    source: ModelSource, phrases: Sequence[str], prompt: str = "{phrase}", stored: Stored = "fp32"
) -> PhraseTokens:
    """Every token of each distinct phrase, put into `prompt`; those too long are cut before their end token, and counted.

    They are float32, or as `stored` says where these would take more than a quarter of a GiB.
    """
    distinct = list(dict.fromkeys(phrases))
    ids, lengths = phrase_ids(source, [in_prompt(phrase, prompt) for phrase in distinct])
    warn_long(source, distinct, prompt, lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    width = source.config.embed_dim
    kind = np.float32 if 4 * int(starts[-1]) * width <= MOST_OF_PHRASES else KINDS[stored]
    tokens, order = np.zeros((int(starts[-1]), width), kind), np.argsort(lengths, kind="stable")
    with clip.inference(source.model):
        batches = progress(range(0, len(order), AT_ONCE), "encode phrases", len(order) > WORTH_SHOWING)
        of = {"phase": "encoding texts", "weigh": lambda at: float(lengths[order[at : at + AT_ONCE]].sum())}
        for at in work_meter.some(batches, ("phrases", id(source.model)), **of):
            rows = order[at : at + AT_ONCE]
            _, every = source.model.encode_text(ids[rows], dense=True)
            for row, of_phrase in zip(rows.tolist(), every.float32().numpy(), strict=True):
                tokens[starts[row] : starts[row + 1]] = of_phrase[: lengths[row]]
    if work_meter.running() and len(lost := np.flatnonzero(~tokens.any(axis=1))):  # those that were left out
        tokens[lost] = work_meter.resembling(tokens[tokens.any(axis=1)], lost)
    return PhraseTokens(tokens, starts, {phrase: row for row, phrase in enumerate(distinct)})


def warn_long(source: ModelSource, phrases: Sequence[str], prompt: str, lengths: np.ndarray) -> None:
    """Says in one line how many phrases the tower can't read whole."""
    most, long = source.config.text.context_length, []
    for place in np.flatnonzero(lengths == most).tolist():
        try:
            source.tokenize([in_prompt(phrases[place], prompt)])
        except DataError:
            long.append(phrases[place])
    if long:
        notice(
            f"{len(long)} of {len(phrases)} phrases are longer than the {most} tokens of the text tower and are cut "
            f"(first: {quoted(long[0], 60)})"
        )


def progress(steps: Iterable, title: str, shown: bool, total: int | None = None) -> Iterable:
    """The steps, with a bar on a terminal where that is worth it."""
    from tqdm import tqdm

    return tqdm(steps, desc=title, total=total, disable=None if shown else True, leave=False)

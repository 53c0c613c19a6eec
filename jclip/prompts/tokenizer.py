"""CLIP's byte-pair encoding: text to int32 ids, equal to OpenAI's on every string but literal special tokens.

A caption that contains "<|endoftext|>" is text here, not a command; OpenAI turns it into the special id.
`allow_special=True` restores that.
"""

from __future__ import annotations

import gzip
import heapq
import html
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import regex

from jclip.errors import DataError
from jclip.paths import ASSETS

VOCABULARY = ASSETS / "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2  # what OpenAI uses of the table's lines
START, END = "<|startoftext|>", "<|endoftext|>"
OPENAI_BPE = "openai-bpe"  # the kind of this vocabulary, and its digest in keys and metadata
MOST_LETTERS = 100_000  # of a text: repairing it takes a second then
LONGEST_REMEMBERED = 64  # letters of a word whose ids are kept
END_OF_WORD = -1
_SPECIAL = r"<\|startoftext\|>|<\|endoftext\|>|"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PLAIN = regex.compile(r"[ !-%'-~]*")  # printable ASCII without "&": repairing and unescaping change nothing


class TextShape(Protocol):
    """What of a text tower its tokenizer must know."""

    vocab_size: int
    context_length: int


class Tokenizer:
    """The vocabulary and its merges; `merges` takes only the first ones of them (a smaller vocabulary)."""

    kind = digest = OPENAI_BPE
    pad = 0

    def __init__(self, path: str | Path = VOCABULARY, merges: int = MERGES):
        with gzip.open(path, "rt", encoding="utf-8") as f:
            pairs = [line.rstrip("\n") for line in islice(f, 1, merges + 1)]  # "a b"; taking them apart would take long
        letters = _byte_letters()
        symbols = [*letters, *(c + "</w>" for c in letters), *(p.replace(" ", "") for p in pairs), START, END]
        self._byte_to_letter = dict(zip(_byte_order(), letters, strict=True))
        self._letter_to_byte = {c: b for b, c in self._byte_to_letter.items()}
        self._ids = {s: i for i, s in enumerate(symbols)}
        self._symbols = symbols
        self._ranks = {p: i for i, p in enumerate(pairs)}
        self._split = regex.compile(_WORDS, regex.IGNORECASE)
        self._split_special = regex.compile(_SPECIAL + _WORDS, regex.IGNORECASE)
        self._word_ids = lru_cache(maxsize=65536)(self._encode_word)
        self.start, self.end = self._ids[START], self._ids[END]

    @property
    def vocab_size(self) -> int:
        """Number of ids; the last one is end-of-text."""
        return len(self._symbols)

    def ids(self) -> dict[str, int]:
        """Every symbol's id."""
        return dict(self._ids)

    def merges(self) -> list[tuple[str, str]]:
        """The pairs that are merged, the most urgent first."""
        return [tuple(pair.split()) for pair in self._ranks]

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of `text`, without start and end.

        Raises `DataError` for a text of more than a hundred thousand letters.
        """
        if len(text) > MOST_LETTERS:
            raise DataError(f"a text must have at most {MOST_LETTERS:,} letters, got {len(text):,}: {shorten(text)!r}")
        split = self._split_special if allow_special else self._split
        ids: list[int] = []
        for word in split.findall(clean(text)):
            if allow_special and word in (START, END):
                ids.append(self._ids[word])
            else:
                ids.extend(self._ids_of(word))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: cleaned and lower-cased as it was encoded, a space after each word."""
        joined = "".join(self._symbols[int(i)] for i in ids)
        data = bytearray()
        for piece in regex.split(r"(<\|startoftext\|>|<\|endoftext\|>|</w>)", joined):
            if piece in (START, END):
                data += piece.encode()
            elif piece == "</w>":
                data += b" "
            else:
                data += bytes(self._letter_to_byte[c] for c in piece)
        return data.decode("utf-8", errors="replace")

    def __call__(
        self, texts: str | Sequence[str], context_length: int = 77, truncate: bool = False, allow_special: bool = False
    ) -> np.ndarray:
        """int32 (B, context_length): start, ids, end, zeros.

        A text that is too long raises `DataError` naming it, unless `truncate` cuts it before its end token.
        """
        if context_length < 2:
            raise DataError(f"context length {context_length} leaves no room for start and end of text")
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = np.zeros((len(texts), context_length), dtype=np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self.encode(text[:MOST_LETTERS] if truncate else text, allow_special)
            room = context_length - 2
            if len(ids) > room and not truncate:
                raise DataError(
                    f"text of {len(ids) + 2} tokens is too long for context length {context_length}: "
                    f"{shorten(text)!r} (shorten it, or pass truncate=True / --truncate)"
                )
            ids = [self.start, *ids[:room], self.end]
            row[: len(ids)] = ids
        return tokens

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """int (B,): where each row's end-of-text stands, the first of its highest id. ids: (B, L)."""
        return np.asarray(ids).argmax(-1)

    def _ids_of(self, word: str) -> tuple[int, ...]:
        return self._word_ids(word) if len(word) <= LONGEST_REMEMBERED else self._encode_word(word)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        letters = [self._byte_to_letter[b] for b in word.encode("utf-8")]
        return tuple(self._ids[s] for s in _merge([*letters[:-1], letters[-1] + "</w>"], self._ranks))


def _merge(symbols: list[str], ranks: Mapping[str, int]) -> list[str]:
    """Greedy: join the pair of lowest rank, everywhere from left to right, until no pair has one. O(n log n).

    ranks: "a b" → how urgent it is to join a and b. `symbols` is changed: a joined pair stands in the left one's place.
    """
    follower, waiting = [*range(1, len(symbols)), END_OF_WORD], []  # of each symbol; (rank, place of the left one)
    leader = [END_OF_WORD, *range(len(symbols) - 1)]
    joined = [False] * len(symbols)  # to the symbol before it

    def wait(left: int) -> None:
        if left != END_OF_WORD and (right := follower[left]) != END_OF_WORD:
            pair = f"{symbols[left]} {symbols[right]}"
            if pair in ranks:
                heapq.heappush(waiting, (ranks[pair], left, pair))

    for place in range(len(symbols)):
        wait(place)
    while waiting:
        rank, made = waiting[0][0], []
        while waiting and waiting[0][0] == rank:  # all of one pair, before what they make is looked at
            _, left, pair = heapq.heappop(waiting)
            right = follower[left]
            if joined[left] or right == END_OF_WORD or f"{symbols[left]} {symbols[right]}" != pair:
                continue  # one of the two has been joined to another
            symbols[left] += symbols[right]
            joined[right] = True
            follower[left] = after = follower[right]
            if after != END_OF_WORD:
                leader[after] = left
            made.append(left)
        for left in made:
            wait(leader[left])
            wait(left)
    return [symbol for symbol, gone in zip(symbols, joined, strict=True) if not gone]


def clean(text: str) -> str:
    """Mojibake repaired, HTML unescaped twice, white space collapsed, lower case."""
    return regex.sub(r"\s+", " ", repaired(text).strip()).strip().lower()


def repaired(text: str) -> str:
    """Mojibake repaired, HTML unescaped twice."""
    if _PLAIN.fullmatch(text):
        return text
    import ftfy  # only here: it costs a tenth of a second to import

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _byte_order() -> list[int]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return printable + [b for b in range(256) if b not in set(printable)]


def _byte_letters() -> list[str]:
    """A visible character for each byte, in the order of the vocabulary."""
    printable = 188
    return [chr(b) for b in _byte_order()[:printable]] + [chr(256 + n) for n in range(256 - printable)]


def shorten(text: str, length: int = 60) -> str:
    """A text's beginning, for a message."""
    return text if len(text) <= length else text[:length] + "…"


@lru_cache(maxsize=4)
def tokenizer(merges: int = MERGES) -> Tokenizer:
    """The shared tokenizer, built once per process."""
    return Tokenizer(merges=merges)


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> np.ndarray:
    """int32 (B, context_length) ids of OpenAI's tokenizer. See `Tokenizer.__call__`."""
    return tokenizer()(texts, context_length, truncate)


def tokenizer_for(config: TextShape) -> Tokenizer:
    """The tokenizer in the vocabulary of a text tower: smaller ones know only the first merges.

    Raises `DataError` for a vocabulary that is no beginning of OpenAI's, and for a tower of another kind than CLIP's.
    """
    if (kind := getattr(config, "kind", "clip")) != "clip":
        raise DataError(f"CLIP's own vocabulary must belong to CLIP's text tower, got a tower of kind {kind}")
    merges = config.vocab_size - len(_byte_order()) * 2 - 2
    if not 0 <= merges <= MERGES:
        raise DataError(f"a vocabulary of {config.vocab_size} is not OpenAI's {MERGES + 514} nor a beginning of it")
    return tokenizer(merges)

"""Tokenizers in the JSON of the package `tokenizers`, made safe: what stands in a text is text, whatever it spells.

The special tokens of the file (`<eos>`, `</s>`, `[SEP]`) are put around texts here, and within texts can't be spelled:
their pieces are renamed to what no text holds before the package sees them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jclip.errors import CheckpointError, DataError, SetupError, printable, quoted
from jclip.prompts.sentencepiece_model import check_charsmap
from jclip.prompts.text_cleaning import CLEANERS
from jclip.prompts.tokenizer import MOST_LETTERS, shorten

INSTALL = "pip install 'jclip[tokenizers]'"
UNSPELLABLE = "\uffff"  # Unicode's noncharacter: begins the pieces that no text may reach; in texts it is replaced
REPLACEMENT = "\ufffd"
PAD_NAMES = ("<pad>", "[PAD]")
MOST_MORE, MOST_FEWER = 1 / 64, 1 / 8  # tokens that a vocabulary may have beside its tower's embedding, as a share
_DEEPEST = 8  # sequences within sequences

Spec = dict[str, Any]


class JsonTokenizer:
    """A tokenizer that the package `tokenizers` runs.

    spec: what tokenizer.json holds. settings: `clean` (a key of `CLEANERS`), `lower_case`, `pad_token`, `padding_side`,
    `start_token` and `end_token` (in place of the file's own; null for none). vocab_size: rows of the embedding, which
    ids stay below. Raises `CheckpointError` for a file that the package can't read or that belongs to another
    embedding, `SetupError` where the package is absent.
    """

    def __init__(self, spec: Spec, settings: Mapping[str, Any], vocab_size: int, kind: str, digest: str):
        self.kind, self.digest = kind, digest
        ids = vocabulary_of(spec)
        _check_size(len(ids) and max(ids.values()) + 1, vocab_size, kind)
        self._before, self._after = _around(spec, settings, ids, kind)
        self.pad = _pad(settings, spec, ids, self._after)
        self._left = settings.get("padding_side", "right") == "left"
        self._clean = CLEANERS[settings.get("clean", "none")]
        beyond = [i for i in (*self._before, *self._after, self.pad) if not 0 <= i < vocab_size]
        if beyond:
            raise CheckpointError(
                f"{kind}'s special tokens must have ids below the embedding's {vocab_size:,}, got {beyond[0]:,}"
            )
        self.vocab_size = min(max(ids.values()) + 1, vocab_size)
        self._encode = _open(_harmless(spec, ids, vocab_size, bool(settings.get("lower_case"))), kind)

    @property
    def start(self) -> int | None:
        """Id before each text, None where there is none."""
        return self._before[0] if self._before else None

    @property
    def end(self) -> int | None:
        """Id after each text, None where there is none."""
        return self._after[-1] if self._after else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start, end and padding.

        Raises `DataError` for a text of more than a hundred thousand letters.
        """
        if len(text) > MOST_LETTERS:
            raise DataError(f"a text must have at most {MOST_LETTERS:,} letters, got {len(text):,}: {shorten(text)!r}")
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace(UNSPELLABLE, REPLACEMENT)
        return self._encode(self._clean(text))

    def __call__(self, texts: str | Sequence[str], context_length: int, truncate: bool = False) -> np.ndarray:
        """int32 (B, context_length): start, ids, end, padding (before the rest where the file says so).

        Raises `DataError` for a text that is too long, unless `truncate` cuts it before its end token.
        """
        room = context_length - len(self._before) - len(self._after)
        if room < 0 or context_length < 1:
            raise DataError(f"context length {context_length} leaves no room for start and end of text")
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = np.full((len(texts), context_length), self.pad, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self.encode(text[:MOST_LETTERS] if truncate else text)
            if len(ids) > room and not truncate:
                raise DataError(
                    f"text of {context_length - room + len(ids)} tokens is too long for context length {context_length}: "
                    f"{shorten(text)!r} (shorten it, or pass truncate=True / --truncate)"
                )
            ids = [*self._before, *ids[:room], *self._after]
            if ids:
                row[-len(ids) if self._left else 0 :][: len(ids)] = ids
        return tokens

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """int (B,): where each row's last token that is not padding stands; 0 for a row of nothing else.

        Where padding is the end token itself, its first one counts. ids: (B, L) as `__call__` gives them.
        """
        ids = np.asarray(ids)
        padding = ids[:, ::-1] == self.pad
        trailing = np.where(padding.all(1), ids.shape[1], padding.argmin(1))
        if self.pad == self.end and not self._left:
            trailing = trailing - 1
        return np.maximum(ids.shape[1] - 1 - trailing, 0)


def vocabulary_of(spec: Spec) -> dict[str, int]:
    """Every token's id, special and added ones too. Raises `CheckpointError` for a description without such."""
    model, added = spec.get("model"), spec.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list):
        raise CheckpointError("tokenizer.json must hold a model and added_tokens")
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        rows = all(isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], str) for row in vocab)
        ids = {row[0]: number for number, row in enumerate(vocab)} if rows else {}
    else:
        ids = dict(vocab) if isinstance(vocab, dict) else {}
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise CheckpointError(f"tokenizer.json's added_tokens must be tables with content, got {quoted(token)}")
        ids.setdefault(token["content"], token.get("id"))
    wrong = next((item for item in ids.items() if type(item[1]) is not int or not 0 <= item[1] < 1 << 31), None)
    if not ids or wrong:
        raise CheckpointError(f"tokenizer.json's vocabulary must give each token an id, got {quoted(wrong)}")
    return ids


def _check_size(size: int, rows: int, kind: str) -> None:
    if not -rows * MOST_FEWER <= size - rows <= rows * MOST_MORE:
        raise CheckpointError(
            f"the vocabulary ({kind}) has {size:,} tokens, the weights' embedding {rows:,}: "
            "it must be the one that the weights were trained with; take it from their folder"
        )


def _around(spec: Spec, settings: Mapping[str, Any], ids: Mapping[str, int], kind: str) -> tuple[list[int], list[int]]:
    """Ids before and after each text: by the settings where they say, else by the file's post-processor."""
    if "start_token" in settings or "end_token" in settings:
        names = [settings.get("start_token"), settings.get("end_token")]
        missing = [name for name in names if name is not None and name not in ids]
        if missing:
            raise CheckpointError(f"the vocabulary ({kind}) has no token {quoted(missing[0])}, which its settings name")
        before, after = ([] if name is None else [ids[name]] for name in names)
        return before, after
    try:
        return _template(spec.get("post_processor"))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise CheckpointError(f"{kind}'s post_processor must be a template around one text, got another") from None


def _template(step: Any, depth: int = 0) -> tuple[list[int], list[int]]:
    if step is None or step["type"] == "ByteLevel":
        return [], []
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        return [_id(step["cls"][1])], [_id(step["sep"][1])]
    if step["type"] == "Sequence" and depth < _DEEPEST:
        parts = [_template(inner, depth + 1) for inner in step["processors"]]
        return [i for before, _ in reversed(parts) for i in before], [i for _, after in parts for i in after]
    if step["type"] != "TemplateProcessing":
        raise ValueError(step["type"])
    names = step["special_tokens"]
    (text,) = (n for n, part in enumerate(step["single"]) if "Sequence" in part)
    parts = [[] if n == text else names[part["SpecialToken"]["id"]]["ids"] for n, part in enumerate(step["single"])]
    before, after = ([_id(i) for ids in side for i in ids] for side in (parts[:text], parts[text:]))
    return before, after


def _id(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(value)
    return value


def _pad(settings: Mapping[str, Any], spec: Spec, ids: Mapping[str, int], after: Sequence[int]) -> int:
    """The settings' token, else the file's own id, else a usual name, else what ends texts, else 0."""
    name = settings.get("pad_token")
    if name is not None:
        if name not in ids:
            raise CheckpointError(f"the vocabulary has no token {quoted(name)}, with which its settings fill rows")
        return ids[name]
    padding = spec.get("padding")
    if isinstance(padding, dict) and type(padding.get("pad_id")) is int:
        return padding["pad_id"]
    return next((ids[name] for name in PAD_NAMES if name in ids), after[-1] if after else 0)


def _harmless(spec: Spec, ids: Mapping[str, int], vocab_size: int, lower_case: bool) -> Spec:
    """The description without special tokens that a text could spell, and without ids beyond the embedding.

    A piece that is taken out of a text's reach keeps its id under a name that begins with `UNSPELLABLE`.
    """
    model, added = dict(spec["model"]), spec.get("added_tokens") or []
    hidden = {token["content"] for token in added if token.get("special")}
    hidden |= {token for token, number in ids.items() if number >= vocab_size}
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[_hide(row[0]) if row[0] in hidden else row[0], row[1]] for row in vocab]
    else:
        model["vocab"] = {_hide(piece) if piece in hidden else piece: number for piece, number in vocab.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = _hide(model["unk_token"])
    if model.get("merges"):
        model["merges"] = [pair for pair in model["merges"] if not _spells(pair, hidden)]
    kept = [token for token in added if token["content"] not in hidden]
    normalizer = spec.get("normalizer")
    _check_steps(normalizer)
    if lower_case:
        steps = [{"type": "Lowercase"}, *([] if normalizer is None else [normalizer])]
        normalizer = {"type": "Sequence", "normalizers": steps}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": kept, "normalizer": normalizer,
        "pre_tokenizer": spec.get("pre_tokenizer"), "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip


def _hide(piece: str) -> str:
    return UNSPELLABLE + piece


def _spells(pair: Any, hidden: set[str]) -> bool:
    """Whether a merge ("a b" or ["a", "b"]) takes or makes a hidden piece."""
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise CheckpointError(f"tokenizer.json's merges must be pairs of pieces, got {quoted(pair)}")
    return not hidden.isdisjoint((*parts, "".join(parts)))


def _check_steps(step: Any, depth: int = 0) -> None:
    """Raise `CheckpointError` for compiled replacements of characters that lead outside of themselves."""
    if not isinstance(step, dict):
        return
    if step.get("type") == "Precompiled":
        try:
            charsmap = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise CheckpointError("tokenizer.json is damaged: its table of characters must be base64") from None
        check_charsmap(charsmap, "tokenizer.json")
        return
    inner = step.get("normalizers")
    if isinstance(inner, list) and depth < _DEEPEST:
        for part in inner:
            _check_steps(part, depth + 1)


def _open(spec: Spec, kind: str) -> Callable[[str], list[int]]:
    """What encodes a text. Raises as `JsonTokenizer` does."""
    try:
        import tokenizers  # only here: an extra, and other commands do without it
    except ImportError:
        raise SetupError(f"this model's tokenizer needs the package tokenizers: {INSTALL}") from None
    opened = _guarded(
        lambda: tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False)),
        lambda e: CheckpointError(f"the package tokenizers {tokenizers.__version__} can't read this {kind}: {e}"),
    )

    def encode(text: str) -> list[int]:
        return _guarded(
            lambda: opened.encode(text, add_special_tokens=False).ids,
            lambda e: DataError(f"the model's tokenizer can't take the text {shorten(text)!r}: {e}"),
        )

    return encode


def _guarded(work: Callable[[], Any], error: Callable[[str], Exception]) -> Any:
    """Run `work`; whatever the package raises, its panics too, becomes `error`."""
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:
        raise error(printable(str(e), 200)) from None


def digest_of(parts: Iterable[bytes], settings: Mapping[str, Any]) -> str:
    """SHA-256 of a vocabulary file's bytes and its settings."""
    sha = hashlib.sha256()
    for part in (*parts, json.dumps(dict(settings), sort_keys=True).encode()):
        sha.update(part)
    return sha.hexdigest()

"""Tokenizers in the JSON of the package `tokenizers`, made safe: what stands in a text is text, whatever it spells.

The special tokens of the file (`<eos>`, `</s>`, `[SEP]`) are put around texts here, and within texts can't be spelled:
their pieces are renamed to what no text holds before the package sees them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jclip.errors import CheckpointError, DataError, SetupError, printable, quoted
from jclip.prompts.character_table import CharacterTable
from jclip.prompts.text_cleaning import CLEANERS
from jclip.prompts.tokenizer import MOST_LETTERS, shorten

INSTALL = "pip install 'jclip[tokenizers]'"
UNSPELLABLE = "\uffff"  # Unicode's noncharacter: begins the pieces that no text may reach; in texts it is replaced
REPLACEMENT = "\ufffd"
PAD_NAMES = ("<pad>", "[PAD]")
MOST_OTHER = 1 / 64  # of an embedding's rows: spare ones, or tokens that no text holds
_DEEPEST = 8  # sequences within sequences
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")

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
        size = max(ids.values()) + 1
        _check_size(size, vocab_size, kind)
        self._before, self._after = _around(spec, settings, ids, kind)
        self.pad = _pad(settings, spec, ids, self._after)
        self._left = settings.get("padding_side", "right") == "left"
        self._clean = CLEANERS[settings.get("clean", "none")]
        beyond = [i for i in (*self._before, *self._after, self.pad) if not 0 <= i < vocab_size]
        if beyond:
            raise CheckpointError(
                f"{kind}'s special tokens must have ids below the embedding's {vocab_size:,}, got {beyond[0]:,}"
            )
        self.vocab_size = min(size, vocab_size)
        harmless = _harmless(spec, ids, vocab_size)
        harmless["normalizer"], self._characters = _normalizer(harmless["normalizer"], settings)
        self._encode, self._piece = _open(harmless, kind)

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
        text = self._clean(text)
        return self._encode(self._characters(text) if self._characters else text)

    def decode(self, ids: Iterable[int]) -> str:
        """The pieces of `ids`, one behind the other, as the vocabulary spells them."""
        return "".join((self._piece(int(i)) or "").replace(UNSPELLABLE, "") for i in ids)

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
    try:
        ids = {piece: number for number, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
        numbers = set(map(type, ids.values())) | {type(token["id"]) for token in added}
        ids = {token["content"]: token["id"] for token in added} | ids
        texts = set(map(type, ids))
        if (texts, numbers) != ({str}, {int}) or not 0 <= min(ids.values()) <= max(ids.values()) < 1 << 31:
            raise ValueError
    except (TypeError, ValueError, KeyError):
        raise CheckpointError("tokenizer.json's vocabulary and added_tokens must give each token an id") from None
    return ids


def _check_size(size: int, rows: int, kind: str) -> None:
    if abs(size - rows) > rows * MOST_OTHER:
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


def _harmless(spec: Spec, ids: Mapping[str, int], vocab_size: int) -> Spec:
    """The description without special tokens that a text could spell, and without ids beyond the embedding.

    A piece that is taken out of a text's reach keeps its id under a name that begins with `UNSPELLABLE`.
    """
    model, added = dict(spec["model"]), spec.get("added_tokens") or []
    if model.get("byte_fallback"):  # the model itself writes these, and no text spells what is not matched before it
        added = [token for token in added if not _BYTE.fullmatch(token["content"])]
    hidden = {token["content"] for token in added if token.get("special")}
    hidden |= {token for token, number in ids.items() if number >= vocab_size}
    vocab = model["vocab"].copy()
    if isinstance(vocab, list):
        for number in (ids[piece] for piece in hidden):
            if number < len(vocab):
                vocab[number] = (UNSPELLABLE + vocab[number][0], vocab[number][1])
    else:
        for piece in hidden & vocab.keys():
            vocab[UNSPELLABLE + piece] = vocab.pop(piece)
    model["vocab"] = vocab
    if isinstance(unknown := model.get("unk_token"), str) and unknown in hidden:
        model["unk_token"] = UNSPELLABLE + unknown
    if isinstance(merges := model.get("merges"), list):
        model["merges"] = [pair for pair in map(_pair, merges) if hidden.isdisjoint((*pair, "".join(pair)))]
    kept = [_added_token(token, token["content"] in hidden) for token in sorted(added, key=lambda t: t["id"])]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": kept, "decoder": None,
        "normalizer": spec.get("normalizer"), "pre_tokenizer": spec.get("pre_tokenizer"), "post_processor": None,
        "model": model,
    }  # fmt: skip


_BYTE = re.compile("<0x[0-9A-F]{2}>")


def _added_token(token: Mapping[str, Any], hidden: bool) -> dict[str, Any]:
    """A token that is matched before the model, as the package wants it; a hidden one only keeps its id."""
    flags = {flag: bool(token.get(flag)) and not hidden for flag in _FLAGS}
    return {"id": token["id"], "content": UNSPELLABLE * hidden + token["content"], **flags, "special": False}


def _pair(merge: Any) -> tuple[str, str]:
    """A merge's two pieces, which stand as "a b" or as a list."""
    pair = tuple(merge.split(" ")) if isinstance(merge, str) else merge
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise CheckpointError(f"tokenizer.json's merges must be pairs of pieces, got {quoted(merge)}")
    return pair[0], pair[1]


def _normalizer(steps: Any, settings: Mapping[str, Any]) -> tuple[Any, CharacterTable | None]:
    """What the package does to texts, and the table of characters where it is applied before, as SentencePiece does.

    transformers applies the table letter group by letter group, but for SigLIP, which it leaves to SentencePiece.
    """
    kept, table = _split_normalizer(steps)
    if settings.get("lower_case"):
        steps = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *([] if steps is None else [steps])]}
    return (kept, table) if settings.get("clean") == "siglip" else (steps, None)


def _split_normalizer(step: Any, depth: int = 0) -> tuple[Any, CharacterTable | None]:
    """The steps without SentencePiece's table of characters, and that table, None where there is none.

    Raises `CheckpointError` for a table that leads outside of itself.
    """
    if isinstance(step, dict) and step.get("type") == "Precompiled":
        try:
            data = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise CheckpointError("tokenizer.json is damaged: its table of characters must be base64") from None
        return None, CharacterTable(data, "tokenizer.json") if data else None
    if not isinstance(step, dict) or not isinstance(step.get("normalizers"), list) or depth >= _DEEPEST:
        return step, None
    parts = [_split_normalizer(inner, depth + 1) for inner in step["normalizers"]]
    kept = [part for part, _ in parts if part is not None]
    return {**step, "normalizers": kept}, next((table for _, table in parts if table), None)


def _open(spec: Spec, kind: str) -> tuple[Callable[[str], list[int]], Callable[[int], str | None]]:
    """What encodes a text, and what names a piece. Raises as `JsonTokenizer` does."""
    try:
        import tokenizers  # only here: an extra, and other commands do without it
    except ImportError:
        raise SetupError(f"this model's tokenizer needs the package tokenizers: {INSTALL}") from None

    def made() -> Any:
        make, added = _MODELS.get(spec["model"].get("type")), spec["added_tokens"]
        if make is None:
            opened = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        else:
            model = make(tokenizers.models, spec["model"])
            empty = {**spec, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
            opened = tokenizers.Tokenizer.from_str(json.dumps(empty))
            opened.model = model
            opened.add_tokens(
                [tokenizers.AddedToken(t["content"], **{flag: t[flag] for flag in _FLAGS}) for t in added]
            )
        if moved := [t["content"] for t in added if opened.token_to_id(t["content"]) != t["id"]]:
            raise ValueError(
                f"the ids of added tokens must follow the vocabulary's, those of {quoted(moved[0])} do not"
            )
        return opened

    version = tokenizers.__version__
    opened = _guarded(made, lambda e: CheckpointError(f"the package tokenizers {version} can't read this {kind}: {e}"))

    def encode(text: str) -> list[int]:
        return _guarded(
            lambda: opened.encode(text, add_special_tokens=False).ids,
            lambda e: DataError(f"the model's tokenizer can't take the text {shorten(text)!r}: {e}"),
        )

    return encode, opened.id_to_token


def _unigram(models: Any, model: Spec) -> Any:
    """The large models are handed over as they are: writing them as JSON, for the package to read, takes seconds."""
    return models.Unigram(list(map(tuple, model["vocab"])), model.get("unk_id"), model.get("byte_fallback", False))


def _byte_pairs(models: Any, model: Spec) -> Any:
    options = {key: model[key] for key in _BYTE_PAIR_OPTIONS if model.get(key) is not None}
    return models.BPE(vocab=model["vocab"], merges=model.get("merges", []), **options)


_BYTE_PAIR_OPTIONS = (
    "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
)  # fmt: skip
_MODELS = {"Unigram": _unigram, "BPE": _byte_pairs}


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

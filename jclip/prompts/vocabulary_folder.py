"""Which vocabulary lies in a folder of weights, and how the files beside it say that texts are brought to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip.errors import CheckpointError, ConfigError, printable
from jclip.paths import open_regular
from jclip.prompts import sentencepiece_model
from jclip.prompts.tokenizer import MERGES, tokenizer
from jclip.readers.schema import FLAG, LARGEST_DESCRIPTION, NOTHING, TEXT, Condition, either, obey, one_of

MOST_BYTES = 128 << 20  # of a vocabulary; XLM-V's of 901,629 tokens takes half of it
_FILES = ("tokenizer.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_FAIRSEQ_FILE, _FAIRSEQ_CLASS = "sentencepiece.bpe.model", "XLMRoberta"
_END_OF_WORD = b"</w>"  # in CLIP's own vocabulary, and in none of the others
_MODEL = re.compile(rb'"type"\s*:\s*"(Unigram|BPE)"')
_BYTES_OF_CLIP = 514  # pieces of CLIP's vocabulary that no merge makes
_MOST_DIGITS = 19  # of an integer; model_max_length has more where there is no limit
# Classes whose add_bos_token and add_eos_token count, beside the file's own post-processor.
_TEMPLATED = ("Gemma", "Siglip2", "Llama", "PreTrained", "TokenizersBackend")
_WORDPIECE = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")
_WORDPIECE_NAMES = ("cls_token", "sep_token", "pad_token", "unk_token")

_NAME = Condition(
    "a text, or a table with one as its content",
    lambda v: isinstance(v, str) or (isinstance(v, dict) and isinstance(v.get("content"), str)),
)
_TYPES: dict[str, Condition] = {  # what files beside a vocabulary may say of it
    "tokenizer_class": either(TEXT, NOTHING), "padding_side": either(one_of("left", "right"), NOTHING),
    **dict.fromkeys((*_WORDPIECE, "add_bos_token", "add_eos_token"), either(FLAG, NOTHING)),
    **dict.fromkeys((*_WORDPIECE_NAMES, "bos_token", "eos_token"), either(_NAME, NOTHING)),
}  # fmt: skip

Settings = dict[str, Any]


def find(folder: Path) -> tuple[str, bytes, Settings, str] | None:
    """Kind, bytes, settings and file of a folder's vocabulary, None where there is none or it is CLIP's own.

    Raises `CheckpointError` for a file that can't be read.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        return None
    open_clip = _table(folder / "open_clip_config.json")
    text = _inner(_inner(open_clip, "model_cfg"), "text_cfg")
    if open_clip and not text.get("hf_tokenizer_name"):
        return None
    said = _described(folder / "special_tokens_map.json") | _described(folder / "tokenizer_config.json")
    config = _table(folder / "config.json")
    data = _bytes_of(file)
    if file.name == "vocab.txt":
        return "wordpiece", data, _cleaning(text) | _wordpiece_settings(said), str(file)
    name = str(said.get("tokenizer_class") or "")
    if file.suffix == ".model":
        fairseq = file.name == _FAIRSEQ_FILE or name.startswith(_FAIRSEQ_CLASS)
        found = sentencepiece_model.read_sentence_pieces(data, file)
        data = json.dumps(sentencepiece_model.tokenizer_of(found, fairseq), ensure_ascii=False).encode()
    elif _END_OF_WORD in data and _is_clips(data, file):
        return None
    return "tokenizer.json", data, _settings(said, text, config, name, data), str(file)


def _settings(said: Settings, text: Settings, config: Settings, name: str, data: bytes) -> Settings:
    """Cleaning, case, padding, and what stands around texts."""
    settings = _cleaning(text)
    kind = _MODEL.search(data)
    byte_pairs = kind is not None and kind[1] == b"BPE"
    siglip = name.startswith("Siglip") or str(config.get("model_type") or "").startswith(("siglip", "fgclip2"))
    if not settings and siglip:
        settings = {"lower_case": True} if byte_pairs else {"clean": "siglip"}
    elif not settings and name.startswith("Gemma") and said.get("do_lower_case") is True:
        settings = {"lower_case": True}
    if isinstance(side := said.get("padding_side"), str):
        settings["padding_side"] = side
    if (pad := _token(said, "pad_token")) is not None:
        settings["pad_token"] = pad
    elif siglip and not byte_pairs:
        settings["pad_token"] = "</s>"
    if name.startswith(_TEMPLATED) and ("add_bos_token" in said or "add_eos_token" in said):
        settings["start_token"] = _token(said, "bos_token") if said.get("add_bos_token") is True else None
        settings["end_token"] = _token(said, "eos_token") if said.get("add_eos_token") is True else None
    return settings


def _cleaning(text: Settings) -> Settings:
    """What open_clip does to texts before a tokenizer that is not its own; nothing where the folder is not open_clip's."""
    if not text:
        return {}
    return {"clean": _inner(text, "tokenizer_kwargs").get("clean", "whitespace")}


def _wordpiece_settings(said: Settings) -> Settings:
    found = {key: said[key] for key in _WORDPIECE if isinstance(said.get(key), bool)}
    names = {key: _token(said, key) for key in _WORDPIECE_NAMES}
    return found | {key: name for key, name in names.items() if name is not None}


def _token(said: Settings, key: str) -> str | None:
    """A special token's text: given as such, or as a table with its content."""
    value = said.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _inner(values: Mapping[str, Any], key: str) -> Settings:
    inner = values.get(key)
    return inner if isinstance(inner, dict) else {}


def _is_clips(data: bytes, file: Path) -> bool:
    """Whether a tokenizer.json holds CLIP's own vocabulary, or the beginning of it that a smaller model has."""
    vocab = _inner(parsed(data, file), "model").get("vocab")
    merges = len(vocab) - _BYTES_OF_CLIP if isinstance(vocab, dict) else -1
    return 0 <= merges <= MERGES and vocab == tokenizer(merges).ids()


def _table(file: Path) -> Settings:
    return parsed(_bytes_of(file, LARGEST_DESCRIPTION), file) if file.is_file() else {}


def _described(file: Path) -> Settings:
    """What a file beside the vocabulary says, its types checked. Raises `CheckpointError`."""
    said = _table(file)
    try:
        obey(said, _TYPES)
    except ConfigError as e:
        raise CheckpointError(f"{file}: {e}") from e
    return said


def parsed(data: bytes, file: Path | str) -> Settings:
    """A JSON table; an integer without limit, as tokenizer_config.json may give one, becomes a float."""
    try:
        found = json.loads(data.decode("utf-8-sig"), parse_int=_integer)
    except RecursionError:
        raise CheckpointError(f"{file} is not valid JSON: it is nested too deeply") from None
    except ValueError as e:
        raise CheckpointError(f"{file} is not valid JSON: {printable(str(e), 200)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} must hold a table, got {type(found).__name__}")
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _bytes_of(file: Path, most: int = MOST_BYTES) -> bytes:
    try:
        with open_regular(file) as f:
            data = f.read(most + 1)
    except OSError as e:
        raise CheckpointError(f"can't read {file}: {e.strerror}") from None
    if not 0 < len(data) <= most:
        raise CheckpointError(f"{file} must have 1 to {most:,} bytes, got {file.stat().st_size:,}")
    return data

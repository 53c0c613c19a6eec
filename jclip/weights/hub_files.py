"""What is fetched of a repository of a hub, in which order, and how large a file may be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from jclip.paths import replacing
from jclip.readers.schema import LARGEST_INDEX

HUB_SAYS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
HUB_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
SENTENCE_PIECES = ("spiece.model", "sentencepiece.bpe.model")  # where there is no tokenizer.json
WEIGHT_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
LARGEST_FILE = 200 << 30  # bytes of one file of a hub
LARGEST_VOCABULARY = 256 << 20  # of a tokenizer's file: XLM-V's names 901,629 pieces


class Hub(Protocol):
    """One repository of a hub."""

    name: str  # as the user named it: prefix:owner/name
    place: str  # the hub's address
    silent: str  # why the hub is not asked any more, or empty
    variables: str  # what names another address, for messages

    def file(self, name: str) -> Path | None:
        """Return the local copy of one file; None where the repository has none of that name, or the hub is silent and
        none is here. Raises `CheckpointError`."""

    def names(self) -> list[str]:
        """Return the names of the repository's files outside of folders; none where the hub does not list them."""


def most(name: str) -> int:
    """Return the limit in bytes of a file of this name."""
    if name in (*TOKENIZER_FILES, *SENTENCE_PIECES):
        return LARGEST_VOCABULARY
    return LARGEST_INDEX if name.endswith(".json") else LARGEST_FILE


def link(blob: Path, pointer: Path) -> None:
    """Make `pointer` a relative link to `blob`, or a copy where links are not allowed."""
    with replacing(pointer) as temporary:
        temporary.unlink()
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            shutil.copyfile(blob, temporary)

"""Read weight files into named tensors, without executing anything in them and without torch."""

from __future__ import annotations

import os

from jclip.errors import CheckpointError
from jclip.readers import jittor_pickle, safetensors, torch_zip, zip_archive
from jclip.readers.held_file import HeldFile, shown
from jclip.readers.tensors import WeightFile

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LFS = b"version https://git-lfs"
_PAGE = (b"<!doctype", b"<html", b"<?xml")


def read_weights(path: str | os.PathLike) -> WeightFile:
    """Return names, shapes and metadata of a weight file; tensors are read on demand through the handle opened here.

    The format is recognised by the first bytes, not by the name. Raises `CheckpointError` for unknown or refused
    files, and from a tensor's `read` where the file has changed since.
    """
    file = HeldFile(path)
    head = file.read(0, min(512, file.size)).tobytes()
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < file.size:
        return safetensors.read(file)
    if head[:4] == zip_archive.MAGIC:
        return torch_zip.read(file)
    if head[:15] == _LEGACY_TORCH:
        raise CheckpointError(
            f"{path} was written by torch before 1.6, in a format that is not read here: load it in torch and save it again"
        )
    if _is_pickle(file, head):
        return jittor_pickle.read(file)
    raise CheckpointError(f"{shown(path, 1000)} is {_what_else(head)}")


def _is_pickle(file: HeldFile, head: bytes) -> bool:
    """Return whether the file is a pickle: protocols 2 and up have a mark, older ones are recognised by the file's
    name or Jittor's trailer."""
    if head[:1] == b"\x80":
        return True
    named = file.path.suffix in (".pkl", ".pickle") and head[:1] in (b"(", b"}", b"c")
    return named or jittor_pickle.has_trailer(file.read(max(0, file.size - 28), min(28, file.size)).tobytes())


def _what_else(head: bytes) -> str:
    """Describe a file that is not a weight file, and the fix, as the end of a sentence."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty: fetch or copy it again"
    if head.startswith(_LFS):
        return "a Git LFS pointer, not the weights themselves: run `git lfs pull`"
    if start.startswith(_PAGE):
        return "a web page, not weights: fetch the file itself (its download address, not that of the page about it)"
    known = "no weight file that jclip knows (safetensors, torch zip, TorchScript, Jittor .pkl)"
    try:
        text = head[:60].decode("ascii")
    except UnicodeDecodeError:
        return known
    if text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        return f"{known}, but text that begins with '{shown(text, 60)}'"
    return known

"""Photos that were uploaded, with the names that they had there: Gradio's own paths lack some of their letters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jclip.errors import DataError


def names_kept(field: Any) -> Any:
    """The same field of files or of one picture, whose handlers get {path in the folder of uploads: the file's own name}."""
    field.preprocess = uploaded
    return field


def uploaded(payload: Any) -> dict[str, str]:
    """{path: name} of what a browser or a client sent; empty of nothing."""
    return names_of([] if payload is None else getattr(payload, "root", [payload]))


def names_of(files: Iterable[Any]) -> dict[str, str]:
    """{path: name} of files as Gradio has them."""
    return {file.path: Path(file.orig_name or file.path).name or Path(file.path).name for file in files if file.path}


def check_uploaded(folder: Path, photos: Iterable[str]) -> None:
    """Raises `DataError` for a file that is not below the folder of the page: it was not uploaded."""
    for photo in photos:
        if folder.resolve() not in Path(photo).resolve().parents:
            raise DataError(f"a photo must be uploaded, got a path: {Path(photo).name}")

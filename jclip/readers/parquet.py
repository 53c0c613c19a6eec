"""Parquet, by pyarrow where it is installed: an extra that the rest of jclip does without."""

from __future__ import annotations

import os
from typing import Any

from jclip.errors import DataError, SetupError, printable

INSTALL = "pip install 'jclip[parquet]'"


def arrow(what: str) -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet. what: what needs them, for the message. Raises `SetupError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SetupError(f"{what}, which need pyarrow: {INSTALL}") from None
    return pyarrow, pyarrow.parquet


def open_table(path: str | os.PathLike, what: str) -> Any:
    """Return the file as pyarrow's `ParquetFile`. Raises `DataError` for another file, `SetupError` without pyarrow."""
    _, parquet = arrow(what)
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as e:
        raise DataError(f"{path} must be a Parquet file: {printable(str(e).splitlines()[0], 200)}") from e

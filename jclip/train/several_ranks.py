"""One training by several processes: which recipes have it, and one run's folder that the first writes and all read."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jclip import kernels
from jclip.config import protocols
from jclip.errors import ConfigError
from jclip.machine import ranks
from jclip.train import recipe_finder
from jclip.train import run as runs
from jclip.train.run_facts import PACKAGES, compared, version_of
from jclip.train.run_folder import CONFIG, RESULT

SOURCES = (".py", ".h", ".cuh")  # endings of what computes
PATIENCE = 5.0  # seconds that a folder on the network has to show another host's files


def check_recipe(module: Any, cfg: protocols.Dataclass) -> None:
    """Raises `ConfigError` for a recipe that trains in one process, and for a batch that gives a rank no row.

    A recipe that several train says so by `rows_of_ranks(cfg)`: how many rows of a step they divide, and the name of that;
    None for any number.
    """
    name = module.__name__.rsplit(".", 1)[-1]
    if not hasattr(module, "rows_of_ranks"):
        able = ", ".join(n for n in recipe_finder.names() if hasattr(recipe_finder.load(n), "rows_of_ranks"))
        raise ConfigError(
            f"recipe {name} learns in one process, which is faster than several there: start it without mpirun "
            f"(recipes of several: {able})"
        )
    count, what = module.rows_of_ranks(cfg) or (ranks.here().size, "")
    if ranks.here().size > count:
        raise ConfigError(
            f"{what} must be at least {ranks.here().size}, the number of ranks, got {count}: raise it, or start fewer"
        )


def open_run(folder: Path, values: Mapping[str, Any], **options: Any) -> runs.Run:
    """`Run` of this process, the writer where it is the first of several. Raises `RanksDiffer` where one has other versions,
    another config or other files than the first."""
    here = ranks.here()
    if not here.several:
        return runs.Run(folder, values, **options)
    collectives = kernels.collectives
    recipes = Path(recipe_finder.load(values["recipe"]).__file__).parent
    collectives.require_equal({**versions(recipes), **_settings_of(values)})
    if here.first:
        run = runs.Run(folder, values, **options)
        collectives.wait_for_all()
    else:
        collectives.wait_for_all()
        run = runs.Run(folder, values, writer=False)
    _require_shared(folder)
    return run


def _settings_of(values: Mapping[str, Any], prefix: str = "setting ") -> dict[str, Any]:
    """Settings by their names with dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and bool(value)
        found |= _settings_of(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _require_shared(folder: Path) -> None:
    """Raises `RanksDiffer` where a rank does not see the run's files that rank 0 sees, also not a little later."""
    here, collectives = ranks.here(), kernels.collectives
    wanted, end = collectives.given(files_of(folder))[0], time.monotonic() + PATIENCE
    while not (sees := files_of(folder) == wanted) and time.monotonic() < end:
        time.sleep(0.1)
    for rank, (host, found) in enumerate(collectives.given([here.host, sees])):
        if not found:
            raise collectives.RanksDiffer(
                f"all ranks must see the run's folder {folder}, rank {rank} ({host}) sees other files there than rank 0: "
                "give --run a folder that all hosts share, by its whole path"
            )


def note_ranks(run: runs.Run, data_digest: str = "") -> None:
    """Several ranks are noted in the result, with what their data is known by. Raises `RanksDiffer` where it is not one."""
    if ranks.here().several:
        run.note(ranks=ranks.here().size, data_digest=data_digest)
        kernels.collectives.require_equal(compared(run.facts))


def require_rows_for_all(count: int, batch: int) -> None:
    """Raises `ConfigError` where an epoch of `count` rows ends with a batch that gives a rank none: batch norms that move
    wait for all."""
    last, size = count % batch, ranks.here().size
    if 0 < last < size:
        raise ConfigError(
            f"the last batch of an epoch must have a row for each of {size} ranks where batch norms move, got {last} "
            f"({count} in batches of {batch}): set another optim.batch, or statistics=false"
        )


def versions(recipes: Path) -> dict[str, str]:
    """What computes here, by name: packages, jclip's sources, its operators' among them, and those of `recipes`."""
    packages = {f"version of {name}": version_of(name) for name in PACKAGES}
    sources = {
        "sources of jclip": _digest_of(Path(__file__).resolve().parents[1]),
        "sources of recipes": _digest_of(recipes),
    }
    return {**packages, "version of Python": platform.python_version(), **sources}


def _digest_of(folder: Path) -> str:
    """A hash of the sources in and below `folder`."""
    made = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCES):
        made.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return made.hexdigest()


def files_of(folder: Path) -> list[Any]:
    """The run's config, result and saved states: names and sizes."""
    there = (
        [p for p in folder.iterdir() if p.name in (CONFIG, RESULT) or p.suffix == ".safetensors"]
        if folder.is_dir()
        else []
    )
    return sorted([p.name, p.stat().st_size] for p in there)

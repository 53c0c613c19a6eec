"""Weights from hubs: `hf-hub:owner/name` (Hugging Face) and `ms:owner/name` (ModelScope), or one file of a repository,
`hf-hub:owner/name/file.pt`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from jclip.choices import HUBS, HUGGING_FACE, MODEL_SCOPE
from jclip.errors import CheckpointError, quoted
from jclip.paths import cache_dir
from jclip.readers.schema import is_plain_name, read_weight_map
from jclip.weights import catalogue
from jclip.weights.hub_files import HUB_FILES, HUB_SAYS, SENTENCE_PIECES, TOKENIZER_FILES, WEIGHT_ENDINGS, Hub
from jclip.weights.hugging_face_hub import HuggingFaceHub
from jclip.weights.model_scope_hub import ModelScopeHub

_OF: dict[str, Callable[[str, str], Hub]] = {HUGGING_FACE: HuggingFaceHub, MODEL_SCOPE: ModelScopeHub}

_WORD = re.compile(r"[\w.-]+", re.ASCII)


def is_hub_name(name: str) -> bool:
    """Return whether a name begins with a hub's prefix."""
    return name.startswith(HUBS)


def fetch_hub(name: str) -> Path:
    """Return the local copy of a repository's weights.

    Fetches one set of weights with all its shards, and returns the folder of these and the files that describe the
    model, or the one file where nothing describes it; a tokenizer's files lie beside. Files that were put by hand into
    the folder that messages name are used unasked. A hub that does not answer is asked once; then its cache is used.
    Raises `CheckpointError`, naming the files that were looked for.
    """
    prefix = next(prefix for prefix in HUBS if name.startswith(prefix))
    repository, chosen = _parts(name, prefix)
    if (by_hand := _put_by_hand(_folder_of(repository), chosen)) is not None:
        return by_hand
    hub = _OF[prefix](name, repository)
    _fetch_tokenizer(hub)
    if chosen:
        path = hub.file(chosen)
        return _fetch_shards(hub, path, chosen) if path else _absent(hub, repository, (chosen,))
    described = [said for said in HUB_SAYS if hub.file(said)]
    for file in HUB_FILES:
        if (path := hub.file(file)) is not None:
            _fetch_shards(hub, path, file)
            return path.parent if described else path
    return _fetch_other(hub, repository)


def _parts(name: str, prefix: str) -> tuple[str, str]:
    """Return owner/name and the file that is named, or empty. Raises `CheckpointError`."""
    owner, *rest = name.removeprefix(prefix).split("/")
    if len(rest) not in (1, 2) or not all(is_plain_name(part) and _WORD.fullmatch(part) for part in (owner, *rest)):
        raise CheckpointError(
            f"a model of a hub must be {prefix}owner/name, or {prefix}owner/name/file of its weights, got {quoted(name)}"
        )
    return f"{owner}/{rest[0]}", rest[1] if len(rest) == 2 else ""


def _fetch_tokenizer(hub: Hub) -> None:
    """Fetch what the repository has of a tokenizer."""
    found = [name for name in TOKENIZER_FILES if hub.file(name)]
    if "tokenizer.json" not in found:
        for name in SENTENCE_PIECES:
            hub.file(name)


def _fetch_shards(hub: Hub, path: Path, name: str) -> Path:
    """Fetch all that an index of shards names; return `path`. Raises `CheckpointError` for one that is missing."""
    for shard in sorted(set(read_weight_map(path).values())) if name.endswith(".index.json") else ():
        if hub.file(shard) is None:
            raise CheckpointError(f"{hub.name} lacks {shard}, which {name} names")
    return path


def _fetch_other(hub: Hub, repository: str) -> Path:
    """Return the one weight file of another name. Raises `CheckpointError` where there are several, or none."""
    others = [] if hub.silent else sorted(name for name in hub.names() if name.endswith(WEIGHT_ENDINGS))
    if len(others) > 1:
        raise CheckpointError(
            f"{hub.name} holds {len(others)} weight files: name one of them, {hub.name}/{others[0]} "
            f"(others: {', '.join(others[1:6])}{', …' if len(others) > 6 else ''})"
        )
    path = hub.file(others[0]) if others else None
    return path or _absent(hub, repository, HUB_FILES)


def _absent(hub: Hub, repository: str, names: tuple[str, ...]) -> Path:
    """Raise the `CheckpointError` for a repository whose weights are not to be had: which files, from where, to where."""
    row = catalogue.lookup(repository)
    own = row.url.rpartition("/")[2] if row and row.url.startswith(f"https://huggingface.co/{repository}/") else ""
    wanted = own if own and names == HUB_FILES else ", ".join(names)
    if not hub.silent:
        raise CheckpointError(f"{hub.name}: {hub.place} has none of {wanted}")
    known = [f"{f.file} (SHA-256 {f.sha256})" for f in catalogue.files() if f.place.endswith(f"/{repository}")]
    there = row.modelscope if row and row.hub == repository and not hub.name.startswith(MODEL_SCOPE) else ""
    elsewhere = f", or take {MODEL_SCOPE}{there}" if there else ""
    raise CheckpointError(
        f"{hub.name}: {hub.place} can't be reached, and the cache has none of {wanted} ({hub.silent}): set {hub.variables}"
        f"{elsewhere}, "
        f"or fetch {' or '.join(known) or own or 'one of these'}, and of {', '.join((*HUB_SAYS, *TOKENIZER_FILES))} and "
        f"{', '.join(SENTENCE_PIECES)} what the repository has, by other means, and put them into {_folder_of(repository)}"
    )


def _folder_of(repository: str) -> Path:
    """Return the folder for files of a repository that are fetched by hand."""
    return cache_dir("weights") / repository.replace("/", "--")


def _put_by_hand(folder: Path, chosen: str) -> Path | None:
    """Return the weights that lie in such a folder: itself where it describes them, else the one weight file."""
    if chosen or not folder.is_dir():
        return folder / chosen if chosen and (folder / chosen).is_file() else None
    if not (weights := sorted(p for p in folder.iterdir() if p.name in HUB_FILES or p.suffix in WEIGHT_ENDINGS)):
        return None
    described = any((folder / said).is_file() for said in HUB_SAYS[:2])
    if not described and len(weights) > 1:
        raise CheckpointError(
            f"{folder} must hold one weight file, or describe them in config.json, got {len(weights)}"
        )
    return folder if described else weights[0]

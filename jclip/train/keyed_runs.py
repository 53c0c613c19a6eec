"""Runs of one piece of work in a folder each, named after all that they are made of: finished runs are skipped.

A run's folder is `<name>-<key>`; the key is a hash of the recipe's resolved settings and of whatever else the run is made
of: weights, photos, captions. Interrupted runs resume, and other settings get another folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jclip.config import protocols, refuse_unread
from jclip.errors import notice
from jclip.train import recipe_finder
from jclip.train.configs import build_config, resolved
from jclip.train.recipe_runs import finished


@dataclass(frozen=True)
class KeyedRuns:
    """The runs of a challenge below `folder`; `place` is the file that errors name, `overrides` are put over its values."""

    folder: Path
    place: str
    overrides: Sequence[str] = ()

    def settings(
        self, key: str, given: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> tuple[Any, protocols.Dataclass]:
        """The recipe's module and its built config, of what the YAML's `key` gives (`recipe` among it) over those of the
        shared settings that the recipe knows. Raises `ConfigError`, also for what is given and would not be read."""
        known = {f.name for f in fields(recipe_finder.load(given["recipe"]).Config)}
        own, place = {k: v for k, v in shared.items() if k in known} | dict(given), f"{self.place}: {key}"
        module, config = build_config(own, place)
        refuse_unread(config, given, self.overrides, place, f"{key}.")
        return module, config

    def folder_of(self, name: str, module: Any, cfg: protocols.Dataclass, made_of: Sequence[str] = ()) -> Path:
        """Where that run is or will be. made_of: hashes of what the settings only name."""
        return self.folder / f"{name}-{key_of([resolved(module, cfg), *made_of])}"

    def finished(
        self, name: str, module: Any, cfg: protocols.Dataclass, made_of: Sequence[str] = (), label: str = ""
    ) -> Path:
        """The folder of that run, which is started or resumed unless it has finished. label: what stderr calls it."""
        folder = self.folder_of(name, module, cfg, made_of)
        if not (folder / "result.json").is_file():
            notice(f"{label or name}: {folder}")
        finished(folder, module, cfg)
        return folder


def key_of(made_of: Any) -> str:
    """The first eight digits of the hash of plain values."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]


def state_of(folder: Path) -> str:
    """`done`, `begun` or empty: how far the run in a folder is, for a plan."""
    return "done" if (folder / "result.json").is_file() else "begun" if folder.is_dir() else ""

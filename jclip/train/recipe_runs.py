"""A recipe's run in its folder: started, resumed, or read where it has finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jclip.config import protocols
from jclip.train import run as runs
from jclip.train.configs import resolved


def finished(
    folder: Path, module: Any, cfg: protocols.Dataclass, quiet: bool = False, writer: bool = True
) -> dict[str, Any]:
    """The result of `module.run(cfg)` in `folder`. quiet: epochs are not reported. writer: as of `Run`."""
    with runs.Run(folder, resolved(module, cfg), quiet, writer=writer) as run:
        return run.result or run.finish(module.run(cfg, run))

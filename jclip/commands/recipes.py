"""`jclip recipes`: the recipes and their configs."""

from __future__ import annotations

from jclip.commands.arguments import Parser
from jclip.config import load_values
from jclip.errors import say
from jclip.train import recipe_finder as known
from jclip.train.configs import (
    CHECKOUT_CONFIGS,
    INSTALLED_CONFIGS,
    shipped,
)


def recipes(argv: list[str]) -> int:
    """Lists the recipes with the configs that ship."""
    Parser("jclip recipes", description=recipes.__doc__).parse_args(argv)
    folder = CHECKOUT_CONFIGS if CHECKOUT_CONFIGS.is_dir() else INSTALLED_CONFIGS
    for name in known.names():
        say(f"{name}: {(known.load(name).__doc__ or '').splitlines()[0]}")
        for path in shipped(folder):
            if load_values(path).get("recipe") == name:
                say(f"  {path.relative_to(folder.parent)}")
    return 0

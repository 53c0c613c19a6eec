"""docs/weights.md says what the code does; the tables of docs/published_weights.md are those that the code prints."""

from __future__ import annotations

import re

from convert.cli import TARGETS, parser
from jclip.commands.models import published, weight_files
from jclip.weights.families import FAMILIES
from tests.converters.test_convert import ROOT

TEXT, CHINESE = ((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("weights.md", "zh/weights.md"))


def test_the_tables_of_weights_are_what_the_command_prints():
    sets, files = "\n".join(published()), "\n".join(weight_files())
    for page in ("published_weights.md", "zh/published_weights.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert sets in text and text.rstrip().endswith(files)
    assert any("metaclip_2_5b" in line and "–" not in line for line in weight_files())


def test_every_family_stands_with_its_traits():
    for name, family in FAMILIES.items():
        row = f"| `{name}` | {family.who} | {family.activation} | {family.normalisation} | {family.resize} |"
        assert row in TEXT and row in CHINESE


def test_options_and_targets_that_are_named_exist():
    known = {option for action in parser()._actions for option in action.option_strings}
    named = set(re.findall(r"`(--[a-z-]+)", TEXT)) - {"--published", "--files", "--model", "--processes"}
    assert named <= known, named - known
    assert all(target in TEXT for target in TARGETS)

"""The README and the pages of docs/, without running them: links, configs, commands that exist, both languages alike."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from functools import cache

import pytest
import yaml

import finetune  # noqa: F401 - brings the recipes that configs name
from jclip.cli import COMMANDS, main
from jclip.errors import UnknownName
from jclip.train.configs import build_config, find_config, read_config
from tests.pages import ROOT, anchors, bare, blocks, commands, headings, outside_blocks, table_rows

READMES = ("README.md", "README.zh-CN.md")
ENGLISH = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
CHINESE = ("README.zh-CN.md", *(f"docs/zh/{path.name}" for path in sorted((ROOT / "docs" / "zh").glob("*.md"))))
ALL = (*ENGLISH, *CHINESE, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
LINES = 150
CHARACTER = re.compile(r"[\u4e00-\u9fff]")
FIGURE = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+(?:e-?\d+)?)(?![\w])", re.ASCII)
NAME = re.compile(r"[\w/*.-]*[._/=][\w/*.=-]*", re.ASCII)
PROGRAM = re.compile(r"(?:jclip|python|sh|pip)\s+\S.*", re.DOTALL)


def twin(page: str) -> str:
    """The English page of a Chinese one."""
    return "README.md" if page.startswith("README") else page.replace("docs/zh/", "docs/")


@pytest.mark.parametrize("page", ALL)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target, _, anchor in re.findall(r"\]\(([^)#:]*)(#?)([^):]*)\)", path.read_text(encoding="utf-8")):
        place = (path.parent / target) if target else path
        assert place.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(place), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", READMES)
def test_a_readme_is_the_first_five_minutes(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES and lines.index("import jclip") < 20


@pytest.mark.parametrize("page", [*ENGLISH, *CHINESE])
def test_yaml_with_a_recipe_is_a_config(page):
    for lang, _, text in blocks(ROOT / page):
        if lang == "yaml" and "recipe:" in text:
            build_config(yaml.safe_load(text), page)


@pytest.mark.parametrize("page", CHINESE)
def test_a_chinese_page_has_the_headings_commands_and_figures_of_the_english_one(page):
    """So that what runs the one runs the other; comments are Chinese there."""
    ours, theirs = (
        [
            (lang, marks, bare(text))
            for lang, marks, text in blocks(ROOT / name)
            if (lang, marks) != ("text", " no-test")
        ]
        for name in (twin(page), page)
    )
    assert theirs == ours
    assert [level for level, _ in headings(ROOT / page)] == [level for level, _ in headings(ROOT / twin(page))]
    assert len(table_rows(ROOT / page)) == len(table_rows(ROOT / twin(page)))


@pytest.mark.parametrize("page", CHINESE)
def test_a_chinese_page_names_what_the_english_one_names_outside_of_blocks(page):
    ours, theirs = named(twin(page)), named(page)
    for kind in ours:
        lacking, more = Counter(ours[kind]) - Counter(theirs[kind]), Counter(theirs[kind]) - Counter(ours[kind])
        assert not lacking and not more, f"{page}: {kind}: lacks {[*lacking]}, has only itself {[*more]}"


def named(page: str) -> dict[str, list[str]]:
    """Commands, options, names of code and files, lines of indented blocks, figures with a point or thousands."""
    text = outside_blocks(ROOT / page)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    options = {option for span in spans for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", span)}
    return {
        "commands": sorted(span for span in spans if PROGRAM.fullmatch(span) and not CHARACTER.search(span)),
        "options": sorted(options),
        "names": sorted({span for span in spans if NAME.fullmatch(span)}),
        "indented": [line for line in bare(text) if line.startswith("    ")],
        "figures": sorted(FIGURE.findall(text)),
    }


@pytest.mark.parametrize("page", CHINESE)
def test_a_chinese_page_leads_to_chinese_pages(page):
    """And its paragraphs, cells of tables aside, are Chinese."""
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+\.md)", path.read_text(encoding="utf-8")):
        linked = (path.parent / target).resolve()
        assert linked.parent != ROOT / "docs" or not (ROOT / "docs" / "zh" / linked.name).exists(), target
    for paragraph in re.split(r"\n\s*\n", outside_blocks(path)):
        if paragraph.strip() and not re.match(r"[#|!]|    |<", paragraph.lstrip("\n")):
            assert CHARACTER.search(paragraph), f"{page}: {paragraph}"


def test_every_page_stands_in_chinese():
    assert {*ENGLISH} == {twin(page) for page in CHINESE}


@pytest.mark.parametrize("page", ALL)
def test_commands_options_and_configs_that_are_named_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {*re.findall(r"`jclip ([a-z][a-z-]*)", text)} <= {*COMMANDS}
    for lang, _, block in blocks(ROOT / page):
        for command, *words in (commands(block) or ()) if lang == "sh" else ():
            unknown = {word for word in words if word.startswith("--")} - options(command)
            assert not unknown, f"{page}: jclip {command} has no {unknown}"
            for word in words:
                if word.startswith("configs/") or (command in ("train", "sweep") and "/" in word and "=" not in word):
                    config_exists(word, words)


def test_commands_and_settings_for_those_who_come_from_elsewhere_exist():
    text = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    there = [
        shlex.split(span.replace("…", "x")) for span in re.findall(r"`(?:mpirun -np \d )?jclip ([a-z][^`]*)`", text)
    ]
    for command, *words in there:
        assert {word for word in words if word.startswith("--")} <= {*options(command)}, words
        if command == "train" and "/" in words[0]:
            read_config(words[0], [word for word in words[1:] if "=" in word])
    rows = re.search(r"^## open_clip\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1].splitlines()
    settings = [span for row in rows for span in re.findall(r"`([a-z._]+=[^`]*)`", row) if "TAG" not in span]
    assert len(settings) > 8
    read_config("contrastive/openclip_cc3m", [word for span in settings for word in span.split()])


def config_exists(word: str, words: list[str]) -> None:
    """Raises `AssertionError` for a config that is none. What follows --run and --runs is a folder."""
    if words[words.index(word) - 1] in ("--run", "--runs", "--out"):
        return
    try:
        find_config(word)
    except UnknownName as e:
        raise AssertionError(str(e)) from e


@cache
def options(command: str) -> frozenset[str]:
    """The options of a command, as its --help prints them."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return frozenset(re.findall(r"--[a-z][a-z-]*", printed.getvalue()))

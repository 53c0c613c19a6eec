"""The form of a search: what is filled in, as a query, settings, and the arguments of `jclip search`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jclip.app import shown_command
from jclip.errors import ConfigError
from jclip.features import gallery as galleries
from jclip.prompts import query_terms

MOST_HITS = 200


@dataclass(frozen=True)
class Form:
    """What is filled in. photos: path of a file that was uploaded → what it is called in the command. photo_weight: of each
    of them. without: texts to subtract, one a line. where: conditions, one a line. unique: the cosine above which photos
    count as near-duplicates."""

    sentence: str = ""
    photos: Mapping[str, str] = field(default_factory=dict)
    photo_weight: float = 1.0
    without: str = ""
    without_weight: float = 1.0
    where: str = ""
    unique: float | None = None
    cut: bool = False
    top: int = 24

    @property
    def words(self) -> list[str]:
        """The terms as `jclip search` takes them."""
        terms = query_terms.typed_terms(self.sentence)
        for name in self.photos.values():
            terms += [*["+"] * bool(terms), f"{_weight(self.photo_weight)}@{name}"]
        for text in filter(None, map(str.strip, self.without.splitlines())):
            terms += ["-", f"{_weight(self.without_weight)}{text}"]
        return terms

    @property
    def query(self) -> query_terms.Query:
        """What is looked for. Raises `ConfigError` for nothing, and for files of this machine, which nobody uploaded."""
        typed = query_terms.parse_terms(self.words)
        terms, first = [*typed.terms], sum(word not in ("+", "-") for word in query_terms.typed_terms(self.sentence))
        for place, path in enumerate(self.photos, start=first):
            terms[place] = query_terms.Term("photo", str(path), terms[place].weight)
        for place, term in enumerate(terms):
            if term.kind in ("photo", "feature") and not first <= place < first + len(self.photos):
                raise ConfigError(f"a photo must be uploaded here, not named by its path, got {term.value[:80]}")
            if term.kind == "concept":
                below_here(term.value)
        return query_terms.Query(typed.name, tuple(terms))

    @property
    def conditions(self) -> list[str]:
        """Conditions on columns."""
        return [line.strip() for line in self.where.splitlines() if line.strip()]

    @property
    def search(self) -> galleries.Search:
        """The settings. Raises `ConfigError`."""
        top = max(1, min(int(self.top), MOST_HITS))
        return galleries.Search(top, where=tuple(self.conditions), unique=self.unique, cut=self.cut)

    def command(self, place: str, model: str = "") -> str:
        """`jclip search …` that finds the same. model: of plain photos, whose gallery does not name it."""
        options = {"where": self.conditions, "unique": self.unique, "cut": self.cut, "top": self.top, "model": model}
        return shown_command.shown("search", place, *self.words, **options)


def _weight(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g}:"


def below_here(folder: str) -> Path:
    """A file or folder below the folder where the page was started. Raises `ConfigError` for another."""
    path = Path(folder.strip())
    if not folder.strip() or path.is_absolute() or ".." in path.parts or "\0" in folder:
        raise ConfigError(
            f"a file or folder must lie below where jclip app was started ({Path.cwd()}), got {folder[:200]!r}"
        )
    return path

"""Key tables of other projects' layouts, one module each."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(__name__, {})

"""The page of `jclip app`: tabs over what the library does, and the local server behind it. No logic of its own."""

from __future__ import annotations

from jclip.postponed import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "desk": ("Desk",),
        "page": ("build",),
        "server": ("serve",),
        "shown_command": ("shown",),
        "words": ("language", "t"),
    },
)

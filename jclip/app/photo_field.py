"""Fields for photos, whose bytes are handed on as they were uploaded: `Desk.upload` looks at them, not Gradio."""

from __future__ import annotations

from typing import Any

from jclip.app.uploaded_files import names_of
from jclip.postponed import gr


def photo_field(label: Any, **options: Any) -> Any:
    """A field for one photo; its value is a path in the folder of uploads, or None.

    Gradio itself would open the photo by whatever Pillow knows, turn it, and say a wrong one in words of its own.
    """
    made = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], **{"buttons": [], **options})
    made.preprocess = lambda payload: payload.path if payload else None
    return made


def photos_field(label: Any, **options: Any) -> Any:
    """A field for several photos; its value is {path in the folder of uploads: the file's own name}."""
    given = {
        "type": "filepath",
        "sources": ["upload", "clipboard"],
        "buttons": [],
        "interactive": True,
        "file_types": ["image"],
        "allow_preview": False,
    }
    made = gr.Gallery(label=label, **{**given, **options})
    made.preprocess = _of_gallery
    return made


def _of_gallery(payload: Any) -> dict[str, str]:
    shown = [] if payload is None else payload.root
    return names_of(getattr(one, "image", None) or one.video for one in shown)

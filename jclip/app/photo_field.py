"""A field for one photo, whose bytes are handed on as they were uploaded: `Desk.upload` looks at them, not Gradio."""

from __future__ import annotations

from typing import Any

from jclip.postponed import gr


def photo_field(label: Any, **options: Any) -> Any:
    """The field; its value is a path in the folder of uploads, or None.

    Gradio itself would open the photo by whatever Pillow knows, turn it, and say a wrong one in words of its own.
    """
    made = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], **{"buttons": [], **options})
    made.preprocess = lambda payload: payload.path if payload else None
    return made

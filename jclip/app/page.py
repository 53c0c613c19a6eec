"""The page: a line that says what is open, and a tab for each thing to do with it."""

from __future__ import annotations

from typing import Any

from jclip.app import classify_tab, locate_tab, runs_tab, search_tab, words
from jclip.app.desk import Desk
from jclip.app.markup import escaped
from jclip.errors import counted
from jclip.paths import ASSETS
from jclip.postponed import gr

TABS = {"search": search_tab, "classify": classify_tab, "locate": locate_tab, "runs": runs_tab}
EVERY = 1.0  # seconds between two looks at work under way


def build(desk: Desk) -> Any:
    """The page over what is open. Raises `SetupError` where Gradio is not installed."""
    with gr.Blocks(title="jclip", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        page.load(**_head(desk), api_visibility="private")
        with gr.Tabs(elem_id="tabs"):
            for name, tab in TABS.items():
                with gr.Tab(words.t(f"page.{name}"), id=name, elem_id=f"tab-{name}"):
                    tab.add(desk)
    return page


def _head(desk: Desk) -> dict[str, Any]:
    """What is open, and work under way with a button that stops it; returns the event that brings it up to date."""
    with gr.Row(elem_id="head"):
        about = gr.HTML(elem_id="about")
        stop = gr.Button(words.t("page.stop"), visible=False, size="sm", variant="stop", elem_id="stop", scale=0)
        again = gr.Button(words.t("page.go_on"), visible=False, size="sm", elem_id="go-on", scale=0, min_width=110)
    timer = gr.Timer(EVERY)
    seen = gr.State("")

    def look(before: str, request: gr.Request) -> tuple[Any, ...]:
        now = about_html(desk, words.language(request))
        if now == before:
            return gr.skip(), gr.skip(), gr.skip(), before
        busy = desk.under_way() is not None
        return now, gr.update(visible=busy), gr.update(visible=not busy and desk.can_go_on), now

    shown = [about, stop, again, seen]
    asked = {"fn": look, "inputs": seen, "outputs": shown, "show_progress": "hidden", "queue": False}
    timer.tick(**asked, api_visibility="private")
    stop.click(desk.stop, queue=False, api_visibility="private")
    again.click(desk.go_on, queue=False, api_visibility="private")
    return asked


def about_html(desk: Desk, language: words.Language) -> str:
    """What is open and what goes on, for people."""
    parts = ["<b class='brand'>jclip</b>"]
    if desk.gallery is not None:
        parts.append(f"<span title='{escaped(desk.place)}'>{escaped(desk.place, 48)}</span>")
        photos = counted(len(desk.gallery), "photo") if language == "en" else f"{len(desk.gallery):,} 张照片"
        parts.append(f"<span>{photos}</span>")
        if left := desk.gallery.left_out:
            first = f"{left[0]['path']}: {left[0]['reason']}"
            count = words.said("page.left_out", language).format(len(left))
            parts.append(f"<span title='{escaped(first)}'>{count}</span>")
    parts.append(f"<span>{escaped(desk.model, 48)}</span>")
    line = "<span class='dot'>·</span>".join(parts)
    task = desk.under_way()
    if task is None:
        return f"<div class='about'>{line}</div>" + (
            f"<div class='note'>{escaped(said)}</div>" if (said := desk.said_of_photos(language)) else ""
        )
    share = 100 * task.done / task.total if task.total else 0
    count = f"{task.done:,} / {task.total:,}" if task.total else ""
    what = escaped(words.said(task.key or "page.working", language))
    bar = f"<div class='bar' role='progressbar' aria-valuenow='{share:.0f}'><i style='width:{share:.1f}%'></i></div>"
    return f"<div class='about'>{line}</div><div class='work'><span>{what} {count}</span>{bar}</div>"


def style() -> str:
    """The page's own style sheet."""
    parts = [file.read_text(encoding="utf-8") for file in sorted(ASSETS.glob("app*.css"))]
    return "\n".join([*parts, runs_tab.style()])


def script() -> str:
    """What the browser runs before Gradio asks anything."""
    return f"<script>{(ASSETS / 'app_stream.js').read_text(encoding='utf-8')}</script>"


def theme() -> Any:
    """Colours and fonts; fonts are the system's own, nothing is asked of another server."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "Microsoft YaHei", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono", "monospace"]
    return gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md", font=fonts, font_mono=mono
    )

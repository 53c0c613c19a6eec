"""Two hundred hostile rows: names, captions and columns that break tables, pages and shells, and files that come and go."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from jclip.cli import main
from jclip.data import gallery_inputs, gallery_store
from jclip.data.shapes import draw_scene
from jclip.features import gallery_embedding
from jclip.features.source import ModelSource

PIECES = [
    "a,b", 'quo"te', "semi;colon", "tab\there", "line\nbreak", "cr\rhere", "<script>alert(1)<!--", "&amp;", "'single'", "=1+1",
    "@SUM(A1)", "-rf", "../up".replace("/", "∕"), "%00", "\u202eright", "日本語", "ü" * 60, "$(reboot)", "`id`", "\udcff",
]  # fmt: skip
UNWRITABLE = {
    "\udcff",
    "\r",
}  # in a table: it is UTF-8, and its line ends are read alike; such rows are counted as absent
CONDITIONS = ("plain", "absent", "broken", "empty", "copy")
TOTAL = 200


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Photos of hostile names, a table about them, and how many of each condition there are."""
    folder = tmp_path_factory.mktemp("hostile") / "photos"
    folder.mkdir()
    photo = draw_scene((1,), count=(1, 1)).render().resize((16, 16))
    table = io.StringIO()
    lines = csv.writer(table)
    lines.writerow(["path", "caption", "note"])
    kept = []
    for number in range(TOTAL):
        piece, condition = PIECES[number % len(PIECES)], CONDITIONS[number % 7 % len(CONDITIONS)]
        path = folder / f"{number} {piece}.png"
        if condition == "broken":
            path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        elif condition == "empty":
            path.write_bytes(b"")
        elif condition != "absent":
            photo.putpixel((0, 0), (number, number, 0) if condition == "plain" else (0, 0, 0))
            photo.save(path)
            kept.append(number)
        if not UNWRITABLE & {*piece}:
            lines.writerow([path.name, f"caption {piece} {number}", piece])
    (folder.parent / "table.csv").write_text(table.getvalue(), encoding="utf-8", newline="")
    return folder, folder.parent / "table.csv", kept


def test_nothing_is_wrong_and_nothing_lost(hostile, tmp_path, capsysbinary):
    folder, table, kept = hostile
    inputs = gallery_inputs.read_inputs([folder], table=str(table))
    late = folder / "added while read.png"
    draw_scene((3,), count=(1, 1)).render().save(late)
    try:
        outcome = gallery_embedding.embed(inputs, ModelSource("shapes-tiny-rn"), tmp_path / "g")
    finally:
        late.unlink()
    store = gallery_store.open_store(tmp_path / "g")
    rows = {int(row["path"].split()[0]): row for row in store.rows}
    assert sorted(rows) == kept and outcome.rows == len(store) == len(kept)
    assert {int(path.split()[0]) for path, _ in outcome.skipped} == {
        n for n in range(TOTAL) if CONDITIONS[n % 7 % len(CONDITIONS)] in ("broken", "empty")
    }
    for number, row in rows.items():
        piece = PIECES[number % len(PIECES)]
        assert row["path"] == f"{number} {piece}.png" and (folder / row["path"]).is_file()
        if not UNWRITABLE & {*piece}:
            assert (row["caption"], row["columns"]) == (f"caption {piece} {number}", {"note": piece})
    assert np.isfinite(np.concatenate(store.parts).astype("f4")).all()

    searched = ["search", str(tmp_path / "g"), f"row:{len(kept) - 1}", "--top", "500"]
    outputs = [
        ["--out", str(tmp_path / "r.csv")],
        ["--out", str(tmp_path / "r.json")],
        ["--sheet", str(tmp_path / "r.html")],
    ]
    for output in outputs:
        assert main([*searched, *output]) == 0
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8", errors="surrogateescape"))
    hits = found[0]["photos"] if isinstance(found, list) else found["photos"]
    assert {Path(hit["photo"]).name for hit in hits} == {row["path"] for row in rows.values()}
    assert "<script>alert" not in (tmp_path / "r.html").read_text(encoding="utf-8", errors="surrogateescape")
    capsysbinary.readouterr()
    assert main([*searched, "--filepath-only", "--null"]) == 0
    listed = capsysbinary.readouterr().out
    assert listed.count(b"\0") == len(kept)

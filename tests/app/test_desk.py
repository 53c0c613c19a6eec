"""What the tabs share, without a browser: one thread's work, uploads, pictures, texts, commands."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from jclip.app import desk as desks
from jclip.app import markup, search_form, words
from jclip.app.shown_command import shown
from jclip.commands import search as search_command
from jclip.data.shapes import draw_scene
from jclip.errors import ConfigError, DataError
from jclip.features import photo_galleries
from jclip.paths import ASSETS
from jclip.prompts import query_terms
from tests.browser import PATIENCE


@pytest.fixture
def desk():
    found = desks.Desk(model="shapes-tiny-vit")
    yield found
    found.close()
    assert not found.folder.exists()


def test_all_work_is_done_by_one_thread_short_work_in_between(desk):
    order, begun = [], threading.Event()

    def long() -> str:
        for step in itertools.count():
            begun.set()
            order.append(("step", threading.get_ident()))
            desk.step(step, 200)
            if ("short", threading.get_ident()) in order:
                return "long"
            time.sleep(0.005)

    waiting = desk.later(long, key="page.working")
    begun.wait(PATIENCE)
    assert desk.under_way().key == "page.working"
    desk.work(lambda: order.append(("short", threading.get_ident())))
    assert waiting.result(PATIENCE) == "long"
    assert len({thread for _, thread in order}) == 1
    assert desk.work(lambda: desk.work(lambda: 7)) == 7


def test_what_is_stopped_ends_at_its_next_step(desk):
    def long() -> None:
        for step in itertools.count():
            desk.step(step, 1000)
            time.sleep(0.002)

    waiting = desk.later(long)
    while desk.under_way() is None:
        time.sleep(0.001)
    desk.stop()
    with pytest.raises(desks.Stopped, match=r"stopped at \d+ of 1,000") as stopped:
        waiting.result(PATIENCE)
    assert re.fullmatch(r"已停止：完成 \d+ / 1,000", desk.said(stopped.value, "zh"))
    assert desk.work(lambda: "goes on") == "goes on"
    with pytest.raises(ZeroDivisionError):
        desk.work(lambda: 1 / 0)


def test_nobody_waits_for_a_page_that_was_closed(desk):
    begun, ends = threading.Event(), []

    def long() -> None:
        begun.set()
        while not desk.stopped():
            time.sleep(0.002)

    def wait() -> None:
        with pytest.raises(desks.Closed):
            desk.work(int)
        ends.append(True)

    desk.later(long)
    begun.wait(PATIENCE)
    waiting = threading.Thread(target=wait)
    waiting.start()
    while desk._waiting.empty():
        time.sleep(0.001)
    desk.close()
    waiting.join(PATIENCE)
    assert ends == [True]
    with pytest.raises(desks.Closed, match="the page was closed"):
        desk.work(int)


def test_an_upload_that_is_no_photo_is_said_and_removed(desk, tmp_path):
    wrong = desk.uploads / "no photo.png"
    wrong.write_text("text")
    with pytest.raises(DataError, match=r"^no photo.png does not decode: its bytes are of none of the formats"):
        desk.upload(wrong)
    assert not wrong.exists()
    with pytest.raises(DataError, match=r"^no photo.png is not there any more: drop it again$"):
        desk.upload(wrong)  # the field still has it
    large = desk.uploads / "large.png"
    with large.open("wb") as file:
        file.truncate(desks.MOST_UPLOAD + 1)
    with pytest.raises(DataError, match=r"large.png: a photo must have at most 33,554,432 bytes, got 33,554,433"):
        desk.upload(large)
    own = tmp_path / "mine.png"
    Image.new("RGB", (9, 9)).save(own)
    (desk.uploads / "link.png").symlink_to(own)
    for path in (own, desk.uploads / "link.png", desk.uploads / ".." / ".." / "etc" / "passwd"):
        with pytest.raises(DataError, match="a photo must be uploaded, got a path"):
            desk.upload(path)
    assert own.exists()
    assert desk.upload(desk.copy(own)).read_bytes() == own.read_bytes()
    with pytest.raises(DataError, match="a photo must be given"):
        desk.upload(None)


def test_pictures_are_small_files_of_the_page_named_by_hashes(desk, tmp_path):
    photo = tmp_path / "<b>secret.png"
    Image.new("RGBA", (900, 300), (255, 0, 0, 0)).save(photo)
    made = desk.thumbnail(str(photo))
    assert re.fullmatch(rf"{re.escape(str(desk.pictures))}/[0-9a-f]{{32}}\.webp", made)
    with Image.open(made) as picture:
        assert picture.size == (320, 107)
        assert min(picture.convert("RGB").getpixel((5, 5))) > 250  # clear is white
    assert desk.many_thumbnails([str(photo), str(tmp_path / "gone.png")])[0] == made
    with Image.open(desk.thumbnail(str(tmp_path / "gone.png"))) as grey:
        assert 130 < min(grey.convert("RGB").getpixel((9, 9))) < 170
    assert desk.picture(Image.new("RGB", (3000, 10))) != made


def test_thumbnails_are_bounded(desk, tmp_path, monkeypatch):
    from jclip.app import thumbnails

    monkeypatch.setattr(thumbnails, "MOST_FILES", 3)
    for number in range(6):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        desk.thumbnail(str(tmp_path / f"{number}.png"))
    assert len([*desk.pictures.iterdir()]) == 3


def test_every_text_is_there_in_both_languages():
    texts = words.texts()
    for key, (english, chinese) in texts.items():
        assert set(re.findall(r"{(\w+)}", english)) == set(re.findall(r"{(\w+)}", chinese)), key
        assert re.search("[\u4e00-\u9fff]", chinese), key
        assert not re.search("[\u4e00-\u9fff]", english), key
    for file in (ASSETS / "app_words").glob("*.yaml"):
        source = "".join(p.read_text(encoding="utf-8") for p in (ASSETS.parent / "app").glob("*.py"))
        used = re.findall(r'words\.(?:said|t)\("([a-z]+\.[a-z_]+)"|\bt\("([a-z]+\.[a-z_]+)"', source)
        assert len(used) > 50 and {one or other for one, other in used} <= {*texts}
        for key in yaml.safe_load(file.read_text(encoding="utf-8")):
            assert f"{file.stem}.{key}" in source or f'"{key}"' in source or f"{file.stem}.{{" in source, key


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-GB,zh;q=0.5", "en"), ("fr,zh-TW;q=0.7,en;q=0.3", "zh"), ("", "en"), ("fr", "en")],
)  # fmt: skip
def test_the_language_is_the_browsers(accepted, language):
    assert words.language(SimpleNamespace(headers={"accept-language": accepted})) == language


def test_names_as_html_are_text_and_no_template():
    name = "<img src=x onerror=alert(1)> ${1+1} {{value}} `x` \"q\" 'q' \n\u202e"
    shown_name = markup.escaped(name)
    assert not set("<>${}`\"'\n\u202e") & set(shown_name)
    assert markup.escaped("x" * 100, 10) == "…" + "x" * 9


@pytest.mark.parametrize(
    "form",
    [
        search_form.Form("2:golden retriever + row:3 - fruit", top=12),
        search_form.Form("-dark; rm -rf ~ 'x'", where="year>=2020\n path~a b \n", unique=0.98, cut=True),
        search_form.Form("a", without="red\n-blue\n", without_weight=0.5),
    ],
)
def test_the_shown_command_asks_for_the_same(form):
    program, name, place, *rest = shlex.split(form.command("my photos/all", "ViT-B/32"))
    assert (program, name, place) == ("jclip", "search", "my photos/all")
    args = search_command.parsed(search_command.parser(), [place, *rest])
    assert query_terms.parse_terms(args.terms).terms == form.query.terms
    assert (args.where, args.unique, args.cut, args.top, args.model) == (
        form.conditions, form.unique, form.cut, form.top, "ViT-B/32",
    )  # fmt: skip


def test_commands_are_quoted():
    assert shown("search", "my photos", "-x", "+", top=3) == "jclip search 'my photos' --top 3 -- -x +"
    assert shown("tag", "a", classes="", cut=False, dry_run=True, where=["a=1", "-b"]) == (
        "jclip tag a --dry-run --where a=1 --where=-b"
    )


@pytest.mark.parametrize("word", ["a\u202eb'c\\\\d", "two\nlines", "\udcff.jpg", "plain $HOME 'quoted'"])
def test_a_shell_reads_the_word_again(word):
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("bash is not installed")
    line = shown("search", word).removeprefix("jclip search ")
    assert line.isprintable()
    assert subprocess.run([shell, "-c", f"printf %s {line}"], capture_output=True).stdout == os.fsencode(word)


def test_photos_that_could_not_be_read_are_counted_and_later_ones_found(desk, tmp_path):
    for name, content in (("good.png", None), ("<b>bad.png", b"no photo")):
        if content is None:
            draw_scene((0, 1)).render(32).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
    gallery = photo_galleries.gallery_of_photos(tmp_path, "shapes-tiny-rn")
    assert [found["path"] for found in gallery.left_out] == ["<b>bad.png"]
    desk.gallery = gallery
    assert desk.opened() is gallery
    draw_scene((0, 2)).render(32).save(tmp_path / "later.png")
    photo_galleries.gallery_of_photos(tmp_path, "shapes-tiny-rn")  # as another process does
    assert len(desk.opened()) == 2 and desk.opened() is desk.gallery and len(gallery) == 1
    shutil.rmtree(gallery.store.folder)
    assert len(desk.opened()) == 2  # what is open stays so


def test_a_run_that_is_none_is_said_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no run: name a folder that `jclip train` wrote"):
        desks.Desk(runs=[tmp_path / "empty"])


@pytest.mark.parametrize("folder", ["/tmp/x", "../x", "a/../../x", "", "  ", "a\0b"])
def test_photos_go_below_the_folder_of_the_start_alone(folder):
    with pytest.raises(ConfigError, match="must lie below where jclip app was started"):
        search_form.below_here(folder)


def test_files_of_this_machine_are_no_terms():
    for text in ("concept:/etc/x.concept", "@../x.concept", "a - /x.concept"):
        with pytest.raises(ConfigError, match="must lie below where jclip app was started"):
            search_form.Form(text).query  # noqa: B018
    for text in ("@/etc/passwd", "./x.png", "/x.npy", "a + 2:@x.png"):
        with pytest.raises(ConfigError, match="must be uploaded here"):
            search_form.Form(text).query  # noqa: B018

"""What the page has open, shared by its tabs: a gallery, a model, runs, and the one thread that computes."""

from __future__ import annotations

import contextlib
import html
import os
import queue
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from jclip.app import words
from jclip.app.run_places import is_utf8, runs_at
from jclip.app.thumbnails import LARGE, SIDE, Thumbnails
from jclip.choices import default_model
from jclip.data import gallery_store, photo_file, shape_sources
from jclip.errors import ConfigError, DataError, JclipError, notice, printable
from jclip.features import gallery as galleries
from jclip.features import photo_galleries, query_features
from jclip.features import source as sources
from jclip.postponed import gr
from jclip.weights import download

T = TypeVar("T")
SHIPPED = "shapes-tiny-vit"  # the model of the drawn shapes
SHOWN = 20  # seconds of an error in the page
MOST_UPLOAD = 32 << 20  # bytes of one photo


class Stopped(JclipError):
    """Long work that somebody stopped in the page, after `done` of `total`."""

    def __init__(self, done: int = 0, total: int = 0):
        self.done, self.total = done, total
        super().__init__(self.said("en"))

    def said(self, language: words.Language) -> str:
        """The line in that language."""
        if not self.total:
            return words.said("page.stopped", language)
        return words.said("page.stopped_at", language, done=f"{self.done:,}", total=f"{self.total:,}")


class Closed(JclipError):
    """The page has ended."""


@dataclass
class Task:
    """One piece of work on the desk's thread: how far it is, and whether it is to stop."""

    run: Callable[[], Any]
    long: bool = False
    key: str = ""
    done: int = 0
    total: int = 0
    stop: bool = False
    future: Future = field(default_factory=Future)


class Desk:
    """What is open.

    Jittor must not be used by several threads, and handlers of the page run in many: what touches Jittor or the gallery
    goes through `work`. place: photos or a gallery, as the user named it. runs: folders of runs, or
    that hold runs. Raises `ConfigError` for a folder without any.
    """

    def __init__(
        self, place: str = "", model: str = "", runs: Sequence[str | os.PathLike] = (), family: str | None = None
    ):
        self.place, self.model, self.family = place, model or default_model(), family
        self._named = model
        self.runs = list(dict.fromkeys(found for run in runs for found in runs_at(os.fspath(run))))
        if strange := [run for run in self.runs if not is_utf8(run)]:
            raise ConfigError(
                f"--run must be a folder whose name is UTF-8, as browsers have it, got {strange[0]}: rename it"
            )
        self.gallery: galleries.Gallery | None = None
        self.fault: BaseException | None = None  # what went wrong with the photos, or that somebody stopped them
        self.folder = Path(tempfile.mkdtemp(prefix="jclip-app-"))
        self.uploads, self.pictures = self.folder / "uploads", self.folder / "pictures"
        self.uploads.mkdir()
        self.pictures.mkdir()
        self.thumbnails = Thumbnails(self.pictures)
        self._source: sources.ModelSource | None = None
        self._opening: Future | None = None
        self._again: Callable[[], Future] | None = None
        self._stamp: tuple[int, ...] = ()  # of the gallery's manifest when it was looked at last
        self._waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()  # an interrupt leaves no lock of it behind
        self._under_way: list[Task] = []
        self._thread: int | None = None
        self._closed = False
        self._starting, self._going_on = threading.Lock(), threading.Lock()

    # What is open

    def source(self) -> sources.ModelSource:
        """The model, of an open gallery its own; opened once, its weights loaded at first use."""
        if self.gallery is not None:
            return self.gallery.source
        if self._source is None:
            self._source = sources.ModelSource(self.model, self.family)
        return self._source

    def open(self) -> None:
        """Opens the gallery that was named, or begins to encode the photos. Raises as `Gallery.open` and `ModelSource` do."""
        if gallery_store.is_gallery(self.place):
            gallery = galleries.Gallery.open(self.place)
            self.gallery = gallery.with_model(self._named) if self._named else gallery
            self.model = self._named or gallery.store.manifest.model
            self.later(query_features.warm_up, self.gallery.source)
        elif self.place:
            self.source()  # wrong or absent weights end here
            self._begin(self._grow, "search.opening")
        elif self._named:
            self.source()
        elif not download.is_here(self.model):
            self.model = SHIPPED

    def open_world(self) -> None:
        """Draws pictures of shapes, and encodes them with a model that ships: something to look at without a download."""
        self.model, self.family, self._source = SHIPPED, None, None
        self._begin(self._draw, "search.drawing")

    def _begin(self, work: Callable[[], None], key: str) -> None:
        """Begins to make the gallery; `go_on` begins again."""

        def opening() -> None:
            try:
                work()
                self.fault = None
            except (JclipError, MemoryError, OSError) as e:
                self.fault = e
                if not isinstance(e, Stopped):
                    notice(f"jclip app: {self.said(e)}")

        def begin() -> Future:
            self.fault = None
            return self.later(opening, key=key)

        self._again = begin
        self._opening = begin()

    def go_on(self) -> None:
        """Makes the gallery further, where it was stopped or failed: what is encoded by then is not encoded again."""
        with self._going_on:
            if self.can_go_on:
                self._opening = self._again()

    def _draw(self) -> None:
        self.place = str(shape_sources.kept_photos(seen=self.step))
        self._grow()

    def _grow(self) -> None:
        """Encodes photos; what is done by then can be searched."""
        warm = self.gallery is not None
        for gallery in photo_galleries.growing_gallery(self.place, self.model, self.family, self.step):
            self.gallery, self._source = gallery, gallery.source
            if not warm:
                query_features.warm_up(gallery.source)
                warm = True

    @property
    def can_go_on(self) -> bool:
        """Whether `go_on` does anything."""
        return self._again is not None and self.fault is not None

    def said_of_photos(self, language: words.Language) -> str:
        """Why there are no photos, or not all; empty where nothing went wrong."""
        return "" if self.fault is None else self.said(self.fault, language)

    def opened(self) -> galleries.Gallery | None:
        """The gallery, waited for while its first photos are being encoded, as it is now on disk. Not to be called within
        `work`."""
        while self.gallery is None and self._opening is not None and not self._opening.done():
            time.sleep(0.02)
        if self.gallery is not None and (self._opening is None or self._opening.done()):
            with contextlib.suppress(JclipError, OSError):  # it was moved: what is open can still be searched
                self._renew(self.gallery)
        return self.gallery

    def _renew(self, gallery: galleries.Gallery) -> None:
        """Opens it again where another process has written it since."""
        folder = gallery.store.folder
        about = (folder / gallery_store.MANIFEST).stat()
        if (stamp := (about.st_ino, about.st_mtime_ns, about.st_size)) == self._stamp:
            return
        manifest = gallery_store.read_manifest(folder)
        if manifest != gallery.store.manifest:
            own = manifest.made_by == gallery.store.manifest.made_by
            fresh = self.work(galleries.Gallery.open, folder, source=gallery.source if own else None)
            self.gallery = fresh if own or not self._named else fresh.with_model(self._named)
            self.model = self.model if own or self._named else manifest.model
        self._stamp = stamp

    @property
    def shown_model(self) -> str:
        """The model that a command must be given for the same result; none where a gallery names its own."""
        return "" if gallery_store.is_gallery(self.place) and not self._named else self.model

    # Work

    def work(self, function: Callable[..., T], *args: Any, long: bool = False, key: str = "", **options: Any) -> T:
        """Calls `function(*args, **options)` on the desk's thread, and returns or raises what it does.

        long: may take more than seconds: the page shows how far it is and a button that stops it; `function` calls `step`
        now and then, in which shorter work that waits is done. key: of the text that says what it is, see `words`.
        """
        task = Task(lambda: function(*args, **options), long, key)
        if threading.get_ident() == self._thread:
            return self._done(task)
        return self._put(task).result()

    def later(self, function: Callable[..., Any], *args: Any, key: str = "", **options: Any) -> Future:
        """As `work` of something long, without waiting for it."""
        return self._put(Task(lambda: function(*args, **options), True, key))

    def step(self, done: int = 0, total: int = 0) -> None:
        """To be called within long work: says how far it is, and lets other work in between. Raises `Stopped`."""
        if not self._under_way:
            return
        task = self._under_way[-1]
        task.done, task.total = done, total
        with contextlib.suppress(queue.Empty):
            while len(self._under_way) == 1 and (waiting := self._waiting.get_nowait()):
                self._run(waiting)
        if task.stop:
            raise Stopped(done, total)

    def stopped(self) -> bool:
        """Whether the work under way is to stop."""
        return bool(self._under_way) and self._under_way[-1].stop

    def stop(self) -> None:
        """Stops the long work that is under way, at its next `step`."""
        for task in self._under_way:
            task.stop = task.stop or task.long

    def under_way(self) -> Task | None:
        """The long work that is under way."""
        return next((task for task in [*self._under_way] if task.long), None)

    def claim(self) -> None:
        """The calling thread is the one that is going to `serve`: from now on none is started."""
        self._thread = threading.get_ident()

    def serve(self) -> None:
        """Works in the calling thread, until `close` is called."""
        self.claim()
        while (task := self._waiting.get()) is not None:
            self._run(task)

    def _put(self, task: Task) -> Future:
        self._start()
        self._waiting.put(task)
        if self._closed:
            self._refuse_all()
        return task.future

    def _refuse_all(self) -> None:
        """Nobody waits for what is not going to be done."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (task := self._waiting.get_nowait()) is not None:
                    task.future.set_exception(Closed("the page was closed"))

    def _start(self) -> None:
        """Starts a thread where nobody serves."""
        with self._starting:
            if self._thread is None:
                begun = threading.Thread(target=self.serve, name="desk", daemon=True)
                begun.start()
                while self._thread is None:
                    begun.join(0.001)

    def _run(self, task: Task) -> None:
        try:
            found = self._done(task)
        except Exception as e:
            task.future.set_exception(e)
        except BaseException as e:
            task.future.set_exception(e)
            raise
        else:
            task.future.set_result(found)

    def _done(self, task: Task) -> Any:
        self._under_way.append(task)
        try:
            return task.run()
        finally:
            self._under_way.remove(task)

    # What goes in and out

    def upload(self, path: str | os.PathLike | None, name: str = "") -> Path:
        """A photo that was uploaded; name: what errors call it, by default as the file.

        Raises `DataError` for none, one that is too large, and what is no photo, which is removed, and for another file of
        this machine."""
        if not path:
            raise DataError("a photo must be given: drop one, or choose a file")
        found = Path(path)
        name = name or found.name
        if self.folder.resolve() not in found.resolve().parents:
            raise DataError(f"a photo must be uploaded, got a path: {name}")
        if not found.is_file():  # it was refused, or uploaded long ago
            raise DataError(f"{name} is not there any more: drop it again")
        try:
            if (size := found.stat().st_size) > MOST_UPLOAD:
                raise DataError(f"{name}: a photo must have at most {MOST_UPLOAD:,} bytes, got {size:,}")
            photo_file.header(found)
        except DataError as e:
            found.unlink(missing_ok=True)
            raise DataError(str(e).replace(str(found), name)) from None  # the folder is the app's own
        return found

    def thumbnail(self, address: str, side: int = SIDE) -> str:
        """The path of a small picture of a photo, as the browser may have it."""
        return str(self.thumbnails.of(address, side, self._upright()))

    def many_thumbnails(self, addresses: Sequence[str], side: int = SIDE) -> list[str]:
        """The same of several, made side by side."""
        return [str(path) for path in self.thumbnails.of_all(addresses, side, self._upright())]

    def picture(self, image: Image.Image) -> str:
        """The path of a picture that was drawn, as the browser may have it."""
        return str(self.thumbnails.save(image, LARGE))

    def copy(self, path: str | os.PathLike) -> str:
        """The path of a copy of a file, for a field that is filled in by the page itself."""
        return self.file(Path(path).name, Path(path).read_bytes())

    def file(self, name: str, data: bytes) -> str:
        """The path of a file of that name, which the browser may have."""
        folder = self.pictures / secrets.token_hex(16)
        folder.mkdir()
        (folder / name).write_bytes(data)
        return str(folder / name)

    def _upright(self) -> bool:
        return self.gallery is None or bool(self.gallery.store.manifest.preprocess.get("upright", True))

    def said(self, error: BaseException, language: words.Language = "en") -> str:
        """An error as the one line that the command line says."""
        if isinstance(error, Stopped):
            return error.said(language)
        if isinstance(error, MemoryError):
            return "there is not enough memory" + (f": {error}" if str(error) else "")
        if isinstance(error, OSError) and error.errno is not None:
            return printable(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
        return str(error)

    @contextlib.contextmanager
    def errors_shown(self, language: words.Language = "en", stopped: str = "") -> Iterator[None]:
        """Around what a handler does: an error that a user can fix is shown in the page, as one line. stopped: key of what is
        said besides where somebody stopped it."""
        try:
            yield
        except (JclipError, MemoryError, OSError) as e:
            if isinstance(e, OSError) and e.errno is None:
                raise
            line = self.said(e, language)
            if stopped and isinstance(e, Stopped):
                line += words.said(stopped, language)
            notice(f"jclip app: {line}")
            raise gr.Error(html.escape(line), duration=SHOWN, title="jclip", print_exception=False) from None

    def close(self) -> None:
        """Ends the work, and removes the files that were made for the browser."""
        self.stop()
        self._closed = True
        self._refuse_all()
        self._waiting.put(None)
        self.thumbnails.close()
        shutil.rmtree(self.folder, ignore_errors=True)

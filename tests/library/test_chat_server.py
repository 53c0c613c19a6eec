"""A client of chat servers against one that is slow, breaks off, refuses or talks nonsense. Needs no Jittor."""

from __future__ import annotations

import email.utils
import threading
import time

import pytest

from jclip.data.chat_server import ChatServer, NoReply, ServerRefused, key_from
from jclip.errors import ConfigError
from tests.loopback import Loopback, said

PATIENCE = 300  # seconds that a busy machine may take; never waited for
KEY = "sk-very-secret-1"
GOOD = said("A dog.", prompt_tokens=3, completion_tokens=2)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def ask(answers, tries: int = 6, timeout: float = 60.0, draw: float = 0.5):
    """The reply or the error, the waits, the loopback server. `answers` are given one by one, the last again and again."""
    waits: list[float] = []
    with Loopback(lambda prompt, number: answers[min(number, len(answers) - 1)]) as loopback:
        server = ChatServer(loopback.url, "m", KEY, timeout, tries, waits.append, lambda: draw)
        try:
            result = server.ask("What?", temperature=0.3, top_p=0.95, max_tokens=50, seed=7)
        except (NoReply, ServerRefused) as e:
            result = e
    return result, waits, loopback


def test_what_is_asked():
    reply, waits, loopback = ask([GOOD])
    assert (reply.text, dict(reply.usage), waits) == ("A dog.", {"prompt_tokens": 3, "completion_tokens": 2}, [])
    assert loopback.requests == [
        {
            "model": "m", "messages": [{"role": "user", "content": "What?"}], "temperature": 0.3, "top_p": 0.95,
            "max_tokens": 50, "seed": 7, "path": "/v1/chat/completions",
        }
    ]  # fmt: skip
    assert loopback.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param((200, {}, b"<html>Please log in</html>"), id="HTML"),
        pytest.param((200, {}, b""), id="empty"),
        pytest.param((200, {}, GOOD[2][: len(GOOD[2]) // 2]), id="half a JSON"),
        pytest.param((200, {"Content-Length": "5000"}, GOOD[2]), id="breaks off"),
        pytest.param(said(""), id="empty reply"),
        pytest.param(said("  \n"), id="blank reply"),
        pytest.param(said(None), id="no reply"),
        pytest.param((200, {}, b'{"choices": []}'), id="no choices"),
        pytest.param((200, {}, b"[" * 100_000), id="nested without end"),
        pytest.param((200, {}, b"\xff\xfe"), id="no UTF-8"),
        pytest.param((500, {}, b"oops"), id="500"),
        pytest.param((503, {}, b""), id="503"),
        pytest.param((429, {}, b"slow down"), id="429"),
        pytest.param((408, {}, b""), id="408"),
        pytest.param((409, {}, b""), id="409"),
        pytest.param((425, {}, b""), id="425"),
    ],
)
def test_what_may_pass_is_asked_again(bad):
    reply, waits, loopback = ask([bad, bad, GOOD])
    assert reply.text == "A dog." and waits == [1.0, 2.0] and len(loopback.requests) == 3


def test_waits_grow_to_a_minute_and_end_in_no_reply():
    reply, waits, loopback = ask([(500, {}, b"the database is down")], tries=9)
    assert isinstance(reply, NoReply) and str(reply) == "status 500: the database is down (9 tries)"
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60] and len(loopback.requests) == 9
    assert ask([(500, {}, b"")], tries=4, draw=0.0)[1] == pytest.approx([0.8, 1.6, 3.2])
    assert ask([(500, {}, b"")], tries=4, draw=1.0)[1] == pytest.approx([1.2, 2.4, 4.8])


def test_retry_after_is_honoured():
    later = email.utils.format_datetime(email.utils.localtime(), usegmt=False)
    answers = [(429, {"Retry-After": text}, b"") for text in ("17", "0", "99999999", "2.5", "soon", later)]
    assert ask([*answers, GOOD], tries=7)[1] == [17, 0, 600, 2.5, 16, 0]
    in_an_hour = email.utils.formatdate(time.time() + 300, usegmt=True)
    assert 200 < ask([(503, {"Retry-After": in_an_hour}, b""), GOOD])[1][0] <= 300


def test_a_slow_server_is_asked_again():
    stop = threading.Event()

    def answer(prompt, number):
        if len(waits) < 2:
            stop.wait(PATIENCE)
        return GOOD

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:  # the last try is answered, however busy this machine is
            server.timeout = PATIENCE

    waits: list[float] = []
    with Loopback(answer) as loopback:
        server = ChatServer(loopback.url, "m", "", 0.15, 3, wait, lambda: 0.5)
        assert server.ask("What?", temperature=0, top_p=1, max_tokens=5, seed=0).text == "A dog."
        stop.set()
    assert waits == [1, 2] and "Authorization" not in loopback.headers[0]


def test_an_answer_in_drops_is_no_answer():
    stop, waited = threading.Event(), threading.Event()

    def wait(seconds: float) -> None:
        waited.set()
        server.timeout = PATIENCE

    def drops():
        while not stop.wait(0.02):
            yield b" "

    with Loopback(lambda prompt, number: GOOD if waited.is_set() else (200, {}, drops())) as loopback:
        server = ChatServer(loopback.url, "m", "", 0.2, 2, wait)
        assert server.ask("What?", temperature=0, top_p=1, max_tokens=5, seed=0).text == "A dog."
        stop.set()


def test_whoever_stops_waits_no_longer():
    with Loopback(lambda prompt, number: (429, {"Retry-After": "500"}, b"")) as loopback:
        server = ChatServer(loopback.url, "m", "", 5, 3)
        server.stopped.set()
        with pytest.raises(NoReply):
            server.ask("What?", temperature=0, top_p=1, max_tokens=5, seed=0)
        assert len(loopback.requests) == 1


def test_nobody_listens():
    server = ChatServer("http://127.0.0.1:9/v1", "m", KEY, 2, 2, lambda seconds: None)
    with pytest.raises(NoReply, match=r"the connection broke: .* \(2 tries\)"):
        server.ask("What?", temperature=0, top_p=1, max_tokens=5, seed=0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_would_not_pass_next_time_stops_at_once(status):
    body = b'{"error": {"message": "Incorrect key sk-very-secret-1 given, \\u001b[31m see our pages"}}'
    error, waits, loopback = ask([(status, {}, body)])
    assert isinstance(error, ServerRefused) and waits == [] and len(loopback.requests) == 1
    assert f"status {status}: Incorrect key <key> given, \\x1b[31m see our pages" in str(error) and KEY not in str(
        error
    )
    long = ask([(status, {}, b"x" * 9000)])[0]
    assert len(str(long)) < 600


def test_a_redirect_does_not_get_the_key():
    with Loopback(lambda prompt, number: GOOD) as other:
        error, _, _ = ask([(307, {"Location": f"{other.url}/chat/completions"}, b"")])
        assert isinstance(error, ServerRefused) and other.requests == []


def test_other_scripts_and_odd_usage_pass():
    reply, _, _ = ask([said("一只狗\ud800", prompt_tokens="3", total_tokens=-1)])
    assert reply.text == "一只狗?" and reply.usage == {}


def test_the_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    assert key_from("MY_KEY") == KEY and key_from("") == ""
    assert KEY not in repr(ChatServer("http://x/v1", "m", KEY))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(
        ConfigError, match="the environment variable MY_KEY must hold the chat server's key, it is not set"
    ):
        key_from("MY_KEY")
    with pytest.raises(ConfigError) as caught:
        key_from(KEY)
    assert KEY not in str(caught.value) and "must be the name of an environment variable" in str(caught.value)
    monkeypatch.setenv("MY_KEY", f"{KEY}\nX: y")
    with pytest.raises(ConfigError, match="MY_KEY must hold a key of plain letters and digits") as caught:
        key_from("MY_KEY")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["", "host/v1", "file:///etc/passwd", "http://user:word@host/v1", "ftp://host"])
def test_an_address_has_to_be_one(url):
    with pytest.raises(ConfigError, match="base_url must be an address"):
        ChatServer(url, "m")

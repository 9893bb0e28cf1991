"""Mirrored requests are copied to another app, and never delay or fail the client."""

from __future__ import annotations

import io
import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.objects import part
from wsgigate import ApiKeyAuthenticator, ApiKeys, ForwardAuth, Identity, Mirror
from wsgigate.http.wsgi import CLAIMS, CLIENT, IDENTITIES, IDENTITY, ROUTE, SET_FIELDS, BodyError
from wsgigate.runtime.threads import BackgroundQueue
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import Backend, FakeClock, reply
from wsgigate.testing.fakes import Server, new_environ


def echo(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b"none"]


class Shadow:
    """Keeps the copies that it gets."""

    def __init__(self) -> None:
        self.copies: queue.Queue[tuple[Any, bytes]] = queue.Queue()

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        length = int(environ.get("CONTENT_LENGTH") or 0)
        self.copies.put((environ, environ["wsgi.input"].read(length)))
        return [b"nobody sees this"]

    def next(self) -> tuple[Any, bytes]:
        return self.copies.get(timeout=30)


@pytest.fixture
def shadow() -> Shadow:
    return Shadow()


def ask(app: Any, method: str = "GET", body: bytes = b"", **more: Any) -> Server:
    return Server().serve(app, {**new_environ(method, body), **more})


def settled(mirror: Mirror) -> None:
    """Wait until its only thread has had all copies answered, by being the next in the queue."""
    done = threading.Event()
    part(BackgroundQueue, mirror).put(done.set)
    assert done.wait(30)


def test_the_mirror_gets_the_request_of_the_client(shadow: Shadow) -> None:
    mirror = Mirror(echo, shadow)
    answer = ask(
        mirror,
        "POST",
        b"an order",
        PATH_INFO="/orders",
        QUERY_STRING="a=1",
        HTTP_ACCEPT="text/html",
        **{ROUTE: "orders", CLIENT: "192.0.2.7"},
    )
    assert answer.chunks == [b"an order"]
    copy, body = shadow.next()
    assert body == b"an order"
    assert copy["CONTENT_LENGTH"] == "8"
    assert copy["CONTENT_TYPE"] == "application/octet-stream"
    assert (copy["REQUEST_METHOD"], copy["PATH_INFO"], copy["QUERY_STRING"]) == (
        "POST",
        "/orders",
        "a=1",
    )
    assert (copy["HTTP_ACCEPT"], copy[ROUTE], copy[CLIENT]) == ("text/html", "orders", "192.0.2.7")
    assert copy["HTTP_X_GATEWAY_MIRROR"] == "1"
    mirror.close()


def test_nothing_of_the_connection_is_copied(shadow: Shadow) -> None:
    mirror = Mirror(echo, shadow)
    ask(mirror, **{"gunicorn.socket": object(), "wsgi.file_wrapper": object(), "any.thing": 1})
    copy, _ = shadow.next()
    assert not {"gunicorn.socket", "wsgi.file_wrapper", "any.thing"} & copy.keys()
    mirror.close()


SECRETS = {
    "HTTP_AUTHORIZATION": "Bearer x",
    "HTTP_COOKIE": "session=1",
    "HTTP_PROXY_AUTHORIZATION": "Basic x",
    "HTTP_X_API_KEY": "k",
    CLAIMS: {"sub": "ann"},
    IDENTITY: Identity(subject="ann", scheme="bearer"),
    IDENTITIES: (Identity(subject="ann", scheme="bearer"), Identity("7", "badge")),
}


@pytest.mark.parametrize("credentials", [False, True])
def test_credentials_are_copied_only_if_configured(shadow: Shadow, credentials: bool) -> None:
    mirror = Mirror(echo, shadow, credentials=credentials)
    ask(mirror, **SECRETS)
    copy, _ = shadow.next()
    assert {key: copy[key] for key in SECRETS if key in copy} == (SECRETS if credentials else {})
    mirror.close()


@pytest.mark.parametrize("credentials", [False, True])
@pytest.mark.parametrize("body", [b"", b"an order"])
@pytest.mark.parametrize("removed", [True, False])
def test_a_key_that_an_authenticator_inside_removes_is_in_no_copy(
    shadow: Shadow, credentials: bool, body: bytes, removed: bool
) -> None:
    keys = ApiKeys(MemoryStore())
    key = keys.create("acme").key
    options: Any = {"header": "X-Partner", "authorization": "ApiKey", "query": "api_key"}
    inner = ApiKeyAuthenticator(echo, keys, hide_credentials=removed, **options)
    mirror = Mirror(inner, shadow, credentials=credentials)
    places: list[dict[str, Any]] = [
        {"HTTP_X_PARTNER": key},
        {"HTTP_AUTHORIZATION": f"ApiKey {key}"},
        {"QUERY_STRING": f"a=1&api_key={key}", "RAW_URI": f"/?a=1&api_key={key}"},
    ]
    for place in places:
        assert ask(mirror, "POST" if body else "GET", body, **place).status == "200 OK"
        copy, copied = shadow.next()
        assert copied == body
        shown = str([value for value in copy.values() if isinstance(value, str)])
        assert (key in shown) is (not removed and _reaches_the_shadow(place, credentials))
        assert ("a=1" in shown) is ("QUERY_STRING" in place)
    mirror.close()


@pytest.mark.parametrize("credentials", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_the_identity_from_a_service_is_copied_only_if_configured(
    shadow: Shadow, credentials: bool, inside: bool
) -> None:
    fields = ("Remote-User", "X-Access-Token")
    with Backend(reply(fields=[(name, "of-ann") for name in fields])) as service:
        mirrored = partial(Mirror, other=shadow, credentials=credentials)
        asking = partial(ForwardAuth, address=service.url, auth_response_headers=fields)
        mirror: Any = mirrored(asking(echo) if inside else echo)
        app: Any = mirror if inside else asking(mirror)
        forged = {"HTTP_REMOTE_USER": "root", "HTTP_X_ACCESS_TOKEN": "forged"}
        assert ask(app, **forged).status == "200 OK"
        copy, _ = shadow.next()
        found = {copy.get("HTTP_REMOTE_USER"), copy.get("HTTP_X_ACCESS_TOKEN")}
        assert found == {"of-ann" if credentials else None}
        assert (SET_FIELDS in copy) is (credentials and not inside)
        mirror.close()
        (mirror.app if inside else app).close()


def _reaches_the_shadow(place: dict[str, Any], credentials: bool) -> bool:
    """Return whether a key that is not removed is in a copy; a parameter always is removed."""
    return "QUERY_STRING" not in place and (credentials or "HTTP_AUTHORIZATION" not in place)


def test_an_app_that_fails_is_mirrored_as_well(shadow: Shadow) -> None:
    def fails(environ: Any, start_response: Any) -> Iterable[bytes]:
        del environ["HTTP_X_A"]
        raise LookupError

    mirror = Mirror(fails, shadow)
    with pytest.raises(LookupError):
        ask(mirror, HTTP_X_A="1", HTTP_X_B="2")
    copy, _ = shadow.next()
    assert ("HTTP_X_A" in copy, copy["HTTP_X_B"]) == (False, "2")
    mirror.close()


def test_a_client_can_not_pass_for_a_mirror(shadow: Shadow) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        seen.append(environ.get("HTTP_X_GATEWAY_MIRROR"))
        return echo(environ, start_response)

    mirror = Mirror(app, shadow, methods=["POST"])
    ask(mirror, HTTP_X_GATEWAY_MIRROR="1")
    ask(mirror, "POST", HTTP_X_GATEWAY_MIRROR="1")
    assert seen == [None, None]
    mirror.close()


@pytest.mark.parametrize(
    ("options", "method", "more", "copied"),
    [
        ({"percent": 25}, "GET", {}, True),
        ({"percent": 24}, "GET", {}, False),
        ({"methods": ["GET"]}, "GET", {}, True),
        ({"methods": ["GET"]}, "POST", {}, False),
        ({}, "GET", {"HTTP_UPGRADE": "websocket"}, False),
    ],
)
def test_only_some_requests_are_copied(
    shadow: Shadow, options: Any, method: str, more: Any, copied: bool
) -> None:
    mirror = Mirror(echo, shadow, random=lambda: 0.2499, **options)
    assert ask(mirror, method, **more).status == "200 OK"
    ended = threading.Event()
    part(BackgroundQueue, mirror).put(ended.set)
    assert ended.wait(30)
    if copied:
        shadow.next()
    assert shadow.copies.empty()
    mirror.close()


def chunked(size: int) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "wsgi.input": io.BytesIO(b"x" * size),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }


def to_the_end(environ: Any, start_response: Any) -> Iterable[bytes]:
    read = 0
    while block := environ["wsgi.input"].read(4):
        read += len(block)
    start_response("200 OK", [])
    return [str(read).encode()]


def test_a_length_of_thousands_of_digits_is_too_large_like_any_other(shadow: Shadow) -> None:
    mirror = Mirror(to_the_end, shadow)
    assert ask(mirror, "POST", CONTENT_LENGTH="9" * 5000).status == "200 OK"
    assert mirror.too_large == 1


@pytest.mark.parametrize(("size", "copied"), [(10, True), (11, False)])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_is_too_large_is_not_copied(
    shadow: Shadow, size: int, copied: bool, framing: str
) -> None:
    mirror = Mirror(to_the_end, shadow, max_body=10)
    if framing == "chunked":
        answer = ask(mirror, **chunked(size))
    else:
        answer = ask(mirror, "POST", b"x" * size)
    assert answer.chunks == [str(size).encode()]
    assert mirror.too_large == (not copied)
    if copied:
        copy, body = shadow.next()
        assert body == b"x" * size
        assert copy["CONTENT_LENGTH"] == "10"
        assert "HTTP_TRANSFER_ENCODING" not in copy
    assert shadow.copies.empty()
    mirror.close()


@pytest.mark.parametrize(
    "reader",
    [
        lambda source: source.read(8),
        lambda source: [source.readline(), source.readline(3), source.readline()],
        lambda source: source.readlines(),
        lambda source: list(source),
    ],
)
def test_however_the_app_reads_the_copy_is_whole(shadow: Shadow, reader: Any) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        reader(environ["wsgi.input"])
        return echo({"wsgi.input": io.BytesIO()}, start_response)

    mirror = Mirror(app, shadow)
    ask(mirror, "POST", b"an\norder")
    assert shadow.next()[1] == b"an\norder"
    mirror.close()


def test_a_body_that_was_not_read_is_not_copied(shadow: Shadow) -> None:
    def refuses(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read(3)
        start_response("401 Who", [])
        return []

    def breaks(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise BodyError("the client stopped")

    mirror = Mirror(refuses, shadow)
    ask(mirror, "POST", b"an order")
    mirror.app = breaks
    with pytest.raises(BodyError):
        ask(mirror, "POST", b"an order")
    assert (mirror.unread, mirror.too_large) == (2, 0)
    assert shadow.copies.empty()
    mirror.close()


def test_the_client_never_waits_for_a_mirror_that_hangs() -> None:
    hangs, entered = threading.Event(), threading.Semaphore(0)

    def stuck(environ: Any, start_response: Any) -> Iterable[bytes]:
        entered.release()
        hangs.wait(30)
        return []

    mirror = Mirror(echo, stuck, threads=2, queue=3)
    for _ in range(2):
        ask(mirror)
        assert entered.acquire(timeout=30)
    for _ in range(20):
        assert ask(mirror).status == "200 OK"
    assert mirror.dropped == 17
    hangs.set()
    mirror.close()


def test_the_client_never_fails_by_a_mirror_that_does(caplog: pytest.LogCaptureFixture) -> None:
    failed = threading.Semaphore(0)

    def broken(environ: Any, start_response: Any) -> Iterable[bytes]:
        failed.release()
        raise RuntimeError("a bug")

    mirror = Mirror(echo, broken, clock=FakeClock(), threads=1)
    with caplog.at_level(logging.WARNING, "wsgigate.mirror"):
        for _ in range(3):
            assert ask(mirror).status == "200 OK"
            assert failed.acquire(timeout=30)
        settled(mirror)
    assert (mirror.failed, mirror.sent) == (3, 0)
    assert caplog.text.count("copies of requests failed") == 1
    mirror.close()


@pytest.mark.parametrize("bound", ["bytes", "time"])
def test_an_endless_response_of_the_mirror_is_closed(bound: str) -> None:
    clock, closed = FakeClock(), threading.Event()
    chunks: list[int] = []

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                chunks.append(1)
                clock.advance(1)
                yield b"x" * 10

        def close(self) -> None:
            closed.set()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])(b"written")
        return Endless()

    options: Any = {"max_answer": 100} if bound == "bytes" else {"max_time": 5}
    mirror = Mirror(echo, app, clock=clock, threads=1, **options)
    ask(mirror)
    assert closed.wait(30)
    assert len(chunks) == (11 if bound == "bytes" else 5)
    settled(mirror)
    assert mirror.sent == 1
    mirror.close()


def test_a_mirror_works_around_an_app_of_a_framework(shadow: Shadow) -> None:
    from flask import Flask, request

    flask = Flask(__name__)

    @flask.post("/")
    def index() -> str:
        return request.form["a"]

    mirror = Mirror(flask.wsgi_app, shadow)
    assert Client(mirror).post("/", data={"a": "1"}).text == "1"
    assert shadow.next()[1] == b"a=1"
    mirror.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"percent": 0}, "percent: a number above 0"),
        ({"percent": 101}, "percent: a number above 0, at most 100"),
        ({"max_body": -1}, "max_body: 0 or more"),
        ({"max_time": 0}, "max_time: a number"),
        ({"threads": 0}, "threads: 1 or more"),
        ({"queue": 0}, "queue: 1 or more"),
    ],
)
def test_invalid_settings_raise(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mirror(echo, echo, **settings)

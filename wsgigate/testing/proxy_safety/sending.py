"""How a request is sent: rules 1, 2, 6 and 9.

1. Users share connections and nothing else. 2. A request goes out as it was made, framed in one
way. 6. Nothing is sent that the client did not send. 9. What may have been processed is not sent
again.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from wsgigate.testing.backend import Received, cut, reply
from wsgigate.testing.proxy_safety.case import Case, Cases
from wsgigate.testing.proxy_safety.exchange import Exchange

__all__ = ["CASES"]

cases = Cases()
CASES: list[Case] = cases


@cases(1, "cookies-of-others")
def _(x: Exchange) -> None:
    """A cookie that the backend sets for one user is not sent with the next user's request."""
    x.backend.answers = [reply(b"", fields=[("Set-Cookie", "sid=alice; Path=/")]), reply(b"ok")]
    assert "sid=alice" in "".join(x.send().values("Set-Cookie")), "the cookie was lost"
    x.send()
    assert x.backend.requests[1].value("Cookie") is None, "the next user got it"


@cases(1, "redirect-followed")
def _(x: Exchange) -> None:
    """A redirect is the client's to follow, and reaches it with its body."""
    moved = reply(b"moved", status="302 Found", fields=[("Location", f"{x.backend.url}/internal")])
    x.backend.answers = [moved, reply(b"secret")]
    answer = x.send("/a")
    assert (answer.status, answer.body) == (302, b"moved"), f"{answer.status} {answer.body!r}"
    assert x.received.target == "/a"


@cases(1, "malformed-location")
def _(x: Exchange) -> None:
    """A redirect to a malformed place is passed on like any other."""
    x.backend.answers = [reply(b"x", status="302 Found", fields=[("Location", "http://[::1")])]
    answer = x.send()
    assert (answer.status, answer.body) == (302, b"x"), f"{answer.status} {answer.raised!r}"


@cases(1, "credentials-from-a-file")
def _(x: Exchange) -> None:
    """The client's credentials are not replaced by what a .netrc of the server has."""
    with tempfile.NamedTemporaryFile("w", suffix=".netrc") as file:
        file.write("machine 127.0.0.1 login mallory password secret\n")
        file.flush()
        with _set("NETRC", file.name):
            x.send(fields=[("Authorization", "Bearer client")])
    assert x.received.value("Authorization") == "Bearer client"


@cases(1, "proxy-from-the-environment")
def _(x: Exchange) -> None:
    """A request goes to the backend, whatever http_proxy says."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        nobody.close()
        with _set("http_proxy", url), _set("no_proxy", ""):
            x.send("/a")
    assert x.received.target == "/a"


@cases(2, "framed-by-length")
def _(x: Exchange) -> None:
    """A body of a known length goes out with that length and no other framing."""
    x.send("/", method="POST", body=b"hello")
    _framed_once(x.received, b"hello")


@cases(2, "framed-by-chunks")
def _(x: Exchange) -> None:
    """A body in chunks goes out framed in one way, and whole."""
    x.send("/", method="POST", body=b"hello", chunked=True)
    _framed_once(x.received, b"hello")


@cases(2, "length-written-oddly")
def _(x: Exchange) -> None:
    """A Content-Length of 003 is told as 3, or refused."""
    answer = x.send("/", method="POST", body=b"abc", environ={"CONTENT_LENGTH": "003"})
    if x.backend.requests or answer.status < 400:
        assert x.received.value("Content-Length") == "3", str(x.received.values("Content-Length"))


@cases(2, "body-without-length")
def _(x: Exchange) -> None:
    """A POST without a body says so."""
    x.send("/", method="POST")
    framing = x.received.values("Content-Length"), x.received.values("Transfer-Encoding")
    assert framing in ((["0"], []), ([], ["chunked"])), str(framing)


@cases(2, "body-of-get")
def _(x: Exchange) -> None:
    """The body of a GET goes along with its framing, or the request is refused."""
    answer = x.send("/", body=b"hello")
    if x.backend.requests or answer.status < 400:
        _framed_once(x.received, b"hello")


@cases(6, "nothing-added")
def _(x: Exchange) -> None:
    """No User-Agent, Accept or Accept-Encoding is made up for a client that sent none."""
    x.send()
    made_up = {"user-agent", "accept", "accept-encoding", "content-type"}
    added = [name for name, _ in x.received.fields if name.lower() in made_up]
    assert not added, f"added: {', '.join(added)}"


@cases(6, "sent-as-they-are")
def _(x: Exchange) -> None:
    """The client's fields arrive with their values, bytes above 127 included."""
    sent = [("User-Agent", "ours"), ("Accept", "x/y"), ("Accept-Encoding", "br"), ("X-Raw", "\xff")]
    x.send(fields=[*sent, ("Cookie", "a=1; b=2")])
    for name, value in sent:
        assert x.received.value(name) == value, f"{name}: {x.received.value(name)!r}"
    assert x.received.value("Cookie") == "a=1; b=2"


@cases(9, "closed-while-idle")
def _(x: Exchange) -> None:
    """A connection that the backend closed while it was idle costs no request."""
    x.backend.answers = [cut(reply(b"one")), reply(b"two")]
    assert x.send().body == b"one"
    x.backend.wait_until_closed()
    answer = x.send("/second", method="POST", body=b"x")
    assert (answer.status, answer.body) == (200, b"two"), f"{answer.status} {answer.raised!r}"
    assert len(x.backend.requests) == 2


@cases(9, "post-sent-twice")
def _(x: Exchange) -> None:
    """A POST that the backend took before it closed the connection is not sent again."""
    x.backend.answers = [reply(b"one"), cut(b""), reply(b"again")]
    assert x.send().body == b"one"
    answer = x.send("/pay", method="POST", body=b"x")
    posts = [request for request in x.backend.requests if request.method == "POST"]
    assert len(posts) == 1, f"it was sent {len(posts)} times"
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(9, "get-tried-for-ever")
def _(x: Exchange) -> None:
    """A GET on a connection that dies is tried once more at the most."""
    x.backend.answers = [reply(b"one"), cut(b"")]
    assert x.send().body == b"one"
    assert x.send("/again").status >= 500
    assert len(x.backend.requests) <= 3, f"it was sent {len(x.backend.requests) - 1} times"


def _framed_once(request: Received, body: bytes) -> None:
    lengths, codings = request.values("Content-Length"), request.values("Transfer-Encoding")
    assert len(lengths) + len(codings) == 1, f"framed by {lengths} and {codings}"
    assert request.complete, f"of {body!r} came {request.body!r}"
    assert request.body == body, f"of {body!r} came {request.body!r}"


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a moment."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

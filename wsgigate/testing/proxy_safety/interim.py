"""Interim and impossible responses, and whose answer is whose: rule 3."""

from __future__ import annotations

import socket
import threading

from wsgigate.testing.backend import Received, cut, reply
from wsgigate.testing.proxy_safety.case import Case, Cases
from wsgigate.testing.proxy_safety.exchange import Exchange

__all__ = ["CASES"]

cases = Cases()
CASES: list[Case] = cases

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"


@cases(3, "early-hints")
def _(x: Exchange) -> None:
    """A 103 is not the final response."""
    x.backend.answers = [HINTS + reply(b"final")]
    answer = x.send()
    assert (answer.status, answer.body) == (200, b"final"), f"{answer.status} {answer.body!r}"


@cases(3, "answer-of-another")
def _(x: Exchange) -> None:
    """After a 103 the next user gets an answer of its own, not the one that came late."""
    late = threading.Event()

    def hinted(connection: socket.socket, _request: Received) -> None:
        connection.sendall(HINTS)
        late.wait(0.3)  # a proxy that took the 103 for the answer is done by now
        connection.sendall(reply(b"of the first"))

    x.backend.answers = [hinted, reply(b"of the second")]
    x.send("/first")
    late.set()
    body = x.send("/second").body
    assert body == b"of the second", f"the second user got {body!r}"


@cases(3, "several-interim")
def _(x: Exchange) -> None:
    """100, 102 and 103 come before one final response."""
    interim = b"".join(b"HTTP/1.1 %d Interim\r\n\r\n" % status for status in (100, 102, 103))
    x.backend.answers = [interim + reply(b"final", status="404 Not Found")]
    answer = x.send()
    assert (answer.status, answer.body) == (404, b"final"), f"{answer.status} {answer.body!r}"


@cases(3, "interim-only")
def _(x: Exchange) -> None:
    """A backend that closes after a 103 has not answered."""
    x.backend.answers = [cut(HINTS)]
    answer = x.send()
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(3, "unasked-upgrade")
def _(x: Exchange) -> None:
    """A 101 that nobody asked for reaches no client."""
    x.backend.answers = [cut(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nleft")]
    answer = x.send()
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(3, "impossible-status")
def _(x: Exchange) -> None:
    """A status below 200 or above 599 reaches no client."""
    for status in (b"099", b"999"):
        x.backend.answers = [cut(b"HTTP/1.1 %s X\r\nContent-Length: 0\r\n\r\n" % status)]
        answer = x.send()
        assert 500 <= answer.status <= 599, f"it was answered with {answer.status}"

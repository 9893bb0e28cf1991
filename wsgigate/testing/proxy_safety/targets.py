"""Request targets: what the host app matched is what the backend gets, or nothing is: rule 4."""

from __future__ import annotations

from wsgigate.testing.proxy_safety.case import Case, Cases
from wsgigate.testing.proxy_safety.exchange import Exchange

__all__ = ["CASES"]

cases = Cases()
CASES: list[Case] = cases


def _same_or_refused(x: Exchange, target: str, *also: str) -> None:
    """Send *target*; what arrives is that, upper-case hexadecimal digits allowed, or nothing."""
    before = len(x.backend.requests)
    answer = x.send(target)
    arrived = [request.target for request in x.backend.requests[before:]]
    if arrived:
        wanted = [text.lower() for text in (target, *also)]
        assert arrived[0].lower() in wanted, f"{target!r} arrived as {arrived[0]!r}"
    else:
        assert answer.status >= 400, f"{target!r} was answered with {answer.status}"


@cases(4, "dot-segments")
def _(x: Exchange) -> None:
    """A path with dot segments, plain or encoded, leads nowhere."""
    for target in ("/pub/../api", "/pub/%2e%2e/api", "/pub/.%2E/api", "/pub/..", "/./api"):
        x.refused(x.send(target))


@cases(4, "dot-segments-hidden")
def _(x: Exchange) -> None:
    """Nor does one whose dot segments show only to those who decode slashes or drop parameters."""
    for target in ("/pub/%2e%2e%2fapi", "/pub/..%2Fapi", "/pub/..;x/api"):
        x.refused(x.send(target))


@cases(4, "backslash")
def _(x: Exchange) -> None:
    """A backslash, which some backends take for a slash, arrives escaped at the most."""
    _same_or_refused(x, "/pub/%5c..%5capi")
    _same_or_refused(x, "/pub\\..\\api", "/pub%5c..%5capi")


@cases(4, "encoded-slash")
def _(x: Exchange) -> None:
    """An encoded slash does not become a slash."""
    _same_or_refused(x, "/pub/a%2Fb")


@cases(4, "encoded-delimiters")
def _(x: Exchange) -> None:
    """%3F, %23, %3B and %25 stay what they are: not the start of a query, nor decoded twice."""
    for target in ("/pub%3Fx=1", "/pub%23x", "/pub%3Bx", "/pub%252e%252e/api", "/pub%2541"):
        _same_or_refused(x, target)


@cases(4, "control-characters")
def _(x: Exchange) -> None:
    """Encoded control characters are not decoded into the request line."""
    for target in ("/pub%0d%0aX-Evil:%20y", "/pub%00.png"):
        _same_or_refused(x, target)
    for request in x.backend.requests:
        assert request.value("X-Evil") is None, "a field was injected"


@cases(4, "broken-escape")
def _(x: Exchange) -> None:
    """A broken escape is refused or passed on, not given a meaning."""
    for target in ("/pub%zz", "/pub%", "/pub%2"):
        _same_or_refused(x, target)


@cases(4, "two-slashes")
def _(x: Exchange) -> None:
    """A path that begins with two slashes is a path, not another host."""
    _same_or_refused(x, "//evil.test/x", "/evil.test/x")


@cases(4, "case-and-parameters")
def _(x: Exchange) -> None:
    """Case and ``;`` mean something to the backend."""
    answer = x.send("/Pub;a=1/B;c")
    assert answer.status == 200, f"it was answered with {answer.status}"
    assert x.received.target == "/Pub;a=1/B;c", f"it arrived as {x.received.target!r}"


@cases(4, "query-bytes")
def _(x: Exchange) -> None:
    """A query arrives byte for byte."""
    for target in ("/a?x=%zz&y=a+b&z=%3a", "/a?/../b", "/a?x?y", "/a?a|b"):
        before = len(x.backend.requests)
        x.send(target)
        arrived = [request.target for request in x.backend.requests[before:]]
        assert arrived == [target], f"{target!r} arrived as {arrived}"


@cases(4, "fragment")
def _(x: Exchange) -> None:
    """A fragment, which no client may send, goes no further."""
    answer = x.send("/pub#/../api", environ={"PATH_INFO": "/pub"})
    if x.backend.requests or answer.status < 400:
        assert x.received.target == "/pub", f"it arrived as {x.received.target!r}"


@cases(4, "other-path-than-matched")
def _(x: Exchange) -> None:
    """A raw target that is not the path the host app matched is refused, or not used."""
    answer = x.send("/admin", environ={"PATH_INFO": "/pub"})
    if x.backend.requests or answer.status < 400:
        assert x.received.target == "/pub", f"/pub was matched, {x.received.target!r} was sent"


@cases(4, "absolute-other-host")
def _(x: Exchange) -> None:
    """For a request in absolute form nobody is told that it was for another host, Host's."""
    answer = x.send("http://other.test/x")
    if x.backend.requests or answer.status < 400:
        assert b"gate.test" not in x.received.head, "the backend was told Host's"


@cases(4, "absolute-form")
def _(x: Exchange) -> None:
    """A request in absolute form arrives in origin form."""
    x.send("http://gate.test/a?b")
    assert x.received.target == "/a?b", f"it arrived as {x.received.target!r}"


@cases(4, "no-path")
def _(x: Exchange) -> None:
    """CONNECT and the asterisk name no path, and TRACE echoes credentials: none is passed on."""
    x.refused(x.send("db.test:443", method="CONNECT", environ={"PATH_INFO": "443"}))
    x.refused(x.send("/", method="TRACE"))
    x.refused(x.send("*", method="GET"))


@cases(4, "host-missing")
def _(x: Exchange) -> None:
    """An HTTP/1.1 request without Host is refused (RFC 9112 section 3.2)."""
    x.refused(x.send("/", environ={"HTTP_HOST": None}))


@cases(4, "host-malformed")
def _(x: Exchange) -> None:
    """A Host that is none is refused: somebody builds links and decisions of it."""
    for host in ("", "a@evil.test", "evil.test/x?", "a.test, b.test", "a b", "a.test:-1"):
        x.refused(x.send("/", environ={"HTTP_HOST": host}))

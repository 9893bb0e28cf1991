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

from wsgigate.http.wsgi import CLAIMS
from wsgigate.testing.backend import Received, cut, reply
from wsgigate.testing.proxy.case import Case, Cases, ProxyUnderTest

__all__ = ["CASES"]


cases = Cases()

CASES: list[Case] = cases


@cases(1, "cookies-of-others")
def _(x: ProxyUnderTest) -> None:
    """A cookie that the backend sets for one user is not sent with the next user's request."""
    x.backend.answers = [reply(b"", fields=[("Set-Cookie", "sid=alice; Path=/")]), reply(b"ok")]
    assert "sid=alice" in "".join(x.send().values("Set-Cookie")), "the cookie was lost"
    x.send()
    assert x.backend.requests[1].value("Cookie") is None, "the next user got it"


@cases(1, "redirect-followed")
def _(x: ProxyUnderTest) -> None:
    """A redirect is not followed, and reaches the client with its body."""
    moved = reply(b"moved", status="302 Found", fields=[("Location", f"{x.backend.url}/internal")])
    x.backend.answers = [moved, reply(b"secret")]
    answer = x.send("/a")
    assert (answer.status, answer.body) == (302, b"moved"), f"{answer.status} {answer.body!r}"
    assert x.received.target == "/a"


@cases(1, "malformed-location")
def _(x: ProxyUnderTest) -> None:
    """A redirect to a malformed URL is forwarded like any other."""
    x.backend.answers = [reply(b"x", status="302 Found", fields=[("Location", "http://[::1")])]
    answer = x.send()
    assert (answer.status, answer.body) == (302, b"x"), f"{answer.status} {answer.raised!r}"


@cases(1, "credentials-from-a-file")
def _(x: ProxyUnderTest) -> None:
    """The client's credentials are not replaced by those of a .netrc on the server."""
    with tempfile.NamedTemporaryFile("w", suffix=".netrc") as file:
        file.write("machine 127.0.0.1 login mallory password secret\n")
        file.flush()
        with _set("NETRC", file.name):
            x.send(fields=[("Authorization", "Bearer client")])
    assert x.received.value("Authorization") == "Bearer client"


@cases(1, "proxy-from-the-environment")
def _(x: ProxyUnderTest) -> None:
    """A request goes to the backend, whatever http_proxy is set to."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        closed.close()
        with _set("http_proxy", url), _set("no_proxy", ""):
            x.send("/a")
    assert x.received.target == "/a"


@cases(2, "framed-by-length")
def _(x: ProxyUnderTest) -> None:
    """A body of a known length goes out with that length and no other framing."""
    x.send("/", method="POST", body=b"hello")
    _framed_once(x.received, b"hello")


@cases(2, "framed-by-chunks")
def _(x: ProxyUnderTest) -> None:
    """A body in chunks goes out framed in one way, and whole."""
    x.send("/", method="POST", body=b"hello", chunked=True)
    _framed_once(x.received, b"hello")


@cases(2, "length-written-oddly")
def _(x: ProxyUnderTest) -> None:
    """A Content-Length of 003 is forwarded as 3, or rejected."""
    answer = x.send("/", method="POST", body=b"abc", environ={"CONTENT_LENGTH": "003"})
    if x.backend.requests or answer.status < 400:
        assert x.received.value("Content-Length") == "3", str(x.received.values("Content-Length"))


@cases(2, "body-without-length")
def _(x: ProxyUnderTest) -> None:
    """A POST without a body is forwarded with the framing of an empty body."""
    x.send("/", method="POST")
    framing = x.received.values("Content-Length"), x.received.values("Transfer-Encoding")
    assert framing in ((["0"], []), ([], ["chunked"])), str(framing)


@cases(2, "body-of-get")
def _(x: ProxyUnderTest) -> None:
    """The body of a GET goes along with its framing, or the request is refused."""
    answer = x.send("/", body=b"hello")
    if x.backend.requests or answer.status < 400:
        _framed_once(x.received, b"hello")


@cases(6, "nothing-added")
def _(x: ProxyUnderTest) -> None:
    """No User-Agent, Accept or Accept-Encoding is added for a client that sent none."""
    x.send()
    made_up = {"user-agent", "accept", "accept-encoding", "content-type"}
    added = [name for name, _ in x.received.fields if name.lower() in made_up]
    assert not added, f"added: {', '.join(added)}"


@cases(6, "sent-as-they-are")
def _(x: ProxyUnderTest) -> None:
    """The client's fields arrive with their values, bytes above 127 included."""
    sent = [("User-Agent", "ours"), ("Accept", "x/y"), ("Accept-Encoding", "br"), ("X-Raw", "\xff")]
    x.send(fields=[*sent, ("Cookie", "a=1; b=2")])
    for name, value in sent:
        assert x.received.value(name) == value, f"{name}: {x.received.value(name)!r}"
    assert x.received.value("Cookie") == "a=1; b=2"


@cases(9, "closed-while-idle")
def _(x: ProxyUnderTest) -> None:
    """A connection that the backend closed while it was idle costs no request."""
    x.backend.answers = [cut(reply(b"one")), reply(b"two")]
    assert x.send().body == b"one"
    x.backend.wait_until_closed()
    answer = x.send("/second", method="POST", body=b"x")
    assert (answer.status, answer.body) == (200, b"two"), f"{answer.status} {answer.raised!r}"
    assert len(x.backend.requests) == 2


@cases(9, "post-sent-twice")
def _(x: ProxyUnderTest) -> None:
    """A POST that the backend took before it closed the connection is not sent again."""
    x.backend.answers = [reply(b"one"), cut(b""), reply(b"again")]
    assert x.send().body == b"one"
    answer = x.send("/pay", method="POST", body=b"x")
    posts = [request for request in x.backend.requests if request.method == "POST"]
    assert len(posts) == 1, f"it was sent {len(posts)} times"
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(9, "get-tried-for-ever")
def _(x: ProxyUnderTest) -> None:
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


# Request targets: what the host app matched is what the backend gets, or nothing is: rule 4.


def _same_or_refused(x: ProxyUnderTest, target: str, *also: str) -> None:
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
def _(x: ProxyUnderTest) -> None:
    """A path with dot segments, plain or encoded, leads nowhere."""
    for target in ("/pub/../api", "/pub/%2e%2e/api", "/pub/.%2E/api", "/pub/..", "/./api"):
        x.refused(x.send(target))


@cases(4, "dot-segments-hidden")
def _(x: ProxyUnderTest) -> None:
    """Nor does one whose dot segments appear only after decoding slashes or dropping parameters."""
    for target in ("/pub/%2e%2e%2fapi", "/pub/..%2Fapi", "/pub/..;x/api"):
        x.refused(x.send(target))


@cases(4, "backslash")
def _(x: ProxyUnderTest) -> None:
    """A backslash, which some backends treat as a slash, arrives escaped or not at all."""
    _same_or_refused(x, "/pub/%5c..%5capi")
    _same_or_refused(x, "/pub\\..\\api", "/pub%5c..%5capi")


@cases(4, "encoded-slash")
def _(x: ProxyUnderTest) -> None:
    """An encoded slash does not become a slash."""
    _same_or_refused(x, "/pub/a%2Fb")


@cases(4, "encoded-delimiters")
def _(x: ProxyUnderTest) -> None:
    """%3F, %23, %3B and %25 stay what they are: not the start of a query, nor decoded twice."""
    for target in ("/pub%3Fx=1", "/pub%23x", "/pub%3Bx", "/pub%252e%252e/api", "/pub%2541"):
        _same_or_refused(x, target)


@cases(4, "control-characters")
def _(x: ProxyUnderTest) -> None:
    """Encoded control characters are not decoded into the request line."""
    for target in ("/pub%0d%0aX-Evil:%20y", "/pub%00.png"):
        _same_or_refused(x, target)
    for request in x.backend.requests:
        assert request.value("X-Evil") is None, "a field was injected"


@cases(4, "broken-escape")
def _(x: ProxyUnderTest) -> None:
    """A malformed escape is rejected or forwarded as it is, not interpreted."""
    for target in ("/pub%zz", "/pub%", "/pub%2"):
        _same_or_refused(x, target)


@cases(4, "two-slashes")
def _(x: ProxyUnderTest) -> None:
    """A path that begins with two slashes is a path, not another host."""
    _same_or_refused(x, "//evil.test/x", "/evil.test/x")


@cases(4, "case-and-parameters")
def _(x: ProxyUnderTest) -> None:
    """Upper case and ``;`` are preserved."""
    answer = x.send("/Pub;a=1/B;c")
    assert answer.status == 200, f"it was answered with {answer.status}"
    assert x.received.target == "/Pub;a=1/B;c", f"it arrived as {x.received.target!r}"


@cases(4, "query-bytes")
def _(x: ProxyUnderTest) -> None:
    """A query arrives byte for byte."""
    for target in ("/a?x=%zz&y=a+b&z=%3a", "/a?/../b", "/a?x?y", "/a?a|b"):
        before = len(x.backend.requests)
        x.send(target)
        arrived = [request.target for request in x.backend.requests[before:]]
        assert arrived == [target], f"{target!r} arrived as {arrived}"


@cases(4, "fragment")
def _(x: ProxyUnderTest) -> None:
    """A fragment, which no client may send, is not forwarded."""
    answer = x.send("/pub#/../api", environ={"PATH_INFO": "/pub"})
    if x.backend.requests or answer.status < 400:
        assert x.received.target == "/pub", f"it arrived as {x.received.target!r}"


@cases(4, "other-path-than-matched")
def _(x: ProxyUnderTest) -> None:
    """A raw target that is not the path the host app matched is refused, or not used."""
    answer = x.send("/admin", environ={"PATH_INFO": "/pub"})
    if x.backend.requests or answer.status < 400:
        assert x.received.target == "/pub", f"/pub was matched, {x.received.target!r} was sent"


@cases(4, "absolute-other-host")
def _(x: ProxyUnderTest) -> None:
    """A request in absolute form is not forwarded with the different host of its Host field."""
    answer = x.send("http://other.test/x")
    if x.backend.requests or answer.status < 400:
        assert b"gate.test" not in x.received.head, "the backend received the value of Host"


@cases(4, "absolute-form")
def _(x: ProxyUnderTest) -> None:
    """A request in absolute form arrives in origin form."""
    x.send("http://gate.test/a?b")
    assert x.received.target == "/a?b", f"it arrived as {x.received.target!r}"


@cases(4, "no-path")
def _(x: ProxyUnderTest) -> None:
    """CONNECT, the asterisk form and TRACE, which echoes credentials, are not forwarded."""
    x.refused(x.send("db.test:443", method="CONNECT", environ={"PATH_INFO": "443"}))
    x.refused(x.send("/", method="TRACE"))
    x.refused(x.send("*", method="GET"))


@cases(4, "host-missing")
def _(x: ProxyUnderTest) -> None:
    """An HTTP/1.1 request without Host is refused (RFC 9112 section 3.2)."""
    x.refused(x.send("/", environ={"HTTP_HOST": None}))


@cases(4, "host-malformed")
def _(x: ProxyUnderTest) -> None:
    """A malformed Host is rejected: apps build links and decisions from it."""
    for host in ("", "a@evil.test", "evil.test/x?", "a.test, b.test", "a b", "a.test:-1"):
        x.refused(x.send("/", environ={"HTTP_HOST": host}))


# Fields: what belongs to one connection only, and what only some may say: rules 7 and 8.

HOP_BY_HOP = [
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authorization", "Basic eA=="),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "X-Sum"),
    ("Upgrade", "h2c"),
]


@cases(7, "request-hop-by-hop")
def _(x: ProxyUnderTest) -> None:
    """Hop-by-hop fields of the client do not reach the backend, nor fail the request."""
    x.send(fields=[*HOP_BY_HOP, ("Connection", "Upgrade, TE"), ("HTTP2-Settings", "AAMA")])
    hop = {name.lower() for name, _ in HOP_BY_HOP} | {"http2-settings"}
    left = [name for name, _ in x.received.fields if name.lower() in hop]
    assert not left, f"passed on: {', '.join(left)}"
    assert "upgrade" not in (x.received.value("Connection") or "").lower()


@cases(7, "request-connection-names")
def _(x: ProxyUnderTest) -> None:
    """A field that the client's Connection names is not forwarded, whatever its case."""
    x.send(fields=[("Connection", "close, x-SECRET"), ("X-Secret", "1"), ("X-Other", "2")])
    assert x.received.value("X-Secret") is None, "it was passed on"
    assert x.received.value("X-Other") == "2", "another one was lost"


@cases(7, "connection-strips-gateways-own")
def _(x: ProxyUnderTest) -> None:
    """A client cannot remove a field that the proxy adds by naming it in Connection."""
    x.send("/plain")
    names = [name for name, _ in x.received.fields if name.lower() != "connection"]
    x.send("/named", fields=[("Connection", ", ".join(names).lower())])
    assert len(x.backend.requests) == 2, "the request was lost"
    left = {name.lower() for name, _ in x.backend.requests[1].fields}
    lost = [name for name in names if name.lower() not in left]
    assert not lost, f"taken away: {', '.join(lost)}"


@cases(7, "connection-strips-identity")
def _(x: ProxyUnderTest) -> None:
    """Nor can it remove the fields of verified claims in that way, whatever the spelling."""
    x.proxy(identity={"X-User-Id": "sub"})
    x.send(
        fields=[("Connection", "x-user-id, X_User_Id, X-User-Id")], environ={CLAIMS: {"sub": "7"}}
    )
    assert x.received.value("X-User-Id") == "7", "it was taken away"


@cases(7, "expect")
def _(x: ProxyUnderTest) -> None:
    """Expect is not forwarded: the server has handled it."""
    x.send("/", method="POST", body=b"x", fields=[("Expect", "100-continue")])
    assert x.received.value("Expect") is None, "it was passed on"


@cases(7, "response-hop-by-hop")
def _(x: ProxyUnderTest) -> None:
    """Hop-by-hop fields of the backend do not reach the client."""
    hop = [*HOP_BY_HOP, ("Proxy-Authenticate", "Basic"), ("Connection", "keep-alive")]
    x.backend.answers = [reply(b"ok", fields=hop)]
    answer = x.send()
    names = {name.lower() for name, _ in hop} - {"te", "proxy-authorization"}
    left = [name for name, _ in answer.headers if name.lower() in names]
    assert not left, f"passed on: {', '.join(left)}"


@cases(7, "response-connection-names")
def _(x: ProxyUnderTest) -> None:
    """Nor does a field that the backend's Connection names."""
    x.backend.answers = [reply(b"ok", fields=[("Connection", "x-secret"), ("X-Secret", "1")])]
    assert x.send().values("X-Secret") == [], "it was passed on"


@cases(7, "response-chunked")
def _(x: ProxyUnderTest) -> None:
    """The backend's Transfer-Encoding is removed, and the body stays."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    x.backend.answers = [head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Trailer: evil\r\n\r\n"]
    answer = x.send()
    assert answer.body == b"abcde", f"the body became {answer.body!r}"
    assert answer.values("Transfer-Encoding") == [], "Transfer-Encoding was passed on"
    assert answer.values("X-Trailer") == [], "a trailer became a field"


FORGED = [
    ("Forwarded", "for=6.6.6.6"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Host", "6.6.6.6"),
    ("X-Forwarded-Prefix", "/6.6.6.6"),
    ("X-Forwarded-User", "6.6.6.6"),
    ("X-Real-IP", "6.6.6.6"),
    ("True-Client-IP", "6.6.6.6"),
    ("X-Original-URL", "/6.6.6.6"),
    ("X-Rewrite-URL", "/6.6.6.6"),
]


@cases(8, "forwarded-fields-forged")
def _(x: ProxyUnderTest) -> None:
    """Forwarding fields of a client are not trusted: addresses, hosts, paths."""
    x.send(fields=FORGED)
    forged = [name for name, value in x.received.fields if "6.6.6.6" in value]
    assert not forged, f"passed on: {', '.join(forged)}"


@cases(8, "method-override")
def _(x: ProxyUnderTest) -> None:
    """Nor another method than the one that was matched."""
    x.send(fields=[("X-HTTP-Method-Override", "DELETE"), ("X-Method-Override", "DELETE")])
    assert b"DELETE" not in x.received.head, "it was passed on"


@cases(8, "forwarded-for-told")
def _(x: ProxyUnderTest) -> None:
    """The backend gets the client's address and host."""
    x.send()
    assert x.received.value("X-Forwarded-For") == "192.0.2.7", "the address was not forwarded"
    assert x.received.value("X-Forwarded-Host") == "gate.test", "the host was not forwarded"
    assert x.received.value("X-Forwarded-Proto") == "http", "the scheme was not forwarded"


@cases(8, "httpoxy")
def _(x: ProxyUnderTest) -> None:
    """A Proxy field, which becomes HTTP_PROXY in a CGI program, is dropped."""
    x.send(fields=[("Proxy", "http://evil.test")])
    assert x.received.value("Proxy") is None, "it was passed on"


@cases(8, "identity-forged")
def _(x: ProxyUnderTest) -> None:
    """Identity fields come from verified claims only: those of a client are dropped."""
    x.proxy(identity={"X-User-Id": "sub", "X-Plan": "plan"})
    x.send("/", fields=[("X-User-Id", "admin"), ("X-Plan", "gold")])
    x.send("/", fields=[("x_user_id", "admin"), ("X-Plan", "gold")], environ={CLAIMS: {"sub": "7"}})
    values = [request.values("X-User-Id") for request in x.backend.requests]
    assert values == [[], ["7"]], f"the backend received {values}"
    assert all(b"gold" not in request.head for request in x.backend.requests), "a claim was forged"


@cases(8, "identity-injected")
def _(x: ProxyUnderTest) -> None:
    """A claim with a line break does not become a separate field."""
    x.proxy(identity={"X-User-Id": "sub"})
    answer = x.send("/", environ={CLAIMS: {"sub": "7\r\nX-Evil: 1"}})
    assert all(request.value("X-Evil") is None for request in x.backend.requests), "it did"
    assert answer.status >= 400, f"it was answered with {answer.status}"


@cases(8, "rewritten-path")
def _(x: ProxyUnderTest) -> None:
    """A path is checked again after its prefix was removed, which is by whole segments."""
    x.proxy(strip_prefix="/api")
    for target in ("/api../secret", "/api/..;/secret", "/api%2f..%2fsecret", "/apisecret"):
        before = len(x.backend.requests)
        answer = x.send(target)
        arrived = [request.target for request in x.backend.requests[before:]]
        assert arrived in ([], [target]), f"{target!r} arrived as {arrived[0]!r}"
        assert arrived or 400 <= answer.status < 500, f"{target!r}: {answer.status}"


@cases(8, "rewritten-to-another-host")
def _(x: ProxyUnderTest) -> None:
    """The rest of a path without its prefix is a path, not another host."""
    x.proxy(strip_prefix="/api")
    answer = x.send("/api//evil.test/x")
    arrived = [request.target for request in x.backend.requests]
    if answer.status < 400 or arrived:
        assert arrived in (["/evil.test/x"], ["//evil.test/x"]), f"it arrived as {arrived}"


@cases(8, "control-in-field")
def _(x: ProxyUnderTest) -> None:
    """A line break that a lax server let into a field's value injects nothing."""
    answer = x.send("/", environ={"HTTP_X_LAX": "a\r\nX-Evil: 1"})
    assert all(request.value("X-Evil") is None for request in x.backend.requests), "it did"
    assert answer.status >= 400, f"it was answered with {answer.status}"

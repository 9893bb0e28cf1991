"""Fields: what belongs to one connection only, and what only some may say: rules 7 and 8."""

from __future__ import annotations

from wsgigate.testing.backend import reply
from wsgigate.testing.proxy_safety.case import Case, Cases
from wsgigate.testing.proxy_safety.exchange import Exchange
from wsgigate.wsgi import CLAIMS

__all__ = ["CASES"]

cases = Cases()
CASES: list[Case] = cases

HOP_BY_HOP = [
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authorization", "Basic eA=="),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "X-Sum"),
    ("Upgrade", "h2c"),
]


@cases(7, "request-hop-by-hop")
def _(x: Exchange) -> None:
    """What speaks of the client's connection does not reach the backend, nor fails the request."""
    x.send(fields=[*HOP_BY_HOP, ("Connection", "Upgrade, TE"), ("HTTP2-Settings", "AAMA")])
    hop = {name.lower() for name, _ in HOP_BY_HOP} | {"http2-settings"}
    left = [name for name, _ in x.received.fields if name.lower() in hop]
    assert not left, f"passed on: {', '.join(left)}"
    assert "upgrade" not in (x.received.value("Connection") or "").lower()


@cases(7, "request-connection-names")
def _(x: Exchange) -> None:
    """A field that the client's Connection names goes no further, whatever its case."""
    x.send(fields=[("Connection", "close, x-SECRET"), ("X-Secret", "1"), ("X-Other", "2")])
    assert x.received.value("X-Secret") is None, "it was passed on"
    assert x.received.value("X-Other") == "2", "another one was lost"


@cases(7, "connection-strips-gateways-own")
def _(x: Exchange) -> None:
    """A client can not have what the proxy itself adds taken away by naming it in Connection."""
    x.send("/plain")
    names = [name for name, _ in x.received.fields if name.lower() != "connection"]
    x.send("/named", fields=[("Connection", ", ".join(names).lower())])
    assert len(x.backend.requests) == 2, "the request was lost"
    left = {name.lower() for name, _ in x.backend.requests[1].fields}
    lost = [name for name in names if name.lower() not in left]
    assert not lost, f"taken away: {', '.join(lost)}"


@cases(7, "connection-strips-identity")
def _(x: Exchange) -> None:
    """Nor can it have what verified claims say of it taken away, whatever the spelling."""
    x.proxy(identity={"X-User-Id": "sub"})
    x.send(
        fields=[("Connection", "x-user-id, X_User_Id, X-User-Id")], environ={CLAIMS: {"sub": "7"}}
    )
    assert x.received.value("X-User-Id") == "7", "it was taken away"


@cases(7, "expect")
def _(x: Exchange) -> None:
    """Expect is the server's, which has answered it by now."""
    x.send("/", method="POST", body=b"x", fields=[("Expect", "100-continue")])
    assert x.received.value("Expect") is None, "it was passed on"


@cases(7, "response-hop-by-hop")
def _(x: Exchange) -> None:
    """What speaks of the backend's connection does not reach the client."""
    hop = [*HOP_BY_HOP, ("Proxy-Authenticate", "Basic"), ("Connection", "keep-alive")]
    x.backend.answers = [reply(b"ok", fields=hop)]
    answer = x.send()
    names = {name.lower() for name, _ in hop} - {"te", "proxy-authorization"}
    left = [name for name, _ in answer.headers if name.lower() in names]
    assert not left, f"passed on: {', '.join(left)}"


@cases(7, "response-connection-names")
def _(x: Exchange) -> None:
    """Nor does a field that the backend's Connection names."""
    x.backend.answers = [reply(b"ok", fields=[("Connection", "x-secret"), ("X-Secret", "1")])]
    assert x.send().values("X-Secret") == [], "it was passed on"


@cases(7, "response-chunked")
def _(x: Exchange) -> None:
    """The backend's chunks are not the client's: the field goes, the body stays."""
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
def _(x: Exchange) -> None:
    """What only a trusted proxy may say is not taken from a client: addresses, hosts, paths."""
    x.send(fields=FORGED)
    forged = [name for name, value in x.received.fields if "6.6.6.6" in value]
    assert not forged, f"passed on: {', '.join(forged)}"


@cases(8, "method-override")
def _(x: Exchange) -> None:
    """Nor another method than the one that was matched."""
    x.send(fields=[("X-HTTP-Method-Override", "DELETE"), ("X-Method-Override", "DELETE")])
    assert b"DELETE" not in x.received.head, "it was passed on"


@cases(8, "forwarded-for-told")
def _(x: Exchange) -> None:
    """The backend is told the client's address and host."""
    x.send()
    assert x.received.value("X-Forwarded-For") == "192.0.2.7", "the address was not told"
    assert x.received.value("X-Forwarded-Host") == "gate.test", "the host was not told"
    assert x.received.value("X-Forwarded-Proto") == "http", "the scheme was not told"


@cases(8, "httpoxy")
def _(x: Exchange) -> None:
    """A Proxy field, which becomes HTTP_PROXY in a CGI program, is dropped."""
    x.send(fields=[("Proxy", "http://evil.test")])
    assert x.received.value("Proxy") is None, "it was passed on"


@cases(8, "identity-forged")
def _(x: Exchange) -> None:
    """Who the caller is, verified claims alone say: a client's own word is dropped."""
    x.proxy(identity={"X-User-Id": "sub", "X-Plan": "plan"})
    x.send("/", fields=[("X-User-Id", "admin"), ("X-Plan", "gold")])
    x.send("/", fields=[("x_user_id", "admin"), ("X-Plan", "gold")], environ={CLAIMS: {"sub": "7"}})
    told = [request.values("X-User-Id") for request in x.backend.requests]
    assert told == [[], ["7"]], f"the backend was told {told}"
    assert all(b"gold" not in request.head for request in x.backend.requests), "a claim was forged"


@cases(8, "identity-injected")
def _(x: Exchange) -> None:
    """A claim with a line break in it does not become a field of its own."""
    x.proxy(identity={"X-User-Id": "sub"})
    answer = x.send("/", environ={CLAIMS: {"sub": "7\r\nX-Evil: 1"}})
    assert all(request.value("X-Evil") is None for request in x.backend.requests), "it did"
    assert answer.status >= 400, f"it was answered with {answer.status}"


@cases(8, "rewritten-path")
def _(x: Exchange) -> None:
    """A path is looked at again after its prefix was stripped, which is by whole segments."""
    x.proxy(strip_prefix="/api")
    for target in ("/api../secret", "/api/..;/secret", "/api%2f..%2fsecret", "/apisecret"):
        before = len(x.backend.requests)
        answer = x.send(target)
        arrived = [request.target for request in x.backend.requests[before:]]
        assert arrived in ([], [target]), f"{target!r} arrived as {arrived[0]!r}"
        assert arrived or 400 <= answer.status < 500, f"{target!r}: {answer.status}"


@cases(8, "rewritten-to-another-host")
def _(x: Exchange) -> None:
    """What is left after stripping is a path, not another host."""
    x.proxy(strip_prefix="/api")
    answer = x.send("/api//evil.test/x")
    arrived = [request.target for request in x.backend.requests]
    if answer.status < 400 or arrived:
        assert arrived in (["/evil.test/x"], ["//evil.test/x"]), f"it arrived as {arrived}"


@cases(8, "control-in-field")
def _(x: Exchange) -> None:
    """A line break that a lax server let into a field's value injects nothing."""
    answer = x.send("/", environ={"HTTP_X_LAX": "a\r\nX-Evil: 1"})
    assert all(request.value("X-Evil") is None for request in x.backend.requests), "it did"
    assert answer.status >= 400, f"it was answered with {answer.status}"

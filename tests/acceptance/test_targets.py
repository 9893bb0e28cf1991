"""Request targets under every server: what the rules saw is what the backend gets.

What a server hides from the app is told here too: ``HIDDEN`` is the whole difference.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wsgigate.testing.backend import Backend, Received

SOURCE = """
from wsgigate import Dispatcher, Forwarder, Instance, Pool, Route
from wsgigate.http.problem import Problem
from wsgigate.http.target import kept_target_of
from wsgigate.http.wsgi import CLAIMS

pool = Pool("svc", [Instance("{url}")])
identity = {{"X-User-Id": "sub"}}

def told(app, claims=None):
    def telling(environ, start_response):
        environ["HTTP_X_MATCHED"] = kept_target_of(environ).text
        if claims:
            environ[CLAIMS] = claims
        return app(environ, start_response)
    return telling

forwarder = told(Forwarder(pool, identity=identity))
routes = [
    Route("/pub", forwarder),
    Route("/keep", forwarder, encoded_slash="keep"),
    Route(
        "/s3", forwarder, double_slash="keep", encoded_backslash="keep", dot_segments="keep"
    ),
    Route("/s3/private", Problem(401)),
    Route("/me", told(Forwarder(pool, identity=identity), {{"sub": "7"}})),
    Route("/strip", told(Forwarder(pool, strip_prefix="/strip"))),
    Route("/api", Problem(401)),
]
app = Dispatcher(routes, identity_fields=["X-User-Id"], list_routes=False)
"""

SERVERS: dict[str, tuple[str, ...]] = {
    "gunicorn": ("-m", "gunicorn", "served:app", "-b", "127.0.0.1:{port}", "--threads", "4"),
    "granian": (
        *("-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", "{port}"),
        "served:app",
    ),
    "waitress": ("-m", "waitress", "--listen=127.0.0.1:{port}", "served:app"),
    "werkzeug": (
        "-c",
        "from werkzeug.serving import run_simple; from served import app; "
        "run_simple('127.0.0.1', {port}, app, threaded=True)",
    ),
    "cheroot": (
        "-c",
        "from cheroot.wsgi import Server; from served import app; "
        "Server(('127.0.0.1', {port}), app).start()",
    ),
    "wsgiref": (
        "-c",
        "from wsgiref.simple_server import make_server; from served import app; "
        "make_server('127.0.0.1', {port}, app).serve_forever()",
    ),
}

REFUSED = None

TARGETS: dict[str, str | None] = {
    # what is sent: what arrives
    "/pub": "/pub",
    "/pub/": "/pub/",
    "/pub/%75sers": "/pub/users",
    "/%70ub/x": "/pub/x",
    "/pub//x": "/pub/x",
    "//pub/x": "/pub/x",
    "/pub/%c3%a9": "/pub/%C3%A9",
    "/pub/%ff": "/pub/%FF",
    "/pub/%2575": "/pub/%2575",
    "/pub/%252e%252e/api": "/pub/%252e%252e/api",
    "/pub/%3fx%23y": "/pub/%3Fx%23y",
    "/pub/;x=1": "/pub/;x=1",
    "/pub/%3bx": "/pub/%3Bx",
    "/pub/%20": "/pub/%20",
    "/pub/a|b": "/pub/a%7Cb",
    "/pub/!$&'()*+,:=@~": "/pub/!$&'()*+,:=@~",
    "/pub/%21": "/pub/%21",
    "/pub?x=%zz&y=a+b&z=%3a": "/pub?x=%zz&y=a+b&z=%3a",
    "/pub?": "/pub?",
    "/pub?a?b/../c": "/pub?a?b/../c",
    "/keep/a%2fb": "/keep/a%2Fb",
    "/strip//evil.test/x": "/evil.test/x",
    "http://a.test/pub?x": "/pub?x",
    "/pub/" + "x" * 4000: "/pub/" + "x" * 4000,
    "/s3/a//b": "/s3/a//b",
    "/s3//x": "/s3//x",
    "/s3/https://x.test/y?z=//": "/s3/https://x.test/y?z=//",
    "/s3/a%5cb": "/s3/a%5Cb",
    "/s3/a/../b": "/s3/a/../b",
    "/s3/a/%2e/b": "/s3/a/./b",
    "/s3//private": REFUSED,
    "/s3/a/../private": REFUSED,
    "/s3/a%5c..%5cprivate": REFUSED,
    "/s3/..": REFUSED,
    "/s3/%2e%2e/pub": REFUSED,
    "/s3//../pub": REFUSED,
    "/pub/../api": REFUSED,
    "/pub/%2e%2e/api": REFUSED,
    "/pub/.%2E/api": REFUSED,
    "/pub/..": REFUSED,
    "/pub/./x": REFUSED,
    "/pub/..;/api": REFUSED,
    "/pub/..%2fapi": REFUSED,
    "/pub%2f..%2fapi": REFUSED,
    "/pub/%2e%2e%2fapi": REFUSED,
    "/pub/a%2fb": REFUSED,
    "/pub\\..\\api": REFUSED,
    "/pub/%5c..%5capi": REFUSED,
    "/pub/%00": REFUSED,
    "/pub/%0d%0aX:%20y": REFUSED,
    "/pub/%7f": REFUSED,
    "/pub/%zz": REFUSED,
    "/pub/%": REFUSED,
    "/pub#/../api": REFUSED,
    "/pub/\xe9": REFUSED,
    "/api": REFUSED,
    "/%61pi/x": REFUSED,
    "//api/x": REFUSED,
    "/api%2fx": REFUSED,
    "http://b.test/pub": REFUSED,
    "file:///pub": REFUSED,
    "http://u@a.test/pub": REFUSED,
    "*": REFUSED,
    "pub": REFUSED,
    "/pub/" + "x" * 9000: REFUSED,
}

DECODED = {
    # Decoded by the server, so that these escapes can not be told from what they stand for.
    "/pub/%3bx": "/pub/;x",
    "/pub/%21": "/pub/!",
    "/pub?": "/pub",
    "/keep/a%2fb": "/keep/a/b",
    "/pub/a%2fb": "/pub/a/b",
    "/pub/%zz": "/pub/%25zz",
    "/pub/%": "/pub/%25",
}

HIDDEN: dict[str, dict[str, str | None]] = {
    "gunicorn": {},
    "granian": {
        **DECODED,
        "/pub#/../api": "/pub",
        # The authority of an absolute target is dropped: Host alone counts.
        "http://b.test/pub": "/pub",
        "http://u@a.test/pub": "/pub",
    },
    "waitress": {},
    "werkzeug": {
        # It makes UTF-8 of the path, which bytes that are none do not survive.
        "/pub/%ff": "/pub/%EF%BF%BD",
        "/pub/\xe9": "/pub/%C3%A9",
        "http://b.test/pub": "/pub",  # whose authority becomes the Host, as RFC 9112 has it
    },
    "cheroot": {
        # Its PATH_INFO is neither the raw path nor the decoded one.
        "//pub/x": REFUSED,
        "http://a.test/pub?x": REFUSED,
    },
    "wsgiref": {**DECODED, "http://a.test/pub?x": REFUSED, "/pub/\xe9": "/pub/%E9"},
}
"""What arrives where a server does not hand on the raw target, or refuses by itself."""


@pytest.fixture(scope="module")
def behind() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture(scope="module", params=SERVERS)
def server(request: Any, run_for_all: Callable[..., Any], behind: Backend) -> Any:
    served = run_for_all(SOURCE.format(url=behind.url), *SERVERS[request.param])
    served.name = request.param
    return served


def ask(server: Any, behind: Backend, data: bytes) -> tuple[int, list[Received]]:
    """Send *data*; return the status and what reached the backend of it."""
    before = len(behind.requests)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(data)
        answer = b""
        while b"\r\n" not in answer and (block := sock.recv(65536)):
            answer += block
    assert answer[:5] == b"HTTP/" or answer == b"", answer
    return int(answer[9:12] or 0), behind.requests[before:]


def get(target: str, *fields: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: a.test", "Connection: close", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


def test_what_the_rules_saw_is_what_arrives(server: Any, behind: Backend) -> None:
    found: dict[str, str | None] = {}
    for target in TARGETS:
        status, arrived = ask(server, behind, get(target))
        if arrived:
            [request] = arrived
            saw = request.value("X-Matched") or ""
            assert request.target == saw.removeprefix("/strip"), target
            found[target] = request.target
        else:
            assert status >= 400 or status == 0, target
            found[target] = REFUSED
    # A server that hides less than it did is no fault of the gateway.
    hidden = HIDDEN[server.name]
    other = {key: found[key] for key in found if found[key] not in (TARGETS[key], hidden.get(key))}
    assert other == {}, "\n".join(f"{key[:30]!r}: {value!r}," for key, value in other.items())


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "TRACK"])
def test_some_methods_lead_nowhere(method: str, server: Any, behind: Backend) -> None:
    for target in ("/pub", "a.test:443", "http://a.test/pub"):
        status, arrived = ask(server, behind, get(target).replace(b"GET", method.encode(), 1))
        assert arrived == [], target
        assert status >= 400 or status == 0, target


FORGED = ["X-User-Id", "X_User_Id", "x_user_id", "X-User_Id", "X_USER-ID"]


@pytest.mark.parametrize("path", ["/pub", "/me"])
def test_no_spelling_of_an_identity_field_reaches_the_backend(
    path: str, server: Any, behind: Backend
) -> None:
    """D03: granian, cheroot and wsgiref take an underscore for a hyphen."""
    for names in [[name] for name in FORGED] + [FORGED, FORGED[::-1]]:
        status, arrived = ask(server, behind, get(path, *(f"{name}: evil" for name in names)))
        assert status in (200, 400), names
        for request in arrived:
            assert b"evil" not in request.head, names
            told = [value for name, value in request.fields if name.lower().endswith("user-id")]
            assert told == (["7"] if path == "/me" else []), names

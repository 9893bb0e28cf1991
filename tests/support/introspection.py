"""An authorization server that is asked about tokens, and the middleware that asks it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from werkzeug.test import Client, TestResponse

from tests.support.tokens import NOW
from wsgigate import IntrospectionAuthenticator
from wsgigate.http.wsgi import REASON
from wsgigate.testing import Backend, FakeClock, reply
from wsgigate.testing.backend import Received

__all__ = ["ACTIVE", "Gate", "Server", "answer", "gate"]

ACTIVE = {"active": True, "sub": "ann", "scope": "read write", "client_id": "shop"}


def answer(document: Any, *, kind: str = "application/json", status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return reply(body, status=status, fields=[("Content-Type", kind)])


class Server(Backend):
    """An authorization server, whose answers depend on the token.

    :ivar tokens: The answers by token; one that is missing is not active.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(self._answer, **options)
        self.tokens: dict[str, Any] = {}

    def _answer(self, connection: socket.socket, request: Received) -> None:
        [token] = parse_qs(request.body.decode())["token"]
        found = self.tokens.get(token, {"active": False})
        connection.sendall(found if isinstance(found, bytes) else answer(found))

    @property
    def asked(self) -> list[str]:
        return [parse_qs(each.body.decode())["token"][0] for each in list(self.requests)]


class Gate:
    """The middleware around an app that notes what reaches it, with clocks that a test sets."""

    def __init__(self, url: str, **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.clock, self.timer = FakeClock(NOW), FakeClock()
        options = {"client_id": "gate", "client_secret": "s3cret", **options}
        self.app = IntrospectionAuthenticator(
            self.inner, url, clock=self.clock, timer=self.timer, **options
        )

    def inner(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.seen.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    def ask(self, token: str | None = "good", **environ: Any) -> TestResponse:
        if token is not None:
            environ.setdefault("HTTP_AUTHORIZATION", f"Bearer {token}")
        self.environ: dict[str, Any] = {}
        return Client(self._kept).get("/", environ_overrides=environ)

    def _kept(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.environ = environ
        return self.app(environ, start_response)

    @property
    def reason(self) -> str:
        return str(self.environ.get(REASON))

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.timer.advance(seconds)


@contextmanager
def gate(**options: Any) -> Iterator[tuple[Gate, Server]]:
    tokens = options.pop("tokens", {"good": ACTIVE})
    with Server() as server:
        server.tokens = tokens
        made = Gate(f"{server.url}/oauth2/introspect", **options)
        yield made, server
        made.app.close()

"""A service that decides about requests, on a real socket, and a gate that asks it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from werkzeug.test import Client, TestResponse

from wsgigate import ForwardAuth
from wsgigate.http.wsgi import REASON
from wsgigate.testing import Backend, FakeClock, reply

__all__ = ["AuthGate", "allow", "deny", "gate"]


def allow(*fields: tuple[str, str], status: str = "200 OK") -> bytes:
    return reply(b"", status=status, fields=fields)


def deny(status: str = "401 Unauthorized", *fields: tuple[str, str], body: bytes = b"no") -> bytes:
    return reply(body, status=status, fields=fields)


class AuthGate:
    """The middleware around an app that notes what reaches it."""

    def __init__(self, address: str, **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.timer = FakeClock()
        self.app_fields: Sequence[tuple[str, str]] = [("Content-Type", "text/plain")]
        self.app = ForwardAuth(self._app, address, timer=self.timer, **options)
        self.environ: dict[str, Any] = {}

    def _app(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.seen.append(environ.copy())
        self.bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", list(self.app_fields))
        return [b"hello"]

    def ask(self, path: str = "/", **options: Any) -> TestResponse:
        environ = options.pop("environ", {})
        return Client(self._kept, use_cookies=False).open(
            path, environ_overrides=environ, **options
        )

    def _kept(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.environ = environ
        return self.app(environ, start_response)

    @property
    def reason(self) -> str:
        return str(self.environ.get(REASON))


@contextmanager
def gate(*answers: Any, **options: Any) -> Iterator[tuple[AuthGate, Backend]]:
    with Backend(*(answers or (allow(),))) as service:
        made = AuthGate(f"{service.url}/verify?tenant=7", **options)
        yield made, service
        made.app.close()

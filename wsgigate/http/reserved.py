"""Paths that are answered before the stack of middlewares: metrics and probes.

A probe that a limiter rejects takes a healthy gateway out of rotation, and a scrape that is counted
as a request changes what it reads. So these requests pass no middleware: they are not limited,
logged, authenticated by the stack or counted as traffic. The app at a path decides alone who may
read it.

A gateway can have a second listener that serves such paths only, on an address that clients cannot
reach. The server identifies it: the ``Host`` of a request is whatever its client sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, answer_with
from wsgigate.http.wsgi import LISTENER

__all__ = ["CLIENT_LISTENER", "OWN_LISTENER", "ReservedPaths", "is_listener"]

OWN_LISTENER, CLIENT_LISTENER = "metrics", "clients"
"""The values of ``environ["wsgigate.listener"]``."""

_UNKNOWN = answer_with(Problem(404))


class ReservedPaths:
    """Answer exact paths before *app*.

    :param app: The app for all other paths.
    :param paths: The apps by ``PATH_INFO``, such as ``/_gateway/livez``.
    :param listener_paths: The apps of the listener of its own, such as ``/livez``; other paths are
        404 there, and *app* is never called.
    :param bind: The address of that listener, for gunicorn's workers that do not set
        ``environ["wsgigate.listener"]``.
    """

    def __init__(
        self,
        app: WSGIApplication,
        paths: Mapping[str, WSGIApplication],
        *,
        listener_paths: Mapping[str, WSGIApplication] = MappingProxyType({}),
        bind: str | None = None,
    ) -> None:
        self.app = app
        self._bind = bind
        self._app_of = dict(paths).get
        self._app_of_listener = dict(listener_paths).get

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if self._bind is not None and self._is_own(environ):
            answer = self._app_of_listener(path, _UNKNOWN)
        else:
            answer = self._app_of(path, self.app)
        return answer(environ, start_response)

    def _is_own(self, environ: WSGIEnvironment) -> bool:
        listener = environ.get(LISTENER)
        if listener is not None:
            return bool(listener == OWN_LISTENER)
        client = environ.get("gunicorn.socket")
        try:
            return client is not None and is_listener(self._bind, client.getsockname())
        except OSError:  # the client has left
            return False


def is_listener(bind: str | None, name: object) -> bool:
    """Return whether a socket with the name *name* belongs to the listener at *bind*.

    Ports are compared, not hosts: a listener at ``0.0.0.0`` has connections at any address.

    :param bind: ``HOST:PORT`` or ``unix:PATH``; ``None`` for no listener.
    :param name: As ``getsockname`` returns it.
    """
    if bind is None:
        return False
    if bind.startswith("unix:"):
        return name == bind.removeprefix("unix:")
    return isinstance(name, tuple) and str(name[1]) == bind.rpartition(":")[2]

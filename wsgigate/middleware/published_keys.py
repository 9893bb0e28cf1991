"""The keys of the gateway, with which services verify its tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.rules.arguments import Pattern, checked

__all__ = ["PublishedKeys"]


@checked
class PublishedKeys:
    """Serve a JWK set (RFC 7517). Put it outside of the middleware that authenticates.

    :param app: The WSGI application for all other requests.
    :param jwks: Returns the set, such as ``jwks`` of ``InternalTokens``.
    :param path: Where the set is served.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    """

    PATH = "/.well-known/jwks.json"

    def __init__(
        self,
        app: WSGIApplication,
        *,
        jwks: Callable[[], Mapping[str, object]],
        path: Annotated[str, Pattern("/[!-~]+", 'a path such as "/keys"')] = PATH,
        refuse: Refuse = answer_with,
    ) -> None:
        if not path.startswith("/"):
            raise ValueError(f'path: expected a path such as "/keys", not {path!r}')
        self.app = app
        self._jwks = jwks
        self._path = path
        allowed = (("Allow", "GET, HEAD"),)
        self._no_method = refuse(Problem(405, "Method not allowed.", headers=allowed))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != self._path:
            return self.app(environ, start_response)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._no_method(environ, start_response)
        body = json.dumps(self._jwks()).encode("ascii")
        fields = [
            ("Content-Type", "application/jwk-set+json"),
            ("Cache-Control", "public, max-age=300"),
            ("Content-Length", str(len(body))),
        ]
        start_response("200 OK", fields)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

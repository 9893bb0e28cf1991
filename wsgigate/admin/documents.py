"""WSGI apps that answer with a JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.wsgi import REASON

__all__ = ["json_app"]


def json_app(
    make: Callable[[WSGIEnvironment], object], *, refuse: Refuse = answer_with
) -> WSGIApplication:
    """Return the app that answers with what *make* returns: a document, or a :class:`Problem`.

    The document is always JSON and says that it is nothing else, so that no browser takes a name in
    it for a page. It is never kept: it tells of this moment.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        document = make(environ)
        if isinstance(document, Problem):
            environ.setdefault(REASON, document.detail)
            return refuse(document)(environ, start_response)
        body = json.dumps(document).encode("ascii")
        start_response(
            "200 OK",
            [
                ("Content-Type", "application/json; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return app

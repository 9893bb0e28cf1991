"""Refusals rendered by a Flask application: its error handlers, and what it adds to each response.

A middleware refuses a request before Flask sees it, so that neither the application's error
handlers nor its ``after_request`` functions (Flask-Cors and Talisman are such) know of the
response. :func:`render_refusals` hands the refusal to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.exceptions import HTTPException, default_exceptions

from wsgigate.http.problem import Problem, Refuse

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["Refused", "render_refusals"]


class Refused(HTTPException):
    """What an error handler receives: an exception of werkzeug for the refusal's status.

    Its class is that of the status as well: a handler of 429 or of ``TooManyRequests`` receives a
    refusal with 429.

    :ivar problem: The refusal.
    """

    problem: Problem
    retry_after: int | None = None
    www_authenticate: Any = None
    valid_methods: Any = None

    def __init__(self, problem: Problem) -> None:
        HTTPException.__init__(self, str(problem.document()["detail"]))
        self.problem = problem
        fields = {name.lower(): value for name, value in problem.headers}
        if fields.get("retry-after", "").isdecimal():
            self.retry_after = int(fields["retry-after"])
        if "allow" in fields:
            self.valid_methods = fields["allow"].split(", ")

    def get_headers(self, *_: Any, **__: Any) -> list[tuple[str, str]]:
        return [("Content-Type", "text/html; charset=utf-8"), *self.problem.headers]


def render_refusals(app: Flask) -> Refuse:
    """Return a *refuse* that has *app* render the refusals of a middleware around it.

    The application's error handler for the status, or for its exception, makes the response; where
    there is none, the problem document stays. The ``after_request`` functions run on either, so
    that fields of Flask-Cors or Talisman are on refusals too; ``before_request`` functions and
    views do not run. The status is never a success: a handler that returns no status gets the
    refusal's. Fields such as ``Retry-After`` and ``WWW-Authenticate`` are added where the handler
    sets none.

    :param app: The Flask application that the middleware stands around.
    :returns: What the middlewares take as *refuse*.
    """

    def refuse(problem: Problem) -> WSGIApplication:
        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            refused = _class_of(problem.status)(problem)
            with app.request_context(environ):
                try:
                    made: Any = app.handle_http_exception(refused)
                    response = app.make_response(_plain(app, environ, made, problem))
                except Exception:  # a handler that fails must not let the request pass
                    app.log_exception(sys.exc_info())
                    response = app.make_response(_plain(app, environ, refused, problem))
                if response.status_code < 300:
                    response.status_code = problem.status
                for name, value in problem.headers:
                    if name not in response.headers:
                        response.headers.add(name, value)
                response = app.finalize_request(response, from_error_handler=True)
            return response(environ, start_response)

        return answer

    return refuse


def _plain(app: Flask, environ: WSGIEnvironment, made: Any, problem: Problem) -> Any:
    """Return *made*, or the problem document where no handler made anything of the refusal."""
    if not isinstance(made, Refused):
        return made
    return app.response_class.from_app(problem, environ, buffered=True)


@lru_cache(maxsize=64)
def _class_of(status: int) -> type[Refused]:
    """Return the class of refusals with *status*: Flask finds its error handlers by class."""
    base = default_exceptions.get(status)
    bases = (Refused,) if base is None else (Refused, base)
    return type("Refused", bases, {"code": status, "__doc__": Refused.__doc__})

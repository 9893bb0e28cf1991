"""Exceptions for rejected requests, which a Flask application's error handlers receive.

A view that a decorator of this package protects raises them. A middleware rejects a request before
Flask sees it, so neither the application's error handlers nor its ``after_request`` functions (such
as those of Flask-Cors and Talisman) process the response: :func:`render_refusals` passes the
rejection to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NoReturn
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask, request
from werkzeug.exceptions import (
    Forbidden,
    HTTPException,
    TooManyRequests,
    Unauthorized,
    default_exceptions,
)
from werkzeug.wrappers import Response

from wsgigate.http.limits import QUOTA_EXCEEDED
from wsgigate.http.problem import Problem, Refuse
from wsgigate.http.wsgi import RULE

__all__ = [
    "InsufficientPermissions",
    "InvalidCredentials",
    "LimitExceeded",
    "MissingCredentials",
    "Refused",
    "add_fields",
    "raise_refused",
    "refusal_of",
    "render_refusals",
]


class Refused(HTTPException):
    """The werkzeug exception that an error handler receives for a rejected request.

    It is also an instance of the status's class: a handler of 429 or of ``TooManyRequests``
    receives a rejection with 429. Without a handler, the response is the problem document.

    :ivar problem: The problem document of the rejection.
    """

    problem: Problem
    retry_after: int | None = None
    www_authenticate: Any = None
    valid_methods: Any = None

    def __init__(self, problem: Problem) -> None:
        HTTPException.__init__(self, str(problem.document()["detail"]))
        self.code = problem.status
        self.problem = problem
        fields = {name.lower(): value for name, value in problem.headers}
        if fields.get("retry-after", "").isdecimal():
            self.retry_after = int(fields["retry-after"])
        if "allow" in fields:
            self.valid_methods = fields["allow"].split(", ")

    def get_headers(self, *_: Any, **__: Any) -> list[tuple[str, str]]:
        return [("Content-Type", "text/html; charset=utf-8"), *self.problem.headers]

    def get_response(self, environ: Any = None, scope: Any = None) -> Any:
        """Return the problem document, or HTML without an *environ*."""
        environ = getattr(environ, "environ", environ)
        if environ is None:
            return HTTPException.get_response(self)
        return Response.from_app(self.problem, environ, buffered=True)


class MissingCredentials(Refused, Unauthorized):
    """The request has no credentials, and the view or a middleware requires a verified caller."""

    code = 401


class InvalidCredentials(Refused, Unauthorized):
    """The request has credentials that are invalid, expired or revoked."""

    code = 401


class InsufficientPermissions(Refused, Forbidden):
    """The caller is verified, and may not do this."""

    code = 403


class LimitExceeded(Refused, TooManyRequests):  # type: ignore[misc]  # its retry_after is a number
    """The caller has used up a quota."""

    code = 429


def refusal_of(problem: Problem, environ: WSGIEnvironment) -> Refused:
    """Return the exception for the rejection of a request."""
    challenge = next(
        (value for name, value in problem.headers if name.lower() == "www-authenticate"), ""
    )
    if problem.status == 401:
        given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")[0].lower()
        wrong = given == "basic" and challenge.startswith("Basic ")
        return (InvalidCredentials if wrong or 'error="' in challenge else MissingCredentials)(
            problem
        )
    if problem.status == 403 and (RULE in environ or "insufficient_scope" in challenge):
        return InsufficientPermissions(problem)
    if problem.status == 429 and problem.type == QUOTA_EXCEEDED:
        return LimitExceeded(problem)
    return _class_of(problem.status)(problem)


_PROBLEM = "wsgigate.flask.problem"
"""``Problem``: the rejection of the request from within Flask, until its response is complete."""


def raise_refused(problem: Problem) -> NoReturn:
    """Reject the current request from within Flask.

    :raises Refused: Always.
    """
    request.environ[_PROBLEM] = problem
    raise refusal_of(problem, request.environ)


def add_fields(response: Any) -> Any:
    """Add the fields of a rejection to the response of its error handler: ``after_request``."""
    problem: Problem | None = request.environ.pop(_PROBLEM, None)
    if problem is not None and response.status_code == problem.status:
        _complete(response, problem)
    return response


def _complete(response: Any, problem: Problem) -> None:
    for name, value in problem.headers:
        if name not in response.headers:
            response.headers.add(name, value)


def render_refusals(app: Flask) -> Refuse:
    """Return a *refuse* callback that renders the rejections of a middleware by *app*.

    The application's error handler for the status, or for its exception, returns the response;
    without one it is the problem document. The ``after_request`` functions run on both, so that
    rejections too have the fields of Flask-Cors or Talisman; ``before_request`` functions and views
    do not run. The status is never a success: a response with a 2xx status gets the
    rejection's. Fields such as ``Retry-After`` and ``WWW-Authenticate`` are added to a response
    with the status of the rejection, unless the handler sets them.

    :param app: The Flask application that the middleware wraps.
    :returns: The *refuse* argument of the middlewares.
    """

    def refuse(problem: Problem) -> WSGIApplication:
        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            refused = refusal_of(problem, environ)
            with app.request_context(environ):
                try:
                    made: Any = app.handle_http_exception(refused)
                    response = app.make_response(_plain(app, environ, made, problem))
                except Exception:  # a failing handler must not let the request pass
                    app.log_exception(sys.exc_info())
                    response = app.make_response(_plain(app, environ, refused, problem))
                if response.status_code < 300:
                    response.status_code = problem.status
                if response.status_code == problem.status:
                    _complete(response, problem)
                response = app.finalize_request(response, from_error_handler=True)
            return response(environ, start_response)

        return answer

    return refuse


def _plain(app: Flask, environ: WSGIEnvironment, made: Any, problem: Problem) -> Any:
    """Return *made*, or the problem document if no handler has handled the rejection."""
    if not isinstance(made, Refused):
        return made
    return app.response_class.from_app(problem, environ, buffered=True)


@lru_cache(maxsize=64)
def _class_of(status: int) -> type[Refused]:
    """Return the exception class for *status*: Flask finds error handlers by class."""
    base = default_exceptions.get(status)
    bases = (Refused,) if base is None else (Refused, base)
    return type("Refused", bases, {"code": status, "__doc__": Refused.__doc__})

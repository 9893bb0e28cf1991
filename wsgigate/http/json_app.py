"""A WSGI app of endpoints that answer JSON.

An endpoint is one function and one line of a table::

    def show(request: JsonRequest, name: str) -> object:
        return {"name": name}

    app = JsonApp([Endpoint("GET /names/{name}", show)])

The function receives the request, and the parameters of the path by name. It returns a document,
which is sent with the status 200; a :class:`JsonResponse` with another status or header fields; or
a :class:`~wsgigate.http.problem.Problem`. It may raise a :class:`~wsgigate.http.problem.Refusal`
or one of the errors that the app maps to refusals. The app does the rest: 404 and 405, HEAD,
strict JSON bodies within a limit, problem documents, and the reason in the log.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.bodies import has_body, json_body, read_body, wrong
from wsgigate.http.problem import (
    Problem,
    Refusal,
    Refuse,
    answer_with,
    failed,
    status_line,
)
from wsgigate.http.target import BadTarget, target_of
from wsgigate.http.wsgi import PARAMS, REASON
from wsgigate.rules.routing import MethodNotAllowed, Route, Router, listing

__all__ = [
    "LARGEST",
    "MOST_FIELDS",
    "Endpoint",
    "ErrorResponses",
    "JsonApp",
    "JsonRequest",
    "JsonResponse",
]


LARGEST = 32 * 1024
"""The largest body of a request by default, in bytes."""

MOST_FIELDS = 32
"""The largest number of parameters in a query."""


class JsonResponse(NamedTuple):
    """A response.

    :ivar document: A document, which is encoded as JSON, or an encoded body as bytes. Ignored with
        the statuses 204 and 304, which have none.
    :ivar headers: Further header fields.
    :ivar cache: The value of ``Cache-Control``.
    :ivar content_type: Default: that of the app.
    """

    document: object = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    cache: str = "no-store"
    content_type: str = ""


class Endpoint(NamedTuple):
    """One line of the table of a :class:`JsonApp`.

    :ivar line: The method and the path, such as ``GET /services/{name}``; GET includes HEAD.
    :ivar answer: Returns the response.
    :ivar summary: A one-line description for people.
    :ivar listed: Whether lists of routes for people name it.
    """

    line: str
    answer: Callable[..., object]
    summary: str = ""
    listed: bool = True


ErrorResponses: TypeAlias = Mapping[type[Exception], Callable[[Any], Refusal]]
"""The refusals for the exceptions that endpoints may raise, by class; the first match counts."""


class JsonRequest:
    """A request to an endpoint.

    :ivar environ: The ``environ``.
    """

    __slots__ = ("_largest", "_query", "_typed", "environ")

    def __init__(self, environ: WSGIEnvironment, largest: int, typed: bool) -> None:
        self.environ = environ
        self._largest = largest
        self._typed = typed
        self._query: dict[str, list[str]] | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        """The parameters of the query, each with its values.

        :raises Refusal: The query is malformed, or has too many parameters.
        """
        if self._query is None:
            try:
                self._query = parse_qs(
                    self.environ.get("QUERY_STRING", ""),
                    keep_blank_values=True,
                    errors="strict",
                    max_num_fields=MOST_FIELDS,
                )
            except ValueError:
                raise Refusal.of(400, "The query is malformed or too long.") from None
        return self._query

    def one(self, name: str, default: str = "") -> str:
        """Return the single value of the parameter *name*, *default* without one.

        :raises Refusal: The parameter is given more than once.
        """
        values = self.query.get(name) or [default]
        if len(values) > 1:
            raise wrong(f"{name}: at most one.", name)
        return values[0]

    def has_body(self) -> bool:
        """Return whether the request has a body that is not empty."""
        return has_body(self.environ)

    def json(self) -> dict[str, Any]:
        """Return the JSON object in the body.

        :raises Refusal: The body is not a strict JSON object, has another ``Content-Type``, or is
            rejected as by :meth:`body`.
        """
        self._check_encoding()
        return json_body(self.environ, self._largest, typed=self._typed)

    def body(self) -> bytes:
        """Return the body.

        :raises Refusal: The body is too large, compressed, or incomplete.
        """
        self._check_encoding()
        return read_body(self.environ, self._largest)

    def has_tag(self, tag: str) -> bool:
        """Return whether ``If-None-Match`` contains *tag*, by weak comparison.

        An endpoint then returns a :class:`JsonResponse` with the status 304. (RFC 9110 section
        13.1.2)
        """
        given = self.environ.get("HTTP_IF_NONE_MATCH")
        if not given:
            return False
        opaque = tag.removeprefix("W/")
        return given.strip() == "*" or opaque in (
            each.strip().removeprefix("W/") for each in given.split(",")
        )

    def _check_encoding(self) -> None:
        if self.environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
            raise Refusal.of(415, "The body must not be compressed.")


class JsonApp:
    """A WSGI app of endpoints that answer JSON.

    An app that authenticates clients overrides :meth:`authorize`; one that mimics another API also
    the class attributes, :meth:`absent` and :meth:`denied`.

    :param table: The endpoints.
    :param prefixes: The path prefixes; each endpoint exists below each of them.
    :param errors: The refusals for exceptions of endpoints.
    :param largest: The largest body of a request, in bytes.
    :param refuse: Turns a problem into the app that sends it.
    :ivar listing: The endpoints for people: ``GET /services`` and so on.
    :raises ValueError: A prefix is not a path, or two lines of the table conflict.
    """

    content_type = "application/json; charset=utf-8"
    """The ``Content-Type`` of the responses."""

    requires_json_type = True
    """Whether JSON bodies must have the ``Content-Type`` ``application/json``."""

    ignores_trailing_slash = False
    """Whether a slash at the end of a path is ignored."""

    def __init__(
        self,
        table: Iterable[Endpoint],
        *,
        prefixes: Iterable[str] = ("",),
        errors: ErrorResponses | None = None,
        largest: int = LARGEST,
        refuse: Refuse = answer_with,
    ) -> None:
        endpoints = list(table)
        times = Counter(endpoint.line.partition(" ")[2] for endpoint in endpoints)
        routes = []
        for prefix in prefixes:
            if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
                raise ValueError(f'prefix must be "" or a path such as "/api", got {prefix!r}')
            for endpoint in endpoints:
                method, _, path = endpoint.line.partition(" ")
                routes.append(
                    Route(
                        prefix + path,
                        endpoint.answer,
                        methods=(method,),
                        exact=True,
                        name=f"{method} {prefix}{path}" if times[path] > 1 else "",
                        listed=None if endpoint.listed else (),
                        summary=endpoint.summary,
                    )
                )
        self._router: Router[Any] = Router(routes)
        self.listing = listing(routes)
        self._errors = errors or {}
        self._caught = tuple(self._errors)
        self._largest = largest
        self._refuse = refuse

    def routes(self) -> list[Route[WSGIApplication]]:
        """Return the endpoints as routes of another table, such as that of the gateway."""

        def app(route: Route[Any]) -> WSGIApplication:
            def produce(environ: WSGIEnvironment) -> object:
                return self._call(route, environ, environ.get(PARAMS) or {})

            return partial(self._respond, produce)

        return [replace(route, endpoint=app(route)) for route in self._router.routes]

    def authorize(self, environ: WSGIEnvironment, *, reads: bool) -> WSGIEnvironment:
        """Return the environ that the endpoint receives, if the client may send the request.

        :param reads: Whether the endpoint only reads: it is that of a GET.
        :raises Refusal: The client may not send it.
        """
        return environ

    def absent(self) -> Refusal:
        """Return the response to a request for a path that does not exist."""
        return Refusal(
            Problem(404, "Route not found!", extensions={"availableRoutes": self.listing})
        )

    def denied(self, refusal: Refusal) -> Refusal:
        """Return the response to a client whose token is missing or wrong."""
        return refusal

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._respond(self._find, environ, start_response)

    def _find(self, environ: WSGIEnvironment) -> object:
        """Return the response of the endpoint that the path and the method lead to."""
        try:
            target = target_of(environ)
        except BadTarget as error:
            raise Refusal.of(400, "Malformed request target.", str(error)) from None
        path = (target.path.rstrip("/") or "/") if self.ignores_trailing_slash else target.path
        found = self._router.match(target.host, path, environ["REQUEST_METHOD"])
        if found is None:
            raise self.absent()
        if isinstance(found, MethodNotAllowed):
            allow = (("Allow", ", ".join(found.allowed)),)
            raise Refusal(Problem(405, "Method not allowed.", headers=allow))
        return self._call(found.route, environ, found.params)

    def _call(
        self,
        route: Route[Any],
        environ: WSGIEnvironment,
        params: Mapping[str, str],
    ) -> object:
        environ = self.authorize(environ, reads=route.methods == ("GET",))
        return route.endpoint(
            JsonRequest(environ, self._largest, self.requires_json_type), **params
        )

    def _respond(
        self,
        produce: Callable[[WSGIEnvironment], object],
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        try:
            answer = produce(environ)
        except Refusal as refusal:
            answer = self.denied(refusal) if refusal.problem.status == 401 else refusal
        except self._caught as error:
            make = next(make for kind, make in self._errors.items() if isinstance(error, kind))
            answer = make(error)
        if isinstance(answer, JsonResponse):
            return self._send(environ, start_response, *answer)
        if not isinstance(answer, (Problem, Refusal)):
            return self._send(environ, start_response, answer)
        refused = Refusal(answer) if isinstance(answer, Problem) else answer
        if refused.problem.status >= 500:
            failed(environ, type(self).__name__, refused.problem.status, str(refused))
        else:
            environ.setdefault(REASON, str(refused))
        return self._refuse(refused.problem)(environ, start_response)

    def _send(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        document: object,
        status: int = 200,
        more: tuple[tuple[str, str], ...] = (),
        cache: str = "no-store",
        content_type: str = "",
    ) -> Iterable[bytes]:
        # ``nosniff`` keeps browsers from interpreting a name in the document as HTML
        if status in (204, 304):
            fields = [("Cache-Control", cache), ("X-Content-Type-Options", "nosniff"), *more]
            start_response(status_line(status), fields)
            return []
        body = document if isinstance(document, bytes) else json.dumps(document).encode("ascii")
        headers = [
            ("Content-Type", content_type or self.content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", cache),
            ("X-Content-Type-Options", "nosniff"),
            *more,
        ]
        start_response(status_line(status), headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

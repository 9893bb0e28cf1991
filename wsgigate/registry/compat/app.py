"""The common base of the compatibility APIs: routing, authorization, bodies, error mapping."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

from wsgigate.auth.bearer import Access, Caller
from wsgigate.http.bodies import has_body, json_body, read_body
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with, status_line
from wsgigate.http.target import BadTarget, target_of
from wsgigate.http.wsgi import REASON
from wsgigate.registry import Full, Registry
from wsgigate.rules.registry import Invalid, Registered
from wsgigate.rules.routing import MethodNotAllowed, Route, Router
from wsgigate.store import StoreError

__all__ = [
    "MOST_FIELDS",
    "Answer",
    "CompatApp",
    "CompatRequest",
    "Endpoint",
    "Table",
]


LARGEST = 64 * 1024
"""The largest body that is read, in bytes. Java clients send much that is not stored."""

MOST_FIELDS = 32
"""The largest number of parameters in a query."""


@dataclass(frozen=True)
class Answer:
    """A response with its complete body.

    :param body: A document, which is encoded as JSON, or encoded bytes.
    """

    body: object = b""
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class CompatRequest:
    """A request to a compatibility API.

    :ivar environ: The ``environ``, with the client's token moved to ``Authorization: Bearer``.
    :ivar query: The query parameters, each with its values.
    """

    __slots__ = ("environ", "query")

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.environ = environ
        try:
            self.query: dict[str, list[str]] = parse_qs(
                environ.get("QUERY_STRING", ""),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=MOST_FIELDS,
            )
        except ValueError:
            raise Refusal.of(400, "The query is malformed or too long.") from None

    def one(self, name: str, default: str = "") -> str:
        """Return the single value of the parameter *name*, *default* without one.

        :raises Invalid: The parameter is given more than once.
        """
        values = self.query.get(name) or [default]
        if len(values) > 1:
            raise Invalid(name[:64], "at most one")
        return values[0]

    def body(self) -> bytes:
        """Return the body.

        :raises Refusal: The body is too large, compressed, or incomplete.
        """
        self._check_encoding()
        return read_body(self.environ, LARGEST)

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object, whatever its ``Content-Type``.

        Many clients send none or a wrong one. This does not enable cross-site requests from a
        browser: they are recognized by their origin, and a token is never read from a cookie.

        :raises Refusal: The body is not a JSON object, or is rejected as by :meth:`body`.
        """
        self._check_encoding()
        return json_body(self.environ, LARGEST, typed=False)

    def has_body(self) -> bool:
        """Return whether the request has a body that is not empty."""
        return has_body(self.environ)

    def _check_encoding(self) -> None:
        if self.environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
            raise Refusal.of(415, "The body must not be compressed.")


Endpoint: TypeAlias = Callable[..., Answer]
"""Handles an :class:`CompatRequest`; the parameters of the path are keyword arguments."""

Table: TypeAlias = Mapping[str, Endpoint]
"""The endpoints by method and path, such as ``GET /apps/{app}``."""


class CompatApp:
    """A WSGI app that offers the registry through the API of another registry.

    :param registry: The registry.
    :param access: Authenticates and authorizes clients.
    :param table: The endpoints.
    :param prefixes: The path prefixes; each endpoint exists below each of them.
    :param refuse: Turns a problem into the app that sends it.
    :raises ValueError: A prefix is not a path.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access,
        table: Table,
        prefixes: Iterable[str],
        *,
        refuse: Refuse = answer_with,
    ) -> None:
        self._registry = registry
        self._access = access
        access.guard_by(registry.guard)
        self._refuse = refuse
        routes = []
        for prefix in prefixes:
            if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
                raise ValueError(f'prefix must be "" or a path such as "/eureka", got {prefix!r}')
            for name, endpoint in table.items():
                method, _, path = name.partition(" ")
                routes.append(Route(prefix + path, endpoint, methods=(method,), exact=True))
        self._router: Router[Endpoint] = Router(routes)

    def token(self, environ: WSGIEnvironment) -> bytes | None:
        """Return the token where this API's clients send it; ``None`` without one."""
        raise NotImplementedError

    def denied(self, refusal: Refusal) -> Refusal:
        """Return the response to a client whose token is missing or wrong."""
        return refusal

    def absent(self) -> Refusal:
        """Return the response to a request for a path that does not exist."""
        return Refusal.of(404, "There is nothing of that name here.")

    def writer(self, request: CompatRequest, service: str | None = None) -> Caller:
        """Return the caller of a request that changes something.

        :param service: The service that the caller must be allowed to change.
        :raises Refusal: The caller is not allowed to.
        """
        caller = self._access.writer(request.environ)
        if service is not None:
            self._access.check_caller(caller, service)
        return caller

    def register(self, entry: Registered, fields: Mapping[str, str]) -> None:
        """Register *entry*.

        :param fields: The names that this API has for the members that an error may name.
        :raises Invalid: The entry is invalid; the error names the member as this API does.
        """
        try:
            self._registry.register(entry)
        except Invalid as error:
            raise Invalid(fields.get(error.field, error.field), error.why) from error

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            answer = self._answer(environ)
        except Refusal as refusal:
            if refusal.problem.status == 401:
                refusal = self.denied(refusal)
            return self._refused(refusal.problem, str(refusal), environ, start_response)
        except Invalid as error:
            problem = Problem(
                400, f"{error.field}: {error.why}.", extensions={"field": error.field}
            )
            return self._refused(problem, str(error), environ, start_response)
        except Full as error:
            problem = Problem(507, "The registry is full.", headers=(("Retry-After", "30"),))
            return self._refused(problem, str(error), environ, start_response)
        except StoreError as error:
            problem = Problem(
                503, "The registry cannot be used at the moment.", headers=(("Retry-After", "5"),)
            )
            reason = f"the registry's store fails: {error}"
            return self._refused(problem, reason, environ, start_response)
        return _sent(answer, environ, start_response)

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        try:
            target = target_of(environ)
        except BadTarget as error:
            raise Refusal.of(400, "Malformed request target.", str(error)) from None
        path = target.path.rstrip("/") or "/"  # some clients send a trailing slash
        found = self._router.match(target.host, path, environ["REQUEST_METHOD"])
        if found is None:
            raise self.absent()
        if isinstance(found, MethodNotAllowed):
            allow = (("Allow", ", ".join(found.allowed)),)
            raise Refusal(Problem(405, "Method not allowed.", headers=allow))
        token = self.token(environ)
        if token is not None:
            bearer = b"Bearer " + token
            environ = {**environ, "HTTP_AUTHORIZATION": bearer.decode("latin-1")}
        if found.route.methods == ("GET",):
            self._access.check_read(environ)
        return found.route.endpoint(CompatRequest(environ), **found.params)

    def _refused(
        self,
        problem: Problem,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        environ.setdefault(REASON, reason)
        return self._refuse(problem)(environ, start_response)


def _sent(
    answer: Answer, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    body = answer.body
    if not isinstance(body, bytes):
        body = json.dumps(body).encode("ascii")
    fields = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    if answer.status != 204:
        fields += [("Content-Type", answer.content_type), ("Content-Length", str(len(body)))]
    start_response(status_line(answer.status), [*fields, *answer.headers])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

"""The frame of the gateway's own endpoints: access, conditional requests, and their description.

An endpoint is one :class:`AdminEndpoint`: what answers it, who may call it, and the types of its
bodies. The same table is served and described (:mod:`wsgigate.admin.openapi`), so neither can have
what the other lacks.

- Access is decided first, by :class:`.AdminAccess`.
- Each read has a strong ``ETag``, the hash of its body, and is answered with 304 where
  ``If-None-Match`` has it: a page that polls costs the making of a document, not its transfer.
- A write with ``If-Match`` is carried out only while the resource still has that tag, and is
  rejected with 412 otherwise. The resource is what GET returns for the same path, or what the
  endpoint names as ``current``. The tag is compared before the write: two writes within the same
  moment may both pass, so what must be exact is decided in the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any
from wsgiref.types import WSGIApplication

from wsgigate.admin.access import AdminAccess, Role
from wsgigate.http.bodies import wrong
from wsgigate.http.json_app import (
    LARGEST,
    Endpoint,
    ErrorResponses,
    JsonApp,
    JsonRequest,
    JsonResponse,
)
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.rules.routing import Route

__all__ = [
    "AdminApi",
    "AdminEndpoint",
    "Group",
    "match_of",
    "named",
    "serves",
    "tag_of",
    "with_tag",
]


@dataclass(frozen=True)
class AdminEndpoint:
    """One endpoint of the gateway's own.

    :param line: The method and the path below the prefix, such as ``GET /services/{name}``.
    :param answer: Returns the response: called with the :class:`.JsonRequest`, and the parameters
        of the path by name.
    :param summary: A one-line description.
    :param response: The type of the document, as a ``TypedDict``.
    :param role: The role that a request needs. Default: ``viewer`` for GET, else ``admin``.
    :param description: Further sentences.
    :param body: The type of the request's body; None without one.
    :param body_optional: Whether the body may be omitted.
    :param query: The parameters of the query with their descriptions.
    :param query_required: Whether each of these is required.
    :param status: The status of success.
    :param content_type: The media type of the document.
    :param current: Returns the resource that a write with ``If-Match`` changes, called as *answer*
        is. Default: the GET of the same path in the group.
    :param listed: Whether lists of routes for people name it.
    :param yields: Whether a route of the file with the same path takes precedence.
    """

    line: str
    answer: Callable[..., object]
    summary: str
    response: Any
    _: KW_ONLY
    role: Role | None = None
    description: str = ""
    body: Any = None
    body_optional: bool = False
    query: Mapping[str, str] = field(default_factory=dict)
    query_required: bool = False
    status: int = 200
    content_type: str = "application/json"
    current: Callable[..., object] | None = None
    listed: bool = False
    yields: bool = True

    @property
    def method(self) -> str:
        """The method."""
        return self.line.partition(" ")[0]

    @property
    def path(self) -> str:
        """The path below the prefix."""
        return self.line.partition(" ")[2]

    @property
    def required(self) -> Role:
        """The role that a request needs."""
        if self.role is not None:
            return self.role
        return Role.VIEWER if self.method == "GET" else Role.ADMIN


@dataclass(frozen=True)
class Group:
    """Endpoints of one subject.

    :param tag: The subject, such as ``circuit breakers``.
    :param endpoints: The endpoints.
    :param errors: The responses to exceptions of the endpoints.
    :param largest: The largest body of a request, in bytes.
    """

    tag: str
    endpoints: Sequence[AdminEndpoint]
    errors: ErrorResponses = field(default_factory=dict)
    largest: int = LARGEST


def named(request: JsonRequest, name: str, given: str | None) -> str:
    """Return what the path names, or without it the parameter *name* of the query.

    A segment of a path cannot have a slash, not even an encoded one, so what may have one (an IPv6
    network, a URL) is accepted in the query as well.

    :param given: The parameter of the path; None if this path has none.
    :raises Refusal: 400, if neither has it.
    """
    if given is not None:
        return given
    if name not in request.query:
        raise wrong(f"{name}: is required in the query.", name)
    return request.one(name)


def tag_of(document: object) -> str:
    """Return the strong entity tag of a document, or of its encoded form."""
    body = document if isinstance(document, bytes) else _encoded(document)
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def match_of(request: JsonRequest) -> Callable[[object], bool] | None:
    """Return whether a document has one of the tags in ``If-Match``; None without that field.

    For a write that compares in the store: the frame has compared the document already, but another
    write may have come in between.
    """
    given = request.environ.get("HTTP_IF_MATCH")
    if given is None:
        return None
    wanted = [each.strip() for each in given.split(",")]
    return lambda document: given.strip() == "*" or tag_of(document) in wanted


def with_tag(document: object) -> JsonResponse:
    """Return the response to a write with the new state of the resource, and its tag."""
    body = _encoded(document)
    return JsonResponse(body, headers=(("ETag", tag_of(body)),))


class AdminApi:
    """The gateway's own endpoints below one prefix.

    :param groups: The endpoints.
    :param access: Decides which role a request has.
    :param prefix: The path prefix, such as ``/_gateway``.
    :param refuse: Returns the app that responds with a problem.
    :raises ValueError: *prefix* is not a path, or two endpoints conflict.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        *,
        access: AdminAccess,
        prefix: str = "",
        refuse: Refuse = answer_with,
    ) -> None:
        self.groups = tuple(groups)
        self.prefix = prefix
        self._access = access
        self._routes: list[Route[WSGIApplication]] = []
        self._yielding: list[Route[WSGIApplication]] = []
        for group in self.groups:
            reads = {each.path: each.answer for each in group.endpoints if each.method == "GET"}
            for yields in (False, True):
                table = [
                    Endpoint(
                        each.line,
                        partial(self._answered, each, each.current or reads.get(each.path)),
                        each.summary,
                        each.listed,
                    )
                    for each in group.endpoints
                    if each.yields is yields
                ]
                app = JsonApp(
                    table,
                    prefixes=(prefix,),
                    errors=group.errors,
                    largest=group.largest,
                    refuse=refuse,
                )
                (self._yielding if yields else self._routes).extend(app.routes())

    def routes(self, others: Iterable[Route[WSGIApplication]] = ()) -> list[Route[WSGIApplication]]:
        """Return the routes of the endpoints.

        :param others: The routes of the file: an endpoint that yields has none where one of them
            is at or below the prefix and serves its path.
        """
        taken = [each for each in others if _is_below(each.path, self.prefix)]
        free = [each for each in self._yielding if not any(serves(o, each.path) for o in taken)]
        return [*self._routes, *free]

    def hidden(self, others: Iterable[Route[WSGIApplication]]) -> list[str]:
        """Return the paths of endpoints that *others* take from :meth:`routes`."""
        served = {route.path for route in self.routes(others)}
        return sorted({each.path for each in self._yielding} - served)

    def _answered(
        self,
        endpoint: AdminEndpoint,
        current: Callable[..., object] | None,
        request: JsonRequest,
        **params: str,
    ) -> object:
        self._access.admit(request.environ, endpoint.required)
        if endpoint.method == "GET":
            return _tagged(request, endpoint.answer(request, **params))
        if endpoint.body is None and request.has_body():
            raise Refusal.of(400, "This request takes no body.")
        _check_match(request, current, params)
        return endpoint.answer(request, **params)


def serves(route: Route[Any], path: str) -> bool:
    """Return whether *route* serves all of the pattern *path*, on any host and by any method."""
    wanted = [each for each in path.split("/") if each]
    segments = [each for each in route.segments if each]
    if len(segments) > len(wanted) or (route.exact and len(segments) != len(wanted)):
        return False
    return all(
        here == there or here == "*" or here[:1] == "{"
        for here, there in zip(segments, wanted, strict=False)
    )


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _encoded(document: object) -> bytes:
    return json.dumps(document).encode("ascii")


def _tagged(request: JsonRequest, answer: object) -> object:
    """Return the response to a read with its tag; 304 if the client has it already."""
    if isinstance(answer, (Problem, Refusal)):
        return answer
    response = answer if isinstance(answer, JsonResponse) else JsonResponse(answer)
    if response.status != 200:
        return response
    body = response.document
    if not isinstance(body, bytes):
        body = _encoded(body)
    tag = tag_of(body)
    headers = (("ETag", tag), *response.headers)
    if request.has_tag(tag):
        return response._replace(document=b"", status=304, headers=headers)
    return response._replace(document=body, headers=headers)


def _check_match(
    request: JsonRequest, current: Callable[..., object] | None, params: Mapping[str, str]
) -> None:
    """Check ``If-Match`` (RFC 9110 section 13.1.1).

    :raises Refusal: 412, if the resource has none of the tags.
    """
    given = request.environ.get("HTTP_IF_MATCH")
    if given is None:
        return
    tag = None
    if current is not None:
        found = current(request, **params)
        if isinstance(found, JsonResponse):
            found = found.document if found.status == 200 else Problem(found.status)
        if not isinstance(found, (Problem, Refusal)):
            tag = tag_of(found)
    wanted = [each.strip() for each in given.split(",")]
    if tag is not None and (given.strip() == "*" or tag in wanted):
        return
    headers = () if tag is None else (("ETag", tag),)
    raise Refusal(
        Problem(412, "The resource has changed since it was read.", headers=headers),
        "If-Match does not have the tag of the resource",
    )

"""What the doors do alike: who is asked for what, what was sent, and how that is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

from wsgigate.discovery.registry import Full, Refused, Registry
from wsgigate.problem import Problem, Refusal, Refuse, answer_with, status_line
from wsgigate.rules.registry import Invalid
from wsgigate.store import StoreError
from wsgigate.wsgi import REASON, BodyError

__all__ = ["Access", "Answer", "Asked", "Door", "Handlers"]

LARGEST = 64 * 1024
"""The largest body that is read, in bytes. Java's clients say much that is not kept."""

MOST_FIELDS = 32
"""How many parameters a query may have."""


@dataclass(frozen=True)
class Answer:
    """A response whose body is there as a whole.

    :param body: A document, which is written as JSON, or what is written already.
    """

    body: object = b""
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Asked:
    """A request, as a door looks at it.

    :ivar path: The segments of the path below the door's own, percent-decoded.
    :ivar query: The parameters, each with its values.
    """

    __slots__ = ("environ", "path", "query")

    def __init__(self, environ: WSGIEnvironment, path: Sequence[str]) -> None:
        self.environ = environ
        self.path = path
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
        """Return the only value of the parameter *name*.

        :raises Refusal: It has several.
        """
        values = self.query.get(name) or [default]
        if len(values) > 1:
            raise wrong(name, "at most one")
        return values[0]

    def body(self) -> bytes:
        """Return the whole body.

        :raises Refusal: It is too large, or can not be read to its end.
        """
        environ = self.environ
        length = environ.get("CONTENT_LENGTH") or ""
        if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
            raise Refusal.of(415, "The body must not be compressed.")
        if length and not (length.isascii() and length.isdigit()):
            raise Refusal.of(400, "Malformed Content-Length.")
        if len(length) > 9 or int(length or 0) > LARGEST:
            raise Refusal.of(413, f"The body has to be at most {LARGEST} bytes.")
        if not length and not environ.get("wsgi.input_terminated"):
            return b""
        wanted = int(length) if length else LARGEST + 1
        data = b""
        try:
            while len(data) < wanted:
                part = environ["wsgi.input"].read(wanted - len(data))
                if not part:
                    break
                data += part
        except (BodyError, OSError):
            raise Refusal.of(400, "The body could not be read to its end.") from None
        if len(data) > LARGEST:
            raise Refusal.of(413, f"The body has to be at most {LARGEST} bytes.")
        if length and len(data) < wanted:
            raise Refusal.of(400, "The body could not be read to its end.")
        return data

    def json(self) -> dict[str, Any]:
        """Return the object that is the body.

        Some clients send JSON under another type's name, so none is asked for. That opens nothing:
        who may write is never known by a cookie.

        :raises Refusal: It is none, or an object in it names something twice.
        """
        try:
            document = json.loads(
                self.body().decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number
            )
        except (ValueError, RecursionError):
            raise Refusal.of(400, "The body is not well-formed JSON.") from None
        if not isinstance(document, dict):
            raise Refusal.of(400, "The body has to be a JSON object.")
        return document


Handlers: TypeAlias = Mapping[str, Callable[[Asked], Answer]]
"""What answers, by method."""


class Door:
    """A WSGI app that speaks of the registry in another one's words.

    Each answers below a path of its own, ``PREFIX``, wherever it is mounted, and 404 to all else.

    :param registry: What it is a door to.
    :param tokens: Who may write what.
    :param refuse: Turns a problem into the app that answers it.
    """

    PREFIX = ""

    def __init__(self, registry: Registry, tokens: Access, *, refuse: Refuse = answer_with) -> None:
        self._registry = registry
        self._tokens = tokens
        self._refuse = refuse

    def resource(self, path: Sequence[str]) -> Handlers | None:
        """Return what answers at *path*, the segments below the prefix; ``None`` for 404."""
        raise NotImplementedError

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            answer = self._answer(environ)
        except Refusal as refusal:
            environ[REASON] = str(refusal)
            return self._refuse(refusal.problem)(environ, start_response)
        body = answer.body
        if not isinstance(body, bytes):
            body = json.dumps(body).encode("ascii")
        fields = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
        if answer.status != 204:
            fields += [("Content-Type", answer.content_type), ("Content-Length", str(len(body)))]
        start_response(status_line(answer.status), [*fields, *answer.headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        below = path.removeprefix(self.PREFIX)
        segments = below.strip("/").split("/")
        handlers = None
        if len(below) < len(path) and below[:1] in ("", "/"):
            handlers = self.resource(segments)
        if handlers is None:
            raise Refusal.of(404, "There is nothing of that name here.")
        method = environ["REQUEST_METHOD"]
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            allow = ", ".join([*handlers, *(["HEAD"] if "GET" in handlers else [])])
            raise Refusal(Problem(405, headers=(("Allow", allow),)))
        try:
            return handler(Asked(environ, segments))
        except Invalid as error:
            raise wrong(error.field, error.why) from error
        except Refused as error:
            raise Refusal.of(403, "An instance must not be there.", str(error)) from error
        except Full as error:
            raise Refusal.of(503, f"The registry is full: {error}.", str(error)) from error
        except StoreError as error:
            problem = Problem(
                503,
                "The registry can not be written at the moment. What was asked may hold or not.",
                headers=(("Retry-After", "5"),),
            )
            raise Refusal(problem, f"the registry's store: {error}") from error


def wrong(field: str, why: str) -> Refusal:
    """Return the refusal of what was sent, which names the *field*."""
    return Refusal(Problem(400, f"{field}: {why}.", extensions={"field": field}))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no JSON")

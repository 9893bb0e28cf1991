"""A name for every request, the same in the logs of everyone it passes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from typing import Literal
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import HOP_BY_HOP, is_token
from wsgigate.http.request_log import call_with_id, filters
from wsgigate.http.wsgi import REQUEST_ID, ExcInfo, Headers, environ_key, peer_trusted, without
from wsgigate.rules.arguments import checked

__all__ = ["RequestId"]

_VALID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_FRAMING = frozenset({"content-length", "content-type", "host"})


def _mint() -> str:
    # The module's function: CPython seeds it anew after a fork, so that workers differ.
    return f"{random.getrandbits(128):032x}"


@checked
class RequestId:
    """Give every request an id: in environ, in a field for the app, and in one of the response.

    An id that is there already, from a RequestId further out, is kept. One that the client sent is
    believed as *accept* says, and only if it is 1 to 64 letters, digits, dots, underscores or
    hyphens: anything else could write lines of its own into a log.

    :param app: The WSGI application whose requests are named.
    :param header: The field that carries the id, both ways.
    :param accept: Whose ids are believed: ``"trusted"`` (those of a peer that a ClientAddress
        further out trusts), ``"always"`` or ``"never"``.
    :param mint: Makes a new id.
    :raises ValueError: *header* is not a field name that may carry an id, or *accept* is none of
        the three.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        header: str = "X-Request-ID",
        accept: Literal["trusted", "always", "never"] = "trusted",
        mint: Callable[[], str] = _mint,
    ) -> None:
        if not is_token(header) or header.lower() in HOP_BY_HOP | _FRAMING:
            raise ValueError(f"header: {header!r} is not a field that may carry a request id")
        if accept not in ("trusted", "always", "never"):
            raise ValueError(f'accept is "trusted", "always" or "never", not {accept!r}')
        self.app = app
        self._header = header
        self._names = frozenset((header.lower(),))
        self._key = environ_key(header)
        self._always = accept == "always"
        self._trusted = accept == "trusted"
        self._mint = mint

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request_id = environ.get(REQUEST_ID)
        if request_id is None:
            request_id = self._sent(environ) or self._mint()
            environ[REQUEST_ID] = request_id
        environ[self._key] = request_id
        field = (self._header, request_id)
        names = self._names

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            # A backend's own id would contradict the one in our log: it gives way.
            fields = without(headers, names)
            fields.append(field)
            if exc_info:
                return start_response(status, fields, exc_info)
            return start_response(status, fields)

        if filters:
            return call_with_id(self.app, environ, start, request_id)
        return self.app(environ, start)

    def _sent(self, environ: WSGIEnvironment) -> str | None:
        """Return the id that the client sent, if it is to be believed."""
        if not (self._always or (self._trusted and peer_trusted(environ))):
            return None
        sent = environ.get(self._key)
        return sent if sent is not None and _VALID.fullmatch(sent) else None

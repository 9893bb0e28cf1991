"""Request ids: one id per request in the logs of the gateway and of the services."""

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
    # CPython reseeds the module's generator after a fork, so that workers get different ids.
    return f"{random.getrandbits(128):032x}"


@checked
class RequestId:
    """Assign an id to each request: in ``environ``, in a request field and in a response field.

    An id from an outer RequestId is kept. An id from the client is accepted according to *accept*,
    and only if it consists of 1 to 64 letters, digits, dots, underscores and hyphens: other
    characters could forge log lines.

    :param app: The WSGI application whose requests get an id.
    :param header: The field with the id, in requests and responses.
    :param accept: Which ids of clients are accepted: ``"trusted"`` (if the peer is a trusted proxy
        of an outer ClientAddress), ``"always"`` or ``"never"``.
    :param mint: Returns a new id.
    :raises ValueError: *header* is not a field name that may contain an id, or *accept* is none of
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
            raise ValueError(f"header: {header!r} is not a field that may contain a request id")
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
            # The backend's id would differ from the one in our log, so it is replaced.
            fields = without(headers, names)
            fields.append(field)
            if exc_info:
                return start_response(status, fields, exc_info)
            return start_response(status, fields)

        if filters:
            return call_with_id(self.app, environ, start, request_id)
        return self.app(environ, start)

    def _sent(self, environ: WSGIEnvironment) -> str | None:
        """Return the id that the client sent, if it is accepted."""
        if not (self._always or (self._trusted and peer_trusted(environ))):
            return None
        sent = environ.get(self._key)
        return sent if sent is not None and _VALID.fullmatch(sent) else None

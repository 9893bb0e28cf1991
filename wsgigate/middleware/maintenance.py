"""Maintenance mode: respond with 503 while an app is out of service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from hmac import compare_digest
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch, check_scope
from wsgigate.http.caller import exemption
from wsgigate.http.fields import is_token, retry_after
from wsgigate.http.forwarded import AddressList
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.responses import fixed_response
from wsgigate.http.wsgi import FAILURE, REASON, REJECTED_BY, environ_key, peer
from wsgigate.rules.arguments import Seconds, checked

__all__ = ["Maintenance"]

_PASSES = "wsgigate.passes_maintenance"
"""The hash of the secret in the request: a Maintenance with another secret does not accept it."""

SHORTEST = 16
"""Minimum length of the secret in *allow_header*, in characters."""


@checked
class Maintenance:
    """Respond with 503 while the app is in maintenance, except to its operators.

    :param app: The WSGI application to protect.
    :param switch: The maintenance switch; all middlewares with the same switch share its state.
    :param scopes: The scopes that *app* belongs to: ``gateway``, ``service:NAME``, ``route:NAME``.
    :param exempt: Paths that stay available, such as ``/health``, or ``/static/*`` for all below.
    :param allow: Addresses and networks whose requests pass.
    :param allow_header: The name of a request field and the secret that it must contain for the
        request to pass. The field is removed, so that the app does not see it.
    :param retry_after: The ``Retry-After`` to send when the maintenance has no planned end, in
        seconds.
    :param page: Body and content type of the response, instead of a problem document.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        switch: MaintenanceSwitch,
        scopes: Sequence[str] = (GATEWAY,),
        *,
        exempt: Iterable[str] = (),
        allow: Iterable[str] = (),
        allow_header: tuple[str, str] | None = None,
        retry_after: Seconds = 300.0,
        page: tuple[bytes, str] | None = None,
        refuse: Refuse = answer_with,
    ) -> None:
        self.app = app
        self._switch = switch
        self._scopes = tuple(check_scope(scope) for scope in scopes)
        paths = tuple(exempt)
        try:
            self._exempt = exemption(paths=paths) if paths else None
        except ValueError as error:
            raise ValueError(f"exempt: {error}") from None
        try:
            self._allow = AddressList(allow)
        except ValueError as error:
            raise ValueError(f"allow: {error}") from None
        self._key, self._digest = "", b""
        if allow_header is not None:
            name, secret = allow_header
            if not is_token(name):
                raise ValueError(f"allow_header: {name!r} is not a valid header field name")
            if len(secret) < SHORTEST or not secret.isascii() or not secret.isprintable():
                raise ValueError(
                    f"allow_header: the secret has {SHORTEST} or more visible ASCII characters"
                )
            self._key, self._digest = environ_key(name), sha256(secret.encode()).digest()
        if not 0 < retry_after < float("inf"):
            raise ValueError(f"retry_after: a number of seconds above 0, not {retry_after}")
        self._retry_after = retry_after
        if page is not None:
            fixed_response(page[0], content_type=page[1])  # raises ValueError if it is invalid
        self._page = page
        self._refuse = refuse

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._key and self._key in environ:
            self._take_secret(environ)
        found = self._switch.notice(self._scopes)
        if found is None or self._passes(environ):
            return self.app(environ, start_response)
        notice, left = found
        wait = ("Retry-After", retry_after(left or self._retry_after))
        environ[REASON], environ[REJECTED_BY] = "in maintenance", "Maintenance"
        environ[FAILURE] = "Maintenance"
        if self._page is not None:
            body, content_type = self._page
            page = fixed_response(body, content_type=content_type, fields=[wait])
            return page(environ, start_response)
        problem = Problem(
            503,
            notice.message or "Out of service for maintenance.",
            extensions={"error": "Maintenance"},
            headers=(wait,),
        )
        return self._refuse(problem)(environ, start_response)

    def _take_secret(self, environ: WSGIEnvironment) -> None:
        """Remove the secret from the request, and mark it for inner middlewares if it is right."""
        given = sha256(environ.pop(self._key).encode("utf-8", "surrogatepass")).digest()
        if compare_digest(given, self._digest):
            environ[_PASSES] = self._digest

    def _passes(self, environ: WSGIEnvironment) -> bool:
        known = environ.get(_PASSES)
        if known is not None and (not self._digest or known == self._digest):
            return True
        if self._allow and peer(environ) in self._allow:
            return True
        return self._exempt is not None and bool(self._exempt(environ))

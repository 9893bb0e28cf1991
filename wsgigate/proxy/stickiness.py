"""Clients that stay with an instance: the cookie that says which one, read and written."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from wsgiref.types import WSGIEnvironment

from wsgigate.clocks import wall
from wsgigate.cookies import cookie_values
from wsgigate.discovery import Instance
from wsgigate.fields import is_token
from wsgigate.proxy.request import Outgoing
from wsgigate.rules.arguments import checked
from wsgigate.rules.balance.sticky import StickyCookie, Stuck

__all__ = ["Stickiness"]

_READ = "wsgigate.stuck"
_ONLY_SECURE = ("__Host-", "__Secure-")
"""What browsers take with ``Secure`` alone (RFC 6265bis, cookie name prefixes)."""


@checked
class Stickiness:
    """Has the clients of a service stay with the instance that answered them first.

    The cookie is signed, says nothing of the instance, and is for the gateway alone: no instance
    gets to see it. It is ``HttpOnly`` and ``SameSite=Lax``, and ``Secure`` when the client came by
    https. Where it is missing, forged, out of date, or names an instance that takes no requests,
    the service's policy picks as if there were none, and the client gets a new one.

    :param service: The service's name.
    :param secret: At least 16 bytes that all gateways of the service share.
    :param cookie: The cookie's name; ``wsgigate-`` and the service's unless said.
    :param max_age: Seconds for which it is valid, renewed after half of them; ``None`` for as long
        as the client keeps it.
    :param path: The path that the client sends it with.
    :param keep_draining: Whether an instance that drains keeps the clients it has.
    :param clock: Tells the Unix time.
    :raises ValueError: A setting is not of its form; says which.
    """

    def __init__(
        self,
        service: str,
        secret: bytes,
        *,
        cookie: str | None = None,
        max_age: float | None = None,
        path: str = "/",
        keep_draining: bool = False,
        clock: Callable[[], float] = wall,
    ) -> None:
        self.cookie = f"wsgigate-{service}" if cookie is None else cookie
        if not is_token(self.cookie):
            raise ValueError(f"cookie: {self.cookie!r} cannot be the name of a cookie")
        if not path.startswith("/") or not path.isprintable() or not path.isascii() or ";" in path:
            raise ValueError(f"path: is a path such as /shop, got {path!r}")
        if self.cookie.startswith("__Host-") and path != "/":
            raise ValueError('path: is "/" for a cookie whose name begins with __Host-')
        self._values = StickyCookie(secret, service, max_age)
        self.keep_draining = keep_draining
        self.id_of = lru_cache(maxsize=1024)(self._values.id_of)
        self._clock = clock
        age = "" if self._values.max_age is None else f"; Max-Age={self._values.max_age}"
        self._attributes = f"; Path={path}{age}; HttpOnly; SameSite=Lax"
        self._only_secure = self.cookie.startswith(_ONLY_SECURE)

    def read(self, environ: WSGIEnvironment) -> Stuck | None:
        """Return what the client's cookie says, ``None`` without a valid one."""
        field = environ.get("HTTP_COOKIE")
        if not field:
            return None
        known: tuple[Stickiness, str, Stuck | None] | None = environ.get(_READ)
        # asked for at the pick, and at the answer
        if known is None or known[0] is not self or known[1] != field:
            environ[_READ] = known = (self, field, self._read(field))
        return known[2]

    def _read(self, field: str) -> Stuck | None:
        now = self._clock()
        for value in cookie_values(field, self.cookie):
            stuck = self._values.read(value, now)
            if stuck is not None:
                return stuck
        return None

    def mark(self, request: Outgoing, environ: WSGIEnvironment, instance: Instance) -> None:
        """Have the answer to *request* tell the client to stay with *instance*, unless it does."""
        id, stuck = self.id_of(instance.url), self.read(environ)
        if stuck is None or stuck.stale or stuck.id != id:
            value = self._values.sign(id, self._clock())
            secure = self._only_secure or environ["wsgi.url_scheme"] == "https"
            ends = "; Secure" if secure else ""
            request.set_cookie = f"{self.cookie}={value}{self._attributes}{ends}"

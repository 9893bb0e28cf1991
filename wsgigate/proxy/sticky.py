"""Clients that stay with an instance: the cookie that says which one, read and written."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import lru_cache
from hmac import compare_digest, digest
from typing import NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.discovery import Instance
from wsgigate.http.fields import cookie_values, is_token
from wsgigate.proxy.request import Outgoing
from wsgigate.rules.arguments import checked
from wsgigate.runtime.clocks import wall

__all__ = ["Stickiness", "StickyCookie", "Stuck"]


# The instance that a client was with before, by a cookie that only the gateway can write.

_SHORTEST = 16

_ID = 9

_SIGNATURE = 18

_VALUE = re.compile(r"([A-Za-z0-9_-]{12})\.(0|[1-9][0-9]{0,11})\.([A-Za-z0-9_-]{24})", re.ASCII)


class Stuck(NamedTuple):
    """What a valid cookie says.

    :ivar id: Of the instance, as :meth:`StickyCookie.id_of` has it.
    :ivar stale: Whether it is time for a new one.
    """

    id: str
    stale: bool = False


class StickyCookie:
    """Makes and reads what the cookie says: which instance, and until when.

    ``ID.UNTIL.SIGNATURE``: the instance goes by an id that tells neither its address nor anything
    to be guessed, the time is in Unix seconds (0 for as long as the client keeps it), and both are
    signed (HMAC with SHA-256) together with the service's name.

    :param secret: At least 16 bytes that all gateways of the service share.
    :param service: The service's name: the cookie of one is nothing to another.
    :param max_age: Seconds for which it is valid; ``None`` for as long as the client keeps it.
    :raises ValueError: A setting is not of its form; says which.
    """

    def __init__(self, secret: bytes, service: str, max_age: float | None = None) -> None:
        if len(secret) < _SHORTEST:
            raise ValueError(f"secret: has at least {_SHORTEST} bytes")
        if max_age is not None and not 1 <= max_age <= 1e9:
            raise ValueError(f"max_age: is at least one second, got {max_age!r}")
        self._secret = secret
        self._service = service.encode("utf-8", "surrogatepass") + b"\0"
        self.max_age = None if max_age is None else int(max_age)

    def id_of(self, name: str) -> str:
        """Return what the instance *name* goes by: the same for every gateway of the service."""
        text = b"instance\0" + self._service + name.encode("utf-8", "surrogatepass")
        return self._mac(text, _ID)

    def sign(self, id: str, now: float) -> str:
        """Return what a cookie says whose client stays with the instance *id*.

        :param now: The Unix time.
        """
        until = 0 if self.max_age is None else int(now) + self.max_age
        return f"{id}.{until}.{self._signature(id, str(until))}"

    def read(self, value: str, now: float) -> Stuck | None:
        """Return what *value* says, in a time that tells nothing of what is right about it.

        It is stale after half of its time, so that a client that comes back in time stays.

        :returns: ``None`` when it is forged, malformed, out of date or another service's.
        """
        found = _VALUE.fullmatch(value)
        if found is None:
            return None
        id, until, signature = found.groups()
        if not compare_digest(signature.encode(), self._signature(id, until).encode()):
            return None
        if self.max_age is None:
            return Stuck(id, until != "0")
        left = int(until) - now
        if left <= 0 or left > self.max_age:  # the time it may have was shortened meanwhile
            return None
        return Stuck(id, left < self.max_age / 2)

    def _signature(self, id: str, until: str) -> str:
        return self._mac(b"cookie\0" + self._service + f"{id}.{until}".encode(), _SIGNATURE)

    def _mac(self, text: bytes, size: int) -> str:
        return urlsafe_b64encode(digest(self._secret, text, "sha256")[:size]).decode("ascii")


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

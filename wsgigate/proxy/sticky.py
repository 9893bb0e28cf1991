"""Sticky sessions: a signed cookie keeps a client on the instance that served it first."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import lru_cache
from hmac import compare_digest, digest
from typing import Annotated, NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.discovery import Instance
from wsgigate.http.fields import cookie_values, is_token
from wsgigate.proxy.request import Outgoing
from wsgigate.rules.arguments import FIELD_NAME, Pattern, Seconds, checked
from wsgigate.runtime.clocks import wall

__all__ = ["Stickiness", "StickyCookie", "StickyTarget"]

_SHORTEST = 16

_ID = 9

_SIGNATURE = 18

_VALUE = re.compile(r"([A-Za-z0-9_-]{12})\.(0|[1-9][0-9]{0,11})\.([A-Za-z0-9_-]{24})", re.ASCII)


class StickyTarget(NamedTuple):
    """The content of a valid cookie.

    :ivar id: The id of the instance, from :meth:`StickyCookie.id_of`.
    :ivar stale: Whether the cookie is due for renewal.
    """

    id: str
    stale: bool = False


class StickyCookie:
    """Signs and verifies cookie values of the form ``ID.UNTIL.SIGNATURE``.

    ``ID`` is a keyed hash of the instance's name, which does not reveal its address and cannot be
    guessed. ``UNTIL`` is the expiry in Unix seconds, 0 for a session cookie. ``SIGNATURE`` is an
    HMAC-SHA-256 of both and the service's name.

    :param secret: At least 16 bytes that all gateways of the service share.
    :param service: The service's name; a cookie is valid for its service only.
    :param max_age: Seconds until it expires; ``None`` for a session cookie.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(self, secret: bytes, service: str, max_age: float | None = None) -> None:
        if len(secret) < _SHORTEST:
            raise ValueError(f"secret: must have at least {_SHORTEST} bytes, got {len(secret)}")
        if max_age is not None and not 1 <= max_age <= 1e9:
            raise ValueError(f"max_age: must be 1 second to 1e9 seconds, got {max_age!r}")
        self._secret = secret
        self._service = service.encode("utf-8", "surrogatepass") + b"\0"
        self.max_age = None if max_age is None else int(max_age)

    def id_of(self, name: str) -> str:
        """Return the id of the instance *name*, the same in every gateway of the service."""
        text = b"instance\0" + self._service + name.encode("utf-8", "surrogatepass")
        return self._mac(text, _ID)

    def sign(self, id: str, now: float) -> str:
        """Return the cookie value for the instance *id*.

        :param now: The Unix time.
        """
        until = 0 if self.max_age is None else int(now) + self.max_age
        return f"{id}.{until}.{self._signature(id, str(until))}"

    def read(self, value: str, now: float) -> StickyTarget | None:
        """Verify *value* in constant time and return its content.

        The cookie is stale after half of its lifetime, so that a client which returns within the
        other half stays with its instance.

        :returns: ``None`` if it is forged, malformed, expired or of another service.
        """
        found = _VALUE.fullmatch(value)
        if found is None:
            return None
        id, until, signature = found.groups()
        if not compare_digest(signature.encode(), self._signature(id, until).encode()):
            return None
        if self.max_age is None:
            return StickyTarget(id, until != "0")
        left = int(until) - now
        if left <= 0 or left > self.max_age:  # the second: max_age was shortened since
            return None
        return StickyTarget(id, left < self.max_age / 2)

    def _signature(self, id: str, until: str) -> str:
        return self._mac(b"cookie\0" + self._service + f"{id}.{until}".encode(), _SIGNATURE)

    def _mac(self, text: bytes, size: int) -> str:
        return urlsafe_b64encode(digest(self._secret, text, "sha256")[:size]).decode("ascii")


_READ = "wsgigate.stuck"

_ONLY_SECURE = ("__Host-", "__Secure-")
"""Name prefixes that browsers accept only with ``Secure`` (RFC 6265bis)."""


_COOKIE_NAME = Pattern(FIELD_NAME, 'a cookie\'s name such as "shop"')


@checked
class Stickiness:
    """Keep each client of a service on the instance that served it first (sticky sessions).

    The cookie is signed, does not reveal the instance, and is never forwarded to instances. It is
    ``HttpOnly`` and ``SameSite=Lax``, and ``Secure`` for clients that use https. If the cookie is
    missing, forged, expired, or names an instance that takes no requests, the load balancing policy
    picks an instance, and the client gets a new cookie.

    :param service: The service's name.
    :param secret: At least 16 bytes that all gateways of the service share.
    :param cookie: The cookie's name. Default: ``"wsgigate-"`` and the service's name.
    :param max_age: The cookie's lifetime, renewed after half of it, in seconds. Default: a session
        cookie.
    :param path: The cookie's path.
    :param keep_draining: Whether an instance of weight 0 keeps its clients; one that an operator
        has drained always does.
    :param clock: Returns the Unix time.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        service: str,
        secret: bytes,
        *,
        cookie: Annotated[str, _COOKIE_NAME] | None = None,
        max_age: Seconds | None = None,
        path: Annotated[str, Pattern(r"/[^;\x00-\x1f\x7f]*", 'a path such as "/shop"')] = "/",
        keep_draining: bool = False,
        clock: Callable[[], float] = wall,
    ) -> None:
        self.cookie = f"wsgigate-{service}" if cookie is None else cookie
        if not is_token(self.cookie):
            raise ValueError(f"cookie: {self.cookie!r} is not a valid cookie name")
        if not path.startswith("/") or not path.isprintable() or not path.isascii() or ";" in path:
            raise ValueError(f"path: must be a path such as /shop, got {path!r}")
        if self.cookie.startswith("__Host-") and path != "/":
            raise ValueError(f'path: must be "/" with a __Host- cookie name, got {path!r}')
        self._values = StickyCookie(secret, service, max_age)
        self.keep_draining = keep_draining
        self.id_of = lru_cache(maxsize=1024)(self._values.id_of)
        self._clock = clock
        age = "" if self._values.max_age is None else f"; Max-Age={self._values.max_age}"
        self._attributes = f"; Path={path}{age}; HttpOnly; SameSite=Lax"
        self._only_secure = self.cookie.startswith(_ONLY_SECURE)

    def read(self, environ: WSGIEnvironment) -> StickyTarget | None:
        """Return the content of the client's cookie; ``None`` without a valid one."""
        field = environ.get("HTTP_COOKIE")
        if not field:
            return None
        known: tuple[Stickiness, str, StickyTarget | None] | None = environ.get(_READ)
        # read twice per request: when an instance is picked, and for the response
        if known is None or known[0] is not self or known[1] != field:
            environ[_READ] = known = (self, field, self._read(field))
        return known[2]

    def _read(self, field: str) -> StickyTarget | None:
        now = self._clock()
        for value in cookie_values(field, self.cookie):
            target = self._values.read(value, now)
            if target is not None:
                return target
        return None

    def mark(self, request: Outgoing, environ: WSGIEnvironment, instance: Instance) -> None:
        """Set the sticky cookie for *instance* on *request*, unless the client has a fresh one."""
        id, target = self.id_of(instance.url), self.read(environ)
        if target is None or target.stale or target.id != id:
            value = self._values.sign(id, self._clock())
            secure = self._only_secure or environ["wsgi.url_scheme"] == "https"
            ends = "; Secure" if secure else ""
            request.set_cookie = f"{self.cookie}={value}{self._attributes}{ends}"

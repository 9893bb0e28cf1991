"""The instance that a client was with before, by a cookie that only the gateway can write."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from hmac import compare_digest, digest
from typing import NamedTuple

__all__ = ["StickyCookie", "Stuck"]

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

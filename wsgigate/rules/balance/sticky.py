"""The instance that a client was with before, by a cookie that only the gateway can write."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Sequence
from hmac import compare_digest, digest
from typing import Generic

from wsgigate.rules.balance.pairs import TwoChoices
from wsgigate.rules.balance.policy import M

__all__ = ["Sticky", "StickyValues"]

_SHORTEST = 16


class StickyValues:
    """What the cookie says of each instance: neither its address nor anything to be guessed.

    :param secret: At least 16 bytes that all gateways of the service share.
    :param service: The service's name: the cookie of one is nothing to another.
    :raises ValueError: *secret* is too short.
    """

    def __init__(self, secret: bytes, service: str) -> None:
        if len(secret) < _SHORTEST:
            raise ValueError(f"the secret of a sticky cookie has at least {_SHORTEST} bytes")
        self._secret = secret
        self._service = service.encode("utf-8", "surrogatepass")

    def sign(self, name: str) -> str:
        """Return what a cookie says whose client stays with the instance *name*."""
        text = self._service + b"\0" + name.encode("utf-8", "surrogatepass")
        return urlsafe_b64encode(digest(self._secret, text, "sha256")[:18]).decode("ascii")

    def verify(self, value: str, name: str) -> bool:
        """Return whether *value* is what :meth:`sign` says of *name*, in constant time."""
        return compare_digest(value.encode("utf-8", "surrogatepass"), self.sign(name).encode())


class Sticky(Generic[M]):
    """Whom the client was with before, as its cookie says, while that one is there.

    A client without a valid cookie, or whose instance is gone or has failed this request, goes to
    the less busy of two. A draining instance keeps the clients it has, and gets no others.

    :param values: Makes and checks the cookie's value; a request's key is what the cookie says.
    """

    timed = False

    def __init__(self, random: Callable[[], float], *, values: StickyValues) -> None:
        self._free: TwoChoices[M] = TwoChoices(random)
        self._values = values
        self._known: dict[str, M] = {}

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        self._free.renew(members)
        sign = self._values.sign
        # Found by the beginning, compared as a whole: a guess learns nothing from the time it took.
        self._known = {sign(member.name)[:8]: member for member in (*members, *draining)}

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        if key is not None:
            member = self._known.get(key[:8])
            if member is not None and member not in avoid and self._values.verify(key, member.name):
                return member
        return self._free.pick(avoid=avoid)

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""

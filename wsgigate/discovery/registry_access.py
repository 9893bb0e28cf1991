"""Who may change what in the registry, and who may read it.

A registry that is open to everyone on its machine is also asked by browsers on that machine, and a
page of any site can have its own host name resolve to 127.0.0.1 (DNS rebinding): its requests are
same-origin then. What gives them away is the ``Host`` field. So without a token an open registry
serves loopback names and addresses alone.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.credentials import bearer, for_loopback, from_another_site
from wsgigate.discovery.registry_guard import TokenGuard
from wsgigate.problem import Problem, Refusal
from wsgigate.rules.registry import check_service
from wsgigate.wsgi import client_address

__all__ = ["Access", "Caller"]

_LONGEST_ADDRESS = 64
_TOKEN = re.compile(r"[\x21-\x7e]{16,1024}")


class Caller(NamedTuple):
    """Whoever presented a token: what it may change.

    :ivar everything: It may change every service.
    :ivar services: The names of those that it may change.
    """

    everything: bool
    services: frozenset[str] = frozenset()

    def may(self, service: object) -> bool:
        """Tell whether it may change *service*."""
        return self.everything or (isinstance(service, str) and service in self.services)


class Access:
    """Tells callers by their tokens.

    Tokens are looked up by a hash under a key of this process alone, so the time that takes tells
    nothing of them, however many there are.

    :param token: Whoever presents it may change every service.
    :param tokens: By service, what it presents to change itself alone.
    :param open_reads: Whether anybody may read; else whoever has any of the tokens.
    :param open_writes: Whether anybody may change everything: for a machine with one user. Requests
        without a token are then served for loopback names and addresses alone (``localhost``,
        ``127.0.0.1``, ``[::1]``).
    :param guard: Counts wrong tokens, so that they cannot be guessed at full speed; that of the
        first registry that is served with this, unless given.
    :raises ValueError: A token can be guessed or sent by nobody, or a name is no service's; without
        a token nobody could change anything.
    """

    def __init__(
        self,
        token: str | None = None,
        tokens: Mapping[str, str] | None = None,
        *,
        open_reads: bool = True,
        open_writes: bool = False,
        guard: TokenGuard | None = None,
    ) -> None:
        if token is None and not tokens and not open_writes:
            raise ValueError("a token is missing: without one nobody could register anything")
        self._key = secrets.token_bytes(32)
        self._callers: dict[bytes, Caller] = {}
        self._open_reads = open_reads
        self._guard = guard
        self._anybody = Caller(everything=True) if open_writes else None
        for service, text in (tokens or {}).items():
            check_service(service)
            _check(text, f"the token of {service!r}")
            digest = self._digest(text.encode("ascii"))
            known = self._callers.get(digest, Caller(everything=False))
            self._callers[digest] = known._replace(services=known.services | {service})
        if token is not None:
            _check(token, "the token")
            self._callers[self._digest(token.encode("ascii"))] = Caller(everything=True)

    def guard_by(self, guard: TokenGuard) -> None:
        """Have *guard* count wrong tokens, unless another one does."""
        if self._guard is None:
            self._guard = guard

    def __repr__(self) -> str:
        return "Access(...)"

    def caller_of(self, token: bytes) -> Caller | None:
        """Return what whoever presents *token* may do, None when it is nobody's."""
        return self._callers.get(self._digest(token)) or self._anybody

    def writer(self, environ: WSGIEnvironment) -> Caller:
        """Return who wants to change something.

        :raises Refusal: Nobody who may: 401; a page of another site in a browser, or a host that an
            open registry does not serve: 403; too many wrong tokens: 429.
        """
        if from_another_site(environ):
            raise Refusal.of(
                403,
                "Requests from other sites are not allowed.",
                "the request comes from a page of another origin",
            )
        return self._caller(environ)

    def _caller(self, environ: WSGIEnvironment) -> Caller:
        """Return whoever sent a request.

        :raises Refusal: As :meth:`writer` does.
        """
        token = bearer(environ)
        known = self._callers.get(self._digest(token)) if token else None
        if known is not None:
            if self._guard is not None:
                self._guard.right(client_address(environ)[:_LONGEST_ADDRESS], token)
            return known
        if self._anybody is not None:
            if not for_loopback(environ):
                raise _not_here()
            return self._anybody
        if token and self._guard is not None:
            self._guard.wrong(client_address(environ)[:_LONGEST_ADDRESS], token)
        raise _unknown()

    def check_write(self, environ: WSGIEnvironment, service: str) -> None:
        """See that the caller may change *service*.

        :raises Refusal: It may not: 401 or 403.
        """
        self.check_caller(self.writer(environ), service)

    def check_caller(self, caller: Caller, service: object) -> None:
        """See that *caller* may change *service*.

        :raises Refusal: It may not: 403.
        """
        if not caller.may(service):
            raise Refusal.of(
                403,
                "The token is another service's!",
                "the token presented is that of another service",
            )

    def check_read(self, environ: WSGIEnvironment) -> None:
        """See that the caller may read.

        :raises Refusal: It may not: 401, 403 or 429, as for :meth:`writer`.
        """
        if self._anybody is not None or not self._open_reads:
            self._caller(environ)

    def _digest(self, token: bytes) -> bytes:
        return blake2b(token, key=self._key, digest_size=32).digest()


def _unknown() -> Refusal:
    challenge = (("WWW-Authenticate", 'Bearer realm="registry"'),)
    return Refusal(
        Problem(401, "Registry token required!", headers=challenge),
        "the registry token is missing or wrong",
    )


def _not_here() -> Refusal:
    return Refusal.of(
        403,
        "This registry is open to its own machine alone: ask it as localhost or 127.0.0.1, "
        "or present a token.",
        "an open registry was asked by a name that is not loopback's",
    )


def _check(token: str, what: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{what} is 16 to 1024 visible ASCII characters without spaces")

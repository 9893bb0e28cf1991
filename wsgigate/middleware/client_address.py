"""Who the client is, decided once: the peer, unless a trusted proxy vouches for another."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.forwarded import (
    AddressList,
    address_field,
    address_of,
    forged_keys,
    format_forwarded,
    forwarded_chain,
    forwarded_for,
    parse_forwarded,
)
from wsgigate.http.peer_watch import PeerWatch
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.refusals import refused
from wsgigate.http.target import BadTarget, normal_host
from wsgigate.http.wsgi import CLIENT, CLIENT_SOURCE, PEER_TRUSTED, environ_key
from wsgigate.rules.arguments import checked

__all__ = ["ClientAddress"]

Told: TypeAlias = tuple[list[str], list[str]]
"""The believable chain from the client on, and what is told of it: scheme, host, port, prefix."""

_log = logging.getLogger("wsgigate.client_address")
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~!$&'()*+,;=:@-]+)+/?")
_TOLD = [f"HTTP_X_FORWARDED_{name}" for name in ("PROTO", "HOST", "PORT", "PREFIX")]
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@checked
class ClientAddress:
    """Tell the rest of the stack who the client is, and take away what it made up about itself.

    The client's address is put into ``environ["wsgigate.client"]``. It is the peer's own, and every
    field that only a proxy may set is removed: ``Forwarded``, all of ``X-Forwarded-*``,
    ``X-Real-IP`` and its many cousins, ``X-Original-URL``, method overrides, ``Proxy``.

    When the peer is a trusted proxy, the client is the right-most address in *source* that is not a
    trusted proxy itself, and the scheme it used becomes ``wsgi.url_scheme``. What was told is then
    left in one checked form, whatever the source: ``X-Forwarded-For`` and ``Forwarded`` from the
    client on, without what the client put before, and ``X-Forwarded-Proto``, ``-Host``, ``-Port``
    and ``-Prefix`` where they are well-formed. All else is removed here, too.

    The outermost one decides: a request that has its client already passes as it is, unless its
    ``REMOTE_ADDR`` was replaced in between by an address that the outer one knew nothing of.

    :param app: The WSGI application to protect.
    :param trusted_proxies: Addresses and networks of the proxies in front of this server; ``unix``
        is the peer of a Unix socket. Default: none.
    :param source: The field that these proxies write and do not pass on as a client sent it:
        ``x-forwarded-for``, ``forwarded`` (RFC 7239), a field with the client's address alone, such
        as ``x-real-ip``, ``cf-connecting-ip``, ``true-client-ip`` or ``fly-client-ip``, or
        ``header:NAME`` for any other such field. Other fields are never read.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: A proxy is no address, or there is no such source.
    """

    KNOWN = 1024  # how many keys are remembered as harmless; others are looked at again

    def __init__(
        self,
        app: WSGIApplication,
        *,
        trusted_proxies: Iterable[str] = (),
        source: str = "x-forwarded-for",
        refuse: Refuse = answer_with,
    ) -> None:
        sources = {"x-forwarded-for": _told_by_x_forwarded, "forwarded": _told_by_forwarded}
        source = source.lower() if isinstance(source, str) else source
        self._own = ""  # the key of a field that holds the client's address alone
        self._read = sources.get(source, self._told_by_own)
        if source not in sources:
            self._own = environ_key(address_field(source))
        try:
            self._trusted = AddressList(trusted_proxies)
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {error}") from None
        self.app = app
        self._harmless: set[str] = set()
        self._watch: PeerWatch | None = PeerWatch(
            _log.warning,
            "all clients behind the proxy in front count as one",
            'list "{peer}" in trusted_proxies, in a file in gateway.trusted_proxies',
        )
        self._refuse = refuse

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        peer: str = environ.get("REMOTE_ADDR") or "unix"
        if CLIENT in environ and peer in environ.get(CLIENT_SOURCE, (peer,)):
            return self.app(environ, start_response)
        environ[CLIENT], environ[CLIENT_SOURCE] = _alone(peer)
        environ.pop(PEER_TRUSTED, None)
        if peer in self._trusted:
            try:
                self._believe(environ, peer)
            except ValueError as error:
                refused(
                    environ, "ClientAddress", f"the trusted proxy {peer} sent too much: {error}"
                )
                problem = Problem(400, f"{error}.")
                return self._refuse(problem)(environ, start_response)
        elif not self._harmless.issuperset(environ):  # all keys in one look: 0.5 µs
            watch = self._watch
            if watch is not None and not watch.forwarded(environ, peer):
                self._watch = None
            self._forget(environ)
        return self.app(environ, start_response)

    def _told_by_own(self, environ: WSGIEnvironment, addresses: AddressList, peer: str) -> Told:
        # Several addresses, or several fields, are not one that a proxy has written.
        address = address_of(environ.get(self._own, "").strip(" \t"))
        chain = [] if address is None else [address]
        return chain, [environ.get(key, "") for key in _TOLD]

    def _forget(self, environ: WSGIEnvironment) -> None:
        """Remove what only a proxy may set; what is harmless need not be looked at again."""
        harmless = self._harmless
        unknown = [key for key in environ if key not in harmless]
        forged = forged_keys(unknown)
        if self._own in unknown and self._own not in forged:
            forged.append(self._own)
        for key in forged:
            del environ[key]
        if len(forged) < len(unknown) <= self.KNOWN - len(harmless):
            harmless.update(k for k in unknown if k not in forged and len(k) <= 40)

    def _believe(self, environ: WSGIEnvironment, peer: str) -> None:
        chain, told = self._read(environ, self._trusted, peer)
        self._forget(environ)
        environ[PEER_TRUSTED] = True
        if chain:
            environ[CLIENT] = chain[0]
            environ[CLIENT_SOURCE] = (peer, *chain)
        proto, host, port, prefix = told
        host = host if _is_host(host) else ""
        if proto in ("http", "https"):
            environ["wsgi.url_scheme"] = environ["HTTP_X_FORWARDED_PROTO"] = proto
        else:
            proto = ""
        if host:
            environ["HTTP_X_FORWARDED_HOST"] = host
        if _PORT.fullmatch(port) and int(port) <= 65535:
            environ["HTTP_X_FORWARDED_PORT"] = port
        if _PREFIX.fullmatch(prefix):
            environ["HTTP_X_FORWARDED_PREFIX"] = prefix
        if chain:
            if self._own:
                environ[self._own] = chain[0]
            environ["HTTP_X_FORWARDED_FOR"] = ", ".join(chain)
            environ["HTTP_FORWARDED"] = ", ".join(
                [format_forwarded(chain[0], host, proto), *map(format_forwarded, chain[1:])]
            )


@lru_cache(maxsize=4096)
def _alone(peer: str) -> tuple[str, tuple[str, ...]]:
    """Return the client that *peer* is by itself, and what that was made from."""
    return address_of(peer) or peer, (peer,)


def _told_by_x_forwarded(environ: WSGIEnvironment, addresses: AddressList, peer: str) -> Told:
    entries = forwarded_for(environ.get("HTTP_X_FORWARDED_FOR", ""))
    chain = forwarded_chain(peer, entries, addresses.__contains__)
    return chain, [environ.get(key, "") for key in _TOLD]


def _told_by_forwarded(environ: WSGIEnvironment, addresses: AddressList, peer: str) -> Told:
    elements = parse_forwarded(environ.get("HTTP_FORWARDED", ""))
    entries = [element.get("for", "") for element in elements]
    chain = forwarded_chain(peer, entries, addresses.__contains__)
    # The element about the client; the nearest proxy's when it does not give the client away.
    told = elements[-max(1, len(chain))] if elements else {}
    return chain, [told.get("proto", ""), told.get("host", ""), "", ""]


def _is_host(value: str) -> bool:
    try:
        return bool(value and normal_host(value))
    except BadTarget:
        return False

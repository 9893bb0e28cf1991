"""The client address: the peer's, or the one that a trusted proxy reports."""

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
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.target import BadTarget, normal_host
from wsgigate.http.wsgi import (
    CLIENT,
    CLIENT_SOURCE,
    FORWARDED_CERTIFICATES,
    PEER_TRUSTED,
    environ_key,
)
from wsgigate.rules.arguments import checked

__all__ = ["ClientAddress"]

Forwarded: TypeAlias = tuple[list[str], list[str]]
"""The trusted part of the address chain, from the client on, and the forwarded scheme, host, port
and prefix."""

_log = logging.getLogger("wsgigate.client_address")
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~!$&'()*+,;=:@-]+)+/?")
_FORWARDED_KEYS = [f"HTTP_X_FORWARDED_{name}" for name in ("PROTO", "HOST", "PORT", "PREFIX")]
_CERTIFICATE_KEYS = ("HTTP_X_FORWARDED_CLIENT_CERT", "HTTP_X_FORWARDED_TLS_CLIENT_CERT")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@checked
class ClientAddress:
    """Determine the client address and remove forged forwarding fields.

    The client address is in ``environ["wsgigate.client"]``. Default: it is the peer's, and every
    header field that only a proxy may set is removed: ``Forwarded``, all of ``X-Forwarded-*``,
    ``X-Real-IP`` and its many variants, ``X-Original-URL``, method overrides, ``Proxy``.

    If the peer is a trusted proxy, the client address is the right-most address in *source* that is
    not itself a trusted proxy, and the forwarded scheme becomes ``wsgi.url_scheme``. The forwarding
    fields are then rewritten in one validated form, whatever the source: ``X-Forwarded-For`` and
    ``Forwarded`` from the client on, without entries that the client sent, and
    ``X-Forwarded-Proto``, ``-Host``, ``-Port`` and ``-Prefix`` if they are well-formed. All other
    forwarding fields are removed.

    The outermost ClientAddress decides: a request that already has a client address passes
    unchanged, unless other code has since replaced ``REMOTE_ADDR`` by an address that the outer one
    did not see.

    :param app: The WSGI application to protect.
    :param trusted_proxies: Addresses and networks of the proxies in front of this server; ``unix``
        is the peer of a Unix socket. Default: none.
    :param source: The field that these proxies write and never pass on from a client:
        ``x-forwarded-for``, ``forwarded`` (RFC 7239), a field with only the client's address, such
        as ``x-real-ip``, ``cf-connecting-ip``, ``true-client-ip`` or ``fly-client-ip``, or
        ``header:NAME`` for any other such field. The address is read from no other field. The
        proxies also set ``X-Forwarded-Proto``, ``-Host``, ``-Port`` and ``-Prefix``, or remove
        them: one that they pass on from a client counts as theirs.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: *trusted_proxies* contains something else than addresses and networks, or
        *source* is unknown.
    """

    KNOWN = 1024  # maximum number of keys cached as harmless; others are checked each time

    def __init__(
        self,
        app: WSGIApplication,
        *,
        trusted_proxies: Iterable[str] = (),
        source: str = "x-forwarded-for",
        refuse: Refuse = answer_with,
    ) -> None:
        sources = {"x-forwarded-for": _read_x_forwarded, "forwarded": _read_forwarded}
        source = source.lower() if isinstance(source, str) else source
        self._address_key = ""  # the environ key of a field that holds the client's address only
        self._read = sources.get(source, self._read_address_field)
        if source not in sources:
            self._address_key = environ_key(address_field(source))
        try:
            self._trusted = AddressList(trusted_proxies)
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {error}") from None
        self._trusts = bool(self._trusted)  # most have no proxy in front
        self.app = app
        self._harmless: set[str] = set()
        self._watch: PeerWatch | None = PeerWatch(
            _log.warning,
            "all clients behind the proxy in front count as one",
            'add "{peer}" to trusted_proxies (in a gateway file: gateway.trusted_proxies)',
        )
        self._refuse = refuse

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        peer: str = environ.get("REMOTE_ADDR") or "unix"
        if CLIENT in environ and peer in environ.get(CLIENT_SOURCE, (peer,)):
            return self.app(environ, start_response)
        environ[CLIENT], environ[CLIENT_SOURCE] = _alone(peer)
        environ.pop(PEER_TRUSTED, None)
        environ.pop(FORWARDED_CERTIFICATES, None)
        if self._trusts and peer in self._trusted:
            try:
                self._believe(environ, peer)
            except ValueError as error:
                refused(
                    environ, "ClientAddress", f"the trusted proxy {peer} sent too much: {error}"
                )
                problem = Problem(400, f"{error}.")
                return self._refuse(problem)(environ, start_response)
        elif not self._harmless.issuperset(environ):  # one check for all keys: 0.5 µs
            watch = self._watch
            if watch is not None and not watch.inspect_fields(environ, peer):
                self._watch = None
            self._forget(environ)
        return self.app(environ, start_response)

    def _read_address_field(
        self, environ: WSGIEnvironment, addresses: AddressList, peer: str
    ) -> Forwarded:
        # A proxy writes one address: a value with several is ignored.
        address = address_of(environ.get(self._address_key, "").strip(" \t"))
        chain = [] if address is None else [address]
        return chain, [environ.get(key, "") for key in _FORWARDED_KEYS]

    def _forget(self, environ: WSGIEnvironment) -> None:
        """Remove the fields that only a proxy may set, and cache the keys that are harmless."""
        harmless = self._harmless
        unknown = [key for key in environ if key not in harmless]
        forged = forged_keys(unknown)
        if self._address_key in unknown and self._address_key not in forged:
            forged.append(self._address_key)
        for key in forged:
            del environ[key]
        if len(forged) < len(unknown) <= self.KNOWN - len(harmless):
            harmless.update(k for k in unknown if k not in forged and len(k) <= 40)

    def _believe(self, environ: WSGIEnvironment, peer: str) -> None:
        chain, forwarded = self._read(environ, self._trusted, peer)
        # for a ClientCertificate inside, and never as fields: not each proxy overwrites them
        certificates = {key: environ[key] for key in _CERTIFICATE_KEYS if key in environ}
        if certificates:
            environ[FORWARDED_CERTIFICATES] = certificates
        self._forget(environ)
        environ[PEER_TRUSTED] = True
        if chain:
            environ[CLIENT] = chain[0]
            environ[CLIENT_SOURCE] = (peer, *chain)
        proto, host, port, prefix = forwarded
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
            if self._address_key:
                environ[self._address_key] = chain[0]
            environ["HTTP_X_FORWARDED_FOR"] = ", ".join(chain)
            environ["HTTP_FORWARDED"] = ", ".join(
                [format_forwarded(chain[0], host, proto), *map(format_forwarded, chain[1:])]
            )


@lru_cache(maxsize=4096)
def _alone(peer: str) -> tuple[str, tuple[str, ...]]:
    """Return the client address of a *peer* that is not a proxy, and its source addresses."""
    return address_of(peer) or peer, (peer,)


def _read_x_forwarded(environ: WSGIEnvironment, addresses: AddressList, peer: str) -> Forwarded:
    entries = forwarded_for(environ.get("HTTP_X_FORWARDED_FOR", ""))
    chain = forwarded_chain(peer, entries, addresses.__contains__)
    return chain, [environ.get(key, "") for key in _FORWARDED_KEYS]


def _read_forwarded(environ: WSGIEnvironment, addresses: AddressList, peer: str) -> Forwarded:
    elements = parse_forwarded(environ.get("HTTP_FORWARDED", ""))
    entries = [element.get("for", "") for element in elements]
    chain = forwarded_chain(peer, entries, addresses.__contains__)
    # The element about the client, or the nearest proxy's if it hides the client.
    nearest = elements[-max(1, len(chain))] if elements else {}
    return chain, [nearest.get("proto", ""), nearest.get("host", ""), "", ""]


def _is_host(value: str) -> bool:
    try:
        return bool(value and normal_host(value))
    except BadTarget:
        return False
